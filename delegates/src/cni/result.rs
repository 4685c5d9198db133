//! What ADD answers, in all seven versions of the specification. In memory there is one shape, that
//! of 1.1.0; versions differ where a result is read and written, and nowhere else.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::error::{CniError, ConfigError, code};
use super::version::Version;
use super::view::{View, kind};

/// A result (CNI 1.1 §ADD Success).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniResult {
    /// The interfaces made, those on the host too.
    pub interfaces: Vec<Interface>,
    /// The addresses given.
    pub ips: Vec<IpConfig>,
    /// The routes made.
    pub routes: Vec<Route>,
    /// Name resolution.
    pub dns: Dns,
}

/// An interface made by ADD.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address; empty when it has none.
    pub mac: String,
    /// Its MTU in bytes; never zero.
    pub mtu: Option<u32>,
    /// The namespace it is in, as a path; empty for the host.
    pub sandbox: String,
    /// The path of a socket that is this interface (vhost-user).
    pub socket_path: String,
    /// The PCI address of its device.
    pub pci_id: String,
}

/// An address given by ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpConfig {
    /// Index into [`CniResult::interfaces`]. Absent is not zero.
    pub interface: Option<i64>,
    /// The address with its prefix length; host bits are kept.
    pub address: IpNet,
    /// The gateway of its subnet.
    pub gateway: Option<IpAddr>,
}

/// A route made by ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// The next hop; absent: the gateway of an address of that family.
    pub gw: Option<IpAddr>,
    /// The path MTU in bytes; never zero.
    pub mtu: Option<u32>,
    /// The maximal TCP segment to advertise, in bytes; never zero.
    pub advmss: Option<u32>,
    /// The metric; never zero, which is the kernel's default.
    pub priority: Option<i64>,
    /// The routing table.
    pub table: Option<i64>,
    /// The scope, as a number of rtnetlink(7).
    pub scope: Option<i64>,
}

/// Name resolution for the container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of servers.
    pub nameservers: Vec<String>,
    /// The local domain.
    pub domain: String,
    /// Search domains.
    pub search: Vec<String>,
    /// Options for the resolver.
    pub options: Vec<String>,
}

impl CniResult {
    /// Reads a result of the version it names, or of `default` when it names none. `null` is an
    /// empty result, as plugins print it. An unknown version is code 1; anything that is no result
    /// is code 6, with the position.
    pub fn parse(v: &Value, default: Version) -> Result<Self, CniError> {
        let map = match v {
            Value::Null => return Ok(Self::default()),
            Value::Object(map) => map,
            other => {
                return Err(CniError::new(code::DECODE, format!("a result must be an object, not {}", kind(other))));
            }
        };
        let view = View::of(map, "");
        let version = match view.text("cniVersion").map_err(undecodable)? {
            Some(text) => Version::parse(text)?,
            None => default,
        };
        let read = if version <= Version::V0_2_0 { read_two_families } else { read_lists };
        read(&view, version).map_err(undecodable)
    }

    /// Writes the result for `version`, with the keys in the order the reference plugins write
    /// them. What an older version cannot say is left out: up to 0.4.0 MTU, socket and PCI id of
    /// interfaces, up to 0.2.0 interfaces, all but the first address of a family, and what a route
    /// holds beside destination and gateway. Up to 0.2.0 a result without any address is an error
    /// (code 1).
    pub fn to_json(&self, version: Version) -> Result<Value, CniError> {
        let mut out = Map::new();
        out.insert("cniVersion".into(), version.as_str().into());
        if version <= Version::V0_2_0 {
            self.write_two_families(&mut out, version)?;
        } else {
            self.write_lists(&mut out, version);
        }
        Ok(Value::Object(out))
    }

