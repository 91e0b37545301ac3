use std::time::Duration;

use super::*;
use crate::spec::{self, HttpRetry, StringMatch};

/// `severity line path: message` of every finding, in order.
fn findings(yaml: &str) -> Vec<String> {
    let (_, diagnostics) = parse_yaml("f.yaml", yaml);
    let line = |d: &Diagnostic| format!("{:?} {} {}: {}", d.severity, d.line, d.path, d.message);
    diagnostics.iter().map(line).collect()
}

#[track_caller]
fn check(yaml: &str, expect: &[&str]) {
    assert_eq!(findings(yaml), expect, "for:\n{yaml}");
}

/// A VirtualService whose spec is `spec`, indented by two; the spec starts on line 4.
fn vs(spec: &str) -> String {
    document("networking.istio.io/v1", "VirtualService", spec)
}

fn document(api_version: &str, kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: a}}\nspec:\n{}",
        spec.lines().map(|line| format!("  {line}\n")).collect::<String>()
    )
}

#[track_caller]
fn only<T>(yaml: &str, pick: impl Fn(Object) -> Option<T>) -> T {
    let (objects, diagnostics) = parse_yaml("f.yaml", yaml);
    let errors: Vec<_> = diagnostics.iter().filter(|d| d.is_error()).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let mut picked: Vec<T> = objects.into_iter().filter_map(pick).collect();
    assert_eq!(picked.len(), 1);
    picked.remove(0)
}

fn virtual_service(yaml: &str) -> spec::VirtualService {
    only(yaml, |object| match object {
        Object::VirtualService(r) => Some(r.spec),
        _ => None,
    })
}

#[test]
fn errors_name_the_field_and_the_line() {
    let route = "hosts: [a]\nhttp:\n- route:\n  - destination: {host: a}\n  - destination: {host: b}\n    weight: ten\n";
    check(
        &vs(route),
        &["Error 10 spec.http[0].route[1].weight: expected an integer, found the string \"ten\""],
    );
    check(
        &vs("hosts: a\nhttp: []"),
        &["Error 5 spec.hosts: expected a list, found the string \"a\""],
    );
    check(
        &vs("hosts: [a]\nhttp:\n- timeout: 5\n"),
        &["Error 7 spec.http[0].timeout: expected a string, found the number 5; put it in quotes"],
    );
    check(
        &vs("hosts: [a]\nhttp:\n- timeout: 5 parsecs\n"),
        &[
            "Error 7 spec.http[0].timeout: expected a duration such as \"5s\", found an unknown unit in: \"5 parsecs\"",
        ],
    );
    check(
        &document(
            "networking.istio.io/v1",
            "DestinationRule",
            "host: a\ntrafficPolicy:\n  tls:\n    mode: SOME",
        ),
        &[
            "Error 8 spec.trafficPolicy.tls.mode: expected one of DISABLE, SIMPLE, MUTUAL, ISTIO_MUTUAL, found the string \"SOME\"",
        ],
    );
}

#[test]
fn one_bad_document_does_not_hurt_the_others() {
    let good = vs("hosts: [a]\nhttp:\n- route:\n  - destination: {host: a}\n");
    let text = format!("{good}---\n{{ not: [yaml\n--- # comment\n{good}---\n# only a comment\n");
    let (objects, diagnostics) = parse_yaml("f.yaml", &text);
    assert_eq!(objects.len(), 2);
    assert_eq!(diagnostics.len(), 1, "{diagnostics:?}");
    assert_eq!((diagnostics[0].document, diagnostics[0].code), (1, code::SYNTAX));
    assert_eq!(objects[1].meta().origin.document, 2);
    assert_eq!(objects[1].meta().origin.line, 12);
}

