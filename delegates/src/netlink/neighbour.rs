//! Forwarding entries of VXLAN devices by rtnetlink (`linux/neighbour.h`, family `AF_BRIDGE`, `NTF_SELF`).

use std::net::IpAddr;

use super::address::{ip, ip_bytes};
use super::mac::MacAddress;
use super::message::{Attributes, Message, u32_at};
use super::socket::{Netlink, Request, Result};

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NTF_SELF: u8 = 0x02;
const NUD_PERMANENT: u16 = 0x80;

/// A forwarding entry of a VXLAN device: frames to `mac` go to the VTEP `remote`. The all-zero MAC stands for
/// broadcast, unknown and multicast frames, which go to every such remote (head-end replication).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardingEntry {
    /// The device.
    pub index: u32,
    /// Frames to whom.
    pub mac: MacAddress,
    /// To which VTEP.
    pub remote: IpAddr,
    /// Whether it stays until removed; learned ones age.
    pub permanent: bool,
}

impl ForwardingEntry {
    /// The flood entry of a remote.
    #[must_use]
    pub fn flood(index: u32, remote: IpAddr) -> Self {
        Self { index, mac: MacAddress([0; 6]), remote, permanent: true }
    }

    /// The request that adds it beside others of the same MAC (`NLM_F_APPEND`).
    #[must_use]
    pub fn append(&self) -> Request {
        let message = Message::new(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_APPEND);
        Request::new(format!("add VTEP {}", self.remote), self.put(message))
    }

    /// The request that removes it.
    #[must_use]
    pub fn remove(&self) -> Request {
        Request::new(format!("remove VTEP {}", self.remote), self.put(Message::new(libc::RTM_DELNEIGH, 0)))
    }

    fn put(&self, message: Message) -> Message {
        let mut header = [0; 12];
        header[0] = libc::AF_BRIDGE as u8;
        header[4..8].copy_from_slice(&self.index.to_ne_bytes());
        header[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
        header[10] = NTF_SELF;
        message.fixed(&header).attr(NDA_LLADDR, self.mac).attr(NDA_DST, ip_bytes(self.remote))
    }

    fn read(payload: &[u8]) -> Option<Self> {
        let state = super::message::u16_at(payload, 8)?;
        let attributes = Attributes(payload.get(12..)?);
        Some(Self {
            index: u32_at(payload, 4)?,
            mac: MacAddress::from_bytes(attributes.get(NDA_LLADDR)?)?,
            remote: ip(attributes.get(NDA_DST)?)?,
            permanent: state & NUD_PERMANENT != 0,
        })
    }
}

impl Netlink {
    /// The forwarding entries of one device that name a remote.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn forwarding_entries(&self, index: u32) -> Result<Vec<ForwardingEntry>> {
        // A dump of AF_BRIDGE entries takes `struct ndmsg` with the device's index as its filter (rtnl_fdb_dump).
        let mut header = [0; 12];
        header[0] = libc::AF_BRIDGE as u8;
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let message = Message::new(libc::RTM_GETNEIGH, 0).fixed(&header);
        self.dump(Request::new(format!("list the forwarding entries of interface {index}"), message), |payload| {
            ForwardingEntry::read(payload).filter(|entry| entry.index == index)
        })
    }
}
