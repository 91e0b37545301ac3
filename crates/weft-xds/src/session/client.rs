//! A proxy's end of one ADS stream, kept across reconnects.
//!
//! Owns what is subscribed to, which versions were accepted, and the requests
//! that say so. Must not know what resources mean: the caller accepts or rejects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Mode, Request, Resource, Response};
use crate::nds;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use crate::pb::google::rpc::Status;
use crate::type_url::ResourceType;
use crate::wire;

/// gRPC `INVALID_ARGUMENT`, the code of a rejection.
const INVALID_ARGUMENT: i32 = 3;
/// SotW servers may wrap a resource in this message.
const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// What is subscribed to, per type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing; the type is never mentioned.
    #[default]
    Nothing,
    /// Everything (LDS, CDS and NDS).
    All,
    /// These.
    Names(BTreeSet<Arc<str>>),
}

impl Wanted {
    fn wants(&self, name: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Names(names) => names.contains(name),
        }
    }
}

/// One response, turned into changes. Give it back to [`ClientSession::accept`]
/// or [`ClientSession::reject`].
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    pub ty: ResourceType,
    /// Version of the whole set after it.
    pub version: String,
    /// New and changed resources.
    pub upserts: Vec<Resource>,
    /// Names that are gone, or (delta) asked for and not there.
    pub removes: Vec<Arc<str>>,
    nonce: String,
}

/// Why an update, or part of it, is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Told to the control plane.
    pub reason: String,
    /// The resources that are not used; the others are. Empty: none is used.
    pub names: Vec<Arc<str>>,
}

impl Rejection {
    /// The reason, with the names in it: the control plane knows from the text alone what is
    /// refused.
    fn text(&self) -> String {
        let unsaid: Vec<&str> = self
            .names
            .iter()
            .map(|name| &**name)
            .filter(|name| !self.reason.contains(name))
            .collect();
        match unsaid.is_empty() {
            true => self.reason.clone(),
            false => format!("{}: {}", unsaid.join(", "), self.reason),
        }
    }
}

impl From<String> for Rejection {
    fn from(reason: String) -> Self {
        Self { reason, names: Vec::new() }
    }
}

/// What a response came to.
#[derive(Debug)]
pub enum Received {
    /// Changes to accept or reject.
    Update(Update),
    /// It was malformed and nothing of it is used: send this rejection.
    Malformed(Box<Request>),
    /// A type we never asked for, or the other protocol.
    Ignored,
}

#[derive(Debug, Default)]
struct TypeState {
    wanted: Wanted,
    /// Versions of accepted resources.
    versions: BTreeMap<Arc<str>, Arc<str>>,
    /// Version of the last accepted response.
    version: String,
    /// Nonce of the last response on this stream.
    nonce: String,
    /// This stream has carried a request of the type.
    asked: bool,
}

/// See the module.
#[derive(Debug)]
pub struct ClientSession {
    mode: Mode,
    node: Node,
    connected: bool,
    types: [TypeState; ResourceType::COUNT],
}

impl ClientSession {
    /// A session that is not connected yet.
    pub fn new(mode: Mode, node: Node) -> Self {
        Self { mode, node, connected: false, types: Default::default() }
    }

    /// The protocol spoken.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What is accepted of a type: name → version.
    pub fn versions(&self, ty: ResourceType) -> &BTreeMap<Arc<str>, Arc<str>> {
        &self.types[ty.index()].versions
    }

    /// Version of the last accepted response of a type, empty before the first.
    pub fn version(&self, ty: ResourceType) -> &str {
        &self.types[ty.index()].version
    }

    /// Declares resources as held and accepted, from a saved config.
    pub fn seed(
        &mut self,
        ty: ResourceType,
        resources: impl IntoIterator<Item = (Arc<str>, Arc<str>)>,
    ) {
        self.types[ty.index()].versions.extend(resources);
    }

    /// Sets the whole subscription of a type. Returns the request to send, if
    /// connected and something changed. Resources no longer wanted are forgotten.
    pub fn subscribe(&mut self, ty: ResourceType, wanted: Wanted) -> Option<Request> {
        let connected = self.connected;
        let state = &mut self.types[ty.index()];
        if state.wanted == wanted {
            return None;
        }
        let old = std::mem::replace(&mut state.wanted, wanted);
        let TypeState { wanted, versions, .. } = state;
        versions.retain(|name, _| wanted.wants(name));
        if !connected {
            return None;
        }
        match state.asked {
            false => self.first_request(ty),
            true => Some(self.change_request(ty, &old)),
        }
    }

