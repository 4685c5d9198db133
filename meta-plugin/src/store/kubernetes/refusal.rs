//! A server that is overloaded says in a header when it wants to be asked again, its answer a plain text. Here that becomes the
//! `Status` that other refusals are, for kube passes on nothing but the body; what to make of it is the connection's business.

use http_body_util::{BodyExt, Full};
use hyper::Response;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use kube::client::DynBody;
use serde_json::json;

/// An answer as it came, unless it is a refusal in plain text whose header says how many seconds to wait.
pub(super) fn as_status(answer: Response<Box<DynBody>>) -> Response<Box<DynBody>> {
    let code = answer.status();
    let is_refusal = code.is_client_error() || code.is_server_error();
    let Some(seconds) = retry_after(answer.headers()).filter(|_| is_refusal && !is_json(answer.headers())) else {
        return answer;
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(),
        "message": code.canonical_reason(), "details": {"retryAfterSeconds": seconds},
    });
    let body = Bytes::from(status.to_string());
    answer.map(|_| Box::new(Full::new(body).map_err(Into::into)) as Box<DynBody>)
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"))
}

/// In seconds; the other form of the header, a date, is used by no API server.
fn retry_after(headers: &HeaderMap) -> Option<u32> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()
}
