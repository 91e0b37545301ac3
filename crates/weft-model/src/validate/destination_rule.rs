//! DestinationRule: host, subsets and traffic policies.

use super::text::{is_host, is_ip, is_label};
use super::{Findings, bounds, export_to, port_number};
use crate::diagnostic::code;
use crate::spec::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, DestinationRule,
    LoadBalancerSettings, OutlierDetection, SimpleLb, TrafficPolicy, WarmupConfiguration,
};

pub(super) fn check(spec: &DestinationRule, findings: &mut Findings<'_>) {
    if spec.host.is_empty() {
        findings.error("spec.host", "a host is required");
    } else if !is_host(&spec.host) && !is_ip(&spec.host) {
        findings.error("spec.host", format!("{:?} is not a host", spec.host));
    }
    export_to(&spec.export_to, findings);
    if let Some(wanted) = &spec.workload_selector {
        let path = "spec.workloadSelector.matchLabels";
        bounds::selector(&wanted.match_labels, 4096, path, findings);
    }
    if let Some(policy) = &spec.traffic_policy {
        traffic_policy(policy, "spec.trafficPolicy", findings);
    }
    for (index, subset) in spec.subsets.iter().enumerate() {
        let path = format!("spec.subsets[{index}]");
        if !is_label(&subset.name) {
            let message = format!("{:?} is not a subset name", subset.name);
            findings.error(format!("{path}.name"), message);
        }
        if spec.subsets[..index].iter().any(|other| other.name == subset.name) {
            let message = format!("the subset {:?} is defined twice", subset.name);
            findings.error(format!("{path}.name"), message);
        }
        if let Some(policy) = &subset.traffic_policy {
            traffic_policy(policy, &format!("{path}.trafficPolicy"), findings);
        }
    }
}

fn traffic_policy(policy: &TrafficPolicy, path: &str, findings: &mut Findings<'_>) {
    load_balancer(policy.load_balancer.as_ref(), path, findings);
    let pool = format!("{path}.connectionPool");
    connection_pool(policy.connection_pool.as_ref(), &pool, findings);
    outlier_detection(policy.outlier_detection.as_ref(), path, findings);
    client_tls(policy.tls.as_ref(), path, code::NO_SERVER_VERIFICATION, findings);
    if let Some(tunnel) = &policy.tunnel {
        let path = format!("{path}.tunnel");
        if tunnel.target_host.is_empty() {
            findings.error(format!("{path}.targetHost"), "a host is required");
        }
        port_number(tunnel.target_port, format!("{path}.targetPort"), findings);
        if !matches!(tunnel.protocol.as_str(), "" | "CONNECT" | "POST") {
            let message = format!("expected CONNECT or POST, found {:?}", tunnel.protocol);
            findings.error(format!("{path}.protocol"), message);
        }
    }
    let ports = format!("{path}.portLevelSettings");
    bounds::count(policy.port_level_settings.len(), 4096, ports, findings);
    for (index, port) in policy.port_level_settings.iter().enumerate() {
        let path = format!("{path}.portLevelSettings[{index}]");
        match port.port {
            Some(port) => port_number(port.number, format!("{path}.port.number"), findings),
            None => findings.error(format!("{path}.port"), "a port is required"),
        }
        load_balancer(port.load_balancer.as_ref(), &path, findings);
        let pool = format!("{path}.connectionPool");
        connection_pool(port.connection_pool.as_ref(), &pool, findings);
        outlier_detection(port.outlier_detection.as_ref(), &path, findings);
        client_tls(port.tls.as_ref(), &path, code::NO_SERVER_VERIFICATION_PORT, findings);
    }
    if let Some(percent) = policy.retry_budget.as_ref().and_then(|budget| budget.percent)
        && !(0.0..=100.0).contains(&percent)
    {
        let message = format!("expected 0 to 100, found {percent}");
        findings.error(format!("{path}.retryBudget.percent"), message);
    }
}