#[test]
fn names_in_both_cases_and_protojson_scalars() {
    let spec = virtual_service(&vs(
        "hosts: [a]\nhttp:\n- match:\n  - without_headers: {x: {exact: '1'}}\n    query_params: {q: {}}\n    ignoreUriCase: true\n  mirror_percent: 5\n  retries: {attempts: '3', per_try_timeout: 1.5s}\n  route: [{destination: {host: a, port: {number: '80'}}, weight: null}]\n",
    ));
    let http = &spec.http[0];
    assert_eq!(http.matches[0].without_headers["x"], StringMatch::Exact("1".into()));
    assert_eq!(http.matches[0].query_params["q"], StringMatch::Present);
    assert_eq!(http.mirror_percent, Some(5));
    assert_eq!(http.route[0].destination.port.unwrap().number, 80);
    let expect = HttpRetry {
        attempts: 3,
        per_try_timeout: Some(Duration::from_millis(1500)),
        ..HttpRetry::default()
    };
    assert_eq!(http.retries, Some(expect));
}

#[test]
fn durations() {
    let parse = |text| crate::spec::parse_duration(text).ok();
    assert_eq!(parse("5s"), Some(Duration::from_secs(5)));
    assert_eq!(parse("100ms"), Some(Duration::from_millis(100)));
    assert_eq!(parse("0.1s"), Some(Duration::from_millis(100)));
    assert_eq!(parse("1h2m3s"), Some(Duration::from_secs(3723)));
    assert_eq!(parse("0s"), Some(Duration::ZERO));
    for bad in ["", "5", "-1s", "s", "1.2.3s", "1d", "1e9s", "99999999999999h", "inf", "NaNs"] {
        assert_eq!(parse(bad), None, "{bad}");
    }
}

#[test]
fn unknown_fields_warn_and_known_unread_ones_inform() {
    check(
        &vs("hosts: [a]\nhttpp: 1\nhttp:\n- route:\n  - destination: {host: a, hots: b}\n"),
        &[
            "Warning 6 spec.httpp: unknown field httpp",
            "Warning 9 spec.http[0].route[0].destination.hots: unknown field hots",
        ],
    );
    check(
        &document(
            "networking.istio.io/v1beta1",
            "DestinationRule",
            "host: a\ntrafficPolicy: {loadBalancer: {zoneAwareLbSetting: {}}}",
        ),
        &[
            "Info 6 spec.trafficPolicy.loadBalancer.zoneAwareLbSetting: zoneAwareLbSetting is not acted on by this version of Weft",
        ],
    );
    // Kubernetes' kinds have many fields that nobody here needs.
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, uid: x}\nspec: {restartPolicy: Always}\nstatus: {podIP: 10.0.0.1, qosClass: Best}\n";
    check(pod, &[]);
}

#[test]
fn lists_expand_and_unread_kinds_are_noted() {
    let item = "{apiVersion: v1, kind: Namespace, metadata: {name: x, labels: {istio-injection: disabled}}}";
    let text = format!(
        "apiVersion: v1\nkind: List\nitems:\n- {item}\n- {{apiVersion: v1, kind: ServiceAccount, metadata: {{name: sa}}}}\n"
    );
    let (objects, diagnostics) = parse_yaml("f.yaml", &text);
    assert_eq!(objects.len(), 2);
    assert_eq!(objects[0].kind(), Some(Kind::Namespace));
    assert!(matches!(&objects[1], Object::Ignored { kind, .. } if kind == "ServiceAccount"));
    assert_eq!(diagnostics.len(), 1);
    assert_eq!(diagnostics[0].severity, Severity::Info);
}

#[test]
fn mesh_config_bare_and_in_its_config_map() {
    let mesh = |yaml: &str| {
        only(yaml, |object| match object {
            Object::MeshConfig(r) => Some(r),
            _ => None,
        })
    };
    let bare = mesh(
        "trustDomain: example.org\nenableAutoMtls: false\ndefaultConfig: {tracing: {sampling: 50}}\n",
    );
    assert_eq!(bare.spec.trust_domain, "example.org");
    assert!(!bare.spec.enable_auto_mtls);
    assert_eq!(bare.spec.root_namespace, "istio-system");
    assert_eq!(bare.spec.default_config.tracing.unwrap().sampling, Some(50.0));

    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    rootNamespace: root\n    enableTracing: 7\n";
    check(map, &["Error 7 data.mesh.enableTracing: expected true or false, found the number 7"]);
    let map = map.replace("7\n", "true\n");
    assert_eq!(mesh(&map).spec.root_namespace, "root");
}

