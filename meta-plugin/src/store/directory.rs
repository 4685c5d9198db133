//! The directory store: every manifest below a folder, for one machine without an API server. A pod's status is written
//! below the folder's own `status/`, which is not read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use musubi_crds::name::{is_dns_label, is_dns_subdomain};
use musubi_crds::{NETWORK_STATUS_ANNOTATION, NetworkStatus, status};
use musubi_delegates::cni::{CniError, code};
use musubi_delegates::mutation;
use serde_json::{Value, json};

use super::manifest::Object;
use super::{Definition, Pod, PodQuery, Store};
use crate::check::policy::{Labels, Policies};

/// The folder below `manifestDir` that statuses are written to.
const STATUS: &str = "status";
/// The kind whose manifests have to be readable.
const POLICY: &str = "AttachmentPolicy";
/// How often a write is tried whose folder goes away meanwhile.
const WRITE_TRIES: usize = 100;

/// A folder of manifests, read once.
#[derive(Debug)]
pub struct DirectoryStore {
    folder: PathBuf,
    pods: HashMap<(String, String), Found<Pod>>,
    networks: HashMap<(String, String), Found<Definition>>,
    policies: Arc<Policies>,
    namespaces: HashMap<String, Labels>,
    unreadable: Vec<String>,
    /// Why a policy may be in force that could not be read.
    unread_policy: Option<String>,
}

/// An object, and every file that holds one of its name.
#[derive(Debug)]
struct Found<T> {
    object: T,
    files: Vec<PathBuf>,
}

impl DirectoryStore {
    /// Reads all manifests below a folder. A file that cannot be read is remembered, not an error yet.
    ///
    /// # Errors
    /// Code 7: the folder itself cannot be read.
    pub fn read(folder: &Path) -> Result<Self, CniError> {
        let mut store = Self::empty(folder);
        let files = manifest_files(folder, &mut store.unreadable).map_err(|e| {
            CniError::new(code::CONFIG, format!("manifestDir {}: {e}", folder.display()))
                .with_details("set \"manifestDir\" to a folder of pod and definition manifests")
        })?;
        for file in files {
            store.add_file(&file);
        }
        Ok(store)
    }

    /// The store of a folder that could not be read: it holds nothing, and still knows where statuses are.
    #[must_use]
    pub fn empty(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            pods: HashMap::new(),
            networks: HashMap::new(),
            policies: Arc::default(),
            namespaces: HashMap::new(),
            unreadable: Vec::new(),
            unread_policy: None,
        }
    }

    /// An object that cannot be read leaves the others of its file in use; one that may be a policy does not, for nobody knows
    /// whom it limits.
    fn add_file(&mut self, file: &Path) {
        let read = fs::read_to_string(file);
        let names_policies = read.as_ref().is_ok_and(|text| text.contains(POLICY));
        let documents = read.map_err(|e| e.to_string()).and_then(|text| documents(file, &text));
        let problems = match documents {
            Ok(documents) => documents.into_iter().filter_map(|value| self.add_object(file, value).err()).collect(),
            Err(problem) => vec![problem],
        };
        for problem in problems {
            let problem = format!("{}: {problem}", file.display());
            if names_policies {
                self.unread_policy.get_or_insert(problem.clone());
            }
            self.unreadable.push(problem);
        }
    }

    fn add_object(&mut self, file: &Path, value: Value) -> Result<(), String> {
        if let Some(items) = items_of(&value) {
            let problems: Vec<String> =
                items.into_iter().filter_map(|item| self.add_object(file, item).err()).collect();
            return if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) };
        }
        match Object::read(value)? {
            Some(Object::Pod(known)) => {
                insert(&mut self.pods, (known.pod.namespace.clone(), known.pod.name.clone()), known.pod, file);
            }
            Some(Object::Definition(found)) => {
                insert(&mut self.networks, (found.namespace.clone(), found.name.clone()), found, file);
            }
            Some(Object::Policy(name, spec)) => {
                let is_first = Arc::make_mut(&mut self.policies).insert(name.clone(), spec);
                return if is_first { Ok(()) } else { Err(format!("{POLICY} {name} is in more than one manifest")) };
            }
            Some(Object::Namespace(name, labels)) => {
                self.namespaces.insert(name, labels);
            }
            None => {}
        }
        Ok(())
    }

    fn find<'a, T>(
        &self,
        kind: &str,
        objects: &'a HashMap<(String, String), Found<T>>,
        namespace: &str,
        name: &str,
    ) -> Result<Option<&'a T>, CniError> {
        match objects.get(&(namespace.to_owned(), name.to_owned())) {
            Some(found) if found.files.len() > 1 => {
                let files: Vec<String> = found.files.iter().map(|f| f.display().to_string()).collect();
                Err(CniError::new(
                    code::CONFIG,
                    format!("{kind} {namespace}/{name} is in more than one manifest: {}", files.join(", ")),
                )
                .with_details("remove all but one"))
            }
            Some(found) => Ok(Some(&found.object)),
            None => match self.unreadable.first() {
                Some(problem) => Err(CniError::new(
                    code::CONFIG,
                    format!("{kind} {namespace}/{name} is in no manifest that can be read; {problem}"),
                )
                .with_details("correct the manifest")),
                None => Ok(None),
            },
        }
    }

    /// `None` for names that no object can have: they could lead out of the folder.
    fn status_file(&self, namespace: &str, name: &str) -> Option<PathBuf> {
        let is_name = is_dns_label(namespace) && is_dns_subdomain(name);
        is_name.then(|| self.folder.join(STATUS).join(namespace).join(format!("{name}.json")))
    }
}

