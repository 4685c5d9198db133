//! VLAN membership of bridges and their ports by rtnetlink (`linux/if_bridge.h`, family `AF_BRIDGE`).

use super::message::{Attributes, Message, u16_at, u32_at};
use super::socket::{Netlink, Request, Result};

const IFLA_BRIDGE_FLAGS: u16 = 0;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const BRIDGE_FLAGS_SELF: u16 = 2;
const PVID: u16 = 1 << 1;
const UNTAGGED: u16 = 1 << 2;
const RANGE_BEGIN: u16 = 1 << 3;
const RANGE_END: u16 = 1 << 4;
const RTEXT_FILTER_BRVLAN: u32 = 1 << 1;

/// How a port, or the bridge itself, takes part in a range of VLANs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct VlanMembership {
    /// First VLAN id, 1–4094.
    pub first: u16,
    /// Last VLAN id; the same as `first` for a single one.
    pub last: u16,
    /// Frames that arrive without a tag belong to it.
    pub pvid: bool,
    /// Frames leave without a tag.
    pub untagged: bool,
}

impl VlanMembership {
    /// The port's access VLAN: untagged in both directions.
    #[must_use]
    pub fn access(id: u16) -> Self {
        Self { first: id, last: id, pvid: true, untagged: true }
    }

    /// Tagged membership in a range.
    #[must_use]
    pub fn tagged(first: u16, last: u16) -> Self {
        Self { first, last, pvid: false, untagged: false }
    }

    /// The request that adds it to a port, or with `on_bridge` to the bridge itself.
    #[must_use]
    pub fn add(self, index: u32, on_bridge: bool) -> Request {
        self.request("add", libc::RTM_SETLINK, index, on_bridge)
    }

    /// The request that removes it.
    #[must_use]
    pub fn remove(self, index: u32, on_bridge: bool) -> Request {
        self.request("remove", libc::RTM_DELLINK, index, on_bridge)
    }

    fn request(self, verb: &str, kind: u16, index: u32, on_bridge: bool) -> Request {
        let mut header = [0; 16];
        header[0] = libc::AF_BRIDGE as u8;
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let flags = if self.pvid { PVID } else { 0 } | if self.untagged { UNTAGGED } else { 0 };
        let info = |flags: u16, id: u16| [flags.to_ne_bytes(), id.to_ne_bytes()].concat();
        let message = Message::new(kind, 0).fixed(&header).nest(libc::IFLA_AF_SPEC, |spec| {
            let spec = if on_bridge { spec.u16(IFLA_BRIDGE_FLAGS, BRIDGE_FLAGS_SELF) } else { spec };
            if self.first == self.last {
                spec.attr(IFLA_BRIDGE_VLAN_INFO, info(flags, self.first))
            } else {
                spec.attr(IFLA_BRIDGE_VLAN_INFO, info(flags | RANGE_BEGIN, self.first))
                    .attr(IFLA_BRIDGE_VLAN_INFO, info(flags | RANGE_END, self.last))
            }
        });
        Request::new(format!("{verb} VLAN {}-{}", self.first, self.last), message)
    }
}

impl Netlink {
    /// The VLANs of one port or bridge, each by itself: ranges are not put together again.
    ///
    /// # Errors
    /// The kernel's refusal; `EOPNOTSUPP` on kernels without bridge VLAN filtering.
    pub fn vlans(&self, index: u32) -> Result<Vec<VlanMembership>> {
        let mut header = [0; 16];
        header[0] = libc::AF_BRIDGE as u8;
        let message = Message::new(libc::RTM_GETLINK, 0).fixed(&header).u32(super::link::EXT_MASK, RTEXT_FILTER_BRVLAN);
        let request = Request::new(format!("list the VLANs of interface {index}"), message);
        let links = self.dump(request, |payload| (u32_at(payload, 4)? == index).then(|| payload.to_vec()))?;
        Ok(links.iter().flat_map(|payload| read(payload)).collect())
    }
}

fn read(payload: &[u8]) -> Vec<VlanMembership> {
    let spec = Attributes(payload.get(16..).unwrap_or_default()).nested(libc::IFLA_AF_SPEC);
    spec.filter(|(kind, _)| *kind == IFLA_BRIDGE_VLAN_INFO)
        .filter_map(|(_, value)| {
            let (flags, id) = (u16_at(value, 0)?, u16_at(value, 2)?);
            Some(VlanMembership { first: id, last: id, pvid: flags & PVID != 0, untagged: flags & UNTAGGED != 0 })
        })
        .collect()
}
