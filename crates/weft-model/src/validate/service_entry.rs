//! ServiceEntry and WorkloadEntry: hosts, addresses, ports and endpoints that fit the resolution.

use super::text::{is_dns_name, is_host, is_ip, is_port};
use super::{Findings, bounds, entry, export_to, port_number};
use crate::diagnostic::code;
use crate::snapshot::{Cidr, Protocol};
use crate::spec::{ServiceEntry, ServiceEntryResolution, WorkloadEntry};

pub(super) fn check_entry(spec: &ServiceEntry, findings: &mut Findings<'_>) {
    if spec.hosts.is_empty() {
        findings.error("spec.hosts", "at least one host is required");
    }
    for (index, host) in spec.hosts.iter().enumerate() {
        let path = format!("spec.hosts[{index}]");
        if host == "*" {
            findings.error(path, "the host \"*\" would take all traffic");
        } else if !is_host(host) {
            findings.error(path, format!("{host:?} is not a host"));
        }
    }
    export_to(&spec.export_to, findings);
    let counts = [
        ("hosts", spec.hosts.len(), 256),
        ("addresses", spec.addresses.len(), 256),
        ("ports", spec.ports.len(), 256),
        ("endpoints", spec.endpoints.len(), 4096),
    ];
    for (field, count, max) in counts {
        bounds::count(count, max, format!("spec.{field}"), findings);
    }
    if let Some(wanted) = &spec.workload_selector {
        bounds::selector(&wanted.labels, 256, "spec.workloadSelector.labels", findings);
    }
    addresses(spec, findings);
    ports(spec, findings);
    endpoints(spec, findings);
}

fn addresses(spec: &ServiceEntry, findings: &mut Findings<'_>) {
    use ServiceEntryResolution::{None as NoResolution, Static};
    for (index, address) in spec.addresses.iter().enumerate() {
        let path = format!("spec.addresses[{index}]");
        match Cidr::parse(address) {
            None => {
                findings
                    .error(path, format!("{address:?} is neither an address nor a CIDR prefix"));
            }
            Some(cidr) if !cidr.is_host() && !matches!(spec.resolution, NoResolution | Static) => {
                findings
                    .error(path, "a CIDR prefix is allowed with resolution NONE or STATIC only");
            }
            Some(_) => {}
        }
    }
    let tcp = |protocol: &str| Protocol::parse(protocol) == Some(Protocol::Tcp);
    if spec.addresses.is_empty() && spec.ports.iter().any(|port| tcp(&port.protocol)) {
        findings.info(
            code::SERVICE_ENTRY_ADDRESSES,
            "spec.addresses",
            "without addresses a captured TCP port takes all traffic to that port",
            "List the addresses that clients use.",
        );
    }
}

fn ports(spec: &ServiceEntry, findings: &mut Findings<'_>) {
    if spec.ports.is_empty() {
        let message = "without ports nobody can reach it";
        findings.warn(code::SCHEMA_WARNING, "spec.ports", message, "List its ports.");
    }
    for (index, port) in spec.ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        port_number(port.number, format!("{path}.number"), findings);
        if let Some(target) = port.target_port {
            port_number(target, format!("{path}.targetPort"), findings);
        }
        bounds::length(&port.name, 256, format!("{path}.name"), findings);
        if port.name.is_empty() {
            findings.error(format!("{path}.name"), "a port name is required");
        }
        if !port.protocol.is_empty() && Protocol::parse(&port.protocol).is_none() {
            let message = format!("{:?} is not a protocol", port.protocol);
            findings.error(format!("{path}.protocol"), message);
        }
        for other in &spec.ports[..index] {
            if other.number == port.number {
                let message = format!("the port {} is given twice", port.number);
                findings.error(format!("{path}.number"), message);
            }
            if other.name == port.name && !port.name.is_empty() {
                let message = format!("the port name {:?} is given twice", port.name);
                findings.error(format!("{path}.name"), message);
            }
        }
    }
}

