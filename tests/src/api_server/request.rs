//! A request as the API server understands it: which resource and object its path names, and its parameters.

use std::sync::Arc;

use hyper::body::Bytes;
use hyper::{HeaderMap, Method};

use super::resources::Resource;
use super::store::{self, Store};

/// A request, read whole.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path.
    pub path: String,
    /// The parameters.
    pub query: Query,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Request {
    /// A header, empty when it is not there or no text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The media type of the body, without parameters.
    pub fn content_type(&self) -> &str {
        self.header("content-type").split(';').next().unwrap_or_default().trim()
    }

    /// Who says to be calling: for managed fields.
    pub fn manager(&self) -> String {
        match (self.query.get("fieldManager"), self.header("user-agent").split('/').next()) {
            ("", None | Some("")) => "unknown".to_owned(),
            ("", Some(agent)) => agent.to_owned(),
            (manager, _) => manager.to_owned(),
        }
    }
}

/// The parameters of a request.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query string.
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key, true), decode(value, true))
        });
        Self(pairs.collect())
    }

    /// A parameter, empty when it is not there.
    pub fn get(&self, key: &str) -> &str {
        self.0.iter().find(|(name, _)| name == key).map_or("", |(_, value)| value)
    }

    /// Whether a parameter says yes.
    pub fn is(&self, key: &str) -> bool {
        matches!(self.get(key), "1" | "true" | "True" | "TRUE" | "t" | "T")
    }
}

/// What a path names.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where the store keeps the resource.
    pub index: usize,
    /// The resource.
    pub resource: Arc<Resource>,
    /// The namespace, if one is named.
    pub namespace: Option<String>,
    /// The object, if one is named.
    pub name: Option<String>,
    /// `status`, or any other word.
    pub subresource: Option<String>,
}

impl Target {
    /// Reads a path; `None` for one that is not served.
    pub fn parse(store: &Store, path: &str) -> Option<Self> {
        let segments: Vec<String> = path.trim_matches('/').split('/').map(|part| decode(part, false)).collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let (group, version, rest) = match segments.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", _, "status" | "finalize"] | ["namespaces", _] | ["namespaces"] => (None, rest),
            ["namespaces", namespace, rest @ ..] => (Some(*namespace), rest),
            _ => (None, rest),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (*plural, None, None),
            [plural, name] => (*plural, Some(*name), None),
            [plural, name, subresource] => (*plural, Some(*name), Some(*subresource)),
            _ => return None,
        };
        let (index, resource) = store.resource(group, version, plural)?;
        let scoped = if name.is_some() { resource.namespaced == namespace.is_some() } else { true };
        let owned = |text: Option<&str>| text.map(str::to_owned);
        (scoped && (resource.namespaced || namespace.is_none())).then(|| Self {
            index,
            resource,
            namespace: owned(namespace),
            name: owned(name),
            subresource: owned(subresource),
        })
    }

    /// The object's name, empty where none is named.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// Where the store keeps the object.
    pub fn key(&self) -> String {
        store::key(self.namespace.as_deref(), self.name())
    }

    /// The verb of role-based access control.
    pub fn verb(&self, request: &Request) -> &'static str {
        match (request.method.as_str(), self.name.is_some()) {
            ("GET", _) if request.query.is("watch") => "watch",
            ("GET" | "HEAD", true) => "get",
            ("GET" | "HEAD", false) => "list",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", true) => "delete",
            ("DELETE", false) => "deletecollection",
            _ => "",
        }
    }
}

/// Undoes percent encoding.
fn decode(text: &str, plus_is_space: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = after.get(..2).filter(|_| first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(if first == b'+' && plus_is_space { b' ' } else { first });
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
