//! What an API server asks and is answered: AdmissionReview (admission.k8s.io/v1), as far as it is used here.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use musubi::check::Finding;
use serde::Deserialize;
use serde_json::{Value, json};

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// What clients are shown of warnings, in bytes together and one by one: more is cut off by API servers.
const WARNINGS_MAX: usize = 4096;
const WARNING_MAX: usize = 256;

/// What is asked.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// By which the answer is known.
    pub uid: String,
    /// What it is about.
    pub resource: Resource,
    /// The part that is written, `status` for one.
    #[serde(default)]
    pub sub_resource: Option<String>,
    /// The object's name; a new one may have none yet.
    #[serde(default)]
    pub name: Option<String>,
    /// The object's namespace.
    #[serde(default)]
    pub namespace: Option<String>,
    /// What is done with it.
    pub operation: Operation,
    /// The object as it is to be; null when it is deleted.
    #[serde(default)]
    pub object: Value,
    /// The object as it is; null when it is new.
    #[serde(default)]
    pub old_object: Value,
}

/// A resource of the API.
#[derive(Debug, Clone, Deserialize)]
pub struct Resource {
    /// Its group; empty for the core.
    #[serde(default)]
    pub group: String,
    /// Its name in paths.
    pub resource: String,
}

/// What is done with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Operation {
    /// It is new.
    Create,
    /// It is to be another.
    Update,
    /// It goes.
    Delete,
    /// Somebody connects to it.
    Connect,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    api_version: String,
    kind: String,
    request: Option<Request>,
}

impl Request {
    /// Reads a review.
    ///
    /// # Errors
    /// It is none, in one line.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        let review: Review = serde_json::from_slice(body).map_err(|error| format!("no {KIND}: {error}"))?;
        if review.api_version != API_VERSION || review.kind != KIND {
            return Err(format!(
                "no {KIND} of {API_VERSION}: \"{}\" of \"{}\"",
                review.kind.escape_debug(),
                review.api_version.escape_debug()
            ));
        }
        review.request.ok_or_else(|| format!("the {KIND} has no request"))
    }

    /// Whether it is about pods, whole or their status.
    #[must_use]
    pub fn is_about_pods(&self) -> bool {
        let part = self.sub_resource.as_deref().unwrap_or_default();
        self.resource.group.is_empty() && self.resource.resource == "pods" && matches!(part, "" | "status")
    }

    /// Whether it is about definitions.
    #[must_use]
    pub fn is_about_definitions(&self) -> bool {
        self.resource.group == "k8s.cni.cncf.io" && self.resource.resource == "network-attachment-definitions"
    }

    /// The object's namespace; the object itself may leave it out.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }
}

/// What is answered.
#[derive(Debug, Default, PartialEq)]
pub struct Verdict {
    /// Why the write is refused, if it is.
    pub refusal: Option<String>,
    /// What is shown to whoever writes, one line each.
    pub warnings: Vec<String>,
    /// Operations of a JSON patch.
    pub patch: Vec<Value>,
}

impl Verdict {
    /// A refusal.
    #[must_use]
    pub fn refused(why: String) -> Self {
        Self { refusal: Some(why), ..Self::default() }
    }

    /// What findings amount to: errors refuse.
    #[must_use]
    pub fn of(findings: Vec<Finding>) -> Self {
        let (errors, warnings): (Vec<Finding>, Vec<Finding>) = findings.into_iter().partition(Finding::is_error);
        let lines = |findings: Vec<Finding>| findings.iter().map(ToString::to_string).collect::<Vec<String>>();
        let refusal = (!errors.is_empty()).then(|| lines(errors).join("; "));
        Self { refusal, warnings: lines(warnings), patch: Vec::new() }
    }

    /// The review that answers the request with this uid.
    #[must_use]
    pub fn to_json(&self, uid: &str) -> Value {
        let mut response = json!({"uid": uid, "allowed": self.refusal.is_none()});
        if let Some(why) = &self.refusal {
            // One line, whatever an annotation smuggles into it.
            let message = why.replace(char::is_control, " ");
            response["status"] = json!({"code": 403, "reason": "Forbidden", "message": message});
        }
        if !self.warnings.is_empty() {
            response["warnings"] = shown(&self.warnings).into();
        }
        if self.refusal.is_none() && !self.patch.is_empty() {
            response["patchType"] = "JSONPatch".into();
            response["patch"] = BASE64_STANDARD.encode(Value::from(self.patch.clone()).to_string()).into();
        }
        json!({"apiVersion": API_VERSION, "kind": KIND, "response": response})
    }
}

/// Warnings as long as they are shown whole, with a last one that says how many were not.
fn shown(warnings: &[String]) -> Vec<String> {
    let mut shown = Vec::new();
    let mut room = WARNINGS_MAX - WARNING_MAX;
    for (position, warning) in warnings.iter().enumerate() {
        let line: String = warning.replace(char::is_control, " ");
        let end = (0..=line.len().min(WARNING_MAX)).rev().find(|end| line.is_char_boundary(*end)).unwrap_or_default();
        if end > room {
            shown.push(format!("… and {} more", warnings.len() - position));
            break;
        }
        room -= end;
        shown.push(line[..end].to_owned());
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_review_is_said_to_be_none() {
        let rows = [
            ("", "no AdmissionReview: EOF while parsing a value at line 1 column 0"),
            ("[]", "no AdmissionReview: invalid length 0, expected struct Review with 3 elements at line 1 column 2"),
            (
                r#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview"}"#,
                "no AdmissionReview of admission.k8s.io/v1: \"AdmissionReview\" of \"admission.k8s.io/v1beta1\"",
            ),
            (r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#, "the AdmissionReview has no request"),
        ];
        for (body, problem) in rows {
            assert_eq!(Request::parse(body.as_bytes()).unwrap_err(), problem, "{body}");
        }
    }

    #[test]
    fn a_refusal_is_one_line_and_patches_nothing() {
        let verdict = Verdict {
            patch: vec![json!({"op": "add", "path": "/x", "value": 1})],
            ..Verdict::refused("not\nthis; do that".to_owned())
        };
        let answer = verdict.to_json("u");
        assert_eq!(
            answer["response"],
            json!({"uid": "u", "allowed": false,
                "status": {"code": 403, "reason": "Forbidden", "message": "not this; do that"}})
        );
    }

    #[test]
    fn warnings_are_shown_as_far_as_there_is_room() {
        let verdict = |count| Verdict { warnings: vec!["é".repeat(300); count], ..Verdict::default() };
        let shown = |count| verdict(count).to_json("u")["response"]["warnings"].as_array().cloned().unwrap();
        assert_eq!(shown(2), ["é".repeat(128), "é".repeat(128)]);
        assert_eq!(shown(40).last().unwrap(), "… and 25 more");
        let length: usize = shown(40).iter().map(|warning| warning.as_str().unwrap().len()).sum();
        assert!(length <= WARNINGS_MAX);
        assert!(Verdict::default().to_json("u")["response"].get("warnings").is_none());
    }
}
