//! Istio's metrics filter (`istio.stats`): what it changes of the metrics that we count unasked.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message as _;
use weft_cel::Program;
use weft_telemetry::{Metric, View};
use weft_xds::stats::{MetricConfig, PluginConfig};

use super::{Result, Within, error, refuse};
use crate::metrics::Metrics;
use crate::pb::google::protobuf::Any;

pub(super) const STATS: &str = "stats.PluginConfig";
/// Labels of one configuration whose values are told of each request.
const VALUES_MAX: usize = 32;

/// None: the standard metrics.
pub(super) fn lower(any: &Any) -> Result<Option<Arc<Metrics>>> {
    let Ok(PluginConfig {
        // We name an unknown destination by the host where Istio does.
        disable_host_header_fallback: _,
        // Bytes are counted as they pass.
        tcp_reporting_duration: _,
        metrics,
        definitions,
        reporter,
    }) = PluginConfig::decode(&any.value[..])
    else {
        return error("", "is not a stats.PluginConfig");
    };
    refuse(!definitions.is_empty(), "definitions")?;
    refuse(reporter != 0, "reporter")?;
    if metrics.is_empty() {
        return Ok(None);
    }
    let mut building = Building::default();
    for (index, config) in metrics.iter().enumerate() {
        building.add(config).item("metrics", index)?;
    }
    Ok(Some(Arc::new(Metrics::new(building.view, building.values))))
}

#[derive(Default)]
struct Building {
    view: View,
    values: Vec<Program>,
    /// Where the value of an expression is.
    known: HashMap<String, usize>,
}

impl Building {
    fn add(&mut self, config: &MetricConfig) -> Result<()> {
        let MetricConfig { dimensions, name, tags_to_remove, r#match: _, drop } = config;
        let metrics: &[Metric] = match name.as_str() {
            "" => &Metric::ALL,
            name => match Metric::from_name(name) {
                Some(one) => &[one],
                // Of a metric that nobody defined there is nothing to change.
                None => return Ok(()),
            },
        };
        for label in tags_to_remove {
            metrics.iter().for_each(|metric| self.view.remove(*metric, label));
        }
        for (label, expression) in dimensions {
            let value = self.value(expression).within(|| format!("dimensions[{label:?}]"))?;
            if !is_label(label) {
                return error(format!("dimensions[{label:?}]"), "is not a label's name");
            }
            metrics.iter().for_each(|metric| self.view.set(*metric, label, value));
        }
        if *drop {
            metrics.iter().for_each(|metric| self.view.set_dropped(*metric, true));
        }
        Ok(())
    }

    fn value(&mut self, expression: &str) -> Result<usize> {
        if let Some(known) = self.known.get(expression) {
            return Ok(*known);
        }
        if self.values.len() >= VALUES_MAX {
            return error("", format!("more than {VALUES_MAX} different expressions"));
        }
        match Program::compile(expression) {
            Ok(program) => self.values.push(program),
            Err(bad) => return error("", bad.to_string()),
        }
        let at = self.values.len() - 1;
        self.known.insert(expression.to_owned(), at);
        Ok(at)
    }
}

/// As Prometheus writes them.
fn is_label(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    let rest = |byte: u8| letter(byte) || byte.is_ascii_digit();
    name.bytes().next().is_some_and(letter) && name.bytes().all(rest)
}
