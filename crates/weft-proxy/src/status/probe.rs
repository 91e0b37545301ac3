//! Probes of the application in the kubelet's place: HTTP, TCP and gRPC, as the pod's author wrote
//! them. They go to the pod's own address from the address by which capture rules know the proxy's
//! traffic to its application.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};

/// Kubernetes' default of `timeoutSeconds`.
const TIMEOUT_S: u64 = 1;
/// Bytes of an application's answer that are read: the kubelet reads 10 KiB.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// The application's probes by path, and where to ask.
#[derive(Debug, Clone)]
pub struct Probes {
    all: HashMap<String, Probe>,
    pub(super) way: Way,
}

/// How the application is reached.
#[derive(Debug, Clone)]
pub(super) struct Way {
    application: IpAddr,
    captured: bool,
}

impl Default for Probes {
    fn default() -> Probes {
        let application = Ipv4Addr::LOCALHOST.into();
        Probes { all: HashMap::new(), way: Way { application, captured: false } }
    }
}

impl Way {
    pub(super) fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.application, port)
    }

    pub(super) async fn connect(&self, port: u16) -> std::io::Result<TcpStream> {
        let to = self.address(port);
        let (socket, from) = match to {
            SocketAddr::V4(_) => (TcpSocket::new_v4()?, IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6))),
            SocketAddr::V6(_) => {
                (TcpSocket::new_v6()?, IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)))
            }
        };
        if self.captured {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        socket.connect(to).await
    }
}

/// One probe, in Kubernetes' words.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Probe {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocketProbe>,
    grpc: Option<Grpc>,
    timeout_seconds: Option<u64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    #[serde(default)]
    path: String,
    port: u16,
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    http_headers: Vec<Header>,
}

#[derive(Debug, Clone, Deserialize)]
struct Header {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Debug, Clone, Deserialize)]
struct TcpSocketProbe {
    port: u16,
}

#[derive(Debug, Clone, Deserialize)]
struct Grpc {
    port: u16,
    #[serde(default)]
    service: String,
}

