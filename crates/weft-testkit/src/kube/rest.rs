//! Requests to operations of the store.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::select::Selectors;
use super::store::api_version;
use super::{
    EPOCH, Fault, PatchStyle, Refusal, Request, Rule, Shared, State, Store, Target, watch,
};

pub(super) type Body = BoxBody<Bytes, io::Error>;

/// Items of a page when the client sets no limit.
const PAGE_MAX: usize = 1 << 20;

/// Answers one request; an error closes the connection.
pub(super) async fn answer(
    shared: Arc<Shared>,
    request: hyper::Request<Incoming>,
) -> io::Result<Response<Body>> {
    let at = Instant::now();
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let fault = shared.state().fault(&format!("{} {}", head.method, head.uri));
    match fault {
        Some(Fault::Refuse) => return Err(io::ErrorKind::ConnectionAborted.into()),
        Some(Fault::Slow(time)) => tokio::time::sleep(time).await,
        _ => {}
    }
    let call = Call::of(&shared.state(), &head, body);
    let result = match (fault, &call) {
        (Some(Fault::Status(code, _)), _) => {
            Err(Refusal::new(code, reason_of(code), "the test says so"))
        }
        (_, Ok(call)) => shared.state().permit(call),
        (_, Err(refusal)) => Err(refusal.clone()),
    };
    let cut = fault == Some(Fault::Cut);
    let result = match (result, &call) {
        (Ok(()), Ok(call)) if call.verb == "watch" => watch::start(&shared, call, cut),
        (Ok(()), Ok(call)) => perform(&shared, call).map(|value| whole(200, &value, cut)),
        (Ok(()), Err(refusal)) => Err(refusal.clone()),
        (Err(refusal), _) => Err(refusal),
    };
    let mut response = result.unwrap_or_else(|refusal| whole(refusal.code, &refusal.json(), false));
    if let Some(Fault::Status(_, Some(seconds))) = fault {
        response.headers_mut().insert("retry-after", seconds.into());
    }
    let call = call.unwrap_or_else(|_| Call::unknown(&head));
    shared.state().requests.push(Request {
        verb: call.verb,
        group: call.group,
        resource: call.resource,
        namespace: call.target.namespace,
        name: call.target.name,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        status: response.status().as_u16(),
        at,
    });
    Ok(response)
}

fn whole(code: u16, value: &Value, cut: bool) -> Response<Body> {
    let text = value.to_string();
    let response = Response::builder()
        .status(StatusCode::from_u16(code).expect("a status"))
        .header("content-type", "application/json");
    let body = match cut {
        false => BoxBody::new(Full::new(text.into()).map_err(|never| match never {})),
        true => watch::broken(text[..text.len() / 2].to_owned()),
    };
    response.body(body).expect("a valid response")
}

/// A request, understood.
pub(super) struct Call {
    pub(super) verb: &'static str,
    group: String,
    resource: String,
    pub(super) target: Target,
    query: Vec<(String, String)>,
    content_type: String,
    body: Bytes,
    /// Not a resource: the path.
    other: Option<String>,
}

impl Call {
    fn unknown(head: &http::request::Parts) -> Self {
        let target = Target {
            kind: 0,
            version: String::new(),
            namespace: String::new(),
            name: String::new(),
            status: false,
        };
        Call {
            verb: if head.method == Method::GET { "get" } else { "post" },
            group: String::new(),
            resource: String::new(),
            target,
            query: Vec::new(),
            content_type: String::new(),
            body: Bytes::new(),
            other: Some(head.uri.path().to_owned()),
        }
    }

    fn of(state: &State, head: &http::request::Parts, body: Bytes) -> Result<Self, Refusal> {
        let mut call = Call::unknown(head);
        call.body = body;
        let content_type = head.headers.get("content-type").and_then(|v| v.to_str().ok());
        call.content_type = content_type.unwrap_or_default().to_owned();
        call.query = head.uri.query().unwrap_or_default().split('&').map(parameter).collect();
        let parts: Vec<&str> = head.uri.path().split('/').filter(|p| !p.is_empty()).collect();
        let (group, version, rest) = match &parts[..] {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return Ok(call),
        };
        let (namespace, rest) = match rest {
            // `namespaces/x` alone is the Namespace.
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() && rest[0] != "status" => {
                (*namespace, rest)
            }
            _ => ("", rest),
        };
        if let ("authentication.k8s.io", ["tokenreviews"]) = (group, rest) {
            call.other = Some("tokenreviews".into());
            (call.verb, call.group, call.resource) = ("create", group.into(), rest[0].into());
            return Ok(call);
        }
        let served = |kind: &super::Kind| {
            kind.group == group
                && Some(&&*kind.plural) == rest.first()
                && kind.versions.iter().any(|one| one == version)
        };
        let missing = || Refusal::new(404, "NotFound", "404 page not found");
        let kind = state.store.kinds.iter().position(served).ok_or_else(missing)?;
        let (name, status) = match rest {
            [_] => ("", false),
            [_, name] => (*name, false),
            [_, name, "status"] if state.store.kinds[kind].status => (*name, true),
            _ => return Err(missing()),
        };
        call.verb = call.verb_of(&head.method, name)?;
        call.group = group.to_owned();
        call.resource = if status { format!("{}/status", rest[0]) } else { rest[0].to_owned() };
        let (version, namespace) = (version.to_owned(), namespace.to_owned());
        call.target = Target { kind, version, namespace, name: name.to_owned(), status };
        call.other = None;
        Ok(call)
    }

