//! Reading: lists with selectors, pages and resource versions, the start of watches, and the two forms of an answer
//! (whole objects, or their metadata alone).

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::body::Bytes;
use serde_json::{Value, json};

use super::answer::{self, Answer};
use super::request::{Request, Target};
use super::resources::Resource;
use super::select::Selection;
use super::shared::Shared;
use super::status::{Cause, Status};
use super::store::{Object, Objects};
use super::watch::{self, Watch, metadata_only};

/// How long a read waits for a resourceVersion that is not there yet.
const PATIENCE: Duration = Duration::from_secs(3);

/// How objects are written into an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Whole.
    Whole,
    /// `PartialObjectMetadata`.
    Metadata,
}

impl Form {
    /// The form that an `Accept` header asks for; a list is asked for by another word than an object.
    pub fn accepted(request: &Request, list: bool) -> Result<Self, Status> {
        let accept = request.header("accept");
        let wanted = if list { "PartialObjectMetadataList" } else { "PartialObjectMetadata" };
        for option in accept.split(',').map(str::trim) {
            let mut parts = option.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let mut kind = None;
            for (key, value) in parts.filter_map(|part| part.split_once('=')) {
                match key {
                    "as" => kind = Some(value),
                    "g" if value != "meta.k8s.io" => kind = Some(""),
                    "v" if value != "v1" => kind = Some(""),
                    _ => {}
                }
            }
            match (media, kind) {
                ("" | "application/json" | "application/*" | "*/*", None) => return Ok(Self::Whole),
                ("application/json", Some(kind)) if kind == wanted => return Ok(Self::Metadata),
                _ => {}
            }
        }
        Err(Status::not_acceptable())
    }

    /// An object in this form.
    pub fn bytes(self, object: &Object) -> Bytes {
        match self {
            Self::Whole => object.json.clone(),
            Self::Metadata => Bytes::from(metadata_only(&object.value).to_string()),
        }
    }

    /// A value in this form.
    pub fn value(self, value: &Value) -> Cow<'_, Value> {
        match self {
            Self::Whole => Cow::Borrowed(value),
            Self::Metadata => Cow::Owned(metadata_only(value)),
        }
    }
}

/// Answers a LIST.
pub async fn list(shared: &Shared, target: &Target, request: &Request) -> Result<Answer, Status> {
    let form = Form::accepted(request, true)?;
    let selection = selection(target, request)?;
    let query = &request.query;
    if !query.get("sendInitialEvents").is_empty() {
        let cause = Cause::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list");
        return Err(Status::invalid_options("ListOptions", &cause));
    }
    let limit = match query.get("limit") {
        "" => 0,
        limit => limit.parse().map_err(|_| Status::bad_request(not_a_number(limit)))?,
    };
    let page = match query.get("continue") {
        "" => Page::first(shared, request).await?,
        token => Page::next(token, query.get("resourceVersion"))?,
    };
    let store = shared.store();
    let version = if page.version == 0 { store.version() } else { page.version };
    let objects = match store.objects_at(target.index, version) {
        Some(objects) => objects,
        None if page.start.is_empty() => {
            return Err(Status::expired("The resourceVersion for the provided list is too old."));
        }
        None => {
            let message = "The provided continue parameter is too old to display a consistent list result. You can start \
                a new list without the continue parameter, or use the continue token in this response to retrieve the \
                remainder of the results. Continuing with the provided token results in an inconsistent list - objects \
                that were created, modified, or deleted between the time the first chunk was returned and now may show \
                up in the list.";
            let mut status = Status::expired(message);
            status.go_on = Some(token(0, &page.start));
            return Err(status);
        }
    };
    let prefix = target.namespace.as_ref().map_or_else(String::new, |namespace| format!("{namespace}/"));
    Ok(page.answer(&objects, &prefix, &selection, limit, &Written { target, form, version }))
}

/// Starts a WATCH.
pub async fn watch(shared: &Shared, target: &Target, request: &Request) -> Result<Answer, Status> {
    let form = Form::accepted(request, false)?;
    let selection = match target.name.as_deref() {
        None => selection(target, request)?,
        Some(name) => {
            let by_name = format!("metadata.name={name}");
            Selection::parse(&target.resource, target.namespace.as_deref(), "", &by_name)
                .map_err(Status::bad_request)?
        }
    };
    let query = &request.query;
    let (streams, bookmarks) = (query.is("sendInitialEvents"), query.is("allowWatchBookmarks"));
    check_watch_options(query.get("sendInitialEvents"), query.get("resourceVersionMatch"))?;
    let asked = version(request)?;
    if streams && !shared.settings().streaming_lists {
        return Ok(Answer::event_stream(watch::refused(&watch::no_streaming_list())));
    }
    let timeout = query.get("timeoutSeconds").parse().ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
    if streams {
        reach(shared, asked).await?;
    }
    let store = shared.store();
    let sees_present = streams || (asked == 0 && query.get("sendInitialEvents") != "false");
    if !sees_present && asked != 0 && asked < store.oldest() {
        return Ok(Answer::event_stream(watch::refused(&watch::too_old(asked, store.oldest()))));
    }
    let present = store.objects(target.index).values().filter(|_| sees_present);
    Ok(Answer::Watch(Box::new(Watch {
        index: target.index,
        resource: Arc::clone(&target.resource),
        initial: present.filter(|object| selection.has(&object.value)).cloned().collect(),
        selection,
        form,
        from: if sees_present || asked == 0 { store.version() } else { asked },
        marks_initial: streams && bookmarks,
        bookmarks,
        timeout,
    })))
}

