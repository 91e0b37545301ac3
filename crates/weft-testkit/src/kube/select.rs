//! `labelSelector` and `fieldSelector`, equality only.

use serde_json::Value;

use super::store::Refusal;

/// All must hold.
#[derive(Debug, Clone, Default)]
pub(super) struct Selectors {
    tests: Vec<Test>,
}

#[derive(Debug, Clone)]
struct Test {
    /// JSON pointer.
    pointer: String,
    wanted: Wanted,
}

#[derive(Debug, Clone)]
enum Wanted {
    Is(String),
    IsNot(String),
    Exists,
}

impl Selectors {
    pub(super) fn parse(labels: &str, fields: &str) -> Result<Self, Refusal> {
        let mut tests = Vec::new();
        for part in labels.split(',').filter(|part| !part.is_empty()) {
            let (name, wanted) = parse(part)?;
            let name = name.replace('~', "~0").replace('/', "~1");
            tests.push(Test { pointer: format!("/metadata/labels/{name}"), wanted });
        }
        for part in fields.split(',').filter(|part| !part.is_empty()) {
            let (name, wanted) = parse(part)?;
            tests.push(Test { pointer: format!("/{}", name.replace('.', "/")), wanted });
        }
        Ok(Selectors { tests })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tests.is_empty()
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        self.tests.iter().all(|test| {
            let found = object.pointer(&test.pointer).and_then(Value::as_str);
            match &test.wanted {
                Wanted::Is(value) => found.unwrap_or_default() == value,
                Wanted::IsNot(value) => found.unwrap_or_default() != value,
                Wanted::Exists => found.is_some(),
            }
        })
    }
}

fn parse(part: &str) -> Result<(&str, Wanted), Refusal> {
    if part.contains([' ', '(', ')', '!']) && !part.contains("!=") {
        let why = format!("the test server does not know the selector {part:?}");
        return Err(Refusal::new(400, "BadRequest", why));
    }
    Ok(match (part.split_once("!="), part.split_once('=')) {
        (Some((name, value)), _) => (name, Wanted::IsNot(value.to_owned())),
        (None, Some((name, value))) => (name, Wanted::Is(value.trim_start_matches('=').to_owned())),
        (None, None) => (part, Wanted::Exists),
    })
}
