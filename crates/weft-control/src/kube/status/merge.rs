//! Our part of a status among what is there already: other controllers' parts stay, and times of
//! conditions that did not change. Pure.

use serde_json::{Map, Value, json};
use weft_model::gateway_api::CONTROLLER;

use super::wanted::{Message, Wanted};

/// The condition that tells Istio's resources what is wrong with them.
const VALID: &str = "Valid";
/// Where Istio describes its own codes.
const CATALOGUE: &str = "https://istio.io/latest/docs/reference/config/analysis/";
/// Findings that one status tells; the control plane's own pages tell all.
const MESSAGES_MAX: usize = 20;

/// Whether it says something that we take back when it is no longer true.
pub(super) fn is_ours(status: &Value) -> bool {
    let has = |list: &str, is: fn(&Value) -> bool| {
        status[list].as_array().is_some_and(|list| list.iter().any(is))
    };
    has("parents", is_own_entry)
        || has("ancestors", is_own_entry)
        || has("validationMessages", |_| true)
        || has("conditions", |one| one["type"] == VALID)
}

fn is_own_entry(entry: &Value) -> bool {
    entry["controllerName"] == CONTROLLER
}

/// The status as it should be.
pub(super) fn merge(before: &Value, wanted: &Wanted, metadata: &Value, now: &str) -> Value {
    let mut status = before.as_object().cloned().unwrap_or_default();
    match wanted {
        Wanted::GatewayApi(wanted) => gateway_api(&mut status, before, wanted, now),
        Wanted::Istio(messages) => istio(&mut status, before, messages, metadata, now),
    }
    match status.is_empty() {
        true => before.clone(),
        false => Value::Object(status),
    }
}

/// A merge patch that makes `before` into `after`: lists whole, and null for what goes.
pub(super) fn patch(before: &Value, mut after: Value) -> Value {
    let gone = before.as_object().into_iter().flat_map(Map::keys);
    if let Some(fields) = after.as_object_mut() {
        for name in gone {
            fields.entry(name.clone()).or_insert(Value::Null);
        }
    }
    after
}

fn gateway_api(status: &mut Map<String, Value>, before: &Value, wanted: &Value, now: &str) {
    for (name, value) in wanted.as_object().into_iter().flatten() {
        let old = &before[name];
        let new = match name.as_str() {
            "conditions" => conditions(old, value, now),
            "listeners" => entries(value, |new| find(old, |one| one["name"] == new["name"]), now),
            "parents" | "ancestors" => {
                let reference = if name == "parents" { "parentRef" } else { "ancestorRef" };
                let same = |new: &Value| {
                    find(old, |one| is_own_entry(one) && one[reference] == new[reference])
                };
                let mut own = entries(value, same, now);
                let others = list(old).filter(|one| !is_own_entry(one)).cloned();
                if let Some(all) = own.as_array_mut() {
                    all.splice(0..0, others);
                }
                own
            }
            _ => value.clone(),
        };
        status.insert(name.clone(), new);
    }
}

/// Each with the times of the conditions it had before.
fn entries<'a>(new: &Value, before: impl Fn(&Value) -> Option<&'a Value>, now: &str) -> Value {
    let timed = list(new).map(|entry| {
        let old = before(entry).map_or(&Value::Null, |one| &one["conditions"]);
        let mut entry = entry.clone();
        entry["conditions"] = conditions(old, &entry["conditions"], now);
        entry
    });
    timed.collect()
}

/// Ours with their times, after those of other types that are there.
fn conditions(old: &Value, new: &Value, now: &str) -> Value {
    let is_ours = |one: &&Value| list(new).any(|new| new["type"] == one["type"]);
    let others = list(old).filter(|one| !is_ours(one)).cloned();
    let own = list(new).map(|new| {
        let same = find(old, |one| one["type"] == new["type"] && one["status"] == new["status"]);
        let since = same.and_then(|one| one["lastTransitionTime"].as_str()).unwrap_or(now);
        let mut timed = new.clone();
        timed["lastTransitionTime"] = since.into();
        timed
    });
    others.chain(own).collect()
}

