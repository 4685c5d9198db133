//! What an API server answers when it refuses: `metav1.Status` with the reasons, messages and causes that a real one uses.
//! Who refuses what, and when, is left to its neighbours.

use serde_json::{Value, json};

use super::resources::Resource;

/// A refusal.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// The HTTP status, repeated in the body.
    pub code: u16,
    /// The word programs compare, `NotFound` for instance.
    pub reason: String,
    /// The sentence a person reads.
    pub message: String,
    /// What it is about, and the causes.
    pub details: Option<Box<Value>>,
    /// A fresh `continue` when an old one has expired.
    pub go_on: Option<String>,
}

/// One field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    reason: &'static str,
    field: String,
    message: String,
}

impl Cause {
    /// A value that is not allowed.
    pub fn invalid(field: &str, value: &Value, why: &str) -> Self {
        Self::new("FieldValueInvalid", field, format!("Invalid value: {value}: {why}"))
    }

    /// A value of another type than the schema's.
    pub fn wrong_type(field: &str, wanted: &str, found: &str) -> Self {
        let message = format!("Invalid value: \"{found}\": {field} in body must be of type {wanted}: \"{found}\"");
        Self::new("FieldValueTypeInvalid", field, message)
    }

    /// A value that is missing.
    pub fn required(field: &str, why: &str) -> Self {
        let message = if why.is_empty() { "Required value".to_owned() } else { format!("Required value: {why}") };
        Self::new("FieldValueRequired", field, message)
    }

    /// A value that has to be one of a few.
    pub fn not_supported(field: &str, value: &Value, supported: &[Value]) -> Self {
        let supported: Vec<String> = supported.iter().map(Value::to_string).collect();
        let message = format!("Unsupported value: {value}: supported values: {}", supported.join(", "));
        Self::new("FieldValueNotSupported", field, message)
    }

    /// A value that must not be there, or not change.
    pub fn forbidden(field: &str, why: &str) -> Self {
        Self::new("FieldValueForbidden", field, format!("Forbidden: {why}"))
    }

    /// A value that is too large.
    pub fn too_long(field: &str, limit: usize) -> Self {
        Self::new("FieldValueTooLong", field, format!("Too long: may not be more than {limit} bytes"))
    }

    fn new(reason: &'static str, field: &str, message: String) -> Self {
        Self { reason, field: field.to_owned(), message }
    }
}

impl Status {
    /// A refusal without details.
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.to_owned(), message: message.into(), details: None, go_on: None }
    }

    /// 404: the object is not there.
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", resource.qualified());
        Self::new(404, "NotFound", message).about(resource, name, &resource.plural)
    }

    /// 409: another object of the name is there.
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", resource.qualified());
        Self::new(409, "AlreadyExists", message).about(resource, name, &resource.plural)
    }

    /// 409: the object is not the one the caller means.
    pub fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.qualified());
        Self::new(409, "Conflict", message).about(resource, name, &resource.plural)
    }

    /// 409: the object has changed since the caller read it.
    pub fn modified(resource: &Resource, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(resource, name, why)
    }

    /// 422: fields are wrong. A message that several checks give stands once in the sentence, and each time in the causes.
    pub fn invalid(resource: &Resource, name: &str, causes: &[Cause]) -> Self {
        let message = format!("{} \"{name}\" is invalid: {}", resource.qualified_kind(), sentence(causes));
        let mut status = Self::new(422, "Invalid", message).about(resource, name, &resource.kind);
        if let Some(details) = &mut status.details {
            details["causes"] = listed(causes);
        }
        status
    }

    /// 422: parameters are wrong or contradict each other; `kind` is `ListOptions` or `PatchOptions`.
    pub fn invalid_options(kind: &str, cause: &Cause) -> Self {
        let causes = std::slice::from_ref(cause);
        let message = format!("{kind}.meta.k8s.io \"\" is invalid: {}", sentence(causes));
        Self::new(422, "Invalid", message)
            .with_details(json!({"group": "meta.k8s.io", "kind": kind, "causes": listed(causes)}))
    }

    /// 422: a patch that can be read cannot be applied.
    pub fn patch_rejected() -> Self {
        let message = "the server rejected our request due to an error in our request";
        Self::new(422, "Invalid", message).with_details(json!({}))
    }

    /// 422: a patch under strict field validation brings unknown fields.
    pub fn strict_patch(patch: &str, unknown: &str) -> Self {
        let cause = Cause::invalid(
            "patch",
            &Value::from(patch),
            &format!("strict decoding error: unknown field \"{unknown}\""),
        );
        let message = format!(" \"\" is invalid: {}", sentence(std::slice::from_ref(&cause)));
        Self::new(422, "Invalid", message).with_details(json!({"causes": listed(&[cause])}))
    }

    /// 400: the request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401: the token is unknown or has expired.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 405: the path exists, the method does not.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message).with_details(json!({}))
    }

    /// 406: no form of the answer that the caller accepts.
    pub fn not_acceptable() -> Self {
        let message = "only the following media types are accepted: application/json, application/yaml";
        Self::new(406, "NotAcceptable", message)
    }

    /// 415 as the routes of built-in resources say it.
    pub fn unsupported_by_route() -> Self {
        Self::new(415, "UnsupportedMediaType", "415: Unsupported Media Type").with_details(json!({}))
    }

    /// 415 as the negotiation of bodies says it.
    pub fn unsupported_media(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 410: the history asked for is gone.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 500: the server's own fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "InternalError", message)
    }

    /// 504: a resourceVersion that the server has not reached.
    pub fn too_large_version(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let cause = json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
        Self::new(504, "Timeout", message).with_details(json!({"causes": [cause], "retryAfterSeconds": 1}))
    }

    /// The same refusal with other details.
    pub fn with_details(mut self, details: Value) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    /// The body.
    pub fn body(&self) -> Value {
        let metadata = self.go_on.as_ref().map_or_else(|| json!({}), |token| json!({"continue": token}));
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.message, "reason": self.reason,
        });
        if let Some(details) = &self.details {
            body["details"] = details.as_ref().clone();
        }
        body["code"] = self.code.into();
        body
    }

    /// Says what the refusal is about; `kind` is the plural or the kind, as the reason has it.
    pub(super) fn about(mut self, resource: &Resource, name: &str, kind: &str) -> Self {
        let mut details = serde_json::Map::new();
        for (key, value) in [("name", name), ("group", resource.group.as_str()), ("kind", kind)] {
            if !value.is_empty() {
                details.insert(key.to_owned(), value.into());
            }
        }
        self.details = Some(Box::new(details.into()));
        self
    }
}

fn sentence(causes: &[Cause]) -> String {
    let mut messages: Vec<String> = Vec::new();
    for cause in causes {
        let message = format!("{}: {}", cause.field, cause.message);
        if !messages.contains(&message) {
            messages.push(message);
        }
    }
    match messages.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

fn listed(causes: &[Cause]) -> Value {
    causes.iter().map(|c| json!({"reason": c.reason, "message": c.message, "field": c.field})).collect()
}
