//! Peers that follow no rule: nothing they send may panic a session, and limits hold.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::type_url::ResourceType;

struct Nothing;

impl Source for Nothing {
    fn resources(&mut self, _: ResourceType, want: Want<'_>) -> Set {
        match want {
            Want::All => Set::default(),
            Want::Names(names) => names
                .iter()
                .filter(|name| name.len() % 2 == 0)
                .map(|name| Resource::from_body(Arc::clone(name), Bytes::from_static(b"\x0a\x01x")))
                .collect(),
        }
    }
}

fn text(rng: &mut SmallRng) -> String {
    const PIECES: [&str; 8] = ["", "*", "a", "bb", "outbound|80||h", "1", "2", "é\u{0}"];
    (0..rng.random_range(0..3)).map(|_| PIECES[rng.random_range(0..PIECES.len())]).collect()
}

fn texts(rng: &mut SmallRng) -> Vec<String> {
    (0..rng.random_range(0..4)).map(|_| text(rng)).collect()
}

fn type_url(rng: &mut SmallRng) -> String {
    match rng.random_range(0..6) {
        5 => text(rng),
        at => ResourceType::PUSH_ORDER[at].url().to_owned(),
    }
}

fn error(rng: &mut SmallRng) -> Option<Status> {
    let message = text(rng).repeat(2000);
    rng.random_bool(0.3).then(|| Status { message, ..Status::default() })
}

fn request(rng: &mut SmallRng) -> Request {
    match rng.random_bool(0.5) {
        true => Request::Sotw(DiscoveryRequest {
            version_info: text(rng),
            resource_names: texts(rng),
            type_url: type_url(rng),
            response_nonce: rng.random_range(0..9).to_string(),
            error_detail: error(rng),
            ..DiscoveryRequest::default()
        }),
        false => Request::Delta(DeltaDiscoveryRequest {
            type_url: type_url(rng),
            resource_names_subscribe: texts(rng),
            resource_names_unsubscribe: texts(rng),
            initial_resource_versions: texts(rng)
                .into_iter()
                .map(|name| (name, text(rng)))
                .collect(),
            response_nonce: rng.random_range(0..9).to_string(),
            error_detail: error(rng),
            ..DeltaDiscoveryRequest::default()
        }),
    }
}

fn any(rng: &mut SmallRng) -> wire::Any {
    let value: Vec<u8> = (0..rng.random_range(0..12)).map(|_| rng.random()).collect();
    wire::Any { type_url: type_url(rng), value: value.into() }
}

fn response(rng: &mut SmallRng) -> Response {
    match rng.random_bool(0.5) {
        true => Response::Sotw(wire::DiscoveryResponse {
            version_info: text(rng),
            resources: (0..rng.random_range(0..3)).map(|_| any(rng)).collect(),
            type_url: type_url(rng),
            nonce: text(rng),
            control_plane: None,
        }),
        false => Response::Delta(wire::DeltaDiscoveryResponse {
            resources: (0..rng.random_range(0..3))
                .map(|_| wire::Resource {
                    version: text(rng),
                    resource: rng.random_bool(0.8).then(|| any(rng)),
                    name: text(rng),
                })
                .collect(),
            type_url: type_url(rng),
            removed_resources: texts(rng),
            nonce: text(rng),
            ..wire::DeltaDiscoveryResponse::default()
        }),
    }
}

#[test]
fn a_server_survives_any_requests() {
    let limits = Limits { names_max: 6, name_bytes_max: 20 };
    for seed in 0..300 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mode = if seed % 2 == 0 { Mode::Sotw } else { Mode::Delta };
        let mut session = ServerSession::new(mode, limits);
        for _ in 0..50 {
            let request = request(&mut rng);
            match session.on_request(&request) {
                // The other protocol changes nothing; a broken limit ends the stream.
                Ok(_) | Err(SessionError::WrongMode) => {}
                Err(SessionError::TooManyNames { .. } | SessionError::NameTooLong { .. }) => break,
            }
            for _ in 0..rng.random_range(0..3) {
                session.poll(&mut Nothing);
                session.poll_removals(&mut Nothing);
            }
            for ty in ResourceType::PUSH_ORDER {
                let held = session.subscription(ty).names.len();
                assert!(held <= limits.names_max, "{held} names held, seed {seed}");
                session.mark(ty);
            }
        }
    }
}

#[test]
fn a_client_survives_any_responses() {
    for seed in 0..300 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mode = if seed % 2 == 0 { Mode::Sotw } else { Mode::Delta };
        let mut session = ClientSession::new(mode, Node::default());
        session.subscribe(ResourceType::Cluster, Wanted::All);
        session.reconnect();
        for _ in 0..50 {
            let names: BTreeSet<Arc<str>> = texts(&mut rng).into_iter().map(Arc::from).collect();
            session.subscribe(ResourceType::Endpoint, Wanted::Names(names));
            if let Received::Update(update) = session.on_response(response(&mut rng)) {
                match rng.random_bool(0.5) {
                    true => session.accept(&update),
                    false => session.reject(&update, &Rejection::from(text(&mut rng))),
                };
            }
        }
    }
}

#[test]
fn limits_are_told() {
    let mut session = ServerSession::new(Mode::Delta, Limits { names_max: 2, name_bytes_max: 3 });
    let subscribe = |names: &[&str]| {
        Request::Delta(DeltaDiscoveryRequest {
            type_url: crate::type_url::ENDPOINT.into(),
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryRequest::default()
        })
    };
    let ty = ResourceType::Endpoint;
    let long = session.on_request(&subscribe(&["long"]));
    assert_eq!(long, Err(SessionError::NameTooLong { ty, max: 3 }));
    assert!(session.on_request(&subscribe(&["a", "b"])).is_ok());
    let many = session.on_request(&subscribe(&["c"]));
    assert_eq!(many, Err(SessionError::TooManyNames { ty, max: 2 }));
}
