//! AttachmentPolicies applied: what the pods and definitions of a namespace may use. The same at admission, in `lint` and at
//! ADD. A namespace that no policy selects has no fence; one that is selected has what its policies grant together, and
//! nothing else. Which key a field governs is in `keys`; what a configuration uses, its parser says.

mod json;
mod keys;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;

use ipnet::IpNet;
use musubi_crds::policy::{AddressRange, DelegateGrant, DelegateKind, NAMESPACE_NAME_LABEL, Verdict};
use musubi_crds::{AttachmentPolicySpec, NetworkSelection};
use musubi_delegates::cni::{CniError, ConfList, ConfigError, NetConf, Version, code};
use musubi_delegates::registry;
use musubi_delegates::uses::{Below, Uses, uses};
use serde_json::{Map, Value, json};

use self::json::{texts, unambiguous, walk};
use self::keys::{Governor, PATH_KEYS, governor, is_path};

/// The labels of a namespace.
pub type Labels = BTreeMap<String, String>;

/// VXLAN's port where a policy names none.
const VXLAN_PORT: u32 = 4789;

/// The policies that are in force.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Policies(BTreeMap<String, AttachmentPolicySpec>);

impl Policies {
    /// Adds a policy, or replaces the one of that name; whether there was none.
    pub fn insert(&mut self, name: String, spec: AttachmentPolicySpec) -> bool {
        self.0.insert(name, spec).is_none()
    }

    /// Removes a policy.
    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Whether labels have to be known to say which policies select a namespace.
    #[must_use]
    pub fn need_labels(&self, namespace: &str) -> bool {
        self.0.values().any(|spec| spec.needs_labels(namespace))
    }

    /// The fence around a namespace, if a policy selects it. Its own name counts as a label, as in Kubernetes.
    #[must_use]
    pub fn fence(&self, namespace: &str, labels: &Labels) -> Option<Fence<'_>> {
        let mut labels = Cow::Borrowed(labels);
        if labels.get(NAMESPACE_NAME_LABEL).is_none_or(|name| name != namespace) {
            labels.to_mut().insert(NAMESPACE_NAME_LABEL.to_owned(), namespace.to_owned());
        }
        let selects = |spec: &AttachmentPolicySpec| {
            spec.namespaces.contains(namespace)
                || spec.namespace_selector.as_ref().is_some_and(|selector| selector.selects(&labels))
        };
        let policies: Vec<_> = self.0.iter().filter(|(_, spec)| selects(spec)).map(|(n, s)| (n.as_str(), s)).collect();
        (!policies.is_empty()).then(|| Fence { namespace: namespace.to_owned(), policies })
    }
}

/// What a namespace may use: the union of its policies.
#[derive(Debug, Clone)]
pub struct Fence<'a> {
    namespace: String,
    policies: Vec<(&'a str, &'a AttachmentPolicySpec)>,
}

impl<'a> Fence<'a> {
    /// Whether pods of the namespace may name definitions of another.
    ///
    /// # Errors
    /// They may not (code 7).
    pub fn definitions_of(&self, namespace: &str) -> Result<(), CniError> {
        let granted = namespace == self.namespace
            || self.specs().any(|spec| spec.definitions.from_namespaces.contains(namespace));
        if granted {
            return Ok(());
        }
        let from = self.specs().flat_map(|spec| &spec.definitions.from_namespaces);
        Err(CniError::new(
            code::CONFIG,
            format!("{} no definition of namespace {namespace} to namespace {}", self.grants(), self.namespace),
        )
        .with_details(granted_are("use a definition of the pod's own namespace", from)))
    }

    /// Whether a definition of the namespace may leave its configuration to a file of the node.
    ///
    /// # Errors
    /// It may not (code 7).
    pub fn node_file(&self) -> Result<(), CniError> {
        if self.paths() {
            return Ok(());
        }
        Err(ConfigError::new(
            "spec.config",
            format!("is missing, and {} no files of the node to namespace {}", self.grants(), self.namespace),
        )
        .into())
    }

    /// Whether a definition of the namespace may say what it says. `list` is the definition as it was written.
    ///
    /// # Errors
    /// The first key that is not granted, with its path (code 7), or that is wrong.
    pub fn definition(&self, list: &ConfList) -> Result<(), ConfigError> {
        for index in 0..list.plugins.len() {
            let at = |e: ConfigError| if list.plugins.len() > 1 { e.under(&format!("plugins[{index}]")) } else { e };
            let conf = list.request(index, None, &Map::new()).map_err(|e| ConfigError::new("name", e.msg))?;
            self.plugin(&conf, list.version, index > 0).map_err(at)?;
        }
        Ok(())
    }

