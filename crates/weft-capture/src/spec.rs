//! What is to be captured, in the terms of Istio's init container. Owns defaults, parsing and
//! bounds; must not know rules.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Ports, ranges, interfaces or groups of one list at most: rules are read per connection.
const LIST_MAX: usize = 1024;
/// Interface names: IFNAMSIZ less the final zero.
const INTERFACE_BYTES_MAX: usize = 15;
/// Names of users and groups: as useradd(8).
const GROUP_BYTES_MAX: usize = 32;

/// Everything `weft init` can be asked; the defaults are Istio's of a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureSpec {
    /// `-p`: where the proxy receives outbound connections.
    pub proxy_port: u16,
    /// `-z`: where it receives inbound ones.
    pub inbound_port: u16,
    /// `-e`: a port of the proxy itself that is never captured.
    pub tunnel_port: u16,
    /// `-u`: users whose traffic is the proxy's own.
    pub proxy_uids: Vec<u32>,
    /// `-g`: groups whose traffic is the proxy's own.
    pub proxy_gids: Vec<u32>,
    /// `-m`: how inbound connections are handed over.
    pub mode: Mode,
    /// `-t`: packet mark of TPROXY.
    pub tproxy_mark: u32,
    /// `-r`: routing table of marked packets.
    pub tproxy_table: u32,
    /// `-b`: inbound ports.
    pub inbound_ports: PortSet,
    /// `-d`: inbound ports left alone when all are captured.
    pub inbound_ports_exclude: Vec<u16>,
    /// `-q`: outbound ports captured whatever the destination.
    pub outbound_ports: Vec<u16>,
    /// `-o`: outbound ports left alone.
    pub outbound_ports_exclude: Vec<u16>,
    /// `-i`: outbound destinations.
    pub outbound_ranges: RangeSet,
    /// `-x`: outbound destinations left alone.
    pub outbound_ranges_exclude: Vec<Net>,
    /// `-k`: interfaces (of virtual machines, bridges) whose traffic counts as outbound.
    pub reroute_interfaces: Vec<String>,
    /// `-c`: interfaces left alone in both directions.
    pub exclude_interfaces: Vec<String>,
    /// Whose outbound traffic is captured.
    pub owner_groups: Groups,
    /// DNS to a resolver of one's own on port 15053, if wanted.
    pub dns: Option<Dns>,
    /// Drops packets out of their connection's window, rather than reset the connection.
    pub drop_invalid: bool,
    /// What counts as IPv4 loopback: an address, or 127.0.0.0/8 where applications use more of it.
    pub loopback_v4: Net,
}

impl Default for CaptureSpec {
    fn default() -> CaptureSpec {
        CaptureSpec {
            proxy_port: 15001,
            inbound_port: 15006,
            tunnel_port: 15008,
            proxy_uids: vec![1337],
            proxy_gids: vec![1337],
            mode: Mode::Redirect,
            tproxy_mark: 1337,
            tproxy_table: 133,
            inbound_ports: PortSet::default(),
            inbound_ports_exclude: Vec::new(),
            outbound_ports: Vec::new(),
            outbound_ports_exclude: Vec::new(),
            outbound_ranges: RangeSet::default(),
            outbound_ranges_exclude: Vec::new(),
            reroute_interfaces: Vec::new(),
            exclude_interfaces: Vec::new(),
            owner_groups: Groups::AllBut(Vec::new()),
            dns: None,
            drop_invalid: false,
            loopback_v4: Net::host(Ipv4Addr::LOCALHOST.into()),
        }
    }
}

/// How inbound connections reach the proxy. Outbound ones are redirected in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The destination is rewritten; the application sees the proxy as its client.
    Redirect,
    /// Packets keep their addresses; the application sees its client.
    Tproxy,
}

/// Some ports or all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortSet {
    /// `*`.
    All,
    /// These; none if empty.
    These(Vec<u16>),
}

/// Some destinations or all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RangeSet {
    /// `*`.
    All,
    /// These; none if empty.
    These(Vec<Net>),
}

impl Default for PortSet {
    fn default() -> PortSet {
        PortSet::These(Vec::new())
    }
}

impl Default for RangeSet {
    fn default() -> RangeSet {
        RangeSet::These(Vec::new())
    }
}

/// Whose outbound traffic is captured, by the sending process' group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Groups {
    /// Everybody's but theirs.
    AllBut(Vec<Group>),
    /// Theirs only.
    Only(Vec<Group>),
}