    fn verb_of(&self, method: &Method, name: &str) -> Result<&'static str, Refusal> {
        let watched = matches!(self.parameter("watch"), "1" | "true");
        Ok(match (method.as_str(), name.is_empty()) {
            ("GET", true) if watched => "watch",
            ("GET", true) => "list",
            ("GET", false) => "get",
            ("POST", true) => "create",
            ("PUT", false) => "update",
            ("PATCH", false) => "patch",
            ("DELETE", false) => "delete",
            _ => return Err(Refusal::new(405, "MethodNotAllowed", "method not allowed")),
        })
    }

    /// Empty when it is not there.
    pub(super) fn parameter(&self, name: &str) -> &str {
        let found = self.query.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value)
    }

    pub(super) fn selectors(&self) -> Result<Selectors, Refusal> {
        Selectors::parse(self.parameter("labelSelector"), self.parameter("fieldSelector"))
    }

    fn json(&self) -> Result<Value, Refusal> {
        let wrong = |error| Refusal::new(400, "BadRequest", format!("the body: {error}"));
        serde_json::from_slice(&self.body).map_err(wrong)
    }
}

fn parameter(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (decode(name), decode(value))
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                let digits = std::str::from_utf8(&digits).unwrap_or_default();
                bytes.push(u8::from_str_radix(digits, 16).unwrap_or(b'?'));
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn reason_of(code: u16) -> &'static str {
    match code {
        403 => "Forbidden",
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    }
}

fn perform(shared: &Shared, call: &Call) -> Result<Value, Refusal> {
    let mut state = shared.state();
    let target = &call.target;
    if let Some(path) = &call.other {
        return match path.as_str() {
            "tokenreviews" => state.review(call.json()?),
            path => discovery(&state.store, path),
        };
    }
    let store = &mut state.store;
    let answer = match call.verb {
        "list" => {
            let limit = call.parameter("limit").parse().unwrap_or(0);
            let limit = if limit == 0 { PAGE_MAX } else { limit };
            let token = Some(call.parameter("continue")).filter(|token| !token.is_empty());
            return store.list(target, &call.selectors()?, limit, token);
        }
        "get" => return store.get(target),
        "create" => store.create(target, call.json()?, EPOCH),
        "update" => store.replace(target, call.json()?),
        "delete" => store.delete(target),
        _ => {
            let style = match call.content_type.as_str() {
                "application/merge-patch+json" => PatchStyle::Merge,
                "application/apply-patch+yaml" if call.parameter("fieldManager").is_empty() => {
                    let why = "fieldManager is required for apply patch";
                    return Err(Refusal::new(400, "BadRequest", why));
                }
                "application/apply-patch+yaml" => PatchStyle::Apply,
                other => {
                    let why = format!("no patch of type {other:?} here");
                    return Err(Refusal::new(415, "UnsupportedMediaType", why));
                }
            };
            let mut target = target.clone();
            let mut patch = call.json()?;
            if style == PatchStyle::Apply {
                patch["metadata"]["name"] = target.name.clone().into();
            }
            target.status = call.target.status;
            if call.parameter("dryRun") == "All" {
                return Ok(patch);
            }
            store.patch(&target, style, patch, EPOCH)
        }
    };
    shared.publish(store);
    answer
}

