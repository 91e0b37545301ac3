//! A little traffic, so that metrics and a later console have something to show.

use super::WEBSITE;
use super::apps::HttpClient;
use super::layout::{Layout, Role};
use http::HeaderMap;
use std::time::Duration;

/// About five requests a second.
const PAUSE: Duration = Duration::from_millis(200);

/// Sends requests until it is dropped. Failures are the mesh's metrics' business.
pub(super) async fn run(layout: Layout) {
    let http = HttpClient::new();
    let gateway = layout.gateway_http();
    let plain_client = layout.app(layout.instance(Role::PlainClient));
    let paths = ["/", "/", "/", "/stream", "/", "/", "/tcp", "/", "/", "/plain"];
    for turn in 0usize.. {
        let path = paths[turn % paths.len()];
        let _ = http.get(gateway, WEBSITE, path, HeaderMap::new()).await;
        if path == "/tcp" {
            let _ = http.get(plain_client, "plain-client", "/", HeaderMap::new()).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
