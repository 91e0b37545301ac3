//! The resolver beside a workload whose DNS is captured: it answers for the hosts of the mesh out
//! of the control plane's name table and asks the name servers of resolv.conf for all others.
//!
//! ```text
//! workload ─► serve (UDP, TCP) ─► names: a host of the mesh? ─► answer
//!                  └─ no ─► forward: cache ─► name servers
//! ```
//! Has a thread of its own, so that nobody's lookup waits for a large configuration. Must not know
//! listeners, clusters or requests.

mod answer;
mod forward;
mod names;
mod resolv;
mod serve;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use weft_telemetry::Registry;

use crate::drain::DrainSignal;

pub use names::Names;

/// Where and for whom names are answered.
#[derive(Debug, Clone)]
pub struct DnsSettings {
    /// UDP and TCP. Those after the first may fail.
    pub addresses: Vec<SocketAddr>,
    /// resolv.conf(5): whom to ask for everything else, and the workload's first search domain.
    pub resolv_conf: PathBuf,
    /// The workload's namespace: its services need no more than their names.
    pub namespace: String,
    /// The node's DNS domain, such as `shop.svc.cluster.local`.
    pub domain: String,
}

/// Opens the sockets and answers until the proxy ends.
pub(crate) fn start(
    settings: &DnsSettings,
    names: Arc<ArcSwap<Names>>,
    registry: &Registry,
    drain: DrainSignal,
) -> io::Result<JoinHandle<()>> {
    let resolv = resolv::read(&settings.resolv_conf);
    if resolv.servers.is_empty() {
        let file = settings.resolv_conf.display();
        tracing::warn!(%file, "no name servers: names outside the mesh fail");
    }
    let place = names::Place::new(&settings.namespace, &settings.domain, resolv.search.as_deref());
    let counters = serve::Counters::new(registry);
    let forwarder = forward::Forwarder::new(resolv.servers, counters.clone());
    let server = Arc::new(serve::Server { names, place, forwarder, counters });
    let sockets = serve::bind(&settings.addresses)?;
    std::thread::Builder::new().name("dns".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(serve::run(server, sockets, drain)),
            Err(error) => tracing::error!(%error, "DNS runtime could not start"),
        }
    })
}
