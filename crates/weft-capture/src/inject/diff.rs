//! The difference of two JSON values as a JSON patch, RFC 6902.

use serde_json::{Value, json};

/// Operations that make `from` into `to`. Lists that differ are replaced as a whole.
pub fn json_patch(from: &Value, to: &Value) -> Value {
    let mut operations = Vec::new();
    walk(from, to, &mut String::new(), &mut operations);
    Value::Array(operations)
}

fn walk(from: &Value, to: &Value, path: &mut String, operations: &mut Vec<Value>) {
    let (Value::Object(old), Value::Object(new)) = (from, to) else {
        if from != to {
            operations.push(json!({"op": "replace", "path": path, "value": to}));
        }
        return;
    };
    let length = path.len();
    for (key, value) in old {
        path.push('/');
        // RFC 6901, section 3.
        path.push_str(&key.replace('~', "~0").replace('/', "~1"));
        match new.get(key) {
            Some(wanted) => walk(value, wanted, path, operations),
            None => operations.push(json!({"op": "remove", "path": path})),
        }
        path.truncate(length);
    }
    for (key, value) in new.iter().filter(|(key, _)| !old.contains_key(*key)) {
        path.push('/');
        path.push_str(&key.replace('~', "~0").replace('/', "~1"));
        operations.push(json!({"op": "add", "path": path, "value": value}));
        path.truncate(length);
    }
}
