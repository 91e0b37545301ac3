//! Random requests that meet the random rules.

use std::net::SocketAddr;

use http::Method;
use weft_testkit::client::{self, Reply, Wire};

use super::{
    dice::Dice,
    generate::{HEADERS, METHODS, ORIGINS, PATHS, QUERIES, VALUES},
};

/// One request, sent to both proxies.
#[derive(Debug, Clone)]
pub struct Ask {
    pub wire: Wire,
    pub method: Method,
    pub target: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: &'static str,
}

pub fn ask(dice: &mut Dice, host: &str) -> Ask {
    let mut headers = vec![("host", authority(dice, host))];
    for name in HEADERS {
        if dice.one_in(3) {
            headers.push((name, dice.pick(VALUES).to_owned()));
        }
    }
    let mut method = dice.pick(METHODS);
    if dice.one_in(5) {
        headers.push(("origin", dice.pick(ORIGINS).to_owned()));
        if dice.one_in(2) {
            method = "OPTIONS";
            headers.push(("access-control-request-method", "PUT".to_owned()));
        }
    }
    let wire = if dice.one_in(3) { Wire::H2 } else { Wire::H1 };
    if wire == Wire::H2 && dice.one_in(3) {
        method = "POST";
        headers.push(("content-type", "application/grpc".to_owned()));
        headers.push(("te", "trailers".to_owned()));
    }
    trouble(dice, method, &mut headers);
    let body = if matches!(method, "POST" | "PUT") { dice.pick(&["", "four"]) } else { "" };
    let method = Method::from_bytes(method.as_bytes()).expect("a plain method");
    Ask { wire, method, target: target(dice), headers, body }
}

/// What the application is to do wrong, and what the client says about it.
fn trouble(dice: &mut Dice, method: &str, headers: &mut Vec<(&'static str, String)>) {
    match dice.below(12) {
        0 | 1 => {
            // Ours repeats what may be repeated when a kept connection breaks; Envoy does not.
            let codes = ["503", "500", "409", "429", "404", "reset"];
            let how = dice.pick(&codes[..if method == "POST" { 6 } else { 5 }]);
            headers.push(("x-fail", format!("{how}:{}", 1 + dice.below(3))));
        }
        2 => headers.push(("x-sleep", "1000".to_owned())),
        _ => {}
    }
    match dice.below(24) {
        0 => headers.push(("x-envoy-original-path", "/forged".to_owned())),
        1 => headers.push(("x-envoy-retry-on", "5xx".to_owned())),
        2 => headers.push(("x-envoy-max-retries", "1".to_owned())),
        3 => headers.push(("x-forwarded-for", "9.8.7.6, 10.0.0.1".to_owned())),
        4 => headers.push(("x-forwarded-proto", "https".to_owned())),
        5 => headers.push(("x-request-id", "chosen-by-the-client".to_owned())),
        _ => {}
    }
}

fn authority(dice: &mut Dice, host: &str) -> String {
    match dice.below(8) {
        0 => host.to_uppercase(),
        1 => format!("{host}:80"),
        _ => host.to_owned(),
    }
}

fn target(dice: &mut Dice) -> String {
    let mut target = dice.pick(PATHS).to_owned();
    let mut separator = '?';
    for name in QUERIES {
        if dice.one_in(3) {
            let value = dice.pick(&["1", "42", "abc", "", "a%20b", "1&q=2"]);
            target = format!("{target}{separator}{name}={value}");
            separator = '&';
        }
    }
    target
}

impl Ask {
    /// Sends it marked with `id` and the proxy's `twin` name, which the applications record.
    pub async fn send(&self, to: SocketAddr, id: &str, twin: &str) -> Result<Reply, String> {
        let mut headers: Vec<(&str, &str)> =
            self.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        headers.extend([("x-id", id), ("x-twin", twin)]);
        let method = self.method.clone();
        client::send(self.wire, to, method, &self.target, &headers, self.body.into())
            .await
            .map_err(|error| format!("{error:#}"))
    }
}
