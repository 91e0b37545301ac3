//! The gRPC contract of serviceb, `weft.demo.v1.Echo`, both ends, and `grpc.health.v1.Health`.
//!
//! ```proto
//! service Echo {
//!   rpc Unary(EchoRequest) returns (EchoReply);
//!   rpc ServerStream(EchoRequest) returns (stream EchoReply);
//!   rpc ClientStream(stream EchoRequest) returns (EchoReply);
//!   rpc BothStream(stream EchoRequest) returns (stream EchoReply);
//! }
//! ```

use anyhow::Context as _;
use futures_util::{Stream, StreamExt as _};
use http::uri::PathAndQuery;
use http::{HeaderMap, Uri};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::metadata::MetadataMap;
use tonic::server::{
    ClientStreamingService, Grpc, NamedService, ServerStreamingService, StreamingService,
    UnaryService,
};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EchoRequest {
    #[prost(string, tag = "1")]
    pub(super) message: String,
    /// How many replies a server stream sends.
    #[prost(uint32, tag = "2")]
    pub(super) count: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EchoReply {
    #[prost(string, tag = "1")]
    pub(super) message: String,
    #[prost(string, tag = "2")]
    pub(super) service: String,
    #[prost(string, tag = "3")]
    pub(super) version: String,
    #[prost(string, tag = "4")]
    pub(super) instance: String,
    /// Trace headers as they arrived.
    #[prost(btree_map = "string, string", tag = "5")]
    pub(super) headers: BTreeMap<String, String>,
}

const UNARY: &str = "/weft.demo.v1.Echo/Unary";
const SERVER_STREAM: &str = "/weft.demo.v1.Echo/ServerStream";
const CLIENT_STREAM: &str = "/weft.demo.v1.Echo/ClientStream";
const BOTH_STREAM: &str = "/weft.demo.v1.Echo/BothStream";

/// What an Echo server decides; moving messages is [`EchoServer`]'s.
pub(super) trait Echo: Clone + Send + Sync + 'static {
    fn unary(&self, headers: &HeaderMap, request: EchoRequest) -> EchoReply;
    fn server_stream(&self, headers: &HeaderMap, request: EchoRequest) -> Vec<EchoReply>;
    /// At the end of a client's stream of `received` messages.
    fn client_stream(&self, headers: &HeaderMap, received: u32) -> EchoReply;
}

/// Serves an [`Echo`] over gRPC.
#[derive(Clone)]
pub(super) struct EchoServer<E>(E);

impl<E> EchoServer<E> {
    pub(super) fn new(echo: E) -> Self {
        Self(echo)
    }
}

