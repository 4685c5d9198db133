//! `vxlan`: a veth pair between the pod and a bridge on the host that a VXLAN device joins to the same VNI's bridges on
//! other nodes (RFC 7348). Device and bridge are shared by the VNI's pods and live in [`crate::vxlan_device`].

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::bridge_device::{self, BridgeDevice};
use crate::cni::{CniError, CniResult, ConfigError, Dns, NetConf, ValidAttachment, View, code};
use crate::configure::{self, Settings};
use crate::delegate::{Added, Attachment, Context, Delegate, OwnedLink, Side};
use crate::interface::{self, Fitting};
use crate::ipam::Ipam;
use crate::netlink::{Link, MacAddress};
use crate::uses::{self, Uses};
use crate::veth::{self, Pair, Wanted};
use crate::vxlan_device::{Flood, Present, Vni, VxlanDevice, remove_if_unused};

/// The port IANA assigned to VXLAN (RFC 7348, 8); the kernel's own default is an older one.
const PORT: u16 = 4789;
/// Position of the pod's interface in a result: after the bridge and the host's end.
const POD: usize = 2;

/// The keys of this kind beside the common ones.
pub(crate) const KEYS: &[&str] = &[
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
            settings: Settings { detect_duplicates: view.bool("enabledad")?, opens_later: true, ..Settings::default() },
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

    fn uses(&self) -> Uses {
        let device = &self.device;
        let flood = match &device.flood {
            Flood::Group(group) => vec![("group", *group)],
            Flood::Remotes(remotes) => remotes.iter().map(|remote| ("remotes", *remote)).collect(),
        };
        Uses {
            master: uses::below(device.master.as_ref()),
            bridge: Some(device.bridge.name.clone()),
            is_own_bridge: device.bridge.name == device.vni.bridge_name(),
            vni: Some(device.vni.get()),
            port: Some(device.port),
            vteps: device.local.map(|local| ("local", local)).into_iter().chain(flood).collect(),
            node_is_gateway: self.is_gateway,
            node_has_subnets: self.is_gateway,
            ..Uses::default()
        }
        .with_ipam(self.ipam.as_ref())
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
        if self.is_gateway { self.device.bridge.check_gateways(at, &bridge, None, result) } else { Ok(()) }
    }

    fn detach(&self, at: &Attachment<'_>) -> Result<Vec<OwnedLink>, CniError> {
        match at.prev_result.filter(|_| at.pod.is_none()) {
            // While the kernel still has the host's end, the bridge would look used.
            Some(result) => {
                Ok(veth::host_end_of(at, result)?.iter().map(|link| OwnedLink::of(Side::Host, link)).collect())
            }
            None => interface::pod_link(at, "veth"),
        }
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
    /// [`remove_if_unused`].
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
            interfaces: vec![interface::described(bridge, String::new()), outside, inside],
            position: POD,
            settings: self.settings,
            open: &|| pair.open_port(at, true),
        };
        let mut result = fitting.fit(at, &pair.pod, |result| {
            if self.is_gateway {
                let gateways = bridge_device::complete_gateways(result);
                self.device.bridge.be_gateway(at, bridge, &gateways)?;
            }
            Ok(())
        })?;
        if !self.dns.is_empty() {
            result.dns = self.dns.clone();
        }
        Ok(result)
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(keys: Value) -> Result<Vxlan, ConfigError> {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "net", "type": "vxlan"});
        conf.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        Vxlan::parse(&NetConf(conf.as_object().unwrap().clone()))
    }

    fn remotes(list: &[&str]) -> Flood {
        Flood::Remotes(list.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn the_vni_alone_is_enough() {
        let parsed = parse(json!({"vni": 42})).unwrap();
        let device = &parsed.device;
        assert_eq!((device.vni.get(), device.port, device.learning, device.mtu), (42, 4789, true, None));
        assert_eq!((device.master.as_deref(), device.local, &device.flood), (None, None, &remotes(&[])));
        assert_eq!(parsed.shared(), (Vni::new(42).unwrap(), "mbr42"));
        assert_eq!(parsed.warnings, Vec::<String>::new());
    }

    #[test]
    fn every_key_is_read() {
        let parsed = parse(json!({"vni": 16_777_215, "master": "eth1", "local": "192.0.2.1", "port": 8472,
            "remotes": ["192.0.2.3", "192.0.2.2"], "learning": false, "mtu": 1400, "bridge": "br7", "isGateway": true,
            "mac": "02:00:00:00:00:07", "enabledad": true, "dns": {"domain": "example.org"},
            "ipam": {"type": "static", "addresses": [{"address": "10.0.0.2/24"}]}}))
        .unwrap();
        let device = &parsed.device;
        assert_eq!((device.vni.get(), device.port, device.learning, device.mtu), (16_777_215, 8472, false, Some(1400)));
        assert_eq!((device.master.as_deref(), device.local), (Some("eth1"), "192.0.2.1".parse().ok()));
        assert_eq!(device.flood, remotes(&["192.0.2.2", "192.0.2.3"]));
        assert_eq!(device.bridge.name, "br7");
        assert!(parsed.is_gateway && parsed.settings.detect_duplicates && parsed.ipam.is_some());
        assert_eq!(parsed.default_mac.map(|mac| mac.to_string()).as_deref(), Some("02:00:00:00:00:07"));
        assert_eq!(parsed.dns.domain, "example.org");
        assert_eq!(parsed.warnings, Vec::<String>::new());
    }

    #[test]
    fn where_frames_to_everybody_go() {
        for (keys, expected) in [
            (json!({"group": "239.1.1.1"}), Flood::Group("239.1.1.1".parse().unwrap())),
            (json!({"group": "ff05::1", "local": "2001:db8::1"}), Flood::Group("ff05::1".parse().unwrap())),
            (json!({"group": "239.1.1.1", "remotes": null}), Flood::Group("239.1.1.1".parse().unwrap())),
            (json!({"remotes": []}), remotes(&[])),
            (json!({"group": "", "remotes": ["2001:db8::2"]}), remotes(&["2001:db8::2"])),
            (json!({"remotes": ["::ffff:192.0.2.2"], "local": "192.0.2.1"}), remotes(&["192.0.2.2"])),
        ] {
            let mut keys = keys;
            keys["vni"] = json!(7);
            assert_eq!(parse(keys.clone()).unwrap().device.flood, expected, "{keys}");
        }
    }

    #[test]
    fn wrong_configurations_name_the_key_and_what_is_accepted() {
        let missing = "vni: is missing; set it to the network's number, 1 to 16777215, the same on every node";
        let number = "vni: must be a whole number from 1 to 16777215, not ";
        let vtep = "accepted are unicast addresses that are not link-local";
        for (keys, expected) in [
            (json!({"vni": null}), missing.to_owned()),
            (json!({"vni": 0}), format!("{number}0")),
            (json!({"vni": 16_777_216}), format!("{number}16777216")),
            (json!({"vni": "7"}), format!("{number}\"7\"")),
            (json!({"port": 0}), "port: must be a whole number from 1 to 65535, not 0".to_owned()),
            (json!({"port": 65536}), "port: must be a whole number from 1 to 65535, not 65536".to_owned()),
            (json!({"learning": 1}), "learning: must be true or false, not 1".to_owned()),
            (
                json!({"mtu": 60}),
                "mtu: 60 is less than an IPv4 packet needs; accepted are 0 and 68 to 65535".to_owned(),
            ),
            (json!({"local": "here"}), "local: must be an IP address, not \"here\"".to_owned()),
            (json!({"local": "224.0.0.1"}), format!("local: 224.0.0.1 cannot be a VTEP's; {vtep}")),
            (json!({"local": "fe80::1"}), format!("local: fe80::1 cannot be a VTEP's; {vtep}")),
            (
                json!({"group": "192.0.2.1"}),
                "group: 192.0.2.1 is no multicast address; accepted are 224.0.0.0/4 and ff00::/8".to_owned(),
            ),
            (
                json!({"group": "ff05::1", "local": "192.0.2.1"}),
                "group: ff05::1 and 192.0.2.1 are of different families; the underlay is IPv4 or IPv6".to_owned(),
            ),
            (
                json!({"group": "239.0.0.1", "remotes": []}),
                "remotes: cannot be set together with group; choose multicast or a list of VTEPs".to_owned(),
            ),
            (json!({"remotes": "192.0.2.2"}), "remotes: must be a list, not \"192.0.2.2\"".to_owned()),
            (json!({"remotes": ["192.0.2.2", 7]}), "remotes[1]: must be a string, not 7".to_owned()),
            (json!({"remotes": ["192.0.2.2/24"]}), "remotes[0]: must be the IP address of a VTEP".to_owned()),
            (json!({"remotes": ["0.0.0.0"]}), format!("remotes[0]: 0.0.0.0 cannot be a VTEP's; {vtep}")),
            (json!({"remotes": ["239.0.0.1"]}), format!("remotes[0]: 239.0.0.1 cannot be a VTEP's; {vtep}")),
            (json!({"remotes": ["192.0.2.2", "192.0.2.2"]}), "remotes[1]: 192.0.2.2 is listed twice".to_owned()),
            (
                json!({"remotes": ["192.0.2.1"], "local": "192.0.2.1"}),
                "remotes[0]: 192.0.2.1 is this node's own address (local); list the others".to_owned(),
            ),
            (
                json!({"remotes": ["192.0.2.2", "2001:db8::2"]}),
                "remotes[1]: 2001:db8::2 and 192.0.2.2 are of different families; the underlay is IPv4 or IPv6"
                    .to_owned(),
            ),
            (
                json!({"bridge": "mvx7"}),
                "bridge: \"mvx7\" is the name of the VNI's VXLAN interface; choose another".to_owned(),
            ),
            (json!({"mac": "01:00:5e:00:00:01"}), "mac: 01:00:5e:00:00:01 is a group address".to_owned()),
        ] {
            let mut conf = json!({"vni": 7});
            conf.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
            let error = parse(conf).unwrap_err();
            assert_eq!(error.code, code::CONFIG, "{keys}");
            assert!(error.to_string().starts_with(&expected), "{keys}: {error}");
        }
        for name in ["a-name-of-16-bytes", "a/b", ".."] {
            for key in ["bridge", "master"] {
                assert_eq!(parse(json!({"vni": 7, key: name})).unwrap_err().key, key, "{name}");
            }
        }
    }

    #[test]
    fn what_is_ignored_is_said() {
        let warnings = parse(json!({"vni": 7, "vlan": 3, "isGateway": true})).unwrap().warnings;
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("\"vlan\""), "{warnings:?}");
        assert!(warnings[1].contains("isGateway"), "{warnings:?}");
    }
}