    /// Whether a pod of the namespace may ask for what it asks of a network, wherever that is defined. Where the node gets
    /// routes to the network's subnets, an address asks for the whole of its own.
    ///
    /// # Errors
    /// The first key that is not granted (code 7).
    pub fn requests(&self, selection: &NetworkSelection, list: &ConfList) -> Result<(), CniError> {
        let node_has_subnets = node_has_subnets(list);
        let is_granted = |net: IpNet| match node_has_subnets {
            true => self.covers(net.network(), net.broadcast()),
            false => self.has_address(net.addr()),
        };
        let refused = |key: &str, problem: String| Err(CniError::from(ConfigError::new(key, problem)));
        if let Some(ip) = selection.ips.iter().find(|ip| !lenient_net(&ip.to_string()).is_some_and(is_granted)) {
            return refused("ips", self.no_address(ip));
        }
        if selection.device_id.is_some() && !self.paths() {
            return refused("deviceID", self.no_path());
        }
        let Some(arguments) = &selection.cni_args else { return Ok(()) };
        let arguments = Value::Object(arguments.clone());
        self.no_paths_in("cni-args", &arguments)?;
        texts(&arguments, "cni-args", &mut |path, text| match lenient_net(text) {
            Some(net) if !is_granted(net) => Err(ConfigError::new(path, self.no_address(&text))),
            _ => Ok(()),
        })?;
        Ok(())
    }

    /// Whether overlaps with other namespaces' definitions are granted.
    #[must_use]
    pub fn overlaps(&self) -> bool {
        self.specs().any(|spec| spec.overlaps == Verdict::Allow)
    }

    /// `policy blue` or `policies blue, green`.
    #[must_use]
    pub fn name(&self) -> String {
        let names: Vec<&str> = self.policies.iter().map(|(name, _)| *name).collect();
        let word = if names.len() == 1 { "policy" } else { "policies" };
        format!("{word} {}", names.join(", "))
    }

