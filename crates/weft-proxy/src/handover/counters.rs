//! Adds up the counters of two proxies in Prometheus text, so that a hand-over is no reset: what
//! the older one counted, also while it drains, goes on in the newer one's metrics. Gauges are the
//! newer one's own.

use std::collections::BTreeMap;

/// What was counted before us: samples by series, and which family they belong to.
#[derive(Debug, Default)]
pub struct Inherited {
    families: BTreeMap<String, Family>,
}

#[derive(Debug, Default)]
struct Family {
    /// `# HELP` and `# TYPE` lines.
    head: String,
    samples: Samples,
}

/// Series and their values, in order: of each series only what differs from the one before. Buckets
/// of a histogram differ in a few bytes, and a proxy keeps this for as long as it runs.
#[derive(Debug, Default)]
struct Samples {
    /// Of each: bytes shared with the one before (two), how many follow (four), those, the value.
    packed: Vec<u8>,
}

impl Samples {
    fn pack(samples: &BTreeMap<&str, f64>) -> Samples {
        let (mut packed, mut before) = (Vec::new(), &b""[..]);
        for (series, value) in samples {
            let series = series.as_bytes();
            let same = series.iter().zip(before).take_while(|(one, other)| one == other).count();
            let shared = u16::try_from(same).unwrap_or(u16::MAX);
            let rest = &series[usize::from(shared)..];
            packed.extend_from_slice(&shared.to_le_bytes());
            packed.extend_from_slice(&(rest.len() as u32).to_le_bytes());
            packed.extend_from_slice(rest);
            packed.extend_from_slice(&value.to_le_bytes());
            before = series;
        }
        packed.shrink_to_fit();
        Samples { packed }
    }

    fn unpack(&self) -> BTreeMap<String, f64> {
        let (mut samples, mut series, mut packed) = (BTreeMap::new(), Vec::new(), &self.packed[..]);
        while let Some((shared, rest)) = packed.split_first_chunk()
            && let Some((length, rest)) = rest.split_first_chunk()
            && let Some((text, rest)) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)
            && let Some((value, rest)) = rest.split_first_chunk()
        {
            series.truncate(usize::from(u16::from_le_bytes(*shared)));
            series.extend_from_slice(text);
            let text = String::from_utf8_lossy(&series).into_owned();
            samples.insert(text, f64::from_le_bytes(*value));
            packed = rest;
        }
        samples
    }
}

impl Inherited {
    /// Reads counters and histograms of a whole exposition.
    pub fn parse(text: &str) -> Inherited {
        let mut families: BTreeMap<&str, (String, BTreeMap<&str, f64>)> = BTreeMap::new();
        let mut help = None;
        let mut counted = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
                counted = None;
                if matches!(kind, "counter" | "histogram") {
                    counted = Some(name);
                    let head: Vec<&str> = help.into_iter().chain([line, ""]).collect();
                    families.entry(name).or_default().0 = head.join("\n");
                }
                help = None;
            } else if line.starts_with('#') {
                help = Some(line);
            } else if let (Some(name), Some((series, value))) = (counted, sample(line))
                && let Some((_, samples)) = families.get_mut(name)
            {
                samples.insert(series, value);
            }
        }
        let pack = |(name, (head, samples)): (&str, (String, BTreeMap<&str, f64>))| {
            (name.to_owned(), Family { head, samples: Samples::pack(&samples) })
        };
        Inherited { families: families.into_iter().map(pack).collect() }
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
        let mut left: BTreeMap<&str, &Family> =
            self.families.iter().map(|(name, family)| (name.as_str(), family)).collect();
        let (mut current, mut samples) = ("", BTreeMap::new());
        for line in own.lines() {
            if line.starts_with('#') {
                let name = line.split(' ').nth(2).unwrap_or_default();
                if current != name {
                    append(&mut out, samples);
                    current = name;
                    samples = left.remove(name).map_or(BTreeMap::new(), |it| it.samples.unpack());
                }
            } else if let Some((series, value)) = sample(line)
                && let Some(before) = samples.remove(series)
            {
                push(&mut out, series, value + before);
                continue;
            }
            out.push_str(line);
            out.push('\n');
        }
        append(&mut out, samples);
        for family in left.into_values() {
            out.push_str(&family.head);
            append(&mut out, family.samples.unpack());
        }
        out
    }
}

fn append(out: &mut String, samples: BTreeMap<String, f64>) {
    for (series, value) in samples {
        push(out, &series, value);
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

    #[test]
    fn buckets_are_kept_in_little_memory() {
        let mut text = "# TYPE h histogram\n".to_owned();
        for peer in 0..50 {
            for bound in 0..20 {
                let labels = format!("source=\"{peer}{}\",le=\"{bound}\"", "x".repeat(300));
                text += &format!("h_bucket{{{labels}}} {bound}\n");
            }
        }
        let inherited = Inherited::parse(&text);
        let kept: usize = inherited.families.values().map(|it| it.samples.packed.len()).sum();
        assert!(kept * 8 < text.len(), "{kept} bytes for {}", text.len());
        let doubled = inherited.add_to(&text);
        assert_eq!(doubled.lines().count(), text.lines().count());
        assert!(doubled.contains("le=\"19\"} 38\n"), "{doubled}");
    }
}
