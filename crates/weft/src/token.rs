//! `weft token`: mints a join token with the key in the control plane's state directory.

use crate::cli::TokenArgs;
use anyhow::{Context as _, bail};
use std::time::SystemTime;
use weft_control::ca::{Identity, JoinKey};

pub(crate) fn run(args: &TokenArgs) -> anyhow::Result<()> {
    let TokenArgs { state_dir, namespace, service_account, ttl } = args;
    if !state_dir.is_dir() {
        bail!("{} is no directory: name the control plane's with --state-dir", state_dir.display());
    }
    let identity = Identity::new(namespace, service_account)?;
    let key = JoinKey::open(&state_dir.join("ca")).context("opening the join key")?;
    crate::print(&format!("{}\n", key.mint(&identity, *ttl, SystemTime::now())))
}