impl Store for DirectoryStore {
    fn pod(&self, asked: &PodQuery<'_>) -> Result<Option<Pod>, CniError> {
        Ok(self.find("pod", &self.pods, asked.namespace, asked.name)?.cloned())
    }

    fn network(&self, namespace: &str, name: &str) -> Result<Option<Definition>, CniError> {
        Ok(self.find("network", &self.networks, namespace, name)?.cloned())
    }

    fn policies(&self) -> Result<Arc<Policies>, CniError> {
        match &self.unread_policy {
            None => Ok(Arc::clone(&self.policies)),
            Some(problem) => Err(CniError::new(code::CONFIG, format!("a policy cannot be read: {problem}"))
                .with_details("correct the manifest; until then no pod is attached to networks that it selects")),
        }
    }

    /// Without a manifest of it a namespace has no labels.
    fn labels(&self, namespace: &str) -> Result<Labels, CniError> {
        Ok(self.namespaces.get(namespace).cloned().unwrap_or_default())
    }

    fn write_status(&self, pod: &Pod, statuses: &[NetworkStatus]) -> Result<(), CniError> {
        let mut metadata = json!({"name": pod.name, "namespace": pod.namespace});
        if !pod.uid.is_empty() {
            metadata["uid"] = pod.uid.as_str().into();
        }
        metadata["annotations"] = json!({NETWORK_STATUS_ANNOTATION: status::to_annotation(statuses)});
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata});
        let file = self.status_file(&pod.namespace, &pod.name).ok_or_else(|| {
            CniError::new(code::CONFIG, format!("pod {}: this is not the name of a pod", pod.key().escape_debug()))
        })?;
        mutation::before("status.write", file.display());
        write_whole(&file, format!("{object:#}\n").as_bytes())
            .map_err(|e| CniError::new(code::IO, format!("write network-status to {}: {e}", file.display())))
    }

    fn remove_status(&self, namespace: &str, name: &str, written: Option<&[NetworkStatus]>) -> Result<bool, CniError> {
        let Some(file) = self.status_file(namespace, name) else { return Ok(true) };
        let differs = |written| status_in(&file) != Some(status::to_annotation(written));
        if file.exists() && written.is_some_and(differs) {
            return Ok(false);
        }
        mutation::before("status.remove", file.display());
        match fs::remove_file(&file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(CniError::new(code::IO, format!("remove {}: {e}", file.display())));
            }
            _ => {}
        }
        remove_abandoned(&file);
        // The namespace's folder goes with its last pod; it is not empty while there are others.
        let _ = file.parent().map(fs::remove_dir);
        Ok(true)
    }

    fn warnings(&self) -> Vec<String> {
        self.unreadable.iter().map(|problem| format!("manifest {problem}")).collect()
    }
}

/// The status that stands in a file, as it was written.
fn status_in(file: &Path) -> Option<String> {
    let object: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    Some(object["metadata"]["annotations"][NETWORK_STATUS_ANNOTATION].as_str()?.to_owned())
}

fn insert<T>(objects: &mut HashMap<(String, String), Found<T>>, key: (String, String), object: T, file: &Path) {
    objects
        .entry(key)
        .and_modify(|found| found.files.push(file.to_owned()))
        .or_insert_with(|| Found { object, files: vec![file.to_owned()] });
}

/// The manifest files below a folder, sorted, without those of `status/`. Links are followed, and what two paths lead to
/// is read once: a mounted ConfigMap shows each of its files three times.
/// A folder inside that cannot be read is remembered as a file would be.
pub(crate) fn manifest_files(folder: &Path, unreadable: &mut Vec<String>) -> io::Result<Vec<PathBuf>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    let mut seen = BTreeSet::new();
    while let Some(current) = folders.pop() {
        let entries = match entries_once(&current, &mut seen) {
            Err(e) if current != folder => {
                unreadable.push(format!("{}: {e}", current.display()));
                continue;
            }
            entries => entries?,
        };
        for path in entries {
            if path.is_dir() {
                folders.extend(Some(path).filter(|path| *path != folder.join(STATUS)));
            } else if is_manifest(&path) {
                let itself = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
                files
                    .entry(itself)
                    .and_modify(|first: &mut PathBuf| *first = path.clone().min(first.clone()))
                    .or_insert(path);
            }
        }
    }
    let mut files: Vec<PathBuf> = files.into_values().collect();
    files.sort();
    Ok(files)
}

