//! Gateway API routes (HTTPRoute, GRPCRoute) → routes of one host in one place, in the API's order.
//!
//! `matching` says what a request must look like, `rule` what happens to it: in the words of
//! VirtualService rules where both APIs mean the same, so that one code path builds the action.

mod matching;
mod rule;

use std::cmp::Reverse;

use weft_model::gateway_api::Route;
use weft_xds::pb::envoy::config::route::v3 as route;

use super::rules::decorator;
use super::{Place, matching as any_matching};
use crate::build::istio_config;
use crate::scope::Scope;

pub(crate) use rule::{destinations, mesh_bytes, mesh_tls};

/// The API's precedence among matches of one host; smaller comes first. What is equal keeps the
/// order of routes (the oldest first) and rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    path: PathKind,
    path_bytes: Reverse<usize>,
    any_method: bool,
    headers: Reverse<usize>,
    queries: Reverse<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PathKind {
    Exact,
    Prefix,
    /// Where patterns stand is the implementation's choice; this is Istio's.
    Pattern,
}

/// Routes of all rules, in order. Ends at one that takes everything.
pub(crate) fn routes(
    scope: &Scope<'_>,
    attached: &[&Route],
    place: &Place<'_>,
    https: bool,
) -> Vec<route::Route> {
    let mut ranked: Vec<(Rank, route::Route)> = Vec::new();
    for one in attached {
        match one {
            Route::Http(resource) => {
                for (index, rule) in resource.spec.rules.iter().enumerate() {
                    for (rank, matched, prefix) in matching::of_http(rule) {
                        let action = rule::http(scope, one, rule, prefix, place, https);
                        ranked.push((rank, built(scope, one, index, matched, action, place)));
                    }
                }
            }
            Route::Grpc(resource) => {
                for (index, rule) in resource.spec.rules.iter().enumerate() {
                    for (rank, matched) in matching::of_grpc(rule) {
                        let action = rule::grpc(scope, one, rule, place);
                        ranked.push((rank, built(scope, one, index, matched, action, place)));
                    }
                }
            }
            Route::Tls(_) | Route::Tcp(_) => {}
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut list = Vec::new();
    for (_, route) in ranked {
        let everything = route.r#match.as_ref().is_some_and(any_matching::is_everything);
        list.push(route);
        if everything {
            break;
        }
    }
    list
}

fn built(
    scope: &Scope<'_>,
    from: &Route,
    index: usize,
    matched: route::RouteMatch,
    action: route::Route,
    place: &Place<'_>,
) -> route::Route {
    let meta = from.meta();
    let mut built = route::Route {
        name: format!("{}.{}.{index}", meta.namespace, meta.name),
        r#match: Some(matched),
        metadata: istio_config(&config_path(from), &format!("rules[{index}]")),
        ..action
    };
    built.decorator = decorator(scope, &built, place);
    built
}

/// `/apis/gateway.networking.k8s.io/v1/namespaces/NS/httproute/NAME`
fn config_path(route: &Route) -> String {
    let (kind, meta) = (route.kind().as_str().to_ascii_lowercase(), route.meta());
    let group = weft_model::spec::gateway_api::GROUP;
    format!("/apis/{group}/v1/namespaces/{}/{kind}/{}", meta.namespace, meta.name)
}
