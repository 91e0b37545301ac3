//! Fields that applications expect once but clients send twice, such as `Content-Type`.

use crate::headers::HeaderList;

/// What to do with repetitions of a field that should stand once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Singleton {
    /// Keep the first: what an application server does on its own.
    #[default]
    First,
    /// Keep the last.
    Last,
    /// Refuse the request.
    Reject,
    /// Join the values with a comma, as Envoy does.
    Join,
}

/// The field was repeated and the policy is [`Singleton::Reject`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a field that must stand once is repeated")]
pub struct SingletonRepeated;

/// Applies the policy to `name`.
///
/// # Errors
/// [`SingletonRepeated`] under [`Singleton::Reject`].
pub fn apply_singleton(
    headers: &mut HeaderList,
    name: &str,
    policy: Singleton,
) -> Result<(), SingletonRepeated> {
    let values: Vec<Vec<u8>> = match headers.get_all(name).count() {
        0 | 1 => return Ok(()),
        _ => headers.get_all(name).map(<[u8]>::to_vec).collect(),
    };
    match policy {
        Singleton::First => headers.set(name, &values[0]),
        Singleton::Last => headers.set(name, &values[values.len() - 1]),
        Singleton::Join => headers.set(name, values.join(&b", "[..])),
        Singleton::Reject => return Err(SingletonRepeated),
    }
    Ok(())
}
