//! Route configurations, virtual hosts, routes and what they match.

use std::sync::Arc;

use bytes::Bytes;

use super::matchers::Direction;
use super::{
    Result, Within, error, filters, list, matchers, rate_limit, refuse, route_action, value,
};
use crate::http::Tracing;
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::config::route::v3 as pb;
use crate::route::{
    Action, Edits, HostIndex, Mirror, PathMatch, RequireTls, Route, RouteMatch, RouteTable,
    VirtualHost,
};

pub(super) fn lower(message: &pb::RouteConfiguration) -> Result<RouteTable> {
    let pb::RouteConfiguration {
        name,
        virtual_hosts,
        vhds,
        internal_only_headers: _,
        response_headers_to_add,
        response_headers_to_remove,
        request_headers_to_add,
        request_headers_to_remove,
        most_specific_header_mutations_wins,
        validate_clusters,
        max_direct_response_body_size_bytes,
        cluster_specifier_plugins,
        request_mirror_policies,
        ignore_port_in_host_matching,
        vhost_header,
        ignore_path_parameters_in_path_matching,
        // Only supplies defaults that virtual hosts and routes of ours do not inherit yet.
        typed_per_filter_config,
        metadata: _,
        route_specifiers,
    } = message;
    refuse(!cluster_specifier_plugins.is_empty(), "cluster_specifier_plugins")?;
    refuse(!vhost_header.is_empty(), "vhost_header")?;
    refuse(*ignore_path_parameters_in_path_matching, "ignore_path_parameters_in_path_matching")?;
    refuse(!typed_per_filter_config.is_empty(), "typed_per_filter_config")?;
    refuse(!route_specifiers.is_empty(), "route_specifiers")?;
    let inherited = Inherited {
        mirrors: &list(MIRRORS, request_mirror_policies, route_action::mirror)?,
        body_bytes_max: value::uint(max_direct_response_body_size_bytes).unwrap_or(4096) as usize,
    };
    let hosts =
        list("virtual_hosts", virtual_hosts, |host| virtual_host(host, &inherited).map(Arc::new))?;
    let domains = virtual_hosts
        .iter()
        .enumerate()
        .flat_map(|(index, host)| host.domains.iter().map(move |domain| (&**domain, index)));
    let index = HostIndex::build(domains, *ignore_port_in_host_matching)
        .or_else(|reason| error("virtual_hosts", reason))?;
    let mut table = RouteTable::new(Arc::from(&**name), hosts, index);
    table.edits = edits(
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
    )?;
    table.most_specific_edits_last = *most_specific_header_mutations_wins;
    table.validate_clusters = value::boolean(validate_clusters, false);
    table.vhds = vhds.is_some();
    Ok(table)
}

const MIRRORS: &str = "request_mirror_policies";

/// What an outer level gives to routes that do not say otherwise.
struct Inherited<'a> {
    mirrors: &'a [Mirror],
    body_bytes_max: usize,
}

pub(super) fn edits(
    request_add: &[core::HeaderValueOption],
    request_remove: &[String],
    response_add: &[core::HeaderValueOption],
    response_remove: &[String],
) -> Result<Edits> {
    Ok(Edits {
        request: matchers::edits(Direction::Request, request_add, request_remove)?,
        response: matchers::edits(Direction::Response, response_add, response_remove)?,
    })
}

