//! TLS 1.3 with certificates of the benchmark's own authority, asked of both sides.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

/// The name in the servers' certificates.
pub const SERVER: &str = "bench.local";

/// A server that takes only clients with a certificate of the authority.
pub fn server(folder: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots(folder)?)).build()?;
    let (chain, key) = own(folder, "cert.pem", "key.pem")?;
    let mut config =
        ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A client that shows its certificate.
pub fn client(folder: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let (chain, key) = own(folder, "client.pem", "client-key.pem")?;
    let config = ClientConfig::builder()
        .with_root_certificates(roots(folder)?)
        .with_client_auth_cert(chain, key)?;
    Ok(Arc::new(config))
}

fn roots(folder: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let path = folder.join("ca.pem");
    roots.add(CertificateDer::from_pem_file(&path).context("ca.pem of the benchmark")?)?;
    Ok(roots)
}

fn own(
    folder: &Path,
    chain: &str,
    key: &str,
) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::from_pem_file(folder.join(chain))?;
    Ok((vec![chain], PrivateKeyDer::from_pem_file(folder.join(key))?))
}
