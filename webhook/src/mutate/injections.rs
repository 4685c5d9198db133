//! Annotations that pods with a label get when they get devices: the user-defined injections of network-resources-injector, in
//! the form of its ConfigMap, read from a file that somebody mounts.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use musubi_crds::{DEFAULT_NETWORK_ANNOTATION, NETWORKS_ANNOTATION};
use serde::Deserialize;
use serde_json::Value;

/// Between two looks at the file.
const BETWEEN_LOOKS: Duration = Duration::from_secs(5);

type Annotations = BTreeMap<String, String>;

/// Which annotations go with which label; copies share them.
#[derive(Debug, Clone, Default)]
pub struct Injections(Arc<RwLock<BTreeMap<String, Annotations>>>);

/// The form of the file: `{"user-defined-injections": {LABEL: {"op": "add", "path": "/metadata/annotations", "value": {…}}}}`.
/// What else the injector's ConfigMap holds is said to us by options.
#[derive(Deserialize)]
struct Written {
    #[serde(rename = "user-defined-injections", default)]
    injections: BTreeMap<String, Operation>,
}

#[derive(Deserialize)]
struct Operation {
    op: String,
    path: String,
    value: Annotations,
}

impl Injections {
    /// Those of a file, which is read anew for ever: what cannot be read leaves those that were there. No file is none.
    #[must_use]
    pub fn follow(file: PathBuf) -> Self {
        let injections = Self::default();
        let mut known = injections.look(&file, None);
        let followed = injections.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(BETWEEN_LOOKS).await;
                known = followed.look(&file, known);
            }
        });
        injections
    }

    /// Takes what the file says, where that is not known; what it said.
    fn look(&self, file: &Path, known: Option<String>) -> Option<String> {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => {
                tracing::warn!("injections {}: {error}", file.display());
                return known;
            }
        };
        if known.as_ref() == Some(&text) {
            return known;
        }
        match read(&text) {
            Ok(read) => {
                tracing::info!("injections {}: {}", file.display(), read.len());
                *self.0.write().unwrap_or_else(PoisonError::into_inner) = read;
            }
            Err(problem) => tracing::warn!("injections {}: {problem}", file.display()),
        }
        Some(text)
    }

    /// The annotations that a pod gets: those of each of its labels that is "true".
    #[must_use]
    pub fn of(&self, pod: &Value) -> Annotations {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let chosen = all.iter().filter(|(label, _)| pod["metadata"]["labels"][label.as_str()] == "true");
        chosen.flat_map(|(_, annotations)| annotations.clone()).collect()
    }
}

fn read(text: &str) -> Result<BTreeMap<String, Annotations>, String> {
    if text.trim().is_empty() {
        return Ok(BTreeMap::new());
    }
    let written: Written = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let take = |(label, Operation { op, path, value }): (String, Operation)| {
        if (op.as_str(), path.as_str()) != ("add", "/metadata/annotations") {
            return Err(format!(
                "{label}: \"{op}\" at \"{path}\"; \"add\" at \"/metadata/annotations\" is all there is"
            ));
        }
        let named = [NETWORKS_ANNOTATION, DEFAULT_NETWORK_ANNOTATION].into_iter().find(|key| value.contains_key(*key));
        match named {
            Some(key) => {
                Err(format!("{label}: {key} would name networks of pods that name none; write it into the pods"))
            }
            None => Ok((label, value)),
        }
    };
    written.injections.into_iter().map(take).collect()
}

#[cfg(test)]
impl Injections {
    /// Those of a text.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        read(text).map(|read| Self(Arc::new(RwLock::new(read))))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cannot_be_read_leaves_those_that_were_there_and_no_file_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        let written = json!({"x": {"op": "add", "path": "/metadata/annotations", "value": {"k": "v"}}});
        std::fs::write(&file, json!({"user-defined-injections": written}).to_string()).unwrap();
        let injections = Injections::default();
        let annotations = || injections.of(&json!({"metadata": {"labels": {"x": "true"}}})).len();
        let known = injections.look(&file, None);
        assert_eq!(annotations(), 1);
        let known = injections.look(folder.path(), known);
        assert_eq!(annotations(), 1, "a folder cannot be read");
        std::fs::write(&file, "{").unwrap();
        let known = injections.look(&file, known);
        assert_eq!(annotations(), 1, "half a file says nothing");
        std::fs::remove_file(&file).unwrap();
        injections.look(&file, known);
        assert_eq!(annotations(), 0);
    }
}
