//! The page of metrics on the status port: the proxy's own and, where the pod's author asked for
//! scrapes, the application's behind them, so that one scrape gets both whatever mTLS asks of others.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use weft_telemetry::Exposition as Form;

use super::probe::{ProbeError, Way, value};
use crate::admin::{Page, exposition};
use crate::runtime::Shared;

/// Largest page of an application; one that is longer is left out.
const PAGE_BYTES_MAX: usize = 16 << 20;
/// How long the application may take where the scraper does not say how long it waits.
const TIMEOUT: Duration = Duration::from_secs(8);
/// How long a scraper waits, as Prometheus tells.
const PATIENCE: &str = "x-prometheus-scrape-timeout-seconds";

const OPEN_METRICS: &str = "application/openmetrics-text";
const TEXT: &str = "text/plain";

/// Where the application tells its metrics.
#[derive(Debug)]
pub struct Application {
    port: u16,
    path: String,
    /// Pages are whole in memory: one at a time.
    turn: tokio::sync::Semaphore,
}

/// `ISTIO_PROMETHEUS_ANNOTATIONS`: the pod's annotations as injection found them.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Annotations {
    scrape: String,
    path: String,
    port: String,
}

impl Application {
    /// From the variable that injection writes. `None`: there is nothing to scrape.
    ///
    /// # Errors
    /// What is wrong with the text, such as a port that is the proxy's own.
    pub fn parse(text: &str, own_ports: &[u16]) -> Result<Option<Application>, String> {
        if text.trim().is_empty() {
            return Ok(None);
        }
        let Annotations { scrape, path, port } =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        if scrape == "false" {
            return Ok(None);
        }
        let port = match port.as_str() {
            "" => 80,
            port => port.parse().map_err(|_| format!("{port:?} is no port"))?,
        };
        if own_ports.contains(&port) {
            return Err(format!("port {port} is the proxy's own"));
        }
        let path = match path.as_str() {
            "" => "/metrics".to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        Ok(Some(Application { port, path, turn: tokio::sync::Semaphore::new(1) }))
    }

    /// Its page, in the form that comes with it.
    async fn page(&self, way: &Way, from: &HeaderMap, form: Form) -> Result<Scraped, ProbeError> {
        let patience = from.get(PATIENCE).and_then(|text| text.to_str().ok()?.parse().ok());
        let limit = patience.map_or(TIMEOUT, |seconds: f64| {
            // What is left after the way back.
            Duration::try_from_secs_f64(seconds * 0.8).unwrap_or(TIMEOUT).min(TIMEOUT)
        });
        match tokio::time::timeout(limit, self.ask(way, form)).await {
            Ok(result) => result,
            Err(_) => Err(ProbeError::Timeout(limit)),
        }
    }

    async fn ask(&self, way: &Way, form: Form) -> Result<Scraped, ProbeError> {
        let _turn = self.turn.acquire().await;
        let tcp = way.connect(self.port).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
        let connection = tokio::spawn(connection);
        let accept = match form {
            Form::OpenMetrics => {
                "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
            }
            Form::Text => "text/plain;version=0.0.4",
        };
        let request = Request::get(&self.path)
            .header(header::HOST, value(&way.address(self.port).to_string())?)
            .header(ACCEPT, accept)
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| ProbeError::Probe(error.to_string()))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let is_open = content_type(response.headers()).starts_with(OPEN_METRICS);
        let body = Limited::new(response.into_body(), PAGE_BYTES_MAX).collect().await;
        connection.abort();
        let bytes = body.map_err(|error| ProbeError::Probe(error.to_string()))?.to_bytes();
        if status != StatusCode::OK {
            return Err(ProbeError::Probe(format!("the application's metrics: {status}")));
        }
        match (is_open, form) {
            (true, Form::OpenMetrics) => Ok(Scraped { bytes, form: Form::OpenMetrics }),
            (false, _) => Ok(Scraped { bytes, form: Form::Text }),
            (true, Form::Text) => {
                let why =
                    "the application's metrics are OpenMetrics, which the scraper does not take";
                Err(ProbeError::Probe(why.into()))
            }
        }
    }
}

struct Scraped {
    bytes: Bytes,
    form: Form,
}

/// All metrics in the form that the scraper likes best and everybody has.
pub(super) async fn metrics(
    application: Option<&Application>,
    way: &Way,
    from: &HeaderMap,
    shared: &Shared,
) -> Response<Page> {
    let wanted = wanted(from);
    let Some(application) = application else { return exposition(shared, wanted, None) };
    let counter = |name, help| shared.registry.counter(name, help, &[("type", "application")]);
    counter("istio_agent_scrapes_total", "Scrapes that asked the application.").inc();
    let form = if shared.tells(wanted) { wanted } else { Form::Text };
    match application.page(way, from, form).await {
        Ok(Scraped { bytes, form }) => exposition(shared, form, Some(bytes)),
        Err(error) => {
            tracing::debug!(%error, "the application's metrics are missing");
            let help = "Scrapes without the application's metrics.";
            counter("istio_agent_scrape_failures_total", help).inc();
            exposition(shared, form, None)
        }
    }
}

/// The form that a scraper prefers.
pub(crate) fn wanted(headers: &HeaderMap) -> Form {
    let quality = |kind: &str| {
        let accept = headers.get_all(ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
        let offers = accept.flat_map(|list| list.split(','));
        let of_kind = offers.filter_map(|offer| {
            let mut parts = offer.split(';').map(str::trim);
            let same = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(kind));
            let quality = parts.find_map(|part| part.strip_prefix("q="));
            same.then(|| quality.map_or(1.0, |text| text.parse().unwrap_or(0.0)))
        });
        of_kind.fold(0.0, f64::max)
    };
    let open = quality(OPEN_METRICS);
    match open > 0.0 && open >= quality(TEXT) {
        true => Form::OpenMetrics,
        false => Form::Text,
    }
}

fn content_type(headers: &HeaderMap) -> &str {
    headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scrapers_preference_decides() {
        let wanted =
            |accept: &str| wanted(&HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]));
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,\
            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_eq!(wanted(prometheus), Form::OpenMetrics);
        assert_eq!(wanted("text/plain, application/openmetrics-text;q=0.1"), Form::Text);
        assert_eq!(wanted("*/*"), Form::Text);
    }

    #[test]
    fn annotations_say_where_to_ask() {
        let parse = |text: &str| Application::parse(text, &[15020]);
        let one = parse(r#"{"scrape": "true", "port": "8080", "path": "stats"}"#).unwrap().unwrap();
        assert_eq!((one.port, one.path.as_str()), (8080, "/stats"));
        let one = parse(r#"{"scrape": "true"}"#).unwrap().unwrap();
        assert_eq!((one.port, one.path.as_str()), (80, "/metrics"));
        assert!(parse("").unwrap().is_none());
        assert!(parse(r#"{"scrape": "false"}"#).unwrap().is_none());
        assert!(parse(r#"{"port": "15020"}"#).unwrap_err().contains("own"));
        assert!(parse(r#"{"port": "http"}"#).is_err());
    }
}
