//! What ADD answers, in all seven versions of the specification. In memory there is one shape, that of 1.1.0; versions differ
//! where a result is read and written, and nowhere else.

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
    /// Reads a result of the version it names, or of `default` when it names none. `null` is an empty result, as plugins
    /// print it. An unknown version is code 1; anything that is no result is code 6, with the position.
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

    /// Writes the result for `version`, with the keys in the order the reference plugins write them. What an older version cannot say is
    /// left out: up to 0.4.0 MTU, socket and PCI id of interfaces, up to 0.2.0 interfaces, all but the first address of a family, and what a
    /// route holds beside destination and gateway. Up to 0.2.0 a result without any address is an error (code 1).
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
