//! `Headers` of VirtualServices → header edits in Envoy's form.

use std::collections::BTreeMap;

use weft_model::spec::{HeaderOperations, Headers};
use weft_xds::pb::envoy::config::core::v3 as core;
use weft_xds::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;

/// Edits of one level (route or destination).
#[derive(Debug, Default)]
pub(crate) struct Edits {
    pub(crate) request_add: Vec<core::HeaderValueOption>,
    pub(crate) request_remove: Vec<String>,
    pub(crate) response_add: Vec<core::HeaderValueOption>,
    pub(crate) response_remove: Vec<String>,
    /// `set: {Host: …}`: Envoy does not let header edits touch the authority.
    pub(crate) authority: Option<String>,
}

pub(crate) fn edits(headers: Option<&Headers>) -> Edits {
    let mut edits = Edits::default();
    let Some(headers) = headers else { return edits };
    if let Some(request) = &headers.request {
        edits.authority = request
            .set
            .iter()
            .chain(&request.add)
            .find_map(|(name, value)| is_authority(name).then(|| value.clone()));
        edits.request_add = additions(request);
        edits.request_remove = removals(request);
    }
    if let Some(response) = &headers.response {
        edits.response_add = additions(response);
        edits.response_remove = removals(response);
    }
    edits
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

fn additions(operations: &HeaderOperations) -> Vec<core::HeaderValueOption> {
    let set = options(&operations.set, HeaderAppendAction::OverwriteIfExistsOrAdd);
    let add = options(&operations.add, HeaderAppendAction::AppendIfExistsOrAdd);
    set.chain(add).collect()
}

fn options(
    values: &BTreeMap<String, String>,
    action: HeaderAppendAction,
) -> impl Iterator<Item = core::HeaderValueOption> {
    // Other pseudo headers may not be edited at all: Envoy would reject the whole resource.
    let editable = values.iter().filter(|(name, _)| !is_authority(name) && !name.starts_with(':'));
    editable.map(move |(name, value)| core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: name.clone(),
            value: value.clone(),
            ..Default::default()
        }),
        append_action: action as i32,
        ..Default::default()
    })
}

fn removals(operations: &HeaderOperations) -> Vec<String> {
    let removable = |name: &&String| !is_authority(name) && !name.starts_with(':');
    operations.remove.iter().filter(removable).cloned().collect()
}
