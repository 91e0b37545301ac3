//! What a user did wrong, as a value: severity, Istio's message code where one fits, the place
//! in the file, the field path, the reason and what to do. Rendering for people and programs.

use std::fmt::Write as _;

use serde::Serialize;

use crate::{Labels, Origin, ResourceKey};

/// How bad a finding is. An `Error` leaves its resource out; the others change nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
    Info,
}

/// One finding on one resource (or on a document that could not become one).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    /// Istio's code (`IST0101`) where one fits, else one of ours (`WEFT0001`).
    pub code: &'static str,
    /// File as named by the source; empty when the resource does not come from a file.
    pub file: String,
    /// Index of the YAML document in its file, from 0.
    pub document: u32,
    /// Line in the file, from 1; 0 when unknown.
    pub line: u32,
    pub resource: Option<ResourceKey>,
    /// Field path in the document, as `spec.http[0].route[1].weight`; may be empty.
    pub path: String,
    pub message: String,
    /// What to do about it; may be empty.
    pub help: String,
    /// Its resource asks not to be told of it; see [`SUPPRESS`].
    pub suppressed: bool,
}

/// Annotation with codes that `weft analyze` is not to tell of, separated by commas; `*` is all.
pub(crate) const SUPPRESS: &str = "galley.istio.io/analyze-suppress";

/// Whether annotations have [`SUPPRESS`] for a code.
pub(crate) fn suppresses(annotations: &Labels, code: &str) -> bool {
    let codes = annotations.get(SUPPRESS);
    codes.is_some_and(|codes| codes.split(',').map(str::trim).any(|one| one == "*" || one == code))
}

