//! Where does a request land? YAML → snapshot → translate → lower → our routing code, no socket.

use bytes::Bytes;
use weft_http::{HeaderList, Method, RequestHead, Scheme, Target, Version};
use weft_model::Snapshot;
use weft_traffic::headers::FormatContext;
use weft_traffic::route::{Found, HostRewrite};
use weft_traffic::{Action, Network, RouteAction, RouteResult, Tables, lower};
use weft_translate::{ProxyView, endpoints, translate};
use weft_xds::pb::envoy::config::cluster::v3::Cluster;
use weft_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use weft_xds::pb::envoy::config::listener::v3::Listener;
use weft_xds::pb::envoy::config::route::v3::RouteConfiguration;

/// The tables that a Weft proxy builds from what it is sent. Anything it would refuse is an error.
pub fn tables(snapshot: &Snapshot, view: &ProxyView) -> Result<Tables, String> {
    let (resources, _) = translate(snapshot, view);
    let mut tables = Tables::default();
    for resource in &resources.clusters {
        let cluster: Cluster = resource.decode().expect("a cluster");
        tables = tables.with_cluster(lower::cluster(&cluster).map_err(|e| e.to_string())?);
        if let Some(assignment) = endpoints(snapshot, view, &resource.name) {
            let assignment: ClusterLoadAssignment = assignment.decode().expect("an assignment");
            let set = lower::endpoints(&assignment).map_err(|e| e.to_string())?;
            tables = tables.with_endpoints(&resource.name, set);
        }
    }
    for resource in &resources.listeners {
        let listener: Listener = resource.decode().expect("a listener");
        tables = tables.with_listener(lower::listener(&listener).map_err(|e| e.to_string())?);
    }
    for resource in &resources.routes {
        let routes: RouteConfiguration = resource.decode().expect("routes");
        tables = tables.with_route(lower::route_config(&routes).map_err(|e| e.to_string())?);
    }
    Ok(tables)
}

/// `GET http://host:port/path?query name=value …`; the scheme may be left out.
pub fn request(text: &str) -> RequestHead {
    let mut words = text.split_whitespace();
    let method = words.next().expect("a method");
    let url = words.next().expect("a URL");
    let (scheme, rest) = match url.split_once("://") {
        Some(("https", rest)) => (Scheme::Https, rest),
        Some((_, rest)) => (Scheme::Http, rest),
        None => (Scheme::Http, url),
    };
    let path_start = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(path_start);
    let mut headers = HeaderList::new();
    for word in words {
        let (name, value) = word.split_once('=').expect("name=value");
        headers.append(name, value);
    }
    RequestHead {
        method: Method::from_bytes(method.as_bytes()),
        scheme,
        authority: Some(Bytes::copy_from_slice(authority.as_bytes())),
        target: Target::Path(Bytes::copy_from_slice(if path.is_empty() {
            b"/"
        } else {
            path.as_bytes()
        })),
        version: Version::H11,
        headers,
    }
}

/// One line: the cluster and what happens on the way, or the answer. Cluster names without the
/// cluster domain.
pub fn land(tables: &Tables, routes: &str, text: &str, random: u64) -> String {
    let Some(table) = tables.route(routes) else { return format!("no routes {routes}") };
    let mut head = request(text);
    let line = match table.route(&head.clone(), random) {
        RouteResult::NoHost => "404 no host".to_owned(),
        RouteResult::NoRoute(_) => "404 no route".to_owned(),
        RouteResult::RedirectToTls(_) => {
            format!("301 {}", String::from_utf8_lossy(&weft_traffic::route::to_https(&head)))
        }
        RouteResult::Found(found) => describe(&found, &mut head),
    };
    line.trim_end().replace(".svc.cluster.local", "")
}

