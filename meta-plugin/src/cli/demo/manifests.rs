//! The examples that the demo shows, in the program itself: read as any manifest, and fitted to a simulated node. What
//! is changed is what a node decides: its folders, its subnet, and what its kernel lacks.

use std::path::Path;

use anyhow::Context;
use musubi_crds::NETWORKS_ANNOTATION;
use serde_json::{Value, json};

const CONFIGURATION: &str = include_str!("../../../../examples/00-musubi.conf");

const DEFINITIONS: [(&str, &str); 4] = [
    ("bridge.yaml", include_str!("../../../../examples/definitions/bridge.yaml")),
    ("macvlan.yaml", include_str!("../../../../examples/definitions/macvlan.yaml")),
    ("ipvlan.yaml", include_str!("../../../../examples/definitions/ipvlan.yaml")),
    ("vxlan.yaml", include_str!("../../../../examples/definitions/vxlan.yaml")),
];

const PODS: [(&str, &str); 4] = [
    ("web.yaml", include_str!("../../../../examples/pods/web.yaml")),
    ("db.yaml", include_str!("../../../../examples/pods/db.yaml")),
    ("api.yaml", include_str!("../../../../examples/pods/api.yaml")),
    ("cache.yaml", include_str!("../../../../examples/pods/cache.yaml")),
];

/// A network as the demo speaks of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Network {
    /// As network-status has it: `namespace/name`, or the default network's own name.
    pub name: String,
    /// The plugin's type.
    pub kind: String,
    /// The node's bridge, for those that stand on one of their own.
    pub bridge: Option<String>,
}