/// Codes: Istio's own from its message catalogue, ours where it has none.
pub(crate) mod code {
    /// Istio: SchemaValidationError.
    pub(crate) const SCHEMA: &str = "IST0106";
    /// Istio: SchemaWarning.
    pub(crate) const SCHEMA_WARNING: &str = "IST0133";
    /// Istio: Deprecated.
    pub(crate) const DEPRECATED: &str = "IST0002";
    /// Istio: ReferencedResourceNotFound.
    pub(crate) const NOT_FOUND: &str = "IST0101";
    /// Istio: ConflictingMeshGatewayVirtualServiceHosts.
    pub(crate) const DUPLICATE_MESH_HOST: &str = "IST0109";
    /// Istio: ConflictingSidecarWorkloadSelectors.
    pub(crate) const CONFLICTING_SIDECARS: &str = "IST0110";
    /// Istio: MultipleSidecarsWithoutWorkloadSelectors.
    pub(crate) const SIDECARS_WITHOUT_SELECTOR: &str = "IST0111";
    /// Istio: VirtualServiceDestinationPortSelectorRequired.
    pub(crate) const DESTINATION_PORT_REQUIRED: &str = "IST0112";
    /// Istio: PortNameIsNotUnderNamingConvention.
    pub(crate) const PORT_NAME: &str = "IST0118";
    /// Istio: NoMatchingWorkloadsFound.
    pub(crate) const NO_WORKLOAD: &str = "IST0127";
    /// Istio: NoServerCertificateVerificationDestinationLevel.
    pub(crate) const NO_SERVER_VERIFICATION: &str = "IST0128";
    /// Istio: NoServerCertificateVerificationPortLevel.
    pub(crate) const NO_SERVER_VERIFICATION_PORT: &str = "IST0129";
    /// Istio: VirtualServiceUnreachableRule.
    pub(crate) const UNREACHABLE_RULE: &str = "IST0130";
    /// Istio: VirtualServiceIneffectiveMatch.
    pub(crate) const INEFFECTIVE_MATCH: &str = "IST0131";
    /// Istio: VirtualServiceHostNotFoundInGateway.
    pub(crate) const HOST_NOT_IN_GATEWAY: &str = "IST0132";
    /// Istio: ServiceEntryAddressesRequired.
    pub(crate) const SERVICE_ENTRY_ADDRESSES: &str = "IST0134";
    /// Istio: GatewayDuplicateCertificate.
    pub(crate) const DUPLICATE_CERTIFICATE: &str = "IST0138";
    /// Istio: ConflictingGateways.
    pub(crate) const CONFLICTING_GATEWAYS: &str = "IST0145";
    /// Istio: EnvoyFilterUsesRelativeOperation.
    pub(crate) const RELATIVE: &str = "IST0151";
    /// Istio: EnvoyFilterUsesReplaceOperationIncorrectly.
    pub(crate) const REPLACE: &str = "IST0152";
    /// Istio: EnvoyFilterUsesAddOperationIncorrectly.
    pub(crate) const ADD: &str = "IST0153";
    /// Istio: EnvoyFilterUsesRemoveOperationIncorrectly.
    pub(crate) const REMOVE: &str = "IST0154";
    /// Istio: EnvoyFilterUsesRelativeOperationWithProxyVersion.
    pub(crate) const RELATIVE_WITH_VERSION: &str = "IST0155";
    /// Istio: NamespaceNotInjected.
    pub(crate) const NOT_INJECTED: &str = "IST0102";
    /// Istio: PodMissingProxy.
    pub(crate) const MISSING_PROXY: &str = "IST0103";
    /// Istio: MisplacedAnnotation.
    pub(crate) const MISPLACED_ANNOTATION: &str = "IST0107";
    /// Istio: UnknownAnnotation.
    pub(crate) const UNKNOWN_ANNOTATION: &str = "IST0108";
    /// Istio: DeploymentAssociatedToMultipleServices.
    pub(crate) const SEVERAL_PROTOCOLS: &str = "IST0116";
    /// Istio: NamespaceMultipleInjectionLabels.
    pub(crate) const INJECTION_LABELS: &str = "IST0123";
    /// Istio: InvalidAnnotation.
    pub(crate) const INVALID_ANNOTATION: &str = "IST0125";
    /// Istio: DeprecatedAnnotation.
    pub(crate) const DEPRECATED_ANNOTATION: &str = "IST0135";
    /// Istio: AlphaAnnotation.
    pub(crate) const ALPHA_ANNOTATION: &str = "IST0136";
    /// Istio: DeploymentConflictingPorts.
    pub(crate) const SEVERAL_PORTS: &str = "IST0137";
    /// Istio: InvalidApplicationUID.
    pub(crate) const PROXY_USER: &str = "IST0144";
    /// Istio: ExternalNameServiceTypeInvalidPortName.
    pub(crate) const EXTERNAL_NAME_PORT: &str = "IST0150";
    /// Istio: InvalidTelemetryProvider.
    pub(crate) const NO_TELEMETRY_PROVIDER: &str = "IST0157";
    /// Istio: ConflictingTelemetryWorkloadSelectors.
    pub(crate) const CONFLICTING_TELEMETRIES: &str = "IST0159";
    /// Istio: MultipleTelemetriesWithoutWorkloadSelectors.
    pub(crate) const TELEMETRIES_WITHOUT_SELECTOR: &str = "IST0160";
    /// Istio: InvalidGatewayCredential.
    pub(crate) const INVALID_CREDENTIAL: &str = "IST0161";
    /// Istio: ReferencedInternalGateway.
    pub(crate) const INTERNAL_GATEWAY: &str = "IST0165";
    /// Istio: GatewayPortNotDefinedOnService.
    pub(crate) const GATEWAY_PORT: &str = "IST0162";
    /// Istio: DestinationRuleSubsetNotSelectPods.
    pub(crate) const EMPTY_SUBSET: &str = "IST0173";
    /// Istio: UnknownDestinationRuleHost.
    pub(crate) const UNKNOWN_RULE_HOST: &str = "IST0174";
    /// Istio: ConflictingServiceEntryProtocol.
    pub(crate) const SERVICE_ENTRY_PROTOCOLS: &str = "IST0177";
    /// Ours: the text is not YAML, or passes a limit.
    pub(crate) const SYNTAX: &str = "WEFT0001";
    /// Ours: a kind that Weft does not read.
    pub(crate) const IGNORED_KIND: &str = "WEFT0002";
    /// Ours: one key defined twice.
    pub(crate) const DUPLICATE_RESOURCE: &str = "WEFT0003";
    /// Ours: two DestinationRules for one host disagree.
    pub(crate) const DESTINATION_RULE_CONFLICT: &str = "WEFT0004";
    /// Ours: a field that is understood but not acted on by this version.
    pub(crate) const NOT_IMPLEMENTED: &str = "WEFT0005";
    /// Ours: a Gateway API resource is not accepted, not served, or refers to what is not there.
    pub(crate) const GATEWAY_API: &str = "WEFT0006";

    /// Severity of a finding that takes several resources to see: the catalogue's level.
    pub(crate) fn severity(code: &str) -> super::Severity {
        match code {
            NOT_FOUND
            | DUPLICATE_MESH_HOST
            | CONFLICTING_SIDECARS
            | SIDECARS_WITHOUT_SELECTOR
            | DESTINATION_PORT_REQUIRED
            | CONFLICTING_GATEWAYS
            | EMPTY_SUBSET
            | INVALID_CREDENTIAL
            | CONFLICTING_TELEMETRIES
            | TELEMETRIES_WITHOUT_SELECTOR
            | REPLACE
            | ADD
            | REMOVE
            | SCHEMA => super::Severity::Error,
            INEFFECTIVE_MATCH | NOT_INJECTED | DEPRECATED_ANNOTATION | ALPHA_ANNOTATION => {
                super::Severity::Info
            }
            _ => super::Severity::Warning,
        }
    }
}