#[test]
fn secrets_are_decoded_and_never_printed() {
    let secret = only(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {tls.key: c2VjcmV0}\nstringData: {tls.crt: cert}\n",
        |object| match object {
            Object::Secret(r) => Some(r.spec),
            _ => None,
        },
    );
    assert_eq!(secret.data["tls.key"], b"secret");
    assert_eq!(secret.data["tls.crt"], b"cert");
    assert!(!format!("{secret:?}").contains("cert\""));
    check(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata:\n  tls.key: '***'\n",
        &["Error 5 data[\"tls.key\"]: expected base64"],
    );
}

#[test]
fn metadata() {
    let (objects, _) = parse_yaml(
        "f.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: x, creationTimestamp: '2019-03-01T00:00:01Z', labels: {a: b}}\n",
    );
    let meta = objects[0].meta();
    assert_eq!(meta.creation, Some(1_551_398_401));
    assert_eq!(&*meta.namespace, "");
    assert_eq!(meta.labels["a"], "b");
    check("kind: Service\n", &["Error 1 apiVersion: apiVersion is missing"]);
    check(
        "apiVersion: v1\nkind: Service\nmetadata: {}\n",
        &["Error 1 metadata.name: metadata.name is missing"],
    );
    check(
        "apiVersion: v1\nkind: Service\nmetadata: {name: serviceA}\nspec: {}\n",
        &["Error 3 metadata.name: \"serviceA\" is not a legal name"],
    );
    check("just text\n", &["Error 1 : expected a resource, found the string \"just text\""]);
}

#[test]
fn octal_numbers_are_octal() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, ports: [{containerPort: 0644}]}]}\nstatus: {podIP: 10.0.0.1}\n";
    let pod = only(pod, |object| match object {
        Object::Pod(r) => Some(r.spec),
        _ => None,
    });
    assert_eq!(pod.spec.containers[0].ports[0].container_port, 420);
}

#[test]
fn limits_on_untrusted_text() {
    let deep = format!("a: {}1{}\n", "[".repeat(500), "]".repeat(500));
    assert!(findings(&deep)[0].starts_with("Error"), "{:?}", findings(&deep));
    let bomb: String = (1..30).fold("a0: &a0 [x, x, x, x, x, x, x, x, x]\n".into(), |text, n| {
        let refs = vec![format!("*a{}", n - 1); 9].join(", ");
        format!("{text}a{n}: &a{n} [{refs}]\n")
    });
    assert!(findings(&bomb)[0].starts_with("Error"), "{:?}", findings(&bomb));
    let huge = " ".repeat(FILE_BYTES_MAX + 1);
    assert!(findings(&huge)[0].contains("more than"));
    check("kind: Service\nkind: Pod\n", &[findings("kind: Service\nkind: Pod\n")[0].as_str()]);
    assert!(findings("kind: Service\nkind: Pod\n")[0].contains("duplicate"));
}

