//! Istio's metrics as a configuration changes them, while requests go on.

use super::*;

pub(super) fn stats(metrics: &Value) -> Value {
    let type_of = |name: &str| format!("type.googleapis.com/{name}");
    json!({"generateRequestId": false, "httpFilters": [
        {
            "name": "istio.stats",
            "typedConfig": {"@type": type_of("stats.PluginConfig"), "metrics": metrics},
        },
        {
            "name": "envoy.filters.http.router",
            "typedConfig": {
                "@type": type_of("envoy.extensions.filters.http.router.v3.Router"),
            },
        },
    ]})
}

fn direct(hcm: Value) -> Setup {
    Setup {
        hcm,
        host: json!({"routes": [
            {"match": {"prefix": "/bad"}, "directResponse": {"status": 503}},
            {
                "match": {"prefix": "/"},
                "directResponse": {"status": 200},
                "responseHeadersToAdd": [{"header": {"key": "x-kind", "value": "good"}}],
            },
        ]}),
        ..Setup::default()
    }
}

async fn ask(client: &mut Raw, path: &str) {
    client.send(format!("GET {path} HTTP/1.1\r\nhost: a.com\r\nx-tenant: blue\r\n\r\n")).await;
    client.head().await;
}

fn text(mesh: &Mesh) -> String {
    let mut text = Vec::new();
    mesh.registry.render_prometheus(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn labels_come_from_requests_and_responses_and_a_change_needs_no_new_connection() {
    let labelled = stats(&json!([{
        "dimensions": {
            "tenant": "request.headers['x-tenant']",
            "kind": "response.headers['x-kind']",
            "class": "response.code >= 500 ? 'bad' : 'fine'",
            "destination_version": "'v7'",
        },
        "tags_to_remove": ["source_workload"],
    }, {"name": "request_bytes", "drop": true}]));
    run(direct(labelled), |mesh| async move {
        let mut client = mesh.client().await;
        for path in ["/a", "/b", "/bad"] {
            ask(&mut client, path).await;
        }
        let fine = ["tenant=\"blue\"", "kind=\"good\"", "class=\"fine\"", "version=\"v7\""];
        mesh.expect_requests(&fine, 2).await;
        mesh.expect_requests(&["tenant=\"blue\"", "kind=\"unknown\"", "class=\"bad\""], 1).await;
        let page = text(&mesh);
        assert!(!page.contains("source_workload="), "{page}");
        assert!(!page.contains("istio_request_bytes"), "{page}");

        mesh.configure(|setup| {
            setup.hcm =
                stats(&json!([{"name": "requests_total", "tags_to_remove": ["response_code"]}]));
        });
        for path in ["/a", "/bad"] {
            ask(&mut client, path).await;
        }
        mesh.expect_requests(
            &["source_workload=\"unknown\"", "destination_version=\"unknown\""],
            2,
        )
        .await;
        let page = text(&mesh);
        let counts: Vec<&str> = page
            .lines()
            .filter(|line| {
                line.starts_with("istio_requests_total{") && line.contains("source_workload=")
            })
            .collect();
        assert_eq!(counts.len(), 1, "{counts:#?}");
        assert!(!counts[0].contains("response_code="), "{counts:#?}");
        let bytes = page.lines().filter(|line| line.starts_with("istio_request_bytes_count{"));
        assert_eq!(bytes.count(), 2, "{page}");

        mesh.configure(|setup| setup.hcm = json!({"generateRequestId": false}));
        ask(&mut client, "/bad").await;
        mesh.expect_requests(&["source_workload=\"unknown\"", "response_code=\"503\""], 1).await;
        mesh.expect_requests(&[], 6).await;
    });
}

#[test]
fn what_no_proxy_could_count_is_refused() {
    for (metrics, why) in [
        (json!([{"dimensions": {"a": "1 +"}}]), "dimensions[\"a\"]"),
        (json!([{"dimensions": {"a-b": "'1'"}}]), "not a label"),
    ] {
        let setup = direct(stats(&metrics));
        let listener = listener(&setup, 80, &{
            let mut hcm = manager(&setup);
            merge(&mut hcm, &json!({"routeConfig": routes(&setup)}));
            hcm
        });
        let refused = lower::listener(&message(&listener)).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
}