impl Diagnostic {
    /// A finding at `path` of the document at `origin`.
    pub fn new(
        severity: Severity,
        code: &'static str,
        origin: &Origin,
        path: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Diagnostic {
            severity,
            code,
            file: origin.file.to_string(),
            document: origin.document,
            line: origin.line,
            resource: None,
            path: path.into(),
            message: message.into(),
            help: String::new(),
            suppressed: false,
        }
    }

    pub fn with_resource(mut self, key: ResourceKey) -> Self {
        self.resource = Some(key);
        self
    }

    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }

    pub fn with_line(mut self, line: u32) -> Self {
        if line != 0 {
            self.line = line;
        }
        self
    }

    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// As a JSON object; shape of `weft analyze -o json` and of the API.
    pub fn to_json(&self) -> serde_json::Value {
        let mut object = serde_json::Map::new();
        object.insert("severity".into(), serde_json::json!(self.severity));
        object.insert("code".into(), self.code.into());
        object.insert("file".into(), self.file.as_str().into());
        object.insert("document".into(), self.document.into());
        object.insert("line".into(), self.line.into());
        if let Some(key) = &self.resource {
            object.insert(
                "resource".into(),
                serde_json::json!({"kind": key.kind.as_str(), "namespace": &*key.namespace, "name": &*key.name}),
            );
        }
        object.insert("path".into(), self.path.as_str().into());
        object.insert("message".into(), self.message.as_str().into());
        if !self.help.is_empty() {
            object.insert("help".into(), self.help.as_str().into());
        }
        serde_json::Value::Object(object)
    }
}

/// `Error [IST0106] VirtualService default/a (a.yaml:7, document 0) spec.http[0].timeout: why`.
impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let severity = match self.severity {
            Severity::Error => "Error",
            Severity::Warning => "Warning",
            Severity::Info => "Info",
        };
        write!(f, "{severity} [{}]", self.code)?;
        if let Some(key) = &self.resource {
            write!(f, " {key}")?;
        }
        if !self.file.is_empty() {
            write!(f, " ({}:{}, document {})", self.file, self.line, self.document)?;
        }
        if !self.path.is_empty() {
            write!(f, " {}", self.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// One finding a line, help indented below it, a count at the end; for terminals.
pub fn render_human(diagnostics: &[Diagnostic]) -> String {
    let mut out = String::new();
    for diagnostic in diagnostics {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{diagnostic}");
        if !diagnostic.help.is_empty() {
            let _ = writeln!(out, "    help: {}", diagnostic.help);
        }
    }
    let count = |severity, one: &str| {
        let count = diagnostics.iter().filter(|d| d.severity == severity).count();
        format!("{count} {one}{}", if count == 1 { "" } else { "s" })
    };
    let errors = count(Severity::Error, "error");
    let (warnings, notes) = (count(Severity::Warning, "warning"), count(Severity::Info, "note"));
    let _ = writeln!(out, "{errors}, {warnings}, {notes}");
    out
}

/// All findings as a YAML list, of the same shape as the JSON.
pub fn render_yaml(diagnostics: &[Diagnostic]) -> String {
    // JSON values have a YAML form.
    serde_saphyr::to_string(&render_json(diagnostics)).unwrap_or_default()
}

/// All findings as one JSON array.
pub fn render_json(diagnostics: &[Diagnostic]) -> serde_json::Value {
    serde_json::Value::Array(diagnostics.iter().map(Diagnostic::to_json).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seed article's first release, with its mistakes: two weightless rules for a service
    /// that is written with a capital letter.
    const ARTICLE: &str = "\
kind: Service
apiVersion: v1
metadata: {name: serviceA, labels: {app: serviceA}}
spec: {ports: [{name: http-8080, protocol: TCP, port: 8080, targetPort: 8080}], selector: {app: serviceA}}
---
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: servicea}
spec:
  hosts: [serviceA]
  http:
  - route: [{destination: {host: serviceA, subset: v1}}]
  - route: [{destination: {host: serviceA, subset: v2}}]
";

    #[test]
    fn rendered_for_people_and_programs() {
        let found = crate::analyze(&[("release.yaml".to_string(), ARTICLE.to_string())]);
        let human = render_human(&found);
        let expect = "\
Error [IST0106] Service default/serviceA (release.yaml:3, document 0) metadata.name: \"serviceA\" is not a legal name
    help: Use lower-case letters, digits and dashes.
";
        assert!(human.starts_with(expect), "{human}");
        assert!(human.contains("so 100 % of the traffic goes to it"), "{human}");
        assert!(human.ends_with("3 errors, 1 warning, 0 notes\n"), "{human}");
        let json = render_json(&found);
        assert_eq!(json[0]["severity"], "error");
        assert_eq!(json[0]["resource"]["name"], "serviceA");
        assert_eq!(json[0]["path"], "metadata.name");
        assert_eq!(json[0]["line"], 3);
    }
}
