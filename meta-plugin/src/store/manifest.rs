//! Manifests: the objects that matter here, read from their JSON form. What YAML files, watches and admission requests hold
//! is read by the same code; where they come from is others' business.

use std::collections::BTreeMap;

use musubi_crds::name::{is_dns_label, is_dns_subdomain};
use musubi_crds::{AttachmentPolicySpec, FORCE_ANNOTATION, RESOURCE_NAME_ANNOTATION};
use serde::Deserialize;
use serde_json::Value;

use super::{Definition, Pod};

/// An object that matters.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// A pod.
    Pod(KnownPod),
    /// A NetworkAttachmentDefinition.
    Definition(Definition),
    /// An AttachmentPolicy, with its name.
    Policy(String, AttachmentPolicySpec),
    /// A namespace: its name and its labels.
    Namespace(String, BTreeMap<String, String>),
}

/// A pod with what admission asks of it besides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownPod {
    /// What planning reads.
    pub pod: Pod,
    /// Whether it has come to its end: it holds no addresses any more.
    pub is_over: bool,
    /// Devices that its containers ask for, by resource.
    pub resources: BTreeMap<String, u64>,
}

impl Object {
    /// Reads an object; `None` for one of a kind that does not matter.
    ///
    /// # Errors
    /// What is wrong with it, with its kind and name.
    pub fn read(value: Value) -> Result<Option<Self>, String> {
        let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("without a name").to_owned();
        let read = match kind.as_str() {
            "Pod" => Manifest::read(value).map(|manifest| Self::Pod(manifest.into_pod())),
            "NetworkAttachmentDefinition" => {
                Manifest::read(value).map(|manifest| Self::Definition(manifest.into_definition()))
            }
            "AttachmentPolicy" => policy(value),
            "Namespace" => namespace(value),
            _ => return Ok(None),
        };
        read.map(Some).map_err(|problem| format!("{kind} {}: {problem}", name.escape_debug()))
    }
}

fn policy(value: Value) -> Result<Object, String> {
    #[derive(Deserialize)]
    struct Policy {
        metadata: Metadata,
        spec: AttachmentPolicySpec,
    }
    let read: Policy = serde_json::from_value(value).map_err(|e| e.to_string())?;
    match read.spec.problem() {
        Some(problem) => Err(problem),
        None => Ok(Object::Policy(read.metadata.name, read.spec)),
    }
}

fn namespace(value: Value) -> Result<Object, String> {
    #[derive(Deserialize)]
    struct Namespace {
        metadata: Metadata,
    }
    let read: Namespace = serde_json::from_value(value).map_err(|e| e.to_string())?;
    Ok(Object::Namespace(read.metadata.name, read.metadata.labels.unwrap_or_default()))
}

/// The part of a manifest that is read.
#[derive(Deserialize)]
struct Manifest {
    metadata: Metadata,
    #[serde(default)]
    spec: Option<Spec>,
    #[serde(default)]
    status: Option<Status>,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    /// The name of a pod that has none yet begins with it.
    #[serde(default, rename = "generateName")]
    generate_name: Option<String>,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    uid: Option<String>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Deserialize, Default)]
struct Spec {
    #[serde(default)]
    config: Option<String>,
    #[serde(default, rename = "hostNetwork")]
    host_network: Option<bool>,
    #[serde(default)]
    containers: Option<Vec<Container>>,
    #[serde(default, rename = "initContainers")]
    init_containers: Option<Vec<Container>>,
}

impl Spec {
    /// The containers that keep what they are allocated as long as the pod runs: the ordinary ones, and initial ones that
    /// are always restarted.
    fn lasting(&self) -> impl Iterator<Item = &Container> {
        let restarted = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
        let initial = self.init_containers.iter().flatten().filter(restarted);
        self.containers.iter().flatten().chain(initial)
    }
}

#[derive(Deserialize)]
struct Container {
    #[serde(default, rename = "restartPolicy")]
    restart_policy: Option<String>,
    #[serde(default)]
    resources: Option<Resources>,
}

#[derive(Deserialize)]
struct Resources {
    #[serde(default)]
    limits: Option<BTreeMap<String, Value>>,
    #[serde(default)]
    requests: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    phase: Option<String>,
}

impl Metadata {
    /// A manifest without a namespace is meant for `default`, as `kubectl apply` takes it.
    fn key(&self) -> (String, String) {
        let namespace = self.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
        (namespace.to_owned(), self.name.clone())
    }

