//! The plan: which networks, in which order, under which interface names, with which configuration. Pure: what is planned
//! here is what ADD does and `explain` shows.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use musubi_crds::NetworkSelection;
use musubi_delegates::cni::{CniError, ConfList, ConfigError, InterfaceName, NetConf, code};
use musubi_delegates::registry::{self, Runs};
use serde_json::{Map, Value, json};

use crate::check::{definition, request};
use crate::config::Config;
use crate::devices::{Device, Devices, Taken};
use crate::networks::{Network, Wanted};

/// What ADD is to do for one pod.
#[derive(Debug)]
pub struct Plan {
    /// The attachments in the order they are made; the cluster default is the first.
    pub attachments: Vec<Planned>,
    /// What is ignored or uncertain, one line each.
    pub warnings: Vec<String>,
}

/// One attachment.
#[derive(Debug)]
pub struct Planned {
    /// `namespace/name` for a definition, the configuration's own name otherwise.
    pub network: String,
    /// Its interface in the pod.
    pub interface: InterfaceName,
    /// Whether it is the cluster default.
    pub default: bool,
    /// The network's configuration list.
    pub list: ConfList,
    /// Its plugins with what each is sent.
    pub delegates: Vec<PlannedDelegate>,
    /// Pairs added to `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// What the annotation asks for by capability; the plugins' configurations hold it already.
    pub by_capability: Map<String, Value>,
    /// The gateways of the pod's default route, where this network is to have it; an empty list means those that its own
    /// IPAM returns.
    pub default_route: Option<Vec<IpAddr>>,
    /// The device that was allocated to it; the plugins' configurations name it already.
    pub device: Option<Device>,
    /// Where that device is described, for the plugins to read and to rewrite.
    pub device_info_file: Option<PathBuf>,
}

/// One plugin of an attachment.
pub struct PlannedDelegate {
    /// Its `type`.
    pub plugin_type: String,
    /// Whether we do it ourselves.
    pub runs: Runs,
    /// What it is sent, `prevResult` aside.
    pub conf: NetConf,
}

impl fmt::Debug for PlannedDelegate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlannedDelegate").field("plugin_type", &self.plugin_type).finish_non_exhaustive()
    }
}

/// Plans the attachments of a pod. `interface` is the one the runtime asked for; `devices` are taken from in plan order.
///
/// # Errors
/// Code 7 (or 2 for a value that nobody here serves): names the network, the key and what is accepted.
pub fn plan(
    config: &Config,
    wanted: Vec<Wanted>,
    interface: &InterfaceName,
    mut devices: Devices,
) -> Result<Plan, CniError> {
    let mut attachments = Vec::with_capacity(wanted.len());
    let mut warnings = config.warnings.clone();
    for (position, wanted) in wanted.into_iter().enumerate() {
        let name = wanted.network.name.clone();
        let planned = attachment(config, wanted, position, interface, &mut devices, &mut warnings);
        attachments.push(planned.map_err(|e| definition::in_network(&name, e))?);
    }
    unique_interfaces(&attachments)?;
    let requests = attachments.iter().filter_map(|a| Some((a.network.as_str(), a.default_route.as_deref()?)));
    request::one_default_route(requests)?;
    Ok(Plan { attachments, warnings })
}

/// Plans one network for a pod that runs already; its selection names the interface.
///
/// # Errors
/// As [`plan`].
pub fn hot_plugged(config: &Config, wanted: Wanted, mut devices: Devices) -> Result<(Planned, Vec<String>), CniError> {
    // Any place but the first, which is the default network's.
    const PLACE: usize = 1;
    let (name, mut warnings) = (wanted.network.name.clone(), Vec::new());
    let unused = InterfaceName::parse("eth0")?;
    let planned = attachment(config, wanted, PLACE, &unused, &mut devices, &mut warnings);
    Ok((planned.map_err(|e| definition::in_network(&name, e))?, warnings))
}