#[test]
fn virtual_service_admission() {
    let route = "route: [{destination: {host: a}}]";
    let http = |rule: &str| vs(&format!("hosts: [a]\nhttp:\n- {}", rule.replace('\n', "\n  ")));
    check(&http(route), &[]);
    check(
        &vs(&format!("hosts: []\ngateways: [g]\nhttp:\n- {route}\n")),
        &["Error 5 spec.hosts: at least one host is required"],
    );
    check(
        &vs(&format!("hosts: ['*']\nhttp:\n- {route}\n")),
        &["Error 5 spec.hosts[0]: the host \"*\" is not allowed on the mesh gateway"],
    );
    check(&vs(&format!("hosts: ['*']\ngateways: [g]\nhttp:\n- {route}\n")), &[]);
    check(&vs("hosts: [a]\n"), &["Error 5 spec: at least one of http, tls or tcp is required"]);
    check(
        &http("timeout: 1s"),
        &["Error 7 spec.http[0]: one of route, redirect or directResponse is required"],
    );
    check(
        &http(&format!("{route}\nredirect: {{uri: /x}}")),
        &["Error 7 spec.http[0]: only one of route, redirect is allowed"],
    );
    check(
        &http("route: [{destination: {host: a}}, {destination: {host: b}}]"),
        &["Error 7 spec.http[0].route: the weights of several destinations add up to 0"],
    );
    check(
        &http("route: [{destination: {host: a}, weight: -1}]"),
        &["Error 7 spec.http[0].route[0].weight: expected an integer of 0 or more, found -1"],
    );
    check(
        &http(&format!("{route}\nretries: {{attempts: -1}}")),
        &["Error 8 spec.http[0].retries.attempts: expected an integer of 0 or more, found -1"],
    );
    check(
        &http(&format!("{route}\nretries: {{attempts: 2, retryOn: '5xx,sometimes,503'}}")),
        &[
            "Error 8 spec.http[0].retries.retryOn: \"sometimes\" is neither a retry condition nor a status code",
        ],
    );
    check(
        &http(&format!("{route}\nmatch: [{{uri: {{regex: '('}}}}]")),
        &["Error 8 spec.http[0].match[0].uri.regex: not a valid RE2 pattern: unclosed group"],
    );
    check(
        &http(&format!("{route}\nmatch: [{{uri: {{exact: a, prefix: b}}}}]")),
        &["Error 8 spec.http[0].match[0].uri: expected only one of exact, prefix, regex"],
    );
    check(
        &http("redirect: {uri: /x, redirectCode: 300}"),
        &["Error 7 spec.http[0].redirect.redirectCode: expected one of 301, 302, 303, 307, 308"],
    );
    check(
        &http("directResponse: {status: 1000}"),
        &[
            "Error 7 spec.http[0].directResponse.status: expected a status from 200 to 599, found 1000",
        ],
    );
    check(
        &http("route: [{destination: {host: '*.a', port: {number: 70000}}}]"),
        &[
            "Error 7 spec.http[0].route[0].destination.host: a destination host cannot be a wildcard",
            "Error 7 spec.http[0].route[0].destination.port.number: 70000 is not a port number from 1 to 65535",
        ],
    );
    check(
        &http(&format!("{route}\nheaders: {{request: {{set: {{'a b': c}}}}}}")),
        &["Error 8 spec.http[0].headers.request.set.a b: \"a b\" is not a header name"],
    );
    check(
        &vs(
            "hosts: [a.com]\ntls:\n- match: [{sniHosts: [b.com]}]\n  route: [{destination: {host: a}}]",
        ),
        &["Error 7 spec.tls[0].match[0].sniHosts[0]: \"b.com\" is not covered by spec.hosts"],
    );
}

#[test]
fn destination_rule_admission() {
    let dr = |spec: &str| document("networking.istio.io/v1", "DestinationRule", spec);
    check(&dr("host: a\nsubsets: [{name: v1, labels: {version: v1}}]"), &[]);
    check(
        &dr("host: a\nsubsets: [{name: v1}, {name: v1}]"),
        &["Error 6 spec.subsets[1].name: the subset \"v1\" is defined twice"],
    );
    check(
        &dr("host: a\ntrafficPolicy: {tls: {mode: MUTUAL}}"),
        &[
            "Error 6 spec.trafficPolicy.tls.clientCertificate: required in mode MUTUAL",
            "Error 6 spec.trafficPolicy.tls.privateKey: required in mode MUTUAL",
            "Info 6 spec.trafficPolicy.tls.caCertificates: the server's certificate is checked against the system's roots only",
        ],
    );
    check(
        &dr(
            "host: a\ntrafficPolicy: {loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}}",
        ),
        &["Error 6 spec.trafficPolicy.loadBalancer: only one of simple, consistentHash is allowed"],
    );
    check(
        &dr("host: a\ntrafficPolicy: {portLevelSettings: [{tls: {mode: DISABLE}}]}"),
        &["Error 6 spec.trafficPolicy.portLevelSettings[0].port: a port is required"],
    );
    check(
        &dr("host: '*.local'\nexportTo: ['*', x]"),
        &["Error 6 spec.exportTo[0]: \"*\" must stand alone"],
    );
}

