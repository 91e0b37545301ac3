//! How the workload beside us is, for those outside Kubernetes: nobody else probes them. What comes out
//! is told to the control plane, which takes an unhealthy one out of its services.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Stdio;
use std::time::Duration;

use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use weft_xds::health::Health;

use super::Probes;

/// The one path of the probe we keep.
const PATH: &str = "/app-health/workload";

/// When and how to ask.
#[derive(Debug, Clone)]
pub struct HealthSettings {
    probe: How,
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
    successes: u32,
    failures: u32,
}

#[derive(Debug, Clone)]
enum How {
    Network(Probes),
    /// Words of a command; it says so by ending with 0.
    Command(Vec<String>),
}

/// Kubernetes' probe, as WorkloadGroups have it. Times in seconds; 0 is the default.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Probe {
    initial_delay_seconds: u64,
    period_seconds: u64,
    timeout_seconds: u64,
    success_threshold: u32,
    failure_threshold: u32,
    exec: Option<Exec>,
}

#[derive(Debug, Deserialize)]
struct Exec {
    command: Vec<String>,
}

impl HealthSettings {
    /// From `--health-probe`; `None` when there is none. The application is asked over loopback,
    /// which no capture rule touches.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Option<HealthSettings>, String> {
        if text.trim().is_empty() {
            return Ok(None);
        }
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let probe: Probe =
            serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
        let or = |value: u64, default: u64| if value == 0 { default } else { value };
        let timeout = or(probe.timeout_seconds, 1);
        let how = match probe.exec {
            Some(Exec { command }) if command.is_empty() => return Err("exec: no command".into()),
            Some(Exec { command }) => How::Command(command),
            None => {
                let mut network = value;
                network["timeoutSeconds"] = timeout.into();
                let known = ["httpGet", "tcpSocket", "grpc"];
                if !known.iter().any(|kind| network[*kind].is_object()) {
                    return Err("is none of httpGet, tcpSocket, grpc and exec".into());
                }
                let all = json!({ PATH: network }).to_string();
                How::Network(Probes::parse(&all, IpAddr::V4(Ipv4Addr::LOCALHOST), false)?)
            }
        };
        Ok(Some(HealthSettings {
            probe: how,
            initial_delay: Duration::from_secs(probe.initial_delay_seconds),
            period: Duration::from_secs(or(probe.period_seconds, 10)),
            timeout: Duration::from_secs(timeout),
            successes: probe.success_threshold.max(1),
            failures: if probe.failure_threshold == 0 { 3 } else { probe.failure_threshold },
        }))
    }
}

/// Asks until nobody listens, and says what changes.
pub(crate) async fn run(settings: HealthSettings, says: watch::Sender<Option<Health>>) {
    tokio::time::sleep(settings.initial_delay).await;
    let (mut successes, mut failures) = (0, 0);
    while !says.is_closed() {
        let health = match ask(&settings).await {
            Ok(()) => {
                (successes, failures) = (successes + 1, 0);
                (successes >= settings.successes)
                    .then(|| Health { healthy: true, message: String::new() })
            }
            Err(message) => {
                (successes, failures) = (0, failures + 1);
                (failures >= settings.failures).then_some(Health { healthy: false, message })
            }
        };
        if let Some(health) = health {
            says.send_if_modified(|known| {
                // Another reason for the same is no news.
                let differs = known.as_ref().is_none_or(|known| known.healthy != health.healthy);
                if differs {
                    tracing::info!(health.healthy, health.message, "the workload's health");
                    *known = Some(health);
                }
                differs
            });
        }
        tokio::time::sleep(settings.period).await;
    }
}

async fn ask(settings: &HealthSettings) -> Result<(), String> {
    match &settings.probe {
        How::Network(probes) => match probes.ask(PATH, &HeaderMap::new()).await {
            Ok(status) if status.is_success() => Ok(()),
            Ok(status) => Err(format!("the application answers {status}")),
            Err(error) => Err(error.to_string()),
        },
        How::Command(words) => {
            let mut command = tokio::process::Command::new(&words[0]);
            command.args(&words[1..]).kill_on_drop(true).stdin(Stdio::null());
            command.stdout(Stdio::null()).stderr(Stdio::null());
            match tokio::time::timeout(settings.timeout, command.status()).await {
                Ok(Ok(status)) if status.success() => Ok(()),
                Ok(Ok(status)) => Err(format!("{}: {status}", words[0])),
                Ok(Err(error)) => Err(format!("{}: {error}", words[0])),
                Err(_) => Err(format!("{}: no end within {:?}", words[0], settings.timeout)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_as_workload_groups_have_them() {
        assert!(HealthSettings::parse(" ").unwrap().is_none());
        let text = r#"{"httpGet": {"path": "/h", "port": 80}, "periodSeconds": 5}"#;
        let probe = HealthSettings::parse(text).unwrap().unwrap();
        assert_eq!((probe.period.as_secs(), probe.failures, probe.successes), (5, 3, 1));
        for wrong in ["{", "{}", r#"{"exec": {"command": []}}"#, r#"{"httpGet": {}}"#] {
            assert!(HealthSettings::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn commands_are_asked() {
        let ask = async |command: &str| {
            let text = format!(r#"{{"exec": {{"command": ["sh", "-c", "{command}"]}}}}"#);
            ask(&HealthSettings::parse(&text).unwrap().unwrap()).await.is_ok()
        };
        assert!(ask("exit 0").await);
        assert!(!ask("exit 1").await);
        assert!(!ask("sleep 60").await);
    }
}
