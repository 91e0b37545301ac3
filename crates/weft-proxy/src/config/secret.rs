//! One SDS resource to a usable secret.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use weft_xds::names::SECRET_DEFAULT;
use weft_xds::pb::envoy::config::core::v3::DataSource;
use weft_xds::pb::envoy::config::core::v3::data_source::Specifier;
use weft_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use weft_xds::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use weft_xds::session::Resource;

use crate::tls::TlsError;
use crate::tls::secrets::{Certificate, Roots, RootsFrom, Secrets, revocation_lists};

/// Longest file a secret may name. A bundle of public roots has 250 kB.
const SECRET_FILE_BYTES_MAX: u64 = 1024 * 1024;

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
            let mut roots = Roots::from_pem(&data(validation.trusted_ca.as_ref(), "trusted_ca")?)?;
            if let Some(crl) = &validation.crl {
                roots.revoked = revocation_lists(&data(Some(crl), "crl")?)?;
            }
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
        Some(Specifier::Filename(path)) => read_file(Path::new(path))
            .map_err(|error| TlsError::BadSecret(format!("{field}: {path}: {error}"))),
        Some(Specifier::EnvironmentVariable(_)) | None => {
            Err(TlsError::BadSecret(format!("{field} is missing")))
        }
    }
}

/// A whole regular file: a device or pipe would block the control runtime or never end.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let not_usable = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let about = std::fs::metadata(path)?;
    if !about.is_file() {
        return Err(not_usable("not a regular file"));
    }
    let mut content = Vec::new();
    File::open(path)?.take(SECRET_FILE_BYTES_MAX + 1).read_to_end(&mut content)?;
    match content.len() as u64 > SECRET_FILE_BYTES_MAX {
        true => Err(not_usable("longer than 1 MiB")),
        false => Ok(content),
    }
}
