//! serviceb: gRPC, every kind of call, and gRPC's health service.

use super::App;
use super::echo::{Echo, EchoReply, EchoRequest, EchoServer, Health};
use http::HeaderMap;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

/// Longest stream one may ask for.
const STREAM_MESSAGES_MAX: u32 = 1000;

pub(super) async fn serve(listener: TcpListener, app: App) {
    let server = tonic::transport::Server::builder()
        .add_service(EchoServer::new(ServiceB(app)))
        .add_service(Health);
    if let Err(error) = server.serve_with_incoming(TcpListenerStream::new(listener)).await {
        tracing::error!(%error, "serviceb ended");
    }
}

#[derive(Clone)]
struct ServiceB(App);

impl Echo for ServiceB {
    fn unary(&self, headers: &HeaderMap, request: EchoRequest) -> EchoReply {
        self.reply(headers, request.message)
    }

    fn server_stream(&self, headers: &HeaderMap, request: EchoRequest) -> Vec<EchoReply> {
        let reply = |index| self.reply(headers, format!("{} {index}", request.message));
        (0..request.count.min(STREAM_MESSAGES_MAX)).map(reply).collect()
    }

    fn client_stream(&self, headers: &HeaderMap, received: u32) -> EchoReply {
        self.reply(headers, format!("{received} messages"))
    }
}

impl ServiceB {
    fn reply(&self, headers: &HeaderMap, message: String) -> EchoReply {
        let App { service, version, instance, .. } = self.0;
        let shown = super::trace::context(headers);
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into();
        EchoReply {
            message,
            service: service.into(),
            version: version.into(),
            instance: instance.into(),
            headers: shown.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        }
    }
}