    fn specs(&self) -> impl Iterator<Item = &'a AttachmentPolicySpec> {
        self.policies.iter().map(|(_, spec)| *spec)
    }

    fn paths(&self) -> bool {
        self.specs().any(|spec| spec.paths == Verdict::Allow)
    }

    fn plugin(&self, conf: &NetConf, version: Version, chained: bool) -> Result<(), ConfigError> {
        unambiguous(&Value::Object(conf.0.clone()), "")?;
        let view = conf.view();
        let plugin_type = view.text("type")?.unwrap_or_default();
        let kind = DelegateKind::of(plugin_type);
        match kind {
            Some(_) => self.keys(conf, plugin_type)?,
            None => {
                self.external("type", plugin_type)?;
                self.no_paths_in("", &Value::Object(conf.0.clone()))?;
            }
        }
        if let Some(ipam) = view.object("ipam")?
            && let Some(ipam_type) = ipam.text("type")?
            && !matches!(ipam_type, "host-local" | "static")
        {
            self.external("ipam.type", ipam_type)?;
        }
        let used = uses(&before_plan(conf.clone(), version, chained))?;
        self.addresses(&used)?;
        kind.map_or(Ok(()), |kind| self.stands_on(kind, &used))
    }

    /// Every key of a bundled plugin has a row, and what the rows say by themselves holds.
    fn keys(&self, conf: &NetConf, plugin_type: &str) -> Result<(), ConfigError> {
        let known = registry::keys(plugin_type).unwrap_or_default();
        let external_ipam = conf.view().object("ipam")?.and_then(|ipam| ipam.text("type").ok().flatten());
        let external_ipam = external_ipam.is_some_and(|t| !matches!(t, "host-local" | "static"));
        let mut found = Ok(());
        walk(&Value::Object(conf.0.clone()), "", "", &mut |bare, path, value| {
            if found.is_err() || value.is_null() {
                return false;
            }
            if external_ipam && bare.eq_ignore_ascii_case("ipam") {
                found = self.no_paths_in(path, value);
                return false;
            }
            let is_known = known.iter().any(|key| key.eq_ignore_ascii_case(bare)) || bare.contains('.');
            match governor(bare).filter(|_| is_known) {
                Some(Governor::Inside) => return true,
                Some(Governor::Paths) if !self.paths() && !is_empty(value) => {
                    found = Err(ConfigError::new(path, self.no_path()));
                }
                Some(Governor::Never) => {
                    found = Err(ConfigError::new(path, format!("is not for a definition to set in {}", self.place())));
                }
                Some(Governor::Free(_)) => found = self.no_paths_in(path, value),
                Some(_) => {}
                None => {
                    let problem = format!("is no key of {plugin_type}, and no others may be set in {}", self.place());
                    found = Err(ConfigError::new(path, problem));
                }
            }
            false
        });
        found
    }

    fn external(&self, key: &str, plugin_type: &str) -> Result<(), ConfigError> {
        let granted = || self.specs().flat_map(|spec| &spec.external_plugins);
        if granted().any(|pattern| pattern.matches(plugin_type)) {
            return Ok(());
        }
        Err(self.not_granted(key, &plugin_type.escape_debug(), granted()))
    }

    /// What a kind is made on. A VLAN may come from another grant than the next one, but each from one that grants all of
    /// the rest, too.
    fn stands_on(&self, kind: DelegateKind, used: &Uses) -> Result<(), ConfigError> {
        let of_kind: Vec<&DelegateGrant> =
            self.specs().flat_map(|spec| &spec.delegates).filter(|grant| grant.kind == kind).collect();
        if of_kind.is_empty() {
            let granted = self.specs().flat_map(|spec| &spec.delegates).map(|grant| grant.kind.as_str());
            return Err(self.not_granted("type", &kind.as_str(), granted));
        }
        let mut grants = of_kind;
        if let Some(master) = &used.master {
            let shown = match master {
                Below::Named(name) => name,
                Below::Found => "the master of the default route",
            };
            let fits = |grant: &DelegateGrant| {
                grant.masters.iter().any(|pattern| match master {
                    Below::Named(name) => pattern.matches(name),
                    Below::Found => pattern.is_any(),
                })
            };
            grants = self.narrow("master", &shown, grants, fits, |grant| texts_of(&grant.masters))?;
        }
        if let Some(bridge) = used.bridge.as_ref().filter(|_| !used.is_own_bridge) {
            let fits = |grant: &DelegateGrant| grant.bridges.iter().any(|pattern| pattern.matches(bridge));
            grants = self.narrow("bridge", bridge, grants, fits, |grant| texts_of(&grant.bridges))?;
        }
        if let Some(vni) = used.vni {
            let fits = |grant: &DelegateGrant| grant.vnis.iter().any(|range| range.contains(vni));
            grants = self.narrow("vni", &vni, grants, fits, |grant| texts_of(&grant.vnis))?;
        }
        if let Some(port) = used.port.map(u32::from) {
            let fits = |grant: &DelegateGrant| match grant.ports.as_slice() {
                [] => port == VXLAN_PORT,
                ports => ports.iter().any(|range| range.contains(port)),
            };
            grants = self.narrow("port", &port, grants, fits, |grant| match grant.ports.as_slice() {
                [] => vec![VXLAN_PORT.to_string()],
                ports => texts_of(ports),
            })?;
        }
        for (key, vtep) in &used.vteps {
            let fits =
                |grant: &DelegateGrant| grant.vteps.is_empty() || grant.vteps.iter().any(|range| range.contains(*vtep));
            grants = self.narrow(key, vtep, grants, fits, |grant| texts_of(&grant.vteps))?;
        }
        for (key, range) in &used.vlans {
            for vlan in range.clone().map(u32::from) {
                if !grants.iter().any(|grant| grants_vlan(grant, vlan)) {
                    let granted = grants.iter().flat_map(|grant| texts_of(&grant.vlans));
                    let shown = if vlan == 0 { "frames without a VLAN".to_owned() } else { format!("VLAN {vlan}") };
                    return Err(self.not_granted(key, &shown, granted));
                }
            }
        }
        Ok(())
    }

    /// The grants that fit; an error naming all that there were when none does.
    fn narrow<'g>(
        &self,
        key: &str,
        value: &dyn Display,
        grants: Vec<&'g DelegateGrant>,
        fits: impl Fn(&DelegateGrant) -> bool,
        texts: impl Fn(&DelegateGrant) -> Vec<String>,
    ) -> Result<Vec<&'g DelegateGrant>, ConfigError> {
        let (fitting, others): (Vec<_>, Vec<_>) = grants.into_iter().partition(|grant| fits(grant));
        if fitting.is_empty() {
            return Err(self.not_granted(key, value, others.into_iter().flat_map(texts)));
        }
        Ok(fitting)
    }

    /// What pods may be given, what the node takes as their gateway, and what it gets routes to.
    fn addresses(&self, used: &Uses) -> Result<(), ConfigError> {
        let wrong = |what: &dyn Display| ConfigError::new("ipam", self.no_address(what));
        for (subnet, addresses) in &used.addresses {
            if used.node_has_subnets && !self.covers(subnet.network(), subnet.broadcast()) {
                return Err(wrong(subnet));
            }
            if !self.covers(*addresses.start(), *addresses.end()) {
                return Err(match addresses.start() == addresses.end() {
                    true => wrong(addresses.start()),
                    false => wrong(&format!("{}-{}", addresses.start(), addresses.end())),
                });
            }
        }
        match used.gateways.iter().find(|gateway| used.node_is_gateway && !self.has_address(**gateway)) {
            Some(gateway) => Err(wrong(&format!("the gateway {gateway}"))),
            None => Ok(()),
        }
    }

    fn granted_addresses(&self) -> impl Iterator<Item = &'a AddressRange> {
        self.specs().flat_map(|spec| &spec.addresses)
    }

    fn has_address(&self, address: IpAddr) -> bool {
        self.granted_addresses().any(|range| range.contains(address))
    }

    /// Whether all addresses from a first to a last are granted, by one range or by several that meet.
    fn covers(&self, first: IpAddr, last: IpAddr) -> bool {
        let (mut next, last) = (first.to_canonical(), last.to_canonical());
        loop {
            let reach = self.granted_addresses().filter(|range| range.contains(next)).map(AddressRange::last).max();
            match reach {
                None => return false,
                Some(reach) if reach >= last => return true,
                Some(reach) => match after(reach) {
                    Some(address) => next = address,
                    None => return false,
                },
            }
        }
    }

    fn no_paths_in(&self, path: &str, value: &Value) -> Result<(), ConfigError> {
        if self.paths() {
            return Ok(());
        }
        texts(value, path, &mut |path, text| {
            let key = path.rsplit('.').next().unwrap_or_default().split('[').next().unwrap_or_default();
            let is_path_key = PATH_KEYS.iter().any(|known| known.eq_ignore_ascii_case(key));
            if is_path(text) || (is_path_key && !text.is_empty()) {
                return Err(ConfigError::new(path, self.no_path()));
            }
            Ok(())
        })
    }

    /// `namespace blue, which policy blue limits`.
    fn place(&self) -> String {
        let verb = if self.policies.len() == 1 { "limits" } else { "limit" };
        format!("namespace {}, which {} {verb}", self.namespace, self.name())
    }

    /// `policy blue grants` or `policies blue, green grant`.
    fn grants(&self) -> String {
        format!("{} {}", self.name(), if self.policies.len() == 1 { "grants" } else { "grant" })
    }

    fn no_path(&self) -> String {
        format!("{} no files, sockets and devices of the node to namespace {}", self.grants(), self.namespace)
    }

    fn no_address(&self, what: &dyn Display) -> String {
        let granted = listed(self.granted_addresses());
        format!("{what} is not among the addresses that {} to namespace {}: {granted}", self.grants(), self.namespace)
    }

    fn not_granted(
        &self,
        key: &str,
        value: &dyn Display,
        granted: impl IntoIterator<Item = impl Display>,
    ) -> ConfigError {
        ConfigError::new(
            key,
            format!("{value} is not among what {} to namespace {}: {}", self.grants(), self.namespace, listed(granted)),
        )
    }
}