/// What is wrong with the plugins of a network, each by itself: the errors that planning would end with one after the other.
#[must_use]
pub fn wrong_plugins(config: &Config, list: &ConfList) -> Vec<CniError> {
    let wrong = |index| delegate(config, list, index, &Map::new(), None).err();
    (0..list.plugins.len()).filter_map(wrong).collect()
}

fn attachment(
    config: &Config,
    wanted: Wanted,
    position: usize,
    interface: &InterfaceName,
    devices: &mut Devices,
    warnings: &mut Vec<String>,
) -> Result<Planned, CniError> {
    let Wanted { network, mut selection } = wanted;
    let device = device(&network, selection.as_mut(), devices, warnings)?;
    let list = network.list;
    let default = position == 0;
    let requested = selection.as_ref().and_then(|s| s.interface.as_ref());
    let interface = match requested {
        Some(name) => InterfaceName::parse(name.as_str())?,
        None if default => interface.clone(),
        None => InterfaceName::parse(&format!("net{position}"))?,
    };
    let mut runtime_config = if default { config.runtime_config.clone() } else { Map::new() };
    let mut args = Vec::new();
    let mut by_capability = Map::new();
    if let Some(selection) = &selection {
        let requests = request::requests(config, selection, &list)?;
        let named = |text: &String| format!("network {}: {text}", network.name);
        warnings.extend(requests.warnings.iter().map(named));
        warnings.extend(
            selection
                .unknown_keys
                .iter()
                .map(|key| named(&format!("annotation key \"{}\" is not known and is ignored", key.escape_debug()))),
        );
        args = requests.args;
        by_capability = requests.runtime_config;
        runtime_config.extend(by_capability.clone());
    }
    let device_info_file = (device.is_some() || request::declares(&list, "CNIDeviceInfoFile"))
        .then(|| devices.info_file(interface.as_str()))
        .flatten();
    runtime_config.extend(device.as_ref().map(|device| ("deviceID".to_owned(), device.id.as_str().into())));
    let info_path = device_info_file.as_ref().map(|file| file.to_string_lossy().into_owned().into());
    runtime_config.extend(info_path.map(|path| ("CNIDeviceInfoFile".to_owned(), path)));
    let mut delegates = Vec::with_capacity(list.plugins.len());
    for index in 0..list.plugins.len() {
        let mut planned = delegate(config, &list, index, &runtime_config, selection.as_ref())?;
        if let Runs::Native(native) = &planned.runs {
            warnings.extend(native.warnings().iter().map(|w| format!("network {}: {w}", network.name)));
        }
        if let Some(device) = &device {
            planned.conf.insert("deviceID", device.id.as_str());
            planned.conf.insert("pciBusID", device.id.as_str());
        }
        delegates.push(planned);
    }
    Ok(Planned {
        network: network.name,
        interface,
        default,
        list,
        delegates,
        args,
        by_capability,
        default_route: selection.and_then(|s| s.default_route),
        device,
        device_info_file,
    })
}

/// The device of a network. One that the annotation names is used only if none comes from the resource, as in Multus; that a
/// device was to come from the resource and there is none, it does not make up for.
fn device(
    network: &Network,
    selection: Option<&mut NetworkSelection>,
    devices: &mut Devices,
    warnings: &mut Vec<String>,
) -> Result<Option<Device>, CniError> {
    let requested = selection.as_ref().is_some_and(|selection| selection.device_id.is_some());
    let needed_by = request::needs_device(&network.list, selection.as_deref());
    let Some(resource) = &network.resource_name else {
        return needed_by.map_or(Ok(None), |plugin_type| Err(request::no_resource(plugin_type)));
    };
    match devices.take(resource) {
        Taken::Device(device) => {
            if let Some(selection) = selection.filter(|_| requested) {
                selection.device_id = None;
                warnings.push(format!(
                    "network {}: key \"deviceID\" is ignored: resource \"{}\" gives the device",
                    network.name,
                    resource.escape_debug()
                ));
            }
            Ok(Some(device))
        }
        Taken::None { is_allocatable } if is_allocatable || needed_by.is_some() => {
            Err(request::no_device(resource, needed_by))
        }
        Taken::None { .. } => Ok(None),
        Taken::Unasked => {
            warnings.push(format!(
                "network {}: where the kubelet has allocated a device of resource \"{}\" to the pod, ADD puts its id into the configuration of every plugin, as \"deviceID\" and \"pciBusID\"",
                network.name,
                resource.escape_debug()
            ));
            Ok(None)
        }
    }
}