#[test]
fn gateway_admission() {
    let gateway = |server: &str| {
        let spec = format!("selector: {{istio: x}}\nservers:\n- {}", server.replace('\n', "\n  "));
        document("networking.istio.io/v1alpha3", "Gateway", &spec)
    };
    check(&gateway("hosts: [a.com]\nport: {number: 80, name: http, protocol: HTTP}"), &[]);
    check(
        &gateway(
            "hosts: [a.com]\nport: {number: 443, name: s, protocol: HTTPS}\ntls: {mode: SIMPLE, serverCertificate: /a, privateKey: /b}",
        ),
        &[],
    );
    check(
        &gateway("hosts: [a.com]\nport: {number: 443, name: s, protocol: HTTPS}"),
        &["Error 7 spec.servers[0].tls: TLS settings are required for HTTPS"],
    );
    check(
        &gateway(
            "hosts: [a.com]\nport: {number: 443, name: s, protocol: HTTPS}\ntls: {mode: SIMPLE}",
        ),
        &[
            "Error 9 spec.servers[0].tls.serverCertificate: a certificate and its key are required",
            "Error 9 spec.servers[0].tls.privateKey: a certificate and its key are required",
        ],
    );
    check(
        &gateway("hosts: []\nport: {number: 0, protocol: SPDY}"),
        &[
            "Error 7 spec.servers[0].hosts: at least one host is required",
            "Error 8 spec.servers[0].port.number: 0 is not a port number from 1 to 65535",
            "Error 8 spec.servers[0].port.name: a port name is required",
            "Error 8 spec.servers[0].port.protocol: \"SPDY\" is not a protocol",
        ],
    );
}

#[test]
fn service_entry_sidecar_and_peer_authentication_admission() {
    let entry = |spec: &str| document("networking.istio.io/v1", "ServiceEntry", spec);
    let ports = "ports: [{number: 80, name: http, protocol: HTTP}]";
    check(&entry(&format!("hosts: [a.com]\n{ports}\nresolution: DNS")), &[]);
    check(
        &entry(&format!("hosts: ['*.a.com']\n{ports}\nresolution: DNS")),
        &["Error 5 spec.hosts: a wildcard host cannot be resolved by DNS"],
    );
    check(
        &entry(&format!(
            "hosts: [a.com]\n{ports}\nresolution: STATIC\nendpoints: [{{address: b.com, ports: {{x: 1}}}}]"
        )),
        &[
            "Error 8 spec.endpoints[0].ports.x: the service has no port named \"x\"",
            "Error 8 spec.endpoints[0].address: an endpoint of a STATIC entry must be an IP address or a Unix socket",
        ],
    );
    check(
        &document("networking.istio.io/v1", "WorkloadEntry", "address: ''"),
        &["Error 5 spec.address: an address is required"],
    );
    let sidecar = |spec: &str| document("networking.istio.io/v1", "Sidecar", spec);
    check(
        &sidecar(
            "egress: [{port: {number: 80, protocol: HTTP}, captureMode: NONE, hosts: [./*, '*/a.com']}]\ningress: [{port: {number: 90, protocol: HTTP}, defaultEndpoint: '127.0.0.1:1', captureMode: NONE}]",
        ),
        &[],
    );
    check(
        &sidecar(
            "egress: [{hosts: [a.com]}]\ningress: [{port: {number: 90, protocol: HTTP}, defaultEndpoint: '10.0.0.1:1'}]",
        ),
        &[
            "Error 6 spec.ingress[0].defaultEndpoint: \"10.0.0.1:1\" is not an endpoint",
            "Error 5 spec.egress[0].hosts[0]: \"a.com\" has no namespace",
        ],
    );
    let peer = |spec: &str| document("security.istio.io/v1beta1", "PeerAuthentication", spec);
    check(&peer("selector: {matchLabels: {a: b}}\nportLevelMtls: {8080: {mode: DISABLE}}"), &[]);
    check(
        &peer("portLevelMtls: {x: {mode: DISABLE}}"),
        &[
            "Error 5 spec.portLevelMtls: port-level mTLS needs a selector",
            "Error 5 spec.portLevelMtls.x: \"x\" is not a port number",
        ],
    );
}

#[test]
fn port_names_without_a_protocol_are_noted() {
    check(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{name: web, port: 80}, {name: http-a, port: 81}, {name: db, port: 3306}, {name: x, port: 5, appProtocol: http}]}\n",
        &["Info 4 spec.ports[0].name: the name of port 80 says no protocol, so it is sniffed"],
    );
}
