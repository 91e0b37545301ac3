//! Requests of a client: answers to what was sent, and subscriptions.
//!
//! In state-of-the-world the names of a request are the whole subscription, and
//! a request with an old nonce says nothing that a later one will not repeat. In
//! delta a request carries changes, which count whatever its nonce.
//! Must not know resources.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::{Action, Mode, ServerSession, SessionError, TypeState};
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use crate::session::Request;
use crate::type_url::ResourceType;

/// The name that stands for everything.
const WILDCARD: &str = "*";
/// Longest rejection text we keep, in bytes.
const NACK_BYTES_MAX: usize = 4096;

impl ServerSession {
    /// Takes in one request. `None` if it is about a type we do not serve.
    ///
    /// # Errors
    /// The client broke a limit; the stream should end.
    pub fn on_request(&mut self, request: &Request) -> Result<Option<Action>, SessionError> {
        let Some(ty) = ResourceType::from_url(request.type_url()) else { return Ok(None) };
        match (self.mode, request) {
            (Mode::Sotw, Request::Sotw(sotw)) => {
                self.check(ty, &sotw.resource_names)?;
                Ok(Some(self.on_sotw(ty, request, sotw)))
            }
            (Mode::Delta, Request::Delta(delta)) => {
                self.check(ty, &delta.resource_names_subscribe)?;
                self.check(ty, delta.initial_resource_versions.keys())?;
                let action = self.on_delta(ty, request, delta);
                let max = self.limits.names_max;
                match self.types[ty.index()].subscription.names.len() > max {
                    true => Err(SessionError::TooManyNames { ty, max }),
                    false => Ok(Some(action)),
                }
            }
            _ => Err(SessionError::WrongMode),
        }
    }

    fn check<'a, I>(&self, ty: ResourceType, names: I) -> Result<(), SessionError>
    where
        I: IntoIterator<Item = &'a String, IntoIter: ExactSizeIterator>,
    {
        let names = names.into_iter();
        let (max, bytes_max) = (self.limits.names_max, self.limits.name_bytes_max);
        if names.len() > max {
            return Err(SessionError::TooManyNames { ty, max });
        }
        for name in names {
            if name.len() > bytes_max {
                return Err(SessionError::NameTooLong { ty, max: bytes_max });
            }
        }
        Ok(())
    }

    fn on_sotw(&mut self, ty: ResourceType, raw: &Request, request: &DiscoveryRequest) -> Action {
        let state = &mut self.types[ty.index()];
        let mut action = Action::new(ty, !state.asked);
        if state.asked && !request.response_nonce.is_empty() {
            let newest = state.answers.sent.as_ref().map(|stamp| &*stamp.nonce);
            if newest != Some(request.response_nonce.as_str()) {
                action.stale = true;
                return action;
            }
            state.answered(raw, &mut action);
        }
        state.asked = true;
        let (mut wildcard, mut names) = (false, BTreeSet::new());
        for name in &request.resource_names {
            match name.as_str() {
                WILDCARD => wildcard = true,
                name => _ = names.insert(Arc::from(name)),
            }
        }
        state.explicit |= !request.resource_names.is_empty();
        wildcard |= ty.has_wildcard() && !state.explicit;
        state.replace_subscription(wildcard, names, &mut action);
        state.answer |= action.first || !action.subscribed.is_empty();
        action
    }

