//! Channels to the control plane: plain text or TLS with a given root.
//!
//! Owns the connector, keep-alive and token metadata, for ADS and CSR calls
//! alike. Must not know what is sent over them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// How long a TCP connect and TLS handshake may take together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 PING interval; a dead peer is noticed within this plus the timeout.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long a PING may stay unanswered.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the control plane may send before we have read it; the default of 64 KiB costs a round
/// trip for every 64 KiB of configuration.
const WINDOW_BYTES: u32 = 1024 * 1024;

/// Istio's metadata key for the cluster of a token.
const CLUSTER: &str = "clusterid";

/// Where a control plane is and how to trust it.
#[derive(Clone, Debug)]
pub struct Target {
    /// `http://host:port` or `https://host:port`.
    pub address: String,
    /// PEM of the roots to trust; needed for `https`.
    pub root_pem: Option<Vec<u8>>,
    /// A file that may hold newer ones: roots are replaced while proxies run. Read at every
    /// connect; while it cannot be, `root_pem` is what counts.
    pub root_file: Option<PathBuf>,
    /// Name to verify instead of the address' host.
    pub server_name: Option<String>,
    /// The Kubernetes cluster whose API server can say whose token we show.
    pub cluster: Option<String>,
}

/// Why no channel could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not `http://host:port` or `https://host:port`.
    #[error("control plane address `{0}` is not http://host:port or https://host:port")]
    Address(String),
    /// `https` without a root, or a root that is no certificate.
    #[error("control plane root certificate: {0}")]
    Root(String),
    /// The name to verify is no DNS name or IP address.
    #[error("`{0}` is not a server name")]
    ServerName(String),
    /// TCP, TLS or HTTP/2 set-up failed.
    #[error("connect to {address}: {source}")]
    Transport { address: String, source: tonic::transport::Error },
}

impl Target {
    /// A plain-text target.
    pub fn plain(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            root_pem: None,
            root_file: None,
            server_name: None,
            cluster: None,
        }
    }

    /// A TLS target trusting `root_pem`.
    pub fn tls(address: impl Into<String>, root_pem: Vec<u8>) -> Self {
        let root_pem = Some(root_pem);
        Self { root_pem, ..Self::plain(address) }
    }

    /// Says which cluster our token is from.
    #[must_use]
    pub fn with_cluster(mut self, cluster: &str) -> Self {
        self.cluster = Some(cluster.to_owned());
        self
    }

    /// Looks for newer roots in a file.
    #[must_use]
    pub fn with_root_file(mut self, path: PathBuf) -> Self {
        self.root_file = Some(path);
        self
    }

    /// Connects now.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(&self) -> Result<Channel, ConnectError> {
        let address = || ConnectError::Address(self.address.clone());
        let uri: Uri = self.address.parse().map_err(|_| address())?;
        let host = uri.host().ok_or_else(address)?.trim_matches(['[', ']']).to_owned();
        let endpoint = Endpoint::from(uri.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .tcp_nodelay(true);
        let (port, connected) = match uri.scheme_str() {
            Some("http") => {
                let port = uri.port_u16().unwrap_or(80);
                (port, endpoint.connect_with_connector(plain_connector(host, port)).await)
            }
            Some("https") => {
                let port = uri.port_u16().unwrap_or(443);
                let name = self.server_name.clone().unwrap_or_else(|| host.clone());
                let name = ServerName::try_from(name.clone())
                    .map_err(|_| ConnectError::ServerName(name))?;
                let tls = tokio_rustls::TlsConnector::from(Arc::new(self.tls_config()?));
                (port, endpoint.connect_with_connector(tls_connector(host, port, name, tls)).await)
            }
            _ => return Err(address()),
        };
        tracing::debug!(address = %self.address, port, ok = connected.is_ok(), "connect to control plane");
        connected
            .map_err(|source| ConnectError::Transport { address: self.address.clone(), source })
    }

    fn tls_config(&self) -> Result<rustls::ClientConfig, ConnectError> {
        let root = |text: String| ConnectError::Root(text);
        let pem = self.root_pem.as_deref().ok_or_else(|| root("none given for https".into()))?;
        let newer = self.root_file.as_ref().and_then(|path| std::fs::read(path).ok());
        let roots = match newer.as_deref().map(parse_roots) {
            Some(Ok(newer)) => newer,
            Some(Err(_)) | None => parse_roots(pem)?,
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| root(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn parse_roots(pem: &[u8]) -> Result<rustls::RootCertStore, ConnectError> {
    let wrong = |text: String| ConnectError::Root(text);
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    match roots.is_empty() {
        true => Err(wrong("no certificate in it".into())),
        false => Ok(roots),
    }
}

/// Puts `authorization: Bearer TOKEN` on a request.
///
/// # Errors
/// `InvalidArgument` if the token cannot stand in a header.
pub fn set_token<T>(
    request: &mut Request<T>,
    token: Option<&str>,
    cluster: Option<&str>,
) -> Result<(), Status> {
    let Some(token) = token else { return Ok(()) };
    let value = format!("Bearer {}", token.trim())
        .parse()
        .map_err(|_| Status::invalid_argument("the join token holds bytes no header may hold"))?;
    request.metadata_mut().insert("authorization", value);
    if let Some(cluster) = cluster.and_then(|cluster| cluster.parse().ok()) {
        request.metadata_mut().insert(CLUSTER, cluster);
    }
    Ok(())
}

/// The cluster a caller says its token is from; any client can write any.
pub fn cluster<T>(request: &Request<T>) -> Option<&str> {
    request.metadata().get(CLUSTER)?.to_str().ok()
}

/// The bearer token of a request, if any.
pub fn token<T>(request: &Request<T>) -> Option<&str> {
    let value = request.metadata().get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// What tonic's connector argument must be, spelled once.
trait Connector<Io>:
    tower::Service<Uri, Response = TokioIo<Io>, Error = std::io::Error, Future: Send> + Send + 'static
{
}

impl<T, Io> Connector<Io> for T where
    T: tower::Service<Uri, Response = TokioIo<Io>, Error = std::io::Error, Future: Send>
        + Send
        + 'static
{
}

fn plain_connector(host: String, port: u16) -> impl Connector<TcpStream> {
    tower::service_fn(move |_: Uri| {
        let host = host.clone();
        async move {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(stream))
        }
    })
}

fn tls_connector(
    host: String,
    port: u16,
    name: ServerName<'static>,
    tls: tokio_rustls::TlsConnector,
) -> impl Connector<tokio_rustls::client::TlsStream<TcpStream>> {
    tower::service_fn(move |_: Uri| {
        let (host, name, tls) = (host.clone(), name.clone(), tls.clone());
        async move {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(tls.connect(name, stream).await?))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_round_trips() {
        let mut request = Request::new(());
        assert_eq!(token(&request), None);
        set_token(&mut request, Some("abc.def\n"), Some("c2")).unwrap();
        assert_eq!(cluster(&request), Some("c2"));
        assert_eq!(token(&request), Some("abc.def"));
        assert!(set_token(&mut request, Some("a\nb"), None).is_err());
    }

    #[tokio::test]
    async fn bad_targets_say_why() {
        let error = Target::plain("ftp://x:1").connect().await.unwrap_err();
        assert!(matches!(error, ConnectError::Address(_)), "{error}");
        let error = Target::plain("https://localhost:1").connect().await.unwrap_err();
        assert!(matches!(error, ConnectError::Root(_)), "{error}");
    }
}
