//! Patches of route configurations, virtual hosts and routes.

use weft_model::spec::{ApplyTo, Operation};
use weft_xds::pb::envoy::config::route::v3::{Route, RouteConfiguration, VirtualHost};

use super::Patching;
use super::compile::Compiled;

impl<'a> Patching<'a, '_> {
    pub(super) fn routes(&mut self, all: &mut [RouteConfiguration]) {
        for routes in all {
            self.route_configuration(routes);
        }
    }

    pub(super) fn route_configuration(&mut self, routes: &mut RouteConfiguration) {
        for patch in self.of(ApplyTo::RouteConfiguration) {
            let value = patch.patch(self.flavor);
            if let (Some(lists), Some(value)) = (patch.merges(), value)
                && patch.is_of_routes(self.context, routes)
            {
                value.merge_into(routes, lists);
            }
        }
        let of_hosts = self.matching(ApplyTo::VirtualHost, routes);
        let of_routes = self.matching(ApplyTo::HttpRoute, routes);
        routes.virtual_hosts.retain_mut(|host| {
            for patch in &of_hosts {
                if !patch.is_of_host(host) {
                    continue;
                }
                match (patch.operation, patch.merges(), patch.patch(self.flavor)) {
                    (Operation::Remove, ..) => return false,
                    (Operation::Replace, _, Some(value)) => {
                        *host = value.to().unwrap_or_default();
                    }
                    (_, Some(lists), Some(value)) => value.merge_into(host, lists),
                    _ => {}
                }
            }
            self.host(host, &of_routes);
            true
        });
        for patch in of_hosts.iter().filter(|patch| patch.operation == Operation::Add) {
            let Some(added) = patch.value::<VirtualHost>(self.flavor) else { continue };
            let taken = |other: &VirtualHost| {
                other.name == added.name
                    || other.domains.iter().any(|domain| added.domains.contains(domain))
            };
            match routes.virtual_hosts.iter().any(taken) {
                true => {
                    let message = format!(
                        "virtual host {:?} has a name or domain of another in {:?}",
                        added.name, routes.name
                    );
                    self.tell(patch, &message);
                }
                false => routes.virtual_hosts.push(added),
            }
        }
    }

    fn matching(&self, to: ApplyTo, routes: &RouteConfiguration) -> Vec<&'a Compiled> {
        let mut patches = self.of(to);
        patches.retain(|patch| patch.is_of_routes(self.context, routes));
        patches
    }

    fn host(&self, host: &mut VirtualHost, patches: &[&'a Compiled]) {
        let patches: Vec<_> = patches.iter().filter(|patch| patch.is_of_host(host)).collect();
        host.routes.retain_mut(|route| {
            for patch in &patches {
                if !patch.is_of_route(route) {
                    continue;
                }
                match (patch.operation, patch.merges(), patch.patch(self.flavor)) {
                    (Operation::Remove, ..) => return false,
                    (_, Some(lists), Some(value)) => value.merge_into(route, lists),
                    _ => {}
                }
            }
            true
        });
        for patch in patches {
            let Some(added) = patch.value::<Route>(self.flavor) else { continue };
            let place = host.routes.iter().position(|route| patch.is_of_route(route));
            match (patch.operation, patch.names_route(), place) {
                (Operation::Add, ..) | (Operation::InsertAfter, false, _) => {
                    host.routes.push(added);
                }
                (Operation::InsertFirst | Operation::InsertBefore, false, _)
                | (Operation::InsertFirst, true, Some(_)) => host.routes.insert(0, added),
                (Operation::InsertAfter, true, Some(place)) => host.routes.insert(place + 1, added),
                (Operation::InsertBefore, true, Some(place)) => host.routes.insert(place, added),
                _ => {}
            }
        }
    }
}
