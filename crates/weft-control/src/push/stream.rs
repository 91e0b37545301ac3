//! One ADS stream, from its first request to its end.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tonic::Status;
use weft_xds::ResourceType;
use weft_xds::health::Health;
use weft_xds::names;
use weft_xds::server::{AdsStream, Handler, Peer};
use weft_xds::session::{Action, Push, Request, ServerSession, SessionError};

use super::identity::{self, Anonymous};
use super::registry::{Pending, Proxy, Touch};
use super::source::ProxySource;
use super::{Options, Pusher};
use crate::registration::Registration;

/// How long a client may take to say who it is.
const FIRST_REQUEST_MAX: Duration = Duration::from_secs(10);
/// How long after a failed renewal the next try is.
const RENEW_RETRY: Duration = Duration::from_secs(10);

/// The handler of one port's streams.
pub struct Ads {
    pusher: Arc<Pusher>,
    anonymous: Anonymous,
}

impl Ads {
    /// For a port where clients without a token get configuration, but no secrets.
    pub fn plain(pusher: Arc<Pusher>) -> Arc<Self> {
        Arc::new(Self { pusher, anonymous: Anonymous::Allowed })
    }

    /// For a port where every client must have a token.
    pub fn authenticated(pusher: Arc<Pusher>) -> Arc<Self> {
        Arc::new(Self { pusher, anonymous: Anonymous::Refused })
    }
}

impl Handler for Ads {
    fn admit(&self, peer: &Peer) -> Result<(), Status> {
        // Strangers must not use up what is meant for proxies.
        identity::plausible(&self.pusher.trust, peer, self.anonymous)?;
        self.pusher.admission.admit(Instant::now())
    }

    async fn serve(self: Arc<Self>, stream: AdsStream) -> Result<(), Status> {
        let pusher = &self.pusher;
        let _place = pusher.admission.enter()?;
        let proven = identity::authenticate(&pusher.trust, &stream.peer, self.anonymous).await?;
        let mut stream = stream;
        let Some(first) = first_request(&mut stream).await? else { return Ok(()) };
        tokio::select! {
            () = pusher.wait_ready() => {}
            () = pusher.shutdown.cancelled() => return Err(shutting_down()),
        }
        let snapshot = &pusher.published().state.snapshot;
        let described = identity::describe(first.node(), proven.as_ref(), snapshot)?;
        let identity = proven.map(|proven| proven.identity);
        let registration =
            pusher.registrar.register(snapshot, &described.0, identity.as_ref()).await?;
        let proxy = Proxy::new(described, identity, stream.mode, stream.peer.address);
        let node = proxy.node.id();
        tracing::info!(%node, mode = ?stream.mode, address = ?stream.peer.address, "proxy connected");
        pusher.metrics.connected.add(1);
        let end = serve(pusher, stream, Arc::new(proxy), first, registration.as_ref()).await;
        pusher.metrics.connected.add(-1);
        tracing::info!(%node, ?end, "proxy disconnected");
        end
    }
}

async fn first_request(stream: &mut AdsStream) -> Result<Option<Request>, Status> {
    match tokio::time::timeout(FIRST_REQUEST_MAX, stream.inbox.next()).await {
        Ok(request) => request,
        Err(_) => Err(Status::deadline_exceeded("no request on the stream")),
    }
}

fn shutting_down() -> Status {
    Status::unavailable("the control plane is shutting down")
}

async fn serve(
    pusher: &Pusher,
    stream: AdsStream,
    proxy: Arc<Proxy>,
    first: Request,
    registration: Option<&Registration>,
) -> Result<(), Status> {
    let AdsStream { mut inbox, outbox, mode, .. } = stream;
    let mut roots = pusher.trust.authority.changes();
    let (published, _registered) = pusher.registry.register(&proxy);
    let identity = proxy.identity.clone();
    let mut serving = Serving {
        pusher,
        proxy: &proxy,
        session: ServerSession::new(mode, pusher.options.session),
        source: ProxySource::new(
            &proxy.view,
            identity,
            &pusher.trust,
            &pusher.endpoints,
            published,
        ),
        converging: None,
        removal: Removal::None,
    };
    serving.on_request(&first)?;
    loop {
        let timer = serving.timer();
        tokio::select! {
            request = inbox.next() => match request? {
                Some(request) => match (Health::of(&request), registration) {
                    (Some(health), Some(registration)) => registration.report(health),
                    // Of a workload whose entry somebody else wrote.
                    (Some(_), None) => {}
                    (None, _) => serving.on_request(&request)?,
                },
                None => return Ok(()),
            },
            pending = proxy.pending() => serving.on_pending(pending),
            permit = outbox.ready(), if serving.has_work() => match permit {
                Some(permit) => if let Some(push) = serving.next_push() {
                    permit.send(push);
                },
                None => return Ok(()),
            },
            () = sleep(timer), if timer.is_some() => serving.on_timer(),
            Ok(()) = roots.changed() => serving.on_roots(),
            () = pusher.shutdown.cancelled() => return Err(shutting_down()),
        }
        serving.note();
    }
}

