//! `vxlan`: a veth pair between the pod and a bridge on the host that a VXLAN device joins to the same VNI's bridges on
//! other nodes (RFC 7348). Device and bridge are shared by the VNI's pods and live in [`crate::vxlan_device`].

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::bridge_device::{self, BridgeDevice};
use crate::cni::{CniError, CniResult, ConfigError, Dns, NetConf, ValidAttachment, View, code};
use crate::configure::{self, Settings};
use crate::delegate::{Added, Attachment, Context, Delegate, OwnedLink};
use crate::interface::{self, Fitting};
use crate::ipam::Ipam;
use crate::netlink::{Link, MacAddress};
use crate::veth::{self, Pair, Wanted};
use crate::vxlan_device::{Flood, Present, Vni, VxlanDevice, remove_if_unused};

/// The port IANA assigned to VXLAN (RFC 7348, 8); the kernel's own default is an older one.
const PORT: u16 = 4789;
/// Position of the pod's interface in a result: after the bridge and the host's end.
const POD: usize = 2;

const KEYS: &[&str] = &[
    "vni",
    "master",
    "local",
    "port",
    "group",
    "remotes",
    "learning",
    "mtu",
    "bridge",
    "isGateway",
    "mac",
    "enabledad",
];

/// A parsed `vxlan` configuration.
#[derive(Debug)]
pub struct Vxlan {
    device: VxlanDevice,
    is_gateway: bool,
    settings: Settings,
    /// From `runtimeConfig` or `args`, above `CNI_ARGS`.
    requested_mac: Option<MacAddress>,
    /// The configuration's own, below `CNI_ARGS`.
    default_mac: Option<MacAddress>,
    dns: Dns,
    ipam: Option<Ipam>,
    warnings: Vec<String>,
}

impl Delegate for Vxlan {
    fn parse(conf: &NetConf) -> Result<Self, ConfigError> {
        let view = conf.view();
        let vni = vni(&view)?;
        let (local, flood) = underlay(&view)?;
        let ipam = Ipam::parse(conf)?;
        let is_gateway = view.bool("isGateway")?;
        let bridge = interface::interface_name(&view, "bridge")?.unwrap_or_else(|| vni.bridge_name());
        if bridge == vni.device_name() {
            return Err(
                view.error("bridge", format!("\"{bridge}\" is the name of the VNI's VXLAN interface; choose another"))
            );
        }
        let device = VxlanDevice {
            vni,
            master: interface::interface_name(&view, "master")?,
            local,
            port: view.uint("port", 1..=65535)?.and_then(|port| u16::try_from(port).ok()).unwrap_or(PORT),
            flood,
            learning: view.opt_bool("learning")?.unwrap_or(true),
            mtu: interface::mtu(&view)?,
            bridge: BridgeDevice {
                name: bridge,
                mtu: None,
                promiscuous: false,
                vlan_filtering: false,
                group: Some(vni.link_group()),
                force_address: false,
            },
        };
        let mut warnings = interface::unknown_keys(conf, KEYS);
        if is_gateway && ipam.is_none() {
            warnings.push(
                "key \"isGateway\" has no effect without \"ipam\": there is no address to be the gateway of".to_owned(),
            );
        }
        warnings.extend(ipam.iter().flat_map(Ipam::warnings));
        Ok(Self {
            device,
            is_gateway,
            settings: Settings { detect_duplicates: view.bool("enabledad")?, ..Settings::default() },
            requested_mac: interface::requested_mac(conf, true)?,
            default_mac: interface::mac(&view, "mac")?,
            dns: interface::dns(conf)?,
            ipam,
            warnings,
        })
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    fn add(&self, at: &Attachment<'_>) -> Result<Added, CniError> {
        let mac = self.requested_mac.or(interface::mac_argument(at)?).or(self.default_mac);
        at.pod()?;
        let (present, pair) = self.connect(at, mac)?;
        let added = interface::complete(at, pair.links(), || self.finish(at, &present.bridge, &pair));
        added.map_err(|error| self.undo_shared(at, &present, error))
    }

    fn check(&self, at: &Attachment<'_>, result: &CniResult) -> Result<(), CniError> {
        let differs = |what: String| Err(CniError::new(code::DELEGATE, what));
        if let Some(ipam) = &self.ipam {
            ipam.check(at)?;
        }
        let Present { bridge, .. } = self.device.check(at)?;
        let inside = configure::verify(at.pod()?, at.interface.as_str(), "veth", result)?;
        if !inside.is_up() {
            return differs(format!("interface \"{}\" is down", at.interface));
        }
        let Some(port) = veth::host_end(at)? else {
            return differs(format!("the host's end of interface \"{}\" is gone", at.interface));
        };
        if port.master != Some(bridge.index) {
            return differs(format!("interface \"{}\" is no port of bridge \"{}\" any more", port.name, bridge.name));
        }
        if self.is_gateway { self.check_gateways(at, &bridge, result) } else { Ok(()) }
    }

    fn detach(&self, at: &Attachment<'_>) -> Result<Vec<OwnedLink>, CniError> {
        interface::pod_link(at, "veth")
    }

    fn release(&self, at: &Attachment<'_>) -> Result<(), CniError> {
        let addresses = interface::ipam_release(self.ipam.as_ref(), at);
        let shared = if at.agent_removes_shared { Ok(()) } else { self.remove_shared(at) };
        addresses.and(shared)
    }

    fn status(&self, cx: &Context<'_>) -> Result<(), CniError> {
        self.device.status(cx)?;
        interface::ipam_status(self.ipam.as_ref(), cx)
    }

    fn gc(&self, cx: &Context<'_>, valid: &[ValidAttachment]) -> Result<(), CniError> {
        let addresses = interface::ipam_gc(self.ipam.as_ref(), cx, valid);
        addresses.and(self.remove_shared(cx))
    }
}

impl Vxlan {
    /// The VNI and the configured bridge: what an agent needs to remove them later with
    /// [`remove_if_unused`](crate::vxlan_device::remove_if_unused).
    #[must_use]
    pub fn shared(&self) -> (Vni, &str) {
        (self.device.vni, &self.device.bridge.name)
    }

