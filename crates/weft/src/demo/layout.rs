//! Where everything of one demo listens: addresses and ports, all on loopback, all derived from
//! the port base, so that several demos can run side by side.
//!
//! Ports of 127.0.0.1 are `base + offset`; each workload also has an address of its own,
//! `127.77.N.M`, with N from the base, where ports can be the ones an operator expects.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

/// Bases this far apart never meet, neither in ports nor in addresses.
pub(super) const STEP: u16 = 512;
pub(super) const BASE_DEFAULT: u16 = 15000;
const BASE_MAX: u16 = 64000;
/// `free` looks below the ports that the kernel gives to outgoing connections.
const FREE_BASES: u16 = 33;

/// Where a sidecar takes its application's HTTP and gRPC for other services.
pub(super) const OUTBOUND_HTTP: u16 = 15080;
/// Where it takes the application's TCP for tcp-echo; the service's own port.
pub(super) const OUTBOUND_TCP: u16 = 9000;
/// The article's health port.
const HEALTH: u16 = 54321;

/// One running copy of a workload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Instance {
    index: u16,
    /// Pod name.
    pub(super) name: &'static str,
    /// Deployment name.
    pub(super) workload: &'static str,
    pub(super) app: &'static str,
    pub(super) version: &'static str,
    pub(super) namespace: &'static str,
    pub(super) account: &'static str,
    pub(super) role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The ingress gateway: a proxy without an application.
    Ingress,
    Gateway,
    ServiceA,
    ServiceB,
    TcpEcho,
    /// Outside the mesh.
    PlainClient,
    PlainServer,
}

impl Role {
    /// The service port of the role's Service, as the proxy or application binds it.
    pub(super) fn port(self) -> u16 {
        match self {
            Self::Ingress => 80,
            Self::Gateway | Self::ServiceA | Self::PlainClient | Self::PlainServer => 8080,
            Self::ServiceB => 10088,
            Self::TcpEcho => OUTBOUND_TCP,
        }
    }

    pub(super) fn has_sidecar(self) -> bool {
        match self {
            Self::Gateway | Self::ServiceA | Self::ServiceB | Self::TcpEcho => true,
            Self::Ingress | Self::PlainClient | Self::PlainServer => false,
        }
    }

    pub(super) fn has_proxy(self) -> bool {
        self.has_sidecar() || self == Self::Ingress
    }
}

const fn instance(
    index: u16,
    name: &'static str,
    workload: &'static str,
    app: &'static str,
    version: &'static str,
    role: Role,
) -> Instance {
    Instance { index, name, workload, app, version, namespace: "default", account: app, role }
}

const INSTANCES: [Instance; 9] = [
    Instance {
        index: 0,
        name: "istio-ingressgateway-0",
        workload: "istio-ingressgateway",
        app: "istio-ingressgateway",
        version: "v1",
        namespace: "istio-system",
        account: "istio-ingressgateway",
        role: Role::Ingress,
    },
    instance(1, "gateway-v1-0", "gateway-v1", "gateway", "v1", Role::Gateway),
    instance(2, "servicea-v1-0", "servicea-v1", "servicea", "v1", Role::ServiceA),
    instance(3, "servicea-v2-0", "servicea-v2", "servicea", "v2", Role::ServiceA),
    instance(4, "serviceb-v1-0", "serviceb-v1", "serviceb", "v1", Role::ServiceB),
    instance(5, "serviceb-v1-1", "serviceb-v1", "serviceb", "v1", Role::ServiceB),
    instance(6, "tcp-echo-v1-0", "tcp-echo-v1", "tcp-echo", "v1", Role::TcpEcho),
    instance(7, "plain-client-0", "plain-client", "plain-client", "v1", Role::PlainClient),
    instance(8, "plain-server-0", "plain-server", "plain-server", "v1", Role::PlainServer),
];

/// All addresses of one demo.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    base: u16,
}

impl Layout {
    /// # Errors
    /// A base that leaves no room for the ports above it.
    pub(super) fn new(base: u16) -> Result<Self, String> {
        match base {
            1024..=BASE_MAX => Ok(Self { base }),
            _ => Err(format!("--port-base {base}: choose one between 1024 and {BASE_MAX}")),
        }
    }

    /// The first free layout, looking from a place that differs between processes, so that
    /// demos started at the same moment do not choose alike.
    pub(super) fn free() -> Option<Self> {
        let start = u16::try_from(std::process::id() % u32::from(FREE_BASES)).unwrap_or(0);
        (0..FREE_BASES)
            .map(|step| BASE_DEFAULT + (start + step) % FREE_BASES * STEP)
            .map(|base| Self { base })
            .find(|layout| layout.taken().is_none())
    }