/// What is in a folder; nothing where another path has led to it before.
fn entries_once(folder: &Path, seen: &mut BTreeSet<PathBuf>) -> io::Result<Vec<PathBuf>> {
    if !seen.insert(fs::canonicalize(folder)?) {
        return Ok(Vec::new());
    }
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

fn is_manifest(path: &Path) -> bool {
    path.extension().and_then(|e| e.to_str()).is_some_and(|e| matches!(e, "yaml" | "yml" | "json"))
}

/// The objects of a list of any kind; `None` for what is none.
pub(crate) fn items_of(value: &Value) -> Option<Vec<Value>> {
    let is_list = value.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List"));
    is_list.then(|| value.get("items").and_then(Value::as_array).cloned().unwrap_or_default())
}

/// The documents of a file: JSON by its name, YAML otherwise; empty documents are none.
fn documents(file: &Path, text: &str) -> Result<Vec<Value>, String> {
    let documents: Vec<Value> = if file.extension().is_some_and(|e| e == "json") {
        serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>().map_err(|e| e.to_string())?
    } else {
        serde_saphyr::from_multiple(text).map_err(|e| first_line(&e.to_string()))?
    };
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Writes a file whole or not at all: beside it, then renamed. A DEL may remove the empty folder, or what it takes for
/// abandoned there, in between: then it is done again.
///
/// # Errors
/// The folder cannot be made or written.
pub fn write_whole(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut written = try_write_whole(file, bytes);
    // `create_dir_all` says "exists" of a folder that was there when it tried, and is not when it looks.
    let is_overtaken = |e: &io::Error| matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists);
    for _ in 1..WRITE_TRIES {
        match written {
            Err(e) if is_overtaken(&e) => written = try_write_whole(file, bytes),
            _ => break,
        }
    }
    written
}

fn try_write_whole(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut temporary = tempfile::Builder::new().prefix(&temporary_prefix(file)).tempfile_in(folder)?;
    io::Write::write_all(&mut temporary, bytes)?;
    mutation::before("status.rename", file.display());
    temporary.persist(file).map(drop).map_err(|e| e.error)
}

fn temporary_prefix(file: &Path) -> String {
    format!(".{}.", file.file_name().unwrap_or_default().to_string_lossy())
}

/// Removes what a process that was killed in the middle of [`write_whole`] left beside a file.
fn remove_abandoned(file: &Path) {
    let prefix = temporary_prefix(file);
    let beside = file.parent().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    for entry in beside.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)) {
        let _ = fs::remove_file(entry.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(files: &[(&str, &str)]) -> (tempfile::TempDir, DirectoryStore) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let store = DirectoryStore::read(folder.path()).unwrap();
        (folder, store)
    }

    #[test]
    fn objects_are_found_in_every_kind_of_file() {
        let (_folder, store) = store(&[
            (
                "a.yaml",
                "kind: Pod\nmetadata: {name: one}\n---\n---\nkind: Pod\nmetadata: {name: two, namespace: other}\n",
            ),
            ("deep/er/b.yml", "kind: Pod\nmetadata:\n  name: three\n  annotations: {a: b, empty: }\n"),
            (
                "c.json",
                r#"{"kind":"List","items":[{"kind":"Pod","metadata":{"name":"four"}},{"kind":"PodList","items":[{"kind":"Pod","metadata":{"name":"five"}}]}]}"#,
            ),
            (
                "d.json",
                "{\"kind\":\"Pod\",\"metadata\":{\"name\":\"six\",\"uid\":\"u\"},\"spec\":{\"hostNetwork\":true}}\n{\"kind\":\"Service\"}",
            ),
            ("e.txt", "kind: Pod\nmetadata: {name: seven}\n"),
            ("status/default/eight.json", r#"{"kind":"Pod","metadata":{"name":"eight"}}"#),
            ("deep/status/f.json", r#"{"kind":"Pod","metadata":{"name":"nine"}}"#),
            ("empty.yaml", ""),
        ]);
        let found = |namespace: &str, name: &str| store.pod(&PodQuery::named(namespace, name)).unwrap();
        for (namespace, name) in [
            ("default", "one"),
            ("other", "two"),
            ("default", "three"),
            ("default", "four"),
            ("default", "five"),
            ("default", "nine"),
        ] {
            assert!(found(namespace, name).is_some(), "{namespace}/{name}");
        }
        for name in ["two", "seven", "eight"] {
            assert!(found("default", name).is_none(), "{name}");
        }
        let three = found("default", "three").unwrap();
        assert_eq!(three.annotations, BTreeMap::from([("a".into(), "b".into()), ("empty".into(), String::new())]));
        let six = found("default", "six").unwrap();
        assert_eq!((six.uid.as_str(), six.host_network), ("u", true));
        assert_eq!(store.warnings(), Vec::<String>::new());
    }

    #[test]
    fn a_definition_is_read_with_its_resource() {
        let (_folder, store) = store(&[(
            "nad.yaml",
            "kind: NetworkAttachmentDefinition\nmetadata:\n  name: sriov\n  annotations: {k8s.v1.cni.cncf.io/resourceName: intel.com/vf}\nspec:\n  config: |\n    {\"type\": \"sriov\"}\n",
        )]);
        let found = store.network("default", "sriov").unwrap().unwrap();
        assert_eq!(found.resource_name.as_deref(), Some("intel.com/vf"));
        assert_eq!(found.config.as_deref().map(str::trim), Some("{\"type\": \"sriov\"}"));
    }

    #[test]
    fn a_status_is_written_below_its_own_folder_and_removed() {
        let (folder, store) = store(&[("a.yaml", "kind: Pod\nmetadata: {name: one, uid: u}\n")]);
        let pod = store.pod(&PodQuery::named("default", "one")).unwrap().unwrap();
        store.write_status(&pod, &[]).unwrap();
        let file = folder.path().join("status/default/one.json");
        let object: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(
            object,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one", "namespace": "default", "uid": "u",
                   "annotations": {NETWORK_STATUS_ANNOTATION: "[]"}}})
        );
        assert!(
            DirectoryStore::read(folder.path()).unwrap().pod(&PodQuery::named("default", "one")).is_ok(),
            "it is no second pod"
        );
        let other = NetworkStatus { name: "other".to_owned(), ..NetworkStatus::default() };
        assert!(!store.remove_status("default", "one", Some(&[other])).unwrap(), "another's stays");
        assert!(store.remove_status("default", "one", Some(&[])).unwrap());
        assert!(store.remove_status("default", "one", None).unwrap());
        assert!(!folder.path().join("status/default").exists());
    }

    /// What a runtime or a manifest calls a pod never leads out of the folder.
    #[test]
    fn names_are_no_paths() {
        let (folder, store) = store(&[("keep.json", "{}")]);
        for (namespace, name) in
            [("..", "keep"), ("default", "../../keep"), ("/", "etc/passwd"), ("", "keep"), ("default", "")]
        {
            store.remove_status(namespace, name, None).unwrap();
            let pod = Pod { namespace: namespace.into(), name: name.into(), ..Pod::default() };
            assert_eq!(store.write_status(&pod, &[]).unwrap_err().code, code::CONFIG, "{namespace}/{name}");
        }
        assert!(folder.path().join("keep.json").exists() && !folder.path().join("status").exists());
    }

    /// As a mounted ConfigMap has them, and in a circle.
    #[test]
    fn what_links_lead_to_is_read_once() {
        let (folder, _) = store(&[("..2026/a.yaml", "kind: Pod\nmetadata: {name: one}\n")]);
        let link = |to: &Path, name: &str| std::os::unix::fs::symlink(to, folder.path().join(name)).unwrap();
        link(Path::new("..2026"), "..data");
        link(Path::new("..data/a.yaml"), "a.yaml");
        link(folder.path(), "..2026/again");
        link(Path::new("nowhere.yaml"), "dangling.yaml");
        let store = DirectoryStore::read(folder.path()).unwrap();
        assert!(store.pod(&PodQuery::named("default", "one")).unwrap().is_some());
        assert_eq!(store.warnings().len(), 1, "{:?}", store.warnings());
        assert!(store.warnings()[0].contains("dangling.yaml"));
        let missing = DirectoryStore::read(Path::new("/nonexistent")).unwrap_err();
        assert!(missing.code == code::CONFIG && missing.msg.contains("manifestDir /nonexistent"), "{missing}");
    }

    #[test]
    fn a_status_is_written_though_others_of_its_namespace_go_at_that_moment() {
        let place = tempfile::tempdir().unwrap();
        let pod = |name: &str| Pod { namespace: "default".into(), name: name.into(), ..Pod::default() };
        std::thread::scope(|scope| {
            for name in ["a", "b", "a"] {
                let folder = place.path();
                scope.spawn(move || {
                    let store = DirectoryStore::empty(folder);
                    for _ in 0..500 {
                        store.write_status(&pod(name), &[]).unwrap();
                        store.remove_status("default", name, None).unwrap();
                    }
                });
            }
        });
        assert!(!place.path().join("status/default").exists(), "the folder goes with its last pod");
    }
}
