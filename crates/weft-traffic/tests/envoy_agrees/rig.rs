//! One stock Envoy with static resources, and a client that shows every byte.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use weft_http::{Method, RequestHead, Scheme, Target, Version};
use weft_testkit::process::Process;

/// A running Envoy with one plain HTTP listener.
pub(crate) struct Envoy {
    pub(crate) address: SocketAddr,
    _process: Process,
    _folder: tempfile::TempDir,
}

const START_LIMIT: Duration = Duration::from_secs(30);

impl Envoy {
    /// Starts Envoy with a route configuration and clusters, all as protobuf JSON.
    pub(crate) fn start(binary: &Path, routes: &Value, clusters: &[Value]) -> Envoy {
        let address = SocketAddr::from(([127, 0, 0, 1], weft_testkit::free_port()));
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("envoy.json");
        std::fs::write(&config, bootstrap(address, routes, clusters).to_string()).unwrap();
        let config = config.to_str().unwrap();
        let args =
            ["-c", config, "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"];
        let process = Process::start("envoy", folder.path(), binary, &args);
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(start.elapsed() < START_LIMIT, "Envoy does not listen:\n{}", process.output());
            std::thread::sleep(Duration::from_millis(20));
        }
        Envoy { address, _process: process, _folder: folder }
    }
}

fn bootstrap(address: SocketAddr, routes: &Value, clusters: &[Value]) -> Value {
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "test",
        "route_config": routes,
        "generate_request_id": false,
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        }],
    });
    json!({"static_resources": {
        "listeners": [{
            "name": "test",
            "address": {"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}},
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": manager,
            }]}],
        }],
        "clusters": clusters,
    }})
}

/// One request of a test.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) authority: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Ask {
    pub(crate) fn new(authority: &str, path: &str, headers: &[(&str, &str)]) -> Ask {
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Ask { authority: authority.into(), path: path.into(), headers }
    }

    /// The same request as our code sees it.
    pub(crate) fn head(&self) -> RequestHead {
        RequestHead {
            method: Method::Get,
            scheme: Scheme::Http,
            authority: Some(Bytes::from(self.authority.clone())),
            target: Target::Path(Bytes::from(self.path.clone())),
            version: Version::H11,
            headers: self.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect(),
        }
    }
}

/// A keep-alive HTTP/1.1 connection.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Client { stream: BufReader::new(stream) }
    }

    pub(crate) fn local(&self) -> SocketAddr {
        self.stream.get_ref().local_addr().unwrap()
    }

    pub(crate) fn ask(&mut self, ask: &Ask) -> Reply {
        let mut text = format!("GET {} HTTP/1.1\r\nhost: {}\r\n", ask.path, ask.authority);
        for (name, value) in &ask.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
        self.read()
    }

    fn read(&mut self) -> Reply {
        let status_line = self.line();
        let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut reply = Reply { status: status.unwrap(), headers, body: String::new() };
        let length = reply.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        reply.body = String::from_utf8(body).unwrap();
        reply
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

/// Random numbers of a seed (SplitMix64).
pub(crate) fn random(seed: u64) -> impl FnMut() -> u64 + use<> {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// What a backend answers with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    /// Its own address.
    Address,
    /// The same, as a 500.
    Failure,
    /// The request's path, host, and headers that start with `e-`, a line each.
    Request,
}

/// An HTTP server on loopback that answers everything until the test ends.
pub(crate) fn backend(answer: Answer) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer_all(stream, address, answer));
        }
    });
    address
}

fn answer_all(stream: TcpStream, address: SocketAddr, answer: Answer) {
    let mut reader = BufReader::new(stream);
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    while matches!(reader.read_line(&mut line), Ok(1..)) {
        let text = line.trim_end().to_owned();
        line.clear();
        if !text.is_empty() {
            lines.push(text);
            continue;
        }
        let body = match answer {
            Answer::Address | Answer::Failure => address.to_string(),
            Answer::Request => shown(&lines),
        };
        lines.clear();
        let status = if matches!(answer, Answer::Failure) { "500 Failed" } else { "200 OK" };
        let reply = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if reader.get_mut().write_all(reply.as_bytes()).is_err() {
            return;
        }
    }
}

fn shown(lines: &[String]) -> String {
    let path = lines[0].split(' ').nth(1).unwrap_or_default();
    let mut headers: Vec<String> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| format!("{}: {}", name.to_ascii_lowercase(), value.trim()))
        .filter(|line| line.starts_with("host:") || line.starts_with("e-"))
        .collect();
    // Stable: the order within a name stays.
    headers.sort_by(|a, b| a.split(':').next().cmp(&b.split(':').next()));
    format!("{path}\n{}", headers.join("\n"))
}
