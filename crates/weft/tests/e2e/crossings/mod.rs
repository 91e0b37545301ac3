//! HTTP/1 and TCP, byte by byte, over every way through the mesh: {plain, TLS, mTLS} in through a
//! gateway or plain from a sidecar, {plain, mTLS} between the proxies, and on either side of that
//! hop Weft or stock Envoy. The application and the client are the test itself.

mod app;
pub mod world;

use weft_testkit::peer;

use crate::harness::Flavor;
use world::{Edge, Hop, World};

/// Every way in, with every kind of hop behind it.
const WAYS: [(Edge, Hop); 8] = [
    (Edge::Sidecar, Hop::Plain),
    (Edge::Sidecar, Hop::Mtls),
    (Edge::GatewayPlain, Hop::Plain),
    (Edge::GatewayPlain, Hop::Mtls),
    (Edge::GatewayTls, Hop::Plain),
    (Edge::GatewayTls, Hop::Mtls),
    (Edge::GatewayMtls, Hop::Plain),
    (Edge::GatewayMtls, Hop::Mtls),
];

/// What a slow reader must stop: far more than all socket buffers on the way hold. Bytes.
const FLOOD: u64 = 160 << 20;
/// Requests through the same proxies, each with one worker, during which a writer that is held back
/// does not move: whoever wanted to read on had its turn.
const ROUNDS: usize = 20;
/// What a held-back proxy may hold: its buffers, and what the allocator keeps of them. Bytes.
const GROWTH_MAX: u64 = 8 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn weft_to_weft() {
    let world = World::start(Flavor::Weft, Flavor::Weft).await;
    everything(&world).await;
    for (edge, hop) in [WAYS[0], WAYS[1], WAYS[4], WAYS[7]] {
        world.slow_readers_hold_writers_back(edge, hop).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weft_to_envoy() {
    if peer::envoy("crossings::weft_to_envoy").is_some() {
        everything(&World::start(Flavor::Weft, Flavor::Envoy).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_to_weft() {
    if peer::envoy("crossings::envoy_to_weft").is_some() {
        everything(&World::start(Flavor::Envoy, Flavor::Weft).await).await;
    }
}

async fn everything(world: &World) {
    for (edge, hop) in WAYS {
        world.is_ready(edge, hop).await;
        world.heads_and_trailers_keep_their_spelling(edge, hop).await;
        world.old_clients_are_served(edge, hop).await;
        world.bodiless_answers_are_bodiless(edge, hop).await;
        world.expectations_pass(edge, hop).await;
        world.pipelined_requests_are_answered_in_order(edge, hop).await;
        world.websockets_pass(edge, hop).await;
        world.ambiguous_requests_stay_outside(edge, hop).await;
        world.tcp_passes_with_half_close(edge, hop).await;
    }
}

impl World {
    async fn heads_and_trailers_keep_their_spelling(&self, edge: Edge, hop: Hop) {
        let request = "POST /record HTTP/1.1\r\nX-CustomID: 1\r\nHOST: {host}\r\n\
                       SOAPAction: \"x\"\r\nx-customid: 2\r\nAccept: */*\r\nX-CustomID: 3\r\n\
                       TRANSFER-Encoding: chunked\r\nzuLetzt: \u{e9}\r\n\r\n\
                       2;ext=1\r\nhi\r\n0\r\nX-TrailerID: 1\r\nX-TrailerID: 2\r\n\r\n";
        let mut client = self.client(edge, hop).await;
        client.send(&request.replace("{host}", &self.host(edge, hop))).await;
        let head = client.until("\r\n\r\n").await;
        let body = client.until("\r\n0\r\n").await;
        let response = [head, body, client.until("\r\n\r\n").await].concat();
        let recorded = self.app.recorded().await;
        // The mesh hop is mTLS exactly where it should be.
        let certified = recorded.to_ascii_lowercase().contains("\r\nx-forwarded-client-cert: ");
        assert_eq!(certified, hop == Hop::Mtls, "{edge:?} {hop:?}: {recorded}");
        // Envoy's trailers are in lower case, and what it does with two spellings of a name is its
        // own business; Weft alone changes nothing.
        let lines: &[&str] = match self.has_envoy() {
            false => &[
                "X-CustomID: 1",
                "SOAPAction: \"x\"",
                "x-customid: 2",
                "Accept: */*",
                "X-CustomID: 3",
                "zuLetzt: \u{e9}",
                "",
                "X-TrailerID: 1",
                "X-TrailerID: 2",
            ],
            true => &["SOAPAction: \"x\"", "zuLetzt: \u{e9}", "", "x-trailerid: 1"],
        };
        in_order(&recorded, lines);
        assert!(recorded.contains("\r\nhi\r\n0\r\n"), "{recorded}");
        let lines: &[&str] = match self.has_envoy() {
            false => &[
                "HTTP/1.1 299 So So",
                "X-Answer-ID: 1",
                "Set-Cookie: a",
                "x-answer-id: 2",
                "SET-COOKIE: b",
                "X-Last: z",
                "",
                "X-EndID: 1",
                "X-EndID: 2",
            ],
            true => &["HTTP/1.1 299 So So", "X-Last: z", "", "x-endid: 1", "x-endid: 2"],
        };
        in_order(&response, lines);
    }

    async fn old_clients_are_served(&self, edge: Edge, hop: Hop) {
        let host = self.host(edge, hop);
        let mut client = self.client(edge, hop).await;
        let kept = format!("GET /ok HTTP/1.0\r\nHost: {host}\r\nConnection: keep-alive\r\n\r\n");
        for _ in 0..2 {
            client.send(&kept).await;
            let head = client.until("\r\n\r\n").await.to_ascii_lowercase();
            assert!(head.contains("connection: keep-alive"), "{edge:?} {hop:?}: {head}");
            assert!(!head.contains("chunked"), "{edge:?} {hop:?}: {head}");
            assert_eq!(client.until("ok").await, "ok");
        }
        // A mebibyte of unknown length ends with the connection, and is all there.
        client.send(&format!("GET /large HTTP/1.0\r\nHost: {host}\r\n\r\n")).await;
        let head = client.until("\r\n\r\n").await;
        assert!(!head.to_ascii_lowercase().contains("chunked"), "{edge:?} {hop:?}: {head}");
        let body = client.rest().await;
        assert!(body == app::large(), "{edge:?} {hop:?}: {} bytes came", body.len());
    }

    async fn bodiless_answers_are_bodiless(&self, edge: Edge, hop: Hop) {
        let host = self.host(edge, hop);
        let mut client = self.client(edge, hop).await;
        for (method, path, status) in [
            ("HEAD", "/ok", "200"),
            ("GET", "/status/204", "204"),
            ("GET", "/status/304", "304"),
            ("GET", "/ok", "200"),
        ] {
            client.send(&format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            let head = client.until("\r\n\r\n").await;
            // What stands here is the next head: nothing followed the one before.
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{edge:?} {hop:?}: {head}");
        }
        assert_eq!(client.until("ok").await, "ok");
    }

    async fn expectations_pass(&self, edge: Edge, hop: Hop) {
        let host = self.host(edge, hop);
        let mut client = self.client(edge, hop).await;
        let head = format!(
            "PUT /expect HTTP/1.1\r\nHost: {host}\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
        );
        client.send(&head).await;
        let first = client.until("\r\n\r\n").await;
        assert!(first.starts_with("HTTP/1.1 100 "), "{edge:?} {hop:?}: {first}");
        client.send("body").await;
        // Envoy passes on no further informational heads unless told to.
        let last = client.until("got body").await;
        assert!(last.contains("HTTP/1.1 200 "), "{edge:?} {hop:?}: {last}");
        if !self.has_envoy() {
            assert!(last.contains("HTTP/1.1 103 Early Hints\r\nLink: x\r\n"), "{last}");
        }
    }

    async fn pipelined_requests_are_answered_in_order(&self, edge: Edge, hop: Hop) {
        let host = self.host(edge, hop);
        let mut client = self.client(edge, hop).await;
        let absolute = format!("GET http://{host}/status/201 HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let second = format!("GET /status/202 HTTP/1.1\r\nHost: {host}\r\n\r\n");
        client.send(&[absolute, second].concat()).await;
        for status in ["201", "202"] {
            let head = client.until("\r\n\r\n").await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{edge:?} {hop:?}: {head}");
        }
    }

    async fn websockets_pass(&self, edge: Edge, hop: Hop) {
        let host = self.host(edge, hop);
        let mut client = self.client(edge, hop).await;
        client
            .send(&format!(
                "GET /ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n\
                 Connection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n"
            ))
            .await;
        let head = client.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{edge:?} {hop:?}: {head}");
        client.send("there and back").await;
        assert_eq!(client.until("there and back").await, "there and back");
    }

    async fn ambiguous_requests_stay_outside(&self, edge: Edge, hop: Hop) {
        let host = self.host(edge, hop);
        for lines in [
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "X: a\r\n folded\r\nBad Name: x",
        ] {
            let mut client = self.client(edge, hop).await;
            client.send(&format!("POST /ok HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n\r\n")).await;
            let head = client.until("\r\n\r\n").await;
            let refused = head.starts_with("HTTP/1.1 400 ") || head.starts_with("HTTP/1.1 501 ");
            assert!(refused, "{edge:?} {hop:?}: {lines:?}: {head}");
        }
    }

    async fn tcp_passes_with_half_close(&self, edge: Edge, hop: Hop) {
        let mut client = self.tcp_client(edge, hop).await;
        client.send("echo ").await;
        if self.has_envoy() {
            // Envoy's inspection of first bytes closes a connection that is half-closed by then.
            client.send("!").await;
            client.until("!").await;
        }
        client.send("back and forth").await;
        client.shutdown().await;
        assert_eq!(client.rest().await, "back and forth", "{edge:?} {hop:?}");
    }

    /// Four writers whose readers take nothing: each must stop, in bounded memory.
    async fn slow_readers_hold_writers_back(&self, edge: Edge, hop: Hop) {
        let host = self.host(edge, hop);
        let base = self.resident_bytes();
        let mut download = self.client(edge, hop).await;
        download.send(&format!("GET /flood HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let mut upload = self.client(edge, hop).await;
        upload
            .send(&format!(
                "PUT /stall HTTP/1.1\r\nHost: {host}\r\nContent-Length: {FLOOD}\r\n\r\n"
            ))
            .await;
        let mut tcp_download = self.tcp_client(edge, hop).await;
        tcp_download.send("flood").await;
        let mut tcp_upload = self.tcp_client(edge, hop).await;
        tcp_upload.send("stall").await;
        for (what, writer) in
            [("HTTP response", &self.app.flood), ("TCP towards the client", &self.app.tcp_flood)]
        {
            let sent = writer.until_stopped(async || self.is_ready(edge, hop).await).await;
            assert!(sent < FLOOD, "{edge:?} {hop:?}: the {what} was not held back");
        }
        for (what, writer) in
            [("HTTP request", &mut upload), ("TCP towards the server", &mut tcp_upload)]
        {
            let sent = writer.flood(async || self.is_ready(edge, hop).await).await;
            assert!(sent < FLOOD, "{edge:?} {hop:?}: the {what} was not held back");
        }
        for (name, before, now) in self.resident_since(&base) {
            let grown = now.saturating_sub(before);
            println!("{edge:?} {hop:?}: {name} grew by {} KiB", grown / 1024);
            assert!(grown < GROWTH_MAX, "{edge:?} {hop:?}: {name} grew by {grown} bytes");
        }
        // Whoever reads again gets on.
        assert!(download.until("flood").await.contains("200"));
        tcp_download.until("flood").await;
        drop((download, upload, tcp_download, tcp_upload));
        self.app.floods_ended().await;
    }
}

/// The lines stand in `text` in this order; others may stand between.
fn in_order(text: &str, lines: &[&str]) {
    let mut rest = text.split("\r\n");
    for line in lines {
        assert!(rest.any(|other| other == *line), "{line:?} is not in its place:\n{text}");
    }
}
