//! The demo's configuration: the seed article's resources with legal names, written as files that
//! a user may edit while the mesh runs.

use super::certificates::Certificates;
use super::layout::{Instance, Layout, OUTBOUND_HTTP, OUTBOUND_TCP, Role};
use anyhow::{Context as _, bail};
use std::path::Path;

/// Writes the files, or keeps those that an earlier demo with the same port base left and a user
/// may have edited since.
pub(super) fn write(
    dir: &Path,
    layout: &Layout,
    certificates: &Certificates,
) -> anyhow::Result<()> {
    let files = files(layout, certificates);
    let mark = mark(layout);
    match found(dir)? {
        None => {}
        Some(text) if text.starts_with(&mark) => return Ok(()),
        Some(_) => bail!(
            "{} holds YAML that was not written by `weft demo --port-base {}`: \
             give an empty directory, or run `weft control --config-dir` on it",
            dir.display(),
            layout.base()
        ),
    }
    for (name, text) in files {
        let path = dir.join(name);
        std::fs::write(&path, format!("{mark}\n{text}"))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// The content of some YAML file in the folder.
fn found(dir: &Path) -> anyhow::Result<Option<String>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml") {
            let text = std::fs::read_to_string(&path);
            return Ok(Some(text.with_context(|| format!("reading {}", path.display()))?));
        }
    }
    Ok(None)
}

fn mark(layout: &Layout) -> String {
    format!(
        "# Written by `weft demo --port-base {}`. Edit and save: the mesh follows at once.",
        layout.base()
    )
}

/// Name and content of every file.
pub(super) fn files(layout: &Layout, certificates: &Certificates) -> Vec<(String, String)> {
    let mut files = vec![
        ("servicea.yaml".to_owned(), SERVICEA.to_owned()),
        ("serviceb.yaml".to_owned(), service("serviceb", "grpc", 10088, 10088)),
        ("gateway.yaml".to_owned(), service("gateway", "http", 80, 8080)),
        ("tcp-echo.yaml".to_owned(), service("tcp-echo", "tcp", OUTBOUND_TCP, OUTBOUND_TCP)),
        ("plain-server.yaml".to_owned(), service("plain-server", "http", 8080, 8080)),
        ("ingress.yaml".to_owned(), ingress(layout, certificates)),
        ("mtls.yaml".to_owned(), MTLS.to_owned()),
        ("tracing.yaml".to_owned(), tracing(layout)),
    ];
    for instance in layout.instances() {
        let name = format!("{}.yaml", instance.workload);
        let mut text = String::new();
        let is_first = !files.iter().any(|(known, _)| *known == name);
        if is_first && instance.role != Role::Ingress {
            text.push_str(&deployment(layout, instance));
        }
        text.push_str(&pod(layout, instance));
        if instance.role.has_sidecar() {
            text.push_str(&sidecar(layout, instance));
        }
        match files.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => known.push_str(&text),
            None => files.push((name, text)),
        }
    }
    files
}

const SERVICEA: &str = "\
---
apiVersion: v1
kind: Service
metadata:
  name: servicea
  namespace: default
  labels:
    app: servicea
spec:
  ports:
  - name: http-8080
    protocol: TCP
    port: 8080
    targetPort: 8080
  selector:
    app: servicea
  type: ClusterIP
---
# Change the weights and save: traffic shifts within a second.
# To release: all to v1 (100/0), shift (90/10, 50/50, 0/100), then remove v1 here and below.
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata:
  name: servicea
  namespace: default
spec:
  hosts:
  - servicea
  http:
  - route:
    - destination:
        host: servicea
        subset: v1
      weight: 50
    - destination:
        host: servicea
        subset: v2
      weight: 50
---
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata:
  name: servicea
  namespace: default
spec:
  host: servicea
  subsets:
  - labels:
      version: v1
    name: v1
  - labels:
      version: v2
    name: v2
";

const MTLS: &str = "\
---
# Between sidecars everything is mutual TLS already. STRICT also refuses callers without one:
# plain-client then gets no answer.
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
  namespace: istio-system