#[allow(deprecated)] // Older fields are destructured.
fn virtual_host(message: &pb::VirtualHost, inherited: &Inherited<'_>) -> Result<VirtualHost> {
    let pb::VirtualHost {
        name,
        domains,
        routes,
        matcher,
        require_tls,
        // Statistics.
        virtual_clusters: _,
        rate_limits,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        cors,
        typed_per_filter_config,
        include_request_attempt_count,
        include_attempt_count_in_response,
        retry_policy,
        retry_policy_typed_config,
        hedge_policy,
        include_is_timeout_retry_header: _,
        per_request_buffer_limit_bytes: _,
        request_body_buffer_limit: _,
        request_mirror_policies,
        metadata: _,
        route_specifiers,
    } = message;
    refuse(matcher.is_some(), "matcher")?;
    refuse(retry_policy_typed_config.is_some(), "retry_policy_typed_config")?;
    refuse(hedge_policy.is_some(), "hedge_policy")?;
    refuse(!route_specifiers.is_empty(), "route_specifiers")?;
    if domains.is_empty() {
        return error("domains", "at least one is required");
    }
    let mirrors = list(MIRRORS, request_mirror_policies, route_action::mirror)?;
    let inherited = Inherited {
        mirrors: if mirrors.is_empty() { inherited.mirrors } else { &mirrors },
        body_bytes_max: inherited.body_bytes_max,
    };
    let per_route = filters::per_route(typed_per_filter_config)?;
    let old_cors = cors.as_ref().map(|c| filters::old_cors(c).map(Arc::new)).transpose();
    let retry = retry_policy.as_ref().map(route_action::retry).transpose().at("retry_policy")?;
    Ok(VirtualHost {
        name: Arc::from(&**name),
        routes: list("routes", routes, |message| route(message, &inherited).map(Arc::new))?,
        edits: edits(
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
        )?,
        require_tls: match require_tls {
            0 => RequireTls::No,
            1 => return error("require_tls", "EXTERNAL_ONLY is not supported; use ALL"),
            2 => RequireTls::All,
            other => return error("require_tls", format!("{other} is not known")),
        },
        cors: per_route.cors.or(old_cors.at("cors")?),
        fault: per_route.fault,
        limits: per_route.limits,
        rate_limits: rate_limit::rules("rate_limits", rate_limits)?,
        retry: retry.map(Arc::new),
        attempt_count_upstream: *include_request_attempt_count,
        attempt_count_downstream: *include_attempt_count_in_response,
    })
}

#[allow(deprecated)] // Older fields are destructured.
fn route(message: &pb::Route, inherited: &Inherited<'_>) -> Result<Route> {
    let pb::Route {
        name,
        r#match,
        metadata,
        decorator,
        typed_per_filter_config,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        tracing,
        per_request_buffer_limit_bytes,
        stat_prefix: _,
        request_body_buffer_limit,
        route_specifiers,
        action,
    } = message;
    refuse(!route_specifiers.is_empty(), "route_specifiers")?;
    let Some(matches) = r#match else { return error("match", "is required") };
    let per_route = filters::per_route(typed_per_filter_config)?;
    let istio = value::metadata(metadata, "istio");
    let old_limit = value::uint(per_request_buffer_limit_bytes).map(u64::from);
    let (action, old_cors) = lower_action(action, inherited)?;
    Ok(Route {
        name: Arc::from(&**name),
        matches: route_match(matches).at("match")?,
        action,
        edits: edits(
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
        )?,
        origin: istio.and_then(|istio| value::text_field(istio, "config")).map(Arc::from),
        rule: istio.and_then(|istio| value::text_field(istio, "rule")).map(Arc::from),
        generation: istio.and_then(|istio| value::text_field(istio, "generation")).map(Arc::from),
        operation: decorator
            .as_ref()
            .filter(|decorator| !decorator.operation.is_empty())
            .map(|decorator| Arc::from(&*decorator.operation)),
        tracing: tracing.as_ref().map(route_tracing).transpose().at("tracing")?,
        cors: per_route.cors.or(old_cors),
        fault: per_route.fault,
        limits: per_route.limits,
        buffer_bytes_max: request_body_buffer_limit.as_ref().map(|limit| limit.value).or(old_limit),
    })
}

type OldCors = Option<Arc<crate::cors::CorsPolicy>>;

#[allow(deprecated)] // `RouteAction.cors` is what older control planes send.
fn lower_action(
    action: &Option<pb::route::Action>,
    inherited: &Inherited<'_>,
) -> Result<(Action, OldCors)> {
    Ok(match action {
        Some(pb::route::Action::Route(message)) => {
            let forward = route_action::lower(message, inherited.mirrors).at("route")?;
            let cors = message.cors.as_ref().map(|c| filters::old_cors(c).map(Arc::new));
            (Action::Forward(forward), cors.transpose().at("route.cors")?)
        }
        Some(pb::route::Action::Redirect(message)) => {
            (Action::Redirect(route_action::redirect(message).at("redirect")?), None)
        }
        Some(pb::route::Action::DirectResponse(message)) => {
            (direct(message, inherited.body_bytes_max).at("direct_response")?, None)
        }
        Some(pb::route::Action::NonForwardingAction(_)) => (Action::NonForwarding, None),
        Some(pb::route::Action::FilterAction(_)) => {
            return error("filter_action", "is not supported");
        }
        None => return error("action", "is required"),
    })
}

