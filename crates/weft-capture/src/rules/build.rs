//! From a spec to rules, in Istio's order.
//!
//! ```text
//! inbound   PREROUTING ─ ISTIO_INBOUND ─ ISTIO_IN_REDIRECT → 15006
//! outbound  OUTPUT ─ ISTIO_OUTPUT ─┬ of the proxy, to this pod itself ─ ISTIO_IN_REDIRECT
//!                                  ├ of the proxy, or to loopback ─ untouched
//!                                  └ of the application ─ ISTIO_REDIRECT → 15001
//! ```
//! A connection the proxy opens to its own pod came from the application under a Service's
//! address: it goes to the inbound side, as any caller's would. What the application sends over
//! loopback by the pod's own address never leaves the pod, and is left alone.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Chain, Condition, Family, Protocol, Rule, RuleSet, State, Table, Test, Verdict};
use crate::spec::{CaptureSpec, Dns, Group, Groups, Mode, Net, PortSet, RangeSet};

const INBOUND: &str = "ISTIO_INBOUND";
const OUTPUT: &str = "ISTIO_OUTPUT";
const REDIRECT: &str = "ISTIO_REDIRECT";
const IN_REDIRECT: &str = "ISTIO_IN_REDIRECT";
const DNS: &str = "ISTIO_OUTPUT_DNS";
const TPROXY: &str = "ISTIO_TPROXY";
const DIVERT: &str = "ISTIO_DIVERT";
const DROP: &str = "ISTIO_DROP";

/// Marks what the proxy sends to its own pod, so that TPROXY catches it on loopback.
pub(crate) const OWN_POD_MARK: u32 = 1338;
/// Where a resolver receives captured DNS.
const DNS_PORT: u16 = 15053;

impl RuleSet {
    /// What the spec comes to for one IP version.
    pub fn new(spec: &CaptureSpec, family: Family) -> RuleSet {
        let mut builder = Builder { spec, family, chains: BTreeMap::new() };
        builder.excluded_interfaces();
        builder.rerouted_interfaces(&Verdict::Return, None);
        builder.invalid();
        builder.targets();
        builder.inbound();
        builder.outbound();
        if spec.mode == Mode::Tproxy {
            builder.marks();
        }
        RuleSet { family, chains: builder.chains }
    }

    /// Marks that only our rules use.
    pub fn marks(spec: &CaptureSpec) -> [u32; 2] {
        [spec.tproxy_mark, OWN_POD_MARK]
    }
}

struct Builder<'s> {
    spec: &'s CaptureSpec,
    family: Family,
    chains: BTreeMap<Chain, Vec<Rule>>,
}

fn is(test: Test) -> Condition {
    Condition { test, not: false }
}

fn not(test: Test) -> Condition {
    Condition { test, not: true }
}

fn tcp() -> Condition {
    is(Test::Protocol(Protocol::Tcp))
}

fn udp() -> Condition {
    is(Test::Protocol(Protocol::Udp))
}

fn out_lo() -> Condition {
    is(Test::Out("lo".into()))
}

fn in_lo() -> Condition {
    is(Test::In("lo".into()))
}

fn jump(to: &str) -> Verdict {
    Verdict::Jump(to.to_owned())
}

/// The proxy's users, or its groups: their rules are alike.
#[derive(Clone, Copy)]
enum Owner {
    User(u32),
    Group(u32),
}

impl Owner {
    fn test(self) -> Test {
        match self {
            Owner::User(id) => Test::User(id),
            Owner::Group(id) => Test::Group(Group::Id(id)),
        }
    }
}

