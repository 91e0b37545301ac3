//! Where resources come from. A source turns what it watches into [`crate::world::Event`]s and
//! knows nothing of what they cause.

pub mod dir;
pub mod kube;
