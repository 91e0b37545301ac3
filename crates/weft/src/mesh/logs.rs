//! `weft logs`: who called what.

use std::time::{Duration, SystemTime};

use weft_control::telemetry::RequestRow;

use super::{fetch, given, table};
use crate::cli::{LogsArgs, Output};

pub(crate) fn run(args: &LogsArgs) -> anyhow::Result<()> {
    let LogsArgs { api, path, status, since, from, to, limit, output } = args;
    let query = given(&[
        ("path", path.clone()),
        ("status", status.clone()),
        ("since", Some(since.as_secs().to_string())),
        ("from", from.clone()),
        ("to", to.clone()),
        ("limit", Some(limit.to_string())),
    ]);
    let rows: Vec<RequestRow> = fetch(api, "/telemetry/requests", &query)?;
    match output {
        Output::Text => crate::print(&text(&rows)),
        Output::Json => {
            let lines: Result<Vec<String>, _> = rows.iter().map(serde_json::to_string).collect();
            let mut lines = lines?.join("\n");
            if !lines.is_empty() {
                lines.push('\n');
            }
            crate::print(&lines)
        }
    }
}

fn text(rows: &[RequestRow]) -> String {
    let heading = [
        "AGO",
        "CODE",
        "FLAGS",
        "MS",
        "METHOD",
        "PATH",
        "FROM",
        "FROM ADDRESS",
        "TO",
        "TO ADDRESS",
        "REQUEST ID",
    ];
    let right = [true, true, false, true, false, false, false, false, false, false, false];
    let rows: Vec<Vec<String>> = rows.iter().map(row).collect();
    table::render(&heading, &right, &rows)
}

fn row(row: &RequestRow) -> Vec<String> {
    vec![
        ago(row.time_us),
        match row.grpc_status {
            Some(status) => format!("{}/grpc {status}", row.code),
            None => row.code.to_string(),
        },
        row.flags.clone(),
        format!("{:.1}", row.duration_ms),
        row.method.clone(),
        row.path.clone(),
        row.source.clone(),
        row.source_address.clone(),
        row.destination.clone(),
        row.destination_address.clone(),
        row.request_id.clone(),
    ]
}

/// `4s`, `12m`.
fn ago(time_us: u64) -> String {
    let then = SystemTime::UNIX_EPOCH + Duration::from_micros(time_us);
    match SystemTime::now().duration_since(then).unwrap_or_default().as_secs() {
        seconds @ 0..100 => format!("{seconds}s"),
        seconds @ 100..6000 => format!("{}m", seconds / 60),
        seconds => format!("{}h", seconds / 3600),
    }
}
