//! This workload's own identity: a key made here, a certificate from the CA's CSR service, renewed
//! around half of its life. The key lives in memory; only with a state directory is it also kept
//! on disk (0600), because a proxy that restarts without its control plane would otherwise have no
//! identity. Connections are untouched by a renewal: the next handshake uses the new certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rcgen::{CertificateParams, KeyPair, SanType};
use weft_telemetry::Registry;
use weft_xds::ca::IstioCertificateRequest;
use weft_xds::connect::Target;
use weft_xds::names::{SECRET_DEFAULT, SECRET_ROOT};

use super::TlsError;
use super::secrets::{Certificate, Roots, RootsFrom, Secrets};
use super::verify::spiffe_id;
use crate::state::unix_now;

/// First and longest wait between attempts when the CA does not answer.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Limit on one call to the CA.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Share of the life at which a certificate that could not be renewed raises an alarm.
const ALARM_LIFE_LEFT: f64 = 0.2;

/// Who to become and whom to ask.
#[derive(Debug, Clone)]
pub struct IdentityConfig {
    /// `spiffe://DOMAIN/ns/NS/sa/SA`.
    pub spiffe_id: String,
    /// The CA service.
    pub ca: Target,
    /// Read anew for every call, since projected tokens rotate.
    pub token_file: PathBuf,
    /// Keeps key and certificate over restarts.
    pub state_dir: Option<PathBuf>,
    /// Asked of the CA, which may shorten it. Zero: the CA's default.
    pub validity: Duration,
}

/// A key with the chain issued for it, in PEM.
struct Issued {
    key: String,
    chain: String,
    roots: String,
}

/// Obtains and renews the identity for as long as the process lives.
pub async fn run(config: IdentityConfig, secrets: Arc<Secrets>, metrics: Registry) {
    let expiry = metrics.gauge(
        "weft_proxy_certificate_expiry_seconds",
        "Unix time at which the workload certificate expires.",
        &[],
    );
    let mut life = match restore(&config, &secrets) {
        Some(life) => life,
        None => Life { not_before: 0, not_after: 0 },
    };
    let mut retry = RETRY_MIN;
    loop {
        expiry.set(life.not_after);
        tokio::time::sleep(life.until_renewal(unix_now())).await;
        match renew(&config, &secrets).await {
            Ok(new) => {
                count(&metrics, "success");
                tracing::info!(
                    id = config.spiffe_id,
                    not_after = new.not_after,
                    "certificate issued"
                );
                (life, retry) = (new, RETRY_MIN);
            }
            Err(error) => {
                count(&metrics, "failure");
                report(&config, life, &error);
                tokio::time::sleep(jittered(retry)).await;
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
    }
}

fn count(metrics: &Registry, result: &str) {
    let name = "weft_proxy_certificate_renewals_total";
    metrics
        .counter(name, "Calls to the certificate authority by result.", &[("result", result)])
        .inc();
}

fn report(config: &IdentityConfig, life: Life, error: &TlsError) {
    let left = life.share_left(unix_now());
    let id = &config.spiffe_id;
    match left < ALARM_LIFE_LEFT && life.not_after != 0 {
        true => tracing::error!(id, %error, left, "certificate expires soon and cannot be renewed"),
        false => tracing::warn!(id, %error, "no certificate from the authority; will retry"),
    }
}

/// When a certificate is valid, Unix seconds.
#[derive(Debug, Clone, Copy)]
struct Life {
    not_before: i64,
    not_after: i64,
}

impl Life {
    /// Half of the life plus or minus a tenth of it; nothing left to wait when that has passed.
    fn until_renewal(self, now: i64) -> Duration {
        let length = (self.not_after - self.not_before).max(0) as f64;
        let share = 0.5 + rand::rng().random_range(-0.1..0.1);
        let due = self.not_before as f64 + length * share;
        Duration::from_secs_f64((due - now as f64).max(0.0))
    }

    fn share_left(self, now: i64) -> f64 {
        let length = (self.not_after - self.not_before).max(1) as f64;
        ((self.not_after - now) as f64 / length).clamp(0.0, 1.0)
    }
}

fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(rand::rng().random_range(0.5..1.0))
}

/// A new key, a new certificate, installed.
async fn renew(config: &IdentityConfig, secrets: &Secrets) -> Result<Life, TlsError> {
    let bad =
        |what: &str, error: &dyn std::fmt::Display| TlsError::BadSecret(format!("{what}: {error}"));
    let key = KeyPair::generate().map_err(|error| bad("key generation", &error))?;
    let mut params = CertificateParams::default();
    let uri = config.spiffe_id.as_str().try_into().map_err(|error| bad("SPIFFE id", &error))?;
    params.subject_alt_names.push(SanType::URI(uri));
    params.distinguished_name = rcgen::DistinguishedName::new();
    let csr = params
        .serialize_request(&key)
        .and_then(|csr| csr.pem())
        .map_err(|error| bad("certificate request", &error))?;
    let token = std::fs::read_to_string(&config.token_file)
        .map_err(|error| bad(&config.token_file.display().to_string(), &error))?;
    let request = IstioCertificateRequest {
        csr,
        validity_duration: i64::try_from(config.validity.as_secs()).unwrap_or(0),
        metadata: None,
    };
    let cluster = config.ca.cluster.as_deref();
    let call = async {
        let channel =
            config.ca.connect().await.map_err(|error| bad("certificate authority", &error))?;
        weft_xds::ca::create_certificate(channel, Some(token.trim()), cluster, request)
            .await
            .map_err(|status| bad("certificate authority", &status.message()))
    };
    let response = match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(response) => response?,
        Err(_) => return Err(TlsError::Timeout),
    };
    let Some((roots, chain)) = response.cert_chain.split_last() else {
        return Err(TlsError::BadSecret("the authority answered without a certificate".into()));
    };
    let issued = Issued { key: key.serialize_pem(), chain: chain.concat(), roots: roots.clone() };
    let life = install(config, secrets, &issued)?;
    if let Some(dir) = &config.state_dir
        && let Err(error) = save(dir, &issued)
    {
        tracing::warn!(%error, dir = %dir.display(), "certificate not saved");
    }
    Ok(life)
}