fn load_balancer(lb: Option<&LoadBalancerSettings>, path: &str, findings: &mut Findings<'_>) {
    let Some(lb) = lb else { return };
    let path = format!("{path}.loadBalancer");
    if lb.simple == Some(SimpleLb::LeastConn) {
        findings.warn(
            code::DEPRECATED,
            format!("{path}.simple"),
            "LEAST_CONN is deprecated",
            "Use LEAST_REQUEST.",
        );
    }
    if let Some(warm) = &lb.warmup {
        warmup(warm, &format!("{path}.warmup"), findings);
    }
    bounds::duration(lb.warmup_duration_secs, format!("{path}.warmupDurationSecs"), findings);
    if let Some(hash) = &lb.consistent_hash {
        if lb.simple.is_some() {
            findings.error(&*path, "only one of simple, consistentHash is allowed");
        }
        let path = format!("{path}.consistentHash");
        let keys = [
            hash.http_header_name.is_some(),
            hash.http_cookie.is_some(),
            hash.use_source_ip.is_some(),
            hash.http_query_parameter_name.is_some(),
        ];
        if keys.iter().filter(|set| **set).count() != 1 {
            findings.error(
                &*path,
                "exactly one of httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName is required",
            );
        }
        let attributes = hash.http_cookie.iter().flat_map(|cookie| &cookie.attributes);
        for (index, _) in attributes.enumerate().filter(|(_, one)| one.name.is_empty()) {
            let path = format!("{path}.httpCookie.attributes[{index}].name");
            findings.error(path, "an attribute's name is required");
        }
        if hash.http_cookie.as_ref().is_some_and(|cookie| cookie.name.is_empty()) {
            findings.error(format!("{path}.httpCookie.name"), "a cookie name is required");
        }
        if hash.ring_hash.is_some() && hash.maglev.is_some() {
            findings.error(path, "only one of ringHash, maglev is allowed");
        }
    }
    if let Some(locality) = &lb.locality_lb_setting {
        let path = format!("{path}.localityLbSetting");
        if !locality.distribute.is_empty() && !locality.failover.is_empty() {
            findings.error(&*path, "only one of distribute, failover is allowed");
        }
        for (index, failover) in locality.failover.iter().enumerate() {
            if failover.from == failover.to {
                findings.error(format!("{path}.failover[{index}]"), "expected two regions");
            }
            for (field, region) in [("from", &failover.from), ("to", &failover.to)] {
                if region.contains('*') {
                    let path = format!("{path}.failover[{index}].{field}");
                    findings.error(path, "a region is named whole, without `*`");
                }
            }
        }
        for (index, distribute) in locality.distribute.iter().enumerate() {
            for (to, _) in distribute.to.iter().filter(|(_, weight)| **weight == 0) {
                let path = format!("{path}.distribute[{index}].to[{to}]");
                findings.error(path, "expected a weight from 1 to 100");
            }
            if distribute.to.values().map(|weight| u64::from(*weight)).sum::<u64>() != 100 {
                let path = format!("{path}.distribute[{index}].to");
                findings.error(path, "the weights must add up to 100");
            }
        }
    }
}

fn warmup(warm: &WarmupConfiguration, path: &str, findings: &mut Findings<'_>) {
    if warm.duration.is_none_or(|duration| duration.as_millis() == 0) {
        findings.error(format!("{path}.duration"), "a duration of 1ms or more is required");
    }
    if let Some(percent) = warm.minimum_percent.filter(|percent| !(0.0..=100.0).contains(percent)) {
        let message = format!("expected 0 to 100, found {percent}");
        findings.error(format!("{path}.minimumPercent"), message);
    }
    if let Some(aggression) = warm.aggression.filter(|one| *one <= 0.0 || one.is_nan()) {
        let message = format!("expected more than 0, found {aggression}");
        findings.error(format!("{path}.aggression"), message);
    }
}

/// The pool at `path`.
pub(super) fn connection_pool(
    pool: Option<&ConnectionPoolSettings>,
    path: &str,
    findings: &mut Findings<'_>,
) {
    let Some(pool) = pool else { return };
    bounds::pool(pool, path, findings);
    let tcp = pool.tcp.as_ref().map_or(0, |tcp| tcp.max_connections);
    let mut limits = vec![("tcp.maxConnections", tcp)];
    if let Some(http) = &pool.http {
        limits.extend([
            ("http.http1MaxPendingRequests", http.http1_max_pending_requests),
            ("http.http2MaxRequests", http.http2_max_requests),
            ("http.maxRequestsPerConnection", http.max_requests_per_connection),
            ("http.maxRetries", http.max_retries),
            ("http.maxConcurrentStreams", http.max_concurrent_streams),
        ]);
        if let Some(keep_alive) = &http.http2_keep_alive {
            let times = [("interval", keep_alive.interval), ("timeout", keep_alive.timeout)];
            for (field, _) in times.into_iter().filter(|(_, time)| time.is_none()) {
                findings.error(format!("{path}.http.http2KeepAlive.{field}"), "it is required");
            }
        }
    }
    for (field, value) in limits.into_iter().filter(|(_, value)| *value < 0) {
        let message = format!("expected an integer of 0 or more, found {value}");
        findings.error(format!("{path}.{field}"), message);
    }
}

