//! Rules in the spelling of `nft`: one table per IP version, written and removed as a whole.
//! Every rule is spelled as `nft -nn list table` prints it, so that it can be read back.

use std::fmt::Write as _;

use crate::iptables::table_name;
use crate::rules::{
    Chain, Condition, Family, Protocol, Rule, RuleSet, State, Table, Test, Verdict,
};
use crate::spec::Group;

/// Name of our tables.
pub const TABLE: &str = "weft";

/// Text for `nft -f -` that puts these rules in the place of whatever stands in our table, in one
/// transaction.
pub fn replace(rules: &RuleSet) -> String {
    let mut text = cleanup(rules.family);
    let _ = writeln!(text, "table {} {TABLE} {{", family_name(rules.family));
    for (chain, of_chain) in &rules.chains {
        let _ = writeln!(text, "\tchain {} {{", chain_name(chain.table, &chain.name));
        if let Some(hook) = hook(chain) {
            let _ = writeln!(text, "\t\t{hook}");
        }
        for rule in of_chain {
            let _ = writeln!(text, "\t\t{}", rule_text(rule, chain.table, rules.family));
        }
        text.push_str("\t}\n");
    }
    text.push_str("}\n");
    text
}

/// Text for `nft -f -` that removes our table, whether it is there or not.
pub fn cleanup(family: Family) -> String {
    let name = family_name(family);
    // Adding what exists is no error, deleting what does not is one.
    format!("add table {name} {TABLE}\ndelete table {name} {TABLE}\n")
}

/// What `nft -nn list table` printed and these rules say otherwise, for people.
pub fn differences(rules: &RuleSet, listed: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (chain, expected) in &rules.chains {
        let name = chain_name(chain.table, &chain.name);
        let mut expected: Vec<String> =
            expected.iter().map(|rule| rule_text(rule, chain.table, rules.family)).collect();
        expected.splice(0..0, hook(chain));
        let lines: Vec<String> = lines_of(listed, &name).into_iter().map(spelled).collect();
        for (number, rule) in expected.iter().enumerate() {
            match lines.get(number) {
                Some(line) if line == rule => {}
                Some(line) => found.push(format!("{name}: `{line}` where `{rule}` belongs")),
                None => found.push(format!("{name}: lacks `{rule}`")),
            }
        }
        for line in lines.iter().skip(expected.len()) {
            found.push(format!("{name}: also has `{line}`"));
        }
    }
    let count = listed.lines().filter(|line| line.trim_start().starts_with("chain ")).count();
    if count > rules.chains.len() {
        found.push(format!("{} chains more than ours", count - rules.chains.len()));
    }
    found
}

/// `-nn` prints some words as numbers, depending on nft's version.
fn spelled(line: &str) -> String {
    line.replace("ct state 0x2,0x4 ", "ct state established,related ")
        .replace("ct state 0x1 ", "ct state invalid ")
        .replace("meta l4proto tcp ", "meta l4proto 6 ")
        .replace("meta l4proto udp ", "meta l4proto 17 ")
}

fn lines_of<'l>(listed: &'l str, chain: &str) -> Vec<&'l str> {
    let head = format!("chain {chain} {{");
    let lines = listed.lines().map(str::trim).skip_while(|line| *line != head).skip(1);
    lines.take_while(|line| *line != "}").filter(|line| !line.is_empty()).collect()
}

/// nft's word for an IP version.
pub fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn chain_name(table: Table, chain: &str) -> String {
    format!("{}_{chain}", table_name(table))
}

fn hook(chain: &Chain) -> Option<String> {
    let (kind, priority) = match (chain.table, chain.name.as_str()) {
        // A mark may change the way a packet takes.
        (Table::Mangle, "OUTPUT") => ("route", -150),
        (Table::Mangle, _) => ("filter", -150),
        (Table::Raw, _) => ("filter", -300),
        (Table::Nat, _) => ("nat", -100),
    };
    let hook = match chain.name.as_str() {
        "PREROUTING" => "prerouting",
        "OUTPUT" => "output",
        _ => return None,
    };
    Some(format!("type {kind} hook {hook} priority {priority}; policy accept;"))
}

fn rule_text(rule: &Rule, table: Table, family: Family) -> String {
    let mut words: Vec<String> = Vec::new();
    let protocol = rule.conditions.iter().find_map(|condition| match condition.test {
        Test::Protocol(protocol) => Some(protocol_name(protocol)),
        _ => None,
    });
    let has_port = rule.conditions.iter().any(|condition| {
        matches!(condition.test, Test::SourcePort(_) | Test::Port(_) | Test::Ports(_))
    });
    // A test of a port says its protocol.
    let implied = |test: &Test| has_port && matches!(test, Test::Protocol(_));
    for Condition { test, not } in rule.conditions.iter().filter(|c| !implied(&c.test)) {
        let not = if *not { "!= " } else { "" };
        let protocol = protocol.unwrap_or("tcp");
        words.push(match test {
            Test::In(name) => format!("iifname {not}\"{}\"", wildcard(name)),
            Test::Out(name) => format!("oifname {not}\"{}\"", wildcard(name)),
            Test::Source(net) => format!("{} saddr {not}{}", family_name(family), short(*net)),
            Test::Destination(net) => format!("{} daddr {not}{}", family_name(family), short(*net)),
            Test::Protocol(protocol) => format!("meta l4proto {not}{}", protocol_number(*protocol)),
            Test::SourcePort(port) => format!("{protocol} sport {not}{port}"),
            Test::Port(port) => format!("{protocol} dport {not}{port}"),
            Test::Ports(ports) => format!("{protocol} dport {not}{}", set(ports)),
            Test::User(id) => format!("meta skuid {not}{id}"),
            Test::Group(Group::Id(id)) => format!("meta skgid {not}{id}"),
            Test::Group(Group::Name(name)) => format!("meta skgid {not}{name}"),
            Test::Mark(mark) => format!("meta mark {not}{mark:#010x}"),
            Test::ConnectionMark(mark) => format!("ct mark {not}{mark:#010x}"),
            Test::State(states) => format!("ct state {not}{}", state_names(states)),
        });
    }
    words.push(match &rule.verdict {
        Verdict::Return => "return".into(),
        Verdict::Accept => "accept".into(),
        Verdict::Drop => "drop".into(),
        Verdict::Jump(to) => format!("jump {}", chain_name(table, to)),
        Verdict::Redirect(port) => format!("redirect to :{port}"),
        Verdict::Tproxy { port, mark } => {
            format!("tproxy to :{port} meta mark set {mark:#010x} accept")
        }
        Verdict::SetMark(mark) => format!("meta mark set {mark:#010x}"),
        Verdict::SaveMark => "ct mark set meta mark".into(),
        Verdict::RestoreMark => "meta mark set ct mark".into(),
        Verdict::Zone(zone) => format!("ct zone set {zone}"),
    });
    words.join(" ")
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// IANA's number, as `-nn` prints it.
fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

/// A range of one address is printed as the address.
fn short(net: crate::Net) -> String {
    match crate::Net::host(net.address()) == net {
        true => net.address().to_string(),
        false => net.to_string(),
    }
}

fn wildcard(interface: &str) -> String {
    match interface.strip_suffix('+') {
        Some(start) => format!("{start}*"),
        None => interface.to_owned(),
    }
}

fn set(ports: &[u16]) -> String {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    format!("{{ {} }}", ports.join(", "))
}

fn state_names(states: &[State]) -> String {
    let name = |state: &State| match state {
        State::Established => "established",
        State::Related => "related",
        State::Invalid => "invalid",
    };
    states.iter().map(name).collect::<Vec<_>>().join(",")
}
