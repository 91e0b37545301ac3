use std::collections::HashMap;

use prost_types::Duration;
use weft_telemetry::Registry;
use weft_xds::mixer::CompressedAttributes;

use super::dictionary::WORDS;
use super::*;
use crate::telemetry::Filter;

/// Compresses as a client does: words of its own where the global dictionary has none.
#[derive(Default)]
struct Client {
    words: Vec<String>,
}

impl Client {
    fn word(&mut self, text: &str) -> i32 {
        if let Some(global) = WORDS.iter().position(|word| *word == text) {
            return global as i32;
        }
        let known = self.words.iter().position(|word| word == text);
        let at = known.unwrap_or_else(|| {
            self.words.push(text.to_owned());
            self.words.len() - 1
        });
        -1 - at as i32
    }

    fn strings(&mut self, attributes: &[(&str, &str)]) -> HashMap<i32, i32> {
        attributes.iter().map(|(name, text)| (self.word(name), self.word(text))).collect()
    }
}

fn mixer() -> Mixer {
    let (world, _events) = World::start(0);
    let registry = Registry::new();
    Arc::into_inner(Mixer::new(Telemetry::new(&registry), world, &registry)).unwrap()
}

const CALL: [(&str, &str); 10] = [
    ("context.reporter.kind", "inbound"),
    ("context.protocol", "http"),
    ("source.uid", "kubernetes://web-7d8-x.shop"),
    ("destination.uid", "kubernetes://reviews-1-y.shop"),
    ("destination.service.host", "reviews.shop.svc.cluster.local"),
    ("request.method", "GET"),
    ("request.path", "/users/42?x=1"),
    ("request.host", "reviews:8080"),
    ("request.id", "one"),
    ("context.proxy_error_code", "-"),
];

/// Three requests in one report, the later two as changes of the first.
fn delta() -> ReportRequest {
    let mut client = Client::default();
    let first = CompressedAttributes {
        strings: client.strings(&CALL),
        int64s: [(client.word("response.code"), 200), (client.word("request.total_size"), 7)]
            .into(),
        bools: [(client.word("connection.mtls"), true)].into(),
        durations: [(client.word("response.duration"), Duration { seconds: 0, nanos: 2_000_000 })]
            .into(),
        bytes: [(client.word("source.ip"), vec![10, 0, 0, 7])].into(),
        ..Default::default()
    };
    let second = CompressedAttributes {
        strings: client.strings(&[("request.path", "/users/43"), ("request.id", "two")]),
        int64s: [(client.word("response.code"), 503)].into(),
        ..Default::default()
    };
    let third = CompressedAttributes {
        strings: client.strings(&[("request.path", "/users/44"), ("request.id", "three")]),
        ..Default::default()
    };
    ReportRequest {
        attributes: vec![first, second, third],
        default_words: client.words,
        global_word_count: WORDS.len() as u32,
        repeated_attributes_semantics: 0,
    }
}

#[tokio::test]
async fn changes_add_up_and_land_in_the_graph() {
    let mixer = mixer();
    mixer.take(&delta()).unwrap();
    let graph = mixer.telemetry.store().graph(0, 60, None);
    let [edge] = &graph.edges[..] else { panic!("{graph:?}") };
    assert_eq!((&*edge.source, &*edge.destination), ("shop/web-7d8-x", "shop/reviews-1-y"));
    assert_eq!((edge.numbers.requests, edge.numbers.errors), (3, 2));
    assert_eq!((&*edge.security, edge.numbers.request_bytes), ("mutual_tls", 21));
    let interfaces = mixer.telemetry.store().interfaces(0, 60, Some("reviews"));
    assert_eq!((&*interfaces[0].path, interfaces[0].numbers.requests), ("/users/{id}", 3));
    let failed = mixer.telemetry.records().find(&Filter::default(), u64::MAX);
    assert_eq!(failed.len(), 2);
    assert!(failed.iter().all(|row| row.source_address == "10.0.0.7" && row.code == 503));
}

#[tokio::test]
async fn independent_sets_inherit_nothing() {
    let mixer = mixer();
    let report = ReportRequest { repeated_attributes_semantics: 1, ..delta() };
    mixer.take(&report).unwrap();
    let graph = mixer.telemetry.store().graph(0, 60, None);
    let known = graph.edges.iter().find(|edge| edge.source == "shop/web-7d8-x").unwrap();
    assert_eq!((known.numbers.requests, known.numbers.errors), (1, 0));
}

#[tokio::test]
async fn connections_are_told_while_they_live() {
    let mixer = mixer();
    let mut client = Client::default();
    let who = &CALL[2..5];
    let mut attributes = Vec::new();
    for (event, bytes) in [("open", 0), ("continue", 10), ("close", 5)] {
        let mut strings = client.strings(who);
        strings.extend(client.strings(&[("context.protocol", "tcp"), ("connection.event", event)]));
        attributes.push(CompressedAttributes {
            strings,
            int64s: [(client.word("connection.received.bytes"), bytes)].into(),
            ..Default::default()
        });
    }
    let report = ReportRequest { attributes, default_words: client.words, ..Default::default() };
    mixer.take(&report).unwrap();
    let graph = mixer.telemetry.store().graph(0, 60, None);
    let numbers = &graph.edges[0].numbers;
    assert_eq!((numbers.connections_opened, numbers.connections_closed), (1, 1));
    assert_eq!(numbers.request_bytes, 15);
}

#[tokio::test]
async fn clients_are_answered_over_grpc() {
    use weft_xds::mixer::{MixerServer, REPORT};
    use weft_xds::unary;

    let mixer = Arc::new(mixer());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(MixerServer::new(mixer.clone()));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(server.serve_with_incoming(incoming));
    let channel =
        weft_xds::connect::Target::plain(format!("http://{address}")).connect().await.unwrap();
    let sent: Result<ReportResponse, _> =
        unary::call(channel.clone(), REPORT, (None, None), delta()).await;
    assert!(sent.is_ok(), "{sent:?}");
    assert_eq!(mixer.telemetry.store().graph(0, 60, None).edges[0].numbers.requests, 3);

    let wrong = ReportRequest { global_word_count: 9999, ..delta() };
    let refused: Result<ReportResponse, _> =
        unary::call(channel.clone(), REPORT, (None, None), wrong).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::InvalidArgument);

    let check: Result<ReportResponse, _> =
        unary::call(channel, "/istio.mixer.v1.Mixer/Check", (None, None), delta()).await;
    let check = check.unwrap_err();
    assert_eq!(check.code(), tonic::Code::Unimplemented);
    assert!(check.message().contains("disablePolicyChecks"), "{check}");
}