impl<E> NamedService for EchoServer<E> {
    const NAME: &'static str = "weft.demo.v1.Echo";
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<E: Echo> Service<http::Request<Body>> for EchoServer<E> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Boxed<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = Method(self.0.clone());
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::default());
            Ok(match request.uri().path() {
                UNARY => grpc.unary(method, request).await,
                SERVER_STREAM => grpc.server_streaming(method, request).await,
                CLIENT_STREAM => grpc.client_streaming(method, request).await,
                BOTH_STREAM => grpc.streaming(method, request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

struct Method<E>(E);

type Replies = Pin<Box<dyn Stream<Item = Result<EchoReply, Status>> + Send>>;

impl<E: Echo> UnaryService<EchoRequest> for Method<E> {
    type Response = EchoReply;
    type Future = Boxed<Result<Response<EchoReply>, Status>>;

    fn call(&mut self, request: Request<EchoRequest>) -> Self::Future {
        let (metadata, _, message) = request.into_parts();
        let reply = self.0.unary(&metadata.into_headers(), message);
        Box::pin(std::future::ready(Ok(Response::new(reply))))
    }
}

impl<E: Echo> ServerStreamingService<EchoRequest> for Method<E> {
    type Response = EchoReply;
    type ResponseStream = Replies;
    type Future = Boxed<Result<Response<Replies>, Status>>;

    fn call(&mut self, request: Request<EchoRequest>) -> Self::Future {
        let (metadata, _, message) = request.into_parts();
        let replies = self.0.server_stream(&metadata.into_headers(), message);
        let replies: Replies = Box::pin(futures_util::stream::iter(replies.into_iter().map(Ok)));
        Box::pin(std::future::ready(Ok(Response::new(replies))))
    }
}

impl<E: Echo> ClientStreamingService<EchoRequest> for Method<E> {
    type Response = EchoReply;
    type Future = Boxed<Result<Response<EchoReply>, Status>>;

    fn call(&mut self, request: Request<Streaming<EchoRequest>>) -> Self::Future {
        let echo = self.0.clone();
        Box::pin(async move {
            let (metadata, _, mut messages) = request.into_parts();
            let mut received = 0;
            while messages.message().await?.is_some() {
                received += 1;
            }
            Ok(Response::new(echo.client_stream(&metadata.into_headers(), received)))
        })
    }
}

impl<E: Echo> StreamingService<EchoRequest> for Method<E> {
    type Response = EchoReply;
    type ResponseStream = Replies;
    type Future = Boxed<Result<Response<Replies>, Status>>;

    /// Each message is answered as it arrives.
    fn call(&mut self, request: Request<Streaming<EchoRequest>>) -> Self::Future {
        let echo = self.0.clone();
        let (metadata, _, messages) = request.into_parts();
        let headers = metadata.into_headers();
        let replies = messages.map(move |message| Ok(echo.unary(&headers, message?)));
        let replies: Replies = Box::pin(replies);
        Box::pin(std::future::ready(Ok(Response::new(replies))))
    }
}

/// Calls serviceb over one HTTP/2 connection to the caller's sidecar, opened when first needed.
#[derive(Clone)]
pub(super) struct EchoClient(Channel);

impl EchoClient {
    /// `authority` is the service's name and port; the bytes go to `through`.
    pub(super) fn new(through: SocketAddr, authority: &str) -> anyhow::Result<Self> {
        let origin: Uri = format!("http://{authority}").parse()?;
        let endpoint = Endpoint::from_shared(format!("http://{through}"))?.origin(origin);
        Ok(Self(endpoint.connect_lazy()))
    }

    pub(super) async fn unary(
        &self,
        message: EchoRequest,
        headers: &HeaderMap,
    ) -> anyhow::Result<EchoReply> {
        let mut grpc = self.grpc().await?;
        let codec: ProstCodec<EchoRequest, EchoReply> = ProstCodec::default();
        let path = PathAndQuery::from_static(UNARY);
        Ok(grpc.unary(with(message, headers), path, codec).await?.into_inner())
    }

    pub(super) async fn server_stream(
        &self,
        message: EchoRequest,
        headers: &HeaderMap,
    ) -> anyhow::Result<Vec<EchoReply>> {
        let mut grpc = self.grpc().await?;
        let codec: ProstCodec<EchoRequest, EchoReply> = ProstCodec::default();
        let path = PathAndQuery::from_static(SERVER_STREAM);
        let replies = grpc.server_streaming(with(message, headers), path, codec).await?;
        collect(replies.into_inner()).await
    }

    pub(super) async fn client_stream(
        &self,
        messages: Vec<EchoRequest>,
        headers: &HeaderMap,
    ) -> anyhow::Result<EchoReply> {
        let mut grpc = self.grpc().await?;
        let codec: ProstCodec<EchoRequest, EchoReply> = ProstCodec::default();
        let path = PathAndQuery::from_static(CLIENT_STREAM);
        let messages = futures_util::stream::iter(messages);
        Ok(grpc.client_streaming(with(messages, headers), path, codec).await?.into_inner())
    }

    pub(super) async fn both_stream(
        &self,
        messages: Vec<EchoRequest>,
        headers: &HeaderMap,
    ) -> anyhow::Result<Vec<EchoReply>> {
        let mut grpc = self.grpc().await?;
        let codec: ProstCodec<EchoRequest, EchoReply> = ProstCodec::default();
        let path = PathAndQuery::from_static(BOTH_STREAM);
        let messages = futures_util::stream::iter(messages);
        let replies = grpc.streaming(with(messages, headers), path, codec).await?;
        collect(replies.into_inner()).await
    }

    async fn grpc(&self) -> anyhow::Result<tonic::client::Grpc<Channel>> {
        let mut grpc = tonic::client::Grpc::new(self.0.clone());
        grpc.ready().await.context("no connection to the sidecar")?;
        Ok(grpc)
    }
}

fn with<T>(message: T, headers: &HeaderMap) -> Request<T> {
    let mut request = Request::new(message);
    *request.metadata_mut() = MetadataMap::from_headers(headers.clone());
    request
}

async fn collect(mut replies: Streaming<EchoReply>) -> anyhow::Result<Vec<EchoReply>> {
    let mut all = Vec::new();
    while let Some(reply) = replies.message().await? {
        all.push(reply);
    }
    Ok(all)
}

/// gRPC's own health check: serving as long as the application runs.
#[derive(Clone)]
pub(super) struct Health;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthReply {
    /// 1 = SERVING.
    #[prost(int32, tag = "1")]
    status: i32,
}

impl NamedService for Health {
    const NAME: &'static str = "grpc.health.v1.Health";
}

impl Service<http::Request<Body>> for Health {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Boxed<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/grpc.health.v1.Health/Check" => {
                    Grpc::new(ProstCodec::default()).unary(Self, request).await
                }
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

impl UnaryService<HealthRequest> for Health {
    type Response = HealthReply;
    type Future = Boxed<Result<Response<HealthReply>, Status>>;

    fn call(&mut self, request: Request<HealthRequest>) -> Self::Future {
        let known = matches!(request.get_ref().service.as_str(), "" | "weft.demo.v1.Echo");
        let reply = match known {
            true => Ok(Response::new(HealthReply { status: 1 })),
            false => Err(Status::not_found("no such service")),
        };
        Box::pin(std::future::ready(reply))
    }
}