    fn annotations(&self) -> BTreeMap<String, String> {
        let pairs = self.annotations.iter().flatten();
        pairs.map(|(key, value)| (key.clone(), value.clone().unwrap_or_default())).collect()
    }
}

impl Manifest {
    fn read(value: Value) -> Result<Self, String> {
        if value.pointer("/spec/config").is_some_and(|config| !config.is_string() && !config.is_null()) {
            return Err("spec.config must be a string that holds JSON, as after `config: |` in YAML".to_owned());
        }
        let mut manifest: Self = serde_json::from_value(value).map_err(|e| e.to_string())?;
        if let (true, Some(prefix)) = (manifest.metadata.name.is_empty(), &manifest.metadata.generate_name) {
            manifest.metadata.name = format!("{prefix}0");
        }
        let (namespace, name) = manifest.metadata.key();
        if !is_dns_label(&namespace) {
            return Err(format!(
                "metadata.namespace \"{}\" is not the name of a namespace (at most 63 lower-case letters, digits and inner \"-\")",
                namespace.escape_debug()
            ));
        }
        if !is_dns_subdomain(&name) {
            return Err(
                "metadata.name is not the name of an object (at most 253 lower-case letters, digits, inner \"-\" and \".\")"
                    .to_owned(),
            );
        }
        Ok(manifest)
    }

    fn into_pod(self) -> KnownPod {
        let (namespace, name) = self.metadata.key();
        let spec = self.spec.unwrap_or_default();
        let phase = self.status.and_then(|status| status.phase);
        KnownPod {
            is_over: matches!(phase.as_deref(), Some("Succeeded" | "Failed")),
            resources: resources(spec.lasting()),
            pod: Pod {
                namespace,
                name,
                annotations: self.metadata.annotations(),
                uid: self.metadata.uid.unwrap_or_default(),
                host_network: spec.host_network.unwrap_or(false),
            },
        }
    }

    fn into_definition(self) -> Definition {
        let (namespace, name) = self.metadata.key();
        let mut annotations = self.metadata.annotations();
        Definition {
            namespace,
            name,
            config: self.spec.and_then(|spec| spec.config).filter(|config| !config.trim().is_empty()),
            resource_name: annotations
                .remove(RESOURCE_NAME_ANNOTATION)
                .map(|resource| resource.trim().to_owned())
                .filter(|resource| !resource.is_empty()),
            is_forced: annotations.get(FORCE_ANNOTATION).is_some_and(|value| value == "true"),
        }
    }
}

/// Extended resources come in whole numbers, and what is limited is requested.
fn resources<'a>(containers: impl Iterator<Item = &'a Container>) -> BTreeMap<String, u64> {
    let mut sum: BTreeMap<String, u64> = BTreeMap::new();
    for resources in containers.filter_map(|container| container.resources.as_ref()) {
        let mut of_container: BTreeMap<&String, u64> = BTreeMap::new();
        for (name, quantity) in resources.requests.iter().chain(&resources.limits).flatten() {
            let number = quantity.as_u64().or_else(|| quantity.as_str()?.parse().ok());
            if let (true, Some(number)) = (name.contains('/'), number) {
                of_container.insert(name, number);
            }
        }
        for (name, number) in of_container {
            let sum = sum.entry(name.clone()).or_default();
            *sum = sum.saturating_add(number);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn devices_are_counted_over_the_containers_that_last() {
        let container = |amount: Value| json!({"resources": {"requests": {"x.com/nic": amount, "cpu": "1"}}});
        let always = |mut container: Value| {
            container["restartPolicy"] = "Always".into();
            container
        };
        let rows = [
            (json!({"containers": [container(json!("1")), container(json!(2))]}), Some(3)),
            (json!({"containers": [container(json!("1"))], "initContainers": [container(json!("4"))]}), Some(1)),
            (json!({"containers": [{}], "initContainers": [always(container(json!("4")))]}), Some(4)),
            (json!({"containers": [{"resources": {"limits": {"x.com/nic": "2"}}}]}), Some(2)),
            (json!({"containers": [container(json!(u64::MAX)), container(json!(1))]}), Some(u64::MAX)),
            (json!({"containers": null}), None),
        ];
        for (spec, number) in rows {
            let object = json!({"kind": "Pod", "metadata": {"name": "p"}, "spec": spec});
            let Ok(Some(Object::Pod(pod))) = Object::read(object) else { panic!("{spec}") };
            assert_eq!(pod.resources.get("x.com/nic").copied(), number, "{spec}");
            assert!(!pod.resources.contains_key("cpu"));
        }
    }
}
