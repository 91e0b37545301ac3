//! Requests to an API server. Knows the `kube` library for configuration, authentication and TLS;
//! nothing of its types leaves this file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

use super::limit::{Limit, Rate};

/// Longest answer that is read whole: a page of a list.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Longest event of a watch; an object has at most about 3 MiB.
const LINE_BYTES_MAX: usize = 16 << 20;
/// Longest time for an answer that is not a watch.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
/// A server cannot hold us off longer than this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);

/// How to reach an API server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Access {
    /// A kubeconfig; without one the Pod's own service account is used.
    pub kubeconfig: Option<PathBuf>,
    /// A context of it other than the current one.
    pub context: Option<String>,
    pub rate: Rate,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("cannot use the kubeconfig {path}: {reason}")]
    Kubeconfig { path: PathBuf, reason: String },
    #[error("not in a Pod with a service account: {0}; give --kubeconfig outside of a cluster")]
    InCluster(String),
    #[error("the kubeconfig cannot be used: {0}")]
    Text(String),
    #[error("cannot make a client for the API server: {0}")]
    Client(String),
}

/// Why a request has no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    #[error("the API server answered {status} {reason}: {message}")]
    Refused { status: u16, reason: String, message: String, retry_after: Option<Duration> },
    #[error("the API server's answer cannot be read: {0}")]
    Malformed(String),
}

impl ApiError {
    /// The HTTP status, when there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            ApiError::Refused { status, .. } => Some(*status),
            ApiError::Unreachable(_) | ApiError::Malformed(_) => None,
        }
    }

    /// How long the server asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            ApiError::Refused { retry_after, .. } => *retry_after,
            ApiError::Unreachable(_) | ApiError::Malformed(_) => None,
        }
    }
}

impl ApiError {
    /// The error that a watch tells.
    pub(crate) fn told(status: &Value) -> Self {
        let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok());
        let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
        ApiError::Refused {
            status: code.unwrap_or(500),
            reason: text("reason"),
            message: text("message"),
            retry_after: None,
        }
    }
}

/// How a PATCH is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patch {
    /// RFC 7396.
    Merge,
    /// Server-side apply.
    Apply,
}

/// A client of one API server. Cheap to clone; clones share the limit.
#[derive(Clone)]
pub struct Client {
    inner: Arc<ArcSwap<kube::Client>>,
    limit: Arc<Limit>,
}

impl Client {
    /// Reads the configuration; asks the server nothing.
    ///
    /// # Errors
    /// A kubeconfig or service account that is not there or cannot be used.
    pub async fn new(access: &Access) -> Result<Self, AccessError> {
        let config = match &access.kubeconfig {
            Some(path) => {
                let wrong = |error: kube::config::KubeconfigError| AccessError::Kubeconfig {
                    path: path.clone(),
                    reason: error.to_string(),
                };
                let options =
                    KubeConfigOptions { context: access.context.clone(), ..Default::default() };
                let file = Kubeconfig::read_from(path).map_err(wrong)?;
                kube::Config::from_custom_kubeconfig(file, &options).await.map_err(wrong)?
            }
            None => kube::Config::incluster()
                .map_err(|error| AccessError::InCluster(error.to_string()))?,
        };
        Self::of(config, access.rate)
    }

    /// From the text of a kubeconfig that somebody else wrote: it may name no program, no file and
    /// no way around certificates.
    ///
    /// # Errors
    /// A kubeconfig that cannot be used.
    pub async fn of_text(kubeconfig: &str, rate: Rate) -> Result<Self, AccessError> {
        let wrong = |reason: String| AccessError::Text(reason);
        harmless(kubeconfig).map_err(wrong)?;
        let file = Kubeconfig::from_yaml(kubeconfig).map_err(|error| wrong(error.to_string()))?;
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(file, &options).await;
        Self::of(config.map_err(|error| wrong(error.to_string()))?, rate)
    }

    fn of(mut config: kube::Config, rate: Rate) -> Result<Self, AccessError> {
        // Watches are quiet for minutes; limits of time and repetition are ours.
        config.read_timeout = None;
        config.default_retry = false;
        let inner = kube::Client::try_from(config)
            .map_err(|error| AccessError::Client(error.to_string()))?;
        Ok(Client {
            inner: Arc::new(ArcSwap::from_pointee(inner)),
            limit: Arc::new(Limit::new(rate)),
        })
    }

    /// This one and all its clones ask as the other does from now on.
    pub(crate) fn become_like(&self, other: &Client) {
        self.inner.store(other.inner.load_full());
    }

    /// The same server with a limit of its own.
    pub(super) fn limited(&self, rate: Rate) -> Self {
        Client { inner: self.inner.clone(), limit: Arc::new(Limit::new(rate)) }
    }

