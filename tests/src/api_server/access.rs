//! Who calls, and what they may do: bearer tokens, and rules as ClusterRoles have them.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::request::{Request, Target};
use super::status::Status;

/// A caller.
#[derive(Debug, Clone)]
pub struct User {
    name: String,
    rules: Option<Vec<Value>>,
}

impl User {
    /// What webhooks are told of the caller.
    pub fn info(&self) -> Value {
        json!({"username": self.name, "uid": self.name, "groups": ["system:authenticated"]})
    }

    fn anonymous() -> Self {
        Self { name: "system:anonymous".to_owned(), rules: Some(Vec::new()) }
    }

    fn may(&self, target: &Target, verb: &str) -> bool {
        let Some(rules) = &self.rules else { return true };
        let resource = match &target.subresource {
            Some(subresource) => format!("{}/{subresource}", target.resource.plural),
            None => target.resource.plural.clone(),
        };
        let has = |rule: &Value, key: &str, wanted: &str| {
            rule[key].as_array().is_some_and(|values| values.iter().any(|value| value == wanted || value == "*"))
        };
        rules.iter().any(|rule| {
            has(rule, "apiGroups", &target.resource.group)
                && has(rule, "resources", &resource)
                && has(rule, "verbs", verb)
                && (rule["resourceNames"].is_null() || has(rule, "resourceNames", target.name()))
        })
    }
}

/// The tokens that are valid.
#[derive(Debug, Default)]
pub struct Tokens(HashMap<String, User>);

impl Tokens {
    /// Makes a token valid; without rules its owner may do everything.
    pub fn add(&mut self, token: String, user: &str, rules: Option<Vec<Value>>) {
        self.0.insert(token, User { name: user.to_owned(), rules });
    }

    /// Makes a token invalid.
    pub fn remove(&mut self, token: &str) {
        self.0.remove(token);
    }

    /// The caller of a request. Without a token that is nobody in particular; a wrong one is refused.
    pub fn user(&self, request: &Request) -> Result<User, Status> {
        let header = request.header("authorization");
        match header.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                self.0.get(token.trim()).cloned().ok_or_else(Status::unauthorized)
            }
            _ => Ok(User::anonymous()),
        }
    }
}

/// Refuses what a caller may not do. Paths that name no resource are refused to nobody in particular.
pub fn authorize(user: &User, target: Option<&Target>, request: &Request) -> Result<(), Status> {
    let Some(target) = target else {
        if user.name != "system:anonymous" {
            return Ok(());
        }
        let verb = request.method.as_str().to_lowercase();
        let message = format!("forbidden: User \"{}\" cannot {verb} path \"{}\"", user.name, request.path);
        return Err(Status::new(403, "Forbidden", message).with_details(json!({})));
    };
    let verb = target.verb(request);
    if user.may(target, verb) {
        return Ok(());
    }
    let resource = &target.resource;
    let of = match target.name() {
        "" => resource.qualified(),
        name => format!("{} \"{name}\"", resource.qualified()),
    };
    let plural = match &target.subresource {
        Some(subresource) => format!("{}/{subresource}", resource.plural),
        None => resource.plural.clone(),
    };
    let scope = match &target.namespace {
        Some(namespace) => format!("in the namespace \"{namespace}\""),
        None => "at the cluster scope".to_owned(),
    };
    let message = format!(
        "{of} is forbidden: User \"{}\" cannot {verb} resource \"{plural}\" in API group \"{}\" {scope}",
        user.name, resource.group
    );
    Err(Status::new(403, "Forbidden", message).about(resource, target.name(), &resource.plural))
}
