//! Asking the agent, from the exec'd plugin: no runtime, one blocking connection, and of the request no more than is needed
//! to ask, for every page of the program that is touched costs each call some microseconds. Whatever goes wrong, the caller
//! does the work itself under the same request id; the container's lock and the record see to it that it is done once.

use std::fmt::{self, Formatter};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use musubi_delegates::cni::request::Answer;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::protocol::{
    NETNS_HEADER, PROTOCOL, PROTOCOL_HEADER, REQUEST_HEADER, STATE_HEADER, Sent, TAKE_TIME, TAKEN_HEADER, identity,
    of_body,
};
use crate::config::{AGENT_SOCKET, STATE_DIR, TIMEOUT_SECONDS};

/// How much longer than the operation itself may take its answer is waited for: undoing a failed ADD takes its own time.
const GRACE: Duration = Duration::from_secs(30);
/// How long what the agent knows by heart may take.
const GET_TIME: Duration = Duration::from_secs(5);
/// The longest head of an answer, in bytes.
const LONGEST_HEAD: usize = 16 << 10;

/// What became of asking.
#[derive(Debug)]
pub enum Asked {
    /// The agent did it, or has found that it cannot be done.
    Answered(Answer),
    /// It did not, or nobody knows: for the log.
    NotAnswered(String),
}

/// What asking needs of our configuration. Where it is wrong, whoever does the work says so.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needed {
    agent_socket: Option<String>,
    cni_dir: Option<String>,
    timeout_seconds: Option<u64>,
}

impl<'de> Deserialize<'de> for Needed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Keys)
    }
}

/// Keys count whatever their case, and of several the last that is not `null`, as for [`crate::config::Config`].
struct Keys;