/// Why a probe fails.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nobody knows this path.
    #[error("no such probe")]
    Unknown,
    /// The application did not answer in time.
    #[error("the application did not answer within {0:?}")]
    Timeout(Duration),
    /// It could not be reached, or broke off.
    #[error("the application: {0}")]
    Io(#[from] std::io::Error),
    /// It does not speak the protocol.
    #[error("the application: {0}")]
    Http(#[from] hyper::Error),
    /// The probe itself makes no sense.
    #[error("the probe: {0}")]
    Probe(String),
    /// gRPC: it says that it is not serving.
    #[error("the application says it is not serving (gRPC health status {0})")]
    NotServing(u64),
}

impl ProbeError {
    /// What the kubelet is told.
    pub fn status(&self) -> StatusCode {
        match self {
            ProbeError::Unknown => StatusCode::NOT_FOUND,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl Probes {
    /// From the variable that injection writes (`ISTIO_KUBE_APP_PROBERS`): a JSON object of probes
    /// by path. `captured` says whether capture rules stand between us and the application.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str, application: IpAddr, captured: bool) -> Result<Probes, String> {
        let all: HashMap<String, Probe> = match text.trim() {
            "" => HashMap::new(),
            text => serde_json::from_str(text).map_err(|error| error.to_string())?,
        };
        Ok(Probes { all, way: Way { application, captured } })
    }

    /// Asks the application; the status for the kubelet. `from` are the headers it sent.
    pub async fn ask(&self, path: &str, from: &HeaderMap) -> Result<StatusCode, ProbeError> {
        let probe = self.all.get(path).ok_or(ProbeError::Unknown)?;
        let seconds = probe.timeout_seconds.unwrap_or(TIMEOUT_S).max(1);
        let limit = Duration::from_secs(seconds);
        match tokio::time::timeout(limit, self.carry_out(probe, from)).await {
            Ok(result) => result,
            Err(_) => Err(ProbeError::Timeout(limit)),
        }
    }

    async fn carry_out(&self, probe: &Probe, from: &HeaderMap) -> Result<StatusCode, ProbeError> {
        if let Some(http) = &probe.http_get {
            return self.http(http, from).await;
        }
        if let Some(grpc) = &probe.grpc {
            return self.grpc(grpc).await;
        }
        if let Some(tcp) = &probe.tcp_socket {
            self.way.connect(tcp.port).await?;
            return Ok(StatusCode::OK);
        }
        Err(ProbeError::Probe("is none of httpGet, tcpSocket and grpc".into()))
    }

    async fn http(&self, probe: &HttpGet, from: &HeaderMap) -> Result<StatusCode, ProbeError> {
        let path = if probe.path.starts_with('/') { "" } else { "/" };
        let uri: Uri = format!("{path}{}", probe.path)
            .parse()
            .map_err(|error| ProbeError::Probe(format!("path {:?}: {error}", probe.path)))?;
        let mut request = Request::new(Full::<Bytes>::default());
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        let host = self.way.address(probe.port).to_string();
        headers.insert(header::HOST, value(&host)?);
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        for known in [header::USER_AGENT, header::ACCEPT] {
            headers.extend(from.get(&known).map(|value| (known, value.clone())));
        }
        for Header { name, value: text } in &probe.http_headers {
            let name: HeaderName =
                name.parse().map_err(|_| ProbeError::Probe(format!("{name:?} is no header")))?;
            headers.insert(name, value(text)?);
        }
        let tcp = self.way.connect(probe.port).await?;
        let status = match probe.scheme.eq_ignore_ascii_case("https") {
            false => exchange(tcp, request).await?,
            true => exchange(secure(tcp, self.way.application).await?, request).await?,
        };
        // To the kubelet a redirection is success; followed, it would lead past us.
        Ok(if status.is_redirection() { StatusCode::OK } else { status })
    }

    /// grpc.health.v1.Health/Check.
    async fn grpc(&self, probe: &Grpc) -> Result<StatusCode, ProbeError> {
        let tcp = self.way.connect(probe.port).await?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await?;
        let connection = tokio::spawn(connection);
        let address = self.way.address(probe.port);
        let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(Full::new(check_message(&probe.service)))
            .map_err(|error| ProbeError::Probe(error.to_string()))?;
        let response = sender.send_request(request).await?;
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        connection.abort();
        let body = body.map_err(|error| ProbeError::Probe(error.to_string()))?.to_bytes();
        /// ServingStatus.SERVING
        const SERVING: u64 = 1;
        match serving_status(&body) {
            SERVING => Ok(StatusCode::OK),
            other => Err(ProbeError::NotServing(other)),
        }
    }
}

pub(super) fn value(text: &str) -> Result<HeaderValue, ProbeError> {
    HeaderValue::from_str(text)
        .map_err(|_| ProbeError::Probe(format!("{text:?} is no header value")))
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<StatusCode, ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    // The head says it all; reading on lets the application end in peace.
    let _ = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    connection.abort();
    Ok(status)
}

/// HealthCheckRequest{service} as a gRPC message. Kubernetes' names of services are short.
fn check_message(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a); // Field 1, text.
        prost::encoding::encode_varint(service.len() as u64, &mut message);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend(message);
    framed.into()
}

/// HealthCheckResponse.status of a gRPC message; 0 (unknown) if it has none.
fn serving_status(framed: &[u8]) -> u64 {
    match framed.get(5..) {
        // Field 1, number.
        Some([0x08, rest @ ..]) => prost::encoding::decode_varint(&mut &*rest).unwrap_or(0),
        _ => 0,
    }
}

async fn secure(
    tcp: TcpStream,
    to: IpAddr,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ProbeError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| ProbeError::Probe(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    Ok(connector.connect(ServerName::from(to), tcp).await?)
}

/// Accepts any certificate, as the kubelet does: a probe carries no secret.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_messages() {
        assert_eq!(&check_message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&check_message("ab")[..], b"\0\0\0\0\x04\x0a\x02ab");
        assert_eq!(serving_status(b"\0\0\0\0\x02\x08\x01"), 1);
        for nothing in [&b""[..], b"\0\0\0\0\0", b"\0\0\0\0\x01\x08", b"\0\0\0\0\x02\x10\x01"] {
            assert_eq!(serving_status(nothing), 0, "{nothing:?}");
        }
    }

    #[test]
    fn the_variable_of_injection_is_read() {
        let here = Ipv4Addr::LOCALHOST.into();
        let text = r#"{"/app-health/a/livez": {"httpGet": {"path": "/x", "port": 80}},
            "/app-health/a/readyz": {"grpc": {"port": 5}, "timeoutSeconds": 3}}"#;
        let probes = Probes::parse(text, here, true).unwrap();
        assert_eq!(probes.all["/app-health/a/readyz"].timeout_seconds, Some(3));
        assert!(Probes::parse("", here, false).unwrap().all.is_empty());
        assert!(Probes::parse("{\"/a\": {\"httpGet\": {}}}", here, false).is_err());
    }
}