/// What the demo runs.
#[derive(Debug)]
pub(super) struct Manifests {
    configuration: Value,
    definitions: Vec<(&'static str, Value)>,
    pods: Vec<(&'static str, Value)>,
}

/// What a simulated node decides for itself.
#[derive(Debug)]
pub(super) struct NodeFolders<'a> {
    /// `cniDir`.
    pub state: &'a Path,
    /// `manifestDir`.
    pub manifests: &'a Path,
    /// `dataDir` of its host-local networks.
    pub reservations: &'a Path,
    /// The default network's subnet, the node's part of the cluster's.
    pub subnet: &'a str,
}

impl Manifests {
    /// Reads the examples.
    ///
    /// # Errors
    /// An example is broken.
    pub fn read() -> anyhow::Result<Self> {
        let all = |files: &[(&'static str, &str)]| -> anyhow::Result<Vec<(&'static str, Value)>> {
            files.iter().map(|(name, text)| Ok((*name, serde_saphyr::from_str(text).context(*name)?))).collect()
        };
        Ok(Self {
            configuration: serde_json::from_str(CONFIGURATION).context("00-musubi.conf")?,
            definitions: all(&DEFINITIONS)?,
            pods: all(&PODS)?,
        })
    }

    /// The networks, the default one first.
    ///
    /// # Errors
    /// A definition's configuration is no JSON.
    pub fn networks(&self) -> anyhow::Result<Vec<Network>> {
        let default = &self.configuration["delegates"][0];
        let mut networks = vec![network(text(&default["name"]), default)];
        for (_, definition) in &self.definitions {
            networks.push(network(format!("default/{}", name(definition)), &config_of(definition)?));
        }
        Ok(networks)
    }

    /// Names of the pods of a node (`spec.nodeName`).
    pub fn pods_of(&self, node: &str) -> Vec<String> {
        let on_node = |pod: &&(&str, Value)| pod.1["spec"]["nodeName"] == node;
        self.pods.iter().filter(on_node).map(|(_, pod)| name(pod)).collect()
    }

    /// Takes a network out: its definition, and its element of every pod's annotation.
    ///
    /// # Errors
    /// An annotation is not in the JSON form.
    pub fn remove(&mut self, network: &Network) -> anyhow::Result<()> {
        let removed = network.name.trim_start_matches("default/");
        self.definitions.retain(|(_, definition)| name(definition) != removed);
        self.change_selections(|selections| selections.retain(|selection| selection["name"] != removed))
    }

    /// Takes the IPv6 addresses out of what pods ask for.
    ///
    /// # Errors
    /// An annotation is not in the JSON form.
    pub fn remove_ipv6(&mut self) -> anyhow::Result<()> {
        self.change_selections(|selections| {
            for ips in selections.iter_mut().filter_map(|selection| selection["ips"].as_array_mut()) {
                ips.retain(|ip| !ip.as_str().is_some_and(|ip| ip.contains(':')));
            }
        })
    }

    fn change_selections(&mut self, change: impl Fn(&mut Vec<Value>)) -> anyhow::Result<()> {
        for (file, pod) in &mut self.pods {
            let annotation = &mut pod["metadata"]["annotations"][NETWORKS_ANNOTATION];
            let mut selections = serde_json::from_str(annotation.as_str().unwrap_or_default()).context(*file)?;
            change(&mut selections);
            *annotation = Value::Array(selections).to_string().into();
        }
        Ok(())
    }

    /// Our configuration on a node.
    pub fn configuration(&self, node: &NodeFolders<'_>) -> Value {
        let mut configuration = self.configuration.clone();
        configuration["cniDir"] = json!(node.state);
        configuration["manifestDir"] = json!(node.manifests);
        configuration["agentSocket"] = "".into();
        let default = &mut configuration["delegates"][0];
        default["ipam"]["subnet"] = node.subnet.into();
        reserve_in(default, node.reservations);
        configuration
    }

    /// Writes pods and definitions into a node's folder.
    ///
    /// # Errors
    /// The folder cannot be written, or a definition's configuration is no JSON.
    pub fn write(&self, node: &NodeFolders<'_>) -> anyhow::Result<()> {
        for (file, pod) in &self.pods {
            write(node.manifests, file, pod)?;
        }
        for (file, definition) in &self.definitions {
            let mut config = config_of(definition)?;
            reserve_in(&mut config, node.reservations);
            let mut definition = definition.clone();
            definition["spec"]["config"] = config.to_string().into();
            write(node.manifests, file, &definition)?;
        }
        Ok(())
    }
}

/// JSON is YAML.
fn write(folder: &Path, file: &str, object: &Value) -> anyhow::Result<()> {
    let path = folder.join(file);
    std::fs::write(&path, format!("{object:#}\n")).with_context(|| format!("cannot write {}", path.display()))
}

fn network(name: String, config: &Value) -> Network {
    Network { name, kind: text(&config["type"]), bridge: config["bridge"].as_str().map(str::to_owned) }
}

fn config_of(definition: &Value) -> anyhow::Result<Value> {
    let config = definition["spec"]["config"].as_str().unwrap_or_default();
    serde_json::from_str(config).with_context(|| format!("configuration of {}", name(definition)))
}

fn reserve_in(config: &mut Value, folder: &Path) {
    if config["ipam"]["type"] == "host-local" {
        config["ipam"]["dataDir"] = json!(folder);
    }
}

fn name(object: &Value) -> String {
    text(&object["metadata"]["name"])
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_is_taken_out_is_gone_from_definitions_and_pods() {
        let mut manifests = Manifests::read().unwrap();
        let networks = manifests.networks().unwrap();
        let names: Vec<(&str, &str)> = networks.iter().map(|n| (n.name.as_str(), n.kind.as_str())).collect();
        assert_eq!(
            names,
            [
                ("cluster", "bridge"),
                ("default/blue", "bridge"),
                ("default/lan", "macvlan"),
                ("default/shared", "ipvlan"),
                ("default/overlay", "vxlan"),
            ]
        );
        manifests.remove(&networks[3]).unwrap();
        manifests.remove_ipv6().unwrap();
        assert_eq!(manifests.networks().unwrap().len(), 4);
        for (_, pod) in &manifests.pods {
            let annotation = pod["metadata"]["annotations"][NETWORKS_ANNOTATION].as_str().unwrap();
            assert!(annotation.contains("overlay") && !annotation.contains("shared"), "{annotation}");
            assert!(annotation.contains("10.30.0.1") && !annotation.contains("fd00"), "{annotation}");
        }
    }

    #[test]
    fn each_node_has_two_pods() {
        let manifests = Manifests::read().unwrap();
        assert_eq!(manifests.pods_of("node-1"), ["web", "db"]);
        assert_eq!(manifests.pods_of("node-2"), ["api", "cache"]);
    }
}
