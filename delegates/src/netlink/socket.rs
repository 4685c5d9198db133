//! One netlink socket and the conversation over it: send requests, match the answers by sequence number, turn refusals
//! into errors that keep the errno and the kernel's own words. A socket belongs for life to the network namespace of
//! the thread that opened it (network_namespaces(7)), so "in which namespace" is decided by which socket is used.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr, protocols};
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::time::{TimeVal, TimeValLike};

use super::message::{Attributes, HEADER, Message, text, u16_at, u32_at};
use crate::mutation;

/// What the kernel sends at once at most in a dump; `linux/netlink.h` asks readers for at least 8 KiB, dumps use 32.
const RECEIVE: usize = 64 * 1024;
/// How long an answer may take, in seconds. The kernel works while it is being sent to, so one that is not there was lost.
const LONGEST_WAIT: i64 = 10;
/// How many requests go out before their answers are read: answers that a socket's buffer has no room for are lost, and
/// the kernel's default one (`net.core.rmem_default`, 208 KiB) holds some 250.
const AT_ONCE: usize = 64;
/// A dump that changes underneath is asked for again this often before it is an error. Each takes about a millisecond, and
/// a busy node makes and deletes hundreds of links a second.
const DUMP_TRIES: usize = 100;
/// `NLMSGERR_ATTR_MSG`: the kernel's explanation of a refusal.
const ERROR_TEXT: u16 = 1;

/// A failed request: what was being done, the errno, and the kernel's extended message where it gave one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: {}{}", .errno.desc(), .message.as_ref().map(|m| format!(" ({m})")).unwrap_or_default())]
pub struct Error {
    /// What was asked for, for a person: `create bridge "cni0"`.
    pub operation: String,
    /// The kernel's refusal, or the socket's failure.
    pub errno: Errno,
    /// `NLMSGERR_ATTR_MSG`, for example "Invalid MTU".
    pub message: Option<String>,
}

impl Error {
    /// A failure of the socket itself.
    #[must_use]
    pub fn io(operation: &str, error: &io::Error) -> Self {
        Self {
            operation: operation.to_owned(),
            errno: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
            message: None,
        }
    }
}

/// The result of a conversation with the kernel.
pub type Result<T> = std::result::Result<T, Error>;

/// A request with the words that describe it in an error.
#[derive(Debug)]
pub struct Request {
    pub(super) message: Message,
    pub(super) operation: String,
}

impl Request {
    /// A request that an error will call `operation`.
    #[must_use]
    pub fn new(operation: impl Into<String>, message: Message) -> Self {
        Self { message, operation: operation.into() }
    }
}

