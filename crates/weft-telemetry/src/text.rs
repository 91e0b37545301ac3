//! Prometheus text exposition: labels, escapes, numbers.

/// Text under construction. Label functions put the comma between pairs themselves.
#[derive(Debug, Default)]
pub(crate) struct Text {
    pub(crate) out: String,
}

impl Text {
    fn name(&mut self, name: &str) {
        if !self.out.is_empty() {
            self.out.push(',');
        }
        self.out.push_str(name);
        self.out.push_str("=\"");
    }
}

/// Appends `name="value"`, escaped.
pub(crate) fn label(text: &mut Text, name: &str, value: &str) {
    text.name(name);
    for c in value.chars() {
        match c {
            '\\' => text.out.push_str("\\\\"),
            '"' => text.out.push_str("\\\""),
            '\n' => text.out.push_str("\\n"),
            c => text.out.push(c),
        }
    }
    text.out.push('"');
}

/// `name="value",…` of generic labels.
pub(crate) fn labels_text(labels: &[(&str, &str)]) -> String {
    let mut text = Text::default();
    for (name, value) in labels {
        label(&mut text, name, value);
    }
    text.out
}

/// One sample line. `suffix` extends the name (`_bucket`), `extra` is one more label pair.
pub(crate) fn sample(
    out: &mut Vec<u8>,
    name: &str,
    suffix: &str,
    labels: &str,
    extra: Option<(&str, &str)>,
    value: &str,
) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(suffix.as_bytes());
    if !labels.is_empty() || extra.is_some() {
        out.push(b'{');
        out.extend_from_slice(labels.as_bytes());
        if let Some((key, value)) = extra {
            if !labels.is_empty() {
                out.push(b',');
            }
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(b"=\"");
            out.extend_from_slice(value.as_bytes());
            out.push(b'"');
        }
        out.push(b'}');
    }
    out.push(b' ');
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

/// The forms that Prometheus reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// Text format 0.0.4.
    Text,
    /// OpenMetrics 1.0, with exemplars. Its end (`# EOF`) is the caller's to write.
    OpenMetrics,
}

pub(crate) fn header(out: &mut Vec<u8>, form: Exposition, name: &str, help: &str, kind: &str) {
    // OpenMetrics counts as counters only what is named like one, and its family goes without.
    let (name, kind) = match (form, kind) {
        (Exposition::OpenMetrics, "counter") => match name.strip_suffix("_total") {
            Some(family) => (family, kind),
            None => (name, "unknown"),
        },
        _ => (name, kind),
    };
    let parts: [&str; 10] = match help {
        "" => ["", "", "", "", "", "# TYPE ", name, " ", kind, "\n"],
        _ => ["# HELP ", name, " ", help, "\n", "# TYPE ", name, " ", kind, "\n"],
    };
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

/// A float as Prometheus writes it.
pub(crate) fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".into()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf".into() } else { "-Inf".into() }
    } else {
        value.to_string()
    }
}

/// Thousandths as a decimal number: 1500 is `1.5`.
pub(crate) fn thousandths(value: u64) -> String {
    let (whole, rest) = (value / 1000, value % 1000);
    if rest == 0 {
        return whole.to_string();
    }
    format!("{whole}.{rest:03}").trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        assert_eq!(labels_text(&[("a", "x\"y\\z\n"), ("b", "")]), "a=\"x\\\"y\\\\z\\n\",b=\"\"");
    }

    #[test]
    fn thousandths_are_exact() {
        assert_eq!(thousandths(500), "0.5");
        assert_eq!(thousandths(1000), "1");
        assert_eq!(thousandths(1_234_050), "1234.05");
    }
}
