//! Join tokens: how a workload proves its name before it has a certificate.
//!
//! A token is a JWT (HS256) `{"sub":"NAMESPACE/SERVICE_ACCOUNT","aud":"weft-ca","exp":…}` under a
//! key that never leaves the control plane's folder. It is a bearer credential: keep it as such.

use super::{CaError, Identity, files};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, SystemTime};

const KEY: &str = "join.key";
const KEY_BYTES: usize = 32;
const AUDIENCE: &str = "weft-ca";
/// The one header we make, and the one we accept.
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
/// A token has two names of at most 253 bytes.
const TOKEN_BYTES_MAX: usize = 2048;
/// Tolerated difference of clocks.
const SKEW: Duration = Duration::from_secs(60);

/// Mints and verifies join tokens.
#[derive(Clone)]
pub struct JoinKey {
    key: hmac::Key,
}

/// Why a token was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("not a join token: make one with `weft token`")]
    Malformed,
    #[error(
        "join token of another mesh or tampered with: make one with `weft token` in this control plane's state directory"
    )]
    Foreign,
    #[error("join token expired: make a new one with `weft token`")]
    Expired,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    aud: String,
    /// Seconds since 1970.
    iat: u64,
    exp: u64,
}

impl JoinKey {
    /// Loads the join key of a CA folder, making it if there is none.
    ///
    /// # Errors
    /// Unreadable, damaged or exposed files.
    pub fn open(dir: &Path) -> Result<Self, CaError> {
        files::private_dir(dir)?;
        let path = dir.join(KEY);
        let text = match files::read_private(&path)? {
            Some(text) => text,
            None => {
                let mut bytes = [0; KEY_BYTES];
                SystemRandom::new().fill(&mut bytes).map_err(|_| CaError::Random)?;
                files::create(&path, STANDARD.encode(bytes).as_bytes(), 0o600)?;
                files::read_private(&path)?.unwrap_or_default()
            }
        };
        match STANDARD.decode(text.trim_ascii()) {
            Ok(bytes) if bytes.len() == KEY_BYTES => {
                Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &bytes) })
            }
            _ => Err(CaError::Damaged { path, reason: "is not a join key".into() }),
        }
    }

    /// A token for one identity.
    pub fn mint(&self, identity: &Identity, lifetime: Duration, now: SystemTime) -> String {
        let claims = Claims {
            sub: identity.to_string(),
            aud: AUDIENCE.into(),
            iat: seconds(now),
            exp: seconds(now).saturating_add(lifetime.as_secs()),
        };
        let claims = serde_json::to_vec(&claims).expect("plain strings and numbers serialize");
        let signed =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(claims));
        let tag = hmac::sign(&self.key, signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
    }

    /// The identity a token proves.
    ///
    /// # Errors
    /// Anything but an unexpired token of ours. The signature is checked first, in constant
    /// time, and nothing is read from a token whose signature does not hold.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Identity, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let (signed, tag) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let tag = URL_SAFE_NO_PAD.decode(tag).map_err(|_| TokenError::Malformed)?;
        hmac::verify(&self.key, signed.as_bytes(), &tag).map_err(|_| TokenError::Foreign)?;
        if header != URL_SAFE_NO_PAD.encode(HEADER) {
            return Err(TokenError::Malformed);
        }
        let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| TokenError::Malformed)?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| TokenError::Malformed)?;
        if claims.aud != AUDIENCE {
            return Err(TokenError::Foreign);
        }
        if claims.exp.saturating_add(SKEW.as_secs()) < seconds(now) {
            return Err(TokenError::Expired);
        }
        let (namespace, account) = claims.sub.split_once('/').ok_or(TokenError::Malformed)?;
        Identity::new(namespace, account).map_err(|_| TokenError::Malformed)
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
