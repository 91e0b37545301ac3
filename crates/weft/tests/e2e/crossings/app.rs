//! The application of the crossings: an HTTP/1 server that answers by path, and a TCP server that
//! goes by its first bytes. Neither reads or writes more than it is told to.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc},
};

use super::{FLOOD, ROUNDS};

const RECORDED: &str = "HTTP/1.1 299 So So\r\nX-Answer-ID: 1\r\nSet-Cookie: a\r\nx-answer-id: 2\r\n\
                        SET-COOKIE: b\r\nTransfer-Encoding: chunked\r\nX-Last: z\r\n\r\n\
                        2\r\nok\r\n0\r\nX-EndID: 1\r\nX-EndID: 2\r\n\r\n";
const PIECE: usize = 64 * 1024;

pub struct App {
    pub http: u16,
    pub tcp: u16,
    pub flood: Arc<Writer>,
    pub tcp_flood: Arc<Writer>,
    recorded: Mutex<mpsc::UnboundedReceiver<String>>,
}

/// Somebody who writes as much as is taken.
#[derive(Default)]
pub struct Writer {
    sent: AtomicU64,
    running: AtomicU64,
}

#[derive(Clone)]
struct Shared {
    record: mpsc::UnboundedSender<String>,
    flood: Arc<Writer>,
    tcp_flood: Arc<Writer>,
}

impl App {
    pub async fn start() -> App {
        let (record, recorded) = mpsc::unbounded_channel();
        let shared = Shared { record, flood: Arc::default(), tcp_flood: Arc::default() };
        let bind = || TcpListener::bind("127.0.0.1:0");
        let http = bind().await.expect("loopback has ports");
        let tcp = bind().await.expect("loopback has ports");
        let port = |listener: &TcpListener| listener.local_addr().expect("bound").port();
        let app = App {
            http: port(&http),
            tcp: port(&tcp),
            flood: shared.flood.clone(),
            tcp_flood: shared.tcp_flood.clone(),
            recorded: Mutex::new(recorded),
        };
        let other = shared.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = http.accept().await {
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = tcp.accept().await {
                tokio::spawn(serve_tcp(stream, other.clone()));
            }
        });
        app
    }

    /// The next request to `/record`, head, body and trailers.
    pub async fn recorded(&self) -> String {
        self.recorded.lock().await.recv().await.expect("the application runs")
    }

    /// Waits until no flood is under way.
    pub async fn floods_ended(&self) {
        for writer in [&self.flood, &self.tcp_flood] {
            weft_testkit::wait::until("the flood to end", Duration::from_secs(30), || async {
                (writer.running.load(Ordering::SeqCst) == 0).then_some(())
            })
            .await;
        }
    }
}

impl Writer {
    /// Waits until it writes no more, though every proxy on the way had its turns: `round` is a
    /// request through all of them. How much it has written.
    pub async fn until_stopped(&self, round: impl AsyncFn()) -> u64 {
        let mut before = 0;
        loop {
            for _ in 0..ROUNDS {
                round().await;
            }
            let sent = self.sent.load(Ordering::SeqCst);
            if sent > 0 && sent == before {
                return sent;
            }
            before = sent;
        }
    }

    /// Writes until the reader is gone or all is written.
    async fn write(&self, stream: &mut TcpStream) {
        self.sent.store(0, Ordering::SeqCst);
        self.running.fetch_add(1, Ordering::SeqCst);
        let piece = "flood".repeat(PIECE / 5);
        let mut left = FLOOD;
        while left > 0 {
            let part = &piece.as_bytes()[..piece.len().min(left as usize)];
            match stream.write(part).await {
                Ok(count) if count > 0 => left -= count as u64,
                Ok(_) | Err(_) => break,
            }
            self.sent.store(FLOOD - left, Ordering::SeqCst);
        }
        self.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What `/large` answers with.
pub fn large() -> String {
    "0123456789abcdef".repeat(64 * 1024)
}

async fn serve(mut stream: TcpStream, shared: Shared) {
    let mut read = Vec::new();
    while let Some(head) = until(&mut stream, &mut read, "\r\n\r\n").await {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let answer = match path {
            "/record" => {
                let Some(body) = until(&mut stream, &mut read, "\r\n0\r\n").await else { return };
                let Some(end) = until(&mut stream, &mut read, "\r\n\r\n").await else { return };
                let _ = shared.record.send([head, body, end].concat());
                RECORDED.to_owned()
            }
            "/ok" => {
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n".to_owned()
                    + if head.starts_with("HEAD") { "" } else { "ok" }
            }
            "/large" => {
                let body = large();
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
            }
            "/expect" => {
                let early =
                    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
                let _ = stream.write_all(early.as_bytes()).await;
                let Some(body) = until(&mut stream, &mut read, "body").await else { return };
                format!("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ngot {body}")
            }
            "/ws" => {
                let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                              Connection: Upgrade\r\n\r\n";
                let _ = stream.write_all(switch.as_bytes()).await;
                let _ = stream.write_all(&read).await;
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                return;
            }
            "/flood" => {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {FLOOD}\r\n\r\n");
                let _ = stream.write_all(head.as_bytes()).await;
                shared.flood.write(&mut stream).await;
                return;
            }
            // Takes nothing, as long as the test runs.
            "/stall" => return std::future::pending().await,
            _ => {
                let status = path.strip_prefix("/status/").unwrap_or("404");
                match status {
                    "204" | "304" => format!("HTTP/1.1 {status} X\r\n\r\n"),
                    _ => format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"),
                }
            }
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn serve_tcp(mut stream: TcpStream, shared: Shared) {
    let mut read = Vec::new();
    while read.len() < 5 {
        match stream.read_buf(&mut read).await {
            Ok(count) if count > 0 => {}
            Ok(_) | Err(_) => return,
        }
    }
    match &read[..5] {
        b"flood" => shared.tcp_flood.write(&mut stream).await,
        b"stall" => std::future::pending().await,
        _ => {
            let _ = stream.write_all(&read[5..]).await;
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
        }
    }
}

/// Everything up to and including `end`; none when the connection ends first.
async fn until(stream: &mut TcpStream, read: &mut Vec<u8>, end: &str) -> Option<String> {
    loop {
        if let Some(at) = read.windows(end.len()).position(|window| window == end.as_bytes()) {
            let rest = read.split_off(at + end.len());
            let text = std::mem::replace(read, rest);
            return Some(String::from_utf8_lossy(&text).into_owned());
        }
        match stream.read_buf(read).await {
            Ok(count) if count > 0 => {}
            Ok(_) | Err(_) => return None,
        }
    }
}
