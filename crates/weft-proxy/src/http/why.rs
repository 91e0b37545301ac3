//! Provenance of one request, for those who ask: `x-weft-why: 1` is answered by a field of the same
//! name that says which listener, route, cluster and endpoint it went through here, and which
//! resources in which generation decided that. Each proxy on the way adds its line, the one nearest
//! to the application first.
//!
//! What the mesh looks like inside is nobody's business outside: a proxy answers, and passes the
//! question on, only as its policy says (`--why`).

use std::fmt::Write as _;

use weft_http::{Known, RequestHead};
use weft_traffic::listener::Direction;
use weft_traffic::route::Found;
use weft_traffic::{Cluster, Endpoint};

use super::conn::HttpConn;
use super::policy::Why;

/// Whether the client asks and may. The question of one who may not goes no further.
pub(crate) fn asked(head: &mut RequestHead, conn: &HttpConn) -> bool {
    let Some(value) = head.headers.get_known(Known::XWeftWhy) else { return false };
    let wanted = value == b"1";
    let allowed = match conn.worker.policy.why {
        Why::Never => false,
        Why::Outbound => conn.direction() == Direction::Outbound,
        Why::Everywhere => true,
    };
    if !allowed {
        head.headers.remove_known(Known::XWeftWhy);
    }
    wanted && allowed
}

/// As far as a request has come.
#[derive(Clone, Copy, Default)]
pub(crate) struct Way<'w> {
    pub(crate) found: Option<&'w Found<'w>>,
    pub(crate) cluster: Option<&'w Cluster>,
    pub(crate) endpoint: Option<&'w Endpoint>,
}

/// The answer: `key="value"` pairs as RFC 8941 writes a dictionary.
pub(crate) fn line(conn: &HttpConn, way: Way<'_>) -> String {
    let mut line = Line(String::new());
    line.add("listener", &conn.context.listener.name);
    if let Some(found) = way.found {
        let route = found.route;
        line.add("routes", &found.table.name);
        line.add("host", &found.host.name);
        if !route.name.is_empty() {
            line.add("route", &route.name);
        }
        if let Some(origin) = &route.origin {
            let resource = resource(origin);
            line.add("rule", &format!("{resource} {}", route.rule.as_deref().unwrap_or_default()));
            line.add_some("rule-generation", route.generation.as_deref());
        }
    }
    if let Some(cluster) = way.cluster {
        line.add("cluster", &cluster.name);
        let istio = &cluster.config.istio;
        if let Some(config) = &istio.config {
            line.add("policy", &resource(config));
            line.add_some("policy-generation", istio.generation.as_deref());
        }
    }
    if let Some(endpoint) = way.endpoint {
        line.add("endpoint", &endpoint.address.to_string());
    }
    line.0
}

struct Line(String);

impl Line {
    fn add(&mut self, key: &str, value: &str) {
        let separator = if self.0.is_empty() { "" } else { ", " };
        let _ = write!(self.0, "{separator}{key}=\"");
        for char in value.chars() {
            match char {
                '"' | '\\' => self.0.extend(['\\', char]),
                ' '..='~' => self.0.push(char),
                // Strings of a dictionary are ASCII.
                _ => self.0.push('?'),
            }
        }
        self.0.push('"');
    }

    fn add_some(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.add(key, value);
        }
    }
}

/// `/apis/GROUP/v1/namespaces/shop/virtual-service/reviews` as `VirtualService shop/reviews`.
fn resource(path: &str) -> String {
    let Some((_, rest)) = path.split_once("/namespaces/") else { return path.to_owned() };
    let mut parts = rest.splitn(3, '/');
    let (Some(namespace), Some(kind), Some(name)) = (parts.next(), parts.next(), parts.next())
    else {
        return path.to_owned();
    };
    let mut camel = String::new();
    for word in kind.split('-') {
        let mut chars = word.chars();
        camel.extend(chars.next().map(|first| first.to_ascii_uppercase()));
        camel.push_str(chars.as_str());
    }
    format!("{camel} {namespace}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_named_as_people_do() {
        let path = "/apis/networking.istio.io/v1/namespaces/shop/virtual-service/reviews";
        assert_eq!(resource(path), "VirtualService shop/reviews");
        assert_eq!(resource("something else"), "something else");
    }

    #[test]
    fn values_cannot_leave_their_quotes() {
        let mut line = Line(String::new());
        line.add("a", "x\"y\\z\r\nü");
        line.add("b", "");
        assert_eq!(line.0, r#"a="x\"y\\z???", b="""#);
    }
}