fn describe(found: &Found<'_>, head: &mut RequestHead) -> String {
    match &found.route.action {
        Action::Forward(action) => forwarded(found, action, head),
        Action::Redirect(redirect) => {
            let location = redirect.location(found.route, head);
            format!("{} {}", redirect.status, String::from_utf8_lossy(&location))
        }
        Action::Direct { status, body } => format!("{status} {}", String::from_utf8_lossy(body)),
        Action::NonForwarding => "non-forwarding".to_owned(),
    }
}

fn forwarded(found: &Found<'_>, action: &RouteAction, head: &mut RequestHead) -> String {
    let cluster = found.cluster.expect("a forwarding route has a cluster");
    let mut line = cluster.resolve(head).unwrap_or("?").trim_start_matches("outbound|").to_owned();
    if let Some(timeout) = action.timeouts.request {
        line.push_str(&format!(" timeout={timeout:?}"));
    }
    if let Some(retry) = found.retry() {
        line.push_str(&format!(" retries={}", retry.retries_max));
        if let Some(limit) = retry.per_try_timeout {
            line.push_str(&format!("@{limit:?}"));
        }
        if !retry.status_codes.is_empty() {
            line.push_str(&format!(" on={:?}", retry.status_codes));
        }
    }
    if let Some(rewrite) = &action.path_rewrite {
        let path = rewrite.apply(found.route, head.path_and_query());
        line.push_str(&format!(" path={}", String::from_utf8_lossy(&path)));
    }
    let host = cluster.host_rewrite.or(match &action.host_rewrite {
        Some(HostRewrite::Literal(host)) => Some(host),
        _ => None,
    });
    if let Some(host) = host {
        line.push_str(&format!(" host={}", String::from_utf8_lossy(host)));
    }
    if let Some(fault) = found.fault() {
        let delay = fault.delay.as_ref().map(|delay| delay.duration);
        let abort = fault.abort.as_ref().map(|abort| abort.kind);
        line.push_str(&format!(" fault={delay:?},{abort:?}"));
    }
    if found.cors().is_some() {
        line.push_str(" cors");
    }
    line.push_str(&edited(found, head));
    line
}

/// Header edits as `+name=value` and `-name`, response edits after `<`.
fn edited(found: &Found<'_>, head: &RequestHead) -> String {
    let mut line = String::new();
    let mut after = head.clone();
    for edits in found.request_edits() {
        edits.apply_request(&mut after, &FormatContext::default());
    }
    line.push_str(&difference(&head.headers, &after.headers));
    let before = HeaderList::new();
    let mut response = HeaderList::new();
    for edits in found.response_edits() {
        edits.apply_response(&mut response, Some(head), &FormatContext::default());
    }
    let response = difference(&before, &response);
    if !response.is_empty() {
        line.push_str(&format!(" <{response}"));
    }
    line
}

fn difference(before: &HeaderList, after: &HeaderList) -> String {
    let list = |headers: &HeaderList| -> Vec<String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        headers.iter().map(|h| format!("{}={}", text(h.name), text(h.value))).collect()
    };
    let (before, after) = (list(before), list(after));
    let added = after.iter().filter(|h| !before.contains(h)).map(|h| format!(" +{h}"));
    let removed = before
        .iter()
        .filter(|h| !after.contains(h))
        .map(|h| format!(" -{}", h.split('=').next().unwrap_or_default()));
    added.chain(removed).collect()
}

/// The TCP clusters (and weights) of the chain a connection gets: `a:80 b:20`.
pub fn tcp_clusters(network: &Network) -> String {
    let Network::Tcp(tcp) = network else { return "http".to_owned() };
    match &tcp.clusters {
        weft_traffic::route::ClusterChoice::Weighted(weighted) => {
            let parts: Vec<_> =
                weighted.iter().map(|c| format!("{}:{}", c.name, c.weight)).collect();
            parts.join(" ")
        }
        one => one.names().map(|name| name.to_string()).collect(),
    }
    .replace(".svc.cluster.local", "")
}
