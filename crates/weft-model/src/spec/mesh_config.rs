//! Istio's MeshConfig (mesh.istio.io), as far as Weft reads it; the rest of its fields are known
//! to [`super::unread_fields`] so that they raise no warning.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::value::duration;
use super::{
    DefaultProviders, ExtensionProvider, HttpRetry, LabelSelector, LocalityLbSetting,
    OutboundTrafficPolicy, TcpKeepalive, TlsProtocol,
};

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshConfig {
    /// `cluster.local` when not set.
    pub trust_domain: String,
    pub trust_domain_aliases: Vec<String>,
    /// `istio-system` when not set.
    pub root_namespace: String,
    pub enable_auto_mtls: bool,
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    pub default_config: ProxyConfig,
    #[serde(deserialize_with = "duration")]
    pub connect_timeout: Option<Duration>,
    pub tcp_keepalive: Option<TcpKeepalive>,
    #[serde(deserialize_with = "duration")]
    pub protocol_detection_timeout: Option<Duration>,
    pub default_http_retry_policy: Option<HttpRetry>,
    pub default_service_export_to: Vec<String>,
    pub default_virtual_service_export_to: Vec<String>,
    pub default_destination_rule_export_to: Vec<String>,
    pub path_normalization: Option<PathNormalization>,
    pub locality_lb_setting: Option<LocalityLbSetting>,
    #[serde(rename = "meshMTLS")]
    pub mesh_mtls: Option<MeshTls>,
    /// For TLS that is not the mesh's own: gateways and what clients originate.
    pub tls_defaults: Option<MeshTls>,
    pub enable_tracing: Option<bool>,
    pub access_log_file: String,
    pub access_log_format: String,
    pub access_log_encoding: LogEncoding,
    pub disable_envoy_listener_log: bool,
    pub extension_providers: Vec<ExtensionProvider>,
    pub default_providers: Option<DefaultProviders>,
    pub enable_prometheus_merge: Option<bool>,
    /// Namespaces that the mesh looks at, any of these; all when empty.
    pub discovery_selectors: Vec<super::gateway_api::LabelSelector>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        MeshConfig {
            trust_domain: crate::CLUSTER_DOMAIN.to_string(),
            trust_domain_aliases: Vec::new(),
            root_namespace: crate::ROOT_NAMESPACE.to_string(),
            enable_auto_mtls: true,
            outbound_traffic_policy: None,
            default_config: ProxyConfig::default(),
            connect_timeout: None,
            tcp_keepalive: None,
            protocol_detection_timeout: None,
            default_http_retry_policy: None,
            default_service_export_to: Vec::new(),
            default_virtual_service_export_to: Vec::new(),
            default_destination_rule_export_to: Vec::new(),
            path_normalization: None,
            locality_lb_setting: None,
            mesh_mtls: None,
            tls_defaults: None,
            enable_tracing: None,
            access_log_file: String::new(),
            access_log_format: String::new(),
            access_log_encoding: LogEncoding::Text,
            disable_envoy_listener_log: false,
            extension_providers: Vec::new(),
            default_providers: None,
            enable_prometheus_merge: None,
            discovery_selectors: Vec::new(),
        }
    }
}

impl MeshConfig {
    /// `accessLogFormat` as the JSON object that it is where `accessLogEncoding` says so.
    pub fn json_access_log_format(&self) -> Option<serde_json::Value> {
        let value: serde_json::Value = serde_json::from_str(&self.access_log_format).ok()?;
        value.is_object().then_some(value)
    }
}

/// How lines of `accessLogFile` are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LogEncoding {
    #[default]
    Text,
    Json,
}

/// Settings of proxies: the mesh's `defaultConfig`, and what the annotation
/// `proxy.istio.io/config` says of one workload.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxyConfig {
    pub concurrency: Option<i32>,
    #[serde(deserialize_with = "duration")]
    pub drain_duration: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    pub termination_drain_duration: Option<Duration>,
    pub tracing: Option<Tracing>,
    pub proxy_metadata: BTreeMap<String, String>,
    pub gateway_topology: Option<Topology>,
    pub hold_application_until_proxy_starts: Option<bool>,
    pub discovery_address: String,
    pub proxy_headers: Option<ProxyHeaders>,
}

