//! Spans and logs for services that speak gRPC, beside a stock Envoy's.

use prost::Message as _;
use tokio::sync::mpsc;
use weft_xds::pb::envoy::data::accesslog::v3::HttpAccessLogEntry;
use weft_xds::pb::envoy::service::accesslog::v3::{
    StreamAccessLogsMessage, stream_access_logs_message::LogEntries,
};

use super::stock::Stock;
use super::*;

/// Messages by path, as they come.
type Messages = mpsc::UnboundedReceiver<(String, Vec<u8>)>;

/// A gRPC server that takes whatever it is told.
fn collect(listener: TcpListener) -> Messages {
    let (tell, messages) = mpsc::unbounded_channel();
    tokio::task::spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::task::spawn_local(serve(stream, tell.clone()));
        }
    });
    messages
}

async fn serve(stream: TcpStream, tell: mpsc::UnboundedSender<(String, Vec<u8>)>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let tell = tell.clone();
        tokio::task::spawn_local(async move {
            let path = request.uri().path().to_owned();
            assert_eq!(request.headers()["content-type"], "application/grpc");
            let mut body = request.into_body();
            let mut bytes = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
                bytes.extend_from_slice(&data);
                while let Some(length) = bytes.get(1..5) {
                    let end = 5 + u32::from_be_bytes(length.try_into().unwrap()) as usize;
                    if bytes.len() < end {
                        break;
                    }
                    let message = bytes.drain(..end).skip(5).collect();
                    let _ = tell.send((path.clone(), message));
                }
            }
            let reply = ::http::Response::builder().header("content-type", "application/grpc");
            let Ok(mut sender) = respond.send_response(reply.body(()).unwrap(), false) else {
                return;
            };
            let mut trailers = ::http::HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            let _ = sender.send_trailers(trailers);
        });
    }
}

fn grpc_cluster(address: SocketAddr) -> Value {
    let mut cluster = cluster("collector", &[address]);
    merge(
        &mut cluster,
        &json!({"typedExtensionProtocolOptions": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicitHttpConfig": {"http2ProtocolOptions": {}},
            },
        }}),
    );
    cluster
}

fn service() -> Value {
    json!({"envoyGrpc": {"clusterName": "collector", "authority": "collector.test"}})
}

fn setup(collector: SocketAddr, hcm: Value) -> Setup {
    Setup {
        hcm,
        host: json!({"routes": [
            {"match": {"path": "/dead"}, "name": "to-the-dead", "route": {"cluster": "none"}},
            {
                "match": {"prefix": "/"},
                "name": "mine",
                "directResponse": {"status": 200, "body": {"inlineString": "hello"}},
                "responseHeadersToAdd": [{"header": {"key": "x-kind", "value": "good"}}],
            },
        ]}),
        clusters: vec![grpc_cluster(collector)],
        ..Setup::default()
    }
}

fn bind() -> (std::net::TcpListener, SocketAddr) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn ask(address: SocketAddr, path: &str, headers: &str) {
    let mut client = Raw::new(TcpStream::connect(address).await.unwrap());
    client
        .send(format!(
            "GET {path} HTTP/1.1\r\nhost: a.com\r\nuser-agent: me\r\nx-tenant: blue\r\n{headers}\r\n"
        ))
        .await;
    client.head().await;
}

fn als() -> Value {
    json!({"generateRequestId": false, "accessLog": [{
        "name": "envoy.access_loggers.http_grpc",
        "typedConfig": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
            "commonConfig": {
                "logName": "the-log",
                "transportApiVersion": "V3",
                "grpcService": service(),
            },
            "additionalRequestHeadersToLog": ["x-tenant"],
            "additionalResponseHeadersToLog": ["x-kind"],
        },
    }]})
}

/// The next entries, and the name of the log they came with.
async fn entries(messages: &mut Messages, count: usize) -> (String, Vec<HttpAccessLogEntry>) {
    let (mut name, mut entries) = (String::new(), Vec::new());
    while entries.len() < count {
        let (path, message) = messages.recv().await.unwrap();
        assert_eq!(path, "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs");
        let message = StreamAccessLogsMessage::decode(&message[..]).unwrap();
        if let Some(identifier) = message.identifier {
            name = identifier.log_name;
        }
        if let Some(LogEntries::HttpLogs(logs)) = message.log_entries {
            entries.extend(logs.log_entry);
        }
    }
    (name, entries)
}

