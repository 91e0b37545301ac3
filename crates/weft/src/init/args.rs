//! Options of `weft init`: names, letters, variables and defaults of Istio's init container.

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use weft_capture::spec::{ids, interfaces, ports, ranges};
use weft_capture::{CaptureSpec, Dns, Family, Groups, Net, SpecError};

/// Capture rules of this network namespace.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Port on which the proxy receives outbound connections.
    #[arg(long, short = 'p', env = "ENVOY_PORT", default_value = "15001", value_name = "PORT")]
    envoy_port: u16,
    /// Port on which the proxy receives inbound connections.
    #[arg(long, short = 'z', env = "INBOUND_CAPTURE_PORT", default_value = "15006")]
    #[arg(value_name = "PORT")]
    inbound_capture_port: u16,
    /// A port of the proxy that is never captured.
    #[arg(long, short = 'e', env = "INBOUND_TUNNEL_PORT", default_value = "15008")]
    #[arg(value_name = "PORT")]
    inbound_tunnel_port: u16,
    /// Users whose traffic is the proxy's own.
    #[arg(long, short = 'u', env = "PROXY_UID", default_value = "1337", value_name = "UID,…")]
    proxy_uid: String,
    /// Groups whose traffic is the proxy's own [default: as --proxy-uid].
    #[arg(long, short = 'g', env = "PROXY_GID", value_name = "GID,…")]
    proxy_gid: Option<String>,
    /// REDIRECT, or TPROXY to keep the client's address.
    #[arg(long, short = 'm', env = "ISTIO_INBOUND_INTERCEPTION_MODE", default_value = "REDIRECT")]
    #[arg(value_name = "MODE")]
    istio_inbound_interception_mode: String,
    /// Packet mark of TPROXY.
    #[arg(long, short = 't', env = "ISTIO_INBOUND_TPROXY_MARK", default_value = "1337")]
    #[arg(value_name = "MARK")]
    istio_inbound_tproxy_mark: u32,
    /// Routing table of TPROXY.
    #[arg(long, short = 'r', env = "ISTIO_INBOUND_TPROXY_ROUTE_TABLE", default_value = "133")]
    #[arg(value_name = "TABLE")]
    istio_inbound_tproxy_route_table: u32,
    /// Inbound ports to capture; `*` is all, nothing is none.
    #[arg(long, short = 'b', env = "ISTIO_INBOUND_PORTS", default_value = "")]
    #[arg(value_name = "PORT,…")]
    istio_inbound_ports: String,
    /// Inbound ports to leave alone when all are captured.
    #[arg(long, short = 'd', env = "ISTIO_LOCAL_EXCLUDE_PORTS", default_value = "")]
    #[arg(value_name = "PORT,…")]
    istio_local_exclude_ports: String,
    /// Outbound ports to capture whatever the destination. To capture them only, leave the
    /// ranges (-i) empty.
    #[arg(long, short = 'q', env = "ISTIO_OUTBOUND_PORTS", default_value = "")]
    #[arg(value_name = "PORT,…")]
    istio_outbound_ports: String,
    /// Outbound ports to leave alone.
    #[arg(long, short = 'o', env = "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE", default_value = "")]
    #[arg(value_name = "PORT,…")]
    istio_local_outbound_ports_exclude: String,
    /// Outbound destinations to capture; `*` is all, nothing is none.
    #[arg(
        long,
        short = 'i',
        env = "ISTIO_SERVICE_CIDR",
        default_value = "",
        value_name = "CIDR,…"
    )]
    istio_service_cidr: String,
    /// Outbound destinations to leave alone.
    #[arg(long, short = 'x', env = "ISTIO_SERVICE_EXCLUDE_CIDR", default_value = "")]
    #[arg(value_name = "CIDR,…")]
    istio_service_exclude_cidr: String,
    /// Interfaces (of virtual machines) whose traffic counts as outbound.
    #[arg(long, short = 'k', alias = "kube-virt-interfaces", env = "KUBEVIRT_INTERFACES")]
    #[arg(default_value = "", value_name = "NAME,…")]
    reroute_virtual_interfaces: String,
    /// Interfaces to leave alone.
    #[arg(long, short = 'c', env = "ISTIO_EXCLUDE_INTERFACES", default_value = "")]
    #[arg(value_name = "NAME,…")]
    istio_exclude_interfaces: String,
    /// Capture outbound traffic of these groups only.
    #[arg(long, env = "ISTIO_OUTBOUND_OWNER_GROUPS", default_value = "*", value_name = "GROUP,…")]
    outbound_owner_groups: String,
    /// Leave outbound traffic of these groups alone.
    #[arg(long, env = "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", default_value = "")]
    #[arg(value_name = "GROUP,…")]
    outbound_owner_groups_exclude: String,
    /// Capture DNS to the servers of /etc/resolv.conf. It goes to port 15053, where a proxy with
    /// --dns-capture answers.
    #[arg(long, env = "ISTIO_META_DNS_CAPTURE", value_parser = BoolishValueParser::new())]
    #[arg(action = clap::ArgAction::SetTrue)]
    redirect_dns: bool,
    /// Capture DNS to any server.
    #[arg(long)]
    capture_all_dns: bool,
    /// Drop packets outside their connection's window instead of resetting it.
    #[arg(long, env = "INVALID_DROP")]
    drop_invalid: bool,
    /// What counts as IPv4 loopback.
    #[arg(long, env = "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", default_value = "127.0.0.1/32")]
    #[arg(value_name = "CIDR")]
    host_ipv4_loopback_cidr: String,
    /// Which program writes the rules.
    #[arg(long, value_enum, default_value = "auto", value_name = "NAME")]
    pub(super) backend: BackendChoice,
    /// IP versions [default: IPv4, and IPv6 if the namespace has an address of it].
    #[arg(long, value_enum, value_name = "VERSION")]
    ip_family: Option<IpFamily>,
    /// Print what would be written.
    #[arg(long, short = 'n')]
    pub(super) dry_run: bool,
    /// Remove the rules. Give the options they were written with.
    #[arg(long)]
    pub(super) cleanup: bool,
}

