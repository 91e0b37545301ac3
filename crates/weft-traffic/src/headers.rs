//! Header edits of routes, in Envoy's order: removals first, then additions with their append action.
//!
//! Values are format strings, parsed once ([`Format`]). A value that comes out empty is not added unless
//! the edit says so.

mod format;

use bytes::Bytes;
use weft_http::{HeaderList, RequestHead, Target};

pub use format::{Format, FormatContext, FormatError};

/// The edits of one level (route, virtual host, …) for one direction.
#[derive(Debug, Clone, Default)]
pub struct HeaderEdits {
    pub remove: Vec<Box<str>>,
    pub edits: Vec<HeaderEdit>,
}

/// `HeaderValueOption`.
#[derive(Debug, Clone)]
pub struct HeaderEdit {
    /// As configured; `:authority` (also as `host`) and `:path` may be overwritten in requests.
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
        for edit in &self.edits {
            let value = edit.value.render(Some(head), None, context);
            if value.is_empty() && !edit.keep_empty {
                continue;
            }
            match &*edit.name {
                ":authority" | "host" => set_authority(head, value),
                ":path" => set_path(head, value),
                name => edit.action.apply(&mut head.headers, name, &value),
            }
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
        for edit in &self.edits {
            let value = edit.value.render(request, Some(headers), context);
            if !value.is_empty() || edit.keep_empty {
                edit.action.apply(headers, &edit.name, &value);
            }
        }
    }
}

impl AppendAction {
    fn apply(self, headers: &mut HeaderList, name: &str, value: &[u8]) {
        match (self, headers.contains(name)) {
            (AppendAction::AppendIfExistsOrAdd, _) => headers.append(name, value),
            (AppendAction::AddIfAbsent, false) => headers.append(name, value),
            (AppendAction::AddIfAbsent, true) => {}
            (AppendAction::OverwriteIfExistsOrAdd, _) => headers.set(name, value),
            (AppendAction::OverwriteIfExists, true) => headers.set(name, value),
            (AppendAction::OverwriteIfExists, false) => {}
        }
    }
}

/// A value with bytes that may not stand in a host is dropped rather than sent.
fn set_authority(head: &mut RequestHead, value: Vec<u8>) {
    if value.iter().all(|byte| byte.is_ascii_graphic()) {
        head.authority = Some(Bytes::from(value));
    }
}

fn set_path(head: &mut RequestHead, value: Vec<u8>) {
    let is_path = value.first() == Some(&b'/') && value.iter().all(u8::is_ascii_graphic);
    if is_path && matches!(head.target, Target::Path(_)) {
        head.target = Target::Path(Bytes::from(value));
    }
}

#[cfg(test)]
mod tests;
