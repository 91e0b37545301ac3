//! The gRPC shell of the control plane's end: both ADS methods, one handler.
//!
//! Owns turning gRPC streams into `Request`s and `Response`s. Must not know
//! sessions, proxies or resources; those are the handler's.

mod body;
mod encode;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::HeaderValue;
use http::header::CONTENT_TYPE;
use prost::Message;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;

use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use crate::session::{Mode, Push, Request};
use crate::wire;
use body::{Messages, Reply};

/// Largest request we accept, in bytes: 50k subscriptions of 80 bytes.
pub const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Responses that may wait for the client's flow control. One, so that what a
/// slow client gets next is decided when it can take it.
const RESPONSES_QUEUED_MAX: usize = 1;

/// Who is at the other end, as far as gRPC knows.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Address the connection came from.
    pub address: Option<SocketAddr>,
    /// Bearer token of the `authorization` metadata, not verified.
    pub token: Option<String>,
    /// The Kubernetes cluster it says the token is from, not verified.
    pub cluster: Option<String>,
}

/// One open ADS stream.
pub struct AdsStream {
    pub mode: Mode,
    pub peer: Peer,
    pub inbox: Inbox,
    pub outbox: Outbox,
}

/// What the handler of all streams implements.
pub trait Handler: Send + Sync + 'static {
    /// Whether to take one more stream; called before anything is read from it.
    ///
    /// # Errors
    /// The status to refuse it with.
    fn admit(&self, peer: &Peer) -> Result<(), Status>;

    /// Serves one stream to its end. Runs in a task of its own.
    fn serve(self: Arc<Self>, stream: AdsStream)
    -> impl Future<Output = Result<(), Status>> + Send;
}

/// The requests of a stream.
pub struct Inbox {
    mode: Mode,
    messages: Messages,
}

impl Inbox {
    /// The next request, `None` when the client has ended the stream. Cancel-safe.
    ///
    /// # Errors
    /// The stream broke, or a request was malformed or too large.
    pub async fn next(&mut self) -> Result<Option<Request>, Status> {
        let Some(message) = self.messages.next().await? else { return Ok(None) };
        let decoded = match self.mode {
            Mode::Sotw => DiscoveryRequest::decode(message).map(Request::Sotw),
            Mode::Delta => DeltaDiscoveryRequest::decode(message).map(Request::Delta),
        };
        match decoded {
            Ok(request) => Ok(Some(request)),
            Err(error) => Err(Status::internal(format!("a request that is none: {error}"))),
        }
    }
}

/// The responses of a stream.
pub struct Outbox(mpsc::Sender<Result<Push, Status>>);

/// The right to send one response now.
pub struct Permit<'a>(mpsc::Permit<'a, Result<Push, Status>>);

impl Outbox {
    /// Waits until the client can take a response, so that it can be made then.
    /// `None` when the client is gone.
    pub async fn ready(&self) -> Option<Permit<'_>> {
        self.0.reserve().await.ok().map(Permit)
    }
}

impl Permit<'_> {
    /// Sends one response.
    pub fn send(self, push: Push) {
        self.0.send(Ok(push));
    }
}

/// The ADS service, for `tonic::transport::Server::add_service`.
pub struct AdsServer<H>(Arc<H>);

impl<H: Handler> AdsServer<H> {
    /// Serves all streams with `handler`.
    pub fn new(handler: Arc<H>) -> Self {
        Self(handler)
    }
}

impl<H> Clone for AdsServer<H> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<H> NamedService for AdsServer<H> {
    const NAME: &'static str = wire::SERVICE_NAME;
}

impl<H: Handler> tower::Service<http::Request<Body>> for AdsServer<H> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let response = match request.uri().path() {
            wire::STREAM_PATH => open(&self.0, Mode::Sotw, request),
            wire::DELTA_PATH => open(&self.0, Mode::Delta, request),
            _ => Err(Status::unimplemented("no such method")),
        };
        std::future::ready(Ok(response.unwrap_or_else(Status::into_http)))
    }
}

fn open<H: Handler>(
    handler: &Arc<H>,
    mode: Mode,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, Status> {
    let request = tonic::Request::from_http(request);
    let peer = Peer {
        address: request.remote_addr(),
        token: crate::connect::token(&request).map(str::to_owned),
        cluster: crate::connect::cluster(&request).map(str::to_owned),
    };
    handler.admit(&peer)?;
    let (sender, receiver) = mpsc::channel(RESPONSES_QUEUED_MAX);
    let stream = AdsStream {
        mode,
        peer,
        inbox: Inbox { mode, messages: Messages::new(request.into_inner()) },
        outbox: Outbox(sender.clone()),
    };
    let handler = Arc::clone(handler);
    tokio::spawn(async move {
        if let Err(status) = handler.serve(stream).await {
            // A client that is gone need not be told why.
            _ = sender.send(Err(status)).await;
        }
    });
    let mut response = http::Response::new(Body::new(Reply::new(receiver)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}