/// A netlink socket. Not shared between threads; requests are answered in order.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: Cell<u32>,
    buffer: RefCell<Vec<u8>>,
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Netlink {
    /// Opens a routing socket (`NETLINK_ROUTE`) in the calling thread's network namespace.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn route() -> Result<Self> {
        Self::open(protocols::NETLINK_ROUTE)
    }

    /// Opens a netfilter socket (`NETLINK_NETFILTER`) in the calling thread's network namespace.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn netfilter() -> Result<Self> {
        Self::open(protocols::NETLINK_NETFILTER)
    }

    fn open(protocol: isize) -> Result<Self> {
        let open = || {
            let mut socket = Socket::new(protocol)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            // The kernel's own words in refusals, without the request echoed back.
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(LONGEST_WAIT))?;
            if protocol == protocols::NETLINK_ROUTE {
                // Filters in dump requests are honoured, not ignored.
                socket.set_netlink_get_strict_chk(true)?;
            }
            Ok(socket)
        };
        let socket = open().map_err(|e| Error::io("open a netlink socket", &e))?;
        Ok(Self { socket, sequence: Cell::new(1), buffer: RefCell::new(Vec::with_capacity(RECEIVE)) })
    }

    /// Sends one request and waits for the kernel's acknowledgement.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn request(&self, request: Request) -> Result<()> {
        self.request_all(vec![request])
    }

    /// Sends several requests, many in one datagram; the kernel works through all of them, in order, whatever happens to
    /// each (`netlink_rcv_skb`).
    ///
    /// # Errors
    /// The first refusal.
    pub fn request_all(&self, requests: Vec<Request>) -> Result<()> {
        match self.request_each(requests)?.into_iter().flatten().next() {
            Some(refusal) => Err(refusal),
            None => Ok(()),
        }
    }

    /// As [`Self::request_all`], with every request's own outcome, in order.
    ///
    /// # Errors
    /// The conversation itself failed.
    pub fn request_each(&self, requests: Vec<Request>) -> Result<Vec<Option<Error>>> {
        let mut outcomes = Vec::with_capacity(requests.len());
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            let mut datagram = Vec::with_capacity(512);
            let mut pending = Vec::new();
            for request in requests.by_ref().take(AT_ONCE) {
                mutation::before(point(&request.message), &request.operation);
                let sequence = self.next_sequence();
                datagram.extend(request.message.finish(sequence, libc::NLM_F_ACK));
                pending.push((sequence, request.operation));
            }
            if let Some((_, first)) = pending.first() {
                self.send(first, &datagram)?;
            }
            for (sequence, operation) in pending {
                outcomes.push(self.acknowledgement(sequence, &operation)?);
            }
        }
        Ok(outcomes)
    }

    /// As [`Self::request`], and reads what the kernel tells at once of the object it made (`NLM_F_ECHO`), where it does.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(super) fn request_echoed<T>(
        &self,
        request: Request,
        mut read: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Option<T>> {
        let Request { message, operation } = request;
        mutation::before(point(&message), &operation);
        let sequence = self.next_sequence();
        self.send(&operation, &message.finish(sequence, libc::NLM_F_ACK | libc::NLM_F_ECHO))?;
        let mut echo = None;
        match self.acknowledgement_after(sequence, &operation, |payload| echo = read(payload))? {
            Some(refusal) => Err(refusal),
            None => Ok(echo),
        }
    }

    /// Waits for the answer to one request: the refusal, if it is one.
    fn acknowledgement(&self, sequence: u32, operation: &str) -> Result<Option<Error>> {
        self.acknowledgement_after(sequence, operation, |_| ())
    }

    /// As [`Self::acknowledgement`], with a look at what the request was answered before it.
    fn acknowledgement_after(
        &self,
        sequence: u32,
        operation: &str,
        mut look: impl FnMut(&[u8]),
    ) -> Result<Option<Error>> {
        let mut answer = None;
        while answer.is_none() {
            self.receive(operation, |header, payload| {
                if header.sequence != sequence {
                    return Ok(());
                }
                match i32::from(header.kind) {
                    libc::NLMSG_ERROR => answer = Some(refusal(operation, payload)),
                    _ => look(payload),
                }
                Ok(())
            })?;
        }
        Ok(answer.flatten())
    }

    /// Sends requests between the two messages that make one transaction of them (`nfnetlink_rcv_batch`) and returns
    /// each one's own outcome, in order. If one is refused, none was done.
    ///
    /// # Errors
    /// The transaction as a whole was refused, or the conversation failed.
    pub(super) fn batch(&self, begin: Message, requests: Vec<Request>, end: Message) -> Result<Vec<Option<Error>>> {
        let whole = self.next_sequence();
        let mut datagram = begin.finish(whole, 0);
        let mut operations = Vec::with_capacity(requests.len());
        let last = requests.len().saturating_sub(1);
        for (position, request) in requests.into_iter().enumerate() {
            // The kernel answers in order, refusals without being asked: the last one's answer closes the list.
            // The first and last message answer on some kernels (6.10) and not on others, so they are not asked.
            let flags = if position == last { libc::NLM_F_ACK } else { 0 };
            let sequence = self.next_sequence();
            datagram.extend(request.message.finish(sequence, flags));
            operations.push((sequence, request.operation));
        }
        let Some((_, first)) = operations.first() else {
            return Ok(Vec::new());
        };
        mutation::before("nftables.transaction", format_args!("{first}, {} changes at once", operations.len()));
        datagram.extend(end.finish(self.next_sequence(), 0));
        self.send(first, &datagram)?;
        let mut outcomes = vec![None; operations.len()];
        let mut answered = false;
        while !answered {
            self.receive(first, |header, payload| {
                if i32::from(header.kind) != libc::NLMSG_ERROR {
                    return Ok(());
                }
                if header.sequence == whole {
                    return refusal(first, payload).map_or(Ok(()), Err);
                }
                if let Some(position) = operations.iter().position(|(sequence, _)| *sequence == header.sequence) {
                    outcomes[position] = refusal(&operations[position].1, payload);
                    answered |= position == last;
                }
                Ok(())
            })?;
        }
        Ok(outcomes)
    }

    /// Sends a request that is answered by one object. `ENODEV` and `ENOENT` mean there is none.
    ///
    /// # Errors
    /// Any other refusal.
    pub fn get<T>(&self, request: Request, mut read: impl FnMut(&[u8]) -> Option<T>) -> Result<Option<T>> {
        let sequence = self.next_sequence();
        let Request { message, operation } = request;
        self.send(&operation, &message.finish(sequence, 0))?;
        let mut answer = None;
        let mut answered = false;
        while !answered {
            let outcome = self.receive(&operation, |header, payload| {
                if header.sequence != sequence {
                    return Ok(());
                }
                answered = true;
                if i32::from(header.kind) == libc::NLMSG_ERROR {
                    return refusal(&operation, payload).map_or(Ok(()), Err);
                }
                answer = read(payload);
                Ok(())
            });
            match outcome {
                Err(error) if matches!(error.errno, Errno::ENODEV | Errno::ENOENT) => return Ok(None),
                other => other?,
            }
        }
        Ok(answer)
    }

    /// Sends a dump request and reads every object of the answer. A dump during which the kernel's tables changed
    /// (`NLM_F_DUMP_INTR`) is asked for again.
    ///
    /// # Errors
    /// The kernel's refusal, or tables that never stood still.
    pub fn dump<T>(&self, request: Request, mut read: impl FnMut(&[u8]) -> Option<T>) -> Result<Vec<T>> {
        let Request { message, operation } = request;
        for _ in 0..DUMP_TRIES {
            let sequence = self.next_sequence();
            self.send(&operation, &message.clone().finish(sequence, libc::NLM_F_DUMP))?;
            let mut objects = Vec::new();
            let mut done = false;
            let mut interrupted = false;
            while !done {
                self.receive(&operation, |header, payload| {
                    if header.sequence != sequence {
                        return Ok(());
                    }
                    interrupted |= i32::from(header.flags) & libc::NLM_F_DUMP_INTR != 0;
                    match i32::from(header.kind) {
                        libc::NLMSG_ERROR => {
                            done = true;
                            refusal(&operation, payload).map_or(Ok(()), Err)
                        }
                        libc::NLMSG_DONE => {
                            done = true;
                            failed_dump(&operation, payload).map_or(Ok(()), Err)
                        }
                        _ => {
                            objects.extend(read(payload));
                            Ok(())
                        }
                    }
                })?;
            }
            if !interrupted {
                return Ok(objects);
            }
        }
        Err(Error {
            operation,
            errno: Errno::EBUSY,
            message: Some("the kernel's tables kept changing while they were read".to_owned()),
        })
    }

    fn next_sequence(&self) -> u32 {
        let sequence = self.sequence.get();
        self.sequence.set(sequence.wrapping_add(1).max(1));
        sequence
    }

    fn send(&self, operation: &str, datagram: &[u8]) -> Result<()> {
        loop {
            match self.socket.send(datagram, 0) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(operation, &e)),
            }
        }
    }

    /// Reads one datagram and hands every message in it to `each`; the first error it returns is kept.
    fn receive(&self, operation: &str, mut each: impl FnMut(&Header, &[u8]) -> Result<()>) -> Result<()> {
        let mut buffer = self.buffer.borrow_mut();
        loop {
            buffer.clear();
            match self.socket.recv(&mut *buffer, 0) {
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Error {
                        operation: operation.to_owned(),
                        errno: Errno::ETIMEDOUT,
                        message: Some("the kernel's answer was lost".to_owned()),
                    });
                }
                Err(e) => return Err(Error::io(operation, &e)),
            }
        }
        let mut rest = &buffer[..];
        let mut outcome = Ok(());
        while let Some(header) = Header::read(rest) {
            let Some(payload) = rest.get(HEADER..header.length) else { break };
            let result = each(&header, payload);
            outcome = outcome.and(result);
            rest = rest.get(header.length.next_multiple_of(4)..).unwrap_or_default();
        }
        outcome
    }
}

