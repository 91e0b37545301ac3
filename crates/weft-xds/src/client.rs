//! The gRPC shell of a proxy's end: connects, speaks the session, comes back.
//!
//! Owns reconnection with backoff and jitter, and when the subscriber is asked.
//! Must not know what resources mean.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use rand::Rng;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use crate::connect::{ConnectError, Target};
use crate::health::Health;
use crate::session::{ClientSession, Mode, Received, Rejection, Request, Response, Update, Wanted};
use crate::type_url::ResourceType;
use crate::wire;

/// Largest response we accept, in bytes. Envoy has no limit; Istio met its old
/// 4 MiB one at about 50k workloads.
pub const RESPONSE_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Gives the token to present on each new stream; read anew so that it can rotate.
pub type TokenSource = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// How to reach the control plane.
#[derive(Clone)]
pub struct Options {
    /// Tried in turn.
    pub targets: Vec<Target>,
    /// Bearer token for each stream.
    pub token: Option<TokenSource>,
    /// Longest wait before the second attempt; it doubles from there.
    pub backoff_base: Duration,
    /// Longest wait ever.
    pub backoff_max: Duration,
    /// How the workload is, as far as somebody looks; told on each stream and when it changes.
    pub health: Option<watch::Receiver<Option<Health>>>,
}

impl Options {
    /// One target, no token, waits from 250 ms up to 15 s.
    pub fn new(target: Target) -> Self {
        Self {
            targets: vec![target],
            token: None,
            backoff_base: Duration::from_millis(250),
            backoff_max: Duration::from_secs(15),
            health: None,
        }
    }
}

/// What uses the resources.
pub trait Subscriber: Send {
    /// Applies one update, or says what of it is not used and why. Subscriptions
    /// that follow from it go into `wants`, and are sent after the answer.
    ///
    /// # Errors
    /// The reason, sent as NACK.
    fn on_update(&mut self, update: &Update, wants: &mut Wants) -> Result<(), Rejection>;

    /// The connection came or went.
    fn on_connection(&mut self, connection: &Connection);

    /// The stream is open: other calls to the same control plane may go over its connection until it
    /// is lost.
    fn on_channel(&mut self, _channel: &Channel) {}
}

/// Subscriptions to change.
#[derive(Debug, Default)]
pub struct Wants(Vec<(ResourceType, Wanted)>);

impl Wants {
    /// Sets the whole subscription of a type.
    pub fn set(&mut self, ty: ResourceType, wanted: Wanted) {
        self.0.push((ty, wanted));
    }
}

/// State of the connection to the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// A stream is open to this address.
    Connected { address: String },
    /// There is none, why, and how long until the next attempt.
    Disconnected { reason: String, retry_in: Duration },
}

