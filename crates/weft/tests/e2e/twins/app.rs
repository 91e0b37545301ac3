//! Applications that record what reaches them, and fail when a request asks them to.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{net::TcpListener, task::JoinSet};

/// A request as an application saw it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival {
    pub app: String,
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Arrival {
    /// A line for each thing that can differ.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{} {}", self.app, self.line)];
        lines.extend(self.headers.iter().map(|(name, value)| format!("{name}: {value}")));
        lines.push(self.body.clone());
        lines
    }
}

/// (request id, twin) → arrivals in order.
type Book = Arc<Mutex<BTreeMap<(String, String), Vec<Arrival>>>>;

#[derive(Default)]
pub struct Apps {
    book: Book,
    tasks: JoinSet<()>,
}

impl Apps {
    pub async fn start(&mut self, name: &'static str, address: &str) {
        let listener = TcpListener::bind(address).await.expect("the application's address is free");
        let book = self.book.clone();
        self.tasks.spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let _ = stream.set_nodelay(true);
                let book = book.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(name, book.clone(), request));
                    let server = auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
    }

    /// What has arrived of a request through one of the twins: mirrors among them, so unordered.
    pub fn arrivals(&self, id: &str, twin: &str) -> Vec<Arrival> {
        let book = self.book.lock().expect("nobody panics with the book");
        let mut arrivals = book.get(&(id.to_owned(), twin.to_owned())).cloned().unwrap_or_default();
        arrivals.sort();
        arrivals
    }
}

async fn answer(
    name: &'static str,
    book: Book,
    request: Request<Incoming>,
) -> io::Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let text = |header: &str| {
        let value = head.headers.get(header).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let key = (text("x-id"), text("x-twin"));
    let arrival = Arrival {
        app: name.to_owned(),
        line: line(&head),
        headers: headers(&head),
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    let earlier = {
        let mut book = book.lock().expect("nobody panics with the book");
        let arrivals = book.entry(key).or_default();
        arrivals.push(arrival);
        let own = |one: &&Arrival| one.app == name && !one.line.contains("-shadow");
        arrivals.iter().filter(own).count().saturating_sub(1)
    };
    let is_copy = line(&head).contains("-shadow");
    if let Ok(millis) = text("x-sleep").parse() {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
    // A copy may arrive before or after what it was made of.
    let status = match failure(&text("x-fail"), earlier).filter(|_| !is_copy) {
        Some("reset") => return Err(io::Error::other("asked to break off")),
        Some(code) => code.parse().expect("a status"),
        None => 200,
    };
    let response = Response::builder().status(status).header("x-app", name);
    let response = response.header("x-resp-a", "1").header("server", "app").header("x-resp-b", "2");
    let text = if head.method == "HEAD" { "" } else { name };
    Ok(response.body(Full::new(text.into())).expect("a valid response"))
}

/// `x-fail: HOW:TIMES` fails the first arrivals of a request at this application.
fn failure(wanted: &str, earlier: usize) -> Option<&str> {
    let (how, times) = wanted.split_once(':')?;
    (earlier < times.parse().ok()?).then_some(how)
}

fn line(head: &http::request::Parts) -> String {
    let authority = head.uri.authority().map(|a| a.as_str().to_owned());
    let host = head.headers.get("host").and_then(|value| value.to_str().ok());
    let host = authority.or(host.map(str::to_owned)).unwrap_or_default();
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    format!("{:?} {} {host} {path}", head.version, head.method)
}

fn headers(head: &http::request::Parts) -> Vec<(String, String)> {
    let mut headers: Vec<(String, String)> = head
        .headers
        .iter()
        .filter(|(name, _)| name.as_str() != "host")
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    // The order among values of one name stays.
    headers.sort_by(|one, other| one.0.cmp(&other.0));
    headers
}