/// Which program writes the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum BackendChoice {
    /// The first that works here.
    Auto,
    /// Whatever `iptables-restore` is.
    Iptables,
    IptablesNft,
    IptablesLegacy,
    /// nftables itself.
    Nft,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum IpFamily {
    Ipv4,
    Ipv6,
    Dual,
}

impl InitArgs {
    /// The options as a spec.
    pub(super) fn spec(&self) -> Result<CaptureSpec, SpecError> {
        let proxy_gid = self.proxy_gid.as_ref().unwrap_or(&self.proxy_uid);
        Ok(CaptureSpec {
            proxy_port: self.envoy_port,
            inbound_port: self.inbound_capture_port,
            tunnel_port: self.inbound_tunnel_port,
            proxy_uids: ids(&self.proxy_uid)?,
            proxy_gids: ids(proxy_gid)?,
            mode: self.istio_inbound_interception_mode.parse()?,
            tproxy_mark: self.istio_inbound_tproxy_mark,
            tproxy_table: self.istio_inbound_tproxy_route_table,
            inbound_ports: self.istio_inbound_ports.parse()?,
            inbound_ports_exclude: ports(&self.istio_local_exclude_ports)?,
            outbound_ports: ports(&self.istio_outbound_ports)?,
            outbound_ports_exclude: ports(&self.istio_local_outbound_ports_exclude)?,
            outbound_ranges: self.istio_service_cidr.parse()?,
            outbound_ranges_exclude: ranges(&self.istio_service_exclude_cidr)?,
            reroute_interfaces: interfaces(&self.reroute_virtual_interfaces)?,
            exclude_interfaces: interfaces(&self.istio_exclude_interfaces)?,
            owner_groups: Groups::parse(
                &self.outbound_owner_groups,
                &self.outbound_owner_groups_exclude,
            )?,
            dns: self.dns(),
            drop_invalid: self.drop_invalid,
            loopback_v4: self.host_ipv4_loopback_cidr.parse::<Net>()?,
        })
    }

    fn dns(&self) -> Option<Dns> {
        match (self.capture_all_dns, self.redirect_dns) {
            (true, _) => Some(Dns::All),
            (false, true) => Some(Dns::Servers(name_servers())),
            (false, false) => None,
        }
    }

    /// IP versions to write rules of.
    pub(super) fn families(&self) -> Vec<Family> {
        match self.ip_family {
            Some(IpFamily::Ipv4) => vec![Family::V4],
            Some(IpFamily::Ipv6) => vec![Family::V6],
            Some(IpFamily::Dual) => vec![Family::V4, Family::V6],
            None if has_ipv6() => vec![Family::V4, Family::V6],
            None => vec![Family::V4],
        }
    }
}

/// Whether an interface but loopback has an IPv6 address beyond its link: proc(5), `if_inet6`.
fn has_ipv6() -> bool {
    let addresses = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    addresses.lines().any(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().unwrap_or_default();
        let interface = words.next_back().unwrap_or_default();
        interface != "lo" && !address.starts_with("fe8")
    })
}

/// `nameserver` lines of resolv.conf(5).
fn name_servers() -> Vec<std::net::IpAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers.filter_map(|address| address.trim().parse().ok()).collect()
}