#[test]
fn the_access_log_service_is_told_what_a_stock_envoy_tells() {
    let Some(binary) = weft_testkit::peer::envoy("entries of access logs") else { return };
    let (listener, address) = bind();
    run(setup(address, als()), |mesh| async move {
        let mut messages = collect(TcpListener::from_std(listener).unwrap());
        for path in ["/a?b=1", "/dead"] {
            ask(mesh.address, path, "").await;
        }
        let (name, ours) = entries(&mut messages, 2).await;
        assert_eq!(name, "the-log");
        let stock = Stock::start(&binary, &mesh).await;
        for path in ["/a?b=1", "/dead"] {
            ask(stock.address, path, "").await;
        }
        let (_, theirs) = entries(&mut messages, 2).await;
        for (ours, theirs) in ours.iter().zip(&theirs) {
            let (us, them) = (
                ours.common_properties.as_ref().unwrap(),
                theirs.common_properties.as_ref().unwrap(),
            );
            assert_eq!(us.response_flags, them.response_flags);
            assert_eq!(us.route_name, them.route_name);
            assert!(us.start_time.is_some() && us.downstream_remote_address.is_some());
            assert_eq!(ours.protocol_version, theirs.protocol_version);
            let (us, them) = (ours.request.as_ref().unwrap(), theirs.request.as_ref().unwrap());
            assert_eq!(us.request_method, them.request_method);
            assert_eq!((&us.path, &us.authority), (&them.path, &them.authority));
            assert_eq!(us.user_agent, them.user_agent);
            assert_eq!(us.request_headers, them.request_headers);
            let (us, them) = (ours.response.as_ref().unwrap(), theirs.response.as_ref().unwrap());
            assert_eq!(us.response_code, them.response_code);
            assert_eq!(us.response_headers, them.response_headers);
            assert_eq!(us.response_body_bytes, them.response_body_bytes);
            assert_eq!(us.response_code_details, them.response_code_details);
        }
    });
}

#[test]
fn logs_are_open_telemetrys_records() {
    let (listener, address) = bind();
    let hcm = json!({"generateRequestId": false, "accessLog": [{
        "name": "envoy.access_loggers.open_telemetry",
        "typedConfig": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
            "commonConfig": {
                "logName": "the-log",
                "transportApiVersion": "V3",
                "grpcService": service(),
            },
            "body": {"stringValue": "%REQ(:PATH)% %RESPONSE_CODE%"},
            "attributes": {"values": [{"key": "tenant", "value": {"stringValue": "%REQ(X-TENANT)%"}}]},
        },
    }]});
    run(setup(address, hcm), |mesh| async move {
        let mut messages = collect(TcpListener::from_std(listener).unwrap());
        ask(mesh.address, "/a", "").await;
        let (path, message) = messages.recv().await.unwrap();
        assert_eq!(path, "/opentelemetry.proto.collector.logs.v1.LogsService/Export");
        let text = String::from_utf8_lossy(&message);
        for part in ["the-log", "/a 200", "tenant", "blue"] {
            assert!(text.contains(part), "{part} in {text:?}");
        }
    });
}

/// The parts of a span that are looked at; the rest of the report is passed over.
#[derive(Clone, PartialEq, prost::Message)]
struct Report {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<OfResource>,
}
#[derive(Clone, PartialEq, prost::Message)]
struct OfResource {
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<OfScope>,
}
#[derive(Clone, PartialEq, prost::Message)]
struct OfScope {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}
#[derive(Clone, PartialEq, prost::Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<weft_xds::pb::opentelemetry::proto::common::v1::KeyValue>,
}

impl Span {
    fn tag(&self, key: &str) -> Option<String> {
        use weft_xds::pb::opentelemetry::proto::common::v1::any_value::Value;
        let found = self.attributes.iter().find(|pair| pair.key == key)?;
        match found.value.as_ref()?.value.as_ref()? {
            Value::StringValue(text) => Some(text.clone()),
            _ => None,
        }
    }
}

