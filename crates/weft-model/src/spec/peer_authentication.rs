//! security.istio.io PeerAuthentication.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::LabelSelector;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PeerAuthentication {
    pub selector: Option<LabelSelector>,
    pub mtls: Option<MutualTls>,
    /// By workload (not Service) port.
    pub port_level_mtls: BTreeMap<String, MutualTls>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct MutualTls {
    pub mode: MutualTlsMode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MutualTlsMode {
    /// Inherits from the next wider scope.
    #[default]
    Unset,
    Disable,
    Permissive,
    Strict,
}