    fn write_two_families(&self, out: &mut Map<String, Value>, version: Version) -> Result<(), CniError> {
        for (key, is_family) in FAMILIES {
            let Some(ip) = self.ips.iter().find(|ip| is_family(&ip.address)) else {
                continue;
            };
            let mut family = Map::new();
            family.insert("ip".into(), ip.address.to_string().into());
            put(&mut family, "gateway", ip.gateway.map(|gateway| gateway.to_string()));
            let routes = self.routes.iter().filter(|route| is_family(&route.dst));
            put_list(
                &mut family,
                "routes",
                routes.map(|route| Route { gw: route.gw, ..Route::to(route.dst) }.to_json(version)),
            );
            out.insert(key.into(), family.into());
        }
        if out.len() == 1 {
            let msg = format!("a result without an address cannot be written as CNI {version}");
            return Err(CniError::new(code::INCOMPATIBLE_VERSION, msg).with_details("use cniVersion 0.3.0 or newer"));
        }
        out.insert("dns".into(), self.dns.to_json(version));
        Ok(())
    }

    fn write_lists(&self, out: &mut Map<String, Value>, version: Version) {
        // From 1.0.0 the reference library writes keys in alphabetical order.
        let sorted = version >= Version::V1_0_0;
        if sorted && !self.dns.is_empty() {
            out.insert("dns".into(), self.dns.to_json(version));
        }
        put_list(out, "interfaces", self.interfaces.iter().map(|interface| interface.to_json(version)));
        put_list(out, "ips", self.ips.iter().map(|ip| ip.to_json(version)));
        put_list(out, "routes", self.routes.iter().map(|route| route.to_json(version)));
        if !sorted {
            out.insert("dns".into(), self.dns.to_json(version));
        }
    }
}

impl Interface {
    fn parse(view: &View, version: Version) -> Result<Self, ConfigError> {
        let owned = |key| Ok(view.string(key)?.unwrap_or_default().to_owned());
        let mut interface =
            Self { name: owned("name")?, mac: owned("mac")?, sandbox: owned("sandbox")?, ..Self::default() };
        if version >= Version::V1_0_0 {
            interface.mtu = positive(view, "mtu")?;
            interface.socket_path = owned("socketPath")?;
            interface.pci_id = owned("pciID")?;
        }
        Ok(interface)
    }

    fn to_json(&self, version: Version) -> Value {
        let mut out = Map::new();
        let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        if version >= Version::V1_0_0 {
            put(&mut out, "mac", text(&self.mac));
            put(&mut out, "mtu", self.mtu);
            out.insert("name".into(), self.name.as_str().into());
            put(&mut out, "pciID", text(&self.pci_id));
            put(&mut out, "sandbox", text(&self.sandbox));
            put(&mut out, "socketPath", text(&self.socket_path));
        } else {
            out.insert("name".into(), self.name.as_str().into());
            put(&mut out, "mac", text(&self.mac));
            put(&mut out, "sandbox", text(&self.sandbox));
        }
        out.into()
    }
}

impl IpConfig {
    fn parse(view: &View) -> Result<Self, ConfigError> {
        Ok(Self {
            interface: view.int("interface")?,
            address: required_net(view, "address")?,
            gateway: view.ip("gateway")?,
        })
    }

    fn to_json(&self, version: Version) -> Value {
        let mut out = Map::new();
        let gateway = self.gateway.map(|gateway| gateway.to_string());
        if version >= Version::V1_0_0 {
            out.insert("address".into(), self.address.to_string().into());
            put(&mut out, "gateway", gateway);
            put(&mut out, "interface", self.interface);
        } else {
            out.insert("version".into(), if is_v4(&self.address) { "4" } else { "6" }.into());
            put(&mut out, "interface", self.interface);
            out.insert("address".into(), self.address.to_string().into());
            put(&mut out, "gateway", gateway);
        }
        out.into()
    }
}