    /// GET of one object or one page.
    ///
    /// # Errors
    /// All of [`ApiError`].
    pub async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.whole(request(Method::GET, path)).await
    }

    /// POST of a new object.
    ///
    /// # Errors
    /// All of [`ApiError`]; status 409 when it is there already.
    pub async fn create(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        let builder = request(Method::POST, path).header(header::CONTENT_TYPE, "application/json");
        self.whole_with(builder, body).await
    }

    /// PUT of an object; its `resourceVersion` is the precondition.
    ///
    /// # Errors
    /// All of [`ApiError`]; status 409 when somebody else was faster.
    pub async fn replace(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        let builder = request(Method::PUT, path).header(header::CONTENT_TYPE, "application/json");
        self.whole_with(builder, body).await
    }

    /// PATCH of an object or subresource.
    ///
    /// # Errors
    /// All of [`ApiError`].
    pub async fn patch(&self, path: &str, style: Patch, body: &Value) -> Result<Value, ApiError> {
        let content_type = match style {
            Patch::Merge => "application/merge-patch+json",
            Patch::Apply => "application/apply-patch+yaml",
        };
        let builder = request(Method::PATCH, path).header(header::CONTENT_TYPE, content_type);
        self.whole_with(builder, body).await
    }

    /// DELETE of one object.
    ///
    /// # Errors
    /// All of [`ApiError`].
    pub async fn delete(&self, path: &str) -> Result<Value, ApiError> {
        self.whole(request(Method::DELETE, path)).await
    }

    /// The lines of a watch.
    ///
    /// # Errors
    /// All of [`ApiError`].
    pub async fn watch(&self, path: &str) -> Result<Lines, ApiError> {
        let request = request(Method::GET, path).body(Body::empty());
        let started = tokio::time::timeout(ANSWER_TIME_MAX, self.send(request));
        let response = started.await.map_err(|_| late())??;
        Ok(Lines { body: response.into_body(), buffer: BytesMut::new() })
    }

    async fn whole_with(
        &self,
        builder: http::request::Builder,
        body: &Value,
    ) -> Result<Value, ApiError> {
        self.answered(builder.body(Body::from(body.to_string().into_bytes()))).await
    }

    async fn whole(&self, builder: http::request::Builder) -> Result<Value, ApiError> {
        self.answered(builder.body(Body::empty())).await
    }

    async fn answered(&self, request: http::Result<Request<Body>>) -> Result<Value, ApiError> {
        let answer = async {
            let response = self.send(request).await?;
            let bytes = read(response.into_body()).await?;
            serde_json::from_slice(&bytes).map_err(|error| ApiError::Malformed(error.to_string()))
        };
        tokio::time::timeout(ANSWER_TIME_MAX, answer).await.map_err(|_| late())?
    }

    /// The answer, when it is a success.
    async fn send(&self, request: http::Result<Request<Body>>) -> Result<Response<Body>, ApiError> {
        let request = request.map_err(|error| ApiError::Malformed(error.to_string()))?;
        self.limit.wait().await;
        // Its clones share their connections.
        let inner = kube::Client::clone(&self.inner.load());
        let sent = inner.send(request).await;
        let response = sent.map_err(|error| ApiError::Unreachable(chain(&error)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let after = response.headers().get(header::RETRY_AFTER);
        let after = after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let retry_after = after.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
        // An answer without the API's Status is a proxy's in between; its code says enough.
        let told: Value = match read(response.into_body()).await {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(_) => Value::Null,
        };
        Err(refused(status, &told, retry_after))
    }
}

/// What a kubeconfig must not ask of whoever uses it.
fn harmless(kubeconfig: &str) -> Result<(), String> {
    const USER: &[&str] =
        &["exec", "auth-provider", "tokenFile", "client-certificate", "client-key"];
    const CLUSTER: &[&str] = &["certificate-authority", "insecure-skip-tls-verify"];
    let parsed: Value = serde_saphyr::from_str(kubeconfig).map_err(|error| error.to_string())?;
    for (list, section, fields) in [("users", "user", USER), ("clusters", "cluster", CLUSTER)] {
        for entry in parsed[list].as_array().into_iter().flatten() {
            let has = |field: &&&str| {
                !matches!(
                    entry[section].get(**field),
                    None | Some(Value::Null | Value::Bool(false))
                )
            };
            if let Some(field) = fields.iter().find(has) {
                return Err(format!("{section}.{field} is not allowed here"));
            }
        }
    }
    Ok(())
}

fn refused(status: StatusCode, told: &Value, retry_after: Option<Duration>) -> ApiError {
    let text = |field: &str| told[field].as_str().unwrap_or_default().to_owned();
    ApiError::Refused {
        status: status.as_u16(),
        reason: text("reason"),
        message: text("message"),
        retry_after,
    }
}

fn request(method: Method, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(path).header(header::ACCEPT, "application/json")
}

fn late() -> ApiError {
    ApiError::Unreachable(format!("no answer within {} s", ANSWER_TIME_MAX.as_secs()))
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

async fn read(mut body: Body) -> Result<BytesMut, ApiError> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::Unreachable(chain(&error)))?;
        if let Ok(data) = frame.into_data() {
            bytes.extend_from_slice(&data);
        }
        if bytes.len() > ANSWER_BYTES_MAX {
            let why = format!("the answer is longer than {ANSWER_BYTES_MAX} bytes");
            return Err(ApiError::Malformed(why));
        }
    }
    Ok(bytes)
}

/// A watch's lines, one event each.
pub struct Lines {
    body: Body,
    buffer: BytesMut,
}

impl Lines {
    /// The next whole line; `None` when the server ended the watch as agreed.
    /// Cancel-safe.
    ///
    /// # Errors
    /// A broken connection, a line that ends in the middle or is too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(searched + end + 1).freeze();
                return Ok(Some(line));
            }
            searched = self.buffer.len();
            if searched > LINE_BYTES_MAX {
                let why = format!("an event is longer than {LINE_BYTES_MAX} bytes");
                return Err(ApiError::Malformed(why));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(ApiError::Unreachable(chain(&error))),
                None if self.buffer.is_empty() => return Ok(None),
                None => {
                    return Err(ApiError::Malformed("the watch ended inside of an event".into()));
                }
            }
        }
    }
}
