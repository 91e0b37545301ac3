//! `weft analyze`: exit codes, formats, and a running control plane's findings beside those on the
//! same files.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::{Mesh, WEFT};

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: app, namespace: default}\n\
     spec: {selector: {app: app}, ports: [{name: http, port: 80}]}\n";
/// IST0118: a port whose name says no protocol.
const NOTE: &str = "---\napiVersion: v1\nkind: Service\nmetadata: {name: odd, namespace: default}\n\
     spec: {selector: {app: odd}, ports: [{name: odd, port: 80}]}\n";
/// IST0130: a rule behind one that takes everything.
const WARNING: &str = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
     metadata: {name: shadowed, namespace: default}\n\
     spec: {hosts: [app], http: [{route: [{destination: {host: app}}]}, {route: [{destination: {host: app}}]}]}\n";
/// IST0101: a destination that is not there.
const ERROR: &str = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
     metadata: {name: lost, namespace: default}\n\
     spec: {hosts: [lost.example.com], http: [{route: [{destination: {host: nowhere}}]}]}\n";

/// Two that would be errors, one across resources and one that is not taken in at all, and ask not to
/// be told of.
const QUIET: &str = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
     metadata: {name: quiet, namespace: default, annotations: {galley.istio.io/analyze-suppress: 'IST0001, IST0101'}}\n\
     spec: {hosts: [quiet.example.com], http: [{route: [{destination: {host: nowhere}}]}]}\n\
     ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
     metadata: {name: quiet, namespace: default, annotations: {galley.istio.io/analyze-suppress: '*'}}\n\
     spec: {host: app, trafficPolicy: {tls: {mode: SIMPLE, credentialName: a, caCrl: /b}}}\n";

fn weft(args: &[&str]) -> Output {
    Command::new(WEFT).arg("analyze").args(args).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the program prints text")
}

/// What `weft analyze ARGS -o json` finds, in an order of its own. Without lines: a control plane has
/// no texts, and knows the line of a document only.
fn found(args: &[&str]) -> Vec<String> {
    let output = weft(&[args, &["-o", "json", "--failure-threshold=never"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let without_line = |one: &Value| {
        let mut one = one.clone();
        one.as_object_mut().expect("a finding").remove("line");
        one.to_string()
    };
    let mut all: Vec<String> = json.as_array().expect("a list").iter().map(without_line).collect();
    all.sort();
    all
}

fn write(folder: &Path, name: &str, yaml: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, yaml).expect("the folder is writable");
    path.display().to_string()
}

#[test]
fn the_exit_code_says_how_bad_it_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let thresholds = ["info", "warning", "error", "never"];
    for (name, yaml, fails) in [
        ("fine.yaml", SERVICE.to_owned(), [false, false, false, false]),
        ("note.yaml", format!("{SERVICE}{NOTE}"), [true, false, false, false]),
        ("warning.yaml", format!("{SERVICE}{WARNING}"), [true, true, false, false]),
        ("error.yaml", format!("{SERVICE}{ERROR}"), [true, true, true, false]),
        ("all.yaml", format!("{SERVICE}{NOTE}{WARNING}{ERROR}"), [true, true, true, false]),
    ] {
        let file = write(folder.path(), name, &yaml);
        for (threshold, fails) in thresholds.iter().zip(fails) {
            let output = weft(&["-f", &file, "--failure-threshold", threshold]);
            let code = output.status.code();
            assert_eq!(
                code,
                Some(i32::from(fails)),
                "{name} {threshold}: {}",
                text(&output.stdout)
            );
        }
        let silent = weft(&["-f", &file]).status.code();
        assert_eq!(silent, Some(i32::from(fails[2])), "{name}: errors are the default");
    }
}

#[test]
fn every_format_has_every_finding() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = write(folder.path(), "all.yaml", &format!("{SERVICE}{NOTE}{WARNING}{ERROR}"));
    let json: Value =
        serde_json::from_slice(&weft(&["-f", &file, "-o", "json"]).stdout).expect("JSON");
    let codes: Vec<&str> =
        json.as_array().expect("a list").iter().filter_map(|one| one["code"].as_str()).collect();
    assert_eq!(codes.len(), json.as_array().expect("a list").len());
    for code in ["IST0101", "IST0118", "IST0130"] {
        assert!(codes.contains(&code), "{codes:?}");
    }
    let yaml = text(&weft(&["-f", &file, "-o", "yaml"]).stdout);
    let entries = yaml.lines().filter(|line| line.starts_with("- ")).count();
    assert_eq!(entries, codes.len(), "{yaml}");
    let human = text(&weft(&["-f", &file]).stdout);
    for code in codes {
        assert!(yaml.contains(&format!("code: {code}")), "{yaml}");
        assert!(human.contains(&format!("[{code}]")), "{human}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_control_plane_finds_the_same() {
    let mesh = Mesh::start(&format!("{SERVICE}{NOTE}{WARNING}{ERROR}{QUIET}")).await;
    let folder = mesh.folder.path().join("config").display().to_string();
    let api = format!("--api=http://{}", mesh.http);
    let of_files = found(&["-f", &folder]);
    assert!(of_files.len() >= 3, "{of_files:?}");
    assert_eq!(found(&["--live", &api]), of_files);
    assert!(!of_files.iter().any(|one| one.contains("quiet")), "{of_files:?}");
    let code = |args: &[&str]| weft(&[&["--live", &api], args].concat()).status.code();
    assert_eq!(code(&[]), Some(1));
    assert_eq!(code(&["--failure-threshold=never"]), Some(0));
    let yaml = weft(&["--live", &api, "-o", "yaml"]);
    assert!(text(&yaml.stdout).contains("code: IST0101"), "{}", text(&yaml.stdout));
    let human = weft(&["--live", &api]);
    assert!(text(&human.stdout).contains("[IST0130]"), "{}", text(&human.stdout));
}

#[test]
fn what_cannot_be_analyzed_is_said() {
    let both = weft(&["--live", "-f", "x.yaml"]);
    assert_eq!(both.status.code(), Some(2), "{}", text(&both.stderr));
    let nothing = weft(&[]);
    assert_eq!(nothing.status.code(), Some(2), "{}", text(&nothing.stderr));
    let api = format!("http://127.0.0.1:{}", weft_testkit::free_port());
    let nobody = weft(&["--live", "--api", &api]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(!text(&nobody.stderr).is_empty() && nobody.stdout.is_empty());
    let absent = weft(&["-f", "/nowhere/at/all.yaml"]);
    assert_eq!(absent.status.code(), Some(1));
    assert!(text(&absent.stderr).contains("/nowhere/at/all.yaml"), "{}", text(&absent.stderr));
}
