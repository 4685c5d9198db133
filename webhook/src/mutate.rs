//! What a pod is given so that it starts where its networks' devices are: requests for their resources, node selectors, and
//! a volume that tells it what it got. Pure: pod and definitions in, JSON patch operations out. Whether the pod may have its
//! networks is the validation's business.

mod injections;
mod patch;
mod quantity;

use std::collections::BTreeMap;

use musubi::networks::annotation_error;
use musubi::store::MIRROR_ANNOTATION;
use musubi_crds::{DEFAULT_NETWORK_ANNOTATION, NETWORKS_ANNOTATION, parse_default_network, parse_networks};
use musubi_delegates::cni::{CniError, code};
use serde_json::{Value, json};

pub use self::injections::Injections;
use self::patch::Patch;
use self::quantity::whole;

/// Annotation of a pod: the name of the container that gets the requests. The first gets them without it.
pub const CONTAINER_ANNOTATION: &str = "musubi.dev/resources-container";
/// Annotation of a pod or a definition: `"false"` where a ResourceClaim brings the devices, or nothing is to be requested.
pub const INJECT_ANNOTATION: &str = "musubi.dev/inject-resources";
/// Annotation of a definition: a label, or `label=value`, of the nodes that have its network.
pub const NODE_SELECTOR_ANNOTATION: &str = "k8s.v1.cni.cncf.io/nodeSelector";
/// The volume that tells a pod what it got, and where it is mounted: the names that existing programs look for.
const POD_INFO: (&str, &str) = ("podnetinfo", "/etc/podnetinfo");
/// Sizes of huge pages that programs look for, by resource and in the names of files.
const HUGE_PAGES: [(&str, &str); 2] = [("hugepages-1Gi", "1G"), ("hugepages-2Mi", "2M")];

/// What is done with requests for a resource that a pod makes itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Existing {
    /// They count as made for the networks, and what they lack is added
    #[default]
    Fill,
    /// They are for something else, and what the networks need is added
    Add,
    /// The pod knows best, and nothing is added to a resource that it requests
    Keep,
}

/// How pods are changed.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// What is done with requests that are there.
    pub existing: Existing,
    /// Whether a pod that gets requests gets the volume, too.
    pub pod_info: bool,
    /// Whether the volume tells huge pages as well.
    pub huge_pages: bool,
    /// Annotations that a pod gets with its requests.
    pub injections: Injections,
    /// Where the network of the default-network annotation is looked for when it names no namespace.
    pub default_namespace: String,
}

/// What a definition asks of a pod that names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    /// The resource whose devices it uses.
    pub resource: Option<String>,
    /// [`NODE_SELECTOR_ANNOTATION`].
    pub node_selector: Option<String>,
    /// [`INJECT_ANNOTATION`] is not `"false"`.
    pub inject: bool,
}

/// How a pod is changed.
#[derive(Debug, Default, PartialEq)]
pub struct Change {
    /// Operations of a JSON patch, in order.
    pub operations: Vec<Value>,
    /// What its author should know, one line each.
    pub warnings: Vec<String>,
}

/// The definitions that a pod names, as (namespace, name), each as often as it is named.
///
/// # Errors
/// Code 7: an annotation is wrong, in the words of ADD.
pub fn named(pod: &Value, namespace: &str, default_namespace: &str) -> Result<Vec<(String, String)>, CniError> {
    let annotation = |key: &str| pod["metadata"]["annotations"][key].as_str();
    let mut selections = Vec::new();
    if let Some(text) = annotation(DEFAULT_NETWORK_ANNOTATION) {
        let selection = parse_default_network(text, default_namespace);
        selections.push(selection.map_err(|e| annotation_error(DEFAULT_NETWORK_ANNOTATION, &e.to_string()))?);
    }
    if let Some(text) = annotation(NETWORKS_ANNOTATION).filter(|text| !text.trim().is_empty()) {
        let parsed = parse_networks(text, namespace);
        selections.extend(parsed.map_err(|e| annotation_error(NETWORKS_ANNOTATION, &e.to_string()))?);
    }
    Ok(selections.into_iter().map(|selection| (selection.namespace, selection.name)).collect())
}

/// Whether a pod gets no networks by its annotations: it shares the host's, or it is the mirror of one that runs already.
#[must_use]
pub fn gets_no_networks(pod: &Value) -> bool {
    pod["spec"]["hostNetwork"] == true || is_mirror(pod)
}

/// Whether a pod is the mirror of a static one, which runs whatever is said of its mirror.
#[must_use]
pub fn is_mirror(pod: &Value) -> bool {
    !pod["metadata"]["annotations"][MIRROR_ANNOTATION].is_null()
}