fn delegate(
    config: &Config,
    list: &ConfList,
    index: usize,
    runtime_config: &Map<String, Value>,
    selection: Option<&NetworkSelection>,
) -> Result<PlannedDelegate, CniError> {
    let mut conf = list.request(index, None, runtime_config)?;
    if let Some(arguments) = selection.and_then(|s| s.cni_args.as_ref()) {
        merge_arguments(&mut conf, arguments)?;
    }
    let plugin_type = conf.plugin_type()?.to_owned();
    let mut parsed = conf.clone();
    if index > 0 {
        // Some plugins may leave out keys when they are not the first; what comes before is known only at ADD.
        parsed.insert("prevResult", json!({"cniVersion": list.version.as_str()}));
    }
    let at = |e: ConfigError| if list.plugins.len() > 1 { e.under(&format!("plugins[{index}]")) } else { e };
    let runs = registry::decide(&plugin_type, &parsed, |t| config.allows_native(t)).map_err(at)?;
    Ok(PlannedDelegate { plugin_type, runs, conf })
}

/// The annotation's `cni-args` go into `args.cni` and win over what the definition has there (multi-net 4.1.2.1).
fn merge_arguments(conf: &mut NetConf, arguments: &Map<String, Value>) -> Result<(), CniError> {
    let object = |value: Option<&Value>, key: &str| match value {
        None => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map.clone()),
        Some(_) => {
            Err(CniError::from(ConfigError::new(key, "must be an object for \"cni-args\" to be merged into it")))
        }
    };
    let mut args = object(conf.get("args"), "args")?;
    let mut cni = object(args.get("cni"), "args.cni")?;
    cni.extend(arguments.clone());
    args.insert("cni".to_owned(), Value::Object(cni));
    conf.insert("args", Value::Object(args));
    Ok(())
}

