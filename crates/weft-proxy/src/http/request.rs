//! The path of one request, for every version and direction. Read it beside
//! `docs/life-of-a-request.md`: the steps of [`Served::run`] and [`answer`] are its chapters.
//!
//! What differs between inbound, outbound and gateway is in the three files of those names;
//! retries are in `attempt`, moving bytes in `exchange`.

use std::borrow::Cow;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use weft_http::h1::{Connection, Upgrade};
use weft_http::h2::ErrorCode;
use weft_http::{BodyLength, Known, Method, RequestHead, Version, rules};
use weft_telemetry::PeerInfo;
use weft_traffic::cors::CorsDecision;
use weft_traffic::headers::FormatContext;
use weft_traffic::listener::Direction;
use weft_traffic::rate_limit::Left;
use weft_traffic::route::{Found, HostRewrite, RouteResult};
use weft_traffic::{Action, HttpConfig, RouteAction, Tables};

use super::attempt::{self, Attempted};
use super::conn::HttpConn;
use super::downstream::Downstream;
use super::exchange::{Exchange, Limits, Tally, Tunnel};
use super::grpc_web::{self, Web};
use super::limits::StreamLimits;
use super::record::{Parties, Record, Response};
use super::span;
use super::why::{self, Way};
use super::{
    filter, gateway, grpc, head_rules, inbound, local_reply, outbound, rate_limit, spelling,
    upgrade,
};
use crate::error::{ErrorKind, ProxyError, Side};
use crate::upstream::Upstream;

/// A request as its connection read it.
pub(crate) struct Incoming {
    pub(crate) head: RequestHead,
    pub(crate) body: BodyLength,
    pub(crate) connection: Connection,
}

/// A request on its way.
pub(crate) struct Request {
    pub(crate) head: RequestHead,
    pub(crate) body: BodyLength,
    pub(crate) connection: Connection,
    /// The version the client spoke.
    pub(crate) version: Version,
    pub(crate) grpc: bool,
    /// The client's address as far as it can be trusted.
    pub(crate) client: IpAddr,
    /// What the calling proxy said of its workload (inbound).
    pub(crate) caller: Option<Arc<PeerInfo>>,
    /// Hop-by-hop fields are gone.
    pub(crate) stripped: bool,
    /// The client asks for provenance, and may.
    pub(crate) why: bool,
    /// The caller's span, if it has one.
    pub(crate) parent: Option<NonZeroU64>,
    /// A fault held it up.
    pub(crate) delayed: bool,
    /// How the names were spelt before they were lower-cased for an HTTP/2 endpoint.
    pub(crate) spelling: Option<Vec<u8>>,
}

/// One request while it is served, and what is recorded of it.
pub(crate) struct Served {
    request: Request,
    record: Record,
}

impl Served {
    pub(crate) fn new(incoming: Incoming, received: Instant, conn: &HttpConn) -> Self {
        let request = Request::new(incoming, conn);
        let record = Record::new(received, &request, conn);
        Self { request, record }
    }

    /// Answers it, or says why not. [`finish`](Self::finish) then records it, exactly once.
    #[expect(clippy::manual_async_fn, reason = "an async fn keeps what it is given twice")]
    pub(crate) fn run(
        &mut self,
        down: &mut Downstream<'_>,
        conn: &HttpConn,
    ) -> impl Future<Output = ()> {
        async move {
            let Err(error) = answer(down, &mut self.request, &mut self.record, conn).await else {
                return;
            };
            self.record.failed(&error);
            conn.worker.counters.limits.failed(&error);
            conn.worker.policy.note_failure(&error, &conn.worker.counters);
            if down.head_sent() || error.status() == 0 {
                down.abort(error.reset_code);
                return;
            }
            if error.side == Side::Downstream {
                // What follows on its connection is as doubtful: a refused CONNECT or upgrade
                // may have its tunnel's bytes behind it, which would be read as requests.
                down.close_after();
            }
            Box::pin(local_reply::error(down, &error, &mut self.record, conn)).await;
        }
    }

