//! Who the client is behind other proxies: `x-forwarded-for` and its relatives, asked of stock
//! Envoy too.

use weft_testkit::peer;

use super::stock::Stock;
use super::*;

/// What the application hears about the client.
const TELLING: [&str; 5] = [
    "x-client",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-envoy-external-address",
    "x-envoy-internal",
];

/// Answers with the lines of each request that tell of its client.
async fn telling_app(mesh: Rc<Mesh>) {
    loop {
        let mut app = mesh.app().await;
        tokio::task::spawn_local(async move {
            loop {
                let head = app.head().await.to_ascii_lowercase();
                // Envoy joins lines of one name, which we leave as they are.
                let values = |name: &&str| {
                    let values = head.lines().filter_map(|line| line.split_once(':'));
                    let values = values.filter(|(field, _)| field == name).map(|(_, v)| v.trim());
                    let values: Vec<&str> = values.collect();
                    (!values.is_empty()).then(|| format!("{name}: {}", values.join(",")))
                };
                let told: Vec<String> = TELLING.iter().filter_map(values).collect();
                let told = told.join("\n");
                let length = told.len();
                app.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{told}"))
                    .await;
            }
        });
    }
}

async fn told(to: SocketAddr, lines: &str) -> String {
    // Envoy puts its own address in the place of exactly 127.0.0.1.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 9], 0))).unwrap();
    let mut client = Raw::new(socket.connect(to).await.unwrap());
    client.send(format!("GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n{lines}\r\n")).await;
    let answer = client.rest().await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    format!("{} {body}", head.lines().next().unwrap_or_default())
}

/// Requests by what they say of where they came from.
const REQUESTS: [&str; 20] = [
    "",
    "X-Forwarded-For: 9.9.9.9\r\n",
    "X-Forwarded-For: 8.8.8.8, 9.9.9.9\r\n",
    "X-Forwarded-For: 7.7.7.7, 8.8.8.8, 9.9.9.9\r\n",
    "X-Forwarded-For: 7.7.7.7,8.8.8.8 ,  9.9.9.9\r\n",
    "X-Forwarded-For: 8.8.8.8\r\nX-Forwarded-For: 9.9.9.9\r\n",
    "X-Forwarded-For: 10.1.2.3\r\n",
    "X-Forwarded-For: 2001:db8::7\r\n",
    "X-Forwarded-For: [2001:db8::7]\r\n",
    "X-Forwarded-For: 9.9.9.9:443\r\n",
    "X-Forwarded-For: unknown\r\n",
    "X-Forwarded-For: 8.8.8.8, unknown\r\n",
    "X-Forwarded-For: unknown, 9.9.9.9\r\n",
    "X-Forwarded-For: 8.8.8.8,\r\n",
    "X-Forwarded-For: ,9.9.9.9\r\n",
    "X-Forwarded-For:\r\n",
    "X-Forwarded-Proto: https\r\n",
    "X-Forwarded-Proto: gopher\r\n",
    "X-Forwarded-For: 8.8.8.8, 9.9.9.9\r\nX-Forwarded-Proto: https\r\n",
    "X-Envoy-External-Address: 9.9.9.9\r\nX-Envoy-Internal: true\r\n",
];

#[test]
fn who_the_client_is_behind_trusted_proxies_is_what_envoy_says() {
    let Some(binary) = peer::envoy("who_the_client_is_behind_trusted_proxies_is_what_envoy_says")
    else {
        return;
    };
    let mut wrong = Vec::new();
    let gateways = [(true, 0), (true, 1), (true, 2), (false, 0), (false, 1), (false, 2)];
    let places = gateways.map(|(edge, hops)| ("UNSPECIFIED", edge, hops));
    for (direction, edge, hops) in places.into_iter().chain([("INBOUND", false, 0)]) {
        let hcm = json!({
            "generateRequestId": false, "useRemoteAddress": edge, "xffNumTrustedHops": hops,
        });
        let address = json!({"header": {
            "key": "x-client", "value": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        }});
        let host = json!({"requestHeadersToAdd": [address]});
        let setup = Setup { direction, hcm, host, ..Setup::default() };
        run(setup, async |mesh| {
            tokio::task::spawn_local(telling_app(mesh.clone()));
            let envoy = Stock::start(&binary, &mesh).await;
            for request in REQUESTS {
                let ours = told(mesh.address, request).await;
                let mut theirs = told(envoy.address, request).await;
                // At a sidecar we add no scheme, and leave what strangers may not say to gateways.
                if direction == "INBOUND" && !request.contains("Proto") {
                    theirs = theirs.replace("\nx-forwarded-proto: http", "");
                }
                if direction == "INBOUND" && request.contains("Internal") {
                    theirs += "\nx-envoy-internal: true";
                }
                if ours != theirs {
                    wrong.push(format!(
                        "{direction}, edge {edge}, {hops} hops, {request:?}\n  weft  {ours:?}\n  envoy {theirs:?}"
                    ));
                }
            }
        });
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
