//! What plugins were really sent: the recording plugin (`src/bin/recorder.rs`) installed on a node, and its calls read back.

use std::path::Path;

use serde_json::Value;

use crate::node::Node;

/// One call of the recording plugin.
#[derive(Debug, Clone)]
pub struct Call {
    /// The name it was called by.
    pub plugin: String,
    /// `CNI_COMMAND`.
    pub command: String,
    /// Variables beginning with `CNI_` or `TRACE`.
    pub env: Value,
    /// stdin as it came.
    pub stdin: String,
}

impl Call {
    /// stdin as JSON, in the order it came.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn conf(&self) -> Value {
        serde_json::from_str(&self.stdin).expect("JSON on stdin")
    }

    /// stdin without `prevResult`, every other byte as it came.
    ///
    /// # Panics
    /// When `prevResult` is not the last key.
    #[must_use]
    pub fn without_prev_result(&self) -> String {
        match self.stdin.find(",\"prevResult\":") {
            None => self.stdin.clone(),
            Some(end) => {
                let cut = format!("{}}}", &self.stdin[..end]);
                let mut rest = self.conf();
                rest.as_object_mut().expect("an object").shift_remove("prevResult");
                assert_eq!(rest.to_string(), cut, "prevResult is the last key");
                cut
            }
        }
    }

    /// One variable; empty when it is not set.
    #[must_use]
    pub fn var(&self, name: &str) -> &str {
        self.env[name].as_str().unwrap_or_default()
    }
}

/// Puts the recording plugin, built at `program`, into the node's `binDir` under the given names.
///
/// # Panics
/// When it cannot.
pub fn install(node: &mut Node, program: &Path, names: &[&str]) {
    let (bin, calls) = (node.folder().join("bin"), node.folder().join("calls"));
    for folder in [&bin, &calls] {
        std::fs::create_dir_all(folder).expect("a folder");
    }
    for name in names {
        std::os::unix::fs::symlink(program, bin.join(name)).expect("a link");
    }
    node.env.push(("RECORDER_FOLDER".to_owned(), calls.display().to_string()));
}

/// The calls so far, in order; they are forgotten.
///
/// # Panics
/// When they cannot be read.
#[must_use]
pub fn take(node: &Node) -> Vec<Call> {
    let folder = node.folder().join("calls");
    let mut files: Vec<_> = std::fs::read_dir(&folder).expect("calls").map(|e| e.expect("a call").path()).collect();
    files.sort();
    let calls = files.iter().map(|file| {
        let call: Value = serde_json::from_slice(&std::fs::read(file).expect("a call")).expect("JSON");
        let text = |key: &str| call[key].as_str().expect("a text").to_owned();
        Call { plugin: text("plugin"), command: text("command"), env: call["env"].clone(), stdin: text("stdin") }
    });
    let calls = calls.collect();
    files.iter().for_each(|file| std::fs::remove_file(file).expect("forget a call"));
    calls
}