fn outlier_detection(outlier: Option<&OutlierDetection>, path: &str, findings: &mut Findings<'_>) {
    let Some(outlier) = outlier else { return };
    let path = format!("{path}.outlierDetection");
    bounds::outlier(outlier, &path, findings);
    let percents = [
        ("maxEjectionPercent", outlier.max_ejection_percent),
        ("minHealthPercent", outlier.min_health_percent),
    ];
    for (field, value) in percents.into_iter().filter(|(_, value)| !(0..=100).contains(value)) {
        findings.error(format!("{path}.{field}"), format!("expected 0 to 100, found {value}"));
    }
    for (index, code) in outlier.outlier_detection_http_error_codes.iter().enumerate() {
        if !(100..=599).contains(code) {
            let path = format!("{path}.outlierDetectionHttpErrorCodes[{index}]");
            findings.error(path, format!("expected a status of 100 to 599, found {code}"));
        }
    }
    if outlier.consecutive_errors.is_some() {
        findings.warn(
            code::DEPRECATED,
            format!("{path}.consecutiveErrors"),
            "consecutiveErrors is deprecated",
            "Use consecutive5xxErrors.",
        );
    }
}

/// What a client that checks nothing cannot check.
fn unverified_client(tls: &ClientTlsSettings, path: &str, findings: &mut Findings<'_>) {
    if tls.insecure_skip_verify != Some(true) {
        return;
    }
    let simple = tls.mode == ClientTlsMode::Simple;
    for (field, set) in [
        ("caCertificates", !tls.ca_certificates.is_empty()),
        ("credentialName", simple && !tls.credential_name.is_empty()),
        ("subjectAltNames", !tls.subject_alt_names.is_empty()),
    ] {
        if set {
            let message = "it cannot be set beside insecureSkipVerify, which checks nothing";
            findings.error(format!("{path}.{field}"), message);
        }
    }
    if !tls.ca_crl.is_empty() {
        let message = "revocation is not checked beside insecureSkipVerify";
        findings.warn(
            code::SCHEMA_WARNING,
            format!("{path}.caCrl"),
            message,
            "Remove one of them.",
        );
    }
}

fn client_tls(
    tls: Option<&ClientTlsSettings>,
    path: &str,
    unverified: &'static str,
    findings: &mut Findings<'_>,
) {
    let Some(tls) = tls else { return };
    let path = format!("{path}.tls");
    let files = [
        ("clientCertificate", &tls.client_certificate),
        ("privateKey", &tls.private_key),
        ("caCertificates", &tls.ca_certificates),
    ];
    match tls.mode {
        ClientTlsMode::Disable => {}
        ClientTlsMode::IstioMutual => {
            for (field, value) in files {
                if !value.is_empty() {
                    let message = "certificates come from the mesh in mode ISTIO_MUTUAL";
                    findings.error(format!("{path}.{field}"), message);
                }
            }
        }
        ClientTlsMode::Simple | ClientTlsMode::Mutual => {
            unverified_client(tls, &path, findings);
            let crl = ("caCrl", &tls.ca_crl);
            if !tls.credential_name.is_empty() {
                for (field, _) in files.iter().chain([&crl]).filter(|(_, one)| !one.is_empty()) {
                    findings.error(
                        format!("{path}.{field}"),
                        "certificates come from the secret where credentialName is set",
                    );
                }
            }
            if tls.mode == ClientTlsMode::Mutual && tls.credential_name.is_empty() {
                for (field, value) in &files[..2] {
                    if value.is_empty() {
                        findings.error(format!("{path}.{field}"), "required in mode MUTUAL");
                    }
                }
            }
            let verified = !tls.ca_certificates.is_empty() || !tls.credential_name.is_empty();
            if !verified && tls.insecure_skip_verify != Some(true) {
                findings.info(
                    unverified,
                    format!("{path}.caCertificates"),
                    "the server's certificate is checked against the system's roots only",
                    "Set caCertificates to name the authority to trust.",
                );
            }
        }
    }
}
