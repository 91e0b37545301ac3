//! How a workload outside Kubernetes is, told over ADS: Istio's `istio.v1.HealthInformation`, which is
//! a request whose error says what is wrong and whose lack of one says that nothing is.

use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use crate::pb::google::rpc::Status;
use crate::session::{Mode, Request};

/// The type URL of such requests; nothing of this type is ever sent.
pub const HEALTH_INFORMATION: &str = "type.googleapis.com/istio.v1.HealthInformation";
/// The condition in a WorkloadEntry's status that says so.
pub const CONDITION: &str = "Healthy";
/// gRPC `INTERNAL`, the code of Istio's agent.
const INTERNAL: i32 = 13;
/// Longest message that is kept, in bytes.
const MESSAGE_MAX: usize = 1024;

/// How a workload is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub healthy: bool,
    /// Why not.
    pub message: String,
}

impl Health {
    /// The request that says so.
    pub fn request(&self, mode: Mode) -> Request {
        let error_detail = (!self.healthy).then(|| Status {
            code: INTERNAL,
            message: self.message.clone(),
            ..Status::default()
        });
        let type_url = HEALTH_INFORMATION.to_owned();
        match mode {
            Mode::Sotw => Request::Sotw(DiscoveryRequest {
                type_url,
                error_detail,
                ..DiscoveryRequest::default()
            }),
            Mode::Delta => Request::Delta(DeltaDiscoveryRequest {
                type_url,
                error_detail,
                ..DeltaDiscoveryRequest::default()
            }),
        }
    }

    /// What a request says of it; `None` for requests of other types.
    pub fn of(request: &Request) -> Option<Health> {
        if request.type_url() != HEALTH_INFORMATION {
            return None;
        }
        let mut message = request.error().map(|error| error.message.clone()).unwrap_or_default();
        message.truncate(message.floor_char_boundary(MESSAGE_MAX));
        Some(Health { healthy: request.error().is_none(), message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_heard() {
        for mode in [Mode::Sotw, Mode::Delta] {
            for healthy in [true, false] {
                let message = if healthy { "" } else { "no answer" }.to_owned();
                let health = Health { healthy, message };
                assert_eq!(Health::of(&health.request(mode)), Some(health));
            }
        }
        assert_eq!(Health::of(&Request::Sotw(DiscoveryRequest::default())), None);
    }
}
