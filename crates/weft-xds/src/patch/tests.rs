use super::*;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter,
};
use crate::pb::google::protobuf::{BoolValue, Duration};
use serde_json::json;

fn problems<M: Name>(json: &serde_json::Value, extent: Extent) -> Vec<(String, bool)> {
    let (_, found) = read::<M>(json, extent, "value");
    found.into_iter().map(|problem| (problem.path, problem.fatal)).collect()
}

#[test]
fn a_mistake_is_named_by_its_place() {
    let unknown = json!({"name": "a", "no_such": 1});
    assert_eq!(problems::<HttpFilter>(&unknown, Extent::Whole), [("value.no_such".into(), false)]);
    let kind = json!({"name": "a", "typed_config": {"@type": "type.googleapis.com/no.Such"}});
    assert_eq!(
        problems::<HttpFilter>(&kind, Extent::Whole),
        [("value.typed_config.@type".into(), true)]
    );
    let deep = json!({"name": "a", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
        "inline_code": 3, "default_source_code": {"inline": "x"}
    }});
    assert_eq!(
        problems::<HttpFilter>(&deep, Extent::Whole),
        [
            ("value.typed_config.inline_code".into(), true),
            ("value.typed_config.default_source_code.inline".into(), false)
        ]
    );
    let duration = json!({"connect_timeout": "1"});
    assert_eq!(
        problems::<Cluster>(&duration, Extent::Part),
        [("value.connect_timeout".into(), true)]
    );
}

#[test]
fn what_envoy_would_refuse_is_refused_here() {
    assert_eq!(problems::<HttpFilter>(&json!({}), Extent::Whole), [("value.name".into(), true)]);
    assert_eq!(problems::<HttpFilter>(&json!({}), Extent::Part), []);
    let zero = json!({"name": "c", "connect_timeout": "0s"});
    assert_eq!(problems::<Cluster>(&zero, Extent::Whole), [("value.connect_timeout".into(), true)]);
    let limit = json!({"max_request_headers_kb": 9000});
    assert_eq!(
        problems::<HttpConnectionManager>(&limit, Extent::Part),
        [("value.max_request_headers_kb".into(), true)]
    );
}

#[test]
fn fields_merge_values_are_replaced() {
    let json = json!({
        "use_remote_address": false,
        "stream_idle_timeout": "0.5s",
        "common_http_protocol_options": {"idle_timeout": "30s"},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
    });
    let (patch, problems) = read::<HttpConnectionManager>(&json, Extent::Part, "value");
    assert_eq!(problems, []);
    let patch = patch.unwrap();
    let base: HttpConnectionManager = json::message_from_json(&serde_json::json!({
        "stat_prefix": "s",
        "use_remote_address": true,
        "stream_idle_timeout": "5s",
        "common_http_protocol_options": {"max_headers_count": 7},
        "upgrade_configs": [{"upgrade_type": "websocket"}],
    }))
    .unwrap();
    let mut merged = base.clone();
    patch.merge_into(&mut merged, Lists::Append);
    assert_eq!(merged.stat_prefix, "s");
    assert_eq!(merged.use_remote_address, Some(BoolValue { value: false }));
    assert_eq!(merged.stream_idle_timeout, Some(Duration { seconds: 0, nanos: 500_000_000 }));
    let common = merged.common_http_protocol_options.unwrap();
    assert_eq!(common.max_headers_count.unwrap().value, 7);
    assert_eq!(common.idle_timeout.unwrap().seconds, 30);
    assert_eq!(merged.upgrade_configs.len(), 2);
    let mut replaced = base;
    patch.merge_into(&mut replaced, Lists::Replace);
    assert_eq!(replaced.upgrade_configs.len(), 1);
}

#[test]
fn a_wrapped_configuration_comes_out_typed() {
    let json = json!({"name": "lua", "typed_config": {
        "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
        "type_url": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
        "value": {"inline_code": "x"},
    }});
    let (patch, problems) = read::<HttpFilter>(&json, Extent::Whole, "value");
    assert_eq!(problems, []);
    let shown = json::message_to_json(&patch.unwrap().to::<HttpFilter>().unwrap()).unwrap();
    assert_eq!(
        shown["typed_config"]["@type"],
        "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"
    );
    assert_eq!(shown["typed_config"]["inline_code"], "x");
}

struct OnlyCors;

impl Reader for OnlyCors {
    fn knows(&self, name: &str) -> bool {
        name.ends_with(".Cors") || name.ends_with(".HttpConnectionManager")
    }
    fn acts_on(&self, _: &str, field: &str) -> bool {
        field != "via"
    }
}

#[test]
fn what_a_reader_does_not_know_is_taken_out_and_told() {
    let filter = |kind: &str| {
        json!({"name": kind, "typed_config": {
            "@type": format!("type.googleapis.com/envoy.extensions.filters.http.{kind}")}})
    };
    let json = json!({"via": "x", "http_filters": [filter("lua.v3.Lua"), filter("cors.v3.Cors")]});
    let (patch, _) = read::<HttpConnectionManager>(&json, Extent::Part, "value");
    let mut patch = patch.unwrap();
    let mut left_out = Vec::new();
    assert!(patch.keep_only(&OnlyCors, "value", &mut left_out));
    let told: Vec<(&str, Option<&str>)> =
        left_out.iter().map(|one| (&*one.path, one.extension.as_deref())).collect();
    let lua = "envoy.extensions.filters.http.lua.v3.Lua";
    assert_eq!(told, [("value.http_filters[0].typed_config", Some(lua)), ("value.via", None)]);
    let kept: HttpConnectionManager = patch.to().unwrap();
    assert_eq!(kept.http_filters.len(), 1);
}
