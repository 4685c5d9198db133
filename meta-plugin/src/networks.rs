//! Looking networks up: from names in the configuration and in annotations to CNI configurations, by the store and by
//! files on the node. All I/O that planning needs is here; what comes out is planned without any.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use musubi_crds::{
    DEFAULT_NETWORK_ANNOTATION, NETWORKS_ANNOTATION, NetworkSelection, parse_default_network, parse_networks,
};
use musubi_delegates::cni::{CniError, ConfList, NetConf, NetworkName, code};

use serde_json::{Map, json};

use crate::check::policy::{Fence, Labels, Policies};
use crate::check::{definition, request};
use crate::config::{Config, DefaultNetwork, refuse_ourselves};
use crate::store::{Pod, Store};

/// A network that was found.
#[derive(Debug, Clone)]
pub struct Network {
    /// `namespace/name` for a definition, the configuration's own name otherwise.
    pub name: String,
    /// Its plugins.
    pub list: ConfList,
    /// The resource whose devices it uses.
    pub resource_name: Option<String>,
}

/// A network and what the pod asks of it.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The network.
    pub network: Network,
    /// The annotation's element; `None` for a network that every pod gets.
    pub selection: Option<NetworkSelection>,
}

/// Where the configurations are that networks name instead of holding them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On this node.
    Here,
    /// On nodes that cannot be looked at: something stands in for what is there, the cluster's default network included.
    Elsewhere {
        /// Whether a definition that is not known may yet come, so that something stands in for it, too.
        missing_may_come: bool,
    },
}

/// Everything a pod is to be attached to, the cluster default first.
///
/// # Errors
/// A wrong annotation, a missing or wrong network, one that is not granted (code 7), a store that cannot answer (11).
pub fn look_up(config: &Config, pod: Option<&Pod>, store: &dyn Store) -> Result<Vec<Wanted>, CniError> {
    look_up_from(Place::Here, config, pod, store)
}

/// As [`look_up`], by somebody who may not be on the node.
///
/// # Errors
/// As [`look_up`].
pub fn look_up_from(
    place: Place,
    config: &Config,
    pod: Option<&Pod>,
    store: &dyn Store,
) -> Result<Vec<Wanted>, CniError> {
    let selects =
        pod.is_some_and(|pod| pod.selects_networks() || pod.annotations.contains_key(DEFAULT_NETWORK_ANNOTATION));
    let policies = if selects { store.policies()? } else { Arc::default() };
    let finder = Finder { config, store, place, policies };
    let mut wanted = finder.default_network(pod)?;
    let in_system_namespace = pod.is_some_and(|pod| config.system_namespaces.contains(&pod.namespace));
    let has_more = place == Place::Here && matches!(config.default_network, DefaultNetwork::Named(_));
    if has_more && !in_system_namespace {
        for name in &config.default_networks {
            let network = finder.configured("defaultNetworks", name)?;
            wanted.push(Wanted { network, selection: None });
        }
    }
    if let Some(pod) = pod
        && let Some(annotation) = pod.annotation(NETWORKS_ANNOTATION)
    {
        let selections = parse_networks(annotation, &pod.namespace)
            .map_err(|e| annotation_error(NETWORKS_ANNOTATION, &e.to_string()))?;
        for (position, selection) in selections.into_iter().enumerate() {
            let at = |e: CniError| e.context(format!("annotation {NETWORKS_ANNOTATION}, element {}", position + 1));
            request::isolation(config, &pod.namespace, &selection.namespace, None).map_err(at)?;
            wanted.push(finder.selected(pod, selection).map_err(at)?);
        }
    }
    if place == Place::Here {
        wanted.extend(finder.auxiliary_chain()?);
    }
    Ok(wanted)
}

/// The fence around a namespace.
///
/// # Errors
/// The store cannot say what labels it has.
pub fn fence<'a>(policies: &'a Policies, store: &dyn Store, namespace: &str) -> Result<Option<Fence<'a>>, CniError> {
    let labels = if policies.need_labels(namespace) { store.labels(namespace)? } else { Labels::new() };
    Ok(policies.fence(namespace, &labels))
}

/// The default network alone, for STATUS, GC and a DEL without a record.
///
/// # Errors
/// It cannot be found or read.
pub fn default_only(config: &Config, store: &dyn Store) -> Result<Vec<Wanted>, CniError> {
    Finder { config, store, place: Place::Here, policies: Arc::default() }.default_network(None)
}

struct Finder<'a> {
    config: &'a Config,
    store: &'a dyn Store,
    place: Place,
    policies: Arc<Policies>,
}

