//! A walk for people: one line a step, what decided it at the end of the line.

use std::fmt::Write as _;

use super::walk::{Decision, Destination, Walk};

pub(super) fn render(walk: &Walk) -> String {
    let mut out = String::new();
    let mut step = |name: &str, text: &str| {
        let _ = writeln!(out, "{name:<10} {text}");
    };
    step("from", &format!("{} through the proxy of {}", walk.from, walk.proxy));
    step("to", &walk.to.to_string());
    if let Some(listener) = &walk.listener {
        step("listener", listener);
    }
    if let Some(chain) = &walk.chain {
        let protocol = if walk.http.is_some() { "HTTP" } else { "TCP" };
        let chain = if chain.is_empty() { "the only one" } else { chain };
        step("chain", &format!("{chain} ({protocol})"));
    }
    if let Some(http) = &walk.http {
        step("routes", &http.routes);
        if let Some(host) = &http.virtual_host {
            step("host", host);
        }
        if let Some(route) = &http.route {
            let by =
                http.rule.as_ref().map_or("no rule: the service's own route".to_owned(), decision);
            step("route", &format!("{} {by}", if route.is_empty() { "(unnamed)" } else { route }));
        }
        for action in &http.actions {
            step("", action);
        }
    }
    for destination in &walk.destinations {
        of_destination(destination, &mut step);
    }
    if let Some(answer) = &walk.answer {
        step("answer", answer);
    }
    out
}

fn of_destination(destination: &Destination, step: &mut impl FnMut(&str, &str)) {
    let Destination { cluster, percent, policy, balancing, .. } = destination;
    let by = policy.as_ref().map(|policy| format!(", {}", decision(policy)));
    step("cluster", &format!("{cluster}  {percent:.0} %, {balancing}{}", by.unwrap_or_default()));
    for endpoint in &destination.endpoints {
        let mut line = format!("  {}", endpoint.address);
        if let Some(workload) = &endpoint.workload {
            let _ = write!(line, " {workload}");
        }
        if endpoint.priority > 0 {
            let _ = write!(line, " priority {}", endpoint.priority);
        }
        if endpoint.weight != 1 {
            let _ = write!(line, " weight {}", endpoint.weight);
        }
        if !endpoint.locality.is_empty() {
            let _ = write!(line, " in {}", endpoint.locality);
        }
        line.push_str(if endpoint.tls { " over mTLS or TLS" } else { " in plain text" });
        step("endpoint", line.trim_start());
    }
    if destination.endpoints_left_out > 0 {
        step("", &format!("and {} more", destination.endpoints_left_out));
    }
    if let Some(problem) = &destination.problem {
        step("problem", problem);
    }
}

fn decision(decision: &Decision) -> String {
    let rule = decision.rule.as_ref().map(|rule| format!(" spec.{rule}"));
    format!("by {}{} ({})", decision.resource, rule.unwrap_or_default(), decision.written_in)
}
