//! Asking a control plane for its status page; used by `weft proxy-status`.

use std::time::Duration;

use http::Request;
use hyper::body::Body as _;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{ProxyStatus, Question};

/// How long the whole question may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest page read; about 1 KiB a proxy.
const PAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(
        "cannot reach the control plane at {address}: {source}; is it running, and is this its status address?"
    )]
    Connect { address: String, source: std::io::Error },
    #[error("the control plane at {address} did not answer in time")]
    Timeout { address: String },
    #[error("asking {address}: {source}")]
    Http { address: String, source: hyper::Error },
    #[error("{address} answered {status}: {reason}")]
    Status { address: String, status: u16, reason: String },
    #[error("{address} sent more than {PAGE_BYTES_MAX} bytes")]
    TooLarge { address: String },
    #[error("{address} sent something that is no status page: {source}")]
    Json { address: String, source: serde_json::Error },
}

/// Connected proxies, from `host:port` of the status port (15014).
///
/// # Errors
/// See [`FetchError`].
pub async fn proxies(address: &str) -> Result<Vec<ProxyStatus>, FetchError> {
    let page = get(address, "/debug/syncz").await?;
    serde_json::from_slice(&page)
        .map_err(|source| FetchError::Json { address: address.to_owned(), source })
}

/// The answer of `/debug/why`, as JSON.
///
/// # Errors
/// See [`FetchError`].
pub async fn why(address: &str, question: &Question) -> Result<Vec<u8>, FetchError> {
    let json = serde_json::to_string(question)
        .map_err(|source| FetchError::Json { address: address.to_owned(), source })?;
    get(address, &format!("/debug/why?q={}", escaped(&json))).await
}

/// A page of the recent past, such as `/telemetry/graph`, asked with these names and values.
///
/// # Errors
/// See [`FetchError`].
pub async fn telemetry<T: serde::de::DeserializeOwned>(
    address: &str,
    page: &str,
    query: &[(&str, String)],
) -> Result<T, FetchError> {
    let query: Vec<String> =
        query.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
    let page = get(address, &format!("{page}?{}", query.join("&"))).await?;
    serde_json::from_slice(&page)
        .map_err(|source| FetchError::Json { address: address.to_owned(), source })
}

/// As the value of a query.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The body of any page of the status port.
///
/// # Errors
/// See [`FetchError`].
pub async fn get(address: &str, path: &str) -> Result<Vec<u8>, FetchError> {
    match tokio::time::timeout(TIMEOUT, exchange(address, path)).await {
        Ok(page) => page,
        Err(_) => Err(FetchError::Timeout { address: address.to_owned() }),
    }
}

async fn exchange(address: &str, path: &str) -> Result<Vec<u8>, FetchError> {
    let own = || address.to_owned();
    let http = |source| FetchError::Http { address: own(), source };
    let stream = TcpStream::connect(address)
        .await
        .map_err(|source| FetchError::Connect { address: own(), source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    tokio::spawn(connection);
    let request = Request::get(path)
        .header("host", address)
        .body(String::new())
        .expect("a path of ours and an address that was connected to");
    let response = sender.send_request(request).await.map_err(http)?;
    let status = response.status().as_u16();
    let mut body = std::pin::pin!(response.into_body());
    let mut page = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        if let Ok(data) = frame.map_err(http)?.into_data() {
            page.extend_from_slice(&data);
        }
        if page.len() > PAGE_BYTES_MAX {
            return Err(FetchError::TooLarge { address: own() });
        }
    }
    if status != 200 {
        let reason = String::from_utf8_lossy(&page).trim().to_owned();
        return Err(FetchError::Status { address: own(), status, reason });
    }
    Ok(page)
}
