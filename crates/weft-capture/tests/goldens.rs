//! Our rules against Istio's, chain by chain and in order, as `iptables-restore` would leave them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use weft_capture::{CaptureSpec, Chain, Dns, Family, Groups, Mode, PortSet, Rule, RuleSet, Table};
use weft_capture::{iptables, nft};

fn folder() -> Option<PathBuf> {
    Some(weft_testkit::peer::data("rules_are_istios")?.join("iptables"))
}

/// Chains after Istio's lines have been carried out, for IPv4 and, if it wrote any, IPv6.
fn golden(text: &str) -> Vec<BTreeMap<Chain, Vec<Rule>>> {
    let mut families = vec![BTreeMap::new()];
    let (mut table, mut seen) = (None, Vec::new());
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let family = match families.len() {
            1 => Family::V4,
            _ => Family::V6,
        };
        let rule = |from: usize| {
            let text = words[from..].join(" ");
            iptables::parse_rule(&text, family).unwrap_or_else(|| panic!("cannot read {text}"))
        };
        let chain = |name: &str| Chain::new(table.expect("a table first"), name);
        match words[0] {
            "*" => {
                let next = match words[1] {
                    "raw" => Table::Raw,
                    "mangle" => Table::Mangle,
                    "nat" => Table::Nat,
                    other => panic!("table {other}"),
                };
                // The same table again, or one that stood before it, is the other IP version's.
                if seen.contains(&next) {
                    families.push(BTreeMap::new());
                    seen.clear();
                }
                seen.push(next);
                table = Some(next);
            }
            "-N" => {
                families
                    .last_mut()
                    .expect("one at least")
                    .entry(chain(words[1]))
                    .or_insert_with(Vec::new);
            }
            "-A" => {
                let rule = rule(2);
                families
                    .last_mut()
                    .expect("one at least")
                    .entry(chain(words[1]))
                    .or_default()
                    .push(rule);
            }
            "-I" => {
                let (rule, at) = (rule(3), words[2].parse::<usize>().expect("a position") - 1);
                families
                    .last_mut()
                    .expect("one at least")
                    .entry(chain(words[1]))
                    .or_default()
                    .insert(at, rule);
            }
            _ => {}
        }
    }
    families
}

/// The options behind each golden, from the test that wrote them.
fn spec(name: &str) -> CaptureSpec {
    let default = CaptureSpec::default();
    let servers = || Some(Dns::Servers(vec!["127.0.0.53".parse().expect("a good value")]));
    match name {
        "empty" | "ipv6-empty-inbound-ports" => default,
        "inbound-ports-include" => {
            CaptureSpec { inbound_ports: "32000,31000".parse().expect("a good value"), ..default }
        }
        "inbound-ports-wildcard" => CaptureSpec { inbound_ports: PortSet::All, ..default },
        "ip-range" => CaptureSpec {
            outbound_ranges: "9.9.0.0/16".parse().expect("a good value"),
            outbound_ranges_exclude: vec!["1.1.0.0/16".parse().expect("a good value")],
            dns: servers(),
            proxy_uids: vec![3, 4],
            proxy_gids: vec![1, 2],
            ..default
        },
        "kube-virt-interfaces" => CaptureSpec {
            reroute_interfaces: vec!["eth1".into(), "eth2".into()],
            outbound_ranges: "*".parse().expect("a good value"),
            ..default
        },
        "outbound-owner-groups-exclude" => {
            CaptureSpec { owner_groups: Groups::parse("*", "888,ftp").expect("groups"), ..default }
        }
        "outbound-ports-include" => CaptureSpec { outbound_ports: vec![32000, 31000], ..default },
        "tproxy" => CaptureSpec {
            mode: Mode::Tproxy,
            inbound_ports: PortSet::All,
            outbound_ranges: "9.9.0.0/16".parse().expect("a good value"),
            outbound_ranges_exclude: vec!["1.1.0.0/16".parse().expect("a good value")],
            dns: servers(),
            exclude_interfaces: vec!["not-istio-nic".into()],
            ..default
        },
        other => panic!("{other}: no options known for this golden"),
    }
}

fn goldens() -> Vec<(String, String)> {
    let entry = |path: &Path| {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        (name, std::fs::read_to_string(path).expect("a readable file"))
    };
    let Some(folder) = folder() else { return Vec::new() };
    let files = std::fs::read_dir(folder).expect("a readable folder");
    let mut all: Vec<_> =
        files.map(|file| entry(&file.expect("a readable folder").path())).collect();
    all.sort();
    assert!(all.len() >= 9, "only {} goldens", all.len());
    all
}

#[test]
fn rules_are_istios() {
    for (name, text) in goldens() {
        for (expected, family) in golden(&text).into_iter().zip([Family::V4, Family::V6]) {
            let ours = RuleSet::new(&spec(&name), family);
            for (chain, rules) in &expected {
                let empty = Vec::new();
                let mut ours = ours.chains.get(chain).unwrap_or(&empty).as_slice();
                // The one rule that Istio has not; `build` says why.
                if name == "tproxy" && *chain == Chain::new(Table::Nat, "ISTIO_OUTPUT") {
                    assert_eq!(
                        iptables::rule_text(&ours[0]),
                        "-p tcp -m mark --mark 1337 -j RETURN"
                    );
                    ours = &ours[1..];
                }
                let shown = |rules: &[Rule]| {
                    rules.iter().map(iptables::rule_text).collect::<Vec<_>>().join("\n")
                };
                assert_eq!(shown(ours), shown(rules), "{name} {family:?} {chain:?}");
                assert_eq!(ours, rules.as_slice());
            }
            for chain in ours.chains.keys() {
                assert!(
                    expected.contains_key(chain),
                    "{name} {family:?}: {chain:?} is Istio's not"
                );
            }
        }
    }
}

#[test]
fn what_is_written_reads_back_the_same() {
    for (name, _) in goldens() {
        for family in [Family::V4, Family::V6] {
            let spec = spec(&name);
            let rules = RuleSet::new(&spec, family);
            let marks = RuleSet::marks(&spec);
            let text = iptables::restore(&rules);
            let saved = iptables::Saved::parse(&text, family);
            assert_eq!(saved.differences(&rules, &marks), Vec::<String>::new(), "{name}");
            let text = nft::replace(&rules);
            assert_eq!(nft::differences(&rules, &text), Vec::<String>::new(), "{name}");
            // And a rule less, or one from elsewhere among ours, is seen.
            let line = text.lines().find(|line| line.contains("skuid")).unwrap();
            assert!(!nft::differences(&rules, &text.replacen(line, "", 1)).is_empty());
        }
    }
}
