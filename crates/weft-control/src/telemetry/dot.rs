//! The call graph for Graphviz.

use std::fmt::Write as _;

use super::{Graph, GraphEdge};

/// A `digraph`.
pub fn render(graph: &Graph) -> String {
    let mut out = String::from("digraph mesh {\n  rankdir=LR;\n  node [shape=box];\n");
    for node in &graph.nodes {
        let shape = match node.kind.as_str() {
            "workload" => "box",
            "service" => "ellipse",
            _ => "plaintext",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  {} [shape={shape}];", quoted(&node.id));
    }
    for edge in &graph.edges {
        let GraphEdge { source, destination, security, numbers, .. } = edge;
        let style = if security == "mutual_tls" { "solid" } else { "dashed" };
        let colour = if numbers.errors > 0 { "red" } else { "black" };
        let _ = writeln!(
            out,
            "  {} -> {} [label={}, style={style}, color={colour}];",
            quoted(source),
            quoted(destination),
            quoted(&label(edge)),
        );
    }
    out.push_str("}\n");
    out
}

fn label(edge: &GraphEdge) -> String {
    let numbers = &edge.numbers;
    if edge.protocol == "tcp" {
        return format!("tcp {} connections", numbers.connections_opened);
    }
    let mut label = format!("{} {:.1}/s", edge.protocol, numbers.requests_per_second);
    if let Some(rate) = numbers.success_rate {
        let _ = write!(label, " {:.1}%", rate * 100.0);
    }
    if let Some(p99) = numbers.p99_ms {
        let _ = write!(label, " p99 {p99:.1}ms");
    }
    label
}

/// Names come from proxies: inside quotes only these two mean something.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out() {
        assert_eq!(quoted("a\"; b [\\"), r#""a\"; b [\\""#);
        assert!(render(&Graph::default()).starts_with("digraph mesh {"));
    }
}