    fn on_delta(
        &mut self,
        ty: ResourceType,
        raw: &Request,
        request: &DeltaDiscoveryRequest,
    ) -> Action {
        let state = &mut self.types[ty.index()];
        let mut action = Action::new(ty, !state.asked);
        if !request.response_nonce.is_empty() && !action.first {
            state.answered(raw, &mut action);
        }
        state.asked = true;
        if action.first {
            state.mark_all();
        }
        if action.first && request.resource_names_subscribe.is_empty() && ty.has_wildcard() {
            state.subscribe_all(&mut action);
        }
        let known: HashMap<String, String> = match action.first {
            true => request.initial_resource_versions.clone(),
            false => HashMap::new(),
        };
        for name in &request.resource_names_subscribe {
            match name.as_str() {
                WILDCARD => state.subscribe_all(&mut action),
                name => state.subscribe(name, known.contains_key(name), &mut action),
            }
        }
        // A client that starts with nothing waits for a first answer, also for "nothing".
        state.answer |= action.first && state.subscription.wildcard && known.is_empty();
        for (name, version) in &known {
            if state.subscription.wants(name) {
                state.held.insert_claim(&Arc::from(name.as_str()), version);
            }
        }
        for name in &request.resource_names_unsubscribe {
            state.unsubscribe(name, &mut action);
        }
        action
    }
}

impl Action {
    fn new(ty: ResourceType, first: bool) -> Self {
        Self {
            ty,
            first,
            subscribed: Vec::new(),
            unsubscribed: Vec::new(),
            acked: None,
            nacked: None,
            stale: false,
        }
    }
}

impl TypeState {
    fn answered(&mut self, request: &Request, action: &mut Action) {
        let answers = &mut self.answers;
        let Some(sent) = answers.take(request.nonce()) else {
            // In SotW the newest nonce is repeated by every later subscription
            // change, which is then no answer but not stale either.
            let newest = answers.sent.as_ref();
            action.stale = newest.is_none_or(|newest| &*newest.nonce != request.nonce());
            return;
        };
        match request.error() {
            None => action.acked = Some(answers.ack(sent)),
            Some(error) => {
                let mut message = error.message.clone();
                if message.len() > NACK_BYTES_MAX {
                    let end = message.floor_char_boundary(NACK_BYTES_MAX);
                    message.truncate(end);
                }
                action.nacked = Some(answers.nack(sent, message));
            }
        }
    }

    fn replace_subscription(
        &mut self,
        wildcard: bool,
        names: BTreeSet<Arc<str>>,
        action: &mut Action,
    ) {
        self.told = None;
        let old = &self.subscription;
        if wildcard && !old.wildcard {
            action.subscribed.push(WILDCARD.into());
            self.mark_all();
        } else if !wildcard && self.subscription.wildcard {
            action.unsubscribed.push(WILDCARD.into());
        }
        let old = &self.subscription;
        action.subscribed.extend(names.difference(&old.names).cloned());
        action.unsubscribed.extend(old.names.difference(&names).cloned());
        self.forced.extend(names.difference(&old.names).cloned());
        self.subscription.names = Arc::new(names);
        self.subscription.wildcard = wildcard;
        self.forget_unwanted();
    }

    fn subscribe_all(&mut self, action: &mut Action) {
        if !self.subscription.wildcard {
            action.subscribed.push(WILDCARD.into());
        }
        self.subscription.wildcard = true;
        self.told = None;
        self.mark_all();
    }

    fn subscribe(&mut self, name: &str, holds_it: bool, action: &mut Action) {
        self.told = None;
        let name: Arc<str> = name.into();
        if !self.subscription.names.contains(&name) {
            Arc::make_mut(&mut self.subscription.names).insert(Arc::clone(&name));
            action.subscribed.push(Arc::clone(&name));
        }
        // What it claims to hold is compared by version, all else is sent.
        if !holds_it {
            self.forced.insert(name);
        }
    }

    fn unsubscribe(&mut self, name: &str, action: &mut Action) {
        let known = match name {
            WILDCARD => std::mem::take(&mut self.subscription.wildcard),
            name => {
                self.subscription.names.contains(name)
                    && Arc::make_mut(&mut self.subscription.names).remove(name)
            }
        };
        if known {
            action.unsubscribed.push(name.into());
            self.forget_unwanted();
        }
    }

    /// A client drops what it unsubscribes from.
    fn forget_unwanted(&mut self) {
        self.told = None;
        let subscription = &self.subscription;
        self.held.retain(|name| subscription.wants(name));
        self.forced.retain(|name| subscription.wants(name));
        self.answers.retain(|name| subscription.wants(name));
    }
}
