//! Rules in the spelling of `iptables-restore` and `iptables-save`, both ways.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::rules::{
    Chain, Condition, Family, Protocol, Rule, RuleSet, State, Table, Test, Verdict, is_ours,
};
use crate::spec::{Group, Net};

const TABLES: [Table; 3] = [Table::Raw, Table::Mangle, Table::Nat];

/// Text for `iptables-restore --noflush`: makes our chains, empties them if they are there, and
/// appends to the built-in ones.
pub fn restore(rules: &RuleSet) -> String {
    let mut text = String::new();
    for table in TABLES {
        let chains = || rules.chains.iter().filter(move |(chain, _)| chain.table == table);
        if chains().next().is_none() {
            continue;
        }
        let _ = writeln!(text, "*{}", table_name(table));
        for (chain, _) in chains().filter(|(chain, _)| !chain.is_built_in()) {
            let _ = writeln!(text, ":{} - [0:0]", chain.name);
        }
        for (chain, rules) in chains() {
            for rule in rules {
                let _ = writeln!(text, "-A {} {}", chain.name, rule_text(rule));
            }
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// Text for `iptables-restore --noflush` that removes from what was `saved` all that is ours: our
/// chains, what leads to them or handles one of `marks`, and in built-in chains what `rules` has.
/// Empty if nothing is.
pub fn cleanup(saved: &Saved, rules: &RuleSet, marks: &[u32]) -> String {
    let mut text = String::new();
    for table in TABLES {
        let mut lines = String::new();
        let chains = || saved.chains.iter().filter(move |(chain, _)| chain.table == table);
        for (chain, lines_of) in chains().filter(|(chain, _)| chain.is_built_in()) {
            let known = rules.chains.get(chain);
            for line in lines_of {
                let Some(rule) = &line.rule else { continue };
                if is_ours(rule, marks) || known.is_some_and(|known| known.contains(rule)) {
                    let _ = writeln!(lines, "-D {} {}", chain.name, line.text);
                }
            }
        }
        let ours = || chains().filter(|(chain, _)| !chain.is_built_in());
        for what in ["-F", "-X"] {
            for (chain, _) in ours() {
                let _ = writeln!(lines, "{what} {}", chain.name);
            }
        }
        if !lines.is_empty() {
            let _ = write!(text, "*{}\n{lines}COMMIT\n", table_name(table));
        }
    }
    text
}

/// What `iptables-save` printed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// Lines by chain, in order. Built-in chains without rules are there too.
    pub chains: BTreeMap<Chain, Vec<Line>>,
}

/// One rule of [`Saved`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// As printed, without `-A CHAIN`.
    pub text: String,
    /// What it says; nothing if it has parts that we never use.
    pub rule: Option<Rule>,
}

impl Saved {
    /// Reads tables as `iptables-save` prints them. Other tables than ours are passed over.
    pub fn parse(text: &str, family: Family) -> Saved {
        let mut saved = Saved::default();
        let mut table = None;
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('*') {
                table = TABLES.into_iter().find(|table| table_name(*table) == name.trim());
                continue;
            }
            let Some(table) = table else { continue };
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            if let Some(name) = word.strip_prefix(':') {
                saved.chains.entry(Chain::new(table, name)).or_default();
            } else if word == "-A" {
                let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
                let rule = parse_rule(text, family);
                let lines = saved.chains.entry(Chain::new(table, name)).or_default();
                lines.push(Line { text: text.to_owned(), rule });
            }
        }
        saved
    }

    /// What is otherwise than in `rules`, for people; nothing when all of them stand, in order and
    /// once. Our chains may hold nothing else. In built-in ones others may have rules of theirs.
    pub fn differences(&self, rules: &RuleSet, marks: &[u32]) -> Vec<String> {
        let mut found = Vec::new();
        for (chain, expected) in &rules.chains {
            let lines = self.chains.get(chain).map(Vec::as_slice).unwrap_or_default();
            let counts = |line: &&Line| match &line.rule {
                _ if !chain.is_built_in() => true,
                Some(rule) => expected.contains(rule) || is_ours(rule, marks),
                None => false,
            };
            let actual: Vec<&Line> = lines.iter().filter(counts).collect();
            compare(chain, expected, &actual, &mut found);
        }
        for (chain, lines) in &self.chains {
            if !rules.chains.contains_key(chain) {
                let ours = |line: &Line| {
                    !chain.is_built_in()
                        || line.rule.as_ref().is_some_and(|rule| is_ours(rule, marks))
                };
                for line in lines.iter().filter(|line| ours(line)) {
                    found.push(format!("{}: also has `{}`", shown(chain), line.text));
                }
            }
        }
        found
    }

    /// Whether anything of ours stands here.
    pub fn has_ours(&self, marks: &[u32]) -> bool {
        self.chains.iter().any(|(chain, lines)| {
            let ours = |line: &Line| line.rule.as_ref().is_some_and(|rule| is_ours(rule, marks));
            !chain.is_built_in() || lines.iter().any(ours)
        })
    }

    /// Whether any rule stands here at all, of whomever.
    pub fn has_rules(&self) -> bool {
        self.chains.values().any(|lines| !lines.is_empty())
    }
}

