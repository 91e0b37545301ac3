//! What was sent, acknowledged and rejected, for readiness and status pages.
//!
//! Must not know resources.

use std::sync::Arc;

use super::{ServerSession, TypeState};
use crate::type_url::ResourceType;

/// Most responses of a type we remember as unanswered; older ones count as ignored.
const OUTSTANDING_MAX: usize = 64;

/// One response: the version of the set it brought the client to, and its nonce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub version: Arc<str>,
    pub nonce: Arc<str>,
}

/// A rejected response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nack {
    pub stamp: Stamp,
    /// The client's words.
    pub message: String,
}

/// The state of one type on one stream.
#[derive(Clone, Debug)]
pub struct TypeStatus {
    /// The client asked for this type.
    pub asked: bool,
    /// How many resources the client was sent and should hold.
    pub resources: usize,
    /// Version of the set the client should hold.
    pub version: String,
    /// The newest response.
    pub sent: Option<Stamp>,
    /// The newest acknowledged one.
    pub acked: Option<Stamp>,
    /// The newest rejected one, until a later one is acknowledged.
    pub nacked: Option<Nack>,
    /// Responses not answered yet.
    pub outstanding: usize,
}

impl ServerSession {
    /// The state of a type.
    pub fn status(&self, ty: ResourceType) -> TypeStatus {
        let state = &self.types[ty.index()];
        TypeStatus {
            asked: state.asked,
            resources: state.held.len(),
            version: state.held.version(),
            sent: state.sent.clone(),
            acked: state.acked.clone(),
            nacked: state.nacked.clone(),
            outstanding: state.outstanding.len(),
        }
    }
}

impl TypeState {
    pub(super) fn note_sent(&mut self, stamp: Stamp) {
        if self.outstanding.len() == OUTSTANDING_MAX {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back(stamp.clone());
        self.sent = Some(stamp);
    }

    /// Takes an answered response off the outstanding ones. Earlier ones that a
    /// client skipped count as answered with it. `None` for an unknown nonce.
    pub(super) fn take_outstanding(&mut self, nonce: &str) -> Option<Stamp> {
        let at = self.outstanding.iter().position(|stamp| &*stamp.nonce == nonce)?;
        self.outstanding.drain(..=at).next_back()
    }
}
