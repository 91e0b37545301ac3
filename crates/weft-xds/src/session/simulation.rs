//! Both ends of a session against each other, at random: loss, reconnects,
//! rejections and a changing world. The seed is in every failure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::pb::envoy::config::listener::v3::Listener;
use crate::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use crate::type_url::ResourceType;

const CLUSTERS: u32 = 8;

/// The truth: clusters with their endpoints, two listeners with a route over clusters each.
#[derive(Clone, Default)]
struct World {
    clusters: BTreeMap<String, u64>,
    endpoints: BTreeMap<String, u64>,
    listeners: [u64; 2],
    routes: [(u64, BTreeSet<String>); 2],
}

impl World {
    fn resource(&self, ty: ResourceType, name: &str) -> Option<Resource> {
        Some(match ty {
            ResourceType::Cluster => {
                let alt_stat_name = self.clusters.get(name)?.to_string();
                Resource::new(
                    name,
                    &Cluster { name: name.into(), alt_stat_name, ..Default::default() },
                )
            }
            ResourceType::Endpoint => {
                let content = self.endpoints.get(name)?.to_string();
                let named_endpoints = [(content, Default::default())].into();
                let cluster_name = name.to_owned();
                Resource::new(
                    name,
                    &ClusterLoadAssignment { cluster_name, named_endpoints, ..Default::default() },
                )
            }
            ResourceType::Listener => {
                let stat_prefix = self.listeners[index(name)?].to_string();
                Resource::new(
                    name,
                    &Listener { name: name.into(), stat_prefix, ..Default::default() },
                )
            }
            ResourceType::Route => {
                let (content, clusters) = &self.routes[index(name)?];
                let domains = clusters.iter().cloned().collect();
                let host = VirtualHost { name: content.to_string(), domains, ..Default::default() };
                Resource::new(
                    name,
                    &RouteConfiguration {
                        name: name.into(),
                        virtual_hosts: vec![host],
                        ..Default::default()
                    },
                )
            }
            ResourceType::Secret | ResourceType::NameTable => return None,
        })
    }

    fn names(&self, ty: ResourceType) -> Vec<String> {
        match ty {
            ResourceType::Cluster | ResourceType::Endpoint => {
                self.clusters.keys().cloned().collect()
            }
            ResourceType::Listener => vec!["l0".into(), "l1".into()],
            ResourceType::Route => vec!["r0".into(), "r1".into()],
            ResourceType::Secret | ResourceType::NameTable => Vec::new(),
        }
    }
}

impl Source for World {
    fn resources(&mut self, ty: ResourceType, want: Want<'_>) -> Set {
        match want {
            Want::All => self.names(ty).iter().filter_map(|name| self.resource(ty, name)).collect(),
            Want::Names(names) => names.iter().filter_map(|name| self.resource(ty, name)).collect(),
        }
    }
}

/// `l0`, `r1` → 0, 1
fn index(name: &str) -> Option<usize> {
    name.get(1..)?.parse().ok()
}

struct Simulation {
    rng: SmallRng,
    mode: Mode,
    world: World,
    server: ServerSession,
    client: ClientSession,
    to_server: VecDeque<Request>,
    to_client: VecDeque<Response>,
    /// What the client runs.
    running: BTreeMap<(ResourceType, String), Resource>,
    reconnected: bool,
    counter: u64,
}