fn shown(chain: &Chain) -> String {
    format!("{} {}", table_name(chain.table), chain.name)
}

fn compare(chain: &Chain, expected: &[Rule], actual: &[&Line], found: &mut Vec<String>) {
    let chain = shown(chain);
    for (number, rule) in expected.iter().enumerate() {
        match actual.get(number) {
            Some(line) if line.rule.as_ref() == Some(rule) => {}
            Some(line) => found.push(format!(
                "{chain}, rule {}: `{}` where `{}` belongs",
                number + 1,
                line.text,
                rule_text(rule)
            )),
            None => found.push(format!("{chain}: lacks `{}`", rule_text(rule))),
        }
    }
    for line in actual.iter().skip(expected.len()) {
        found.push(format!("{chain}: also has `{}`", line.text));
    }
}

pub(crate) fn table_name(table: Table) -> &'static str {
    match table {
        Table::Raw => "raw",
        Table::Mangle => "mangle",
        Table::Nat => "nat",
    }
}

/// One rule, as after `-A CHAIN`.
pub fn rule_text(rule: &Rule) -> String {
    let mut text = String::new();
    for Condition { test, not } in &rule.conditions {
        let negation = if *not { "! " } else { "" };
        let (module, option, value) = match test {
            Test::In(name) => ("", "-i", name.clone()),
            Test::Out(name) => ("", "-o", name.clone()),
            Test::Source(net) => ("", "-s", net.to_string()),
            Test::Destination(net) => ("", "-d", net.to_string()),
            Test::Protocol(protocol) => ("", "-p", protocol_name(*protocol).into()),
            Test::SourcePort(port) => ("", "--sport", port.to_string()),
            Test::Port(port) => ("", "--dport", port.to_string()),
            Test::Ports(ports) => ("multiport", "--dports", joined(ports)),
            Test::User(id) => ("owner", "--uid-owner", id.to_string()),
            Test::Group(Group::Id(id)) => ("owner", "--gid-owner", id.to_string()),
            Test::Group(Group::Name(name)) => ("owner", "--gid-owner", name.clone()),
            Test::Mark(mark) => ("mark", "--mark", mark.to_string()),
            Test::ConnectionMark(mark) => ("connmark", "--mark", mark.to_string()),
            Test::State(states) => ("conntrack", "--ctstate", state_names(states)),
        };
        if !module.is_empty() {
            let _ = write!(text, "-m {module} ");
        }
        let _ = write!(text, "{negation}{option} {value} ");
    }
    text.push_str("-j ");
    match &rule.verdict {
        Verdict::Return => text.push_str("RETURN"),
        Verdict::Accept => text.push_str("ACCEPT"),
        Verdict::Drop => text.push_str("DROP"),
        Verdict::Jump(to) => text.push_str(to),
        Verdict::Redirect(port) => {
            let _ = write!(text, "REDIRECT --to-ports {port}");
        }
        Verdict::Tproxy { port, mark } => {
            let _ = write!(text, "TPROXY --tproxy-mark {mark}/0xffffffff --on-port {port}");
        }
        Verdict::SetMark(mark) => {
            let _ = write!(text, "MARK --set-mark {mark}");
        }
        Verdict::SaveMark => text.push_str("CONNMARK --save-mark"),
        Verdict::RestoreMark => text.push_str("CONNMARK --restore-mark"),
        Verdict::Zone(zone) => {
            let _ = write!(text, "CT --zone {zone}");
        }
    }
    text
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

fn joined(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",")
}

fn state_names(states: &[State]) -> String {
    let name = |state: &State| match state {
        State::Established => "ESTABLISHED",
        State::Related => "RELATED",
        State::Invalid => "INVALID",
    };
    states.iter().map(name).collect::<Vec<_>>().join(",")
}

