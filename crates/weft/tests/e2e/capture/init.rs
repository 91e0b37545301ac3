//! `weft init` with every program that writes rules: what it writes, writes once, finds changed,
//! and takes away.

use std::process::{Command, Output};

use weft_testkit::netns;

use crate::harness::WEFT;

const PROBE: &str = "ip link add probe type veth peer name other";
/// A rule of everything there is.
const OPTIONS: &str = "-b * -d 15021 -i * -x 10.9.0.0/16,fd01::/32 -o 3306 -q 81 -c eth7 -k vnet+ \
                       --drop-invalid --outbound-owner-groups-exclude 888,daemon";

fn weft(options: &str) -> (bool, String) {
    let words = options.split_ascii_whitespace();
    let output = Command::new(WEFT).arg("init").args(words).output().expect("weft starts");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn works(options: &str) -> String {
    let (success, said) = weft(options);
    assert!(success, "{options}: {said}");
    said
}

/// Everything the kernel holds, by the program that wrote it.
fn state(backend: &str) -> String {
    let programs: &[&[&str]] = match backend {
        "nft" => &[&["nft", "list", "ruleset"]],
        "iptables-legacy" => &[&["iptables-legacy-save"], &["ip6tables-legacy-save"]],
        _ => &[&["iptables-nft-save"], &["ip6tables-nft-save"]],
    };
    let mut all = String::new();
    for program in programs {
        let Output { stdout, .. } =
            Command::new(program[0]).args(&program[1..]).output().expect("it was there before");
        all.push_str(&String::from_utf8_lossy(&stdout));
    }
    let rule = |line: &&str| line.starts_with("-A") || line.contains("ISTIO_");
    all.lines().filter(rule).map(|line| format!("{line}\n")).collect()
}

#[test]
fn rules_are_written_once_read_back_and_removed() {
    if !netns::inside("capture::init::rules_are_written_once_read_back_and_removed", PROBE) {
        return;
    }
    netns::commands(&[
        "ip link set lo up",
        "ip link add eth0 type veth peer name node",
        "ip link set eth0 up",
        "ip address add 10.1.0.2/24 dev eth0",
        "ip address add fd00::2/64 dev eth0 nodad",
    ]);
    for backend in ["iptables-nft", "iptables-legacy", "nft"] {
        for mode in ["REDIRECT", "TPROXY"] {
            let options = format!("--backend {backend} -m {mode} {OPTIONS}");
            let said = works(&options);
            assert_eq!(said.matches("written and read back").count(), 2, "{said}");
            let once = state(backend);
            assert!(once.contains("ISTIO_OUTPUT"), "{once}");
            let said = works(&options);
            assert_eq!(said.matches("were in place").count(), 2, "{said}");
            assert_eq!(state(backend), once, "a second run changes nothing");
            // Other options take the place of the first.
            works(&format!("--backend {backend} -m {mode} -b 80 -i * -c eth7 -k vnet+"));
            assert!(!state(backend).contains("3306"), "{}", state(backend));
            let said = works(&format!("--cleanup {options}"));
            assert!(said.contains("IPv4") && said.contains("IPv6"), "{said}");
            assert_eq!(state(backend), "", "{backend} {mode}");
            assert!(works(&format!("--cleanup {options}")).contains("no capture rules"));
        }
    }
    let rules = Command::new("ip").args(["rule", "list"]).output().expect("ip starts").stdout;
    assert!(!String::from_utf8_lossy(&rules).contains("fwmark"));

    // Rules somebody else's hand has changed are put right.
    works("--backend nft -b 80 -i *");
    netns::commands(&["nft insert rule ip weft nat_ISTIO_OUTPUT accept"]);
    assert!(works("--backend nft -b 80 -i *").contains("IPv4 15 rules written"));
    works("--cleanup");
    // Others' rules stay, and decide which program is taken.
    netns::commands(&["iptables-legacy -t nat -A OUTPUT -p tcp --dport 9 -j ACCEPT"]);
    assert!(works("-b 80 -i *").contains("iptables-legacy"));
    works("--cleanup");
    assert!(state("iptables-legacy").contains("--dport 9"), "{}", state("iptables-legacy"));
}

#[test]
fn wrong_options_and_missing_rights_are_explained() {
    for (options, why) in [
        ("-b http", "is no port"),
        ("-i 10.0.0/8", "is no address range"),
        ("-x *", "`*` cannot be excluded"),
        ("-m MIRROR", "is no interception mode"),
        ("-c a/b", "is no name of a network interface"),
        ("--outbound-owner-groups nobodys", "is not in /etc/group"),
    ] {
        let (success, said) = weft(options);
        assert!(!success && said.contains(why), "{options}: {said}");
    }
    let printed = works("--dry-run -b 80 -i * --backend iptables-nft --ip-family dual");
    assert!(printed.contains("ip6tables-nft-restore --noflush"), "{printed}");
    assert!(
        printed.contains("-A ISTIO_INBOUND -p tcp --dport 80 -j ISTIO_IN_REDIRECT"),
        "{printed}"
    );
}