    /// A new stream is open: the requests to send on it, first of all.
    pub fn reconnect(&mut self) -> Vec<Request> {
        self.connected = true;
        for state in &mut self.types {
            state.nonce.clear();
            state.asked = false;
        }
        let mut node = Some(self.node.clone());
        let mut requests = Vec::new();
        for ty in ResourceType::PUSH_ORDER {
            let Some(mut request) = self.first_request(ty) else { continue };
            match &mut request {
                Request::Sotw(request) => request.node = node.take(),
                Request::Delta(request) => request.node = node.take(),
            }
            requests.push(request);
        }
        requests
    }

    /// The stream is gone. What was accepted stays.
    pub fn disconnected(&mut self) {
        self.connected = false;
    }

    /// Takes in one response.
    pub fn on_response(&mut self, response: Response) -> Received {
        let Some(ty) = ResourceType::from_url(response.type_url()) else {
            return Received::Ignored;
        };
        if self.types[ty.index()].wanted == Wanted::Nothing {
            return Received::Ignored;
        }
        let read = match (self.mode, response) {
            (Mode::Sotw, Response::Sotw(response)) => {
                self.types[ty.index()].nonce.clone_from(&response.nonce);
                self.read_sotw(ty, response)
            }
            (Mode::Delta, Response::Delta(response)) => {
                self.types[ty.index()].nonce.clone_from(&response.nonce);
                self.read_delta(ty, response)
            }
            _ => return Received::Ignored,
        };
        match read {
            Ok(update) => Received::Update(update),
            Err(reason) => {
                let nonce = self.types[ty.index()].nonce.clone();
                Received::Malformed(Box::new(self.answer(ty, nonce, Some(reason))))
            }
        }
    }

    /// The update is in use: returns the ACK to send.
    pub fn accept(&mut self, update: &Update) -> Request {
        let state = &mut self.types[update.ty.index()];
        state.version.clone_from(&update.version);
        state.commit(update, &[]);
        self.answer(update.ty, update.nonce.clone(), None)
    }

    /// The update, or part of it, is not in use: returns the NACK to send.
    pub fn reject(&mut self, update: &Update, rejection: &Rejection) -> Request {
        if !rejection.names.is_empty() {
            self.types[update.ty.index()].commit(update, &rejection.names);
        }
        self.answer(update.ty, update.nonce.clone(), Some(rejection.text()))
    }

    fn read_sotw(
        &self,
        ty: ResourceType,
        response: wire::DiscoveryResponse,
    ) -> Result<Update, String> {
        let state = &self.types[ty.index()];
        let mut upserts = Vec::new();
        let mut present = BTreeSet::new();
        for any in response.resources {
            let resource = unwrap(ty, any)?;
            if !state.wanted.wants(&resource.name) {
                continue;
            }
            present.insert(Arc::clone(&resource.name));
            if state.versions.get(&resource.name) != Some(&resource.version) {
                upserts.push(resource);
            }
        }
        let removes = match ty.sotw_is_complete() {
            true => state.versions.keys().filter(|n| !present.contains(*n)).cloned().collect(),
            false => Vec::new(),
        };
        let wire::DiscoveryResponse { version_info: version, nonce, .. } = response;
        Ok(Update { ty, version, upserts, removes, nonce })
    }

    fn read_delta(
        &self,
        ty: ResourceType,
        response: wire::DeltaDiscoveryResponse,
    ) -> Result<Update, String> {
        let state = &self.types[ty.index()];
        let mut upserts = Vec::new();
        for resource in response.resources {
            let any = resource.resource.ok_or_else(|| format!("{ty}: no body in a resource"))?;
            check_type(ty, &any)?;
            let name = match (ty, resource.name.as_str()) {
                (ResourceType::NameTable, _) => nds::NAME,
                (_, "") => return Err(format!("{ty}: a resource has no name")),
                (_, name) => name,
            };
            if state.wanted.wants(name) {
                upserts.push(Resource {
                    name: name.into(),
                    version: resource.version.into(),
                    body: detach(&any.value),
                });
            }
        }
        let removes = response.removed_resources.into_iter().map(Arc::from).collect();
        let wire::DeltaDiscoveryResponse { system_version_info: version, nonce, .. } = response;
        Ok(Update { ty, version, upserts, removes, nonce })
    }

