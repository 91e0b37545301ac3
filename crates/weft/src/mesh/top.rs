//! `weft top`: interfaces of services, or with `--failures` what fails and for whom.

use weft_control::telemetry::{FailureRow, InterfaceRow};

use super::{fetch, given, table};
use crate::cli::{Output, TopArgs};

pub(crate) fn run(args: &TopArgs) -> anyhow::Result<()> {
    let TopArgs { api, service, window, failures, limit, output } = args;
    let query =
        given(&[("window", Some(window.as_secs().to_string())), ("service", service.clone())]);
    let text = match failures {
        false => {
            let mut rows: Vec<InterfaceRow> = fetch(api, "/telemetry/interfaces", &query)?;
            rows.truncate(*limit);
            match output {
                Output::Text => interfaces(&rows),
                Output::Json => format!("{:#}\n", serde_json::to_value(&rows)?),
            }
        }
        true => {
            let mut rows: Vec<FailureRow> = fetch(api, "/telemetry/failures", &query)?;
            rows.truncate(*limit);
            match output {
                Output::Text => failed(&rows),
                Output::Json => format!("{:#}\n", serde_json::to_value(&rows)?),
            }
        }
    };
    crate::print(&text)
}

fn interfaces(rows: &[InterfaceRow]) -> String {
    let heading =
        ["SERVICE", "METHOD", "PATH", "RPS", "SUCCESS", "4XX", "5XX", "P50 MS", "P90 MS", "P99 MS"];
    let right = [false, false, false, true, true, true, true, true, true, true];
    let row = |row: &InterfaceRow| {
        let numbers = &row.numbers;
        let method = if row.protocol == "grpc" { "gRPC" } else { &row.method };
        vec![
            if row.service.is_empty() { "(no route)".to_owned() } else { row.service.clone() },
            method.to_owned(),
            row.path.clone(),
            format!("{:.1}", numbers.requests_per_second),
            table::percent(numbers.success_rate),
            numbers.client_errors.to_string(),
            numbers.errors.to_string(),
            table::number(numbers.p50_ms),
            table::number(numbers.p90_ms),
            table::number(numbers.p99_ms),
        ]
    };
    let rows: Vec<Vec<String>> = rows.iter().map(row).collect();
    table::render(&heading, &right, &rows)
}

fn failed(rows: &[FailureRow]) -> String {
    let heading = ["REQUESTS", "CODE", "FLAGS", "BY", "FROM", "TO", "METHOD", "PATH"];
    let right = [true, true, false, false, false, false, false, false];
    let row = |row: &FailureRow| {
        let code = match row.grpc_status {
            Some(status) => format!("{}/grpc {status}", row.code),
            None => row.code.to_string(),
        };
        vec![
            row.requests.to_string(),
            code,
            row.flags.clone(),
            row.by.clone(),
            row.source.clone(),
            row.destination.clone(),
            row.method.clone(),
            row.path.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = rows.iter().map(row).collect();
    table::render(&heading, &right, &rows)
}
