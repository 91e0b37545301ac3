//! Istio's certificate service, `istio.v1.auth.IstioCertificateService`.
//!
//! Owns the two messages and the client and server halves of its one method.
//! Must not know keys, certificates or who may have one: that is the caller's.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::uri::PathAndQuery;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::pb::google::protobuf::Struct;

/// The full gRPC service name.
pub const SERVICE_NAME: &str = "istio.v1.auth.IstioCertificateService";
/// The path of the one method.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// Largest request we accept, in bytes; a CSR is about 1 KiB.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// `istio.v1.auth.IstioCertificateRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateRequest {
    /// PEM certificate request; the CA takes only its public key.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Wanted validity in seconds, 0 for the CA's default.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// Claims such as `WorkloadName`, never trusted.
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

/// `istio.v1.auth.IstioCertificateResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateResponse {
    /// PEM, leaf first, root last.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

/// Calls `CreateCertificate` on a channel (see [`crate::connect`]), presenting the token
/// (of a cluster).
///
/// # Errors
/// The server's status, or `Unavailable` when it cannot be reached.
pub async fn create_certificate(
    channel: tonic::transport::Channel,
    token: Option<&str>,
    cluster: Option<&str>,
    request: IstioCertificateRequest,
) -> Result<IstioCertificateResponse, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(format!("certificate service: {error}")))?;
    let mut request = Request::new(request);
    crate::connect::set_token(&mut request, token, cluster)?;
    let path = PathAndQuery::from_static(CREATE_CERTIFICATE);
    let codec: ProstCodec<IstioCertificateRequest, IstioCertificateResponse> =
        ProstCodec::default();
    Ok(grpc.unary(request, path, codec).await?.into_inner())
}

/// What a certificate authority implements.
pub trait CertificateService: Send + Sync + 'static {
    /// Signs one request. The join token is in the `authorization` metadata.
    fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> impl Future<Output = Result<IstioCertificateResponse, Status>> + Send;
}

/// The server half: a tower service for `tonic::transport::Server::add_service`.
pub struct CertificateServer<S>(Arc<S>);

impl<S> CertificateServer<S> {
    /// Serves `service`.
    pub fn new(service: Arc<S>) -> Self {
        Self(service)
    }
}

impl<S> Clone for CertificateServer<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> NamedService for CertificateServer<S> {
    const NAME: &'static str = SERVICE_NAME;
}

impl<S: CertificateService> tower::Service<http::Request<Body>> for CertificateServer<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = Arc::clone(&self.0);
        Box::pin(async move {
            if request.uri().path() != CREATE_CERTIFICATE {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            let mut grpc = tonic::server::Grpc::new(ProstCodec::default())
                .max_decoding_message_size(REQUEST_BYTES_MAX);
            Ok(grpc.unary(Method(service), request).await)
        })
    }
}

struct Method<S>(Arc<S>);

impl<S: CertificateService> tonic::server::UnaryService<IstioCertificateRequest> for Method<S> {
    type Response = IstioCertificateResponse;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Self::Response>, Status>> + Send>>;

    fn call(&mut self, request: Request<IstioCertificateRequest>) -> Self::Future {
        let service = Arc::clone(&self.0);
        Box::pin(async move { service.create_certificate(request).await.map(Response::new) })
    }
}