/// Checks that the certificate is ours, then puts it to use.
fn install(config: &IdentityConfig, secrets: &Secrets, issued: &Issued) -> Result<Life, TlsError> {
    let certificate = Certificate::from_pem(issued.chain.as_bytes(), issued.key.as_bytes())?;
    let id = certificate.key.cert.first().and_then(spiffe_id);
    if id.as_deref() != Some(&config.spiffe_id) {
        return Err(TlsError::BadSecret(format!(
            "the authority issued {} instead of {}",
            id.as_deref().unwrap_or("no SPIFFE id"),
            config.spiffe_id
        )));
    }
    let roots = Roots::from_pem(issued.roots.as_bytes())?;
    let life =
        Life { not_before: certificate.info.not_before, not_after: certificate.info.not_after };
    secrets.set_certificate(SECRET_DEFAULT, certificate);
    secrets.set_roots(SECRET_ROOT, RootsFrom::Authority, roots);
    Ok(life)
}

const SAVED_NAME: &str = "identity.pem";
/// Separates the workload's chain from the trust roots in the saved file.
const SAVED_ROOTS: &str = "# trust roots\n";

fn save(dir: &Path, issued: &Issued) -> std::io::Result<()> {
    let Issued { key, chain, roots } = issued;
    let text = format!("{key}{chain}\n{SAVED_ROOTS}{roots}");
    crate::state::write_private(dir, SAVED_NAME, text.as_bytes())
}

/// Uses what an earlier run left, if it is still valid and still us.
fn restore(config: &IdentityConfig, secrets: &Secrets) -> Option<Life> {
    let path = config.state_dir.as_ref()?.join(SAVED_NAME);
    let text = std::fs::read_to_string(&path).ok()?;
    let (own, roots) = text.split_once(SAVED_ROOTS)?;
    // The first key and the first chain found in the text are taken, so it serves as both.
    let issued = Issued { key: own.to_owned(), chain: own.to_owned(), roots: roots.to_owned() };
    let certificate = Certificate::from_pem(own.as_bytes(), own.as_bytes()).ok()?;
    let expired = certificate.info.not_after <= unix_now();
    match expired {
        true => None,
        false => match install(config, secrets, &issued) {
            Ok(life) => {
                tracing::info!(path = %path.display(), "certificate of an earlier run restored");
                Some(life)
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "saved certificate not used");
                None
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_around_half_of_the_life() {
        let life = Life { not_before: 1000, not_after: 2000 };
        for _ in 0..100 {
            let wait = life.until_renewal(1000).as_secs_f64();
            assert!((400.0..=600.0).contains(&wait), "{wait}");
        }
        assert_eq!(life.until_renewal(1700), Duration::ZERO);
        assert!(life.share_left(1900) < ALARM_LIFE_LEFT);
    }
}