/// What kind of change a request of the routing family is.
fn point(message: &Message) -> &'static str {
    let (kind, flags, family) = message.head();
    let on_bridge = i32::from(family) == libc::AF_BRIDGE;
    match kind {
        libc::RTM_NEWLINK if flags & libc::NLM_F_CREATE != 0 => "link.create",
        libc::RTM_NEWLINK => "link.change",
        libc::RTM_SETLINK => "vlan.add",
        libc::RTM_DELLINK if on_bridge => "vlan.remove",
        libc::RTM_DELLINK => "link.delete",
        libc::RTM_NEWADDR => "address.add",
        libc::RTM_DELADDR => "address.remove",
        libc::RTM_NEWROUTE => "route.add",
        libc::RTM_DELROUTE => "route.remove",
        libc::RTM_NEWNEIGH if on_bridge => "fdb.add",
        libc::RTM_NEWNEIGH => "neighbour.add",
        libc::RTM_DELNEIGH if on_bridge => "fdb.remove",
        libc::RTM_DELNEIGH => "neighbour.remove",
        _ => "netlink.request",
    }
}

struct Header {
    length: usize,
    kind: u16,
    flags: u16,
    sequence: u32,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let length = u32_at(bytes, 0)? as usize;
        (length >= HEADER).then_some(())?;
        Some(Self { length, kind: u16_at(bytes, 4)?, flags: u16_at(bytes, 6)?, sequence: u32_at(bytes, 8)? })
    }
}