/// A subscription change that does not come from an update.
#[derive(Clone, Debug)]
pub struct Command {
    pub ty: ResourceType,
    pub wanted: Wanted,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{}: {}", .0.code(), .0.message())]
    Status(#[from] Status),
    #[error("the control plane ended the stream")]
    Ended,
}

/// Keeps one ADS stream up and the subscriber fed, until dropped. Set the first
/// subscriptions on `session` before.
pub async fn run(
    options: Options,
    mut session: ClientSession,
    mut subscriber: impl Subscriber,
    mut commands: mpsc::Receiver<Command>,
) {
    let mut failures: u32 = 0;
    let mut turn = 0;
    loop {
        let target = &options.targets[turn % options.targets.len().max(1)];
        turn += 1;
        let mut heard = false;
        let end =
            stream(&options, target, &mut session, &mut subscriber, &mut commands, &mut heard);
        let end = end.await;
        session.disconnected();
        failures = if heard { 0 } else { failures.saturating_add(1) };
        let retry_in = backoff(&options, failures);
        let reason = end.to_string();
        tracing::info!(address = %target.address, %reason, ?retry_in, "control plane stream ended");
        subscriber.on_connection(&Connection::Disconnected { reason, retry_in });
        wait(retry_in, &mut session, &mut commands).await;
    }
}

/// Random within the upper half, so that a thousand proxies do not return at once.
fn backoff(options: &Options, failures: u32) -> Duration {
    let factor = 1u32 << failures.min(16);
    let ceiling = options.backoff_base.saturating_mul(factor).min(options.backoff_max);
    ceiling.mul_f64(rand::rng().random_range(0.5..=1.0))
}

async fn wait(time: Duration, session: &mut ClientSession, commands: &mut mpsc::Receiver<Command>) {
    let sleep = tokio::time::sleep(time);
    tokio::pin!(sleep);
    loop {
        tokio::select! {
            () = &mut sleep => return,
            Some(Command { ty, wanted }) = commands.recv() => { _ = session.subscribe(ty, wanted); }
        }
    }
}

async fn stream(
    options: &Options,
    target: &Target,
    session: &mut ClientSession,
    subscriber: &mut impl Subscriber,
    commands: &mut mpsc::Receiver<Command>,
    heard: &mut bool,
) -> StreamEnd {
    let channel = match target.connect().await {
        Ok(channel) => channel,
        Err(error) => return error.into(),
    };
    let token = options.token.as_ref().and_then(|token| token());
    let token = (token, target.cluster.as_deref());
    // Requests only answer responses, so their queue is bounded by those.
    let (requests, receiver) = mpsc::unbounded_channel();
    for request in session.reconnect() {
        _ = requests.send(request);
    }
    let receiver = UnboundedReceiverStream::new(receiver);
    let shared = channel.clone();
    let opened = match session.mode() {
        Mode::Sotw => {
            let receiver = receiver.filter_map(|request| match request {
                Request::Sotw(request) => Some(request),
                Request::Delta(_) => None,
            });
            open::<_, wire::DiscoveryResponse>(channel, wire::STREAM_PATH, token, receiver)
                .await
                .map(Responses::Sotw)
        }
        Mode::Delta => {
            let receiver = receiver.filter_map(|request| match request {
                Request::Delta(request) => Some(request),
                Request::Sotw(_) => None,
            });
            open::<_, wire::DeltaDiscoveryResponse>(channel, wire::DELTA_PATH, token, receiver)
                .await
                .map(Responses::Delta)
        }
    };
    let mut responses = match opened {
        Ok(responses) => responses,
        Err(status) => return status.into(),
    };
    subscriber.on_connection(&Connection::Connected { address: target.address.clone() });
    subscriber.on_channel(&shared);
    let mut health = options.health.clone();
    if let Some(health) = &mut health {
        health.mark_changed();
    }
    loop {
        tokio::select! {
            health = changed(&mut health) => {
                _ = requests.send(health.request(session.mode()));
            }
            response = responses.next() => match response {
                Ok(Some(response)) => {
                    *heard = true;
                    for request in answer(session, subscriber, response) {
                        _ = requests.send(request);
                    }
                }
                Ok(None) => return StreamEnd::Ended,
                Err(status) => return status.into(),
            },
            Some(Command { ty, wanted }) = commands.recv() => {
                if let Some(request) = session.subscribe(ty, wanted) {
                    _ = requests.send(request);
                }
            }
        }
    }
}

/// The next news of the workload's health, if there ever is some. Cancel-safe.
async fn changed(health: &mut Option<watch::Receiver<Option<Health>>>) -> Health {
    while let Some(receiver) = health {
        if receiver.changed().await.is_err() {
            break;
        }
        let now = receiver.borrow_and_update().clone();
        if let Some(now) = now {
            return now;
        }
    }
    std::future::pending().await
}

fn answer(
    session: &mut ClientSession,
    subscriber: &mut impl Subscriber,
    response: Response,
) -> Vec<Request> {
    let update = match session.on_response(response) {
        Received::Update(update) => update,
        Received::Malformed(request) => return vec![*request],
        Received::Ignored => return Vec::new(),
    };
    let mut wants = Wants::default();
    let mut requests = vec![match subscriber.on_update(&update, &mut wants) {
        Ok(()) => session.accept(&update),
        Err(rejection) => session.reject(&update, &rejection),
    }];
    for (ty, wanted) in wants.0 {
        requests.extend(session.subscribe(ty, wanted));
    }
    requests
}

enum Responses {
    Sotw(tonic::Streaming<wire::DiscoveryResponse>),
    Delta(tonic::Streaming<wire::DeltaDiscoveryResponse>),
}

impl Responses {
    async fn next(&mut self) -> Result<Option<Response>, Status> {
        match self {
            Self::Sotw(stream) => Ok(stream.message().await?.map(Response::Sotw)),
            Self::Delta(stream) => Ok(stream.message().await?.map(Response::Delta)),
        }
    }
}

async fn open<In, Out>(
    channel: Channel,
    path: &'static str,
    (token, cluster): (Option<String>, Option<&str>),
    requests: impl tokio_stream::Stream<Item = In> + Send + 'static,
) -> Result<tonic::Streaming<Out>, Status>
where
    In: Message + 'static,
    Out: Message + Default + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = tonic::Request::new(requests);
    crate::connect::set_token(&mut request, token.as_deref(), cluster)?;
    let codec: ProstCodec<In, Out> = ProstCodec::default();
    let path = PathAndQuery::from_static(path);
    Ok(grpc.streaming(request, path, codec).await?.into_inner())
}
