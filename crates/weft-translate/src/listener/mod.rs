//! Listeners and the route configurations they refer to.

pub(crate) mod inbound;

use weft_xds::pb::envoy::config::listener::v3::Listener;
use weft_xds::pb::envoy::config::route::v3::RouteConfiguration;

use crate::findings::Findings;
use crate::scope::Scope;

/// What listeners need besides clusters.
#[derive(Debug, Default)]
pub(crate) struct Built {
    pub(crate) listeners: Vec<Listener>,
    pub(crate) routes: Vec<RouteConfiguration>,
}

pub(crate) fn all(_scope: &Scope<'_>, _findings: &mut Findings) -> Built {
    Built::default()
}
