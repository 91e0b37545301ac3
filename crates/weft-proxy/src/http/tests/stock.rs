//! A stock Envoy with the configuration of a test's mesh, to ask the same of both.

use std::path::Path;

use weft_testkit::process::Process;

use super::*;

/// A running Envoy that stands where the mesh's proxy stands.
pub(super) struct Stock {
    pub(super) address: SocketAddr,
    _process: Process,
    _folder: tempfile::TempDir,
}

const START_LIMIT: Duration = Duration::from_secs(30);

impl Stock {
    /// Starts Envoy with the mesh's listener, routes and clusters.
    pub(super) async fn start(binary: &Path, mesh: &Mesh) -> Stock {
        let address = SocketAddr::from(([127, 0, 0, 1], weft_testkit::free_port()));
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("envoy.json");
        std::fs::write(&config, bootstrap(mesh, address.port()).to_string()).unwrap();
        let config = config.to_str().unwrap();
        let args =
            ["-c", config, "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"];
        let process = Process::start("envoy", folder.path(), binary, &args);
        weft_testkit::wait::until("Envoy to listen", START_LIMIT, || async {
            TcpStream::connect(address).await.ok()
        })
        .await;
        Stock { address, _process: process, _folder: folder }
    }
}

fn bootstrap(mesh: &Mesh, port: u16) -> Value {
    let setup = mesh.setup.borrow();
    let apps = mesh.addresses.borrow();
    let mut routes = routes(&setup);
    merge(&mut routes, &json!({"validateClusters": false}));
    let mut hcm = manager(&setup);
    merge(&mut hcm, &json!({"routeConfig": routes}));
    json!({"staticResources": {
        "listeners": [listener(&setup, port, &hcm)],
        "clusters": clusters(&setup, &apps),
    }})
}