fn istio(
    status: &mut Map<String, Value>,
    before: &Value,
    messages: &[Message],
    metadata: &Value,
    now: &str,
) {
    let others: Vec<Value> =
        list(&before["conditions"]).filter(|one| one["type"] != VALID).cloned().collect();
    if messages.is_empty() {
        status.shift_remove("validationMessages");
        match others.is_empty() {
            true => drop(status.shift_remove("conditions")),
            false => drop(status.insert("conditions".into(), others.into())),
        }
        return;
    }
    let told = &messages[..messages.len().min(MESSAGES_MAX)];
    let message = |one: &Message| {
        let mut message = json!({
            "type": { "code": one.code, "name": one.code },
            "level": if one.is_error { "ERROR" } else { "WARNING" },
        });
        if one.code.starts_with("IST") {
            let page = one.code.to_ascii_lowercase();
            message["documentationUrl"] = format!("{CATALOGUE}{page}/").into();
        }
        message
    };
    status.insert("validationMessages".into(), told.iter().map(message).collect());
    let texts: Vec<&str> = told.iter().map(|one| one.text.as_str()).collect();
    let is_error = messages.iter().any(|one| one.is_error);
    let valid = json!([{
        "type": VALID,
        "status": if is_error { "False" } else { "True" },
        "reason": if is_error { "Refused" } else { "Doubtful" },
        "message": texts.join("\n"),
        "observedGeneration": metadata["generation"],
    }]);
    status.insert("conditions".into(), conditions(&before["conditions"], &valid, now));
    status.insert("observedGeneration".into(), metadata["generation"].clone());
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn find(value: &Value, is: impl Fn(&Value) -> bool) -> Option<&Value> {
    value.as_array()?.iter().find(|one| is(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_parts_and_old_times_stay() {
        let condition = |status: &str, time: &str| json!({"type": "Accepted", "status": status, "lastTransitionTime": time});
        let entry = |controller: &str, name: &str, condition: Value| json!({"parentRef": {"name": name}, "controllerName": controller, "conditions": [condition]});
        let before = json!({"parents": [
            entry("other", "a", condition("True", "t0")),
            entry(CONTROLLER, "a", condition("True", "t1")),
            entry(CONTROLLER, "b", condition("True", "t1")),
            entry(CONTROLLER, "gone", condition("True", "t1")),
        ]});
        let untimed = |status: &str| json!({"type": "Accepted", "status": status});
        let wanted = Wanted::GatewayApi(json!({"parents": [
            entry(CONTROLLER, "a", untimed("True")), entry(CONTROLLER, "b", untimed("False")),
        ]}));
        let after = merge(&before, &wanted, &Value::Null, "t2");
        let expect = json!({"parents": [
            entry("other", "a", condition("True", "t0")),
            entry(CONTROLLER, "a", condition("True", "t1")),
            entry(CONTROLLER, "b", condition("False", "t2")),
        ]});
        assert_eq!(after, expect);
        assert_eq!(merge(&after, &wanted, &Value::Null, "t3"), after, "nothing more to say");
    }

    #[test]
    fn findings_come_and_go() {
        let message = Message { code: "IST0101", is_error: true, text: "IST0101: why".to_owned() };
        let metadata = json!({"generation": 3});
        let other = json!({"type": "Reconciled", "status": "True"});
        let before = json!({"conditions": [other]});
        let told = merge(&before, &Wanted::Istio(vec![message]), &metadata, "t");
        assert!(is_ours(&told));
        assert_eq!(told["conditions"][0], other);
        assert_eq!(told["conditions"][1]["status"], "False");
        assert_eq!(told["validationMessages"][0]["level"], "ERROR");
        assert_eq!(told["observedGeneration"], 3);
        let back = merge(&told, &Wanted::Istio(Vec::new()), &metadata, "t");
        assert!(!is_ours(&back));
        assert_eq!(patch(&told, back)["validationMessages"], Value::Null);
        let silent = merge(&Value::Null, &Wanted::Istio(Vec::new()), &metadata, "t");
        assert_eq!(silent, Value::Null, "nothing to say, nothing written");
    }
}
