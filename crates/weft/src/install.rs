//! `weft install`: prints or applies what the mesh needs in a cluster.

use anyhow::Context as _;
use weft_control::kube::{Access, Client, Install, apply, manifests, yaml};

use crate::cli::InstallArgs;

pub(crate) fn run(args: InstallArgs) -> anyhow::Result<()> {
    let all = manifests(&install(&args)?);
    if !args.apply {
        return crate::print(&yaml(&all));
    }
    let InstallArgs { kubeconfig, kube_context, dry_run, .. } = args;
    let access = Access { kubeconfig, context: kube_context, ..Access::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::new(&access).await?;
        apply(&client, &all, dry_run).await.context("applying the manifests")
    })?;
    let done = if dry_run { "would be applied" } else { "applied" };
    crate::print(&format!("{} resources {done}\n", all.len()))
}

/// Files, then `--set`, then the options that stand for one.
fn install(args: &InstallArgs) -> anyhow::Result<Install> {
    let read = |path: &std::path::PathBuf| {
        std::fs::read_to_string(path).with_context(|| path.display().to_string())
    };
    let files = args.values.iter().map(read).collect::<anyhow::Result<Vec<String>>>()?;
    let mut sets = args.sets.clone();
    let InstallArgs { namespace, image, revision, .. } = args;
    for (name, value) in [("namespace", namespace), ("image", image), ("revision", revision)] {
        sets.extend(value.as_ref().map(|value| format!("{name}={value}")));
    }
    sets.extend(args.replicas.map(|number| format!("replicas={number}")));
    Ok(Install::read(&files, &sets)?)
}