impl Builder<'_> {
    fn add(&mut self, table: Table, chain: &str, conditions: Vec<Condition>, verdict: Verdict) {
        let rules = self.chains.entry(Chain::new(table, chain)).or_default();
        rules.push(Rule::new(conditions, verdict));
    }

    fn first(&mut self, table: Table, chain: &str, conditions: Vec<Condition>, verdict: Verdict) {
        let rules = self.chains.entry(Chain::new(table, chain)).or_default();
        rules.insert(0, Rule::new(conditions, verdict));
    }

    fn loopback(&self) -> Net {
        match self.family {
            Family::V4 => self.spec.loopback_v4,
            Family::V6 => Net::host(Ipv6Addr::LOCALHOST.into()),
        }
    }

    /// The source of what the proxy sends to its application.
    fn to_application(&self) -> Net {
        Net::host(match self.family {
            Family::V4 => Ipv4Addr::new(127, 0, 0, 6).into(),
            Family::V6 => Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into(),
        })
    }

    fn of_family(&self, address: IpAddr) -> bool {
        address.is_ipv4() == (self.family == Family::V4)
    }

    fn owners(&self) -> Vec<Owner> {
        let users = self.spec.proxy_uids.iter().map(|id| Owner::User(*id));
        users.chain(self.spec.proxy_gids.iter().map(|id| Owner::Group(*id))).collect()
    }

    fn excluded_interfaces(&mut self) {
        let tables: &[Table] = match self.spec.mode {
            Mode::Redirect => &[Table::Nat],
            Mode::Tproxy => &[Table::Nat, Table::Mangle],
        };
        for table in tables {
            for interface in &self.spec.exclude_interfaces {
                let (from, to) = (Test::In(interface.clone()), Test::Out(interface.clone()));
                self.add(*table, "PREROUTING", vec![is(from)], Verdict::Return);
                self.add(*table, "OUTPUT", vec![is(to)], Verdict::Return);
            }
        }
    }

    /// Traffic of a virtual machine's interface is not inbound; what is outbound of it comes before.
    fn rerouted_interfaces(&mut self, verdict: &Verdict, to: Option<Net>) {
        for interface in &self.spec.reroute_interfaces {
            let mut conditions = vec![is(Test::In(interface.clone()))];
            conditions.extend(to.map(|net| is(Test::Destination(net))));
            self.first(Table::Nat, "PREROUTING", conditions, verdict.clone());
        }
    }

    fn invalid(&mut self) {
        if self.spec.drop_invalid {
            let invalid = is(Test::State(vec![State::Invalid]));
            self.add(Table::Mangle, "PREROUTING", vec![invalid], jump(DROP));
            self.add(Table::Mangle, DROP, vec![], Verdict::Drop);
        }
    }

    fn targets(&mut self) {
        let tunnel = is(Test::Port(self.spec.tunnel_port));
        self.add(Table::Nat, INBOUND, vec![tcp(), tunnel], Verdict::Return);
        self.add(Table::Nat, REDIRECT, vec![tcp()], Verdict::Redirect(self.spec.proxy_port));
        self.add(Table::Nat, IN_REDIRECT, vec![tcp()], Verdict::Redirect(self.spec.inbound_port));
    }

    fn inbound(&mut self) {
        let spec = self.spec;
        let ports: Vec<Option<u16>> = match &spec.inbound_ports {
            PortSet::These(ports) if ports.is_empty() => return,
            PortSet::These(ports) => ports.iter().copied().map(Some).collect(),
            PortSet::All => vec![None],
        };
        let table = match spec.mode {
            Mode::Redirect => Table::Nat,
            Mode::Tproxy => Table::Mangle,
        };
        if spec.mode == Mode::Tproxy {
            let (mark, port) = (spec.tproxy_mark, spec.inbound_port);
            self.add(table, DIVERT, vec![], Verdict::SetMark(mark));
            self.add(table, DIVERT, vec![], Verdict::Accept);
            let beyond = not(Test::Destination(self.loopback()));
            self.add(table, TPROXY, vec![beyond, tcp()], Verdict::Tproxy { port, mark });
        }
        self.add(table, "PREROUTING", vec![tcp()], jump(INBOUND));
        if spec.inbound_ports == PortSet::All {
            for port in &spec.inbound_ports_exclude {
                self.add(table, INBOUND, vec![tcp(), is(Test::Port(*port))], Verdict::Return);
            }
        }
        for port in ports {
            let mut conditions = vec![tcp()];
            conditions.extend(port.map(|port| is(Test::Port(port))));
            match spec.mode {
                Mode::Redirect => self.add(table, INBOUND, conditions, jump(IN_REDIRECT)),
                Mode::Tproxy => {
                    let mut known = conditions.clone();
                    known.push(is(Test::State(vec![State::Established, State::Related])));
                    self.add(table, INBOUND, known, jump(DIVERT));
                    self.add(table, INBOUND, conditions, jump(TPROXY));
                }
            }
        }
    }

    fn outbound(&mut self) {
        let spec = self.spec;
        self.add(Table::Nat, "OUTPUT", vec![], jump(OUTPUT));
        if spec.mode == Mode::Tproxy {
            // From a client's address to the application. Istio lacks this rule: such a connection,
            // which goes to this pod itself and is the proxy's, would be caught as inbound again.
            let marked = is(Test::Mark(spec.tproxy_mark));
            self.add(Table::Nat, OUTPUT, vec![tcp(), marked], Verdict::Return);
        }
        for port in &spec.outbound_ports_exclude {
            for protocol in [tcp(), udp()] {
                let conditions = vec![protocol, is(Test::Port(*port))];
                self.add(Table::Nat, OUTPUT, conditions, Verdict::Return);
            }
        }
        let source = is(Test::Source(self.to_application()));
        self.add(Table::Nat, OUTPUT, vec![out_lo(), source], Verdict::Return);
        for owner in self.owners() {
            self.of_the_proxy(owner);
        }
        self.by_group();
        if let Some(dns) = &spec.dns {
            self.dns(dns);
        }
        let loopback = is(Test::Destination(self.loopback()));
        self.add(Table::Nat, OUTPUT, vec![loopback], Verdict::Return);
        for net in &spec.outbound_ranges_exclude {
            if self.of_family(net.address()) {
                let to = is(Test::Destination(*net));
                self.add(Table::Nat, OUTPUT, vec![to], Verdict::Return);
            }
        }
        for port in &spec.outbound_ports {
            let to = is(Test::Port(*port));
            self.add(Table::Nat, OUTPUT, vec![tcp(), to], jump(REDIRECT));
        }
        self.included_ranges();
    }

    fn of_the_proxy(&mut self, owner: Owner) {
        let (spec, dns) = (self.spec, self.spec.dns.is_some());
        // Captured DNS goes to the resolver and from there to its server, not through us.
        let ports = match owner {
            Owner::User(_) if dns => Test::Ports(vec![53, spec.tunnel_port]),
            _ => Test::Port(spec.tunnel_port),
        };
        let beyond = not(Test::Destination(self.loopback()));
        let own = is(owner.test());
        let itself = vec![out_lo(), beyond, tcp(), not(ports), own.clone()];
        self.add(Table::Nat, OUTPUT, itself, jump(IN_REDIRECT));
        if !self.captures_loopback() {
            let mut others = vec![out_lo(), not(owner.test())];
            if dns {
                // A DNS server may be on loopback.
                others.extend([tcp(), not(Test::Port(53))]);
            }
            self.add(Table::Nat, OUTPUT, others, Verdict::Return);
        }
        self.add(Table::Nat, OUTPUT, vec![own], Verdict::Return);
    }

    /// Whether loopback was asked for among the outbound ranges, of whichever IP version.
    fn captures_loopback(&self) -> bool {
        match &self.spec.outbound_ranges {
            RangeSet::All => false,
            RangeSet::These(nets) => nets.iter().any(Net::is_loopback),
        }
    }

    fn by_group(&mut self) {
        match &self.spec.owner_groups {
            Groups::AllBut(groups) => {
                for group in groups {
                    let of = is(Test::Group(group.clone()));
                    self.add(Table::Nat, OUTPUT, vec![of], Verdict::Return);
                }
            }
            Groups::Only(groups) => {
                let none = groups.iter().map(|group| not(Test::Group(group.clone()))).collect();
                self.add(Table::Nat, OUTPUT, none, Verdict::Return);
            }
        }
    }

    fn included_ranges(&mut self) {
        match &self.spec.outbound_ranges {
            RangeSet::All => {
                self.add(Table::Nat, OUTPUT, vec![], jump(REDIRECT));
                self.rerouted_interfaces(&jump(REDIRECT), None);
            }
            RangeSet::These(nets) => {
                let nets: Vec<Net> =
                    nets.iter().copied().filter(|net| self.of_family(net.address())).collect();
                for net in nets {
                    self.rerouted_interfaces(&jump(REDIRECT), Some(net));
                    let to = is(Test::Destination(net));
                    self.add(Table::Nat, OUTPUT, vec![to], jump(REDIRECT));
                }
            }
        }
    }

    /// DNS of the application to the resolver. The resolver's own questions and its answers are
    /// tracked apart: both may have the same addresses and ports.
    fn dns(&mut self, dns: &Dns) {
        self.add(Table::Raw, "OUTPUT", vec![], jump(DNS));
        let servers: Vec<Option<Net>> = match dns {
            Dns::All => vec![None],
            Dns::Servers(servers) => {
                let ours = servers.iter().copied().filter(|server| self.of_family(*server));
                ours.map(|server| Some(Net::host(server))).collect()
            }
        };
        if !servers.is_empty() {
            self.add(Table::Nat, OUTPUT, vec![], jump(DNS));
        }
        let to = |server: &Option<Net>, protocol| {
            let mut conditions = vec![protocol, is(Test::Port(53))];
            conditions.extend(server.map(|net| is(Test::Destination(net))));
            conditions
        };
        for protocol in [tcp(), udp()] {
            for server in &servers {
                let conditions = to(server, protocol.clone());
                self.add(Table::Nat, DNS, conditions, Verdict::Redirect(DNS_PORT));
            }
        }
        for owner in self.owners() {
            let asks = vec![udp(), is(Test::Port(53)), is(owner.test())];
            self.add(Table::Raw, DNS, asks, Verdict::Zone(1));
            let answers = vec![udp(), is(Test::SourcePort(DNS_PORT)), is(owner.test())];
            self.add(Table::Raw, DNS, answers, Verdict::Zone(2));
        }
        if !servers.is_empty() {
            self.add(Table::Raw, "PREROUTING", vec![], jump(INBOUND));
        }
        for server in &servers {
            self.add(Table::Raw, DNS, to(server, udp()), Verdict::Zone(2));
            let mut from = vec![udp(), is(Test::SourcePort(53))];
            from.extend(server.map(|net| is(Test::Source(net))));
            self.add(Table::Raw, INBOUND, from, Verdict::Zone(1));
        }
    }

    /// TPROXY: the marks by which answers of the application find back to the proxy's connection.
    fn marks(&mut self) {
        let (table, mark) = (Table::Mangle, self.spec.tproxy_mark);
        let marked = || is(Test::Mark(mark));
        self.add(table, "PREROUTING", vec![tcp(), marked()], Verdict::SaveMark);
        self.add(table, "OUTPUT", vec![tcp(), out_lo(), marked()], Verdict::Return);
        for owner in self.owners() {
            let beyond = not(Test::Destination(self.loopback()));
            let own_pod = vec![beyond, tcp(), out_lo(), is(owner.test())];
            self.add(table, "OUTPUT", own_pod, Verdict::SetMark(OWN_POD_MARK));
        }
        let answers = vec![tcp(), is(Test::ConnectionMark(mark))];
        self.add(table, "OUTPUT", answers, Verdict::RestoreMark);
        // In front of what catches, the last of these first.
        let by_itself = vec![tcp(), in_lo(), not(Test::Mark(OWN_POD_MARK))];
        self.first(table, INBOUND, by_itself, Verdict::Return);
        let probe = vec![tcp(), is(Test::Source(self.to_application())), in_lo()];
        self.first(table, INBOUND, probe, Verdict::Return);
        self.first(table, INBOUND, vec![tcp(), marked()], Verdict::Return);
    }
}
