//! Telemetry: expressions that do not compile, values out of range, and what is not built.

use weft_cel::Program;

use super::{Findings, bounds, entry};
use crate::diagnostic::code;
use crate::object::Meta;
use crate::spec::{
    CustomTag, ExtensionProvider, METRICS_PRESET, METRICS_PRESETS, MetricOverride, TagOperation,
    Telemetry,
};

/// What Istio's API calls the standard metrics.
const METRICS: [&str; 11] = [
    "ALL_METRICS",
    "REQUEST_COUNT",
    "REQUEST_DURATION",
    "REQUEST_SIZE",
    "RESPONSE_SIZE",
    "TCP_OPENED_CONNECTIONS",
    "TCP_CLOSED_CONNECTIONS",
    "TCP_SENT_BYTES",
    "TCP_RECEIVED_BYTES",
    "GRPC_REQUEST_MESSAGES",
    "GRPC_RESPONSE_MESSAGES",
];

pub(super) fn check(spec: &Telemetry, findings: &mut Findings<'_>) {
    if let Some(wanted) = &spec.selector {
        bounds::selector(&wanted.match_labels, 4096, "spec.selector.matchLabels", findings);
        let targets = spec.target_ref.is_some() || !spec.target_refs.is_empty();
        if targets && !wanted.match_labels.is_empty() {
            findings.error("spec.targetRefs", "a selector and targets cannot both be set");
        }
    }
    for (index, logging) in spec.access_logging.iter().enumerate() {
        if let Some(filter) = &logging.filter {
            let path = format!("spec.accessLogging[{index}].filter.expression");
            expression(&filter.expression, path, findings);
        }
    }
    for (index, tracing) in spec.tracing.iter().enumerate() {
        let path = format!("spec.tracing[{index}]");
        let percent = tracing.random_sampling_percentage;
        if percent.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
            let path = format!("{path}.randomSamplingPercentage");
            findings.error(path, "expected a percentage from 0 to 100");
        }
        if tracing.providers.len() > 1 {
            findings.error(format!("{path}.providers"), "traces go to one provider");
        }
        for (name, tag) in &tracing.custom_tags {
            custom_tag(tag, &entry(&format!("{path}.customTags"), name), findings);
        }
    }
    for (index, metrics) in spec.metrics.iter().enumerate() {
        for (at, one) in metrics.overrides.iter().enumerate() {
            metric(one, &format!("spec.metrics[{index}].overrides[{at}]"), findings);
        }
    }
    unbuilt(spec, findings);
}

/// The annotation that says what metrics begin with.
pub(super) fn preset(meta: &Meta, findings: &mut Findings<'_>) {
    if let Some(name) = meta.annotations.get(METRICS_PRESET)
        && !METRICS_PRESETS.contains(&&**name)
    {
        let path = entry("metadata.annotations", METRICS_PRESET);
        let known = METRICS_PRESETS.join(", ");
        findings.error(path, format!("{name:?} is no preset of metrics: {known}"));
    }
}

fn expression(text: &str, path: String, findings: &mut Findings<'_>) {
    if let Err(error) = Program::compile(text) {
        let help = "It is an expression of CEL over Envoy's attributes, as response.code >= 400.";
        findings.error_with_help(path, format!("bad expression, {error}"), help);
    }
}

fn custom_tag(tag: &CustomTag, path: &str, findings: &mut Findings<'_>) {
    let CustomTag { literal, environment, header, formatter } = tag;
    let kinds = [literal.is_some(), environment.is_some(), header.is_some(), formatter.is_some()];
    if kinds.into_iter().filter(|set| *set).count() != 1 {
        findings.error(path, "expected one of literal, environment, header, formatter");
    }
    for named in environment.iter().chain(header) {
        if named.name.is_empty() {
            findings.error(path, "a name is required");
        }
    }
}

fn metric(one: &MetricOverride, path: &str, findings: &mut Findings<'_>) {
    let selector = one.matches.as_ref();
    if let Some(metric) = selector.and_then(|selector| selector.metric.as_deref())
        && !METRICS.contains(&metric)
    {
        findings.error(format!("{path}.match.metric"), format!("{metric:?} is not a metric"));
    }
    for (name, tag) in &one.tag_overrides {
        let path = format!("{}.value", entry(&format!("{path}.tagOverrides"), name));
        match (tag.operation, tag.value.is_empty()) {
            (TagOperation::Upsert, true) => findings.error(path, "UPSERT needs a value"),
            (TagOperation::Upsert, false) => expression(&tag.value, path, findings),
            (TagOperation::Remove, true) => {}
            (TagOperation::Remove, false) => findings.error(path, "REMOVE takes no value"),
        }
    }
}

/// What is read and has no effect yet.
fn unbuilt(spec: &Telemetry, findings: &mut Findings<'_>) {
    let mut tell = |path: String, why: &str| {
        let field = path.rsplit('.').next().unwrap_or_default().to_owned();
        findings.info(code::NOT_IMPLEMENTED, path, format!("{field} is not built yet: {why}"), "");
    };
    for (index, metrics) in spec.metrics.iter().enumerate() {
        for (at, one) in metrics.overrides.iter().enumerate() {
            let custom = one.matches.as_ref().map(|matches| matches.custom_metric.as_str());
            if custom.is_some_and(|name| !name.is_empty()) {
                let path = format!("spec.metrics[{index}].overrides[{at}].match.customMetric");
                tell(path, "nothing defines metrics beyond Istio's");
            }
        }
    }
    for (index, tracing) in spec.tracing.iter().enumerate() {
        let path = format!("spec.tracing[{index}]");
        for (name, tag) in &tracing.custom_tags {
            if tag.formatter.is_some() {
                let path = entry(&format!("{path}.customTags"), name);
                tell(format!("{path}.formatter"), "weft proxy has no such tags");
            }
        }
        for (field, set) in [
            ("useRequestIdForTraceSampling", tracing.use_request_id_for_trace_sampling.is_some()),
            ("disableContextPropagation", tracing.disable_context_propagation.is_some()),
            ("enableIstioTags", tracing.enable_istio_tags.is_some()),
        ] {
            if set {
                tell(format!("{path}.{field}"), "it has no effect");
            }
        }
    }
}

/// A provider of MeshConfig.
pub(super) fn provider(provider: &ExtensionProvider, path: &str, findings: &mut Findings<'_>) {
    if provider.name.is_empty() {
        findings.error(format!("{path}.name"), "a provider needs a name");
    }
}