    pub(crate) fn finish(self, conn: &HttpConn) {
        self.record.finish(Some(&self.request), conn);
    }
}

// What is rare is boxed, here and below, and nothing is kept twice: every request under way holds
// this state.

/// Sanitize, match the route, run the filters, reach an endpoint, pass its response on.
#[expect(clippy::manual_async_fn, reason = "an async fn keeps what it is given twice")]
fn answer(
    down: &mut Downstream<'_>,
    request: &mut Request,
    record: &mut Record,
    conn: &HttpConn,
) -> impl Future<Output = Result<(), ProxyError>> {
    async move {
        let tables = conn.worker.tables();
        let http = conn.http_now(&tables);
        record.configured(&http);
        let Some(forward) = way(&tables, &http, down, request, record, conn).await? else {
            return Ok(());
        };
        let (tally, received) = (&mut record.tally, record.received);
        let mut exchange = exchange(down, tally, received, &forward, &http, request);
        if let Some(web) = record.web {
            exchange.translate(web);
        }
        let mut place = None;
        let attempts = &mut record.attempts;
        if let Err(error) =
            attempt::run(&forward, request, &mut exchange, attempts, &mut place).await
        {
            return Err(after_route(error, &forward.found, request, record, conn));
        }
        if let Some(attempted) = &mut place {
            let called = (&record.parties, &mut record.response, record.left.as_deref());
            deliver(attempted, &forward, request, &mut exchange, called).await?;
        }
        let now = conn.worker.tick();
        record.ended = Some(now);
        if let Some(Attempted { guard, upstream, answer, .. }) = place {
            // Its lines are slices of the connection's read buffer, which serves another request only
            // when nobody else has it.
            drop(answer);
            guard.finish();
            upstream.finish(now);
        }
        Ok(())
    }
}

/// Where the request goes; None when it was answered here.
async fn way<'t>(
    tables: &'t Tables,
    http: &'t Arc<HttpConfig>,
    down: &mut Downstream<'_>,
    request: &mut Request,
    record: &mut Record,
    conn: &'t HttpConn,
) -> Result<Option<attempt::Forward<'t>>, ProxyError> {
    sanitize(request, http, conn)?;
    record.called_by(request, conn);
    record.span = span::Notes::begin(http, &request.head, conn);
    note_way(request, record, conn, Way::default());

    let web = Web::of(http, &request.head);
    if let Some(web) = web {
        record.speaks_web(web, conn);
    }
    let routes = tables.route_table(&http.routes).ok_or(ErrorKind::NoRoute)?;
    let random = conn.worker.random();
    let found = match routes.route(&request.head, random) {
        RouteResult::Found(found) => found,
        RouteResult::NoHost | RouteResult::NoRoute(_) => return Err(ErrorKind::NoRoute.into()),
        RouteResult::RedirectToTls(_) => {
            let location = weft_traffic::route::to_https(&request.head);
            let head = local_reply::redirection(301, &location);
            Box::pin(local_reply::send(down, head, bytes::Bytes::new(), record, conn)).await?;
            return Ok(None);
        }
    };
    note_way(request, record, conn, Way { found: Some(&found), ..Way::default() });
    if let Some(log) = &mut record.tally.log {
        log.routed(&found, conn);
    }
    if let Some(span) = &mut record.span {
        span.routed(found.route.operation.as_ref());
    }
    if web.is_some() {
        Web::open(&mut request.head, &mut request.body);
        request.grpc = true;
    }
    let reply = filter::on_request(http, &found, request, record, conn).await;
    request.delayed = record.is_delayed();
    if let filter::Verdict::Reply { mut head, body, flags } = reply {
        if let Some(flags) = flags {
            edit_response(&found, request, &mut head, (None, Some(flags)), conn);
        }
        Box::pin(local_reply::send(down, *head, body, record, conn)).await?;
        return Ok(None);
    }
    if let Some(policy) = found.cors()
        && let CorsDecision::Allowed { origin } = policy.on_request(&request.head, 0)
    {
        record.cors = Some(Box::new((policy.clone(), bytes::Bytes::copy_from_slice(origin))));
    }
    let action = match &found.route.action {
        Action::Forward(action) => action,
        Action::Redirect(redirect) => {
            let location = redirect.location(found.route, &request.head);
            let mut head = local_reply::redirection(redirect.status, &location);
            edit_response(&found, request, &mut head, (None, None), conn);
            Box::pin(local_reply::send(down, head, bytes::Bytes::new(), record, conn)).await?;
            return Ok(None);
        }
        Action::Direct { status, body } => {
            let mut head = rules::local_reply(*status, body.len());
            filter::on_response(&found, request, &mut head);
            edit_response(&found, request, &mut head, (None, None), conn);
            Box::pin(local_reply::send(down, head, body.clone(), record, conn)).await?;
            return Ok(None);
        }
        Action::NonForwarding => return Err(ErrorKind::NoRoute.into()),
    };
    allow_upgrade(request, action, http)
        .map_err(|error| after_route(error, &found, request, record, conn))?;
    let cluster = cluster(tables, &found, action, request)
        .map_err(|error| after_route(error, &found, request, record, conn))?;
    record.calls(cluster, request, conn);
    if let Some(log) = &mut record.tally.log {
        log.calls(&found, cluster, conn);
    }
    if let Some(span) = &mut record.span {
        span.calls(cluster);
    }
    let way = Way { found: Some(&found), cluster: Some(cluster), endpoint: None };
    note_way(request, record, conn, way);
    edit_request(&found, action, request, conn);
    Ok(Some(attempt::Forward { found, action, cluster, conn }))
}