impl<'de> Visitor<'de> for Keys {
    type Value = Needed;

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Needed, A::Error> {
        let mut needed = Needed::default();
        while let Some(key) = map.next_key::<String>()? {
            if key.eq_ignore_ascii_case("agentSocket") {
                needed.agent_socket = map.next_value::<Option<_>>()?.or(needed.agent_socket);
            } else if key.eq_ignore_ascii_case("cniDir") {
                needed.cni_dir = map.next_value::<Option<_>>()?.or(needed.cni_dir);
            } else if key.eq_ignore_ascii_case("timeoutSeconds") {
                needed.timeout_seconds = map.next_value::<Option<_>>()?.or(needed.timeout_seconds);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(needed)
    }
}

/// Has the agent carry out the request that this process's environment and stdin make, if there is one that takes it in time.
#[must_use]
pub fn ask(stdin: &[u8], id: &str) -> Asked {
    let needed: Needed = match serde_json::from_slice(stdin) {
        Ok(needed) => needed,
        Err(error) => return Asked::NotAnswered(format!("configuration: {error}")),
    };
    let path = Path::new(needed.agent_socket.as_deref().unwrap_or(AGENT_SOCKET));
    if path.as_os_str().is_empty() {
        return Asked::NotAnswered("no agentSocket".to_owned());
    }
    let timeout = Duration::from_secs(needed.timeout_seconds.unwrap_or(TIMEOUT_SECONDS));
    let state_dir = Path::new(needed.cni_dir.as_deref().filter(|path| !path.is_empty()).unwrap_or(STATE_DIR));
    let at = |step: &str, error: &io::Error| Asked::NotAnswered(format!("{}: {step}: {error}", path.display()));
    let limit = Instant::now() + TAKE_TIME;
    let mut stream = match open(path) {
        Ok(stream) => stream,
        Err(error) => return at("connect", &error),
    };
    let mut answer = Vec::new();
    let sent = send(&mut stream, stdin, state_dir, id, limit);
    let body_at = match sent.and_then(|()| taken(&mut stream, &mut answer, limit)) {
        Ok(body_at) => body_at,
        Err(error) => return at("not taken", &error),
    };
    // From here on the agent works on it, and so nobody else does before its lock is free again.
    match read_body(&mut stream, &mut answer, body_at, Instant::now() + timeout + GRACE) {
        Ok(body) => match of_body(&body) {
            Some(answer) => Asked::Answered(answer),
            None => at("answer", &ErrorKind::InvalidData.into()),
        },
        Err(error) => at("answer", &error),
    }
}

/// What the agent answers to a GET, as JSON.
///
/// # Errors
/// There is no agent, or its answer is none.
pub fn get(socket: &Path, path: &str) -> io::Result<Value> {
    let limit = Instant::now() + GET_TIME;
    let mut stream = open(socket)?;
    stream.set_write_timeout(Some(left(limit)?))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: musubi\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    read_to_end(&mut stream, &mut answer, limit)?;
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    match head.parse(&answer) {
        Ok(httparse::Status::Complete(length)) if head.code == Some(200) => {
            Ok(serde_json::from_slice(&answer[length..])?)
        }
        Ok(httparse::Status::Complete(length)) => Err(refusal(head.code, &answer[length..])),
        _ => Err(io::Error::new(ErrorKind::InvalidData, "what it says is no HTTP")),
    }
}

/// Connects without waiting: an agent that is stopped lets its queue run full.
fn open(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let descriptor = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let stream = UnixStream::from(descriptor);
    match connect(std::os::fd::AsRawFd::as_raw_fd(&stream), &UnixAddr::new(path)?) {
        Ok(()) => {}
        Err(Errno::EAGAIN) => return Err(io::Error::new(ErrorKind::TimedOut, "its queue is full")),
        Err(errno) => return Err(errno.into()),
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn send(stream: &mut UnixStream, stdin: &[u8], state_dir: &Path, id: &str, limit: Instant) -> io::Result<()> {
    let body = serde_json::to_vec(&Sent { stdin })?;
    let seen = |header: &str, path: &Path| {
        identity(path).map(|identity| format!("{header}: {identity}\r\n")).unwrap_or_default()
    };
    let netns = std::env::var_os("CNI_NETNS").map(|path| seen(NETNS_HEADER, path.as_ref())).unwrap_or_default();
    let state = seen(STATE_HEADER, state_dir);
    let mut message = format!(
        "POST /cni HTTP/1.1\r\nHost: musubi\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n{PROTOCOL_HEADER}: {PROTOCOL}\r\n{REQUEST_HEADER}: {id}\r\n{netns}{state}\r\n",
        body.len()
    )
    .into_bytes();
    message.extend(body);
    stream.set_write_timeout(Some(left(limit)?))?;
    stream.write_all(&message)
}

/// Waits for the head of the answer; where its body begins. Any other head than that of a taken request is an error.
fn taken(stream: &mut UnixStream, answer: &mut Vec<u8>, limit: Instant) -> io::Result<usize> {
    loop {
        stream.set_read_timeout(Some(left(limit)?))?;
        read_some(stream, answer)?;
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Response::new(&mut headers);
        match head.parse(answer) {
            Ok(httparse::Status::Complete(length)) => {
                let is_taken = head.headers.iter().any(|header| header.name.eq_ignore_ascii_case(TAKEN_HEADER));
                return if is_taken { Ok(length) } else { Err(refusal(head.code, &answer[length..])) };
            }
            Ok(httparse::Status::Partial) if answer.len() < LONGEST_HEAD => {}
            _ => return Err(io::Error::new(ErrorKind::InvalidData, "what it says is no HTTP")),
        }
    }
}

fn refusal(status: Option<u16>, body: &[u8]) -> io::Error {
    let reason = String::from_utf8_lossy(body);
    io::Error::other(format!("{} {}", status.unwrap_or_default(), reason.lines().next().unwrap_or_default()))
}

/// Reads a chunked body to its last chunk; the connection may stay open for longer.
fn read_body(stream: &mut UnixStream, answer: &mut Vec<u8>, body_at: usize, limit: Instant) -> io::Result<Vec<u8>> {
    loop {
        if let Some(body) = dechunked(&answer[body_at..]) {
            return Ok(body);
        }
        stream.set_read_timeout(Some(left(limit)?))?;
        read_some(stream, answer)?;
    }
}

fn read_to_end(stream: &mut UnixStream, answer: &mut Vec<u8>, limit: Instant) -> io::Result<()> {
    loop {
        stream.set_read_timeout(Some(left(limit)?))?;
        match read_some(stream, answer) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
    }
}

fn read_some(stream: &mut UnixStream, into: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = [0; 8 << 10];
    match stream.read(&mut chunk) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(count) => {
            into.extend_from_slice(&chunk[..count]);
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
        Err(error) => Err(error),
    }
}

fn left(limit: Instant) -> io::Result<Duration> {
    let left = limit.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// A chunked body (RFC 9112 §7.1) put together; `None` when its end has not come.
fn dechunked(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let Ok(httparse::Status::Complete((start, size))) = httparse::parse_chunk_size(bytes) else { return None };
        if size == 0 {
            return Some(body);
        }
        let end = start.checked_add(usize::try_from(size).ok()?)?;
        body.extend_from_slice(bytes.get(start..end)?);
        bytes = bytes.get(end + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_asking_needs_is_what_the_configuration_says() {
        let text = r#"{"AgentSocket": "", "delegates": [{"cniDir": "/x"}], "CNIDIR": "/s", "cnidir": null, "timeoutSeconds": 5}"#;
        let needed =
            Needed { agent_socket: Some(String::new()), cni_dir: Some("/s".to_owned()), timeout_seconds: Some(5) };
        assert_eq!(serde_json::from_str::<Needed>(text).unwrap(), needed);
        assert_eq!(serde_json::from_str::<Needed>("{}").unwrap(), Needed::default());
        for wrong in ["", "[]", r#"{"agentSocket": 3}"#, r#"{"timeoutSeconds": -1}"#] {
            assert!(serde_json::from_str::<Needed>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_body_counts_only_with_its_end() {
        assert_eq!(dechunked(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").as_deref(), Some(b"abcde".as_slice()));
        for cut in [b"".as_slice(), b"3\r\nabc", b"3\r\nabc\r\n", b"x\r\n", b"ffffffffffffffff\r\na"] {
            assert_eq!(dechunked(cut), None, "{}", cut.escape_ascii());
        }
    }
}
