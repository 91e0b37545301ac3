//! The gRPC shell of the control plane's end: both ADS methods, one handler.
//!
//! Owns turning gRPC streams into `Request`s and `Response`s. Must not know
//! sessions, proxies or resources; those are the handler's.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::{NamedService, StreamingService};
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;

use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use crate::session::{Mode, Request, Response};
use crate::wire;

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
pub struct Inbox(InboxKind);

enum InboxKind {
    Sotw(Streaming<DiscoveryRequest>),
    Delta(Streaming<DeltaDiscoveryRequest>),
}

impl Inbox {
    /// The next request, `None` when the client has ended the stream.
    ///
    /// # Errors
    /// The stream broke, or a request was malformed or too large.
    pub async fn next(&mut self) -> Result<Option<Request>, Status> {
        match &mut self.0 {
            InboxKind::Sotw(stream) => Ok(stream.message().await?.map(Request::Sotw)),
            InboxKind::Delta(stream) => Ok(stream.message().await?.map(Request::Delta)),
        }
    }
}

/// The responses of a stream.
pub struct Outbox(mpsc::Sender<Result<Response, Status>>);

/// The right to send one response now.
pub struct Permit<'a>(mpsc::Permit<'a, Result<Response, Status>>);

impl Outbox {
    /// Waits until the client can take a response, so that it can be made then.
    /// `None` when the client is gone.
    pub async fn ready(&self) -> Option<Permit<'_>> {
        self.0.reserve().await.ok().map(Permit)
    }
}

impl Permit<'_> {
    /// Sends one response.
    pub fn send(self, response: Response) {
        self.0.send(Ok(response));
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
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let handler = Arc::clone(&self.0);
        Box::pin(async move {
            Ok(match request.uri().path() {
                wire::STREAM_PATH => {
                    let codec = ProstCodec::<wire::DiscoveryResponse, DiscoveryRequest>::default();
                    let mut grpc = tonic::server::Grpc::new(codec)
                        .max_decoding_message_size(REQUEST_BYTES_MAX);
                    grpc.streaming(Sotw(handler), request).await
                }
                wire::DELTA_PATH => {
                    let codec =
                        ProstCodec::<wire::DeltaDiscoveryResponse, DeltaDiscoveryRequest>::default(
                        );
                    let mut grpc = tonic::server::Grpc::new(codec)
                        .max_decoding_message_size(REQUEST_BYTES_MAX);
                    grpc.streaming(Delta(handler), request).await
                }
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type BoxReply<T> =
    Pin<Box<dyn Future<Output = Result<tonic::Response<BoxStream<T>>, Status>> + Send>>;

struct Sotw<H>(Arc<H>);

impl<H: Handler> StreamingService<DiscoveryRequest> for Sotw<H> {
    type Response = wire::DiscoveryResponse;
    type ResponseStream = BoxStream<Self::Response>;
    type Future = BoxReply<Self::Response>;

    fn call(&mut self, request: tonic::Request<Streaming<DiscoveryRequest>>) -> Self::Future {
        let handler = Arc::clone(&self.0);
        Box::pin(async move {
            open(handler, Mode::Sotw, request, InboxKind::Sotw, |response| match response {
                Response::Sotw(response) => Some(response),
                Response::Delta(_) => None,
            })
        })
    }
}

struct Delta<H>(Arc<H>);

impl<H: Handler> StreamingService<DeltaDiscoveryRequest> for Delta<H> {
    type Response = wire::DeltaDiscoveryResponse;
    type ResponseStream = BoxStream<Self::Response>;
    type Future = BoxReply<Self::Response>;

    fn call(&mut self, request: tonic::Request<Streaming<DeltaDiscoveryRequest>>) -> Self::Future {
        let handler = Arc::clone(&self.0);
        Box::pin(async move {
            open(handler, Mode::Delta, request, InboxKind::Delta, |response| match response {
                Response::Delta(response) => Some(response),
                Response::Sotw(_) => None,
            })
        })
    }
}

fn open<H: Handler, In, Out: Message + 'static>(
    handler: Arc<H>,
    mode: Mode,
    request: tonic::Request<Streaming<In>>,
    inbox: impl FnOnce(Streaming<In>) -> InboxKind,
    own: impl Fn(Response) -> Option<Out> + Send + 'static,
) -> Result<tonic::Response<BoxStream<Out>>, Status> {
    let peer = Peer {
        address: request.remote_addr(),
        token: crate::connect::token(&request).map(str::to_owned),
    };
    handler.admit(&peer)?;
    let (sender, receiver) = mpsc::channel(RESPONSES_QUEUED_MAX);
    let stream = AdsStream {
        mode,
        peer,
        inbox: Inbox(inbox(request.into_inner())),
        outbox: Outbox(sender.clone()),
    };
    tokio::spawn(async move {
        if let Err(status) = handler.serve(stream).await {
            // A client that is gone need not be told why.
            _ = sender.send(Err(status)).await;
        }
    });
    let responses = ReceiverStream::new(receiver).filter_map(move |item| {
        let item = match item {
            Ok(response) => own(response).map(Ok),
            Err(status) => Some(Err(status)),
        };
        std::future::ready(item)
    });
    Ok(tonic::Response::new(Box::pin(responses)))
}
