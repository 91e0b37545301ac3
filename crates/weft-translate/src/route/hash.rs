//! Consistent hashing: the DestinationRule chooses what is hashed, the route says so to Envoy.

use weft_model::spec::ConsistentHashLb;
use weft_xds::pb::envoy::config::route::v3::route_action::{HashPolicy, hash_policy};

use crate::build::duration;
use crate::policy;
use crate::scope::Scope;

/// Hash policies of a destination; empty when it is not balanced by hash.
pub(crate) fn policies(scope: &Scope<'_>, host: &str, subset: &str, port: u16) -> Vec<HashPolicy> {
    let Some(rule) = scope.rule(host) else { return Vec::new() };
    let subset = policy::subset(Some(&rule.spec), subset);
    let settings = policy::policy(Some(&rule.spec), subset, port).load_balancer;
    match settings.and_then(|settings| settings.consistent_hash.as_ref()) {
        Some(hash) => specifier(hash)
            .map(|policy| HashPolicy { policy_specifier: Some(policy), ..Default::default() })
            .into_iter()
            .collect(),
        None => Vec::new(),
    }
}

fn specifier(hash: &ConsistentHashLb) -> Option<hash_policy::PolicySpecifier> {
    use hash_policy::{
        ConnectionProperties, Cookie, CookieAttribute, Header, PolicySpecifier, QueryParameter,
    };
    if let Some(name) = &hash.http_header_name {
        return Some(PolicySpecifier::Header(Header {
            header_name: name.clone(),
            ..Default::default()
        }));
    }
    if let Some(cookie) = &hash.http_cookie {
        let attribute = |attribute: &weft_model::spec::CookieAttribute| CookieAttribute {
            name: attribute.name.clone(),
            value: attribute.value.clone(),
        };
        return Some(PolicySpecifier::Cookie(Cookie {
            name: cookie.name.clone(),
            ttl: cookie.ttl.and_then(duration),
            path: cookie.path.clone(),
            attributes: cookie.attributes.iter().map(attribute).collect(),
        }));
    }
    if let Some(name) = &hash.http_query_parameter_name {
        return Some(PolicySpecifier::QueryParameter(QueryParameter { name: name.clone() }));
    }
    hash.use_source_ip
        .filter(|used| *used)
        .map(|_| PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }))
}