/// What moves the request and its response, with the limits of its route.
#[inline]
fn exchange<'x, 'c>(
    down: &'x mut Downstream<'c>,
    tally: &'x mut Tally,
    received: Instant,
    forward: &attempt::Forward<'_>,
    http: &HttpConfig,
    request: &mut Request,
) -> Exchange<'x, 'c> {
    let attempt::Forward { found, action, conn, .. } = forward;
    let timeouts = action.timeouts.for_request(
        &request.head.headers,
        request.grpc,
        found.retry().and_then(|policy| policy.per_try_timeout),
        http.timeouts.stream_duration,
        conn.direction() != Direction::Gateway,
    );
    if conn.direction() != Direction::Gateway {
        gateway::strip_instructions(&mut request.head.headers);
    }
    let tunnel = match (request.connection.upgrade, request.body.is_empty()) {
        (None, _) => Tunnel::No,
        (Some(_), true) => Tunnel::Bare,
        (Some(_), false) => Tunnel::AfterContent,
    };
    let limits = Limits::new(timeouts, received);
    let stall = conn.worker.limits.client_stall;
    let stream = StreamLimits::new(&http.timeouts, action.timeouts.idle, stall, received);
    let mut exchange = Exchange::new(down, tally, limits, stream, tunnel);
    exchange.spelling.down = conn.carries_spelling();
    exchange.spelling.lower = conn.worker.policy.lowercase_header_names;
    exchange
}

