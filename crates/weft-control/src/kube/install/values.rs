//! What can be chosen: the same names for `weft install --set`, `--values` and the Helm chart.

use serde::Deserialize;
use serde_json::Value;

/// How to install. Fields are named in camel case in files.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Install {
    /// Of the control plane; also the mesh's root namespace.
    pub namespace: String,
    /// Image with this program as its entry point, for everything that runs.
    pub image: String,
    /// When Kubernetes pulls it; empty for its own choice.
    pub image_pull_policy: String,
    /// Namespaces and Pods choose a control plane by it (`istio.io/rev`).
    pub revision: String,
    /// How many control planes.
    pub replicas: u32,
    /// What this cluster is called in the mesh.
    pub cluster_id: String,
    /// SPIFFE trust domain.
    pub trust_domain: String,
    /// Injection of Pods and validation of configuration.
    pub webhooks: bool,
    /// A control plane in another cluster serves this one: here is only injected, and an account for
    /// it to read with.
    pub remote: bool,
    /// Where proxies find the control plane, `HOST:PORT`; empty for the one that is installed.
    pub discovery_address: String,
    /// At the edge, for requests from outside.
    pub ingress_gateway: GatewayValues,
    /// For requests to the outside.
    pub egress_gateway: GatewayValues,
}

/// One gateway.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayValues {
    pub enabled: bool,
    /// Bounds of its HorizontalPodAutoscaler.
    #[serde(default = "min_replicas")]
    pub min_replicas: u32,
    #[serde(default = "max_replicas")]
    pub max_replicas: u32,
}

const fn min_replicas() -> u32 {
    2
}

const fn max_replicas() -> u32 {
    5
}

impl GatewayValues {
    const fn new(enabled: bool) -> Self {
        GatewayValues { enabled, min_replicas: min_replicas(), max_replicas: max_replicas() }
    }
}

impl Default for Install {
    fn default() -> Self {
        Install {
            namespace: weft_model::ROOT_NAMESPACE.to_owned(),
            image: "weft:latest".to_owned(),
            image_pull_policy: String::new(),
            revision: "default".to_owned(),
            replicas: 2,
            cluster_id: "Kubernetes".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            webhooks: true,
            remote: false,
            discovery_address: String::new(),
            ingress_gateway: GatewayValues::new(true),
            egress_gateway: GatewayValues::new(false),
        }
    }
}

/// Why values cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ValuesError {
    #[error("--set {0:?} is not of the form name=value, as ingressGateway.enabled=false")]
    Form(String),
    #[error("the values: {0}")]
    Wrong(String),
}

impl Install {
    /// From YAML texts and then `name=value` pairs, later ones over earlier ones.
    ///
    /// # Errors
    /// Unknown names, values of another type, names that cannot be.
    pub fn read(files: &[String], sets: &[String]) -> Result<Self, ValuesError> {
        let wrong = |error: &dyn std::fmt::Display| ValuesError::Wrong(error.to_string());
        let mut values = Value::Object(serde_json::Map::new());
        for text in files {
            let more: Value = serde_saphyr::from_str(text).map_err(|error| wrong(&error))?;
            merge(&mut values, more);
        }
        for text in sets {
            let (name, value) =
                text.split_once('=').ok_or_else(|| ValuesError::Form(text.clone()))?;
            let mut more = scalar(value);
            for part in name.rsplit('.') {
                more = serde_json::json!({ part: more });
            }
            merge(&mut values, more);
        }
        // A gateway's section may say less than all of it.
        for (name, enabled) in [("ingressGateway", true), ("egressGateway", false)] {
            if let Some(section) = values.get_mut(name).and_then(Value::as_object_mut) {
                section.entry("enabled").or_insert(enabled.into());
            }
        }
        let install: Install = serde_json::from_value(values).map_err(|error| wrong(&error))?;
        install.check()?;
        Ok(install)
    }

    fn check(&self) -> Result<(), ValuesError> {
        for (what, name) in [("namespace", &self.namespace), ("revision", &self.revision)] {
            let valid =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            if name.is_empty() || name.len() > 40 || !name.bytes().all(valid) {
                let why = format!("{what} {name:?} is no name of at most 40 of a-z, 0-9 and -");
                return Err(ValuesError::Wrong(why));
            }
        }
        if self.remote && !self.webhooks {
            let why = "remote with webhooks=false leaves nothing to install".to_owned();
            return Err(ValuesError::Wrong(why));
        }
        for gateway in [&self.ingress_gateway, &self.egress_gateway] {
            if gateway.min_replicas == 0 || gateway.min_replicas > gateway.max_replicas {
                let why = "minReplicas of a gateway must be from 1 to maxReplicas".to_owned();
                return Err(ValuesError::Wrong(why));
            }
        }
        Ok(())
    }

    /// Whether it is the one that Pods get which name no revision.
    pub(super) fn is_default(&self) -> bool {
        self.revision == "default"
    }

    /// `NAME`, or `NAME-REVISION`.
    pub(super) fn named(&self, name: &str) -> String {
        match self.is_default() {
            true => name.to_owned(),
            false => format!("{name}-{}", self.revision),
        }
    }

    /// What everything of the control plane is called; proxies know it by this name.
    pub(super) fn name(&self) -> String {
        // The name itself stands for the control plane that serves.
        self.named(if self.remote { "istiod-injector" } else { "istiod" })
    }

    /// The Lease of those that write.
    pub(super) fn lease(&self) -> String {
        self.named("weft-leader")
    }

    /// Names of the two webhook configurations.
    pub(super) fn hooks(&self) -> [String; 2] {
        [self.named("istio-sidecar-injector"), self.named("istio-validator")]
    }

    /// Where proxies find the control plane.
    pub(super) fn discovery_address(&self) -> String {
        match self.discovery_address.as_str() {
            "" => format!("{}.{}.svc:15012", self.named("istiod"), self.namespace),
            address => address.to_owned(),
        }
    }
}

fn scalar(text: &str) -> Value {
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        text => text.parse::<u32>().map_or_else(|_| text.into(), Value::from),
    }
}

fn merge(values: &mut Value, more: Value) {
    match (values, more) {
        (Value::Object(values), Value::Object(more)) => {
            for (name, value) in more {
                merge(values.entry(name).or_insert(Value::Null), value);
            }
        }
        // An empty file says nothing.
        (_, Value::Null) => {}
        (values, more) => *values = more,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_pairs_are_laid_over_each_other() {
        let files = ["replicas: 3\ningressGateway: {maxReplicas: 9}\n".to_owned(), String::new()];
        let sets = ["image=a/b:1", "egressGateway.enabled=true"].map(str::to_owned);
        let install = Install::read(&files, &sets).expect("they fit");
        assert_eq!((install.replicas, install.image.as_str()), (3, "a/b:1"));
        assert!(install.ingress_gateway.enabled && install.egress_gateway.enabled);
        assert_eq!(install.ingress_gateway.max_replicas, 9);
        assert_eq!(Install::read(&[], &[]).expect("nothing is said"), Install::default());
        for (set, why) in [
            ("replicas", "name=value"),
            ("replica=1", "unknown field"),
            ("replicas=many", "invalid type"),
            ("revision=A", "revision"),
            ("ingressGateway.minReplicas=7", "minReplicas"),
        ] {
            let error = Install::read(&[], &[set.to_owned()]).expect_err(set).to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