    /// Makes the pair, and before it what the VNI lacks on the host, all under one lock: a bridge with a port is in use.
    fn connect(&self, at: &Attachment<'_>, mac: Option<MacAddress>) -> Result<(Present, Pair), CniError> {
        let lock = self.device.lock(at)?;
        let present = self.device.ensure(at, &lock)?;
        let wanted = Wanted { mac, mtu: Some(present.device.mtu), master: Some(present.bridge.index) };
        match Pair::create(at, wanted) {
            Ok(pair) => Ok((present, pair)),
            Err(error) => {
                drop(lock);
                Err(self.undo_shared(at, &present, error))
            }
        }
    }

    /// Takes device and bridge back after a failed ADD, unless others use them or an agent will do it.
    fn undo_shared(&self, at: &Attachment<'_>, present: &Present, error: CniError) -> CniError {
        if !present.is_new && at.agent_removes_shared {
            return error;
        }
        interface::undone(error, self.remove_shared(at))
    }

    fn remove_shared(&self, cx: &Context<'_>) -> Result<(), CniError> {
        remove_if_unused(cx.host, cx.state_dir, self.device.vni, &self.device.bridge.name).map(drop)
    }

    fn finish(&self, at: &Attachment<'_>, bridge: &Link, pair: &Pair) -> Result<CniResult, CniError> {
        let [outside, inside] = pair.interfaces(at);
        let fitting = Fitting {
            ipam: self.ipam.as_ref(),
            interfaces: vec![veth::interface(bridge, String::new()), outside, inside],
            position: POD,
            settings: self.settings,
        };
        let mut result = fitting.fit(at, &pair.pod, |result| {
            if self.is_gateway {
                let gateways = bridge_device::complete_gateways(result);
                self.device.bridge.be_gateway(at, bridge, &gateways)?;
            }
            Ok(())
        })?;
        if let Err(error) = pair.wait_for_port(at) {
            return Err(interface::undone(error, interface::ipam_release(self.ipam.as_ref(), at)));
        }
        if !self.dns.is_empty() {
            result.dns = self.dns.clone();
        }
        Ok(result)
    }