/// How a new pod is changed. Definitions that `demand` does not know ask for nothing.
///
/// # Errors
/// Code 7: an annotation of the pod or of a definition that cannot be followed.
pub fn change(
    pod: &Value,
    namespace: &str,
    demand: impl Fn(&str, &str) -> Option<Demand>,
    rules: &Rules,
) -> Result<Change, CniError> {
    if gets_no_networks(pod) {
        return Ok(Change::default());
    }
    let mut needs = Needs::default();
    for (namespace, name) in named(pod, namespace, &rules.default_namespace)? {
        if let Some(demand) = demand(&namespace, &name) {
            needs.add(&format!("{namespace}/{name}"), demand)?;
        }
    }
    let mut work = Work { patch: Patch::of(pod.clone()), warnings: Vec::new() };
    work.select_nodes(needs.nodes);
    if pod["metadata"]["annotations"][INJECT_ANNOTATION] != "false" && !needs.resources.is_empty() {
        let injected = work.request(&needs.resources, rules.existing)?;
        if injected && rules.pod_info {
            work.tell(rules.huge_pages);
        }
        if injected {
            work.annotate(rules.injections.of(pod));
        }
    }
    Ok(Change { operations: work.patch.into_operations(), warnings: work.warnings })
}

/// What all networks of a pod need together.
#[derive(Default)]
struct Needs {
    /// How many devices of each resource.
    resources: BTreeMap<String, u64>,
    /// Labels of nodes, with the network that asks for each.
    nodes: BTreeMap<String, (String, String)>,
}

impl Needs {
    fn add(&mut self, network: &str, demand: Demand) -> Result<(), CniError> {
        if let Some(resource) = demand.resource.filter(|_| demand.inject) {
            *self.resources.entry(resource).or_default() += 1;
        }
        let Some(selector) = demand.node_selector else { return Ok(()) };
        let refuse = |problem: String| {
            let at = format!("network {network}: annotation {NODE_SELECTOR_ANNOTATION}");
            Err(CniError::new(code::CONFIG, format!("{at}: {problem}")))
        };
        let (label, value) = selector.split_once('=').unwrap_or((&selector, ""));
        let (label, value) = (label.trim(), value.trim());
        if label.is_empty() || value.contains('=') {
            return refuse(format!("\"{}\" is neither a label nor label=value", selector.escape_debug()));
        }
        match self.nodes.insert(label.to_owned(), (value.to_owned(), network.to_owned())) {
            Some((other, by)) if other != value => refuse(format!(
                "no node has the label {label} both as \"{value}\" and as \"{other}\", which network {by} asks for"
            )),
            _ => Ok(()),
        }
    }
}

/// A pod while it is changed.
struct Work {
    patch: Patch,
    warnings: Vec<String>,
}

impl Work {
    /// A network is where it is: its selector wins over what the pod says.
    fn select_nodes(&mut self, nodes: BTreeMap<String, (String, String)>) {
        for (label, (value, network)) in nodes {
            let there = self.patch.document()["spec"]["nodeSelector"][&label].as_str().map(str::to_owned);
            if there.as_deref() == Some(&value) {
                continue;
            }
            if let Some(there) = there {
                self.warnings.push(format!(
                    "nodeSelector {label}: \"{there}\" is replaced by \"{value}\", which network {network} asks for"
                ));
            }
            self.patch.set(&["spec", "nodeSelector", &label], value.into());
        }
    }

    /// Adds what the pod's containers do not request yet; whether anything was added.
    fn request(&mut self, needs: &BTreeMap<String, u64>, existing: Existing) -> Result<bool, CniError> {
        let (list, index) = self.container()?;
        if self.patch.document()["spec"]["resourceClaims"].as_array().is_some_and(|claims| !claims.is_empty()) {
            let resources: Vec<&str> = needs.keys().map(String::as_str).collect();
            self.warnings.push(format!(
                "the pod has resourceClaims and gets requests for {} as well; where a claim brings the devices, set annotation {INJECT_ANNOTATION}: \"false\" on the definition",
                resources.join(", ")
            ));
        }
        let mut added = false;
        for (resource, &needed) in needs {
            let requested = requested(self.patch.document(), resource)?;
            let more = match existing {
                Existing::Fill => needed.saturating_sub(requested),
                Existing::Add => needed,
                Existing::Keep if requested > 0 => 0,
                Existing::Keep => needed,
            };
            if more == 0 {
                continue;
            }
            let here = requests(&self.patch.document()["spec"][list][index], resource)?;
            let total: Value = here.saturating_add(more).to_string().into();
            let index = index.to_string();
            // An extended resource is not overcommitted: request and limit are the same.
            for kind in ["requests", "limits"] {
                self.patch.set(&["spec", list, &index, "resources", kind, resource], total.clone());
            }
            added = true;
        }
        Ok(added)
    }