/// Response filters, then the response itself.
async fn deliver(
    attempted: &mut Attempted,
    forward: &attempt::Forward<'_>,
    request: &Request,
    exchange: &mut Exchange<'_, '_>,
    (parties, response, left): (&Parties, &mut Response, Option<&Left>),
) -> Result<(), ProxyError> {
    let conn = forward.conn;
    let Attempted { upstream, answer, endpoint, guard, set_cookie } = attempted;
    let Some(answer) = answer else { return Err(ErrorKind::UpstreamProtocol.into()) };
    let head = &mut answer.head;
    let mut body = answer.body;
    let to = exchange.down.version();
    if to != Version::H11 && !answer.body.is_empty() && rules::is_transfer_coded(&head.headers) {
        // Only chunked HTTP/1.1 can say that the content is compressed for the transfer alone.
        return Err(ProxyError::new(ErrorKind::UpstreamProtocol)
            .with_source("a transfer coding that the client's version cannot carry"));
    }
    conn.worker.policy.note_response(&head.headers, &conn.worker.counters);
    let how = (exchange.spelling.up, exchange.spelling.lower);
    spelling::received(&mut head.headers, how, None, answer.body);
    rules::strip_response(&mut head.headers, &answer.connection, to);
    response.peer = match conn.direction() {
        Direction::Inbound => inbound::on_response(head, request, conn),
        Direction::Outbound | Direction::Gateway => {
            outbound::on_response(head, endpoint, &guard.facts.session, conn)
        }
    };
    if let Some(cookie) = set_cookie.take() {
        head.headers.append("set-cookie", cookie.value);
    }
    respond(&forward.found, request, head, conn);
    if let Some(left) = left {
        rate_limit::tell(*left, &mut head.headers);
    }
    local_reply::name_server(&mut head.headers, &conn.http.server_header);
    if request.why {
        let (found, cluster) = (Some(&forward.found), Some(&**forward.cluster));
        let way = Way { found, cluster, endpoint: Some(endpoint) };
        head.headers.append(Known::XWeftWhy.name(), why::line(conn, way));
    }
    response.status = head.status;
    if let Some(log) = &mut exchange.tally.log {
        log.answered(head, &guard.facts, upstream.version(), endpoint);
    }
    if request.grpc {
        response.grpc_status = grpc::status(&head.headers);
    }
    if head.status == 101 {
        if request.connection.upgrade.is_none() {
            return Err(ProxyError::new(ErrorKind::UpstreamProtocol)
                .with_source("101 for a request that asked for no upgrade"));
        }
        return Box::pin(switch_protocols(head, upstream, exchange, forward)).await;
    }
    // An error before the request's end: its client will hardly send the rest only to be heard.
    let early = head.status >= 400 && !exchange.down.input_done();
    if early || !conn.keep_alive(0) {
        exchange.down.close_after();
    }
    if let Some(web) = exchange.web() {
        let foreign = !body.is_empty() && Web::is_foreign(head);
        web.answer(head);
        if foreign {
            let text = exchange.take_text(upstream, grpc_web::MESSAGE_BYTES_MAX);
            // Boxed: rare, and this future is every request's.
            Web::explain(head, &Box::pin(text).await?);
            body = BodyLength::None;
        }
        response.grpc_status = grpc::status(&head.headers);
        if !body.is_empty() {
            body = BodyLength::Streamed;
        }
    }
    // From here on the response can only be completed or cut.
    exchange.settle();
    spelling::sending(&mut head.headers, exchange.spelling.down);
    exchange.down.send_head(head, body)?;
    let reporting = request.grpc.then(|| parties.reporting(response, conn));
    exchange.relay(upstream, reporting).await
}

async fn switch_protocols(
    head: &mut weft_http::ResponseHead,
    upstream: &mut Upstream,
    exchange: &mut Exchange<'_, '_>,
    forward: &attempt::Forward<'_>,
) -> Result<(), ProxyError> {
    spelling::sending(&mut head.headers, exchange.spelling.down);
    exchange.down.send_head(head, BodyLength::None)?;
    // A tunnel has no message to be incomplete: however it ends, it has ended.
    let idle = forward.action.timeouts.idle.unwrap_or(forward.conn.http.timeouts.stream_idle);
    let idle = StreamLimits::idle_only(idle);
    let ended = upgrade::tunnel(exchange.down, upstream, exchange.tally, idle).await;
    let mut code = None;
    if let Err(error) = ended {
        upstream.cancel(&error);
        if let ErrorKind::StreamIdle(_) = error.kind {
            return Err(error);
        }
        tracing::debug!(%error, "tunnel ended");
        // RFC 8441 §5: what a reset is to TCP.
        code = Some(error.reset_code.unwrap_or(ErrorCode::CANCEL.0));
    }
    // What an HTTP/2 stream was told to its end still has to leave.
    if code.is_some() || exchange.down.version() != Version::H2 {
        exchange.down.abort(code);
    }
    Ok(())
}

