//! What Istio's proxies up to 1.4 reported their traffic by: `istio.mixer.v1.Mixer`.
//!
//! Owns the messages that are read, and the server half. Attributes are compressed: names and texts
//! are indexes into a dictionary that everybody knows (from 0 up) or that the message brings (from -1
//! down). Must not know what the attributes mean.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use prost_types::{Duration, Timestamp};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;

use crate::unary;

/// The full gRPC service name.
pub const SERVICE_NAME: &str = "istio.mixer.v1.Mixer";
/// The path of its one method that is answered.
pub const REPORT: &str = "/istio.mixer.v1.Mixer/Report";
/// Largest report we accept, in bytes; a client batches 100 requests at most.
pub const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// `istio.mixer.v1.ReportRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReportRequest {
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<CompressedAttributes>,
    /// Words of sets that bring none.
    #[prost(string, repeated, tag = "2")]
    pub default_words: Vec<String>,
    #[prost(uint32, tag = "3")]
    pub global_word_count: u32,
    /// 0: each set changes the one before; 1: each stands for itself.
    #[prost(int32, tag = "4")]
    pub repeated_attributes_semantics: i32,
}

/// `istio.mixer.v1.ReportResponse`
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ReportResponse {}

/// `istio.mixer.v1.CompressedAttributes`; bytes are addresses.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CompressedAttributes {
    #[prost(string, repeated, tag = "1")]
    pub words: Vec<String>,
    #[prost(map = "sint32, sint32", tag = "2")]
    pub strings: HashMap<i32, i32>,
    #[prost(map = "sint32, int64", tag = "3")]
    pub int64s: HashMap<i32, i64>,
    #[prost(map = "sint32, double", tag = "4")]
    pub doubles: HashMap<i32, f64>,
    #[prost(map = "sint32, bool", tag = "5")]
    pub bools: HashMap<i32, bool>,
    #[prost(map = "sint32, message", tag = "6")]
    pub timestamps: HashMap<i32, Timestamp>,
    #[prost(map = "sint32, message", tag = "7")]
    pub durations: HashMap<i32, Duration>,
    #[prost(map = "sint32, bytes", tag = "8")]
    pub bytes: HashMap<i32, Vec<u8>>,
    #[prost(map = "sint32, message", tag = "9")]
    pub string_maps: HashMap<i32, StringMap>,
}

/// `istio.mixer.v1.StringMap`
#[derive(Clone, PartialEq, prost::Message)]
pub struct StringMap {
    #[prost(map = "sint32, sint32", tag = "1")]
    pub entries: HashMap<i32, i32>,
}

/// The server half: a tower service for `tonic::transport::Server::add_service`.
pub struct MixerServer<M>(Arc<M>);

impl<M> MixerServer<M> {
    /// Every report goes to `method`.
    pub fn new(method: Arc<M>) -> Self {
        Self(method)
    }
}

impl<M> Clone for MixerServer<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M> NamedService for MixerServer<M> {
    const NAME: &'static str = SERVICE_NAME;
}

impl<M> tower::Service<http::Request<Body>> for MixerServer<M>
where
    M: unary::Method<ReportRequest, ReportResponse>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = Arc::clone(&self.0);
        Box::pin(async move {
            match request.uri().path() {
                REPORT => Ok(unary::serve(method, REQUEST_BYTES_MAX, request).await),
                _ => {
                    let text = "only Report is answered here: set disablePolicyChecks, and use \
                                AuthorizationPolicy and rate limits for what Check did";
                    Ok(Status::unimplemented(text).into_http())
                }
            }
        })
    }
}