spec:
  mtls:
    mode: PERMISSIVE
";

/// The collector is the control plane of the demo itself.
fn tracing(layout: &Layout) -> String {
    let (ip, port) = (layout.control_http().ip(), layout.control_http().port());
    format!(
        "\
---
# MeshConfig. Every proxy sends its spans to a collector with Zipkin's API: here the control plane's
# own. Replace the endpoint by that of a Zipkin or Jaeger, and the share of requests to your taste.
extensionProviders:
- name: zipkin
  zipkin:
    service: {COLLECTOR}
    port: 9411
defaultProviders:
  tracing: [zipkin]
defaultConfig:
  tracing:
    sampling: 10
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: zipkin
  namespace: default
spec:
  hosts:
  - {COLLECTOR}
  location: MESH_EXTERNAL
  resolution: STATIC
  ports:
  - name: http
    number: 9411
    protocol: HTTP
  endpoints:
  - address: {ip}
    ports:
      http: {port}
"
    )
}

const COLLECTOR: &str = "zipkin.weft.local";

fn service(name: &str, protocol: &str, port: u16, target: u16) -> String {
    format!(
        "\
---
apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: default
  labels:
    app: {name}
spec:
  ports:
  - name: {protocol}
    protocol: TCP
    port: {port}
    targetPort: {target}
  selector:
    app: {name}
  type: ClusterIP
"
    )
}

/// Ports 80 and 443 of the gateway's Service lead to ports that need no root.
fn ingress(layout: &Layout, certificates: &Certificates) -> String {
    let (ip, http, https) =
        (layout.gateway_http().ip(), layout.gateway_http().port(), layout.gateway_https().port());
    let (key, chain) = (certificates.key.display(), certificates.chain.display());
    format!(
        "\
---
apiVersion: v1
kind: Service
metadata:
  name: istio-ingressgateway
  namespace: istio-system
spec:
  ports:
  - name: http2
    port: 80
    targetPort: {http}
  - name: https
    port: 443
    targetPort: {https}
  selector:
    istio: ingressgateway
  type: LoadBalancer
---
apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata:
  name: wallstreetcn-com
  namespace: istio-system
spec:
  selector:
    istio: ingressgateway
  servers:
  - hosts:
    - wallstreetcn.com
    bind: {ip}
    port:
      name: http
      number: 80
      protocol: HTTP
  - hosts:
    - wallstreetcn.com
    bind: {ip}
    port:
      name: https
      number: 443
      protocol: HTTPS
    tls:
      mode: SIMPLE
      privateKey: {key}
      serverCertificate: {chain}
---
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata:
  name: wallstreetcn-com
  namespace: istio-system
spec:
  gateways:
  - wallstreetcn-com
  hosts:
  - wallstreetcn.com
  http:
  - route:
    - destination:
        host: gateway.default.svc.cluster.local
        port:
          number: 80
"
    )
}

fn deployment(layout: &Layout, instance: &Instance) -> String {
    let Instance { workload, app, version, namespace, account, role, .. } = *instance;
    let same = |other: &&Instance| other.workload == workload;
    let replicas = layout.instances().iter().filter(same).count();
    let (port, health) = (role.port(), layout.health(instance).port());
    format!(
        "\
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {workload}
  namespace: {namespace}
  labels:
    app: {app}
    version: {version}
spec:
  replicas: {replicas}
  selector:
    matchLabels:
      app: {app}
      version: {version}
  template:
    metadata:
      labels:
        app: {app}
        version: {version}
    spec:
      serviceAccountName: {account}
      containers:
      - name: {app}
        image: some-image
        ports:
        - containerPort: {port}
          protocol: TCP
        livenessProbe:
          httpGet:
            path: /health
            port: {health}
            scheme: HTTP
          initialDelaySeconds: 1
          timeoutSeconds: 2
          periodSeconds: 5
"
    )
}

