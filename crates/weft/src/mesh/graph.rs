//! `weft graph`.

use weft_control::telemetry::{Graph, GraphEdge, dot};

use super::{fetch, given, table};
use crate::cli::{GraphArgs, GraphOutput};

pub(crate) fn run(args: &GraphArgs) -> anyhow::Result<()> {
    let GraphArgs { api, namespace, window, output } = args;
    let query =
        given(&[("window", Some(window.as_secs().to_string())), ("namespace", namespace.clone())]);
    let graph: Graph = fetch(api, "/telemetry/graph", &query)?;
    match output {
        GraphOutput::Text => crate::print(&text(&graph)),
        GraphOutput::Json => crate::print(&format!("{:#}\n", serde_json::to_value(&graph)?)),
        GraphOutput::Dot => crate::print(&dot::render(&graph)),
    }
}

fn text(graph: &Graph) -> String {
    if graph.edges.is_empty() {
        return format!("No traffic was reported in the last {} s.\n", graph.window_seconds);
    }
    let heading = [
        "FROM", "TO", "PROTOCOL", "TLS", "RPS", "SUCCESS", "4XX", "NO ROUTE", "P50 MS", "P90 MS",
        "P99 MS", "REPORTER",
    ];
    let right = [false, false, false, false, true, true, true, true, true, true, true, false];
    let rows: Vec<Vec<String>> = graph.edges.iter().map(row).collect();
    table::render(&heading, &right, &rows)
}

fn row(edge: &GraphEdge) -> Vec<String> {
    let numbers = &edge.numbers;
    let is_tcp = edge.protocol == "tcp";
    vec![
        edge.source.clone(),
        edge.destination.clone(),
        edge.protocol.clone(),
        match edge.security.as_str() {
            "mutual_tls" => "mTLS".to_owned(),
            other => other.to_owned(),
        },
        match is_tcp {
            true => format!("{} conn", numbers.connections_opened),
            false => format!("{:.1}", numbers.requests_per_second),
        },
        table::percent(numbers.success_rate),
        numbers.client_errors.to_string(),
        numbers.no_route.to_string(),
        table::number(numbers.p50_ms),
        table::number(numbers.p90_ms),
        table::number(numbers.p99_ms),
        edge.reporter.clone(),
    ]
}
