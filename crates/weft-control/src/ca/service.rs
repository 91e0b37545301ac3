//! Istio's certificate protocol.

use super::{Authority, CaError, Proven, Verifier};
use std::future::Future;
use std::time::{Duration, SystemTime};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};
use weft_xds::ca::{CertificateService, IstioCertificateRequest, IstioCertificateResponse};

/// Answers `CreateCertificate`. Serve it with [`weft_xds::ca::CertificateServer`].
pub struct CertificateIssuer<Known> {
    authority: Authority,
    verifier: Verifier,
    is_known: Known,
}

impl<Known> CertificateIssuer<Known>
where
    Known: Fn(&Proven) -> bool + Send + Sync + 'static,
{
    /// `is_known` says whether the current configuration agrees that there is such a workload.
    pub fn new(authority: Authority, verifier: impl Into<Verifier>, is_known: Known) -> Self {
        Self { authority, verifier: verifier.into(), is_known }
    }

    async fn issue(
        &self,
        metadata: MetadataMap,
        request: IstioCertificateRequest,
        now: SystemTime,
    ) -> Result<IstioCertificateResponse, Status> {
        let token = bearer(&metadata)?;
        let cluster = metadata.get("clusterid").and_then(|value| value.to_str().ok());
        let proven = self.verifier.verify(token, cluster, now).await?;
        let identity = &proven.identity;
        if !(self.is_known)(&proven) {
            tracing::warn!(%identity, "certificate refused: no such workload");
            return Err(Status::permission_denied(format!(
                "no workload runs as {identity}: add a Pod or WorkloadEntry with that service account"
            )));
        }
        let wish = match u64::try_from(request.validity_duration) {
            Ok(0) => None,
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => return Err(Status::invalid_argument("validity_duration is negative")),
        };
        match self.authority.sign(identity, &request.csr, wish, now) {
            Ok(certificate) => {
                tracing::info!(%identity, "certificate issued");
                Ok(IstioCertificateResponse { cert_chain: certificate.chain })
            }
            Err(error @ CaError::Request(_)) => {
                tracing::warn!(%identity, %error, "certificate refused");
                Err(Status::invalid_argument(error.to_string()))
            }
            Err(error) => {
                tracing::error!(%identity, %error, "certificate not made");
                Err(Status::internal("the authority could not sign: see the control plane's log"))
            }
        }
    }
}

impl<Known> CertificateService for CertificateIssuer<Known>
where
    Known: Fn(&Proven) -> bool + Send + Sync + 'static,
{
    fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> impl Future<Output = Result<IstioCertificateResponse, Status>> + Send {
        let (metadata, _, message) = request.into_parts();
        self.issue(metadata, message, SystemTime::now())
    }
}

/// The token of a call's `authorization: Bearer TOKEN`.
fn bearer(metadata: &MetadataMap) -> Result<&str, Status> {
    let Some(value) = metadata.get("authorization") else {
        return Err(Status::unauthenticated(
            "no join token: send `authorization: Bearer TOKEN`, the token made by `weft token`",
        ));
    };
    let value = value.to_str().unwrap_or_default();
    // RFC 9110 §11.1: the scheme's case does not matter.
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(Status::unauthenticated("authorization is not `Bearer TOKEN`")),
    }
}
