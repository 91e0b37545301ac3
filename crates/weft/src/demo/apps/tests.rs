use super::echo::{EchoClient, EchoRequest};
use super::*;
use http::{HeaderMap, StatusCode};

fn app(outbound: SocketAddr) -> App {
    App {
        service: "serviceb",
        version: "v1",
        instance: "serviceb-v1-0",
        outbound_http: outbound,
        outbound_tcp: outbound,
        servicea_direct: outbound,
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn serviceb_answers_every_kind_of_call() {
    let (listener, address) = listen().await;
    tokio::spawn(serviceb::serve(listener, app(address)));
    let client = EchoClient::new(address, "serviceb:10088").unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("x-b3-traceid", "463ac35c9f6413ad".parse().unwrap());
    let hello = EchoRequest { message: "hello".into(), count: 3 };

    let reply = client.unary(hello.clone(), &headers).await.unwrap();
    assert_eq!((reply.message.as_str(), reply.service.as_str()), ("hello", "serviceb"));
    assert_eq!(reply.headers["x-b3-traceid"], "463ac35c9f6413ad");
    let replies = client.server_stream(hello.clone(), &headers).await.unwrap();
    assert_eq!(replies.len(), 3);
    let reply = client.client_stream(vec![hello.clone(); 4], &headers).await.unwrap();
    assert_eq!(reply.message, "4 messages");
    let replies = client.both_stream(vec![hello; 5], &headers).await.unwrap();
    assert_eq!(replies.len(), 5);
}

#[tokio::test]
async fn servicea_names_its_version_and_fails_on_request() {
    let (listener, address) = listen().await;
    tokio::spawn(servicea::serve(listener, App { service: "servicea", ..app(address) }));
    let http = HttpClient::new();
    let (status, body) = http.get(address, "servicea", "/", HeaderMap::new()).await.unwrap();
    assert_eq!((status, body["version"].as_str()), (StatusCode::OK, Some("v1")));
    let (status, _) = http.get(address, "servicea", "/status/503", HeaderMap::new()).await.unwrap();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_failing_call_fails_the_gateways_reply() {
    let (nobody, dead) = listen().await;
    drop(nobody);
    let (listener, address) = listen().await;
    tokio::spawn(gateway::serve(listener, app(dead)));
    let http = HttpClient::new();
    for path in ["/", "/stream", "/tcp", "/plain", "/else"] {
        let (status, _) = http.get(address, "gateway", path, HeaderMap::new()).await.unwrap();
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{path}");
    }
}