async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Clusters that are gone, on their way out of the proxy.
#[derive(Clone, Copy, Debug)]
enum Removal {
    None,
    At(Instant),
    Now,
}

struct Serving<'a> {
    pusher: &'a Pusher,
    proxy: &'a Proxy,
    session: ServerSession,
    source: ProxySource<'a>,
    /// When the change happened that is being sent.
    converging: Option<Instant>,
    removal: Removal,
}

impl Serving<'_> {
    fn on_request(&mut self, request: &Request) -> Result<(), Status> {
        let action = match self.session.on_request(request) {
            Ok(Some(action)) => action,
            Ok(None) => return Ok(()),
            Err(error @ SessionError::WrongMode) => {
                return Err(Status::invalid_argument(error.to_string()));
            }
            Err(error) => return Err(Status::resource_exhausted(error.to_string())),
        };
        let Action { ty, subscribed, unsubscribed, nacked, stale, .. } = action;
        let metrics = self.pusher.metrics.of(ty);
        if stale {
            metrics.expired_nonces.inc();
        }
        if let Some(nack) = nacked {
            metrics.rejects.inc();
            let node = self.proxy.node.id();
            tracing::warn!(%node, %ty, version = %nack.stamp.version, reason = %nack.message, "rejected");
        }
        if ty == ResourceType::Endpoint && !(subscribed.is_empty() && unsubscribed.is_empty()) {
            let names = &self.session.subscription(ResourceType::Endpoint).names;
            let names = self.pusher.registry.share_names(names);
            self.session.share_names(ResourceType::Endpoint, &names);
            self.proxy.set_clusters(names);
        }
        Ok(())
    }

    fn on_pending(&mut self, pending: Pending) {
        let Pending { published, touch, changed, queued } = pending;
        if !touch.is_nothing() {
            self.pusher.metrics.queue.observe(queued.elapsed().as_secs_f64());
            self.converging.get_or_insert(changed);
        }
        if let Some(published) = published {
            self.source.publish(published);
        }
        let Touch { config, secrets, all_endpoints, endpoints, names } = touch;
        let marks = [
            (ResourceType::Cluster, config),
            (ResourceType::Endpoint, all_endpoints),
            (ResourceType::Listener, config),
            (ResourceType::Route, config),
            (ResourceType::Secret, secrets),
            (ResourceType::NameTable, names),
        ];
        for (ty, _) in marks.into_iter().filter(|(_, touched)| *touched) {
            self.session.mark(ty);
        }
        self.session.mark_names(ResourceType::Endpoint, &endpoints);
    }

    fn has_work(&self) -> bool {
        self.session.has_work() || matches!(self.removal, Removal::Now)
    }

    fn next_push(&mut self) -> Option<Push> {
        let begun = Instant::now();
        let next = match (self.session.poll(&mut self.source), self.removal) {
            (None, Removal::Now) => self.session.poll_removals(&mut self.source),
            (next, _) => next,
        };
        let Some(push) = next else {
            self.removal = Removal::None;
            return None;
        };
        self.pusher.metrics.sent(push.ty, push.size(), begun.elapsed());
        Some(push)
    }

    /// After each event: times, and what the status page shows.
    fn note(&mut self) {
        let Options { removal_delay, .. } = self.pusher.options;
        self.removal = match (self.session.removals_due(), self.removal) {
            (false, _) => Removal::None,
            (true, Removal::None) => Removal::At(Instant::now() + removal_delay),
            (true, removal) => removal,
        };
        if !self.session.has_work()
            && let Some(changed) = self.converging.take()
        {
            self.pusher.metrics.convergence.observe(changed.elapsed().as_secs_f64());
        }
        self.proxy.set_status(ResourceType::PUSH_ORDER.map(|ty| self.session.status(ty)));
    }

    /// How long until [`Self::on_timer`].
    fn timer(&self) -> Option<Duration> {
        let removal = match self.removal {
            Removal::At(at) => Some(at.saturating_duration_since(Instant::now())),
            Removal::None | Removal::Now => None,
        };
        let renewal = self.source.renew_at.map(|at| {
            // An authority that fails is not asked in a loop.
            at.duration_since(SystemTime::now()).unwrap_or_default()
        });
        match (removal, renewal) {
            (Some(removal), Some(renewal)) => Some(removal.min(renewal)),
            (removal, renewal) => removal.or(renewal),
        }
    }

    /// Who trusts the mesh's roots must hear of others at once.
    fn on_roots(&mut self) {
        self.session.mark_names(ResourceType::Secret, &[Arc::from(names::SECRET_ROOT)]);
    }

    fn on_timer(&mut self) {
        if let Removal::At(at) = self.removal
            && at <= Instant::now()
        {
            self.removal = Removal::Now;
        }
        if self.source.renew_at.is_some_and(|at| at <= SystemTime::now()) {
            self.source.renew_at = Some(SystemTime::now() + RENEW_RETRY);
            let own = [names::SECRET_DEFAULT, names::SECRET_ROOT].map(Arc::from);
            self.session.mark_names(ResourceType::Secret, &own);
        }
    }
}