fn grants_vlan(grant: &DelegateGrant, vlan: u32) -> bool {
    match grant.vlans.as_slice() {
        [] => vlan == 0,
        vlans => vlans.iter().any(|range| range.contains(vlan)),
    }
}

fn texts_of<T: Display>(values: &[T]) -> Vec<String> {
    values.iter().map(T::to_string).collect()
}

fn listed(granted: impl IntoIterator<Item = impl Display>) -> String {
    let mut texts: Vec<String> = granted.into_iter().map(|text| text.to_string()).collect();
    texts.dedup();
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}

fn granted_are(advice: &str, granted: impl IntoIterator<Item = impl Display>) -> String {
    format!("{advice}; granted are: {}", listed(granted))
}

fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(v6) => u128::from(v6).checked_add(1).map(|n| IpAddr::V6(n.into())),
    }
}

/// An address with or without a prefix.
fn lenient_net(text: &str) -> Option<IpNet> {
    let text = text.trim();
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// Whether a plugin of a network has the node route to its subnets; where that cannot be read, it counts as if.
fn node_has_subnets(list: &ConfList) -> bool {
    let has = |index| {
        let conf = list.request(index, None, &Map::new()).map(|conf| before_plan(conf, list.version, index > 0));
        conf.map_or(true, |conf| uses(&conf).map_or(true, |used| used.node_has_subnets))
    };
    (0..list.plugins.len()).any(has)
}

/// A configuration as the plan parses it: what comes before it in a chain is known only at ADD.
fn before_plan(mut conf: NetConf, version: Version, chained: bool) -> NetConf {
    if chained {
        conf.insert("prevResult", json!({"cniVersion": version.as_str()}));
    }
    conf
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_str().is_some_and(str::is_empty)
}
