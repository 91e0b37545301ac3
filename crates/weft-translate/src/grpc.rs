//! x
use crate::listener::Built;
use crate::findings::Findings;
use crate::scope::Scope;
pub(crate) fn all(_scope: &Scope<'_>, _built: &mut Built, _findings: &mut Findings) {}