fn direct(message: &pb::DirectResponseAction, bytes_max: usize) -> Result<Action> {
    refuse(message.body_format.is_some(), "body_format")?;
    let status = match message.status {
        status @ 200..=599 => status as u16,
        status => return error("status", format!("{status} is not between 200 and 599")),
    };
    let body = match &message.body {
        None => Bytes::new(),
        Some(source) => match value::inline_data(source) {
            Some(body) if body.len() > bytes_max => {
                return error("body", format!("is longer than {bytes_max} bytes"));
            }
            Some(body) => Bytes::copy_from_slice(body),
            None => return error("body", "only inline bodies are supported"),
        },
    };
    Ok(Action::Direct { status, body })
}

fn route_tracing(message: &pb::Tracing) -> Result<Tracing> {
    let percent = |fraction: &Option<crate::pb::envoy::r#type::v3::FractionalPercent>| {
        let Some(fraction) = fraction else { return Ok(100.0) };
        let fraction = value::fraction(fraction)?;
        Ok(100.0 * f64::from(fraction.numerator) / f64::from(fraction.denominator))
    };
    Ok(Tracing {
        // The connection manager's.
        collector: None,
        unknown: None,
        tags: Vec::new(),
        tag_bytes_max: 0,
        client_sampling: percent(&message.client_sampling).at("client_sampling")?,
        random_sampling: percent(&message.random_sampling).at("random_sampling")?,
        overall_sampling: percent(&message.overall_sampling).at("overall_sampling")?,
    })
}

fn route_match(message: &pb::RouteMatch) -> Result<RouteMatch> {
    let pb::RouteMatch {
        case_sensitive,
        runtime_fraction,
        headers,
        query_parameters,
        cookies,
        grpc,
        tls_context,
        dynamic_metadata,
        filter_state,
        path_specifier,
    } = message;
    refuse(tls_context.is_some(), "tls_context")?;
    refuse(!dynamic_metadata.is_empty(), "dynamic_metadata")?;
    refuse(!filter_state.is_empty(), "filter_state")?;
    let fraction = match runtime_fraction {
        Some(_) => Some(value::runtime_fraction(runtime_fraction).at("runtime_fraction")?),
        None => None,
    };
    Ok(RouteMatch {
        path: path(path_specifier, !value::boolean(case_sensitive, true))?,
        headers: list("headers", headers, matchers::header)?,
        query: list("query_parameters", query_parameters, matchers::query)?,
        cookies: list("cookies", cookies, matchers::cookie)?,
        grpc: grpc.is_some(),
        fraction,
    })
}

fn path(
    specifier: &Option<pb::route_match::PathSpecifier>,
    ignore_case: bool,
) -> Result<PathMatch> {
    use pb::route_match::PathSpecifier;
    Ok(match specifier {
        Some(PathSpecifier::Prefix(prefix)) => {
            PathMatch::Prefix { prefix: prefix.as_bytes().into(), ignore_case }
        }
        Some(PathSpecifier::Path(path)) => {
            PathMatch::Exact { path: path.as_bytes().into(), ignore_case }
        }
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            let plain = prefix.starts_with('/') && !prefix.contains(['?', '#']);
            if !plain || prefix.ends_with('/') {
                let reason = format!("{prefix:?} must start with / and not end with it");
                return error("path_separated_prefix", reason);
            }
            PathMatch::SeparatedPrefix { prefix: prefix.as_bytes().into(), ignore_case }
        }
        Some(PathSpecifier::SafeRegex(regex)) => {
            PathMatch::Regex(matchers::regex(regex).at("safe_regex")?)
        }
        Some(PathSpecifier::ConnectMatcher(_)) => PathMatch::Connect,
        Some(PathSpecifier::PathMatchPolicy(_)) => {
            return error("path_match_policy", "is not supported");
        }
        None => return error("path_specifier", "is required"),
    })
}