/// A group of the pod, by number or name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Its number.
    Id(u32),
    /// Its name in the pod's `/etc/group`.
    Name(String),
}

/// Which DNS is captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dns {
    /// Whatever goes to port 53.
    All,
    /// What goes to these servers.
    Servers(Vec<IpAddr>),
}

/// An option whose text cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Not a port.
    #[error("{0:?} is no port (1 to 65535)")]
    Port(String),
    /// Not an address range.
    #[error("{0:?} is no address range such as 10.0.0.0/8 or 2001:db8::/32")]
    Range(String),
    /// Not an interface's name.
    #[error("{0:?} is no name of a network interface")]
    Interface(String),
    /// Not a group.
    #[error("{0:?} is no group: a number or a name")]
    Group(String),
    /// Not a user or group number.
    #[error("{0:?} is no user or group number")]
    Id(String),
    /// Not an interception mode.
    #[error("{0:?} is no interception mode; use REDIRECT or TPROXY")]
    Mode(String),
    /// Everything is excluded.
    #[error("`*` cannot be excluded; leave the included ranges empty instead")]
    ExcludeAll,
    /// A list too long.
    #[error("{0} entries are more than {LIST_MAX}")]
    TooMany(usize),
    /// A group named that nobody knows.
    #[error("group {0:?} is not in /etc/group here; give its number")]
    UnknownGroup(String),
}

impl CaptureSpec {
    /// The same with groups by number, as the kernel knows them. `number` looks a name up.
    pub fn with_group_numbers(
        mut self,
        number: impl Fn(&str) -> Option<u32>,
    ) -> Result<CaptureSpec, SpecError> {
        let (Groups::AllBut(groups) | Groups::Only(groups)) = &mut self.owner_groups;
        for group in groups {
            if let Group::Name(name) = group {
                let Some(id) = number(name) else {
                    return Err(SpecError::UnknownGroup(name.clone()));
                };
                *group = Group::Id(id);
            }
        }
        Ok(self)
    }
}

/// `a,b,,c` as Istio splits it: blanks around and empty words do not count.
fn words(text: &str) -> Result<Vec<&str>, SpecError> {
    let words: Vec<&str> = text.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    match words.len() {
        ..=LIST_MAX => Ok(words),
        count => Err(SpecError::TooMany(count)),
    }
}

fn list<T>(text: &str, one: impl Fn(&str) -> Result<T, SpecError>) -> Result<Vec<T>, SpecError> {
    words(text)?.into_iter().map(one).collect()
}

/// A list of ports.
pub fn ports(text: &str) -> Result<Vec<u16>, SpecError> {
    list(text, |word| match word.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(SpecError::Port(word.into())),
    })
}

/// A list of address ranges; an address alone is a range of one.
pub fn ranges(text: &str) -> Result<Vec<Net>, SpecError> {
    list(text, |word| if word == "*" { Err(SpecError::ExcludeAll) } else { word.parse() })
}

/// A list of interface names.
pub fn interfaces(text: &str) -> Result<Vec<String>, SpecError> {
    list(text, |word| {
        // The text goes into rules: nothing that ends a word there may pass.
        let legal = |c: char| c.is_ascii_alphanumeric() || "_.-@:".contains(c);
        let name = word.strip_suffix('+').unwrap_or(word);
        match !name.is_empty() && word.len() <= INTERFACE_BYTES_MAX && name.chars().all(legal) {
            true => Ok(word.to_owned()),
            false => Err(SpecError::Interface(word.into())),
        }
    })
}

/// A list of user or group numbers.
pub fn ids(text: &str) -> Result<Vec<u32>, SpecError> {
    list(text, |word| word.parse().map_err(|_| SpecError::Id(word.into())))
}

