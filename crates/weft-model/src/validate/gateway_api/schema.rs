//! The Gateway API's structural schemas, as its CRDs have them (v1.6, standard channel; HTTPRoute's
//! `retry` of the experimental one).

use super::forms::{
    is_address_type, is_controller, is_cors_origin, is_dns, is_duration, is_group, is_kind,
    is_label_value, is_namespace, is_protocol, is_token, is_uri, is_well_known, is_wildcard_dns,
};
use super::shape::Shape::{Bool, Int, Map, More, Object, OneOf};
use super::shape::{Shape, form, keyed, list, may, must, set, text, word};

const DNS: Shape = form(1, 253, "a DNS name", is_dns);
const HOSTNAME: Shape = form(1, 253, "a DNS name, or \"*.\" and one", is_wildcard_dns);
const GROUP: Shape = form(0, 253, "an API group", is_group);
const KIND: Shape = form(1, 63, "a kind", is_kind);
const NAME: Shape = text(1, 253);
const NAMESPACE: Shape = form(1, 63, "a namespace", is_namespace);
const PORT: Shape = Int(1, 65535);
const TOKEN: Shape = form(1, 256, "a header name", is_token);
const VALUE: Shape = text(1, 4096);
const ANY: Shape = text(0, usize::MAX);
const ANYS: Shape = list(0, usize::MAX, &ANY);
const OPTIONS: Shape = Map(16, &text(0, 4096));

const PARAMETERS: Shape = Object(&[
    must("group", &GROUP),
    must("kind", &KIND),
    must("name", &NAME),
    may("namespace", &NAMESPACE),
]);

pub(super) const GATEWAY_CLASS: Shape = Object(&[
    must("controllerName", &form(1, 253, "a domain and a path", is_controller)),
    may("description", &text(0, 64)),
    may("parametersRef", &PARAMETERS),
]);

const SELECTOR: Shape = Object(&[
    may("matchLabels", &Map(usize::MAX, &ANY)),
    may(
        "matchExpressions",
        &list(
            0,
            usize::MAX,
            &Object(&[must("key", &ANY), must("operator", &ANY), may("values", &ANYS)]),
        ),
    ),
]);

/// An object of a kind that goes without saying.
const REFERENCE: Shape = Object(&[
    may("group", &GROUP),
    may("kind", &KIND),
    must("name", &NAME),
    may("namespace", &NAMESPACE),
]);

/// The same, or one port of it.
const PORT_REFERENCE: Shape = More(&REFERENCE, &[may("port", &PORT)]);

const LISTENER: Shape = Object(&[
    must("name", &DNS),
    may("hostname", &HOSTNAME),
    must("port", &PORT),
    must("protocol", &form(1, 255, "a protocol", is_protocol)),
    may(
        "tls",
        &Object(&[
            may("mode", &word(&["Terminate", "Passthrough"])),
            may("certificateRefs", &list(0, 64, &REFERENCE)),
            may("options", &OPTIONS),
        ]),
    ),
    may(
        "allowedRoutes",
        &Object(&[
            may(
                "namespaces",
                &Object(&[
                    may("from", &word(&["All", "Selector", "Same"])),
                    may("selector", &SELECTOR),
                ]),
            ),
            may("kinds", &list(0, 8, &Object(&[may("group", &GROUP), must("kind", &KIND)]))),
        ]),
    ),
]);

const LISTENERS: Shape = keyed(1, 64, "name", &LISTENER);

const VALIDATION: Shape = Object(&[
    must(
        "caCertificateRefs",
        &list(
            1,
            16,
            &Object(&[
                must("group", &GROUP),
                must("kind", &KIND),
                must("name", &NAME),
                may("namespace", &NAMESPACE),
            ]),
        ),
    ),
    may("mode", &word(&["AllowValidOnly", "AllowInsecureFallback"])),
]);

pub(super) const GATEWAY: Shape = Object(&[
    must("gatewayClassName", &NAME),
    must("listeners", &LISTENERS),
    may(
        "addresses",
        &list(
            0,
            16,
            &Object(&[
                may("type", &form(1, 253, "a type of address", is_address_type)),
                may("value", &text(0, 253)),
            ]),
        ),
    ),
    may(
        "allowedListeners",
        &Object(&[may(
            "namespaces",
            &Object(&[
                may("from", &word(&["All", "Selector", "Same", "None"])),
                may("selector", &SELECTOR),
            ]),
        )]),
    ),
    may(
        "infrastructure",
        &Object(&[
            may("labels", &Map(8, &form(0, 63, "a label's value", is_label_value))),
            may("annotations", &OPTIONS),
            may("parametersRef", &EXTENSION),
        ]),
    ),
    may(
        "tls",
        &Object(&[
            may("backend", &Object(&[may("clientCertificateRef", &REFERENCE)])),
            may(
                "frontend",
                &Object(&[
                    must("default", &Object(&[may("validation", &VALIDATION)])),
                    may(
                        "perPort",
                        &keyed(
                            0,
                            64,
                            "port",
                            &Object(&[
                                must("port", &PORT),
                                must("tls", &Object(&[may("validation", &VALIDATION)])),
                            ]),
                        ),
                    ),
                ]),
            ),
        ]),
    ),
]);