impl Simulation {
    fn new(seed: u64, mode: Mode) -> Self {
        let mut client = ClientSession::new(mode, Node::default());
        client.subscribe(ResourceType::Cluster, Wanted::All);
        client.subscribe(ResourceType::Listener, Wanted::All);
        let mut world = World::default();
        world.clusters.insert("c0".into(), 1);
        world.endpoints.insert("c0".into(), 1);
        let to_server = client.reconnect().into();
        Self {
            rng: SmallRng::seed_from_u64(seed),
            mode,
            world,
            server: ServerSession::new(mode, Limits::default()),
            client,
            to_server,
            to_client: VecDeque::new(),
            running: BTreeMap::new(),
            reconnected: false,
            counter: 1,
        }
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..15 => self.mutate(),
            15..45 => _ = self.server_turn(),
            45..70 => _ = self.deliver_to_server(),
            70..98 => _ = self.deliver_to_client(),
            _ => self.reconnect(),
        }
        self.check_order();
    }

    fn mutate(&mut self) {
        self.counter += 1;
        let name = format!("c{}", self.rng.random_range(0..CLUSTERS));
        let exists = self.world.clusters.contains_key(&name);
        let which = self.rng.random_range(0..2);
        match self.rng.random_range(0..6) {
            0 | 1 if !exists => {
                self.world.clusters.insert(name.clone(), self.counter);
                self.world.endpoints.insert(name.clone(), self.counter);
                self.world.routes[which].1.insert(name);
                self.world.routes[which].0 = self.counter;
            }
            0 => {
                self.world.clusters.insert(name, self.counter);
            }
            // Gone from routes and clusters in the same instant.
            1 | 2 => {
                for route in &mut self.world.routes {
                    if route.1.remove(&name) {
                        route.0 = self.counter;
                    }
                }
                self.world.clusters.remove(&name);
                self.world.endpoints.remove(&name);
            }
            3 => self.world.listeners[which] = self.counter,
            4 => self.world.routes[which].0 = self.counter,
            _ if exists => {
                self.world.endpoints.insert(name.clone(), self.counter);
                self.server.mark_names(ResourceType::Endpoint, &[name.into()]);
                return;
            }
            _ => return,
        }
        for ty in ResourceType::PUSH_ORDER {
            self.server.mark(ty);
        }
    }

    fn server_turn(&mut self) -> bool {
        let response = match self.server.poll(&mut self.world) {
            Some(response) => Some(response),
            // The shell waits a moment before removals, so that the first
            // requests of a stream, which come in one burst, are all in.
            None if self.to_server.is_empty() => self.server.poll_removals(&mut self.world),
            None => None,
        };
        let sent = response.is_some();
        self.to_client.extend(response.map(Response::from));
        sent
    }

    fn deliver_to_server(&mut self) -> bool {
        let Some(request) = self.to_server.pop_front() else { return false };
        self.server.on_request(&request).unwrap();
        true
    }

    fn deliver_to_client(&mut self) -> bool {
        let Some(response) = self.to_client.pop_front() else { return false };
        let update = match self.client.on_response(response) {
            Received::Update(update) => update,
            Received::Ignored => return true,
            Received::Malformed(request) => panic!("malformed: {request:?}"),
        };
        let bad: Vec<Arc<str>> = update
            .upserts
            .iter()
            .filter(|r| is_bad(update.ty, r))
            .map(|r| r.name.clone())
            .collect();
        for resource in update.upserts.iter().filter(|r| !bad.contains(&r.name)) {
            self.running.insert((update.ty, resource.name.to_string()), resource.clone());
        }
        for name in &update.removes {
            self.running.remove(&(update.ty, name.to_string()));
        }
        let answer = match bad.is_empty() {
            true => self.client.accept(&update),
            false => self.client.reject(&update, &Rejection { reason: "bad".into(), names: bad }),
        };
        self.to_server.push_back(answer);
        self.follow_references();
        true
    }

    fn follow_references(&mut self) {
        let held = |ty: ResourceType| -> BTreeSet<Arc<str>> {
            self.running
                .keys()
                .filter(|(t, _)| *t == ty)
                .map(|(_, n)| Arc::from(n.as_str()))
                .collect()
        };
        let clusters = held(ResourceType::Cluster);
        let routes = held(ResourceType::Listener);
        let routes = routes.iter().map(|name| Arc::from(name.replace('l', "r"))).collect();
        for (ty, names) in [(ResourceType::Endpoint, clusters), (ResourceType::Route, routes)] {
            self.running.retain(|(t, name), _| *t != ty || names.contains(name.as_str()));
            self.to_server.extend(self.client.subscribe(ty, Wanted::Names(names)));
        }
    }

    fn reconnect(&mut self) {
        self.reconnected = true;
        self.client.disconnected();
        self.server = ServerSession::new(self.mode, Limits::default());
        self.to_client.clear();
        self.to_server = self.client.reconnect().into();
    }

    /// Make before break: no running route names a cluster that is not running.
    fn check_order(&self) {
        if self.mode == Mode::Sotw && self.reconnected {
            // A new state-of-the-world stream cannot know what its client still uses.
            return;
        }
        for ((ty, name), route) in &self.running {
            if *ty != ResourceType::Route {
                continue;
            }
            let route: RouteConfiguration = route.decode().unwrap();
            for cluster in &route.virtual_hosts[0].domains {
                assert!(
                    self.running.contains_key(&(ResourceType::Cluster, cluster.clone())),
                    "{name} names {cluster}, which is not running"
                );
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..100_000 {
            if !(self.server_turn() | self.deliver_to_server() | self.deliver_to_client()) {
                return;
            }
            self.check_order();
        }
        panic!("the session never comes to rest");
    }

    fn check_end(&self) {
        for ty in ResourceType::PUSH_ORDER {
            for name in self.world.names(ty) {
                let truth = self.world.resource(ty, &name).unwrap();
                let running = self.running.get(&(ty, name.clone()));
                if is_bad(ty, &truth) {
                    assert_ne!(running, Some(&truth), "{ty} {name} is bad and runs");
                } else {
                    assert_eq!(running, Some(&truth), "{ty} {name}");
                }
            }
        }
        let nacked =
            ResourceType::PUSH_ORDER.into_iter().any(|ty| self.server.status(ty).nacked.is_some());
        for (ty, name) in self.running.keys() {
            // After a rejection clusters the old routes may use are kept.
            let known = self.world.names(*ty).contains(name);
            assert!(known || nacked, "{ty} {name} should be gone");
        }
    }
}

/// The client rejects every ninth version of what is not a cluster.
fn is_bad(ty: ResourceType, resource: &Resource) -> bool {
    let content = match ty {
        ResourceType::Listener => resource.decode::<Listener>().unwrap().stat_prefix,
        ResourceType::Route => {
            resource.decode::<RouteConfiguration>().unwrap().virtual_hosts.remove(0).name
        }
        ResourceType::Endpoint => {
            let assignment = resource.decode::<ClusterLoadAssignment>().unwrap();
            assignment.named_endpoints.into_keys().next().unwrap()
        }
        ResourceType::Cluster | ResourceType::Secret | ResourceType::NameTable => return false,
    };
    content.parse::<u64>().unwrap() % 9 == 5
}

fn run(seed: u64, mode: Mode) {
    let outcome = std::panic::catch_unwind(|| {
        let mut simulation = Simulation::new(seed, mode);
        for _ in 0..400 {
            simulation.step();
        }
        simulation.settle();
        simulation.check_end();
        // Nothing is left to say, however often it is asked.
        for ty in ResourceType::PUSH_ORDER {
            simulation.server.mark(ty);
        }
        assert!(!simulation.server_turn(), "an unchanged world was sent again");
    });
    assert!(outcome.is_ok(), "failed with seed {seed}, {mode:?}");
}

#[test]
fn delta_converges_whatever_is_lost() {
    (0..300).for_each(|seed| run(seed, Mode::Delta));
}

#[test]
fn sotw_converges_whatever_is_lost() {
    (0..300).for_each(|seed| run(seed, Mode::Sotw));
}
