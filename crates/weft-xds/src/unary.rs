//! One unary gRPC method of ours: the client's call, and the server half as a tower service.
//!
//! For the few services that no generated crate carries. Must not know what the messages say.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;

use http::uri::PathAndQuery;
use prost::Message;
use tonic::body::Body;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// Calls a method on a channel (see [`crate::connect`]), presenting the token and the cluster it is
/// from.
///
/// # Errors
/// The server's status, or `Unavailable` when it cannot be reached.
pub async fn call<In, Out>(
    channel: tonic::transport::Channel,
    path: &'static str,
    (token, cluster): (Option<&str>, Option<&str>),
    message: In,
) -> Result<Out, Status>
where
    In: Message + 'static,
    Out: Message + Default + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(message);
    crate::connect::set_token(&mut request, token, cluster)?;
    let codec: ProstCodec<In, Out> = ProstCodec::default();
    Ok(grpc.unary(request, PathAndQuery::from_static(path), codec).await?.into_inner())
}

/// What answers a method.
pub trait Method<In, Out>: Send + Sync + 'static {
    /// Answers one call.
    fn answer(&self, request: Request<In>) -> impl Future<Output = Result<Out, Status>> + Send;
}

/// Serves one call of a method, with requests of at most `bytes_max`.
pub async fn serve<M, In, Out>(
    method: Arc<M>,
    bytes_max: usize,
    request: http::Request<Body>,
) -> http::Response<Body>
where
    M: Method<In, Out>,
    In: Message + Default + Send + 'static,
    Out: Message + Default + Send + 'static,
{
    let codec: ProstCodec<Out, In> = ProstCodec::default();
    let mut grpc = tonic::server::Grpc::new(codec).max_decoding_message_size(bytes_max);
    grpc.unary(Unary(method, PhantomData), request).await
}

struct Unary<M, In, Out>(Arc<M>, PhantomData<fn(In) -> Out>);

impl<M, In, Out> tonic::server::UnaryService<In> for Unary<M, In, Out>
where
    M: Method<In, Out>,
    In: Send + 'static,
    Out: Send + 'static,
{
    type Response = Out;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Out>, Status>> + Send>>;

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let method = Arc::clone(&self.0);
        Box::pin(async move { method.answer(request).await.map(Response::new) })
    }
}