async fn spans(messages: &mut Messages, count: usize) -> Vec<Span> {
    let mut spans = Vec::new();
    while spans.len() < count {
        let (path, message) = messages.recv().await.unwrap();
        assert_eq!(path, "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
        let report = Report::decode(&message[..]).unwrap();
        let scopes = report.resources.into_iter().flat_map(|one| one.scopes);
        spans.extend(scopes.flat_map(|one| one.spans));
    }
    spans
}

const PARENT: &str = "traceparent: 00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01\r\n";

#[test]
fn spans_are_open_telemetrys_as_a_stock_envoys() {
    let Some(binary) = weft_testkit::peer::envoy("OpenTelemetry spans") else { return };
    let (listener, address) = bind();
    let hcm = json!({"tracing": {
        "randomSampling": {"value": 100},
        "maxPathTagLength": 6,
        "customTags": [
            {"tag": "who", "literal": {"value": "me"}},
            {"tag": "tenant", "requestHeader": {"name": "X-Tenant", "defaultValue": "none"}},
            {"tag": "missing", "requestHeader": {"name": "x-missing", "defaultValue": "none"}},
            {"tag": "nothing", "requestHeader": {"name": "x-missing"}},
            {"tag": "from", "environment": {"name": "WEFT_NOT_THERE", "defaultValue": "here"}},
        ],
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typedConfig": {
                "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                "grpcService": service(),
                "serviceName": "the-service",
            },
        },
    }});
    run(setup(address, hcm), |mesh| async move {
        let mut messages = collect(TcpListener::from_std(listener).unwrap());
        for _ in 0..5 {
            ask(mesh.address, "/a/long/path", PARENT).await;
        }
        let ours = spans(&mut messages, 5).await;
        let stock = Stock::start(&binary, &mesh).await;
        for _ in 0..5 {
            ask(stock.address, "/a/long/path", PARENT).await;
        }
        let theirs = spans(&mut messages, 5).await;
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!((&ours.trace, &ours.parent), (&theirs.trace, &theirs.parent));
            assert_eq!(ours.kind, theirs.kind);
            assert_eq!(ours.id.len(), 8);
            assert_ne!(ours.id, ours.parent);
            for tag in [
                "who",
                "tenant",
                "missing",
                "nothing",
                "from",
                "http.url",
                "http.method",
                "http.status_code",
                "response_flags",
            ] {
                assert_eq!(ours.tag(tag), theirs.tag(tag), "{tag}");
            }
        }
    });
}

#[test]
fn a_service_that_is_down_costs_lines_and_nothing_else() {
    let (listener, address) = bind();
    drop(listener);
    run(setup(address, als()), |mesh| async move {
        for _ in 0..10 {
            ask(mesh.address, "/a", "").await;
        }
        weft_testkit::wait::until("failed reports", PATIENCE, || async {
            let mut text = Vec::new();
            mesh.registry.render_prometheus(&mut text);
            let text = String::from_utf8(text).unwrap();
            let failed = "weft_proxy_reports_total{kind=\"logs\",result=\"failed\"} 1";
            text.contains(failed).then_some(())
        })
        .await;
    });
}

#[test]
fn spans_go_over_http_where_that_is_asked_for() {
    let (listener, address) = bind();
    let hcm = json!({"tracing": {
        "randomSampling": {"value": 100},
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typedConfig": {
                "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                "httpService": {"httpUri": {
                    "uri": "http://otel.test:4318/v1/traces",
                    "cluster": "http",
                    "timeout": "2s",
                }},
            },
        },
    }});
    let mut setup = setup(address, hcm);
    setup.clusters.push(cluster("http", &[address]));
    run(setup, |mesh| async move {
        let collector = TcpListener::from_std(listener).unwrap();
        let asked = async {
            for _ in 0..5 {
                ask(mesh.address, "/a", PARENT).await;
            }
        };
        let report = async {
            let mut peer = Raw::new(collector.accept().await.unwrap().0);
            let head = peer.head().await.to_ascii_lowercase();
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            head
        };
        let ((), head) = tokio::join!(asked, report);
        assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
        assert!(head.contains("host: otel.test:4318\r\n"), "{head}");
        assert!(head.contains("content-type: application/x-protobuf\r\n"), "{head}");
    });
}
