//! One downstream connection as the request path sees it: where it came from and under which
//! configuration it is served. Configuration is looked up per request, so that a change reaches
//! open connections without closing them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_http::h1::Limits;
use weft_traffic::listener::Direction;
use weft_traffic::{FilterChain, HttpConfig, ListenerConfig, Network, Tables};

use crate::tls::SPELLING_ALPN;
use crate::worker::{ConnContext, Worker};

/// The configuration of the moment, counted per connection: cloning touches no other core's cache
/// line.
type HttpNow = Rc<Arc<HttpConfig>>;

/// No idle limit: a year.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// A client's connection.
pub(crate) struct HttpConn {
    pub(crate) worker: Rc<Worker>,
    pub(crate) context: Rc<ConnContext>,
    /// As it was when the connection came: what concerns the connection itself.
    pub(crate) http: Arc<HttpConfig>,
    /// As it is now: what concerns requests.
    current: RefCell<HttpNow>,
    current_version: Cell<u64>,
    /// The chain is no longer configured.
    orphaned: Cell<bool>,
}

impl HttpConn {
    /// None: the connection's chain is not HTTP.
    pub(crate) fn new(worker: Rc<Worker>, context: Rc<ConnContext>) -> Option<Self> {
        let chain = context.listener.chain(context.chain)?;
        let Network::Http(http) = &chain.network else { return None };
        let http = http.clone();
        let current = RefCell::new(Rc::new(http.clone()));
        let current_version = Cell::new(u64::MAX);
        Some(Self { worker, context, http, current, current_version, orphaned: Cell::new(false) })
    }

    pub(crate) fn direction(&self) -> Direction {
        match self.context.listener.direction {
            // Istio's name for the traffic of a gateway, too.
            Direction::Outbound if self.worker.node.gateway => Direction::Gateway,
            direction => direction,
        }
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.context.tls.is_some()
    }

    /// The client showed a certificate that we verified.
    pub(crate) fn is_mtls(&self) -> bool {
        self.context.tls.as_ref().is_some_and(|tls| tls.mtls)
    }

    /// The client is a proxy of ours that lists how names were spelt.
    pub(crate) fn carries_spelling(&self) -> bool {
        let tls = self.context.tls.as_ref();
        tls.is_some_and(|tls| tls.mtls && tls.alpn.as_deref() == Some(SPELLING_ALPN))
    }

    /// The SPIFFE id of the client's verified certificate.
    pub(crate) fn peer_spiffe(&self) -> Option<&Arc<str>> {
        self.context.tls.as_ref().and_then(|tls| tls.peer_spiffe.as_ref())
    }

    /// Whether the connection may carry another request after its `requests`-th.
    pub(crate) fn keep_alive(&self, requests: u32) -> bool {
        let max = self.http.limits.requests_per_connection_max;
        max.is_none_or(|max| requests < max)
            && (!self.worker.drain.is_draining() || self.can_pass())
            && !self.is_expired()
            && !self.is_orphaned()
    }

    /// Whether a newer proxy takes the connection between two requests. TLS cannot be passed: its
    /// keys are in this process. Nor can what a PROXY header said, which the newer one would
    /// expect to read again.
    pub(crate) fn can_pass(&self) -> bool {
        self.worker.heir.is_there()
            && !self.is_tls()
            && !self.context.listener.inspectors.proxy_protocol
            && !self.is_orphaned()
    }

    /// How long the connection may idle.
    pub(crate) fn idle_limit(&self) -> Duration {
        self.http.timeouts.idle.unwrap_or(FOREVER)
    }

    /// When the connection is to end, if it has been idle since `since` and stays so.
    pub(crate) fn idle_due(&self, since: Instant) -> Instant {
        let idle_due = since + self.idle_limit();
        self.expires().map_or(idle_due, |expires| expires.min(idle_due))
    }

    /// When the connection is to end because of its age (`max_connection_duration`).
    pub(crate) fn expires(&self) -> Option<Instant> {
        let limit = self.http.timeouts.connection_duration?;
        self.context.accepted.checked_add(limit)
    }

    /// Whether the connection is older than it may be: it ends with the request at hand.
    pub(crate) fn is_expired(&self) -> bool {
        self.expires().is_some_and(|expires| expires <= Instant::now())
    }

    /// Whether the chain that took the connection is no longer configured: its listener is gone,
    /// or its port refuses plain text by now. The request at hand is served, as in Envoy, which
    /// drains the connections of a removed chain; then the connection ends, or a rule that came
    /// later would never reach it.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.refresh(&self.worker.tables());
        self.orphaned.get()
    }

    pub(crate) fn h1_limits(&self) -> Limits {
        Limits {
            head_bytes_max: self.http.limits.head_bytes_max as usize,
            headers_max: self.http.limits.headers_max as usize,
            request_line_bytes_max: self.worker.limits.url_bytes_max,
            ..Limits::DEFAULT
        }
    }

    /// The configuration for a request that sees `tables`: that of the chain with this
    /// connection's names, or the old one when there is none any more.
    pub(crate) fn http_now(&self, tables: &Tables) -> HttpNow {
        self.refresh(tables);
        self.current.borrow().clone()
    }

    fn refresh(&self, tables: &Tables) {
        if self.current_version.replace(tables.version) == tables.version {
            return;
        }
        let found = self.find_current(tables);
        self.orphaned.set(found.is_none());
        if let Some(http) = found {
            *self.current.borrow_mut() = Rc::new(http);
        }
    }

    fn find_current(&self, tables: &Tables) -> Option<Arc<HttpConfig>> {
        let listener = tables.listener(&self.context.listener.name)?;
        if Arc::ptr_eq(listener, &self.context.listener) {
            return Some(self.http.clone());
        }
        let old = self.context.listener.chain(self.context.chain)?;
        same_chain(listener, old, self.context.chain).and_then(|chain| match &chain.network {
            Network::Http(http) => Some(http.clone()),
            Network::Tcp(_) => None,
        })
    }
}

/// The chain that stands for `old` in a new version of its listener: of the same name and match,
/// at the same place if chains are unnamed.
fn same_chain<'l>(
    listener: &'l ListenerConfig,
    old: &FilterChain,
    index: usize,
) -> Option<&'l FilterChain> {
    let same = |chain: &&FilterChain| chain.name == old.name && chain.matches == old.matches;
    listener
        .chain(index)
        .filter(same)
        .or_else(|| listener.chains.iter().chain(&listener.default_chain).find(same))
}
