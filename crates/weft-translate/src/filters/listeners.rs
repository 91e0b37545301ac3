//! Patches of listeners and all that is inside of them, outside in.

use prost::Message as _;
use weft_model::spec::{ApplyTo, Operation};
use weft_xds::patch::merge_any;
use weft_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use weft_xds::pb::envoy::config::listener::v3::{
    Filter, FilterChain, Listener, filter::ConfigType,
};
use weft_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager::RouteSpecifier, http_filter,
};
use weft_xds::pb::google::protobuf::Any;

use super::Patching;
use super::compile::Compiled;
use crate::build::any;

const HTTP_MANAGER: &str = "envoy.filters.network.http_connection_manager";
const HTTP_MANAGER_TYPE: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "envoy.filters.http.router";
/// Filters that end a chain: Envoy refuses what stands behind them.
const TERMINAL: [&str; 2] = [HTTP_MANAGER, "envoy.filters.network.tcp_proxy"];

impl<'a> Patching<'a, '_> {
    pub(super) fn listeners(&mut self, listeners: &mut Vec<Listener>) {
        let patches = self.of(ApplyTo::Listener);
        listeners.retain_mut(|listener| {
            for patch in &patches {
                if !patch.is_of_listener(listener) {
                    continue;
                }
                match (patch.operation, patch.merges(), patch.patch(self.flavor)) {
                    (Operation::Remove, ..) => return false,
                    (_, Some(lists), Some(value)) => value.merge_into(listener, lists),
                    _ => {}
                }
            }
            true
        });
        for listener in listeners.iter_mut() {
            self.listener(listener);
        }
        for patch in patches.iter().filter(|patch| patch.operation == Operation::Add) {
            let Some(added) = patch.value::<Listener>(self.flavor) else { continue };
            let same = |other: &Listener| {
                other.name == added.name || (binds(other) && other.address == added.address)
            };
            if listeners.iter().any(same) {
                self.tell(patch, &format!("listener {:?} has a name or address twice", added.name));
                continue;
            }
            listeners.push(added);
        }
    }

    fn listener(&mut self, listener: &mut Listener) {
        for patch in self.of(ApplyTo::ListenerFilter) {
            if patch.is_of_listener(listener) {
                let value = patch.value(self.flavor);
                let wanted = patch.listener_filter();
                edit(&mut listener.listener_filters, patch.operation, value, wanted, |f| &f.name);
            }
        }
        let mut chains = std::mem::take(&mut listener.filter_chains);
        chains.retain_mut(|chain| self.chain(listener, chain));
        if let Some(mut chain) = listener.default_filter_chain.take() {
            listener.default_filter_chain = self.chain(listener, &mut chain).then_some(chain);
        }
        for patch in self.of(ApplyTo::FilterChain) {
            if patch.operation != Operation::Add || !patch.is_of_listener(listener) {
                continue;
            }
            let Some(added) = patch.value::<FilterChain>(self.flavor) else { continue };
            if chains.iter().any(|other| other.filter_chain_match == added.filter_chain_match) {
                self.tell(patch, "another filter chain of the listener has the same match");
                continue;
            }
            chains.push(added);
        }
        listener.filter_chains = chains;
    }

    /// `false`: the chain is removed.
    fn chain(&mut self, listener: &Listener, chain: &mut FilterChain) -> bool {
        for patch in self.of(ApplyTo::FilterChain) {
            if !patch.is_of_listener(listener) || !patch.is_of_chain(listener, chain) {
                continue;
            }
            match (patch.operation, patch.merges(), patch.patch(self.flavor)) {
                (Operation::Remove, ..) => return false,
                (_, Some(lists), Some(value)) => {
                    // A socket of the same kind is merged inside, and nothing else then.
                    let wanted = patch.value::<FilterChain>(self.flavor).unwrap_or_default();
                    let socket = wanted.transport_socket.as_ref();
                    let there = chain.transport_socket.as_mut();
                    match (socket, there) {
                        (Some(wanted), Some(there)) if wanted.name == there.name => {
                            self.socket(patch, there, wanted);
                        }
                        _ => value.merge_into(chain, lists),
                    }
                }
                _ => {}
            }
        }
        self.network_filters(listener, chain);
        true
    }

    fn network_filters(&mut self, listener: &Listener, chain: &mut FilterChain) {
        let patches: Vec<&'a Compiled> = self
            .of(ApplyTo::NetworkFilter)
            .into_iter()
            .filter(|patch| patch.is_of_listener(listener) && patch.is_of_chain(listener, chain))
            .collect();
        for patch in &patches {
            let value = patch.value(self.flavor);
            let wanted = patch.network_filter();
            edit(&mut chain.filters, patch.operation, value, wanted, |filter| &filter.name);
        }
        last(&mut chain.filters, |filter| TERMINAL.contains(&filter.name.as_str()));
        for filter in &mut chain.filters {
            for patch in &patches {
                let named = patch.network_filter().is_none_or(|wanted| wanted == filter.name);
                if named {
                    self.merge_filter(patch, filter);
                }
            }
        }
        for index in 0..chain.filters.len() {
            let mut filter = std::mem::take(&mut chain.filters[index]);
            if let Some(ConfigType::TypedConfig(config)) = &mut filter.config_type
                && config.type_url.ends_with(HTTP_MANAGER_TYPE)
                && let Ok(mut manager) = HttpConnectionManager::decode(&config.value[..])
            {
                self.http_manager(listener, chain, &filter.name, &mut manager);
                *config = any(&manager);
            }
            chain.filters[index] = filter;
        }
    }

    fn merge_filter(&mut self, patch: &Compiled, filter: &mut Filter) {
        let Some(lists) = patch.merges() else { return };
        let Some(wanted) = patch.value::<Filter>(self.flavor) else { return };
        if !wanted.name.is_empty() {
            filter.name = wanted.name;
        }
        let (Some(ConfigType::TypedConfig(there)), Some(ConfigType::TypedConfig(wanted))) =
            (&mut filter.config_type, &wanted.config_type)
        else {
            return;
        };
        // Without a name it is merged into every filter of its type.
        if patch.network_filter().is_none() && there.type_url != wanted.type_url {
            return;
        }
        if let Err(mismatch) = merge_any(there, wanted, lists) {
            self.tell(patch, &mismatch.to_string());
        }
    }

    fn http_manager(
        &mut self,
        listener: &Listener,
        chain: &FilterChain,
        name: &str,
        manager: &mut HttpConnectionManager,
    ) {
        let patches: Vec<&'a Compiled> = self
            .of(ApplyTo::HttpFilter)
            .into_iter()
            .filter(|patch| {
                patch.is_of_listener(listener)
                    && patch.is_of_chain(listener, chain)
                    && patch.network_filter().is_none_or(|wanted| wanted == name)
            })
            .collect();
        for patch in &patches {
            let value = match patch.value::<HttpFilter>(self.flavor) {
                Some(filter) => self.configured(patch, filter),
                None => None,
            };
            let wanted = patch.http_filter();
            edit(&mut manager.http_filters, patch.operation, value, wanted, |filter| &filter.name);
        }
        last(&mut manager.http_filters, |filter| filter.name == ROUTER);
        for filter in &mut manager.http_filters {
            for patch in &patches {
                if patch.http_filter().is_none_or(|wanted| wanted == filter.name) {
                    self.merge_http_filter(patch, filter);
                }
            }
        }
        if let Some(RouteSpecifier::RouteConfig(routes)) = &mut manager.route_specifier {
            self.route_configuration(routes);
        }
    }

    fn merge_http_filter(&mut self, patch: &Compiled, filter: &mut HttpFilter) {
        use http_filter::ConfigType::TypedConfig;
        let Some(lists) = patch.merges() else { return };
        let Some(wanted) = patch.value::<HttpFilter>(self.flavor) else { return };
        let (Some(TypedConfig(there)), Some(TypedConfig(wanted_config))) =
            (&mut filter.config_type, &wanted.config_type)
        else {
            if patch.http_filter().is_some() && !wanted.name.is_empty() {
                filter.name = wanted.name;
            }
            return;
        };
        if patch.http_filter().is_none() && there.type_url != wanted_config.type_url {
            return;
        }
        match merge_any(there, wanted_config, lists) {
            Ok(()) if !wanted.name.is_empty() => filter.name = wanted.name,
            Ok(()) => {}
            Err(mismatch) => self.tell(patch, &mismatch.to_string()),
        }
    }

    /// A filter whose configuration is an EXTENSION_CONFIG gets it at once: what Envoy would fetch
    /// by name comes with the listener.
    fn configured(&mut self, patch: &Compiled, mut filter: HttpFilter) -> Option<HttpFilter> {
        use http_filter::ConfigType;
        let Some(ConfigType::ConfigDiscovery(discovery)) = &filter.config_type else {
            return Some(filter);
        };
        let found = self.extension(&filter.name).or_else(|| {
            discovery.default_config.clone().filter(|config| !config.type_url.is_empty())
        });
        if found.is_none() {
            let name = &filter.name;
            self.tell(patch, &format!("no EXTENSION_CONFIG {name:?} is there to configure it"));
        }
        filter.config_type = Some(ConfigType::TypedConfig(found?));
        Some(filter)
    }

    fn extension(&self, name: &str) -> Option<Any> {
        let added = self.of(ApplyTo::ExtensionConfig);
        let mut configs = added.iter().filter_map(|patch| {
            patch.value::<TypedExtensionConfig>(self.flavor).filter(|config| config.name == name)
        });
        configs.next_back()?.typed_config
    }

    pub(super) fn socket(
        &mut self,
        patch: &Compiled,
        there: &mut weft_xds::pb::envoy::config::core::v3::TransportSocket,
        wanted: &weft_xds::pb::envoy::config::core::v3::TransportSocket,
    ) {
        use weft_xds::pb::envoy::config::core::v3::transport_socket::ConfigType::TypedConfig;
        let lists = patch.merges().unwrap_or(weft_xds::patch::Lists::Append);
        if let (Some(TypedConfig(there)), Some(TypedConfig(wanted))) =
            (&mut there.config_type, &wanted.config_type)
            && let Err(mismatch) = merge_any(there, wanted, lists)
        {
            self.tell(patch, &mismatch.to_string());
        }
    }
}