impl Request {
    fn new(incoming: Incoming, conn: &HttpConn) -> Self {
        let Incoming { head, body, connection } = incoming;
        Self {
            version: head.version,
            grpc: rules::is_grpc(&head.headers),
            client: conn.context.peer.ip(),
            caller: None,
            stripped: false,
            why: false,
            parent: None,
            delayed: false,
            spelling: None,
            head,
            body,
            connection,
        }
    }
}

/// What a reply made here will say of the way so far.
fn note_way(request: &Request, record: &mut Record, conn: &HttpConn, way: Way<'_>) {
    if request.why {
        record.why = Some(why::line(conn, way).into());
    }
}

/// Makes the head say only what may be believed. What that is depends on the direction.
fn sanitize(request: &mut Request, http: &HttpConfig, conn: &HttpConn) -> Result<(), ProxyError> {
    if request.head.method == Method::Connect && !http.connect {
        return Err(ErrorKind::UpgradeRefused.into());
    }
    let RequestHead { headers, authority, .. } = &mut request.head;
    let how = (conn.carries_spelling(), conn.worker.policy.lowercase_header_names);
    spelling::received(headers, how, authority.as_deref(), request.body);
    head_rules::apply(&mut request.head, http, conn)?;
    request.why = why::asked(&mut request.head, conn);
    let rules = &http.client_address;
    request.client = rules::client_address(
        &request.head.headers,
        conn.context.peer.ip(),
        rules.xff_trusted_hops,
        rules.use_remote_address,
    );
    match conn.direction() {
        Direction::Inbound => inbound::sanitize(request, http, conn),
        Direction::Outbound => outbound::sanitize(request, http, conn),
        Direction::Gateway => gateway::sanitize(request, http, conn),
    }
    if request.version != Version::H2
        && let Some(scheme) = rules::forwarded_scheme(&request.head.headers)
    {
        request.head.scheme = scheme;
    }
    Ok(())
}

/// An upgrade goes through only where the configuration names it; one we do not know is not
/// passed on, and the request is then an ordinary one (RFC 9110 §7.8).
fn allow_upgrade(
    request: &mut Request,
    action: &RouteAction,
    http: &HttpConfig,
) -> Result<(), ProxyError> {
    match request.connection.upgrade {
        None => Ok(()),
        Some(Upgrade::WebSocket) if action.websocket.unwrap_or(http.websocket) => Ok(()),
        Some(Upgrade::WebSocket) => Err(ErrorKind::UpgradeRefused.into()),
        // An extended CONNECT is for its protocol or for nothing.
        Some(Upgrade::Other) if request.version == Version::H2 => {
            Err(ErrorKind::UpgradeRefused.into())
        }
        Some(Upgrade::Other) => {
            request.connection.upgrade = None;
            Ok(())
        }
    }
}

fn cluster<'t>(
    tables: &'t Tables,
    found: &Found<'_>,
    action: &RouteAction,
    request: &Request,
) -> Result<&'t Arc<weft_traffic::Cluster>, ProxyError> {
    let name = found.cluster.and_then(|cluster| cluster.resolve(&request.head));
    match name.and_then(|name| tables.cluster(name)) {
        Some(cluster) => Ok(cluster),
        None => Err(match action.cluster_not_found_status {
            503 => ErrorKind::NoCluster.into(),
            status => ErrorKind::NoClusterWith(status).into(),
        }),
    }
}

