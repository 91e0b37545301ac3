//! The gateway's certificate for wallstreetcn.com: self-signed, as files, as the article mounts it.

use anyhow::Context as _;
use rcgen::{CertificateParams, DnType, KeyPair};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Paths of the PEM files.
#[derive(Debug, Clone)]
pub(super) struct Certificates {
    pub(super) chain: PathBuf,
    pub(super) key: PathBuf,
}

/// Makes the files in `dir`, or keeps the ones that are there.
pub(super) fn write(dir: &Path, host: &str) -> anyhow::Result<Certificates> {
    let files = Certificates { chain: dir.join("tls.crt"), key: dir.join("tls.key") };
    if files.chain.exists() && files.key.exists() {
        return Ok(files);
    }
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![host.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, host);
    let certificate = params.self_signed(&key)?;
    private(&files.key, &key.serialize_pem())?;
    std::fs::write(&files.chain, certificate.pem())
        .with_context(|| format!("writing {}", files.chain.display()))?;
    Ok(files)
}

/// Writes a file that only its owner may read.
pub(super) fn private(path: &Path, content: &str) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("creating {}", path.display()))?;
    file.write_all(content.as_bytes()).with_context(|| format!("writing {}", path.display()))
}