impl Finder<'_> {
    /// The cluster default, or what the pod's annotation puts in its place; then the other configurations in line.
    fn default_network(&self, pod: Option<&Pod>) -> Result<Vec<Wanted>, CniError> {
        let mut wanted: Vec<Wanted> = match &self.config.default_network {
            _ if self.place != Place::Here => vec![stand_in("the cluster's default network", &self.config.name)?],
            DefaultNetwork::Named(name) => vec![self.configured("clusterNetwork", name)?],
            DefaultNetwork::Inline(lists) => lists
                .iter()
                .map(|list| {
                    let mut list = list.clone();
                    // As in Multus, a configuration in line may go without a name.
                    let name = list.name.get_or_insert(NetworkName::parse(&self.config.name)?).to_string();
                    Ok(Network { name, list, resource_name: None })
                })
                .collect::<Result<_, CniError>>()?,
        }
        .into_iter()
        .map(|network| Wanted { network, selection: None })
        .collect();
        if let Some(pod) = pod
            && let Some(annotation) = pod.annotations.get(DEFAULT_NETWORK_ANNOTATION)
        {
            wanted[0] = self.annotated_default(pod, annotation)?;
        }
        Ok(wanted)
    }

    fn annotated_default(&self, pod: &Pod, annotation: &str) -> Result<Wanted, CniError> {
        let home = &self.config.multus_namespace;
        let selection = parse_default_network(annotation, home)
            .map_err(|e| annotation_error(DEFAULT_NETWORK_ANNOTATION, &e.to_string()))?;
        let at = |e: CniError| e.context(format!("annotation {DEFAULT_NETWORK_ANNOTATION}"));
        request::isolation(self.config, &pod.namespace, &selection.namespace, Some(home)).map_err(at)?;
        self.selected(pod, selection).map_err(at)
    }

    /// What an annotation names, as far as the policies grant it: to the pod's namespace the name and the requests, to the
    /// definition's what it says.
    fn selected(&self, pod: &Pod, selection: NetworkSelection) -> Result<Wanted, CniError> {
        let full_name = format!("{}/{}", selection.namespace, selection.name);
        let here = |e: CniError| definition::in_network(&full_name, e);
        let own = fence(&self.policies, self.store, &pod.namespace)?;
        if let Some(own) = &own {
            own.definitions_of(&selection.namespace).map_err(here)?;
        }
        let definers = fence(&self.policies, self.store, &selection.namespace)?;
        let network = self.definition(&selection.namespace, &selection.name, definers.as_ref())?;
        if let (Some(own), Found::Written(network) | Found::Elsewhere(network)) = (&own, &network) {
            own.requests(&selection, &network.list).map_err(here)?;
        }
        Ok(match network {
            Found::Written(network) => Wanted { network, selection: Some(selection) },
            // Nobody can say here what such a network can be asked for.
            Found::Elsewhere(network) => {
                let NetworkSelection { namespace, name, interface, default_route, .. } = selection;
                let selection = NetworkSelection { namespace, name, interface, default_route, ..Default::default() };
                Wanted { network, selection: Some(selection) }
            }
        })
    }

    /// A definition of the store; one without a configuration names a file of the node (multi-net 3.4.1). What it says is
    /// held to the fence.
    fn definition(&self, namespace: &str, name: &str, fence: Option<&Fence<'_>>) -> Result<Found, CniError> {
        let full_name = format!("{namespace}/{name}");
        let here = |e: CniError| definition::in_network(&full_name, e);
        let Some(found) = self.store.network(namespace, name).map_err(here)? else {
            return match self.place {
                Place::Elsewhere { missing_may_come: true } => stand_in(&full_name, name).map(Found::Elsewhere),
                _ => Err(definition::missing(&full_name, "")),
            };
        };
        if let (Some(fence), None) = (fence, &found.config) {
            fence.node_file().map_err(here)?;
        }
        let list = match &found.config {
            Some(config) => definition::parse(config, name).map_err(here)?,
            None if self.place != Place::Here => return stand_in(&full_name, name).map(Found::Elsewhere),
            None => self.named_file(name).map_err(here)?.ok_or_else(|| {
                here(
                    CniError::new(
                        code::CONFIG,
                        format!(
                            "the definition has no spec.config, and no file in {} has the name \"{name}\"",
                            self.config.conf_dir.display()
                        ),
                    )
                    .with_details(
                        "give the definition a spec.config, or put a configuration of that name on every node",
                    ),
                )
            })?,
        };
        if let Some(fence) = fence {
            fence.definition(&list).map_err(|e| here(e.into()))?;
        }
        Ok(Found::Written(Network { name: full_name, list, resource_name: found.resource_name }))
    }

    /// A network that our configuration names, in Multus' order: a definition, a file by its JSON name, a folder, a file.
    fn configured(&self, key: &str, value: &str) -> Result<Network, CniError> {
        let home = &self.config.multus_namespace;
        let here = |e: CniError| e.context(format!("configuration key \"{key}\": \"{value}\""));
        if value.contains('/') {
            let list = self.at_path(Path::new(value)).map_err(here)?;
            return named(list, value).map_err(here);
        }
        if self.store.network(home, value).map_err(here)?.is_some() {
            return Ok(self.definition(home, value, None)?.network());
        }
        match self.named_file(value).map_err(here)? {
            Some(list) => named(list, value).map_err(here),
            None => Err(here(definition::missing(
                &format!("{home}/{value}"),
                &format!(", and no file in {} has that name", self.config.conf_dir.display()),
            ))),
        }
    }

    /// The configuration of `confDir` whose JSON name it is: lists before single ones, each in the order of file names
    /// (multi-net 3.4.1). Others are not looked into any further, and one that is no JSON is an error only for a name
    /// that no other file has.
    fn named_file(&self, name: &str) -> Result<Option<ConfList>, CniError> {
        let files = configuration_files(&self.config.conf_dir)?;
        let (lists, singles): (Vec<PathBuf>, Vec<PathBuf>) =
            files.into_iter().partition(|file| has_extension(file, &["conflist"]));
        let mut unreadable = None;
        for file in lists.into_iter().chain(singles) {
            match json_name(&file) {
                Ok(Some(found)) if found == name => return read_list(&file).map(Some),
                Ok(_) => {}
                Err(error) => unreadable = unreadable.or(Some(error)),
            }
        }
        unreadable.map_or(Ok(None), Err)
    }

    /// The plugins of `auxiliaryCNIChainName`, which run last and make no interface; none when their folder is empty.
    fn auxiliary_chain(&self) -> Result<Option<Wanted>, CniError> {
        let (Some(name), DefaultNetwork::Named(beside)) = (&self.config.auxiliary_chain, &self.config.default_network)
        else {
            return Ok(None);
        };
        let folder = Path::new(beside).parent().unwrap_or(Path::new("/"));
        let mut list = ConfList {
            name: Some(name.clone()),
            version: self.config.version,
            disable_check: false,
            disable_gc: false,
            load_only_inlined: false,
            plugins: Vec::new(),
            is_list: true,
            raw: Map::new(),
        };
        let here = |e: CniError| e.context("configuration key \"auxiliaryCNIChainName\"");
        list.append_folder(folder).map_err(here)?;
        refuse_ourselves(&list).map_err(here)?;
        // Chained plugins want a result before them; Multus has a plugin of its own give them an empty one.
        let Some(first) = list.plugins.first_mut() else { return Ok(None) };
        first.insert("prevResult", json!({"cniVersion": self.config.version.as_str()}));
        Ok(Some(Wanted { network: Network { name: name.to_string(), list, resource_name: None }, selection: None }))
    }

    fn at_path(&self, path: &Path) -> Result<ConfList, CniError> {
        if !path.is_dir() {
            return read_list(path);
        }
        let first = configuration_files(path)?.into_iter().find(|file| has_extension(file, &["conf", "conflist"]));
        let file = first.ok_or_else(|| CniError::new(code::CONFIG, "the folder holds no .conf or .conflist file"))?;
        read_list(&file)
    }
}

