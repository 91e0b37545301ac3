//! One SDS resource to a usable secret.

use weft_xds::names::SECRET_DEFAULT;
use weft_xds::pb::envoy::config::core::v3::DataSource;
use weft_xds::pb::envoy::config::core::v3::data_source::Specifier;
use weft_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use weft_xds::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use weft_xds::session::Resource;

use crate::tls::TlsError;
use crate::tls::secrets::{Certificate, Roots, RootsFrom, Secrets};

/// Parses and installs a secret; on an error the one before stays.
pub fn install(resource: &Resource, secrets: &Secrets, own_identity: bool) -> Result<(), TlsError> {
    let bad = |text: String| TlsError::BadSecret(text);
    let secret: Secret = resource.decode().map_err(|error| bad(error.to_string()))?;
    match secret.r#type {
        Some(Type::TlsCertificate(certificate)) => {
            if own_identity && *resource.name == *SECRET_DEFAULT {
                return Ok(()); // Ours comes from the CA.
            }
            let chain = data(certificate.certificate_chain.as_ref(), "certificate_chain")?;
            let key = data(certificate.private_key.as_ref(), "private_key")?;
            secrets.set_certificate(&resource.name, Certificate::from_pem(&chain, &key)?);
            Ok(())
        }
        Some(Type::ValidationContext(validation)) => {
            let roots = Roots::from_pem(&data(validation.trusted_ca.as_ref(), "trusted_ca")?)?;
            secrets.set_roots(&resource.name, RootsFrom::Sds, roots);
            Ok(())
        }
        Some(Type::SessionTicketKeys(_)) => {
            Err(bad("session ticket keys are not supported".into()))
        }
        Some(Type::GenericSecret(_)) => Err(bad("generic secrets are not supported".into())),
        None => Err(bad("the secret is empty".into())),
    }
}

fn data(source: Option<&DataSource>, field: &str) -> Result<Vec<u8>, TlsError> {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes.to_vec()),
        Some(Specifier::InlineString(text)) => Ok(text.clone().into_bytes()),
        Some(Specifier::Filename(path)) => std::fs::read(path)
            .map_err(|error| TlsError::BadSecret(format!("{field}: {path}: {error}"))),
        Some(Specifier::EnvironmentVariable(_)) | None => {
            Err(TlsError::BadSecret(format!("{field} is missing")))
        }
    }
}