    /// The container that gets the requests: the first, or the one that the annotation names.
    fn container(&self) -> Result<(&'static str, usize), CniError> {
        let document = self.patch.document();
        let Some(wanted) = document["metadata"]["annotations"][CONTAINER_ANNOTATION].as_str() else {
            return Ok(("containers", 0));
        };
        let mut names = Vec::new();
        for (list, index, container) in lasting(document) {
            let name = container["name"].as_str().unwrap_or_default();
            if name == wanted {
                return Ok((list, index));
            }
            names.push(name);
        }
        let message = format!(
            "annotation {CONTAINER_ANNOTATION}: the pod has no container \"{}\"; it has {}",
            wanted.escape_debug(),
            names.join(", ")
        );
        Err(CniError::new(code::CONFIG, message))
    }

    /// What the pod says itself stays.
    fn annotate(&mut self, annotations: BTreeMap<String, String>) {
        for (key, value) in annotations {
            if self.patch.document()["metadata"]["annotations"][&key].is_null() {
                self.patch.set(&["metadata", "annotations", &key], value.into());
            }
        }
    }

    /// The volume, in every container that does not have it already.
    fn tell(&mut self, huge_pages: bool) {
        let (volume, folder) = POD_INFO;
        let has = |list: &Value, key: &str, value: &str| {
            list.as_array().into_iter().flatten().any(|element| element[key] == value)
        };
        let containers = self.patch.document()["spec"]["containers"].as_array().cloned().unwrap_or_default();
        if !has(&self.patch.document()["spec"]["volumes"], "name", volume) {
            let pages: Vec<Value> = if huge_pages { containers.iter().flat_map(files).collect() } else { Vec::new() };
            let mut items: Vec<Value> = ["labels", "annotations"]
                .map(|what| json!({"path": what, "fieldRef": {"fieldPath": format!("metadata.{what}")}}))
                .into();
            items.extend(pages);
            self.patch.push(&["spec", "volumes"], json!({"name": volume, "downwardAPI": {"items": items}}));
        }
        for (index, container) in containers.iter().enumerate() {
            let at = index.to_string();
            let mounts = &container["volumeMounts"];
            if !has(mounts, "mountPath", folder) && !has(mounts, "name", volume) {
                let mount = json!({"name": volume, "readOnly": true, "mountPath": folder});
                self.patch.push(&["spec", "containers", &at, "volumeMounts"], mount);
            }
            if huge_pages && !files(container).is_empty() && !has(&container["env"], "name", "CONTAINER_NAME") {
                let name = json!({"name": "CONTAINER_NAME", "value": container["name"]});
                self.patch.push(&["spec", "containers", &at, "env"], name);
            }
        }
    }
}

/// The files of the volume that tell a container its huge pages.
fn files(container: &Value) -> Vec<Value> {
    let mut files = Vec::new();
    for (resource, size) in HUGE_PAGES {
        for (kind, word) in [("requests", "request"), ("limits", "limit")] {
            if container["resources"][kind][resource].is_null() {
                continue;
            }
            let name = container["name"].as_str().unwrap_or_default();
            files.push(json!({
                "path": format!("hugepages_{size}_{word}_{name}"),
                "resourceFieldRef": {"containerName": name, "resource": format!("{kind}.{resource}"), "divisor": "1Mi"},
            }));
        }
    }
    files
}

/// The containers that keep what they are allocated as long as the pod runs: the ordinary ones, and initial ones that are
/// restarted always. With list and index.
fn lasting(pod: &Value) -> impl Iterator<Item = (&'static str, usize, &Value)> {
    let of = |list: &'static str| {
        let containers = pod["spec"][list].as_array().map(Vec::as_slice).unwrap_or_default();
        containers.iter().enumerate().map(move |(index, container)| (list, index, container))
    };
    of("containers").chain(of("initContainers").filter(|(_, _, container)| container["restartPolicy"] == "Always"))
}

/// How many devices of a resource a pod requests as long as it runs.
///
/// # Errors
/// An amount is no whole number.
pub fn requested(pod: &Value, resource: &str) -> Result<u64, CniError> {
    lasting(pod).try_fold(0, |sum: u64, (_, _, container)| Ok(sum.saturating_add(requests(container, resource)?)))
}

fn requests(container: &Value, resource: &str) -> Result<u64, CniError> {
    let amount = |kind: &str| match &container["resources"][kind][resource] {
        Value::Null => Ok(0),
        quantity => whole(quantity).ok_or_else(|| {
            let name = container["name"].as_str().unwrap_or_default();
            let message = format!("container {name}: {kind} of {resource}: {quantity} is no whole number of devices");
            CniError::new(code::CONFIG, message)
        }),
    };
    Ok(amount("requests")?.max(amount("limits")?))
}

#[cfg(test)]
mod tests;
