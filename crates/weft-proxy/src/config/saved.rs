//! The last accepted configuration on disk, for a restart while the control plane is away. One
//! file: a line naming the format, a line with the SHA-256 of the rest, a line with the time, then
//! the resources. Private (0600), because gateway certificates are among them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use weft_xds::ResourceType;
use weft_xds::session::Resource;

use super::Config;
use crate::tls::verify::hex_sha256;

const NAME: &str = "config.saved";
const FORMAT: &str = "weft proxy configuration 1";

/// Why a saved configuration is not used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SavedError {
    /// There is none or it cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// Cut, changed or written by another version.
    #[error("saved configuration is damaged: {0}")]
    Damaged(&'static str),
    /// Older than allowed.
    #[error("saved configuration is {0} s old, more than --state-age-max allows")]
    TooOld(i64),
}

/// Resources of one type, as accepted.
pub type Saved = Vec<(ResourceType, Vec<Resource>)>;

/// The file's content for a configuration.
pub fn encode(config: &Config, now: i64) -> Vec<u8> {
    let mut rest = format!("{now}\n").into_bytes();
    for ty in ResourceType::PUSH_ORDER {
        for held in config.held(ty) {
            rest.put_u8(ty.index() as u8);
            let Resource { name, version, body } = &held.resource;
            for field in [name.as_bytes(), version.as_bytes(), body] {
                // Resources are far below 4 GiB: the client refuses larger responses.
                rest.put_u32(field.len() as u32);
                rest.extend_from_slice(field);
            }
        }
    }
    let mut file = format!("{FORMAT}\n{}\n", hex_sha256(&rest)).into_bytes();
    file.extend_from_slice(&rest);
    file
}

/// Writes atomically.
pub fn store(dir: &Path, content: &[u8]) -> std::io::Result<()> {
    crate::state::write_private(dir, NAME, content)
}

/// Reads what an earlier run saved, if it is whole and young enough.
pub fn load(dir: &Path, age_max: Duration, now: i64) -> Result<Saved, SavedError> {
    let path = dir.join(NAME);
    match std::fs::read(&path) {
        Ok(file) => decode(&file, age_max, now),
        Err(error) => Err(SavedError::Unreadable(format!("{}: {error}", path.display()))),
    }
}

fn decode(file: &[u8], age_max: Duration, now: i64) -> Result<Saved, SavedError> {
    let (format, rest) = line(file).ok_or(SavedError::Damaged("no first line"))?;
    if format != FORMAT {
        return Err(SavedError::Damaged("written by another version"));
    }
    let (sum, rest) = line(rest).ok_or(SavedError::Damaged("no checksum"))?;
    if sum != hex_sha256(rest) {
        return Err(SavedError::Damaged("the checksum does not match"));
    }
    let (time, rest) = line(rest).ok_or(SavedError::Damaged("no time"))?;
    let time: i64 = time.parse().map_err(|_| SavedError::Damaged("no time"))?;
    let age = now - time;
    if age > i64::try_from(age_max.as_secs()).unwrap_or(i64::MAX) {
        return Err(SavedError::TooOld(age));
    }
    resources(Bytes::copy_from_slice(rest)).ok_or(SavedError::Damaged("cut resource"))
}

fn line(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = memchr::memchr(b'\n', bytes)?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

fn resources(mut bytes: Bytes) -> Option<Saved> {
    let mut saved: Saved = ResourceType::PUSH_ORDER.map(|ty| (ty, Vec::new())).into();
    while !bytes.is_empty() {
        let index = usize::from(bytes.get_u8());
        let name = text(&mut bytes)?;
        let version = text(&mut bytes)?;
        let body = field(&mut bytes)?;
        let (_, list) = saved.iter_mut().find(|(ty, _)| ty.index() == index)?;
        // Copied: a slice would keep the whole file in memory.
        let body = Bytes::copy_from_slice(&body);
        list.push(Resource { name, version, body });
    }
    Some(saved)
}

fn field(bytes: &mut Bytes) -> Option<Bytes> {
    let length = bytes.try_get_u32().ok()? as usize;
    (bytes.len() >= length).then(|| bytes.split_to(length))
}

fn text(bytes: &mut Bytes) -> Option<Arc<str>> {
    Some(std::str::from_utf8(&field(bytes)?).ok()?.into())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use weft_xds::pb::envoy::config::route::v3::RouteConfiguration;

    use super::*;
    use crate::tls::Secrets;

    fn config() -> Config {
        let mut config = Config::new(Arc::new(Secrets::new()), false);
        let route = RouteConfiguration { name: "a".into(), ..RouteConfiguration::default() };
        let resource = Resource::new("a", &route);
        let applied =
            config
                .apply(ResourceType::Route, "1", &[resource], &[], Instant::now(), &|_| Vec::new());
        assert_eq!(applied, Ok(()));
        config
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        store(dir.path(), &encode(&config(), 1000)).unwrap();
        let saved = load(dir.path(), Duration::from_secs(60), 1050).unwrap();
        let routes = &saved.iter().find(|(ty, _)| *ty == ResourceType::Route).unwrap().1;
        assert_eq!(routes.len(), 1);
        assert_eq!(&*routes[0].name, "a");
        assert_eq!(
            load(dir.path(), Duration::from_secs(60), 1061).unwrap_err(),
            SavedError::TooOld(61)
        );
    }

    #[test]
    fn damage_is_noticed_wherever_it_is() {
        let whole = encode(&config(), 1000);
        let day = Duration::from_secs(86_400);
        assert!(decode(&whole, day, 1000).is_ok());
        for cut in 0..whole.len() {
            assert!(decode(&whole[..cut], day, 1000).is_err(), "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert!(decode(&changed, day, 1000).is_err(), "changed at {at}");
        }
    }
}
