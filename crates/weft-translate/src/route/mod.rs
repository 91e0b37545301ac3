//! VirtualServices → routes. `rules` turns one VirtualService into routes for one place;
//! `vhost` assembles the route configurations of sidecars.

pub(crate) mod action;
pub(crate) mod api;
mod delegate;
mod filters;
mod hash;
mod headers;
pub(crate) mod matching;
mod retry;
mod rules;
pub(crate) mod vhost;

pub(crate) use rules::{Place, default_route, of_virtual_service, source_matches};
