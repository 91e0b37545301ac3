//! `weft proxy-status`: asks the control plane which proxy was sent and acknowledged what.

use crate::cli::{Output, ProxyStatusArgs};
use weft_control::status;

pub(crate) fn run(args: &ProxyStatusArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let proxies = runtime.block_on(status::client::proxies(address(&args.api)))?;
    match args.output {
        Output::Text => crate::print(&status::table(&proxies)),
        Output::Json => crate::print(&format!("{:#}\n", serde_json::to_value(&proxies)?)),
    }
}

/// `host:port` of a URL, or of itself.
pub(crate) fn address(api: &str) -> &str {
    let rest = api.strip_prefix("http://").unwrap_or(api);
    rest.split('/').next().unwrap_or(rest)
}