/// Reads a rule back, in our spelling or in that of `iptables-save`; nothing if it has a part that
/// no rule of ours has.
pub fn parse_rule(text: &str, family: Family) -> Option<Rule> {
    let mut words = text.split_ascii_whitespace();
    let (mut conditions, mut not, mut module) = (Vec::new(), false, "");
    while let Some(word) = words.next() {
        let test = match word {
            "!" => {
                not = true;
                continue;
            }
            "-m" => {
                module = words.next()?;
                continue;
            }
            "-j" => {
                let verdict = parse_verdict(words.next()?, words)?;
                return Some(Rule::new(conditions, verdict));
            }
            "-i" => Test::In(words.next()?.into()),
            "-o" => Test::Out(words.next()?.into()),
            "-s" => Test::Source(parse_net(words.next()?, family)?),
            "-d" => Test::Destination(parse_net(words.next()?, family)?),
            "-p" => Test::Protocol(match words.next()? {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                _ => return None,
            }),
            "--sport" => Test::SourcePort(words.next()?.parse().ok()?),
            "--dport" => Test::Port(words.next()?.parse().ok()?),
            "--dports" => {
                let ports = words.next()?.split(',').map(|port| port.parse().ok());
                Test::Ports(ports.collect::<Option<_>>()?)
            }
            "--uid-owner" => Test::User(words.next()?.parse().ok()?),
            "--gid-owner" => {
                let group = words.next()?;
                Test::Group(match group.parse() {
                    Ok(id) => Group::Id(id),
                    Err(_) => Group::Name(group.into()),
                })
            }
            "--mark" if module == "connmark" => Test::ConnectionMark(number(words.next()?)?),
            "--mark" => Test::Mark(number(words.next()?)?),
            "--ctstate" => Test::State(parse_states(words.next()?)?),
            _ => return None,
        };
        conditions.push(Condition { test, not });
        not = false;
    }
    None
}

fn parse_verdict<'t>(name: &str, mut words: impl Iterator<Item = &'t str>) -> Option<Verdict> {
    let (mut port, mut mark) = (None, None);
    let verdict = match name {
        "RETURN" => Verdict::Return,
        "ACCEPT" => Verdict::Accept,
        "DROP" => Verdict::Drop,
        "REDIRECT" => match words.next()? {
            "--to-ports" | "--to-port" => Verdict::Redirect(words.next()?.parse().ok()?),
            _ => return None,
        },
        "TPROXY" => {
            while let Some(option) = words.next() {
                let value = words.next()?;
                match option {
                    "--on-port" => port = Some(value.parse().ok()?),
                    "--tproxy-mark" => mark = Some(number(value)?),
                    "--on-ip" if value == "0.0.0.0" || value == "::" => {}
                    _ => return None,
                }
            }
            Verdict::Tproxy { port: port?, mark: mark? }
        }
        "MARK" => match words.next()? {
            "--set-mark" | "--set-xmark" => Verdict::SetMark(number(words.next()?)?),
            _ => return None,
        },
        "CONNMARK" => {
            let verdict = match words.next()? {
                "--save-mark" => Verdict::SaveMark,
                "--restore-mark" => Verdict::RestoreMark,
                _ => return None,
            };
            while let Some(option) = words.next() {
                let whole = words.next()? == "0xffffffff";
                if !whole || !matches!(option, "--nfmask" | "--ctmask") {
                    return None;
                }
            }
            verdict
        }
        "CT" => match words.next()? {
            "--zone" => Verdict::Zone(words.next()?.parse().ok()?),
            _ => return None,
        },
        chain => Verdict::Jump(chain.into()),
    };
    // Whatever is left is not understood.
    words.next().is_none().then_some(verdict)
}

/// `1337`, `0x539`, `0x539/0xffffffff`.
fn number(text: &str) -> Option<u32> {
    let one = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    match text.split_once('/') {
        None => one(text),
        Some((value, mask)) if one(mask)? == u32::MAX => one(value),
        Some(_) => None,
    }
}

fn parse_net(text: &str, family: Family) -> Option<Net> {
    let net: Net = text.parse().ok()?;
    (net.address().is_ipv4() == (family == Family::V4)).then_some(net)
}

fn parse_states(text: &str) -> Option<Vec<State>> {
    let one = |name: &str| match name {
        "ESTABLISHED" => Some(State::Established),
        "RELATED" => Some(State::Related),
        "INVALID" => Some(State::Invalid),
        _ => None,
    };
    let mut states = text.split(',').map(one).collect::<Option<Vec<_>>>()?;
    states.sort();
    Some(states)
}
