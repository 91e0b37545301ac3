//! Header edits of routes, in Envoy's order: removals first, then additions with their append action.
//!
//! Values are format strings, parsed once ([`Format`]). A value that comes out empty is not added unless
//! the edit says so.

use smallvec::SmallVec;
use weft_http::{HeaderList, RequestHead};

pub use crate::format::{Format, FormatContext, FormatError};

/// The edits of one level (route, virtual host, …) for one direction.
#[derive(Debug, Clone, Default)]
pub struct HeaderEdits {
    pub remove: Vec<Box<str>>,
    pub edits: Vec<HeaderEdit>,
}

/// `HeaderValueOption`.
#[derive(Debug, Clone)]
pub struct HeaderEdit {
    /// As configured; never a pseudo header or `host`, which rewrites change.
    pub name: Box<str>,
    pub value: Format,
    pub action: AppendAction,
    pub keep_empty: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendAction {
    AppendIfExistsOrAdd,
    AddIfAbsent,
    OverwriteIfExistsOrAdd,
    OverwriteIfExists,
}

impl HeaderEdits {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.edits.is_empty()
    }

    /// Edits a request head.
    pub fn apply_request(&self, head: &mut RequestHead, context: &FormatContext<'_>) {
        for name in &self.remove {
            head.headers.remove(&**name);
        }
        let (overwrites, additions) = self.plan(Some(head), &head.headers, None, context);
        for (edit, value) in overwrites {
            head.headers.set(&*edit.name, value);
        }
        for (edit, value) in additions {
            head.headers.append(&*edit.name, value);
        }
    }

    /// Edits response headers. `request` is what `%REQ(X)%` reads.
    pub fn apply_response(
        &self,
        headers: &mut HeaderList,
        request: Option<&RequestHead>,
        context: &FormatContext<'_>,
    ) {
        for name in &self.remove {
            headers.remove(&**name);
        }
        let (overwrites, additions) = self.plan(request, headers, Some(headers), context);
        for (edit, value) in overwrites {
            headers.set(&*edit.name, value);
        }
        for (edit, value) in additions {
            headers.append(&*edit.name, value);
        }
    }

    /// What to overwrite and what to add. As Envoy does it, all values and all conditions look at the
    /// fields as they were before this level's additions, and overwrites come before additions.
    fn plan(
        &self,
        request: Option<&RequestHead>,
        fields: &HeaderList,
        response: Option<&HeaderList>,
        context: &FormatContext<'_>,
    ) -> (Planned<'_>, Planned<'_>) {
        let (mut overwrites, mut additions) = (Planned::new(), Planned::new());
        for edit in &self.edits {
            let list = match (edit.action, fields.contains(&*edit.name)) {
                (AppendAction::AppendIfExistsOrAdd, _) | (AppendAction::AddIfAbsent, false) => {
                    &mut additions
                }
                (AppendAction::OverwriteIfExistsOrAdd, _)
                | (AppendAction::OverwriteIfExists, true) => &mut overwrites,
                (AppendAction::AddIfAbsent, true) | (AppendAction::OverwriteIfExists, false) => {
                    continue;
                }
            };
            let value = edit.value.render(request, response, context);
            if !value.is_empty() || edit.keep_empty {
                list.push((edit, value));
            }
        }
        (overwrites, additions)
    }
}

type Planned<'e> = SmallVec<[(&'e HeaderEdit, Vec<u8>); 4]>;

#[cfg(test)]
mod tests;
