//! What is answered, before it is HTTP.

use hyper::body::Bytes;
use serde_json::Value;

use super::status::Status;
use super::watch::Watch;

/// What is answered.
#[derive(Debug)]
pub enum Answer {
    /// All at once.
    Whole { code: u16, content_type: &'static str, headers: Vec<(&'static str, String)>, body: Bytes },
    /// As it happens.
    Watch(Box<Watch>),
}

impl Answer {
    pub fn json(code: u16, body: Bytes) -> Self {
        Self::Whole { code, content_type: "application/json", headers: Vec::new(), body }
    }

    pub fn object(code: u16, value: &Value) -> Self {
        Self::json(code, Bytes::from(value.to_string()))
    }

    pub fn status(status: &Status) -> Self {
        let answer = Self::object(status.code, &status.body());
        match status.details.as_ref().and_then(|details| details["retryAfterSeconds"].as_u64()) {
            Some(seconds) => answer.with_header("Retry-After", &seconds.to_string()),
            None => answer,
        }
    }

    /// A watch that is over with its first event.
    pub fn event_stream(body: Bytes) -> Self {
        Self::json(200, body)
    }

    pub fn text(code: u16, text: &'static str) -> Self {
        let body = Bytes::from_static(text.as_bytes());
        Self::Whole { code, content_type: "text/plain; charset=utf-8", headers: Vec::new(), body }
    }

    pub fn page_not_found() -> Self {
        Self::text(404, "404 page not found\n")
    }

    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        if let Self::Whole { headers, .. } = &mut self {
            headers.push((name, value.to_owned()));
        }
        self
    }

    pub fn with_warnings(self, warnings: &[String]) -> Self {
        let texts = warnings.iter().map(|warning| format!("299 - {warning:?}"));
        texts.fold(self, |answer, text| answer.with_header("Warning", &text))
    }

    pub fn code(&self) -> u16 {
        match self {
            Self::Whole { code, .. } => *code,
            Self::Watch(_) => 200,
        }
    }
}

/// Why bytes are no JSON, in the words of Go's decoder.
pub fn json_error(bytes: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let line = bytes.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let found = line.get(error.column().saturating_sub(1)).map_or(' ', |byte| char::from(*byte));
    format!("invalid character {found:?} looking for beginning of value")
}
