//! Which traffic of a pod enters its proxy.
//!
//! [`CaptureSpec`] says it (Istio's init flags), [`RuleSet`] is what the kernel is told, and
//! [`iptables`] and [`nft`] are its two spellings. [`inject`] puts them and a proxy into a pod. Pure: no processes, no files. Must not know
//! proxies or who runs `iptables-restore`.

pub mod inject;
pub mod iptables;
pub mod nft;
mod rules;
pub mod spec;

pub use rules::{Chain, Condition, Family, Protocol, Rule, RuleSet, State, Table, Test, Verdict};
pub use spec::{CaptureSpec, Dns, Group, Groups, Mode, Net, PortSet, RangeSet, SpecError};
