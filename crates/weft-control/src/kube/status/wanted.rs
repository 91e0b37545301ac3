//! What statuses should say. Pure.

use serde_json::{Value, json};
use weft_model::{Diagnostic, Kind, Severity};

use super::All;
use crate::world::State;

/// What we have to say in one resource's status.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Wanted {
    /// A resource of the Gateway API: conditions without times, listeners, parents, addresses.
    GatewayApi(Value),
    /// One of Istio's: what is wrong with it.
    Istio(Vec<Message>),
}

/// One finding on a resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Message {
    pub(super) code: &'static str,
    pub(super) is_error: bool,
    pub(super) text: String,
}

impl Wanted {
    /// Takes back what was said.
    pub(super) fn nothing(kind: Kind) -> Self {
        match kind {
            Kind::BackendTlsPolicy => Wanted::GatewayApi(json!({ "ancestors": [] })),
            Kind::HttpRoute
            | Kind::GrpcRoute
            | Kind::TlsRoute
            | Kind::TcpRoute
            | Kind::UdpRoute => Wanted::GatewayApi(json!({ "parents": [] })),
            // Another controller's by now, which says what it thinks itself.
            Kind::GatewayClass | Kind::KubeGateway | Kind::ListenerSet => {
                Wanted::GatewayApi(json!({}))
            }
            _ => Wanted::Istio(Vec::new()),
        }
    }

    pub(super) fn is_nothing(&self) -> bool {
        match self {
            Wanted::GatewayApi(status) => {
                let lists = status.as_object().into_iter().flat_map(|fields| fields.values());
                lists.flat_map(|list| list.as_array()).all(Vec::is_empty)
            }
            Wanted::Istio(messages) => messages.is_empty(),
        }
    }
}

/// Of every resource of which there is something to say.
pub(super) fn all(state: &State) -> All {
    let mut all = All::new();
    for status in state.snapshot.gateway_api_status() {
        let json = status.to_json()["status"].take();
        all.insert(status.resource, Wanted::GatewayApi(json));
    }
    let translated = weft_translate::check(&state.snapshot);
    for found in state.all_diagnostics().chain(&translated) {
        let Some(key) = found.resource.clone().filter(|key| is_istio(key.kind)) else { continue };
        if found.severity == Severity::Info {
            continue;
        }
        if let Wanted::Istio(messages) = all.entry(key).or_insert(Wanted::Istio(Vec::new())) {
            messages.push(message(found));
        }
    }
    all
}

fn message(found: &Diagnostic) -> Message {
    let Diagnostic { code, path, message, help, .. } = found;
    let mut text = match path.is_empty() {
        true => format!("{code}: {message}"),
        false => format!("{code}: {path}: {message}"),
    };
    if !help.is_empty() {
        text.push_str(". ");
        text.push_str(help);
    }
    Message { code, is_error: found.is_error(), text }
}

fn is_istio(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::VirtualService
            | Kind::DestinationRule
            | Kind::Gateway
            | Kind::Sidecar
            | Kind::ServiceEntry
            | Kind::WorkloadEntry
            | Kind::WorkloadGroup
            | Kind::EnvoyFilter
            | Kind::ProxyConfig
            | Kind::Telemetry
            | Kind::PeerAuthentication
    )
}