fn unique_interfaces(attachments: &[Planned]) -> Result<(), CniError> {
    let mut taken: HashMap<&str, &Planned> = HashMap::new();
    for planned in attachments {
        if let Some(other) = taken.insert(planned.interface.as_str(), planned) {
            return Err(CniError::new(
                code::CONFIG,
                format!(
                    "network {}: key \"interface\": \"{}\" is already the interface of network {}",
                    planned.network, planned.interface, other.network
                ),
            )
            .with_details(
                "give each network an interface name of its own; names that are not given are net<position>",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use musubi_crds::{DEFAULT_NETWORK_ANNOTATION, NETWORKS_ANNOTATION, NetworkStatus};
    use proptest::prelude::*;

    use super::*;
    use crate::check::policy::{Labels, Policies};
    use crate::devices::Pool;
    use crate::networks;
    use crate::store::{Definition, Pod, PodQuery, Store};

    /// One definition under every name.
    struct Everywhere(String);

    impl Store for Everywhere {
        fn pod(&self, _: &PodQuery<'_>) -> Result<Option<Pod>, CniError> {
            Ok(None)
        }

        fn network(&self, namespace: &str, name: &str) -> Result<Option<Definition>, CniError> {
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            Ok(Some(Definition { namespace, name, config: Some(self.0.clone()), ..Definition::default() }))
        }

        fn policies(&self) -> Result<Arc<Policies>, CniError> {
            Ok(Arc::default())
        }

        fn labels(&self, _: &str) -> Result<Labels, CniError> {
            Ok(Labels::new())
        }

        fn write_status(&self, _: &Pod, _: &[NetworkStatus]) -> Result<(), CniError> {
            Ok(())
        }

        fn remove_status(&self, _: &str, _: &str, _: Option<&[NetworkStatus]>) -> Result<bool, CniError> {
            Ok(true)
        }

        fn warnings(&self) -> Vec<String> {
            Vec::new()
        }
    }

    fn plan_for(networks: &str, default: Option<&str>, config: &Value, definition: &str) -> Result<Plan, CniError> {
        let config = Config::parse(&NetConf::parse(config.to_string().as_bytes())?)?;
        let mut annotations = BTreeMap::from([(NETWORKS_ANNOTATION.to_owned(), networks.to_owned())]);
        annotations.extend(default.map(|text| (DEFAULT_NETWORK_ANNOTATION.to_owned(), text.to_owned())));
        let pod = Pod { namespace: "default".into(), name: "p".into(), annotations, ..Pod::default() };
        let wanted = networks::look_up(&config, Some(&pod), &Everywhere(definition.to_owned()))?;
        plan(&config, wanted, &InterfaceName::parse("eth0")?, Devices::unasked())
    }

    fn ours() -> Value {
        json!({"cniVersion": "1.0.0", "name": "m", "type": "musubi", "delegates": [{"name": "d", "type": "bridge"}]})
    }

    /// JSON that uses the words of configurations and annotations with all the wrong values.
    fn hostile() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            prop::sample::select(vec![
                "",
                "bridge",
                "macvlan",
                "ipvlan",
                "vlan",
                "vxlan",
                "ptp",
                "loopback",
                "host-local",
                "static",
                "a/b",
                "musubi",
                "0.4.0",
                "1.0.0",
                "10.0.0.1",
                "10.0.0.1/24",
                "fd00::/64",
                "0.0.0.0/0",
                "02:00:00:00:00:01",
                "net1",
                "x",
            ])
            .prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
        ];
        let key = prop_oneof![
            8 => prop::sample::select(vec![
                "name", "namespace", "interface", "ips", "mac", "default-route", "cni-args", "portMappings", "bandwidth", "deviceID",
                "hostPort", "ingressRate", "type", "Type", "plugins", "ipam", "cniVersion", "cniVersions", "capabilities", "args", "cni",
                "ranges", "subnet", "addresses", "address", "gateway", "routes", "dst", "mtu", "vlan", "vlanId", "vlanTrunk", "vni", "remotes",
                "master", "mode", "prevResult", "runtimeConfig", "isGateway", "ipMasq", "dns",
            ])
            .prop_map(str::to_owned),
            1 => ".{0,8}",
        ];
        leaf.prop_recursive(4, 48, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                prop::collection::vec((key.clone(), inner), 0..7)
                    .prop_map(|keys| Value::Object(keys.into_iter().collect())),
            ]
        })
    }

    fn with_type(mut value: Value, plugin_type: &str) -> Value {
        if let Some(map) = value.as_object_mut() {
            map.insert("type".into(), plugin_type.into());
            map.remove("plugins");
        }
        value
    }

    /// Whatever is planned has interfaces of its own, and what is sent names network and version.
    fn is_sound(outcome: &Result<Plan, CniError>) {
        match outcome {
            Ok(plan) => {
                let names: std::collections::BTreeSet<&str> =
                    plan.attachments.iter().map(|a| a.interface.as_str()).collect();
                assert_eq!(names.len(), plan.attachments.len());
                for delegate in plan.attachments.iter().flat_map(|a| &a.delegates) {
                    assert!(delegate.conf.name().is_ok() && delegate.conf.version().is_ok());
                }
            }
            Err(error) => {
                assert!([1, 2, 6, 7].contains(&error.code), "{error:?}");
                assert!(!error.msg.is_empty() && !error.msg.contains('\n'), "{:?}", error.msg);
            }
        }
    }

    proptest! {
        #[test]
        fn no_annotation_makes_planning_panic(text in ".{0,60}", list in prop::collection::vec(hostile(), 0..4)) {
            for annotation in [text, Value::Array(list).to_string()] {
                is_sound(&plan_for(&annotation, None, &ours(), r#"{"type":"bridge","ipam":{"type":"static"}}"#));
                is_sound(&plan_for("a", Some(&annotation), &ours(), r#"{"type":"bridge"}"#));
            }
        }

        #[test]
        fn no_definition_makes_planning_panic(
            value in hostile(),
            text in ".{0,60}",
            kind in prop::sample::select(registry::BUNDLED.to_vec()),
        ) {
            let typed = with_type(value.clone(), kind);
            let chain = json!({"name": "n", "plugins": [{"type": "bridge"}, typed]});
            for definition in [text, value.to_string(), typed.to_string(), chain.to_string()] {
                is_sound(&plan_for(r#"[{"name":"a","cni-args":{"x":1}}]"#, None, &ours(), &definition));
            }
        }

        #[test]
        fn no_configuration_of_ours_makes_planning_panic(value in hostile(), delegate in hostile()) {
            let mut config = ours();
            for (key, value) in value.as_object().into_iter().flatten() {
                config[key] = value.clone();
            }
            config["delegates"] = json!([with_type(delegate, "bridge")]);
            is_sound(&plan_for("a", None, &config, r#"{"type":"bridge"}"#));
        }
    }

    #[test]
    fn cni_args_win_over_the_definition_key_by_key() {
        let definition = r#"{"type":"bridge","args":{"x":1,"cni":{"a":1,"b":{"deep":1}}}}"#;
        let plan = plan_for(r#"[{"name":"a","cni-args":{"b":2,"c":3}}]"#, None, &ours(), definition).unwrap();
        let args = plan.attachments[1].delegates[0].conf.get("args").unwrap().to_string();
        assert_eq!(args, r#"{"x":1,"cni":{"a":1,"b":2,"c":3}}"#);
    }

    #[test]
    fn devices_are_taken_in_plan_order() {
        let config = Config::parse(&NetConf::parse(ours().to_string().as_bytes()).unwrap()).unwrap();
        let list = ConfList::parse(br#"{"name":"n","plugins":[{"type":"sriov","x":1},{"type":"rdma"}]}"#).unwrap();
        let wanted = ["a.com/vf", "b.com/vf", "a.com/vf"].map(|resource| Wanted {
            network: Network { name: "n".into(), list: list.clone(), resource_name: Some(resource.into()) },
            selection: None,
        });
        let allocated = [("b.com/vf", "7"), ("a.com/vf", "2"), ("a.com/vf", "1")];
        let pool = Pool::new(allocated.map(|(resource, id)| (resource.to_owned(), id.to_owned())), []);
        let interface = InterfaceName::parse("eth0").unwrap();
        let plan = plan(&config, wanted.into(), &interface, Devices::of(pool)).unwrap();
        let sent: Vec<String> = plan
            .attachments
            .iter()
            .flat_map(|planned| &planned.delegates)
            .map(|delegate| Value::Object(delegate.conf.0.clone()).to_string())
            .collect();
        let mut expected = Vec::new();
        for id in [1, 7, 2] {
            for head in [r#""type":"sriov","x":1"#, r#""type":"rdma""#] {
                let tail = format!(r#""name":"n","cniVersion":"0.1.0","deviceID":"{id}","pciBusID":"{id}""#);
                expected.push(format!("{{{head},{tail}}}"));
            }
        }
        assert_eq!(sent, expected);
    }

    #[test]
    fn the_runtimes_configuration_stays_with_the_default_network() {
        let mut ours = ours();
        ours["runtimeConfig"] = json!({"portMappings": [{"HostPort": 80}], "ips": ["10.0.0.1"]});
        ours["delegates"][0]["capabilities"] = json!({"portMappings": true});
        let definition = r#"{"type":"bridge","capabilities":{"portMappings":true}}"#;
        let of = |plan: &Plan, n: usize| plan.attachments[n].delegates[0].conf.get("runtimeConfig").cloned();
        let plan = plan_for("a", None, &ours, definition).unwrap();
        assert_eq!(of(&plan, 0), Some(json!({"portMappings": [{"HostPort": 80}]})));
        assert_eq!(of(&plan, 1), None);
        let plan = plan_for("", Some("a"), &ours, definition).unwrap();
        assert_eq!(of(&plan, 0), Some(json!({"portMappings": [{"HostPort": 80}]})), "whoever the default network is");
    }
}
