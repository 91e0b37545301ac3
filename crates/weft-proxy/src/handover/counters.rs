//! Adds up the counters of two proxies in Prometheus text, so that a hand-over is no reset: what
//! the older one counted, also while it drains, goes on in the newer one's metrics. Gauges are the
//! newer one's own.

use std::collections::BTreeMap;

/// What was counted before us: samples by series, and which family they belong to.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Family, then series as written, then value.
    families: BTreeMap<String, Family>,
}

#[derive(Debug, Default)]
struct Family {
    /// `# HELP` and `# TYPE` lines.
    head: String,
    samples: BTreeMap<String, f64>,
}

impl Inherited {
    /// Reads counters and histograms of a whole exposition.
    pub fn parse(text: &str) -> Inherited {
        let mut inherited = Inherited::default();
        let mut head = String::new();
        let mut counted = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
                head.push_str(line);
                head.push('\n');
                counted = None;
                if matches!(kind, "counter" | "histogram") {
                    counted = Some(name.to_owned());
                    let family = inherited.families.entry(name.to_owned()).or_default();
                    family.head = std::mem::take(&mut head);
                }
                head.clear();
            } else if line.starts_with('#') {
                head = format!("{line}\n");
            } else if let (Some(name), Some((series, value))) = (&counted, sample(line))
                && let Some(family) = inherited.families.get_mut(name)
            {
                family.samples.insert(series.to_owned(), value);
            }
        }
        inherited
    }

    /// Nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.families.is_empty()
    }

    /// Our own exposition with what was inherited added.
    pub fn add_to(&self, own: &str) -> String {
        if self.families.is_empty() {
            return own.to_owned();
        }
        let mut out = String::with_capacity(own.len() + own.len() / 4);
        let mut left: BTreeMap<&str, BTreeMap<&str, f64>> = BTreeMap::new();
        for (name, family) in &self.families {
            left.insert(name, family.samples.iter().map(|(s, v)| (s.as_str(), *v)).collect());
        }
        let mut current: Option<&str> = None;
        for line in own.lines() {
            if line.starts_with('#') {
                let starts = line.split(' ').nth(2).unwrap_or_default();
                if current.is_some_and(|name| name != starts) {
                    append(&mut out, current.and_then(|name| left.remove(name)));
                }
                current = Some(starts);
            } else if let (Some(family), Some((series, value))) =
                (current.and_then(|name| left.get_mut(name)), sample(line))
                && let Some(before) = family.remove(series)
            {
                push(&mut out, series, value + before);
                continue;
            }
            out.push_str(line);
            out.push('\n');
        }
        append(&mut out, current.and_then(|name| left.remove(name)));
        for (name, samples) in left {
            out.push_str(self.families.get(name).map_or("", |family| &family.head));
            append(&mut out, Some(samples));
        }
        out
    }
}

fn append(out: &mut String, samples: Option<BTreeMap<&str, f64>>) {
    for (series, value) in samples.into_iter().flatten() {
        push(out, series, value);
    }
}

fn push(out: &mut String, series: &str, value: f64) {
    out.push_str(series);
    // Counts are whole numbers far below 2^53 and print as such.
    out.push_str(&format!(" {value}\n"));
}

/// Series and value. Label values are quoted, so the last blank ends the series.
fn sample(line: &str) -> Option<(&str, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    Some((series, value.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_go_on_and_gauges_do_not() {
        let old = "# HELP a Text.\n# TYPE a counter\na{x=\"1\"} 5\na{x=\"gone one\"} 7\n\
                   # TYPE g gauge\ng 9\n\
                   # TYPE h histogram\nh_bucket{le=\"+Inf\"} 2\nh_sum 0.5\nh_count 2\n\
                   # TYPE z counter\nz 1\n";
        let own = "# HELP a Text.\n# TYPE a counter\na{x=\"1\"} 1\na{x=\"2\"} 2\n\
                   # TYPE g gauge\ng 3\n\
                   # TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 0.25\nh_count 1\n";
        let expect = "# HELP a Text.\n# TYPE a counter\na{x=\"1\"} 6\na{x=\"2\"} 2\n\
                      a{x=\"gone one\"} 7\n\
                      # TYPE g gauge\ng 3\n\
                      # TYPE h histogram\nh_bucket{le=\"+Inf\"} 3\nh_sum 0.75\nh_count 3\n\
                      # TYPE z counter\nz 1\n";
        assert_eq!(Inherited::parse(old).add_to(own), expect);
        assert_eq!(Inherited::default().add_to(own), own);
    }

    #[test]
    fn several_generations_add_up() {
        let one = "# TYPE a counter\na 1\n";
        let two = Inherited::parse(one).add_to(one);
        assert_eq!(Inherited::parse(&two).add_to(one), "# TYPE a counter\na 3\n");
    }
}