    fn first_request(&mut self, ty: ResourceType) -> Option<Request> {
        let mode = self.mode;
        let state = &mut self.types[ty.index()];
        let names: Vec<String> = match (&state.wanted, mode) {
            (Wanted::Nothing, _) => return None,
            // Asking for no names would mean asking for all of them.
            (Wanted::Names(names), _) if names.is_empty() => return None,
            (Wanted::Names(names), _) => names.iter().map(ToString::to_string).collect(),
            (Wanted::All, Mode::Sotw) => Vec::new(),
            (Wanted::All, Mode::Delta) => vec!["*".to_owned()],
        };
        state.asked = true;
        Some(match mode {
            Mode::Sotw => Request::Sotw(DiscoveryRequest {
                version_info: state.version.clone(),
                resource_names: names,
                type_url: ty.url().to_owned(),
                ..DiscoveryRequest::default()
            }),
            Mode::Delta => Request::Delta(DeltaDiscoveryRequest {
                type_url: ty.url().to_owned(),
                resource_names_subscribe: names,
                initial_resource_versions: state
                    .versions
                    .iter()
                    .map(|(name, version)| (name.to_string(), version.to_string()))
                    .collect(),
                ..DeltaDiscoveryRequest::default()
            }),
        })
    }

    fn change_request(&self, ty: ResourceType, old: &Wanted) -> Request {
        let state = &self.types[ty.index()];
        match self.mode {
            Mode::Sotw => self.answer(ty, state.nonce.clone(), None),
            Mode::Delta => {
                let (old, new) = (name_list(old), name_list(&state.wanted));
                Request::Delta(DeltaDiscoveryRequest {
                    type_url: ty.url().to_owned(),
                    resource_names_subscribe: new.difference(&old).cloned().collect(),
                    resource_names_unsubscribe: old.difference(&new).cloned().collect(),
                    ..DeltaDiscoveryRequest::default()
                })
            }
        }
    }

    fn answer(&self, ty: ResourceType, nonce: String, error: Option<String>) -> Request {
        let state = &self.types[ty.index()];
        let error_detail =
            error.map(|message| Status { code: INVALID_ARGUMENT, message, ..Status::default() });
        match self.mode {
            Mode::Sotw => Request::Sotw(DiscoveryRequest {
                version_info: state.version.clone(),
                resource_names: match &state.wanted {
                    Wanted::Names(names) => names.iter().map(ToString::to_string).collect(),
                    Wanted::All | Wanted::Nothing => Vec::new(),
                },
                type_url: ty.url().to_owned(),
                response_nonce: nonce,
                error_detail,
                ..DiscoveryRequest::default()
            }),
            Mode::Delta => Request::Delta(DeltaDiscoveryRequest {
                type_url: ty.url().to_owned(),
                response_nonce: nonce,
                error_detail,
                ..DeltaDiscoveryRequest::default()
            }),
        }
    }
}

impl TypeState {
    fn commit(&mut self, update: &Update, except: &[Arc<str>]) {
        for resource in &update.upserts {
            // The subscription may have changed since.
            if !except.contains(&resource.name) && self.wanted.wants(&resource.name) {
                self.versions.insert(Arc::clone(&resource.name), Arc::clone(&resource.version));
            }
        }
        for name in &update.removes {
            if !except.contains(name) {
                self.versions.remove(name);
            }
        }
    }
}

fn name_list(wanted: &Wanted) -> BTreeSet<String> {
    match wanted {
        Wanted::Nothing => BTreeSet::new(),
        Wanted::All => BTreeSet::from(["*".to_owned()]),
        Wanted::Names(names) => names.iter().map(ToString::to_string).collect(),
    }
}

fn unwrap(ty: ResourceType, any: wire::Any) -> Result<Resource, String> {
    if any.type_url == WRAPPER {
        let wrapped = <wire::Resource as prost::Message>::decode(any.value)
            .map_err(|error| format!("{ty}: malformed wrapper: {error}"))?;
        let any = wrapped.resource.ok_or_else(|| format!("{ty}: empty wrapper"))?;
        check_type(ty, &any)?;
        let name = if ty == ResourceType::NameTable { nds::NAME } else { &wrapped.name };
        return Ok(Resource::from_body(name, detach(&any.value)));
    }
    check_type(ty, &any)?;
    // The one resource of its type; Istio's has no name.
    if ty == ResourceType::NameTable {
        return Ok(Resource::from_body(nds::NAME, detach(&any.value)));
    }
    let name = wire::resource_name(&any.value)
        .ok_or_else(|| format!("{ty}: a resource is malformed or has no name"))?;
    Ok(Resource::from_body(name, detach(&any.value)))
}

fn check_type(ty: ResourceType, any: &wire::Any) -> Result<(), String> {
    match any.type_url == ty.url() {
        true => Ok(()),
        false => Err(format!("{ty}: a resource is of type {}", any.type_url)),
    }
}

/// A copy of its own: a slice would keep the whole response in memory for as
/// long as one of its resources lives.
fn detach(body: &bytes::Bytes) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(body)
}
