//! Two applications outside the mesh: a server that meshed clients reach in plain text, and a
//! client that calls servicea directly, as long as PeerAuthentication permits plain text.

use super::App;
use super::web::{self, HttpClient};
use http::StatusCode;
use serde_json::json;
use tokio::net::TcpListener;

pub(super) async fn server(listener: TcpListener, app: App) {
    web::serve(listener, move |request| {
        let headers = web::interesting(request.headers());
        let (service, instance) = (app.service, app.instance);
        async move {
            let body = json!({"service": service, "instance": instance, "headers": headers});
            web::json_reply(StatusCode::OK, &body)
        }
    })
    .await;
}

/// Each request makes one call to servicea, without a sidecar, and returns what came of it.
pub(super) async fn client(listener: TcpListener, app: App) {
    let http = HttpClient::new();
    web::serve(listener, move |request| {
        let (http, app) = (http.clone(), app.clone());
        let context = super::trace::context(request.headers());
        async move {
            let host = format!("servicea:{}", app.servicea_direct.port());
            match http.get(app.servicea_direct, &host, "/", context).await {
                Ok((status, servicea)) => {
                    let body = json!({"service": app.service, "servicea": servicea});
                    web::json_reply(status, &body)
                }
                Err(error) => {
                    let body = json!({"service": app.service, "error": format!("{error:#}")});
                    web::json_reply(StatusCode::BAD_GATEWAY, &body)
                }
            }
        }
    })
    .await;
}