fn groups(text: &str) -> Result<Vec<Group>, SpecError> {
    list(text, |word| {
        if let Ok(id) = word.parse() {
            return Ok(Group::Id(id));
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        let start = word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        match start && word.len() <= GROUP_BYTES_MAX && word.chars().all(legal) {
            true => Ok(Group::Name(word.to_owned())),
            false => Err(SpecError::Group(word.into())),
        }
    })
}

impl Groups {
    /// Istio's two variables: with `include` empty or `*`, all but `exclude`; else those of
    /// `include` only.
    pub fn parse(include: &str, exclude: &str) -> Result<Groups, SpecError> {
        match include.trim() {
            "" | "*" => Ok(Groups::AllBut(groups(exclude)?)),
            include => Ok(Groups::Only(groups(include)?)),
        }
    }
}

impl FromStr for Mode {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Mode, SpecError> {
        match text {
            "REDIRECT" => Ok(Mode::Redirect),
            "TPROXY" => Ok(Mode::Tproxy),
            _ => Err(SpecError::Mode(text.into())),
        }
    }
}

impl FromStr for PortSet {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<PortSet, SpecError> {
        match text.trim() {
            "*" => Ok(PortSet::All),
            text => Ok(PortSet::These(ports(text)?)),
        }
    }
}

impl FromStr for RangeSet {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<RangeSet, SpecError> {
        match text.trim() {
            "*" => Ok(RangeSet::All),
            text => Ok(RangeSet::These(ranges(text)?)),
        }
    }
}

/// An address range with no bits set beyond its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Net {
    address: IpAddr,
    bits: u8,
}

impl Net {
    /// The range of one address.
    pub fn host(address: IpAddr) -> Net {
        Net { address, bits: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// First address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Whether it lies within loopback addresses.
    pub fn is_loopback(&self) -> bool {
        self.address.is_loopback()
    }

    fn masked(address: IpAddr, bits: u8) -> Net {
        let address = match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
        };
        Net { address, bits }
    }
}

impl FromStr for Net {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Net, SpecError> {
        let wrong = || SpecError::Range(text.into());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let whole = Net::host(address).bits;
        let bits = match bits {
            None => whole,
            Some(bits) => bits.parse().map_err(|_| wrong())?,
        };
        match bits <= whole {
            true => Ok(Net::masked(address, bits)),
            false => Err(wrong()),
        }
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(ports(" 80, ,8080,"), Ok(vec![80, 8080]));
        assert_eq!("*".parse(), Ok(PortSet::All));
        assert_eq!("".parse(), Ok(PortSet::default()));
        for wrong in ["0", "65536", "http", "80;81"] {
            assert_eq!(ports(wrong), Err(SpecError::Port(wrong.into())));
        }
        assert_eq!(ports(&"1,".repeat(1025)), Err(SpecError::TooMany(1025)));
        assert_eq!(ranges("10.0.0.0/8,*"), Err(SpecError::ExcludeAll));
        assert_eq!(interfaces("eth0,cali+"), Ok(vec!["eth0".into(), "cali+".into()]));
        for wrong in ["eth0\"", "a b", "+", "averyverylonginterface", "x\nCOMMIT"] {
            assert_eq!(interfaces(wrong), Err(SpecError::Interface(wrong.trim().into())));
        }
    }

    #[test]
    fn ranges_lose_the_bits_they_do_not_mean() {
        let shown = |text: &str| text.parse::<Net>().map(|net| net.to_string());
        assert_eq!(shown("10.96.0.3/24"), Ok("10.96.0.0/24".into()));
        assert_eq!(shown("10.1.2.3"), Ok("10.1.2.3/32".into()));
        assert_eq!(shown("0.0.0.0/0"), Ok("0.0.0.0/0".into()));
        assert_eq!(shown("2001:db8:1::1/32"), Ok("2001:db8::/32".into()));
        for wrong in ["10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/", "a/8", "1.1.1.1/8/8"] {
            assert_eq!(shown(wrong), Err(SpecError::Range(wrong.into())));
        }
    }

    #[test]
    fn groups_by_inclusion_and_exclusion() {
        let name = |name: &str| Group::Name(name.into());
        assert_eq!(
            Groups::parse("*", "888,ftp"),
            Ok(Groups::AllBut(vec![Group::Id(888), name("ftp")]))
        );
        assert_eq!(
            Groups::parse("java,202", "1"),
            Ok(Groups::Only(vec![name("java"), Group::Id(202)]))
        );
        assert_eq!(Groups::parse("a b", ""), Err(SpecError::Group("a b".into())));
        let spec = || CaptureSpec {
            owner_groups: Groups::Only(vec![name("java"), Group::Id(202)]),
            ..CaptureSpec::default()
        };
        let numbered = spec().with_group_numbers(|name| (name == "java").then_some(7));
        assert_eq!(
            numbered.map(|spec| spec.owner_groups),
            Ok(Groups::Only(vec![Group::Id(7), Group::Id(202)]))
        );
        assert_eq!(
            spec().with_group_numbers(|_| None),
            Err(SpecError::UnknownGroup("java".into()))
        );
    }
}