/// The route's edits, then its rewrites: an edit may read what the client sent.
fn edit_request(found: &Found<'_>, action: &RouteAction, request: &mut Request, conn: &HttpConn) {
    let mut edits = found.request_edits().filter(|edits| !edits.is_empty()).peekable();
    if edits.peek().is_some() {
        let mut context = format_context(found, request, conn);
        context.response_flags = request.delayed.then_some("DI");
        edits.for_each(|edits| edits.apply_request(&mut request.head, &context));
    }
    let head = &mut request.head;
    if let (Some(rewrite), weft_http::Target::Path(path)) = (&action.path_rewrite, &head.target) {
        let rewritten = rewrite.apply(found.route, path);
        head.headers.set_known(Known::XEnvoyOriginalPath, path);
        head.target = weft_http::Target::Path(rewritten);
    }
    let host = match found.cluster.and_then(|cluster| cluster.host_rewrite) {
        Some(host) => Some(host.clone()),
        None => match &action.host_rewrite {
            Some(HostRewrite::Literal(host)) => Some(host.clone()),
            Some(HostRewrite::Header(name)) => head.headers.get_bytes(&**name),
            Some(HostRewrite::Path(substitution)) => Some(substitution.replace(head.path()).into()),
            // The endpoint's name is known once it is chosen.
            Some(HostRewrite::Auto) | None => None,
        },
    };
    if let Some(host) = host {
        if action.append_x_forwarded_host && !head.authority().is_empty() {
            let old = head.authority.clone().unwrap_or_default();
            head.headers.append("x-forwarded-host", old);
        }
        let old = head.authority.take().unwrap_or_default();
        // An edit of `Host` tells nobody, as in Envoy.
        if action.host_rewrite.is_some() {
            head.headers.set("x-envoy-original-host", old);
        }
        head.authority = Some(host);
    }
}

fn respond(
    found: &Found<'_>,
    request: &Request,
    head: &mut weft_http::ResponseHead,
    conn: &HttpConn,
) {
    filter::on_response(found, request, head);
    edit_response(found, request, head, (Some(head.status), None), conn);
}

/// What the route's rules change in a response. `said` is what `%RESPONSE_CODE%`, which Envoy does not
/// know yet in a reply made here, and `%RESPONSE_FLAGS%` say.
fn edit_response(
    found: &Found<'_>,
    request: &Request,
    head: &mut weft_http::ResponseHead,
    said: (Option<u16>, Option<&'static str>),
    conn: &HttpConn,
) {
    let mut edits = found.response_edits().filter(|edits| !edits.is_empty()).peekable();
    if edits.peek().is_some() {
        let mut context = format_context(found, request, conn);
        let (code, flag) = said;
        let flags = match (request.delayed, flag) {
            (false, flag) => flag.map(Cow::Borrowed),
            (true, None) => Some(Cow::Borrowed("DI")),
            (true, Some(flag)) => Some(Cow::Owned(format!("DI,{flag}"))),
        };
        (context.response_code, context.response_flags) = (code, flags.as_deref());
        let headers = &mut head.headers;
        edits.for_each(|edits| edits.apply_response(headers, Some(&request.head), &context));
    }
}

/// A reply to a failure bears what the route's rules change in responses, like any other.
#[cold]
fn after_route(
    error: ProxyError,
    found: &Found<'_>,
    request: &Request,
    record: &mut Record,
    conn: &HttpConn,
) -> ProxyError {
    if error.status() != 0 && found.response_edits().any(|edits| !edits.is_empty()) {
        let mut head = local_reply::head_of(&error, record.is_grpc());
        edit_response(found, request, &mut head, (None, Some(error.flag())), conn);
        record.reply = Some(Box::new(head));
    }
    error
}

pub(crate) fn format_context<'a>(
    found: &Found<'a>,
    request: &Request,
    conn: &'a HttpConn,
) -> FormatContext<'a> {
    let context = &conn.context;
    FormatContext {
        protocol: Some(request.version),
        downstream_remote: Some(match request.client == context.peer.ip() {
            true => context.peer,
            // Of a client behind a proxy the port is not known.
            false => (request.client, 0).into(),
        }),
        downstream_direct_remote: Some(context.peer),
        downstream_local: Some(context.local),
        upstream_cluster: found.cluster.and_then(|cluster| cluster.name).map(|name| &**name),
        route_name: Some(&found.route.name),
        server_name: context.sni.as_deref(),
        peer_uri_san: conn.peer_spiffe().map(|id| &**id),
        start_time: Some(SystemTime::now()),
        ..FormatContext::default()
    }
}