/// The selectors of a request.
pub fn selection(target: &Target, request: &Request) -> Result<Selection, Status> {
    let (labels, fields) = (request.query.get("labelSelector"), request.query.get("fieldSelector"));
    Selection::parse(&target.resource, target.namespace.as_deref(), labels, fields).map_err(Status::bad_request)
}

/// Waits until the store has reached a version; the 504 of a real server when it does not.
pub async fn reach(shared: &Shared, version: u64) -> Result<(), Status> {
    let mut signals = shared.signals.subscribe();
    let reached = async { while shared.store().version() < version && signals.changed().await.is_ok() {} };
    let waited = tokio::time::timeout(PATIENCE, reached).await;
    waited.map_err(|_| Status::too_large_version(version, shared.store().version()))
}

/// `resourceVersion`, 0 where it is not given.
pub fn version(request: &Request) -> Result<u64, Status> {
    match request.query.get("resourceVersion") {
        "" => Ok(0),
        text => text.parse().map_err(|_| {
            let cause = Cause::invalid("resourceVersion", &Value::from(text), &not_a_number(text));
            Status::invalid_options("ListOptions", &cause)
        }),
    }
}

fn not_a_number(text: &str) -> String {
    format!("strconv.ParseUint: parsing {text:?}: invalid syntax")
}

fn check_watch_options(send_initial: &str, version_match: &str) -> Result<(), Status> {
    let why = match (send_initial.is_empty(), version_match) {
        (true, "") | (false, "NotOlderThan") => return Ok(()),
        (true, _) => "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        (false, _) => "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
    };
    Err(Status::invalid_options("ListOptions", &Cause::forbidden("resourceVersionMatch", why)))
}

/// Which part of a list, at which version.
struct Page {
    /// 0 for whatever is newest.
    version: u64,
    /// Where it begins, below the namespace.
    start: String,
}

/// What a list is written from besides its objects.
struct Written<'a> {
    target: &'a Target,
    form: Form,
    version: u64,
}

impl Page {
    async fn first(shared: &Shared, request: &Request) -> Result<Self, Status> {
        let asked = version(request)?;
        let exact = match request.query.get("resourceVersionMatch") {
            "" => false,
            "Exact" if asked > 0 => true,
            "NotOlderThan" if !request.query.get("resourceVersion").is_empty() => false,
            _ => {
                let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
                return Err(Status::invalid_options("ListOptions", &Cause::forbidden("resourceVersionMatch", why)));
            }
        };
        reach(shared, asked).await?;
        Ok(Self { version: if exact { asked } else { 0 }, start: String::new() })
    }

    fn next(token: &str, version: &str) -> Result<Self, Status> {
        if !matches!(version, "" | "0") {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        let invalid =
            |why: String| Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
        let bytes = URL_SAFE_NO_PAD
            .decode(token)
            .map_err(|_| invalid(format!("illegal base64 data at input byte {}", illegal_byte(token))))?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| invalid(answer::json_error(&bytes, &e)))?;
        let start = value["start"].as_str().unwrap_or_default();
        if value["v"] != "meta.k8s.io/v1" {
            return Err(invalid(format!("server does not recognize this encoded version {}", value["v"])));
        }
        if start.is_empty() {
            return Err(invalid("start key is empty".to_owned()));
        }
        let version = value["rv"].as_u64().unwrap_or(0);
        Ok(Self { version, start: start.to_owned() })
    }

    fn answer(
        &self,
        all: &Objects,
        prefix: &str,
        selection: &Selection,
        limit: usize,
        written: &Written<'_>,
    ) -> Answer {
        let below = all.range(format!("{prefix}{}", self.start)..).take_while(|(key, _)| key.starts_with(prefix));
        let mut selected = below.filter(|(_, object)| selection.has(&object.value));
        let count = if limit == 0 { usize::MAX } else { limit };
        let mut items: Vec<u8> = Vec::new();
        let mut last = "";
        for (key, object) in selected.by_ref().take(count) {
            if !items.is_empty() {
                items.push(b',');
            }
            items.extend_from_slice(&item(written, object));
            last = key;
        }
        let mut metadata = json!({"resourceVersion": written.version.to_string()});
        let left = selected.count();
        if left > 0 {
            let start = last.strip_prefix(prefix).unwrap_or(last);
            metadata["continue"] = token(written.version, &format!("{start}\0")).into();
            if !selection.is_by_content() {
                metadata["remainingItemCount"] = left.into();
            }
        } else if written.target.resource.custom {
            metadata["continue"] = "".into();
        }
        let (kind, api_version) = match written.form {
            Form::Whole => (format!("{}List", written.target.resource.kind), written.target.resource.api_version()),
            Form::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
        };
        let head = format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{metadata},"items":["#);
        Answer::json(200, Bytes::from([head.as_bytes(), &items, b"]}"].concat()))
    }
}

/// An object inside a list: those of built-in kinds do not repeat their kind there.
fn item(written: &Written<'_>, object: &Object) -> Bytes {
    let bytes = written.form.bytes(object);
    let resource: &Resource = &written.target.resource;
    if written.form == Form::Metadata || resource.custom {
        return bytes;
    }
    let kind = format!(r#"{{"kind":"{}","apiVersion":"{}","#, resource.kind, resource.api_version());
    match bytes.strip_prefix(kind.as_bytes()) {
        Some(rest) => Bytes::from([b"{", rest].concat()),
        None => bytes,
    }
}

fn token(version: u64, start: &str) -> String {
    URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": version, "start": start}).to_string())
}

/// Where a text ceases to be base64: at its first foreign character, or at the start of an incomplete group's last one.
fn illegal_byte(text: &str) -> usize {
    let foreign = text.bytes().position(|c| !(c.is_ascii_alphanumeric() || c == b'-' || c == b'_'));
    foreign.unwrap_or(text.len().saturating_sub(1))
}
