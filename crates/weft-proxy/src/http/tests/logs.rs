//! Access logs, line by line beside a stock Envoy's.

use std::path::Path;

use super::stock::Stock;
use super::*;

/// Istio's fields but those that no two runs have in common (times, ports, request ids), and more.
const FIELDS: [(&str, &str); 31] = [
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("flags_long", "%RESPONSE_FLAGS_LONG%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_protocol", "%UPSTREAM_PROTOCOL%"),
    ("attempts", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"),
    ("client", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
    ("local", "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"),
    ("upstream_port", "%UPSTREAM_REMOTE_PORT%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("answer_type", "%RESP(CONTENT-TYPE?X-NONE)%"),
    ("cut", "%REQ(X-LONG):4%"),
    ("agent_and_more", "<%REQ(USER-AGENT)%> %REQ(X-NONE)% 100%%"),
    ("trailer", "%TRAILER(X-END)%"),
    ("grpc", "%GRPC_STATUS%"),
    ("grpc_number", "%GRPC_STATUS_NUMBER%"),
    ("path_only", "%PATH(NQ)%"),
    ("filter_state", "%FILTER_STATE(nothing)%"),
    ("metadata", "%DYNAMIC_METADATA(a:b)%"),
];

fn file_log(path: &Path, format: &Value, filter: Option<&Value>) -> Value {
    let mut log = json!({
        "name": "envoy.access_loggers.file",
        "typedConfig": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": path.to_str().unwrap(),
            "logFormat": format,
        },
    });
    if let Some(filter) = filter {
        log["filter"] = filter.clone();
    }
    log
}

fn json_fields() -> Value {
    let fields: serde_json::Map<String, Value> =
        FIELDS.iter().map(|(name, format)| ((*name).to_owned(), json!(format))).collect();
    json!({"jsonFormat": fields})
}

fn cel(expression: &str) -> Value {
    json!({"extensionFilter": {
        "name": "cel",
        "typedConfig": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
            "expression": expression,
        },
    }})
}

/// Logs by the name of their file: format, filter, and how many of the requests they have.
fn logs() -> Vec<(&'static str, Value, Option<Value>, usize)> {
    let paths = || json!({"textFormatSource": {"inlineString": "%REQ(:PATH)%\n"}});
    let status = |op: &str, code: u32| json!({"statusCodeFilter": {"comparison": {"op": op, "value": {"defaultValue": code, "runtimeKey": "x"}}}});
    vec![
        ("all", json_fields(), None, 8),
        ("errors", paths(), Some(status("GE", 400)), 4),
        ("flagged", paths(), Some(json!({"responseFlagFilter": {"flags": ["NR", "UF"]}})), 2),
        ("any-flag", paths(), Some(json!({"responseFlagFilter": {}})), 3),
        (
            "both",
            paths(),
            Some(json!({"andFilter": {"filters": [
                status("GE", 400),
                {"notHealthCheckFilter": {}},
                {"headerFilter": {"header": {"name": "x-long", "presentMatch": true}}},
            ]}})),
            1,
        ),
        (
            "either",
            paths(),
            Some(json!({"orFilter": {"filters": [status("EQ", 404), status("EQ", 201)]}})),
            2,
        ),
        (
            "cel",
            paths(),
            Some(cel("response.code >= 500 || request.url_path.startsWith('/lo')")),
            4,
        ),
        (
            "cel-header",
            paths(),
            Some(cel("request.headers['x-long'] == 'abcdefgh' && request.method == 'POST'")),
            1,
        ),
        ("cel-error", paths(), Some(cel("request.headers['x-never'] == 'a'")), 0),
        (
            "grpc",
            paths(),
            Some(json!({"grpcStatusFilter": {"statuses": ["UNAVAILABLE", "NOT_FOUND"]}})),
            4,
        ),
        (
            "nobody",
            paths(),
            Some(json!({"runtimeFilter": {"runtimeKey": "x", "percentSampled": {"numerator": 0}}})),
            0,
        ),
        (
            "everybody",
            paths(),
            Some(
                json!({"runtimeFilter": {"runtimeKey": "x", "percentSampled": {"numerator": 100}}}),
            ),
            8,
        ),
    ]
}

fn configured(folder: &Path) -> Value {
    let logs: Vec<Value> = logs()
        .iter()
        .map(|(name, format, filter, _)| file_log(&folder.join(name), format, filter.as_ref()))
        .collect();
    json!({"generateRequestId": false, "accessLog": logs})
}

fn setup(folder: &Path) -> Setup {
    Setup {
        hcm: configured(folder),
        host: json!({"routes": [
            {"match": {"path": "/local"}, "name": "mine", "directResponse": {"status": 201, "body": {"inlineString": "hi"}}},
            {"match": {"path": "/moved"}, "redirect": {"hostRedirect": "b.com"}},
            {"match": {"path": "/nowhere"}, "route": {"cluster": "none"}},
            {"match": {"path": "/dead"}, "name": "to-the-dead", "route": {"cluster": "dead"}},
            {"match": {"prefix": "/app"}, "name": "app-route", "route": {"cluster": "app", "prefixRewrite": "/rewritten"}},
        ]}),
        clusters: vec![cluster("dead", &["127.0.0.1:1".parse().unwrap()])],
        ..Setup::default()
    }
}

/// What a client sends; those for the application get what it answers.
const REQUESTS: [(&str, &str); 8] = [
    ("GET /local HTTP/1.1\r\nhost: a.com\r\nuser-agent: test \"quoted\"\r\n\r\n", ""),
    ("GET /moved HTTP/1.1\r\nhost: a.com\r\n\r\n", ""),
    ("GET /nothing?x=1 HTTP/1.1\r\nhost: a.com\r\nx-long: abcdefgh\r\n\r\n", ""),
    ("GET /nowhere HTTP/1.1\r\nhost: a.com\r\n\r\n", ""),
    ("GET /dead HTTP/1.1\r\nhost: a.com\r\nx-forwarded-for: 10.9.8.7\r\n\r\n", ""),
    (
        "POST /app/x?y=1 HTTP/1.1\r\nhost: a.com:80\r\nx-long: abcdefgh\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/x\r\ncontent-length: 3\r\n\r\nabc",
    ),
    (
        "GET /app/bad HTTP/1.1\r\nhost: a.com\r\n\r\n",
        "HTTP/1.1 503 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
    ),
    (
        "POST /app/grpc HTTP/1.1\r\nhost: a.com\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/grpc\r\ngrpc-status: 5\r\ncontent-length: 0\r\n\r\n",
    ),
];

/// Sends every request on a connection of its own and waits for the whole answer.
async fn ask(mesh: &Mesh, address: SocketAddr) {
    for (request, answer) in REQUESTS {
        let mut client = Raw::new(TcpStream::connect(address).await.unwrap());
        client.send(request).await;
        if !answer.is_empty() {
            let mut app = mesh.app().await;
            app.head().await;
            if request.ends_with("hello") {
                app.until("hello").await;
            }
            app.send(answer).await;
            client.head().await;
            drop(app);
        } else {
            client.head().await;
        }
    }
}

/// The lines of a log, once there are as many as there should be.
async fn lines(path: &Path, count: usize) -> Vec<String> {
    weft_testkit::wait::until("log lines", PATIENCE, || async {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        (lines.len() >= count).then_some(lines)
    })
    .await
}

#[test]
fn lines_and_filters_are_those_of_a_stock_envoy() {
    let Some(binary) = weft_testkit::peer::envoy("access log lines") else { return };
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run(setup(ours.path()), |mesh| async move {
        ask(&mesh, mesh.address).await;
        let all = lines(&ours.path().join("all"), REQUESTS.len()).await;
        mesh.configure(|setup| setup.hcm = configured(theirs.path()));
        let stock = Stock::start(&binary, &mesh).await;
        ask(&mesh, stock.address).await;
        let expected = lines(&theirs.path().join("all"), REQUESTS.len()).await;
        for (ours, theirs) in all.iter().zip(&expected) {
            let parse = |line: &str| -> Value { serde_json::from_str(line).unwrap() };
            let (ours, theirs) = (parse(ours), parse(theirs));
            for (name, format) in FIELDS {
                let (mut ours, theirs) = (ours[name].clone(), theirs[name].clone());
                if name == "response_code_details"
                    && let (Some(short), Some(long)) = (ours.as_str(), theirs.as_str())
                    && long.starts_with(short.trim_end_matches('}'))
                {
                    // Envoy adds what its own library said.
                    ours = theirs.clone();
                }
                assert_eq!(ours, theirs, "{format} of {}", theirs["path"]);
            }
        }
        assert_eq!(all.len(), expected.len());
        for (name, _, _, count) in logs().iter().skip(1) {
            let expected = lines(&theirs.path().join(name), *count).await;
            assert_eq!(lines(&ours.path().join(name), *count).await, expected, "log {name}");
            assert_eq!(expected.len(), *count, "log {name}");
        }
    });
}

#[test]
fn logs_are_switched_on_and_off_on_an_open_connection() {
    let folder = tempfile::tempdir().unwrap();
    let off = Setup {
        host: json!({"routes": [
            {"match": {"prefix": "/"}, "directResponse": {"status": 204}},
        ]}),
        ..Setup::default()
    };
    run(off, |mesh| async move {
        let mut client = mesh.client().await;
        let mut ask = async |path: &str| {
            client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
            client.head().await;
        };
        ask("/silent").await;
        mesh.configure(|setup| setup.hcm = configured(folder.path()));
        ask("/logged").await;
        assert_eq!(lines(&folder.path().join("everybody"), 1).await, ["/logged"]);
        mesh.configure(|setup| setup.hcm = json!({"generateRequestId": false}));
        ask("/silent").await;
        mesh.configure(|setup| setup.hcm = configured(folder.path()));
        ask("/again").await;
        assert_eq!(lines(&folder.path().join("everybody"), 2).await, ["/logged", "/again"]);
    });
}

#[test]
fn a_line_tells_what_decided() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("why");
    let format = json!({"textFormatSource": {"inlineString": "%WEFT_WHY%\n"}});
    let hcm = json!({"generateRequestId": false, "accessLog": [file_log(&path, &format, None)]});
    run(Setup { hcm, ..Setup::default() }, |mesh| async move {
        let mut client = mesh.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut app = mesh.app().await;
        app.head().await;
        app.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        client.head().await;
        let endpoint = mesh.apps[0].local_addr().unwrap();
        let expect = format!(
            "listener=\"test\", routes=\"routes\", host=\"all\", cluster=\"app\", endpoint=\"{endpoint}\""
        );
        assert_eq!(lines(&path, 1).await, [expect]);
    });
}
