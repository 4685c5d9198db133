//! ICMP echo (RFC 792, RFC 4443) by ourselves, out of one interface and from one address, so that a reply proves that
//! network and no other.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// How often an echo is sent before it counts as lost, and how long each is waited for.
const TRIES: u16 = 3;
const PATIENCE: Duration = Duration::from_secs(1);
const DATA: &[u8] = b"musubi demo";

/// One echo to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Echo {
    /// Out of which interface.
    pub interface: String,
    /// From which of its addresses.
    pub source: IpAddr,
    /// To whom, of the same family.
    pub destination: IpAddr,
}

impl Echo {
    /// Sends it from the calling thread's namespace and waits for the reply; returns the round trip of the one answered.
    ///
    /// # Errors
    /// No reply, or the kernel would not send.
    pub fn send(&self) -> io::Result<Duration> {
        let protocol = Protocol::of(self.source);
        let socket = self.socket(&protocol)?;
        let mut last = None;
        for sequence in 1..=TRIES {
            match exchange(&socket, &protocol, sequence) {
                Ok(time) => return Ok(time),
                Err(e) => last = Some(e),
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::TimedOut.into()))
    }

    fn socket(&self, protocol: &Protocol) -> io::Result<OwnedFd> {
        let socket = socket(protocol.family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol.number)?;
        setsockopt(&socket, sockopt::BindToDevice, &self.interface.as_str().into())?;
        bind(socket.as_raw_fd(), &address(self.source))?;
        connect(socket.as_raw_fd(), &address(self.destination))?;
        Ok(socket)
    }
}

/// What differs between the families.
struct Protocol {
    family: AddressFamily,
    number: SockProtocol,
    request: u8,
    reply: u8,
    /// A raw IPv4 socket delivers the IP header and leaves the checksum to us.
    is_v4: bool,
}

impl Protocol {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => {
                Self { family: AddressFamily::Inet, number: SockProtocol::Icmp, request: 8, reply: 0, is_v4: true }
            }
            IpAddr::V6(_) => Self {
                family: AddressFamily::Inet6,
                number: SockProtocol::IcmpV6,
                request: 128,
                reply: 129,
                is_v4: false,
            },
        }
    }

    fn message(&self, sequence: u16) -> Vec<u8> {
        let [id0, id1] = identifier();
        let [s0, s1] = sequence.to_be_bytes();
        let mut message = vec![self.request, 0, 0, 0, id0, id1, s0, s1];
        message.extend(DATA);
        if self.is_v4 {
            let sum = checksum(&message).to_be_bytes();
            message[2..4].copy_from_slice(&sum);
        }
        message
    }

    fn is_reply(&self, packet: &[u8], sequence: u16) -> bool {
        let header = match packet.first() {
            Some(first) if self.is_v4 => usize::from(first & 0xf) * 4,
            _ => 0,
        };
        let [id0, id1] = identifier();
        let [s0, s1] = sequence.to_be_bytes();
        match packet.get(header..) {
            Some([kind, 0, _, _, rest @ ..]) => {
                *kind == self.reply && rest.starts_with(&[id0, id1, s0, s1]) && rest.ends_with(DATA)
            }
            _ => false,
        }
    }
}

fn exchange(socket: &OwnedFd, protocol: &Protocol, sequence: u16) -> io::Result<Duration> {
    let sent = Instant::now();
    send(socket.as_raw_fd(), &protocol.message(sequence), MsgFlags::empty())?;
    let mut packet = [0; 1500];
    loop {
        let left = PATIENCE.saturating_sub(sent.elapsed());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no reply"));
        }
        let left = TimeVal::microseconds(i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1));
        setsockopt(socket, sockopt::ReceiveTimeout, &left)?;
        match recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Ok(length) if protocol.is_reply(packet.get(..length).unwrap_or_default(), sequence) => {
                return Ok(sent.elapsed());
            }
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Raw sockets see every reply of their namespace: ours carry this, which is our process's.
fn identifier() -> [u8; 2] {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    [high, low]
}

fn address(ip: IpAddr) -> SockaddrStorage {
    SocketAddr::new(ip, 0).into()
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded + (folded >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        // The RFC's own example, section 3.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[0xff]), !0xff00);
        assert_eq!(checksum(&[]), 0xffff);
    }

    #[test]
    fn only_our_own_reply_is_one() {
        let v4 = Protocol::of("10.0.0.1".parse().unwrap());
        let reply = |kind: u8, sequence: u16| {
            let mut packet = vec![0x45; 20];
            packet.extend(v4.message(sequence));
            packet[20] = kind;
            packet
        };
        assert!(v4.is_reply(&reply(0, 1), 1));
        let foreign: [(&str, Vec<u8>); 5] = [
            ("the request itself", reply(8, 1)),
            ("the reply to an earlier try", reply(0, 2)),
            ("unreachable", reply(3, 1)),
            ("cut short", reply(0, 1)[..24].to_vec()),
            ("nothing", Vec::new()),
        ];
        for (what, packet) in foreign {
            assert!(!v4.is_reply(&packet, 1), "{what}");
        }
    }
}
