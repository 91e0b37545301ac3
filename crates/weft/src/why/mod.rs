//! `weft why`: where a request goes and which resource decided each step.
//!
//! The configuration takes the way it takes in the mesh: files → snapshot → translation → the tables
//! of our proxy; then the proxy's own functions choose listener, chain, route and endpoints. So the
//! answer is what the proxy does, not a second opinion. Chance is not drawn: every destination a
//! request may get is listed with its share. Without files the control plane is asked, which does the
//! same with what it brought its proxies to.

mod client;
mod live;
mod request;
mod text;
mod walk;

use std::process::ExitCode;

use anyhow::Context as _;
use weft_model::Severity;
use weft_traffic::{Tables, lower};
use weft_translate::ProxyView;
use weft_xds::pb::envoy::config::cluster::v3::Cluster;
use weft_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use weft_xds::pb::envoy::config::listener::v3::Listener;
use weft_xds::pb::envoy::config::route::v3::RouteConfiguration;

use crate::cli::{Output, WhyArgs};

pub(crate) use live::explain;

/// Fails (exit code 1) when the request goes nowhere.
pub(crate) fn run(args: &WhyArgs) -> anyhow::Result<ExitCode> {
    if args.files.is_empty() {
        let answer = live::ask(args)?;
        match args.output {
            Output::Text => {
                crate::print(&(text::render(&answer.walk) + &live::render(&answer.live)))?
            }
            Output::Json => crate::print(&format!("{:#}\n", serde_json::to_value(&answer)?))?,
        }
        return Ok(exit_code(&answer.walk));
    }
    let request = request::Request::parse(&args.method, &args.url, &args.headers)?;
    let files = crate::analyze::read_all(&args.files)?;
    let (snapshot, findings) = weft_model::load(&files);
    let errors = findings.iter().filter(|found| found.severity == Severity::Error).count();
    if errors > 0 {
        eprintln!("weft: errors in the configuration: {errors}; `weft analyze` shows them");
    }
    let walk = walk_from(&snapshot, &[], args.from.as_deref(), &request)?;
    match args.output {
        Output::Text => crate::print(&text::render(&walk))?,
        Output::Json => crate::print(&format!("{:#}\n", serde_json::to_value(&walk)?))?,
    }
    Ok(exit_code(&walk))
}

fn exit_code(walk: &walk::Walk) -> ExitCode {
    if walk.arrives() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The way from a workload, or from outside through the first gateway that knows it. Proxies that
/// are connected are taken as they describe themselves, others as their workload's resource does.
fn walk_from(
    snapshot: &weft_model::Snapshot,
    connected: &[ProxyView],
    from: Option<&str>,
    request: &request::Request,
) -> anyhow::Result<walk::Walk> {
    let mut best: Option<walk::Walk> = None;
    for client in client::find(snapshot, connected, from, request)? {
        let tables = tables(snapshot, &client.view)?;
        let walk = walk::walk(snapshot, &tables, &client, request);
        let arrived = walk.arrives();
        if best.is_none() || arrived {
            best = Some(walk);
        }
        if arrived {
            break;
        }
    }
    best.context("no Gateway resource, so nothing comes from outside")
}

/// The tables of the proxy that a view describes.
fn tables(snapshot: &weft_model::Snapshot, view: &ProxyView) -> anyhow::Result<Tables> {
    let refused = "our proxy refuses what the control plane would send";
    let (resources, _) = weft_translate::translate(snapshot, view);
    let mut tables = Tables::default();
    for resource in &resources.clusters {
        let cluster: Cluster = resource.decode()?;
        tables = tables.with_cluster(lower::cluster(&cluster).context(refused)?);
        let endpoints = weft_translate::endpoints(snapshot, view, &resource.name);
        if let Some(assignment) = endpoints {
            let assignment: ClusterLoadAssignment = assignment.decode()?;
            let endpoints = lower::endpoints(&assignment).context(refused)?;
            tables = tables.with_endpoints(&resource.name, endpoints);
        }
    }
    for resource in &resources.listeners {
        let listener: Listener = resource.decode()?;
        tables = tables.with_listener(lower::listener(&listener).context(refused)?);
    }
    for resource in &resources.routes {
        let routes: RouteConfiguration = resource.decode()?;
        tables = tables.with_route(lower::route_config(&routes).context(refused)?);
    }
    Ok(tables)
}
