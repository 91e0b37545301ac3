//! Istio's certificate protocol, and the credential check it shares with the ADS stream.

use super::{Authority, CaError, Identity, JoinKey};
use std::future::Future;
use std::time::{Duration, SystemTime};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};
use weft_xds::ca::{CertificateService, IstioCertificateRequest, IstioCertificateResponse};

/// Answers `CreateCertificate`. Serve it with [`weft_xds::ca::CertificateServer`].
pub struct CertificateIssuer<Known> {
    authority: Authority,
    join_key: JoinKey,
    is_known: Known,
}

impl<Known> CertificateIssuer<Known>
where
    Known: Fn(&Identity) -> bool + Send + Sync + 'static,
{
    /// `is_known` says whether the current configuration has a workload of that identity.
    pub fn new(authority: Authority, join_key: JoinKey, is_known: Known) -> Self {
        Self { authority, join_key, is_known }
    }

    fn issue(
        &self,
        metadata: &MetadataMap,
        request: &IstioCertificateRequest,
        now: SystemTime,
    ) -> Result<IstioCertificateResponse, Status> {
        let identity = authenticate(metadata, &self.join_key, now)?;
        if !(self.is_known)(&identity) {
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
        match self.authority.sign(&identity, &request.csr, wish, now) {
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
    Known: Fn(&Identity) -> bool + Send + Sync + 'static,
{
    fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> impl Future<Output = Result<IstioCertificateResponse, Status>> + Send {
        let (metadata, _, message) = request.into_parts();
        std::future::ready(self.issue(&metadata, &message, SystemTime::now()))
    }
}

/// The identity a call's `authorization: Bearer` join token proves.
///
/// # Errors
/// `UNAUTHENTICATED`, with what to do about it.
pub fn authenticate(
    metadata: &MetadataMap,
    join_key: &JoinKey,
    now: SystemTime,
) -> Result<Identity, Status> {
    let Some(value) = metadata.get("authorization") else {
        return Err(Status::unauthenticated(
            "no join token: send `authorization: Bearer TOKEN`, the token made by `weft token`",
        ));
    };
    let value = value.to_str().unwrap_or_default();
    // RFC 9110 §11.1: the scheme's case does not matter.
    let token = match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => return Err(Status::unauthenticated("authorization is not `Bearer TOKEN`")),
    };
    join_key.verify(token, now).map_err(|error| Status::unauthenticated(error.to_string()))
}
