//! `metadata` of a resource.

use std::sync::Arc;

use serde::Deserialize;

use crate::object::{Labels, Meta, Origin, OwnerReference};

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RawMeta {
    pub(super) name: String,
    pub(super) generate_name: String,
    namespace: String,
    pub(super) labels: Labels,
    pub(super) annotations: Labels,
    generation: i64,
    creation_timestamp: String,
    deletion_timestamp: String,
    owner_references: Vec<RawOwner>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawOwner {
    kind: String,
    name: String,
    controller: bool,
}

impl RawMeta {
    pub(super) fn into_meta(self, kind: &str, origin: Origin) -> Meta {
        let namespace = match kind {
            "Namespace" | "Node" | "GatewayClass" => "",
            _ if self.namespace.is_empty() => "default",
            _ => &self.namespace,
        };
        let name = if self.name.is_empty() { &self.generate_name } else { &self.name };
        let owner =
            |o: RawOwner| OwnerReference { kind: o.kind, name: o.name, controller: o.controller };
        Meta {
            name: Arc::from(name.as_str()),
            namespace: Arc::from(namespace),
            labels: Arc::new(self.labels),
            annotations: Arc::new(self.annotations),
            creation: unix_seconds(&self.creation_timestamp),
            generation: 0,
            observed: self.generation,
            owners: self.owner_references.into_iter().map(owner).collect(),
            deleting: !self.deletion_timestamp.is_empty(),
            origin,
        }
    }
}

/// Kubernetes' timestamps are always `YYYY-MM-DDTHH:MM:SSZ`.
fn unix_seconds(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    // Days from civil, with the year starting in March so that leap days come last.
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}