/// `/api`, `/apis`, `/apis/GROUP/VERSION`, `/version`.
fn discovery(store: &Store, path: &str) -> Result<Value, Refusal> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (group, version) = match &parts[..] {
        ["version"] => {
            return Ok(json!({ "major": "1", "minor": "33", "gitVersion": "v1.33.0" }));
        }
        ["api"] => return Ok(json!({ "kind": "APIVersions", "versions": ["v1"] })),
        ["apis"] => return Ok(groups(store)),
        ["api", version] => ("", *version),
        ["apis", group, version] => (*group, *version),
        _ => return Err(Refusal::new(404, "NotFound", "404 page not found")),
    };
    let mut resources = Vec::new();
    let mut group_version = String::new();
    for kind in store.kinds.iter().filter(|kind| kind.group == group) {
        if !kind.versions.iter().any(|one| one == version) {
            continue;
        }
        group_version = api_version(kind, version);
        let verbs = ["create", "delete", "get", "list", "patch", "update", "watch"];
        resources.push(json!({
            "name": kind.plural, "singularName": kind.kind.to_lowercase(), "kind": kind.kind,
            "namespaced": kind.namespaced, "verbs": verbs,
        }));
        if kind.status {
            resources.push(json!({
                "name": format!("{}/status", kind.plural), "singularName": "", "kind": kind.kind,
                "namespaced": kind.namespaced, "verbs": ["get", "patch", "update"],
            }));
        }
    }
    if resources.is_empty() {
        return Err(Refusal::new(404, "NotFound", "404 page not found"));
    }
    Ok(json!({ "kind": "APIResourceList", "groupVersion": group_version, "resources": resources }))
}

fn groups(store: &Store) -> Value {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for kind in store.kinds.iter().filter(|kind| !kind.group.is_empty()) {
        let index = match groups.iter().position(|(name, _)| *name == kind.group) {
            Some(index) => index,
            None => {
                groups.push((&kind.group, Vec::new()));
                groups.len() - 1
            }
        };
        for version in &kind.versions {
            if !groups[index].1.contains(&version.as_str()) {
                groups[index].1.push(version);
            }
        }
    }
    let shown = groups.iter().map(|(group, versions)| {
        let version =
            |one: &&str| json!({ "groupVersion": format!("{group}/{one}"), "version": one });
        let versions: Vec<Value> = versions.iter().map(version).collect();
        json!({ "name": group, "versions": versions, "preferredVersion": versions[0] })
    });
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": shown.collect::<Vec<_>>() })
}

impl State {
    fn fault(&mut self, request: &str) -> Option<Fault> {
        let planned = self
            .faults
            .iter_mut()
            .find(|planned| planned.times > 0 && request.contains(&planned.matching))?;
        planned.times -= 1;
        Some(planned.fault)
    }

    /// A list or watch of one name is about that one; to apply what is not there is to create it.
    fn permit(&self, call: &Call) -> Result<(), Refusal> {
        let apply = call.content_type == "application/apply-patch+yaml";
        if apply && call.verb == "patch" && self.store.get(&call.target).is_err() {
            self.permit_as(call, "create")?;
        }
        self.permit_as(call, call.verb)
    }

    fn permit_as(&self, call: &Call, verb: &str) -> Result<(), Refusal> {
        // Discovery is everybody's.
        let Some(rules) = self.rules.as_ref().filter(|_| !call.resource.is_empty()) else {
            return Ok(());
        };
        let name = match call.parameter("fieldSelector").strip_prefix("metadata.name=") {
            Some(name) if matches!(verb, "list" | "watch") => name,
            _ => &call.target.name,
        };
        let has = |all: &[String], one: &str| all.iter().any(|x| x == one || x == "*");
        let allows = |rule: &Rule| {
            (rule.namespace.is_empty() || rule.namespace == call.target.namespace)
                && has(&rule.groups, &call.group)
                && has(&rule.resources, &call.resource)
                && has(&rule.verbs, verb)
                && (rule.names.is_empty() || has(&rule.names, name))
        };
        if rules.iter().any(allows) {
            return Ok(());
        }
        let Call { resource, group, target, .. } = call;
        let namespace = &target.namespace;
        let why = format!(
            "cannot {verb} resource {resource:?} in API group {group:?}, namespace {namespace:?}"
        );
        Err(Refusal::new(403, "Forbidden", why))
    }

    /// A token is good for the audiences it names, among those that are asked for.
    fn review(&self, mut review: Value) -> Result<Value, Refusal> {
        let token = review.pointer("/spec/token").and_then(Value::as_str).unwrap_or_default();
        let asked = review.pointer("/spec/audiences").and_then(Value::as_array);
        let asked: Vec<&str> = asked.into_iter().flatten().filter_map(Value::as_str).collect();
        let known = self.tokens.iter().find(|one| one.token == token);
        let audiences = |one: &super::Token| -> Vec<String> {
            one.audiences.iter().filter(|a| asked.contains(&a.as_str())).cloned().collect()
        };
        let status = match known.map(|one| (one, audiences(one))) {
            Some((one, audiences)) if !audiences.is_empty() => {
                let extra = one.extra.iter().map(|(key, value)| (key.clone(), json!([value])));
                let extra: serde_json::Map<String, Value> = extra.collect();
                json!({
                    "authenticated": true, "audiences": audiences,
                    "user": { "username": one.username, "extra": extra },
                })
            }
            Some(_) => json!({ "authenticated": false, "error": "token audiences do not match" }),
            None => json!({ "authenticated": false, "error": "invalid bearer token" }),
        };
        review["status"] = status;
        Ok(review)
    }
}