/// The Pod as Kubernetes would have made it: with an address, running, owned by a ReplicaSet.
fn pod(layout: &Layout, instance: &Instance) -> String {
    let Instance { name, workload, app, version, namespace, account, role, .. } = *instance;
    let ip = layout.ip(instance);
    let mut labels = String::new();
    for (name, value) in labels_of(instance) {
        labels.push_str(&format!("    {name}: {value}\n"));
    }
    if role.has_sidecar() {
        labels.push_str("    security.istio.io/tlsMode: istio\n");
    }
    let port = match role {
        Role::Ingress => layout.gateway_http().port(),
        _ => role.port(),
    };
    debug_assert!(!app.is_empty() && !version.is_empty());
    format!(
        "\
---
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {namespace}
  labels:
{labels}    pod-template-hash: {TEMPLATE_HASH}
  ownerReferences:
  - apiVersion: apps/v1
    kind: ReplicaSet
    name: {workload}-{TEMPLATE_HASH}
    uid: {TEMPLATE_HASH}
    controller: true
spec:
  serviceAccountName: {account}
  containers:
  - name: app
    image: some-image
    ports:
    - containerPort: {port}
status:
  phase: Running
  podIP: {ip}
"
    )
}

/// The ReplicaSet's part of a Pod's name in Kubernetes.
const TEMPLATE_HASH: &str = "5d8c7b9f64";

/// Labels of a workload, for its Pod and for its proxy.
pub(super) fn labels_of(instance: &Instance) -> Vec<(&'static str, &'static str)> {
    let mut labels = vec![("app", instance.app), ("version", instance.version)];
    if instance.role == Role::Ingress {
        labels.push(("istio", "ingressgateway"));
    }
    // Two copies of one workload need a Sidecar each, as each binds its own address.
    labels.push(("apps.kubernetes.io/pod-name", instance.name));
    labels
}

/// Istio's way without capture: the proxy binds the workload's own address and leads to the
/// application; for calls out the application names its proxy.
fn sidecar(layout: &Layout, instance: &Instance) -> String {
    let Instance { name, namespace, role, .. } = *instance;
    let (ip, port, app) = (layout.ip(instance), role.port(), layout.app(instance));
    let (protocol, port_name) = match role {
        Role::ServiceB => ("GRPC", "grpc"),
        Role::TcpEcho => ("TCP", "tcp"),
        _ => ("HTTP", "http"),
    };
    let mut text = format!(
        "\
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata:
  name: {name}
  namespace: {namespace}
spec:
  workloadSelector:
    labels:
      apps.kubernetes.io/pod-name: {name}
  ingress:
  - bind: {ip}
    captureMode: NONE
    defaultEndpoint: {app}
    port:
      name: {port_name}
      number: {port}
      protocol: {protocol}
  egress:
  - bind: {ip}
    captureMode: NONE
    hosts:
    - ./*
    port:
      name: http
      number: {OUTBOUND_HTTP}
      protocol: HTTP
"
    );
    // tcp-echo binds the port itself.
    if role != Role::TcpEcho {
        text.push_str(&format!(
            "  - bind: {ip}
    captureMode: NONE
    hosts:
    - ./tcp-echo.default.svc.cluster.local
    port:
      name: tcp
      number: {OUTBOUND_TCP}
      protocol: TCP
"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificates() -> Certificates {
        Certificates { chain: "/certs/tls.crt".into(), key: "/certs/tls.key".into() }
    }

    #[test]
    fn the_configuration_has_no_findings() {
        let layout = Layout::new(20000).unwrap();
        let files = files(&layout, &certificates());
        assert!(files.len() >= 14, "{}", files.len());
        let findings = weft_model::analyze(&files);
        assert!(findings.is_empty(), "{}", weft_model::render_human(&findings));
    }

    #[test]
    fn edited_files_are_kept_and_foreign_ones_refused() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(20000).unwrap();
        write(dir.path(), &layout, &certificates()).unwrap();
        let path = dir.path().join("servicea.yaml");
        let edited = std::fs::read_to_string(&path).unwrap().replace("weight: 50", "weight: 1");
        std::fs::write(&path, &edited).unwrap();
        write(dir.path(), &layout, &certificates()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), edited);
        let other = Layout::new(30000).unwrap();
        assert!(write(dir.path(), &other, &certificates()).is_err());
    }
}
