//! Hosts that requests name and configuration does not (`DYNAMIC_DNS`): resolved when first asked
//! for, remembered within a bound, looked up again in the background while old addresses serve.
//!
//! One per worker, like everything on the request path. Must not know requests.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::HashMap;
use hickory_resolver::TokioResolver;
use tokio::sync::Mutex;
use weft_traffic::cluster::{DnsFamily, DynamicDns};

use super::dns::of_family;
use crate::error::{ErrorKind, ProxyError};

/// How long a request waits for a name. Envoy's `dns_query_timeout`.
const LOOKUP_MAX: Duration = Duration::from_secs(5);
/// A name nobody asked for so long makes room for others. Envoy's `host_ttl`.
const UNUSED_MAX: Duration = Duration::from_secs(300);
/// Longest name DNS can carry (RFC 1035 §2.3.4).
const NAME_BYTES_MAX: usize = 253;

/// One worker's names.
#[derive(Default)]
pub struct DynamicNames {
    /// Made when first needed: few configurations ask for it. None: the system has no DNS.
    resolver: OnceCell<Option<TokioResolver>>,
    names: RefCell<HashMap<Key, Rc<Name>>>,
}

type Key = (Arc<str>, u8);

/// One name and family.
struct Name {
    host: Arc<str>,
    family: DnsFamily,
    found: RefCell<Vec<IpAddr>>,
    fresh_until: Cell<Option<Instant>>,
    used: Cell<Instant>,
    /// Turns over the addresses.
    next: Cell<usize>,
    /// One lookup at a time.
    looking: Mutex<()>,
}

impl DynamicNames {
    /// An address of `host` (a name or an address itself). Waits only for a name that is new.
    pub async fn address(&self, host: &str, dns: &DynamicDns) -> Result<IpAddr, ProxyError> {
        if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(ip);
        }
        if host.is_empty() || host.len() > NAME_BYTES_MAX {
            return Err(ErrorKind::DnsFailed.into());
        }
        let now = Instant::now();
        let name = self.name(host, dns, now)?;
        name.used.set(now);
        let fresh = name.fresh_until.get().is_some_and(|until| now < until);
        match (name.pick(), fresh) {
            (Some(ip), true) => return Ok(ip),
            (Some(ip), false) => {
                // Old addresses serve until there are new ones.
                if name.looking.try_lock().is_ok()
                    && let Some(resolver) = self.resolver()
                {
                    let (resolver, refresh) = (resolver.clone(), dns.refresh);
                    tokio::task::spawn_local(async move { name.look_up(&resolver, refresh).await });
                }
                return Ok(ip);
            }
            (None, _) => {}
        }
        let Some(resolver) = self.resolver() else { return Err(ErrorKind::DnsFailed.into()) };
        let looked_up = tokio::time::timeout(LOOKUP_MAX, name.look_up(resolver, dns.refresh)).await;
        match (looked_up, name.pick()) {
            (_, Some(ip)) => Ok(ip),
            (Err(_), None) => {
                Err(ProxyError::new(ErrorKind::DnsFailed).with_source(format!("{host}: no answer")))
            }
            (Ok(()), None) => {
                Err(ProxyError::new(ErrorKind::DnsFailed).with_source(format!("{host}: unknown")))
            }
        }
    }

    fn resolver(&self) -> Option<&TokioResolver> {
        let make = || {
            let resolver = TokioResolver::builder_tokio().and_then(|builder| builder.build());
            resolver.inspect_err(|error| tracing::warn!(%error, "no DNS configuration")).ok()
        };
        self.resolver.get_or_init(make).as_ref()
    }

    /// The entry of a name; an error when there are too many in use.
    fn name(&self, host: &str, dns: &DynamicDns, now: Instant) -> Result<Rc<Name>, ProxyError> {
        let host: Arc<str> = host.to_ascii_lowercase().into();
        let key = (host.clone(), dns.family as u8);
        let mut names = self.names.borrow_mut();
        if let Some(name) = names.get(&key) {
            return Ok(name.clone());
        }
        let most = dns.names_max as usize;
        if names.len() >= most {
            names.retain(|_, name| now.duration_since(name.used.get()) < UNUSED_MAX);
        }
        if names.len() >= most {
            let why = format!("more than {most} names in use");
            return Err(ProxyError::new(ErrorKind::Overflow).with_source(why));
        }
        let name = Rc::new(Name {
            host,
            family: dns.family,
            found: RefCell::default(),
            fresh_until: Cell::new(None),
            used: Cell::new(now),
            next: Cell::new(0),
            looking: Mutex::new(()),
        });
        names.insert(key, name.clone());
        Ok(name)
    }
}

impl Name {
    fn pick(&self) -> Option<IpAddr> {
        let found = self.found.borrow();
        let next = self.next.get();
        self.next.set(next.wrapping_add(1));
        found.get(next.checked_rem(found.len())?).copied()
    }

    /// Asks DNS, unless somebody else has just done so.
    async fn look_up(&self, resolver: &TokioResolver, refresh: Duration) {
        let _turn = self.looking.lock().await;
        if self.fresh_until.get().is_some_and(|until| Instant::now() < until) {
            return;
        }
        match resolver.lookup_ip(&*self.host).await {
            Ok(answer) => {
                *self.found.borrow_mut() = of_family(answer.iter().collect(), self.family);
                self.fresh_until.set(Some(Instant::now() + refresh));
            }
            Err(error) => {
                tracing::debug!(name = %self.host, %error, "name not resolved");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DNS: DynamicDns =
        DynamicDns { family: DnsFamily::V4Only, refresh: Duration::from_secs(60), names_max: 2 };

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test)
    }

    #[test]
    fn addresses_need_no_dns_and_names_are_bounded() {
        let names = DynamicNames::default();
        run(async {
            for literal in ["192.0.2.7", "[2001:db8::1]", "2001:db8::1"] {
                assert!(names.address(literal, &DNS).await.is_ok(), "{literal}");
            }
            assert_eq!(names.address("", &DNS).await.unwrap_err().kind, ErrorKind::DnsFailed);
            let long = "a".repeat(NAME_BYTES_MAX + 1);
            assert_eq!(names.address(&long, &DNS).await.unwrap_err().kind, ErrorKind::DnsFailed);
            // The system's hosts file knows this one.
            let local = names.address("LOCALHOST", &DNS).await.expect("localhost resolves");
            assert!(local.is_loopback());
            let now = Instant::now();
            assert!(names.name("two.invalid", &DNS, now).is_ok());
            let full = names.name("three.invalid", &DNS, now).err().expect("a third is too many");
            assert_eq!(full.kind, ErrorKind::Overflow);
            assert!(names.name("three.invalid", &DNS, now + UNUSED_MAX).is_ok(), "others are old");
        });
    }
}