    fn check_gateways(&self, at: &Attachment<'_>, bridge: &Link, result: &CniResult) -> Result<(), CniError> {
        let present = at.host.netlink.addresses(bridge.index)?;
        for ip in result.ips.iter().filter(|ip| ip.interface == i64::try_from(POD).ok()) {
            if let Some(gateway) = ip.gateway
                && !present.iter().any(|address| address.net.addr() == gateway)
            {
                return Err(CniError::new(
                    code::DELEGATE,
                    format!("bridge \"{}\" has lost the gateway address {gateway}", bridge.name),
                ));
            }
        }
        Ok(())
    }
}

fn vni(view: &View<'_>) -> Result<Vni, ConfigError> {
    let number = view.uint("vni", 1..=u64::from(Vni::MAX))?;
    number.and_then(|n| Vni::new(u32::try_from(n).ok()?)).ok_or_else(|| {
        view.error(
            "vni",
            format!("is missing; set it to the network's number, 1 to {}, the same on every node", Vni::MAX),
        )
    })
}

/// The VNI and the bridge of a configuration that has gone wrong since ADD, as far as they can still be read.
#[must_use]
pub fn shared_of(conf: &NetConf) -> Option<(Vni, String)> {
    let view = conf.view();
    let vni = vni(&view).ok()?;
    Some((vni, interface::interface_name(&view, "bridge").ok().flatten().unwrap_or_else(|| vni.bridge_name())))
}

/// The addresses of the underlay, all of one family.
fn underlay(view: &View<'_>) -> Result<(Option<IpAddr>, Flood), ConfigError> {
    let local = address(view, "local")?;
    if let Some(local) = local {
        check_vtep(local).map_err(|problem| view.error("local", problem))?;
    }
    let group = address(view, "group")?;
    let flood = match (group, view.list("remotes")?) {
        (Some(_), Some(_)) => {
            return Err(view.error("remotes", "cannot be set together with group; choose multicast or a list of VTEPs"));
        }
        (Some(group), None) if !group.is_multicast() => {
            return Err(
                view.error("group", format!("{group} is no multicast address; accepted are 224.0.0.0/4 and ff00::/8"))
            );
        }
        (Some(group), None) => {
            same_family(local, group).map_err(|problem| view.error("group", problem))?;
            Flood::Group(group)
        }
        (None, _) => Flood::Remotes(remotes(view, local)?),
    };
    Ok((local, flood))
}

fn remotes(view: &View<'_>, local: Option<IpAddr>) -> Result<BTreeSet<IpAddr>, ConfigError> {
    let mut remotes = BTreeSet::new();
    for (i, text) in view.strings("remotes")?.unwrap_or_default().into_iter().enumerate() {
        let wrong = |problem: String| view.error(&format!("remotes[{i}]"), problem);
        let remote: IpAddr = text.parse().map_err(|_| wrong("must be the IP address of a VTEP".to_owned()))?;
        let remote = remote.to_canonical();
        check_vtep(remote).map_err(wrong)?;
        same_family(local.or(remotes.first().copied()), remote).map_err(wrong)?;
        if local == Some(remote) {
            return Err(wrong(format!("{remote} is this node's own address (local); list the others")));
        }
        if !remotes.insert(remote) {
            return Err(wrong(format!("{remote} is listed twice")));
        }
    }
    Ok(remotes)
}

fn address(view: &View<'_>, key: &str) -> Result<Option<IpAddr>, ConfigError> {
    Ok(view.ip(key)?.map(|address| address.to_canonical()))
}

/// Whether an address can be a VTEP's. A link-local one means nothing without the interface it is on.
fn check_vtep(address: IpAddr) -> Result<(), String> {
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    if address.is_multicast() || address.is_unspecified() || link_local || broadcast {
        return Err(format!("{address} cannot be a VTEP's; accepted are unicast addresses that are not link-local"));
    }
    Ok(())
}

fn same_family(other: Option<IpAddr>, address: IpAddr) -> Result<(), String> {
    match other.filter(|other| other.is_ipv4() != address.is_ipv4()) {
        Some(other) => Err(format!("{address} and {other} are of different families; the underlay is IPv4 or IPv6")),
        None => Ok(()),
    }
}