pub(super) const LISTENER_SET: Shape =
    Object(&[must("parentRef", &REFERENCE), must("listeners", &LISTENERS)]);

const PARENTS: Shape = list(0, 32, &More(&PORT_REFERENCE, &[may("sectionName", &DNS)]));

const HOSTNAMES: Shape = list(0, 16, &HOSTNAME);

const HEADER: Shape = Object(&[must("name", &TOKEN), must("value", &VALUE)]);
const MODIFIER: Shape = Object(&[
    may("set", &keyed(0, 16, "name", &HEADER)),
    may("add", &keyed(0, 16, "name", &HEADER)),
    may("remove", &set(16, &ANY)),
]);

const MIRROR: Shape = Object(&[
    must("backendRef", &PORT_REFERENCE),
    may("percent", &Int(0, 100)),
    may(
        "fraction",
        &Object(&[
            must("numerator", &Int(0, i32::MAX as i64)),
            may("denominator", &Int(1, i32::MAX as i64)),
        ]),
    ),
]);

const PATH_MODIFIER: Shape = Object(&[
    must("type", &word(&["ReplaceFullPath", "ReplacePrefixMatch"])),
    may("replaceFullPath", &text(0, 1024)),
    may("replacePrefixMatch", &text(0, 1024)),
]);

const REDIRECT: Shape = Object(&[
    may("scheme", &word(&["http", "https"])),
    may("hostname", &DNS),
    may("port", &PORT),
    may("path", &PATH_MODIFIER),
    may("statusCode", &OneOf(&[301, 302, 303, 307, 308])),
]);

const CORS: Shape = Object(&[
    may("allowCredentials", &Bool),
    may("allowHeaders", &set(64, &TOKEN)),
    may(
        "allowMethods",
        &set(
            9,
            &word(&[
                "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "*",
            ]),
        ),
    ),
    may("allowOrigins", &set(64, &form(1, 253, "an origin", is_cors_origin))),
    may("exposeHeaders", &set(64, &TOKEN)),
    may("maxAge", &Int(1, i32::MAX as i64)),
]);

/// An object of a kind that is named, in the same namespace or in none.
const EXTENSION: Shape = Object(&[must("group", &GROUP), must("kind", &KIND), must("name", &NAME)]);

const HTTP_FILTERS: Shape = list(
    0,
    16,
    &Object(&[
        must(
            "type",
            &word(&[
                "RequestHeaderModifier",
                "ResponseHeaderModifier",
                "RequestMirror",
                "RequestRedirect",
                "URLRewrite",
                "ExtensionRef",
                "CORS",
            ]),
        ),
        may("requestHeaderModifier", &MODIFIER),
        may("responseHeaderModifier", &MODIFIER),
        may("requestMirror", &MIRROR),
        may("requestRedirect", &REDIRECT),
        may("urlRewrite", &Object(&[may("hostname", &DNS), may("path", &PATH_MODIFIER)])),
        may("cors", &CORS),
        may("extensionRef", &EXTENSION),
    ]),
);

const GRPC_FILTERS: Shape = list(
    0,
    16,
    &Object(&[
        must(
            "type",
            &word(&[
                "ResponseHeaderModifier",
                "RequestHeaderModifier",
                "RequestMirror",
                "ExtensionRef",
            ]),
        ),
        may("requestHeaderModifier", &MODIFIER),
        may("responseHeaderModifier", &MODIFIER),
        may("requestMirror", &MIRROR),
        may("extensionRef", &EXTENSION),
    ]),
);

const WEIGHT: Shape = Int(0, 1_000_000);
const HTTP_BACKENDS: Shape =
    list(0, 16, &More(&PORT_REFERENCE, &[may("weight", &WEIGHT), may("filters", &HTTP_FILTERS)]));
const GRPC_BACKENDS: Shape =
    list(0, 16, &More(&PORT_REFERENCE, &[may("weight", &WEIGHT), may("filters", &GRPC_FILTERS)]));