    pub(super) fn base(&self) -> u16 {
        self.base
    }

    pub(super) fn instances(&self) -> &'static [Instance] {
        &INSTANCES
    }

    pub(super) fn instance(&self, role: Role) -> &'static Instance {
        let found = INSTANCES.iter().find(|instance| instance.role == role);
        found.expect("every role has an instance")
    }

    pub(super) fn xds(&self) -> SocketAddr {
        self.local(10)
    }

    pub(super) fn xds_tls(&self) -> SocketAddr {
        self.local(12)
    }

    /// Control plane status, metrics and API.
    pub(super) fn control_http(&self) -> SocketAddr {
        self.local(14)
    }

    pub(super) fn gateway_http(&self) -> SocketAddr {
        self.local(80)
    }

    pub(super) fn gateway_https(&self) -> SocketAddr {
        self.local(443)
    }

    pub(super) fn admin(&self, instance: &Instance) -> SocketAddr {
        self.local(100 + instance.index)
    }

    /// The workload's own address. The ingress gateway's is plain 127.0.0.1: people type it.
    pub(super) fn ip(&self, instance: &Instance) -> IpAddr {
        let [high, _] = self.base.to_be_bytes();
        match instance.role {
            Role::Ingress => Ipv4Addr::LOCALHOST.into(),
            _ => Ipv4Addr::new(127, 77, high, 10 + instance.index as u8).into(),
        }
    }

    /// Where the application itself listens: behind its sidecar, or in its place.
    pub(super) fn app(&self, instance: &Instance) -> SocketAddr {
        if instance.role.has_sidecar() {
            self.local(200 + instance.index)
        } else {
            SocketAddr::new(self.ip(instance), instance.role.port())
        }
    }

    pub(super) fn health(&self, instance: &Instance) -> SocketAddr {
        SocketAddr::new(self.ip(instance), HEALTH)
    }

    pub(super) fn outbound_http(&self, instance: &Instance) -> SocketAddr {
        SocketAddr::new(self.ip(instance), OUTBOUND_HTTP)
    }

    pub(super) fn outbound_tcp(&self, instance: &Instance) -> SocketAddr {
        SocketAddr::new(self.ip(instance), OUTBOUND_TCP)
    }

    /// servicea v1 as its callers reach it.
    pub(super) fn servicea_direct(&self) -> SocketAddr {
        let instance = self.instance(Role::ServiceA);
        SocketAddr::new(self.ip(instance), instance.role.port())
    }

    /// An address that somebody else listens on already.
    pub(super) fn taken(&self) -> Option<SocketAddr> {
        let mut wanted = vec![
            self.xds(),
            self.xds_tls(),
            self.control_http(),
            self.gateway_http(),
            self.gateway_https(),
        ];
        for instance in &INSTANCES {
            if instance.role.has_proxy() {
                wanted.push(self.admin(instance));
            }
            if instance.role != Role::Ingress {
                wanted.extend([self.app(instance), self.health(instance)]);
            }
            if instance.role.has_sidecar() {
                let own = SocketAddr::new(self.ip(instance), instance.role.port());
                wanted.extend([self.outbound_http(instance), own]);
                if instance.role != Role::TcpEcho {
                    wanted.push(self.outbound_tcp(instance));
                }
            }
        }
        wanted.into_iter().find(|address| TcpListener::bind(address).is_err())
    }

    fn local(&self, offset: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.base + offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn addresses_are_distinct_and_demos_do_not_meet() {
        let mut seen = BTreeSet::new();
        for base in [BASE_DEFAULT, BASE_DEFAULT + STEP] {
            let layout = Layout::new(base).unwrap();
            for instance in layout.instances() {
                assert!(seen.insert(layout.admin(instance)));
                if instance.role != Role::Ingress {
                    assert!(seen.insert(layout.app(instance)), "{}", instance.name);
                    assert!(seen.insert(layout.health(instance)));
                }
                assert!(layout.ip(instance).is_loopback());
            }
        }
    }

    #[test]
    fn a_taken_port_is_named() {
        let layout = Layout::free().expect("33 bases are not all taken");
        let holder = TcpListener::bind(layout.gateway_http()).unwrap();
        assert_eq!(layout.taken(), Some(holder.local_addr().unwrap()));
        assert!(Layout::new(80).is_err() && Layout::new(65000).is_err());
    }
}
