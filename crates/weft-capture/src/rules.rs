//! The rules themselves: tables, chains, conditions and verdicts, whatever program will write them.
//! `build` has the order that makes them right; must not know a spelling.

mod build;

use std::collections::BTreeMap;

use crate::spec::{Group, Net};

/// One IP version's rules: per table and chain, in the order they are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSet {
    /// Which IP version.
    pub family: Family,
    /// The rules, by chain. In built-in chains others may have theirs as well.
    pub chains: BTreeMap<Chain, Vec<Rule>>,
}

/// An IP version: the kernel keeps their rules apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Tables in the order packets meet them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Before connections are known.
    Raw,
    /// Marks.
    Mangle,
    /// Destinations, once per connection.
    Nat,
}

/// A chain of a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    /// Its table.
    pub table: Table,
    /// Its name: `PREROUTING`, `OUTPUT` or one of ours.
    pub name: String,
}

/// A verdict and the conditions under which it holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// All must hold. Sorted, so that equal rules are equal.
    pub conditions: Vec<Condition>,
    /// What then happens.
    pub verdict: Verdict,
}

/// A test of a packet, or its opposite.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// What is looked at.
    pub test: Test,
    /// Whether it must not be so.
    pub not: bool,
}

/// What can be looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Test {
    /// Came in over this interface (`+` at the end stands for any rest).
    In(String),
    /// Goes out over this interface.
    Out(String),
    /// Source address.
    Source(Net),
    /// Destination address.
    Destination(Net),
    /// Transport.
    Protocol(Protocol),
    /// Source port.
    SourcePort(u16),
    /// Destination port.
    Port(u16),
    /// One of these destination ports.
    Ports(Vec<u16>),
    /// User of the sending process.
    User(u32),
    /// Group of the sending process.
    Group(Group),
    /// The packet's mark.
    Mark(u32),
    /// Its connection's mark.
    ConnectionMark(u32),
    /// Its connection's state; one of these, sorted.
    State(Vec<State>),
}

/// Transports we tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// States of a tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Packets have gone both ways.
    Established,
    /// Belongs to another connection.
    Related,
    /// Fits no connection.
    Invalid,
}

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Back to the chain before.
    Return,
    /// No further rules of this table.
    Accept,
    /// Gone.
    Drop,
    /// Through another chain.
    Jump(String),
    /// To this port of ours.
    Redirect(u16),
    /// To the socket at this port, addresses unchanged; marked.
    Tproxy {
        /// The socket's port.
        port: u16,
        /// The mark.
        mark: u32,
    },
    /// Marks the packet and goes on.
    SetMark(u32),
    /// Copies the packet's mark to its connection.
    SaveMark,
    /// Copies the connection's mark to the packet.
    RestoreMark,
    /// Tracks its connection in this zone.
    Zone(u16),
}

/// All our chains are named so, as Istio's are: its tools and people's eyes know them.
pub(crate) const PREFIX: &str = "ISTIO_";

impl Chain {
    /// A chain by name.
    pub fn new(table: Table, name: &str) -> Chain {
        Chain { table, name: name.to_owned() }
    }

    /// Whether the kernel brings it; the others are ours to make and to remove.
    pub fn is_built_in(&self) -> bool {
        !self.name.starts_with(PREFIX)
    }
}

impl Rule {
    /// A rule with its conditions in order.
    pub fn new(mut conditions: Vec<Condition>, verdict: Verdict) -> Rule {
        conditions.sort();
        Rule { conditions, verdict }
    }
}

/// Whether a rule that stands in a built-in chain is surely of ours, whatever options it was made
/// with: it leads to one of our chains or handles one of these marks.
pub(crate) fn is_ours(rule: &Rule, marks: &[u32]) -> bool {
    let marked = |mark: &u32| marks.contains(mark);
    let jumps = matches!(&rule.verdict, Verdict::Jump(to) if to.starts_with(PREFIX));
    let marks = matches!(&rule.verdict, Verdict::SetMark(mark) if marked(mark));
    let tests = rule.conditions.iter().any(|condition| {
        matches!(&condition.test, Test::Mark(mark) | Test::ConnectionMark(mark) if marked(mark))
    });
    jumps || marks || tests
}
