//! Certificates and trust roots that configuration names by file path: loaded before the
//! configuration that needs them is used, re-read when the file changes. A file that has gone bad
//! is reported and the secret before it stays.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use weft_telemetry::Registry;

use super::TlsError;
use super::configs::{SYSTEM_ROOTS, file_certificate_name, file_lists_name, file_roots_name};
use super::secrets::{Certificate, Roots, RootsFrom, Secrets, revocation_lists};

/// How often files are looked at. Kubernetes itself takes up to a minute to update mounted secrets.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Where distributions keep the system's trust roots.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A secret on disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FileSecret {
    /// Certificate chain and key.
    Certificate {
        /// Path of the chain, PEM.
        chain: Arc<str>,
        /// Path of the key, PEM.
        key: Arc<str>,
    },
    /// Trust roots, PEM.
    Roots(Arc<str>),
    /// The system's trust roots.
    SystemRoots,
    /// Lists of revoked certificates, PEM.
    Lists(Arc<str>),
}

/// What is watched, with the state of the files when they were last read.
pub struct FileSecrets {
    secrets: Arc<Secrets>,
    metrics: Registry,
    watched: Mutex<HashMap<FileSecret, Stamp>>,
}

/// Modification time and size of each file; `None` for a file that is not there.
type Stamp = Vec<Option<(SystemTime, u64)>>;

impl FileSecrets {
    /// Watches nothing yet.
    pub fn new(secrets: Arc<Secrets>, metrics: Registry) -> FileSecrets {
        FileSecrets { secrets, metrics, watched: Mutex::default() }
    }

    /// Watches exactly these from now on; new ones are loaded before this returns.
    pub fn watch(&self, wanted: impl IntoIterator<Item = FileSecret>) {
        let mut watched = self.lock();
        let mut old = std::mem::take(&mut *watched);
        for file in wanted {
            let stamp = match old.remove(&file) {
                Some(stamp) => stamp,
                None => self.read(&file),
            };
            watched.insert(file, stamp);
        }
    }

    /// Looks at the files once and re-reads those that changed.
    pub fn look(&self) {
        for (file, stamp) in self.lock().iter_mut() {
            if *stamp != stamp_of(file) {
                *stamp = self.read(file);
            }
        }
    }

    /// Looks again and again.
    pub async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.look();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<FileSecret, Stamp>> {
        self.watched.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The stamp is taken first: a change during the read is seen as a change again.
    fn read(&self, file: &FileSecret) -> Stamp {
        let stamp = stamp_of(file);
        match load(file, &self.secrets) {
            Ok(()) => tracing::info!(?file, "certificate file read"),
            Err(error) => {
                let name = "weft_proxy_certificate_file_errors_total";
                self.metrics.counter(name, "Certificate files that could not be used.", &[]).inc();
                tracing::error!(?file, %error, "certificate file not used; the one before stays");
            }
        }
        stamp
    }
}

impl FileSecret {
    /// The file behind an SDS name of Istio's file form (`file-cert:CHAIN~KEY`, `file-root:PATH`).
    pub fn from_sds_name(name: &str) -> Option<FileSecret> {
        if name == SYSTEM_ROOTS {
            return Some(FileSecret::SystemRoots);
        }
        if let Some(path) = name.strip_prefix("file-root:") {
            return Some(FileSecret::Roots(path.into()));
        }
        let (chain, key) = name.strip_prefix("file-cert:")?.split_once('~')?;
        Some(FileSecret::Certificate { chain: chain.into(), key: key.into() })
    }
}

fn load(file: &FileSecret, secrets: &Secrets) -> Result<(), TlsError> {
    match file {
        FileSecret::Certificate { chain, key } => {
            let certificate = Certificate::from_pem(&read_file(chain)?, &read_file(key)?)?;
            secrets.set_certificate(&file_certificate_name(chain, key), certificate);
        }
        FileSecret::Roots(path) => {
            let roots = Roots::from_pem(&read_file(path)?)?;
            secrets.set_roots(&file_roots_name(path), RootsFrom::File, roots);
        }
        FileSecret::Lists(path) => {
            secrets.set_lists(&file_lists_name(path), revocation_lists(&read_file(path)?)?);
        }
        FileSecret::SystemRoots => {
            let Some(path) = SYSTEM_BUNDLES.iter().find(|path| Path::new(path).exists()) else {
                return Err(TlsError::BadSecret("this system has no root certificates".into()));
            };
            secrets.set_roots(SYSTEM_ROOTS, RootsFrom::File, Roots::from_pem(&read_file(path)?)?);
        }
    }
    Ok(())
}

fn read_file(path: &str) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::BadSecret(format!("{path}: {error}")))
}

fn stamp_of(file: &FileSecret) -> Stamp {
    let one = |path: &str| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    match file {
        FileSecret::Certificate { chain, key } => vec![one(chain), one(key)],
        FileSecret::Roots(path) | FileSecret::Lists(path) => vec![one(path)],
        FileSecret::SystemRoots => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str) {
        let issued = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        std::fs::write(dir.join("key.pem"), issued.signing_key.serialize_pem()).unwrap();
        std::fs::write(dir.join("chain.pem"), issued.cert.pem()).unwrap();
    }

    #[test]
    fn a_changed_file_is_read_and_a_bad_one_leaves_the_old() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| Arc::<str>::from(dir.path().join(name).display().to_string());
        let (chain, key) = (path("chain.pem"), path("key.pem"));
        let name = file_certificate_name(&chain, &key);
        let file = FileSecret::from_sds_name(&name).unwrap();
        assert_eq!(file, FileSecret::Certificate { chain, key });

        let (secrets, metrics) = (Arc::new(Secrets::new()), Registry::new());
        let files = FileSecrets::new(secrets.clone(), metrics.clone());
        let sans = || secrets.current().certificate(&name).map(|found| found.info.sans.clone());
        files.watch([file.clone()]);
        assert_eq!(sans(), None, "not there yet");
        write(dir.path(), "first.example");
        files.look();
        assert_eq!(sans(), Some(vec!["first.example".to_owned()]));
        write(dir.path(), "second.example");
        files.look();
        assert_eq!(sans(), Some(vec!["second.example".to_owned()]));
        std::fs::write(dir.path().join("chain.pem"), "nonsense").unwrap();
        files.look();
        assert_eq!(sans(), Some(vec!["second.example".to_owned()]));
        let mut page = Vec::new();
        metrics.render_prometheus(&mut page);
        let errors = "weft_proxy_certificate_file_errors_total 2";
        assert!(String::from_utf8(page).unwrap().contains(errors));
    }
}