fn endpoints(spec: &ServiceEntry, findings: &mut Findings<'_>) {
    if spec.workload_selector.is_some() && !spec.endpoints.is_empty() {
        findings.error("spec.endpoints", "only one of endpoints, workloadSelector is allowed");
    }
    if spec.workload_selector.as_ref().is_some_and(|selector| selector.labels.is_empty()) {
        findings.error("spec.workloadSelector.labels", "at least one label is required");
    }
    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        let path = format!("spec.endpoints[{index}]");
        check_workload(endpoint, &path, findings);
        for name in endpoint.ports.keys() {
            if !spec.ports.iter().any(|port| port.name == *name) {
                let message = format!("the service has no port named {name:?}");
                findings.error(entry(&format!("{path}.ports"), name), message);
            }
        }
        let unix = endpoint.address.starts_with("unix://");
        if spec.resolution == ServiceEntryResolution::Static && !unix && !is_ip(&endpoint.address) {
            findings.error_with_help(
                format!("{path}.address"),
                "an endpoint of a STATIC entry must be an IP address or a Unix socket",
                "Use resolution DNS for names.",
            );
        }
    }
    match spec.resolution {
        ServiceEntryResolution::None if !spec.endpoints.is_empty() => {
            findings.error("spec.endpoints", "resolution NONE cannot have endpoints");
        }
        ServiceEntryResolution::Dns | ServiceEntryResolution::DnsRoundRobin => {
            let wildcard = spec.hosts.iter().any(|host| host.contains('*'));
            if wildcard && spec.endpoints.is_empty() && spec.workload_selector.is_none() {
                findings.error_with_help(
                    "spec.hosts",
                    "a wildcard host cannot be resolved by DNS",
                    "List endpoints, or use resolution NONE.",
                );
            }
            if spec.resolution == ServiceEntryResolution::DnsRoundRobin && spec.endpoints.len() > 1
            {
                let message = "resolution DNS_ROUND_ROBIN takes one endpoint at most";
                findings.error("spec.endpoints", message);
            }
        }
        ServiceEntryResolution::Static
            if spec.endpoints.is_empty()
                && spec.workload_selector.is_none()
                && spec.addresses.is_empty() =>
        {
            findings.warn(
                code::SCHEMA_WARNING,
                "spec.endpoints",
                "a STATIC entry without endpoints, workloadSelector or addresses serves nobody",
                "List endpoints.",
            );
        }
        ServiceEntryResolution::DynamicDns => {
            if !spec.endpoints.is_empty() || spec.workload_selector.is_some() {
                let message = "resolution DYNAMIC_DNS cannot have endpoints";
                findings.error("spec.endpoints", message);
            }
            for (index, port) in spec.ports.iter().enumerate() {
                let named = Protocol::parse(&port.protocol)
                    .is_some_and(|protocol| protocol.is_http() || protocol.is_tls());
                if !named {
                    findings.error_with_help(
                        format!("spec.ports[{index}].protocol"),
                        "only HTTP and TLS say which host is meant",
                        "Use HTTP, GRPC, HTTP2, TLS or HTTPS with resolution DYNAMIC_DNS.",
                    );
                }
            }
        }
        ServiceEntryResolution::None | ServiceEntryResolution::Static => {}
    }
}

/// A WorkloadEntry, or an endpoint of the same shape.
pub(super) fn check_workload(spec: &WorkloadEntry, path: &str, findings: &mut Findings<'_>) {
    let lengths = [
        ("address", &spec.address, 256),
        ("locality", &spec.locality, 2048),
        ("network", &spec.network, 2048),
        ("serviceAccount", &spec.service_account, 253),
    ];
    for (field, text, max) in lengths {
        bounds::length(text, max, format!("{path}.{field}"), findings);
    }
    if !spec.network.is_empty() {
        findings.info(
            code::NOT_IMPLEMENTED,
            format!("{path}.network"),
            "networks are taken to reach each other directly: nothing goes through a gateway between \
             them",
            "",
        );
    }
    bounds::count(spec.labels.len(), 256, format!("{path}.labels"), findings);
    bounds::count(spec.ports.len(), 128, format!("{path}.ports"), findings);
    let address = &spec.address;
    let field = format!("{path}.address");
    if address.is_empty() {
        if spec.network.is_empty() {
            findings.error(&*field, "an address is required");
        }
    } else if let Some(socket) = address.strip_prefix("unix://") {
        if !socket.starts_with('/') && !socket.starts_with('@') {
            findings.error(&*field, "a Unix socket's path must be absolute");
        }
        if socket.ends_with('/') {
            findings.error(&*field, "a Unix socket cannot be a directory");
        }
        if !spec.ports.is_empty() {
            findings.error(format!("{path}.ports"), "a Unix socket has no ports");
        }
    } else if !is_ip(address) && !is_dns_name(address) {
        findings.error(&*field, format!("{address:?} is neither an address nor a host"));
    }
    for (name, number) in &spec.ports {
        if !is_port_name(name) {
            let path = entry(&format!("{path}.ports"), name);
            findings.error(path, format!("{name:?} is not a port name"));
        }
        if !is_port(*number) {
            let message = format!("{number} is not a port number from 1 to 65535");
            findings.error(entry(&format!("{path}.ports"), name), message);
        }
    }
    if spec.locality.split('/').count() > 3 {
        findings.error(format!("{path}.locality"), "expected region/zone/subzone");
    }
}

/// Letters, digits and dashes, fewer than 63.
fn is_port_name(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.len() < 63
        && edge(name.chars().next())
        && edge(name.chars().next_back())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}