/// Does it have its address for itself?
fn binds(listener: &Listener) -> bool {
    listener.bind_to_port.is_none_or(|bind| bind.value)
}

/// One operation on a list of named things, but merging.
fn edit<T: Clone>(
    items: &mut Vec<T>,
    operation: Operation,
    value: Option<T>,
    wanted: Option<&str>,
    name: impl Fn(&T) -> &String,
) {
    let place = wanted.and_then(|wanted| items.iter().position(|item| name(item) == wanted));
    match (operation, value) {
        (Operation::Remove, _) => {
            if let Some(wanted) = wanted {
                items.retain(|item| name(item) != wanted);
            }
        }
        (Operation::Add, Some(value)) => items.push(value),
        (Operation::InsertFirst, Some(value)) => items.insert(0, value),
        (Operation::InsertAfter, Some(value)) if wanted.is_none() => items.push(value),
        (Operation::InsertBefore, Some(value)) if wanted.is_none() => items.insert(0, value),
        (Operation::InsertAfter, Some(value)) => {
            if let Some(place) = place {
                items.insert(place + 1, value);
            }
        }
        (Operation::InsertBefore, Some(value)) => {
            if let Some(place) = place {
                items.insert(place, value);
            }
        }
        (Operation::Replace, Some(value)) => {
            if let Some(place) = place {
                items[place] = value;
            }
        }
        (Operation::Merge | Operation::MergeAndReplaceList | Operation::Invalid, _) | (_, None) => {
        }
    }
}

/// Puts the one that must end the list there.
fn last<T>(items: &mut Vec<T>, is_last: impl Fn(&T) -> bool) {
    if let Some(place) = items.iter().position(is_last) {
        let end = items.remove(place);
        items.push(end);
    }
}