/// The error in an `NLMSG_ERROR` payload; zero is an acknowledgement. With `NETLINK_CAP_ACK` the refused request's header
/// alone stands between the code and the attributes.
fn refusal(operation: &str, payload: &[u8]) -> Option<Error> {
    error_in(operation, payload, 4 + HEADER)
}

/// The error in an `NLMSG_DONE` payload, where the attributes follow the code at once (`netlink_dump_done`).
fn failed_dump(operation: &str, payload: &[u8]) -> Option<Error> {
    error_in(operation, payload, 4)
}

fn error_in(operation: &str, payload: &[u8], attributes: usize) -> Option<Error> {
    let code = u32_at(payload, 0)? as i32;
    if code >= 0 {
        return None;
    }
    let attributes = Attributes(payload.get(attributes..).unwrap_or_default());
    Some(Error {
        operation: operation.to_owned(),
        errno: Errno::from_raw(code.wrapping_neg()),
        message: attributes.get(ERROR_TEXT).map(text).filter(|m| !m.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_found_in_a_refusal_and_in_a_failed_dump() {
        let code = (-libc::EINVAL).to_ne_bytes();
        let words = [&[14, 0, 1, 0][..], b"Wrong mtu\0", &[0; 2]].concat();
        let refused = [&code[..], &[0; HEADER], &words].concat();
        let dump = [&code[..], &words].concat();
        for error in [refusal("create", &refused), failed_dump("create", &dump)] {
            assert_eq!(error.unwrap().to_string(), "create: Invalid argument (Wrong mtu)");
        }
        assert_eq!(refusal("create", &[&[0; 4][..], &[0; HEADER]].concat()), None);
        assert_eq!((failed_dump("list", &[0; 4]), failed_dump("list", &[])), (None, None));
    }
}