/// A network, and whether its configuration is at hand.
enum Found {
    Written(Network),
    Elsewhere(Network),
}

impl Found {
    fn network(self) -> Network {
        match self {
            Self::Written(network) | Self::Elsewhere(network) => network,
        }
    }
}

/// What stands where a network would be whose configuration is elsewhere: one that is right whatever it is.
fn stand_in(full_name: &str, name: &str) -> Result<Network, CniError> {
    let list = ConfList::from_map(Map::from_iter([
        ("cniVersion".to_owned(), "1.0.0".into()),
        ("name".to_owned(), name.into()),
        ("type".to_owned(), "loopback".into()),
    ]))?;
    Ok(Network { name: full_name.to_owned(), list, resource_name: None })
}

fn named(list: ConfList, fallback: &str) -> Result<Network, CniError> {
    match &list.name {
        Some(name) => Ok(Network { name: name.to_string(), list, resource_name: None }),
        None => Err(CniError::new(code::CONFIG, format!("the configuration of {fallback} has no \"name\""))),
    }
}

/// The error for an annotation that cannot be read.
#[must_use]
pub fn annotation_error(annotation: &str, problem: &str) -> CniError {
    CniError::new(code::CONFIG, format!("annotation {annotation}: {problem}"))
        .with_details("correct the pod's annotation; the pod is not started with only some of its networks")
}

/// Configuration files of a folder by name; a folder that is not there holds none.
fn configuration_files(folder: &Path) -> Result<Vec<PathBuf>, CniError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(CniError::new(code::IO, format!("{}: {e}", folder.display()))),
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| has_extension(path, &["conf", "conflist", "json"]) && path.is_file())
        .collect();
    files.sort();
    Ok(files)
}

/// The `name` in a configuration file; `None` where it has none, or none that is a text.
fn json_name(file: &Path) -> Result<Option<String>, CniError> {
    let conf = NetConf::parse(&read_file(file)?).map_err(|e| e.context(file.display()))?;
    Ok(conf.view().string("name").ok().flatten().map(str::to_owned))
}

fn read_file(file: &Path) -> Result<Vec<u8>, CniError> {
    fs::read(file).map_err(|e| {
        let code = if e.kind() == std::io::ErrorKind::NotFound { code::CONFIG } else { code::IO };
        CniError::new(code, format!("{}: {e}", file.display()))
            .with_details("a value with \"/\" is a file or folder of the node; one without is a definition's name")
    })
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e))
}

fn read_list(file: &Path) -> Result<ConfList, CniError> {
    let context = |e: CniError| e.context(file.display());
    let bytes = read_file(file)?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    let list = ConfList::parse_in_folder(&bytes, folder).map_err(context)?;
    refuse_ourselves(&list).map_err(context)?;
    Ok(list)
}