const MATCH_TYPE: Shape = word(&["Exact", "RegularExpression"]);
const HEADER_MATCH: Shape =
    Object(&[may("type", &MATCH_TYPE), must("name", &TOKEN), must("value", &VALUE)]);

const HTTP_MATCH: Shape = Object(&[
    may(
        "path",
        &Object(&[
            may("type", &word(&["Exact", "PathPrefix", "RegularExpression"])),
            may("value", &text(0, 1024)),
        ]),
    ),
    may("headers", &keyed(0, 16, "name", &HEADER_MATCH)),
    may(
        "queryParams",
        &keyed(
            0,
            16,
            "name",
            &Object(&[
                may("type", &MATCH_TYPE),
                must("name", &TOKEN),
                must("value", &text(1, 1024)),
            ]),
        ),
    ),
    may(
        "method",
        &word(&["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"]),
    ),
]);

const DURATION: Shape = form(0, usize::MAX, "a duration such as \"5s\"", is_duration);

pub(super) const HTTP_ROUTE: Shape = Object(&[
    may("parentRefs", &PARENTS),
    may("hostnames", &HOSTNAMES),
    may(
        "rules",
        &list(
            1,
            16,
            &Object(&[
                may("name", &DNS),
                may("matches", &list(0, 64, &HTTP_MATCH)),
                may("filters", &HTTP_FILTERS),
                may("backendRefs", &HTTP_BACKENDS),
                may(
                    "timeouts",
                    &Object(&[may("request", &DURATION), may("backendRequest", &DURATION)]),
                ),
                may(
                    "retry",
                    &Object(&[
                        may("codes", &list(0, usize::MAX, &Int(400, 599))),
                        may("attempts", &Int(0, i32::MAX as i64)),
                        may("backoff", &DURATION),
                    ]),
                ),
            ]),
        ),
    ),
]);

pub(super) const GRPC_ROUTE: Shape = Object(&[
    may("parentRefs", &PARENTS),
    may("hostnames", &HOSTNAMES),
    may(
        "rules",
        &list(
            0,
            16,
            &Object(&[
                may("name", &DNS),
                may(
                    "matches",
                    &list(
                        0,
                        64,
                        &Object(&[
                            may(
                                "method",
                                &Object(&[
                                    may("type", &MATCH_TYPE),
                                    may("service", &text(0, 1024)),
                                    may("method", &text(0, 1024)),
                                ]),
                            ),
                            may("headers", &keyed(0, 16, "name", &HEADER_MATCH)),
                        ]),
                    ),
                ),
                may("filters", &GRPC_FILTERS),
                may("backendRefs", &GRPC_BACKENDS),
            ]),
        ),
    ),
]);

const BYTES_RULES: Shape = list(
    1,
    1,
    &Object(&[
        may("name", &DNS),
        must("backendRefs", &list(1, 16, &More(&PORT_REFERENCE, &[may("weight", &WEIGHT)]))),
    ]),
);

pub(super) const TLS_ROUTE: Shape = Object(&[
    may("parentRefs", &PARENTS),
    must("hostnames", &list(1, 1024, &HOSTNAME)),
    must("rules", &BYTES_RULES),
]);

/// UDPRoute's too.
pub(super) const TCP_ROUTE: Shape =
    Object(&[may("parentRefs", &PARENTS), must("rules", &BYTES_RULES)]);

pub(super) const BACKEND_TLS_POLICY: Shape = Object(&[
    must(
        "targetRefs",
        &list(
            1,
            16,
            &Object(&[
                must("group", &GROUP),
                must("kind", &KIND),
                must("name", &NAME),
                may("sectionName", &DNS),
            ]),
        ),
    ),
    must(
        "validation",
        &Object(&[
            must("hostname", &DNS),
            may("caCertificateRefs", &list(0, 8, &EXTENSION)),
            may(
                "subjectAltNames",
                &list(
                    0,
                    5,
                    &Object(&[
                        must("type", &word(&["Hostname", "URI"])),
                        may("hostname", &HOSTNAME),
                        may("uri", &form(1, 253, "a URI", is_uri)),
                    ]),
                ),
            ),
            may("wellKnownCACertificates", &form(1, 253, "\"System\" or a name", is_well_known)),
        ]),
    ),
    may("options", &OPTIONS),
]);

pub(super) const REFERENCE_GRANT: Shape = Object(&[
    must(
        "from",
        &list(
            1,
            16,
            &Object(&[must("group", &GROUP), must("kind", &KIND), must("namespace", &NAMESPACE)]),
        ),
    ),
    must(
        "to",
        &list(1, 16, &Object(&[must("group", &GROUP), must("kind", &KIND), may("name", &NAME)])),
    ),
]);