impl Route {
    /// A route to `dst` that says nothing more.
    pub fn to(dst: IpNet) -> Self {
        Self { dst, gw: None, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }

    /// Reads a route as results and IPAM configurations hold it.
    pub fn parse(view: &View) -> Result<Self, ConfigError> {
        Ok(Self {
            dst: required_net(view, "dst")?,
            gw: view.ip("gw")?,
            mtu: positive(view, "mtu")?,
            advmss: positive(view, "advmss")?,
            priority: view.int("priority")?.filter(|priority| *priority != 0),
            table: view.int("table")?,
            scope: view.int("scope")?,
        })
    }

    fn to_json(&self, version: Version) -> Value {
        let mut out = Map::new();
        let dst = self.dst.to_string();
        let gw = self.gw.map(|gw| gw.to_string());
        if version >= Version::V1_0_0 {
            put(&mut out, "advmss", self.advmss);
            out.insert("dst".into(), dst.into());
            put(&mut out, "gw", gw);
            put(&mut out, "mtu", self.mtu);
            put(&mut out, "priority", self.priority);
            put(&mut out, "scope", self.scope);
            put(&mut out, "table", self.table);
        } else {
            out.insert("dst".into(), dst.into());
            put(&mut out, "gw", gw);
            put(&mut out, "mtu", self.mtu);
            put(&mut out, "advmss", self.advmss);
            put(&mut out, "priority", self.priority);
            put(&mut out, "table", self.table);
            put(&mut out, "scope", self.scope);
        }
        out.into()
    }
}

impl Dns {
    /// Reads the `dns` of a result or a configuration; keys in errors are relative to it.
    pub fn parse(v: &Value) -> Result<Self, ConfigError> {
        match v {
            Value::Null => Ok(Self::default()),
            Value::Object(map) => Self::read(&View::of(map, "")),
            other => Err(ConfigError::new("dns", format!("must be an object, not {}", kind(other)))),
        }
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }

    fn read(view: &View) -> Result<Self, ConfigError> {
        let strings = |key| Ok(view.strings(key)?.unwrap_or_default().into_iter().map(str::to_owned).collect());
        Ok(Self {
            nameservers: strings("nameservers")?,
            domain: view.string("domain")?.unwrap_or_default().to_owned(),
            search: strings("search")?,
            options: strings("options")?,
        })
    }

    fn to_json(&self, version: Version) -> Value {
        let mut out = Map::new();
        let strings = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
        let domain = (!self.domain.is_empty()).then(|| self.domain.clone());
        if version >= Version::V1_0_0 {
            put(&mut out, "domain", domain);
            put(&mut out, "nameservers", strings(&self.nameservers));
            put(&mut out, "options", strings(&self.options));
            put(&mut out, "search", strings(&self.search));
        } else {
            put(&mut out, "nameservers", strings(&self.nameservers));
            put(&mut out, "domain", domain);
            put(&mut out, "search", strings(&self.search));
            put(&mut out, "options", strings(&self.options));
        }
        out.into()
    }
}

type IsFamily = fn(&IpNet) -> bool;

/// The keys that results up to 0.2.0 have for each address family.
const FAMILIES: [(&str, IsFamily); 2] = [("ip4", is_v4), ("ip6", |net| !is_v4(net))];

fn is_v4(net: &IpNet) -> bool {
    net.addr().is_ipv4()
}

/// 0.3.0 and newer.
fn read_lists(view: &View, version: Version) -> Result<CniResult, ConfigError> {
    Ok(CniResult {
        interfaces: view
            .objects("interfaces")?
            .iter()
            .map(|interface| Interface::parse(interface, version))
            .collect::<Result<_, _>>()?,
        ips: view.objects("ips")?.iter().map(IpConfig::parse).collect::<Result<_, _>>()?,
        routes: view.objects("routes")?.iter().map(Route::parse).collect::<Result<_, _>>()?,
        dns: read_dns(view)?,
    })
}

/// 0.1.0 and 0.2.0: one address of each family, with its routes, and no interfaces.
fn read_two_families(view: &View, _: Version) -> Result<CniResult, ConfigError> {
    let mut result = CniResult { dns: read_dns(view)?, ..CniResult::default() };
    for (key, is_family) in FAMILIES {
        let Some(family) = view.object(key)? else {
            continue;
        };
        let address = required_net(&family, "ip")?;
        if !is_family(&address) {
            return Err(family.error("ip", format!("{address} is of the other address family")));
        }
        result.ips.push(IpConfig { interface: None, address, gateway: family.ip("gateway")? });
        for route in family.objects("routes")? {
            result.routes.push(Route { gw: route.ip("gw")?, ..Route::to(required_net(&route, "dst")?) });
        }
    }
    Ok(result)
}

fn read_dns(view: &View) -> Result<Dns, ConfigError> {
    view.object("dns")?.map_or_else(|| Ok(Dns::default()), |dns| Dns::read(&dns))
}

fn required_net(view: &View, key: &str) -> Result<IpNet, ConfigError> {
    view.net(key)?.ok_or_else(|| view.error(key, "is missing; must be ADDRESS/PREFIX"))
}

/// Zero is how Go writes "not set" for these.
fn positive(view: &View, key: &str) -> Result<Option<u32>, ConfigError> {
    let number = view.uint(key, 0..=u64::from(u32::MAX))?;
    Ok(number.and_then(|n| u32::try_from(n).ok()).filter(|n| *n != 0))
}

fn undecodable(error: ConfigError) -> CniError {
    CniError::new(code::DECODE, format!("result: {error}"))
}

fn put(out: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        out.insert(key.into(), value.into());
    }
}