impl ProxyConfig {
    /// Reads the YAML text of the annotation `proxy.istio.io/config`.
    ///
    /// # Errors
    /// What is wrong with it, with the field's path.
    pub fn parse(text: &str) -> Result<ProxyConfig, String> {
        crate::parse::proxy_config(text).map(|(config, _)| config)
    }

    /// What `other` sets takes the place of what was set; metadata is added.
    pub fn overlay(&mut self, other: &ProxyConfig) {
        fn take<T: Clone>(own: &mut Option<T>, other: &Option<T>) {
            if other.is_some() {
                own.clone_from(other);
            }
        }
        let ProxyConfig {
            concurrency,
            drain_duration,
            termination_drain_duration,
            tracing,
            proxy_metadata,
            gateway_topology,
            hold_application_until_proxy_starts,
            discovery_address,
            proxy_headers,
        } = other;
        take(&mut self.concurrency, concurrency);
        take(&mut self.drain_duration, drain_duration);
        take(&mut self.termination_drain_duration, termination_drain_duration);
        take(&mut self.tracing, tracing);
        self.proxy_metadata.extend(proxy_metadata.clone());
        take(&mut self.gateway_topology, gateway_topology);
        take(&mut self.hold_application_until_proxy_starts, hold_application_until_proxy_starts);
        if !discovery_address.is_empty() {
            self.discovery_address.clone_from(discovery_address);
        }
        take(&mut self.proxy_headers, proxy_headers);
    }
}

/// networking.istio.io ProxyConfig: what a resource may say of some workloads' proxies.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxyConfigResource {
    pub selector: Option<LabelSelector>,
    pub concurrency: Option<i32>,
    /// Joins `proxyMetadata`.
    pub environment_variables: BTreeMap<String, String>,
}

impl ProxyConfigResource {
    /// As the settings it stands for.
    pub fn settings(&self) -> ProxyConfig {
        ProxyConfig {
            concurrency: self.concurrency,
            proxy_metadata: self.environment_variables.clone(),
            ..ProxyConfig::default()
        }
    }
}

/// Headers that proxies add, and whether they do.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxyHeaders {
    pub forwarded_client_cert: ForwardClientCert,
    pub set_current_client_cert_details: Option<ClientCertDetails>,
    pub request_id: Option<HeaderSwitch>,
    pub server: Option<ServerHeader>,
    pub attempt_count: Option<HeaderSwitch>,
    pub envoy_debug_headers: Option<HeaderSwitch>,
    pub metadata_exchange_headers: Option<MetadataExchangeHeaders>,
    #[serde(rename = "preserveHttp1HeaderCase")]
    pub preserve_http1_header_case: Option<bool>,
    pub x_forwarded_host: Option<HeaderEnabled>,
    pub x_forwarded_port: Option<HeaderEnabled>,
}

/// `x-forwarded-client-cert`: what to do with the client's, and whether to add to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ForwardClientCert {
    #[default]
    Undefined,
    Sanitize,
    ForwardOnly,
    AppendForward,
    SanitizeSet,
    AlwaysForwardOnly,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ClientCertDetails {
    pub subject: Option<bool>,
    pub cert: Option<bool>,
    pub chain: Option<bool>,
    pub dns: Option<bool>,
    pub uri: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HeaderSwitch {
    pub disabled: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HeaderEnabled {
    pub enabled: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServerHeader {
    pub disabled: bool,
    /// `istio-envoy` when not set.
    pub value: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct MetadataExchangeHeaders {
    pub mode: MetadataExchangeMode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MetadataExchangeMode {
    #[default]
    Undefined,
    InMesh,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Tracing {
    /// Percent of requests; Istio's default is 1.
    pub sampling: Option<f64>,
    pub zipkin: Option<Zipkin>,
    pub max_path_tag_length: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Zipkin {
    pub address: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Topology {
    pub num_trusted_proxies: u32,
    pub forward_client_cert_details: ForwardClientCert,
    /// Present: the gateway's listeners expect the PROXY protocol.
    pub proxy_protocol: Option<ProxyProtocolListener>,
}

/// `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ProxyProtocolListener {}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PathNormalization {
    pub normalization: NormalizationType,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum NormalizationType {
    #[default]
    Default,
    None,
    Base,
    MergeSlashes,
    DecodeAndMergeSlashes,
}

/// `meshMTLS` and `tlsDefaults`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshTls {
    pub min_protocol_version: TlsProtocol,
    pub ecdh_curves: Vec<String>,
    pub cipher_suites: Vec<String>,
}
