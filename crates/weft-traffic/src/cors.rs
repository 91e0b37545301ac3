//! Cross-origin resource sharing, as Envoy's cors filter decides it.

use weft_http::{HeaderList, Method, RequestHead};

use crate::matcher::{Fraction, StringMatch};

/// The filter itself has no settings: policies sit on routes and virtual hosts.
#[derive(Debug, Clone, Default)]
pub struct CorsFilter {}

/// `CorsPolicy`.
#[derive(Debug, Clone)]
pub struct CorsPolicy {
    pub allow_origins: Vec<StringMatch>,
    /// Comma-separated lists, sent as they are; empty: header not sent.
    pub allow_methods: Box<str>,
    pub allow_headers: Box<str>,
    pub expose_headers: Box<str>,
    pub max_age: Box<str>,
    pub allow_credentials: bool,
    pub allow_private_network: bool,
    /// A preflight from an unknown origin goes upstream (Envoy's default) instead of getting 200.
    pub forward_not_matching: bool,
    /// Part of the requests that the policy is enforced for.
    pub enabled: Fraction,
}

/// What the filter decided about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CorsDecision<'r> {
    /// No `origin`, or the origin is not allowed: the request goes on untouched.
    Pass,
    /// The request goes on; call [`CorsPolicy::on_response`] with this origin.
    Allowed { origin: &'r [u8] },
    /// Answer 200 with the headers from [`CorsPolicy::preflight_headers`].
    Preflight { origin: &'r [u8], private_network: bool },
    /// Answer 200 with [`CorsPolicy::refusal_headers`]: the browser refuses.
    PreflightRefused,
}

impl CorsPolicy {
    /// Decides on a request; `random` draws whether the policy is enforced.
    pub fn on_request<'r>(&self, head: &'r RequestHead, random: u64) -> CorsDecision<'r> {
        let Some(origin) = head.headers.get("origin") else { return CorsDecision::Pass };
        if origin.is_empty() || !self.enabled.hit(random) {
            return CorsDecision::Pass;
        }
        let allowed = self.allow_origins.iter().any(|matcher| matcher.is_match(origin));
        let asked = head.headers.get("access-control-request-method");
        let preflight =
            head.method == Method::Options && asked.is_some_and(|method| !method.is_empty());
        match (allowed, preflight) {
            (true, true) => {
                let wish = head.headers.get("access-control-request-private-network");
                let private_network = self.allow_private_network && wish == Some(b"true");
                CorsDecision::Preflight { origin, private_network }
            }
            (true, false) => CorsDecision::Allowed { origin },
            (false, true) if !self.forward_not_matching => CorsDecision::PreflightRefused,
            (false, _) => CorsDecision::Pass,
        }
    }

    /// Headers of the answer to a preflight.
    pub fn preflight_headers(&self, origin: &[u8], private_network: bool) -> HeaderList {
        let mut headers = self.refusal_headers();
        self.on_response(origin, &mut headers);
        if private_network {
            headers.set("access-control-allow-private-network", "true");
        }
        headers
    }

    /// Headers of the answer to a preflight from an unknown origin: all but the leave.
    pub fn refusal_headers(&self) -> HeaderList {
        let mut headers = HeaderList::new();
        if self.allow_credentials {
            headers.set("access-control-allow-credentials", "true");
        }
        let lists = [
            ("access-control-allow-methods", &self.allow_methods),
            ("access-control-allow-headers", &self.allow_headers),
            ("access-control-max-age", &self.max_age),
        ];
        for (name, value) in lists.into_iter().filter(|(_, value)| !value.is_empty()) {
            headers.set(name, value.as_bytes());
        }
        headers
    }

    /// Adds what the browser needs to a response to an allowed origin.
    pub fn on_response(&self, origin: &[u8], headers: &mut HeaderList) {
        headers.set("access-control-allow-origin", origin);
        if self.allow_credentials {
            headers.set("access-control-allow-credentials", "true");
        }
        if !self.expose_headers.is_empty() {
            headers.set("access-control-expose-headers", self.expose_headers.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> CorsPolicy {
        CorsPolicy {
            allow_origins: vec![StringMatch::exact("https://a.com")],
            allow_methods: "GET,POST".into(),
            allow_headers: "x-a".into(),
            expose_headers: "x-b".into(),
            max_age: "60".into(),
            allow_credentials: true,
            allow_private_network: false,
            forward_not_matching: true,
            enabled: Fraction::ALWAYS,
        }
    }

    fn decide(policy: &CorsPolicy, method: &str, headers: &[(&str, &str)]) -> String {
        let head = crate::route::test_head(method, "b.com", "/", headers);
        format!("{:?}", policy.on_request(&head, 0)).split([' ', '{']).next().unwrap().to_owned()
    }

    #[test]
    fn decisions() {
        let (good, bad) = (("Origin", "https://a.com"), ("origin", "https://evil.com"));
        let asks = ("access-control-request-method", "PUT");
        let open = policy();
        let strict = CorsPolicy { forward_not_matching: false, ..policy() };
        let off = CorsPolicy { enabled: Fraction::NEVER, ..policy() };
        for (policy, method, headers, expect) in [
            (&open, "GET", &[good][..], "Allowed"),
            (&open, "GET", &[], "Pass"),
            (&open, "GET", &[bad], "Pass"),
            (&open, "OPTIONS", &[good, asks], "Preflight"),
            (&open, "OPTIONS", &[good], "Allowed"),
            (&open, "OPTIONS", &[bad, asks], "Pass"),
            (&strict, "OPTIONS", &[bad, asks], "PreflightRefused"),
            (&off, "OPTIONS", &[good, asks], "Pass"),
        ] {
            assert_eq!(decide(policy, method, headers), expect, "{method} {headers:?}");
        }
    }

    #[test]
    fn answers() {
        let headers = policy().preflight_headers(b"https://a.com", true);
        assert_eq!(headers.get("access-control-allow-origin"), Some(&b"https://a.com"[..]));
        assert_eq!(headers.get("access-control-allow-methods"), Some(&b"GET,POST"[..]));
        assert_eq!(headers.get("access-control-allow-private-network"), Some(&b"true"[..]));
        assert_eq!(headers.get("access-control-expose-headers"), Some(&b"x-b"[..]));
        let mut response = HeaderList::new();
        policy().on_response(b"https://a.com", &mut response);
        assert_eq!(response.get("access-control-expose-headers"), Some(&b"x-b"[..]));
        assert_eq!(response.get("access-control-allow-credentials"), Some(&b"true"[..]));
    }
}