fn put_list(out: &mut Map<String, Value>, key: &str, values: impl Iterator<Item = Value>) {
    let values: Vec<_> = values.collect();
    if !values.is_empty() {
        out.insert(key.into(), values.into());
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn full() -> CniResult {
        CniResult {
            interfaces: vec![
                Interface { name: "br0".into(), mac: "02:00:00:00:00:01".into(), ..Interface::default() },
                Interface {
                    name: "eth0".into(),
                    mac: "02:00:00:00:00:02".into(),
                    mtu: Some(1450),
                    sandbox: "/run/netns/a".into(),
                    socket_path: "/run/s".into(),
                    pci_id: "0000:00:01.0".into(),
                },
            ],
            ips: vec![
                IpConfig {
                    interface: Some(0),
                    address: "10.1.2.3/24".parse().unwrap(),
                    gateway: Some("10.1.2.1".parse().unwrap()),
                },
                IpConfig { interface: None, address: "10.1.2.4/24".parse().unwrap(), gateway: None },
                IpConfig { interface: Some(1), address: "fd00::3/64".parse().unwrap(), gateway: None },
            ],
            routes: vec![
                Route {
                    gw: Some("10.1.2.1".parse().unwrap()),
                    mtu: Some(1400),
                    advmss: Some(1360),
                    priority: Some(7),
                    table: Some(0),
                    scope: Some(0),
                    ..Route::to("0.0.0.0/0".parse().unwrap())
                },
                Route::to("::/0".parse().unwrap()),
            ],
            dns: Dns {
                nameservers: vec!["10.96.0.10".into()],
                domain: "a".into(),
                search: vec!["b".into()],
                options: vec!["ndots:5".into()],
            },
        }
    }

    #[test]
    fn each_version_is_written_as_the_reference_plugins_write_it() {
        let dns_old = r#"{"nameservers":["10.96.0.10"],"domain":"a","search":["b"],"options":["ndots:5"]}"#;
        let two_families = |version: &str| {
            format!(
                r#"{{"cniVersion":"{version}","ip4":{{"ip":"10.1.2.3/24","gateway":"10.1.2.1","routes":[{{"dst":"0.0.0.0/0","gw":"10.1.2.1"}}]}},"ip6":{{"ip":"fd00::3/64","routes":[{{"dst":"::/0"}}]}},"dns":{dns_old}}}"#
            )
        };
        let lists = |version: &str| {
            format!(
                r#"{{"cniVersion":"{version}","interfaces":[{{"name":"br0","mac":"02:00:00:00:00:01"}},{{"name":"eth0","mac":"02:00:00:00:00:02","sandbox":"/run/netns/a"}}],"ips":[{{"version":"4","interface":0,"address":"10.1.2.3/24","gateway":"10.1.2.1"}},{{"version":"4","address":"10.1.2.4/24"}},{{"version":"6","interface":1,"address":"fd00::3/64"}}],"routes":[{{"dst":"0.0.0.0/0","gw":"10.1.2.1","mtu":1400,"advmss":1360,"priority":7,"table":0,"scope":0}},{{"dst":"::/0"}}],"dns":{dns_old}}}"#
            )
        };
        let sorted = |version: &str| {
            format!(
                r#"{{"cniVersion":"{version}","dns":{{"domain":"a","nameservers":["10.96.0.10"],"options":["ndots:5"],"search":["b"]}},"interfaces":[{{"mac":"02:00:00:00:00:01","name":"br0"}},{{"mac":"02:00:00:00:00:02","mtu":1450,"name":"eth0","pciID":"0000:00:01.0","sandbox":"/run/netns/a","socketPath":"/run/s"}}],"ips":[{{"address":"10.1.2.3/24","gateway":"10.1.2.1","interface":0}},{{"address":"10.1.2.4/24"}},{{"address":"fd00::3/64","interface":1}}],"routes":[{{"advmss":1360,"dst":"0.0.0.0/0","gw":"10.1.2.1","mtu":1400,"priority":7,"scope":0,"table":0}},{{"dst":"::/0"}}]}}"#
            )
        };
        for version in Version::ALL {
            let expected = match version {
                Version::V0_1_0 | Version::V0_2_0 => two_families(version.as_str()),
                Version::V0_3_0 | Version::V0_3_1 | Version::V0_4_0 => lists(version.as_str()),
                Version::V1_0_0 | Version::V1_1_0 => sorted(version.as_str()),
            };
            assert_eq!(full().to_json(version).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn an_empty_result_has_dns_up_to_0_4_0_and_none_from_1_0_0_and_cannot_be_0_2_0() {
        let empty = CniResult::default();
        assert_eq!(empty.to_json(Version::V1_1_0).unwrap().to_string(), r#"{"cniVersion":"1.1.0"}"#);
        assert_eq!(empty.to_json(Version::V0_4_0).unwrap().to_string(), r#"{"cniVersion":"0.4.0","dns":{}}"#);
        for version in [Version::V0_1_0, Version::V0_2_0] {
            assert_eq!(empty.to_json(version).unwrap_err().code, code::INCOMPATIBLE_VERSION);
        }
    }

    #[test]
    fn a_route_of_a_family_without_address_is_lost_at_0_2_0() {
        let mut result = full();
        result.ips.truncate(1);
        let written = result.to_json(Version::V0_2_0).unwrap();
        assert!(written.get("ip6").is_none());
        assert_eq!(CniResult::parse(&written, Version::V1_1_0).unwrap().routes.len(), 1);
    }

    #[test]
    fn missing_index_and_index_zero_stay_apart() {
        let read =
            |ips: Value| CniResult::parse(&json!({"cniVersion": "1.0.0", "ips": ips}), Version::LATEST).unwrap().ips;
        let ips = read(
            json!([{"address": "10.0.0.1/8", "interface": 0}, {"address": "10.0.0.2/8"}, {"address": "10.0.0.3/8", "interface": null}]),
        );
        assert_eq!(ips.iter().map(|ip| ip.interface).collect::<Vec<_>>(), [Some(0), None, None]);
    }

    #[test]
    fn what_plugins_print_is_read_whatever_the_case_of_keys_and_with_null_as_absent() {
        let read = |value: Value| CniResult::parse(&value, Version::V0_4_0).unwrap();
        assert_eq!(read(json!(null)), CniResult::default());
        assert_eq!(read(json!({})), CniResult::default());
        assert_eq!(
            read(json!({"cniVersion": "", "ips": null, "interfaces": null, "routes": null, "dns": null})),
            CniResult::default()
        );
        let capitals = read(
            json!({"IPs": [{"Version": "4", "Address": "10.0.0.9/16", "Gateway": ""}], "DNS": {"Nameservers": null, "Search": ["x"]}}),
        );
        assert_eq!(capitals.ips[0].address.to_string(), "10.0.0.9/16");
        assert_eq!(capitals.ips[0].gateway, None);
        assert_eq!(capitals.dns.search, ["x"]);
    }

    #[test]
    fn zero_is_not_set_where_go_leaves_it_out_and_a_value_elsewhere() {
        let zeros = json!({"interfaces": [{"name": "a", "mtu": 0}],
            "routes": [{"dst": "::/0", "mtu": 0, "advmss": 0, "priority": 0, "table": 0, "scope": 0}]});
        let read = CniResult::parse(&zeros, Version::V1_1_0).unwrap();
        assert_eq!(read.interfaces[0].mtu, None);
        assert_eq!(read.routes[0], Route { table: Some(0), scope: Some(0), ..Route::to("::/0".parse().unwrap()) });
    }

    #[test]
    fn the_version_in_the_result_counts_before_the_default() {
        let old =
            json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.9/16", "routes": [{"dst": "10.0.0.0/8", "mtu": 9}]}});
        let read = CniResult::parse(&old, Version::V1_1_0).unwrap();
        assert_eq!((read.ips.len(), read.routes[0].mtu, read.interfaces.len()), (1, None, 0));
        let unnamed = json!({"ip4": {"ip": "10.0.0.9/16"}});
        assert_eq!(CniResult::parse(&unnamed, Version::V0_1_0).unwrap().ips.len(), 1);
        assert_eq!(CniResult::parse(&unnamed, Version::V0_3_0).unwrap().ips.len(), 0);
        assert_eq!(
            CniResult::parse(&json!({"cniVersion": "3.0.0"}), Version::V1_1_0).unwrap_err().code,
            code::INCOMPATIBLE_VERSION
        );
    }

    #[test]
    fn what_is_no_result_is_refused_with_its_position() {
        let cases = [
            (json!([]), "a result must be an object"),
            (json!("x"), "a result must be an object"),
            (json!({"ips": {}}), "ips: must be a list, not an object"),
            (json!({"ips": [null]}), "ips[0]: must be an object, not null"),
            (json!({"ips": [{"address": "10.0.0.1/8"}, {}]}), "ips[1].address: is missing"),
            (json!({"ips": [{"address": "10.0.0.1"}]}), "ips[0].address: must be ADDRESS/PREFIX, not \"10.0.0.1\""),
            (json!({"ips": [{"address": "10.0.0.1/33"}]}), "ips[0].address: must be"),
            (json!({"ips": [{"address": ""}]}), "ips[0].address: must be"),
            (json!({"ips": [{"address": "10.0.0.1/8", "gateway": "10.0.0"}]}), "ips[0].gateway: must be an IP address"),
            (json!({"ips": [{"address": "10.0.0.1/8", "interface": "0"}]}), "ips[0].interface: must be a whole number"),
            (json!({"ips": [{"address": "10.0.0.1/8", "interface": 0.5}]}), "ips[0].interface: must be a whole number"),
            (json!({"routes": [{"gw": "10.0.0.1"}]}), "routes[0].dst: is missing"),
            (json!({"routes": [{"dst": ""}]}), "routes[0].dst: must be ADDRESS/PREFIX"),
            (
                json!({"routes": [{"dst": "::/0", "mtu": -1}]}),
                "routes[0].mtu: must be a whole number from 0 to 4294967295, not -1",
            ),
            (json!({"interfaces": [{"name": 1}]}), "interfaces[0].name: must be a string"),
            (json!({"interfaces": [{"mtu": 1e99}]}), "interfaces[0].mtu: must be"),
            (json!({"dns": {"nameservers": [1]}}), "dns.nameservers[0]: must be a string"),
            (json!({"cniVersion": "0.2.0", "ip4": {}}), "ip4.ip: is missing"),
            (json!({"cniVersion": "0.2.0", "ip4": {"ip": "fd00::1/64"}}), "ip4.ip: fd00::1/64 is of the other"),
            (json!({"cniVersion": "0.2.0", "ip6": {"ip": "10.0.0.1/8"}}), "ip6.ip: 10.0.0.1/8 is of the other"),
            (
                json!({"cniVersion": "0.2.0", "ip6": {"ip": "fd00::1/64", "routes": [{"dst": "x"}]}}),
                "ip6.routes[0].dst: must be",
            ),
        ];
        for (input, expected) in cases {
            let error = CniResult::parse(&input, Version::V1_1_0).unwrap_err();
            assert_eq!(error.code, code::DECODE, "{input}");
            assert!(error.msg.contains(expected), "{input}: {error}");
        }
    }

    #[test]
    fn dns_of_a_configuration_is_read_alone() {
        assert!(Dns::parse(&json!(null)).unwrap().is_empty());
        assert!(Dns::parse(&json!({})).unwrap().is_empty());
        assert_eq!(Dns::parse(&json!({"domain": "x"})).unwrap().domain, "x");
        assert_eq!(Dns::parse(&json!({"search": "x"})).unwrap_err().key, "search");
        assert_eq!(Dns::parse(&json!([])).unwrap_err().key, "dns");
    }

    fn net() -> impl Strategy<Value = IpNet> {
        let v4 = (any::<u32>(), 0..=32u8).prop_map(|(bits, len)| IpNet::new(Ipv4Addr::from(bits).into(), len).unwrap());
        let v6 =
            (any::<u128>(), 0..=128u8).prop_map(|(bits, len)| IpNet::new(Ipv6Addr::from(bits).into(), len).unwrap());
        prop_oneof![v4, v6]
    }

    fn ip() -> impl Strategy<Value = IpAddr> {
        net().prop_map(|net| net.addr())
    }

    fn interface() -> impl Strategy<Value = Interface> {
        let text = "[a-z0-9/:]{0,6}";
        (text, text, option::of(1..=u32::MAX), text, text, text).prop_map(
            |(name, mac, mtu, sandbox, socket_path, pci_id)| Interface { name, mac, mtu, sandbox, socket_path, pci_id },
        )
    }

    fn route() -> impl Strategy<Value = Route> {
        let size = || option::of(1..=u32::MAX);
        let number = || option::of(any::<i64>());
        let priority = option::of(any::<i64>().prop_filter("zero is not written", |n| *n != 0));
        (net(), option::of(ip()), size(), size(), priority, number(), number()).prop_map(
            |(dst, gw, mtu, advmss, priority, table, scope)| Route { dst, gw, mtu, advmss, priority, table, scope },
        )
    }

    fn dns() -> impl Strategy<Value = Dns> {
        let list = || prop::collection::vec(".{0,4}", 0..3);
        (list(), ".{0,4}", list(), list()).prop_map(|(nameservers, domain, search, options)| Dns {
            nameservers,
            domain,
            search,
            options,
        })
    }

    fn result() -> impl Strategy<Value = CniResult> {
        let ip_config = (option::of(any::<i64>()), net(), option::of(ip()))
            .prop_map(|(interface, address, gateway)| IpConfig { interface, address, gateway });
        (vec(interface(), 0..3), vec(ip_config, 0..4), vec(route(), 0..4), dns())
            .prop_map(|(interfaces, ips, routes, dns)| CniResult { interfaces, ips, routes, dns })
    }

    /// What is left of a result that went through `version`, as documented at `to_json`.
    fn reduced(result: &CniResult, version: Version) -> CniResult {
        let mut left = result.clone();
        if version <= Version::V0_4_0 {
            for interface in &mut left.interfaces {
                *interface =
                    Interface { mtu: None, socket_path: String::new(), pci_id: String::new(), ..interface.clone() };
            }
        }
        if version <= Version::V0_2_0 {
            left.interfaces.clear();
            let first = |v4: bool| result.ips.iter().find(|ip| ip.address.addr().is_ipv4() == v4);
            left.ips = [first(true), first(false)]
                .into_iter()
                .flatten()
                .map(|ip| IpConfig { interface: None, ..ip.clone() })
                .collect();
            let routes = |v4: bool| {
                result.routes.iter().filter(move |route| route.dst.addr().is_ipv4() == v4 && first(v4).is_some())
            };
            left.routes =
                routes(true).chain(routes(false)).map(|route| Route { gw: route.gw, ..Route::to(route.dst) }).collect();
        }
        left
    }

    proptest! {
        #[test]
        fn a_result_survives_each_version_but_for_what_that_cannot_say(result in result(), index in 0..Version::ALL.len()) {
            let version = Version::ALL[index];
            match result.to_json(version) {
                Ok(written) => prop_assert_eq!(CniResult::parse(&written, Version::LATEST).unwrap(), reduced(&result, version)),
                Err(_) => prop_assert!(version <= Version::V0_2_0 && result.ips.is_empty()),
            }
        }

        #[test]
        fn going_down_and_up_again_changes_nothing_more(result in result(), index in 0..Version::ALL.len()) {
            let version = Version::ALL[index];
            if let Ok(written) = result.to_json(version) {
                let read = CniResult::parse(&written, Version::LATEST).unwrap();
                prop_assert_eq!(read.to_json(version).unwrap(), written);
                let newest = read.to_json(Version::LATEST).unwrap();
                prop_assert_eq!(CniResult::parse(&newest, Version::V0_1_0).unwrap(), read);
            }
        }
    }
}
