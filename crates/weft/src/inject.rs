//! `weft inject`: what the webhook would make of the pods in files. The same function with the same
//! settings, so the results are the same to the byte.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::Value;
use weft_capture::inject::{MeshSettings, Outcome, inject_object};

#[derive(Debug, Args)]
pub(crate) struct InjectArgs {
    /// File; may be repeated. `-` reads standard input.
    #[arg(long = "filename", short = 'f', required = true, value_name = "PATH")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    settings: InjectSettings,
}

/// What injection needs to know of the mesh; `weft control` takes the same.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct InjectSettings {
    /// Image with this program.
    #[arg(long, env = "WEFT_IMAGE", value_name = "IMAGE")]
    image: Option<String>,
    /// When Kubernetes pulls it.
    #[arg(long, env = "WEFT_IMAGE_PULL_POLICY", default_value = "", value_name = "POLICY")]
    image_pull_policy: String,
    /// Revision of the control plane.
    #[arg(long, env = "REVISION", default_value = "default", value_name = "NAME")]
    revision: String,
    /// Control plane as pods reach it, with TLS.
    #[arg(long, env = "WEFT_DISCOVERY_ADDRESS", default_value = "istiod.istio-system.svc:15012")]
    #[arg(value_name = "HOST:PORT")]
    discovery_address: String,
    /// Name of the cluster.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes", value_name = "ID")]
    cluster_id: String,
    /// Whether the proxy is a native sidecar (Kubernetes 1.29 and later).
    #[arg(long, env = "ENABLE_NATIVE_SIDECARS", default_value = "true", value_name = "BOOL")]
    #[arg(action = clap::ArgAction::Set)]
    native_sidecars: bool,
    /// Whether pods that say nothing are injected.
    #[arg(long, default_value = "true", value_name = "BOOL", action = clap::ArgAction::Set)]
    inject_by_default: bool,
    /// MeshConfig, of which `defaultConfig` counts here.
    #[arg(long, value_name = "FILE")]
    mesh_config_file: Option<PathBuf>,
    /// A template of your own, or `sidecar` to replace ours; may be repeated.
    #[arg(long = "template", value_name = "NAME=FILE")]
    templates: Vec<String>,
}

impl InjectSettings {
    /// Revision of the control plane.
    pub(crate) fn revision(&self) -> &str {
        &self.revision
    }

    /// Name of the cluster.
    pub(crate) fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// As injection takes them.
    pub(crate) fn read(&self, trust_domain: &str) -> anyhow::Result<MeshSettings> {
        let mut mesh = MeshSettings::default();
        if let Some(image) = &self.image {
            mesh.image.clone_from(image);
        }
        mesh.image_pull_policy.clone_from(&self.image_pull_policy);
        mesh.revision.clone_from(&self.revision);
        mesh.discovery_address.clone_from(&self.discovery_address);
        mesh.cluster_id.clone_from(&self.cluster_id);
        mesh.native_sidecars = self.native_sidecars;
        mesh.by_default = self.inject_by_default;
        mesh.trust_domain = trust_domain.to_owned();
        if let Some(path) = &self.mesh_config_file {
            let config = one_document(path)?;
            if let Some(default) = config.get("defaultConfig").filter(|value| value.is_object()) {
                mesh.proxy_config = default.clone();
            }
        }
        for template in &self.templates {
            let Some((name, path)) = template.split_once('=') else {
                bail!("--template {template:?} is not of the form name=file");
            };
            mesh.templates.insert(name.to_owned(), one_document(Path::new(path))?);
        }
        Ok(mesh)
    }
}

pub(crate) fn run(args: &InjectArgs) -> anyhow::Result<()> {
    let mesh = args.settings.read("cluster.local")?;
    let mut documents = Vec::new();
    for path in &args.files {
        let text = read(path)?;
        let parsed = weft_model::yaml_documents(&text).map_err(anyhow::Error::msg);
        documents.extend(parsed.with_context(|| path.display().to_string())?);
    }
    for document in &mut documents {
        let name = describe(document);
        match inject_object(document, &mesh).with_context(|| name.clone())? {
            Some(Outcome::Skipped(reason)) => {
                eprintln!("weft: {name} is left alone: {}", reason.as_str());
            }
            // As Kubernetes prints objects, whatever order their author chose.
            Some(Outcome::Injected) => document.sort_all_objects(),
            None => {}
        }
    }
    crate::print(&weft_model::to_yaml(&documents))
}

fn describe(document: &Value) -> String {
    let text = |at: &str| document.pointer(at).and_then(Value::as_str).unwrap_or("?").to_owned();
    format!("{} {}", text("/kind"), text("/metadata/name"))
}

fn one_document(path: &Path) -> anyhow::Result<Value> {
    let parsed = weft_model::yaml_documents(&read(path)?).map_err(anyhow::Error::msg);
    let mut documents = parsed.with_context(|| path.display().to_string())?;
    match (documents.pop(), documents.is_empty()) {
        (Some(document), true) => Ok(document),
        _ => bail!("{} is not one YAML document", path.display()),
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}
