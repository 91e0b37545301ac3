//! The demo's sample applications: small, ordinary programs that know nothing of the mesh but
//! the address of their sidecar.
//!
//! ```text
//!  gateway ──HTTP──▶ servicea v1, v2        plain-client ──▶ servicea (no sidecar)
//!     └─────gRPC──▶ serviceb 0, 1           gateway ──▶ plain-server (no sidecar), tcp-echo
//! ```

mod echo;
mod gateway;
mod plain;
mod servicea;
mod serviceb;
mod tcp_echo;
#[cfg(test)]
mod tests;
mod trace;
mod web;

pub(super) use web::HttpClient;

use super::layout::{Instance, Layout, Role};
use anyhow::Context as _;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// What every application is told.
#[derive(Debug, Clone)]
pub(super) struct App {
    pub(super) service: &'static str,
    pub(super) version: &'static str,
    pub(super) instance: &'static str,
    /// Where its sidecar takes HTTP and gRPC for other services.
    pub(super) outbound_http: SocketAddr,
    /// Where its sidecar takes TCP for tcp-echo.
    pub(super) outbound_tcp: SocketAddr,
    /// servicea v1 itself: for the client that has no sidecar.
    pub(super) servicea_direct: SocketAddr,
}

/// Binds and starts every application. They run until the runtime ends.
pub(super) async fn start(layout: &Layout) -> anyhow::Result<()> {
    for instance in layout.instances() {
        let app = App {
            service: instance.app,
            version: instance.version,
            instance: instance.name,
            outbound_http: layout.outbound_http(instance),
            outbound_tcp: layout.outbound_tcp(instance),
            servicea_direct: layout.servicea_direct(),
        };
        match instance.role {
            Role::Ingress => continue,
            Role::Gateway => spawn(gateway::serve(bind(layout, instance).await?, app)),
            Role::ServiceA => {
                spawn(servicea::serve(bind(layout, instance).await?, app));
            }
            Role::ServiceB => spawn(serviceb::serve(bind(layout, instance).await?, app)),
            Role::TcpEcho => spawn(tcp_echo::serve(bind(layout, instance).await?)),
            Role::PlainClient => spawn(plain::client(bind(layout, instance).await?, app)),
            Role::PlainServer => spawn(plain::server(bind(layout, instance).await?, app)),
        }
        // The article's health port, beside the traffic: it is never captured.
        let health = layout.health(instance);
        let listener = TcpListener::bind(health).await.with_context(|| super::taken(health))?;
        spawn(web::health(listener));
    }
    Ok(())
}

async fn bind(layout: &Layout, instance: &Instance) -> anyhow::Result<TcpListener> {
    let address = layout.app(instance);
    TcpListener::bind(address).await.with_context(|| super::taken(address))
}

fn spawn(app: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(app);
}
