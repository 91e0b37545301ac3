//! `weft install`: prints or applies what the control plane needs in a cluster.

use anyhow::Context as _;
use weft_control::kube::{Access, Client, Install, apply, manifests, yaml};

use crate::cli::InstallArgs;

pub(crate) fn run(args: InstallArgs) -> anyhow::Result<()> {
    let InstallArgs { namespace, image, replicas, apply: wanted, kubeconfig, kube_context } = args;
    let all = manifests(&Install { namespace, image, replicas });
    if !wanted {
        return crate::print(&yaml(&all));
    }
    let access = Access { kubeconfig, context: kube_context, ..Access::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::new(&access).await?;
        apply(&client, &all).await.context("applying the manifests")
    })?;
    crate::print(&format!("{} resources applied\n", all.len()))
}
