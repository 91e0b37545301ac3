//! AdmissionReview, `admission.k8s.io/v1`: what is asked, and what is answered.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use weft_capture::inject::{MeshSettings, Outcome, inject_pod, json_patch, pod_owner};
use weft_model::{Change, ChangeKind, Diagnostic, Snapshot, parse_yaml};

/// Findings that fit an answer: API servers cut long ones off.
const FINDINGS_MAX: usize = 16;

/// One question of the API server.
pub(super) struct Review {
    uid: String,
    namespace: String,
    object: Value,
    api_version: Value,
}

/// What it is told.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// Go on, with warnings for whoever asked.
    Allowed(Vec<String>),
    /// Go on with these changes.
    Patch(Value),
    /// Do not store it.
    Denied(String),
}

impl Review {
    pub(super) fn parse(body: &[u8]) -> Result<Review, String> {
        let mut review: Value =
            serde_json::from_slice(body).map_err(|error| format!("no JSON: {error}"))?;
        let request = review["request"].take();
        let text = |key: &str| request[key].as_str().unwrap_or_default().to_owned();
        let (uid, namespace) = (text("uid"), text("namespace"));
        if review["kind"] != "AdmissionReview" || uid.is_empty() {
            return Err("no AdmissionReview with a request".into());
        }
        let object = request["object"].clone();
        Ok(Review { uid, namespace, object, api_version: review["apiVersion"].take() })
    }

    pub(super) fn name(&self) -> &str {
        let metadata = &self.object["metadata"];
        metadata["name"].as_str().or(metadata["generateName"].as_str()).unwrap_or_default()
    }

    pub(super) fn inject(&self, settings: &MeshSettings) -> Answer {
        let mut pod = self.object.clone();
        let owner = pod_owner(&pod);
        match inject_pod(&mut pod, self.namespace(), owner.as_ref(), settings) {
            Ok(Outcome::Injected) => Answer::Patch(json_patch(&self.object, &pod)),
            Ok(Outcome::Skipped(_)) => Answer::Allowed(Vec::new()),
            Err(error) => Answer::Denied(error.to_string()),
        }
    }

    /// The checks of `weft analyze` on the object alone decide; what it is beside others, who may
    /// come later, only warns.
    pub(super) fn validate(&self, snapshot: &Snapshot) -> Answer {
        if self.object.is_null() {
            // Deletions have no object.
            return Answer::Allowed(Vec::new());
        }
        let mut object = self.object.clone();
        if object["metadata"]["namespace"].is_null() && !self.namespace.is_empty() {
            object["metadata"]["namespace"] = json!(self.namespace);
        }
        // JSON is YAML.
        let (objects, mut found) = parse_yaml("", &object.to_string());
        let errors: Vec<String> =
            found.iter().filter(|one| one.is_error()).map(shown).take(FINDINGS_MAX).collect();
        if !errors.is_empty() {
            return Answer::Denied(errors.join("; "));
        }
        for object in objects {
            let Some(key) = object.key() else { continue };
            let change = Change { key: key.clone(), kind: ChangeKind::Upsert(object) };
            let (world, _) = snapshot.apply(vec![change]);
            let of_it = |one: &&Diagnostic| one.resource.as_ref() == Some(&key);
            found.extend(world.diagnostics().iter().filter(of_it).cloned());
        }
        Answer::Allowed(found.iter().map(shown).take(FINDINGS_MAX).collect())
    }

    fn namespace(&self) -> &str {
        let own = self.object["metadata"]["namespace"].as_str();
        if self.namespace.is_empty() { own.unwrap_or("default") } else { &self.namespace }
    }

    /// The review to send back.
    pub(super) fn answer(&self, answer: Answer) -> Value {
        let mut response = json!({"uid": self.uid, "allowed": true});
        match answer {
            Answer::Allowed(warnings) if warnings.is_empty() => {}
            Answer::Allowed(warnings) => response["warnings"] = json!(warnings),
            Answer::Patch(patch) => {
                response["patchType"] = json!("JSONPatch");
                response["patch"] = json!(STANDARD.encode(patch.to_string()));
            }
            Answer::Denied(why) => {
                response["allowed"] = json!(false);
                response["status"] = json!({"code": 400, "message": why});
            }
        }
        json!({"apiVersion": self.api_version, "kind": "AdmissionReview", "response": response})
    }
}

fn shown(finding: &Diagnostic) -> String {
    let path = if finding.path.is_empty() { "" } else { ": " };
    let help = if finding.help.is_empty() { "" } else { " " };
    let Diagnostic { code, path: at, message, help: todo, .. } = finding;
    format!("[{code}] {at}{path}{message}{help}{todo}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(object: &Value) -> Review {
        let body = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {"uid": "u-1", "namespace": "shop", "operation": "CREATE", "object": object},
        });
        Review::parse(body.to_string().as_bytes()).unwrap()
    }

    fn virtual_service(host: &str) -> Value {
        json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": "a"},
            "spec": {"hosts": [host], "http": [{"route": [{"destination": {"host": "nobody"}}]}]},
        })
    }

    #[test]
    fn errors_of_the_object_deny_and_those_beside_others_warn() {
        let world = Snapshot::default();
        let Answer::Denied(why) = review(&virtual_service("")).validate(&world) else { panic!() };
        assert!(why.contains("spec.hosts"), "{why}");
        let Answer::Allowed(warnings) = review(&virtual_service("a")).validate(&world) else {
            panic!()
        };
        assert!(warnings.iter().any(|one| one.contains("nobody")), "{warnings:?}");
        assert_eq!(review(&Value::Null).validate(&world), Answer::Allowed(vec![]));
        // Kinds we do not know are not ours to judge.
        let other =
            json!({"apiVersion": "example.com/v1", "kind": "Other", "metadata": {"name": "x"}});
        assert!(matches!(review(&other).validate(&world), Answer::Allowed(_)));
    }

    #[test]
    fn answers_have_the_shape_of_the_api() {
        let review = review(&Value::Null);
        let answer = review.answer(Answer::Denied("no".into()));
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(
            answer["response"],
            json!({"uid": "u-1", "allowed": false, "status": {"code": 400, "message": "no"}})
        );
        let answer = review.answer(Answer::Patch(json!([])));
        assert_eq!(answer["response"]["patch"], "W10=");
        for wrong in ["", "{}", r#"{"kind": "AdmissionReview", "request": {}}"#] {
            assert!(Review::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
