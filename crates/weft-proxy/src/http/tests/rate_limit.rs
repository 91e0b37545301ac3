//! Local rate limits, asked of stock Envoy too.

use weft_testkit::client::Wire;
use weft_testkit::peer;

use super::grpc::{ask, filter};
use super::stock::Stock;
use super::*;

const NAME: &str = "envoy.filters.http.local_ratelimit";

fn bucket(tokens: u32) -> Value {
    json!({"maxTokens": tokens, "tokensPerFill": 1, "fillInterval": "3600s"})
}

fn limit(more: &Value) -> Value {
    let all = json!({"defaultValue": {"numerator": 100}, "runtimeKey": "all"});
    let mut limit = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "statPrefix": "test",
        "filterEnabled": all,
        "filterEnforced": all,
    });
    merge(&mut limit, more);
    limit
}

fn route(prefix: &str, limit: &Value, action: &Value) -> Value {
    let mut action = action.clone();
    merge(&mut action, &json!({"cluster": "app", "timeout": "0s"}));
    json!({"match": {"prefix": prefix}, "route": action, "typedPerFilterConfig": {NAME: limit}})
}

fn setup() -> Setup {
    let never = json!({"defaultValue": {"numerator": 0}, "runtimeKey": "none"});
    let header = |name: &str, value: &str, action: &str| json!({"header": {"key": name, "value": value}, "appendAction": action});
    let added = header("x-local-rate-limit", "%RESPONSE_FLAGS%", "OVERWRITE_IF_EXISTS_OR_ADD");
    let let_through = header("x-too-many", "yes", "APPEND_IF_EXISTS_OR_ADD");
    let by_path = json!({"actions": [{"headerValueMatch": {"descriptorValue": "page", "headers": [
        {"name": ":path", "stringMatch": {"prefix": "/descriptors/page", "ignoreCase": true}},
    ]}}]});
    let by_user = json!({"actions": [
        {"genericKey": {"descriptorValue": "fixed"}},
        {"requestHeaders": {"headerName": "x-user", "descriptorKey": "user"}},
    ]});
    let actions = json!({"rateLimits": [by_path, by_user]});
    let descriptors = json!([
        {"entries": [{"key": "header_match", "value": "page"}], "tokenBucket": bucket(2)},
        {"entries": [{"key": "generic_key", "value": "fixed"}, {"key": "user", "value": "jason"}],
         "tokenBucket": bucket(1)},
    ]);
    let shown = json!({"enableXRatelimitHeaders": "DRAFT_VERSION_03"});
    let mut described = json!({"tokenBucket": bucket(4), "descriptors": descriptors});
    merge(&mut described, &shown);
    let mut plain = json!({"tokenBucket": bucket(2), "responseHeadersToAdd": [added]});
    merge(&mut plain, &shown);
    let routes = json!([
        route("/plain", &limit(&plain), &json!({})),
        route("/status", &limit(&json!({"tokenBucket": bucket(1), "status": {"code": 503}})), &json!({})),
        route("/exhausted", &limit(&json!({"tokenBucket": bucket(1), "rateLimitedAsResourceExhausted": true})), &json!({})),
        route("/never", &limit(&json!({"tokenBucket": bucket(1), "filterEnabled": never})), &json!({})),
        route("/lenient", &limit(&json!({
            "tokenBucket": bucket(1),
            "filterEnforced": never,
            "requestHeadersToAddWhenNotEnforced": [let_through],
        })), &json!({})),
        route("/descriptors", &limit(&described), &actions),
        {"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s"}},
    ]);
    let own = limit(&json!({"tokenBucket": bucket(1)}));
    Setup {
        hcm: json!({"generateRequestId": false, "httpFilters": [
            {"name": NAME, "typedConfig": own},
            filter("router", "Router"),
        ]}),
        host: json!({"routes": routes}),
        ..Setup::default()
    }
}

/// Answers whether it was told that there are too many.
async fn app(mesh: Rc<Mesh>) {
    loop {
        let mut app = mesh.app().await;
        tokio::task::spawn_local(async move {
            while app.more().await {
                let head = app.head().await.to_ascii_lowercase();
                let told = head.contains("x-too-many: yes");
                app.send(format!("HTTP/1.1 200 OK\r\nx-told: {told}\r\ncontent-length: 0\r\n\r\n"))
                    .await;
            }
        });
    }
}

#[test]
fn too_many_requests_are_refused_as_by_envoy() {
    let Some(binary) = peer::envoy("too_many_requests_are_refused_as_by_envoy") else { return };
    run(setup(), |mesh| async move {
        tokio::task::spawn_local(app(mesh.clone()));
        let envoy = Stock::start(&binary, &mesh).await;
        let grpc: &[(&str, &str)] = &[("content-type", "application/grpc"), ("te", "trailers")];
        let jason: &[(&str, &str)] = &[("x-user", "jason")];
        let asked = [
            ("/plain", &[][..], 4),
            ("/status", &[], 2),
            ("/status", grpc, 1),
            ("/exhausted", grpc, 2),
            ("/never", &[], 3),
            ("/lenient", &[], 3),
            ("/descriptors/x", &[], 1),
            ("/descriptors/PAGE", &[], 1),
            ("/descriptors/x", jason, 2),
            ("/descriptors/page", &[], 2),
            ("/descriptors/x", &[], 3),
            ("/else", &[], 2),
        ];
        let mut wrong = Vec::new();
        for (path, headers, times) in asked {
            for nth in 0..times {
                let ours = ask(mesh.address, Wire::H1, path, headers, b"").await;
                let theirs = ask(envoy.address, Wire::H1, path, headers, b"").await;
                if ours != theirs {
                    wrong.push(format!("{path} {nth}\n  weft  {ours:?}\n  envoy {theirs:?}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        mesh.expect_requests(&["response_flags=\"RL\"", "response_code=\"429\""], 8).await;
    });
}
