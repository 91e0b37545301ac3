//! The ports that Kubernetes asks: readiness (15021) and status (15020), which answers the probes
//! that injection turned here, metrics, and a workload that wants its proxy gone. Open to the pod's
//! network, unlike the admin server: nothing here shows configuration, and what changes anything is
//! taken from loopback only.

pub mod health;
mod merged;
mod probe;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

pub use merged::Application;
pub(crate) use merged::wanted;
pub use probe::{ProbeError, Probes};

use crate::admin::{Page, readiness};
use crate::drain::DrainState;
use crate::runtime::Shared;

/// Clients of these ports at once: probes come one by one from one kubelet.
const CONNECTIONS_MAX: usize = 64;

/// What to answer where.
#[derive(Debug, Clone, Default)]
pub struct StatusSettings {
    /// Ports with readiness alone.
    pub readiness_port: Option<u16>,
    /// Ports with everything; the first also with the application's metrics.
    pub status_ports: Vec<u16>,
    /// Where those are, if anywhere.
    pub application: Option<Arc<Application>>,
    /// The application's probes.
    pub probes: Probes,
}

/// Opens the ports and serves until the runtime ends. During a hand-over the older proxy answers
/// until this one takes over.
pub async fn serve(settings: StatusSettings, shared: Arc<Shared>) {
    shared.handover.admin_begins().await;
    let probes = Arc::new(settings.probes);
    let ports = settings.status_ports.iter().map(|port| (*port, true));
    let readiness = settings.readiness_port.map(|port| (port, false));
    for (port, everything) in ports.chain(readiness).filter(|(port, _)| *port != 0) {
        match bind(port) {
            Ok(listener) => {
                let first = settings.status_ports.first() == Some(&port);
                let application = settings.application.as_ref().filter(|_| first).cloned();
                let pages = everything.then(|| (probes.clone(), application));
                tokio::spawn(accept(listener, pages, shared.clone()));
            }
            Err(error) => shared.fail(format!("status port {port}: {error}")),
        }
    }
}

/// On all addresses of the pod, of both IP versions where there are two.
fn bind(port: u16) -> io::Result<TcpListener> {
    let any = [IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in any {
        match bind_to(SocketAddr::new(address, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind_to(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // An older proxy of this pod may still be at its last answers.
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

/// What there is beside readiness.
type Pages = Option<(Arc<Probes>, Option<Arc<Application>>)>;

async fn accept(listener: TcpListener, pages: Pages, shared: Arc<Shared>) {
    let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.handover.admin_ends() => return,
        };
        let Ok((tcp, peer)) = accepted else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let (pages, shared) = (pages.clone(), shared.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let (pages, shared) = (pages.clone(), shared.clone());
                async move { Ok::<_, Infallible>(answer(request, peer.ip(), pages, &shared).await) }
            });
            // A kubelet opens a connection per probe; keeping them would only fill the slots.
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .serve_connection(TokioIo::new(tcp), service);
            let _ = connection.await;
            drop(slot);
        });
    }
}

type Reply = Response<Page>;

async fn answer(request: Request<Incoming>, peer: IpAddr, pages: Pages, shared: &Shared) -> Reply {
    let path = request.uri().path();
    let Some((probes, application)) = pages else {
        return match path {
            "/healthz/ready" => readiness(shared),
            _ => text(StatusCode::NOT_FOUND, "no such page: /healthz/ready\n"),
        };
    };
    match path {
        "/healthz/ready" => readiness(shared),
        "/stats/prometheus" | "/metrics" => {
            let application = application.as_deref();
            merged::metrics(application, &probes.way, request.headers(), shared).await
        }
        "/quitquitquit" => quit(request.method(), peer, shared),
        _ if path.starts_with("/app-health/") || path.starts_with("/app-lifecycle/") => {
            match probes.ask(path, request.headers()).await {
                Ok(status) => text(status, ""),
                Err(error) => text(error.status(), &format!("{error}\n")),
            }
        }
        _ => text(StatusCode::NOT_FOUND, "no such page\n"),
    }
}

/// For a Job whose cluster has no native sidecars: its last act ends the proxy.
fn quit(method: &Method, peer: IpAddr, shared: &Shared) -> Reply {
    if !peer.to_canonical().is_loopback() {
        return text(StatusCode::FORBIDDEN, "Only requests from localhost are allowed\n");
    }
    if method != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed: use POST\n");
    }
    tracing::info!("told to end by the workload");
    shared.drain.advance(DrainState::Closing);
    text(StatusCode::OK, "OK\n")
}

fn text(status: StatusCode, body: &str) -> Reply {
    let mut reply = Response::new(Page::whole(body.as_bytes().to_vec()));
    *reply.status_mut() = status;
    reply
}
