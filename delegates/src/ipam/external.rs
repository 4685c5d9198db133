//! Any other IPAM type: a plugin of its own, run with the whole configuration of the network, as the reference plugins do.

use serde_json::Value;

use crate::cni::{CniArgs, CniError, CniResult, Command, NetConf, ValidAttachment, Version, code};
use crate::delegate::{Attachment, Context};
use crate::external::{ExecRequest, exec, find};

/// An IPAM plugin on `CNI_PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    plugin: String,
}

impl External {
    /// The plugin of a type.
    pub fn new(plugin: &str) -> External {
        External { plugin: plugin.to_string() }
    }

    /// The plugin's type, which is its file's name.
    pub fn plugin(&self) -> &str {
        &self.plugin
    }

    /// Asks it for addresses. When it fails it is asked to take back what it may have done (CNI 1.1 §4).
    ///
    /// # Errors
    /// The plugin is missing, fails, or answers what is no result.
    pub fn add(&self, at: &Attachment<'_>) -> Result<CniResult, CniError> {
        find(&self.plugin, at.path).map_err(|missing| self.in_context(missing))?;
        let added = self.run(Command::Add, at).and_then(|answer| match answer {
            Some(answer) => CniResult::parse(&answer, at.version),
            None => Err(CniError::new(code::DECODE, "ADD answered nothing")),
        });
        added.map_err(|error| {
            let error = self.in_context(error);
            match self.release(at) {
                Ok(()) => error,
                Err(left) => CniError { code: code::UNDO_INCOMPLETE, ..error }.with_details(left.msg),
            }
        })
    }

    /// Forwards CHECK, which exists from CNI 0.4.0.
    ///
    /// # Errors
    /// The plugin's own.
    pub fn check(&self, at: &Attachment<'_>) -> Result<(), CniError> {
        if at.version < Version::V0_4_0 {
            return Ok(());
        }
        self.run(Command::Check, at).map(drop).map_err(|error| self.in_context(error))
    }

    /// Forwards DEL.
    ///
    /// # Errors
    /// The plugin is missing or fails.
    pub fn release(&self, at: &Attachment<'_>) -> Result<(), CniError> {
        self.run(Command::Del, at).map(drop).map_err(|error| self.in_context(error))
    }

    /// Forwards STATUS, which exists from CNI 1.1.0.
    ///
    /// # Errors
    /// The plugin is missing, or its own.
    pub fn status(&self, cx: &Context<'_>) -> Result<(), CniError> {
        self.run_for_network(Command::Status, cx, cx.conf)
    }

    /// Forwards GC, which exists from CNI 1.1.0.
    ///
    /// # Errors
    /// The plugin is missing, or its own.
    pub fn gc(&self, cx: &Context<'_>, valid: &[ValidAttachment]) -> Result<(), CniError> {
        let mut conf = cx.conf.clone();
        conf.set_valid_attachments(valid);
        self.run_for_network(Command::Gc, cx, &conf)
    }

    fn run(&self, command: Command, at: &Attachment<'_>) -> Result<Option<Value>, CniError> {
        exec(ExecRequest {
            plugin: &find(&self.plugin, at.path)?,
            command,
            container_id: Some(at.container_id),
            netns: at.netns,
            interface: Some(at.interface),
            args: at.args,
            path: at.path,
            stdin: &at.conf.to_bytes(),
            deadline: at.deadline,
            surroundings: at.programs,
            inherit: None,
            on_spawn: None,
        })
    }

    fn run_for_network(&self, command: Command, cx: &Context<'_>, conf: &NetConf) -> Result<(), CniError> {
        if cx.version < Version::V1_1_0 {
            return Ok(());
        }
        let run = || {
            exec(ExecRequest {
                plugin: &find(&self.plugin, cx.path)?,
                command,
                container_id: None,
                netns: None,
                interface: None,
                args: &CniArgs::default(),
                path: cx.path,
                stdin: &conf.to_bytes(),
                deadline: cx.deadline,
                surroundings: cx.programs,
                inherit: None,
                on_spawn: None,
            })
        };
        run().map(drop).map_err(|error| self.in_context(error))
    }

    fn in_context(&self, error: CniError) -> CniError {
        error.context(format_args!("IPAM {}", self.plugin))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::super::testing::{Asking, with};
    use super::*;

    /// A pod whose IPAM plugin notes each call and then runs `script`.
    fn asking(version: &str, script: &str) -> Asking {
        let mut pod = Asking::new(&with(json!({"cniVersion": version, "ipam": {"type": "noting"}, "master": "eth9"})));
        let folder = pod.place.path().join("bin");
        let plugin = folder.join("noting");
        fs::create_dir(&folder).unwrap();
        let note = format!(
            "{0}/stdin.$CNI_COMMAND; echo $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_ARGS >> {0}/calls",
            folder.display()
        );
        fs::write(&plugin, format!("#!/bin/sh\ncat > {note}\n{script}\n")).unwrap();
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
        pod.path = vec![folder];
        pod.args = "K8S_POD_NAME=p".to_string();
        pod
    }

    fn noted(pod: &Asking, name: &str) -> String {
        fs::read_to_string(pod.place.path().join("bin").join(name)).unwrap_or_default()
    }

    fn ours() -> External {
        External::new("noting")
    }

    #[test]
    fn it_is_sent_the_whole_configuration_and_its_result_is_read() {
        let pod = asking(
            "1.0.0",
            r#"echo '{"ips": [{"address": "10.0.0.5/24", "gateway": "10.0.0.1"}], "dns": {"domain": "d"}}'"#,
        );
        let result = pod.ask(|at| ours().add(at)).unwrap();
        assert_eq!(result.ips[0].address.to_string(), "10.0.0.5/24");
        assert_eq!(result.dns.domain, "d");
        assert_eq!(noted(&pod, "calls"), "ADD c1 eth0 K8S_POD_NAME=p\n");
        assert_eq!(noted(&pod, "stdin.ADD").as_bytes(), pod.conf.to_bytes());
    }

    #[test]
    fn a_failed_add_is_taken_back_and_its_error_kept() {
        let failing = r#"[ $CNI_COMMAND = ADD ] && { echo '{"code": 11, "msg": "pool busy", "details": "later"}'; exit 1; }; exit 0"#;
        for (script, code, expected) in
            [(failing, code::TRY_AGAIN, "IPAM noting: pool busy"), ("echo garbage", code::DELEGATE, "IPAM noting: ")]
        {
            let pod = asking("1.0.0", script);
            let error = pod.ask(|at| ours().add(at)).unwrap_err();
            assert!(error.msg.starts_with(expected), "{error}");
            assert_eq!(noted(&pod, "calls"), "ADD c1 eth0 K8S_POD_NAME=p\nDEL c1 eth0 K8S_POD_NAME=p\n");
            assert_eq!(error.code, code, "{error}");
        }
    }

    #[test]
    fn what_cannot_be_taken_back_is_said() {
        let pod = asking("1.0.0", r#"echo "{\"code\": 7, \"msg\": \"no $CNI_COMMAND\"}"; exit 1"#);
        let error = pod.ask(|at| ours().add(at)).unwrap_err();
        assert_eq!((error.code, error.msg.as_str()), (code::UNDO_INCOMPLETE, "IPAM noting: no ADD"));
        assert!(error.details.contains("no DEL"), "{error}");
    }

    #[test]
    fn a_missing_plugin_is_named_and_nothing_is_undone() {
        let pod = asking("1.0.0", "");
        let error = pod.ask(|at| External::new("nowhere").add(at)).unwrap_err();
        assert_eq!(error.code, code::CONFIG);
        assert!(error.msg.contains("nowhere"), "{error}");
        assert_eq!(noted(&pod, "calls"), "");
    }

    #[test]
    fn each_verb_is_forwarded_from_the_version_that_has_it() {
        for (version, expected) in [
            ("0.3.1", "DEL c1 eth0 K8S_POD_NAME=p\n"),
            ("0.4.0", "CHECK c1 eth0 K8S_POD_NAME=p\nDEL c1 eth0 K8S_POD_NAME=p\n"),
            ("1.1.0", "CHECK c1 eth0 K8S_POD_NAME=p\nDEL c1 eth0 K8S_POD_NAME=p\nSTATUS\nGC\n"),
        ] {
            let pod = asking(version, "");
            let valid = [ValidAttachment { container_id: "c7".to_string(), interface: "net1".to_string() }];
            pod.ask(|at| {
                ours().check(at).unwrap();
                ours().release(at).unwrap();
                ours().status(&at.context).unwrap();
                ours().gc(&at.context, &valid).unwrap();
            });
            let calls: String = noted(&pod, "calls").lines().map(|call| format!("{}\n", call.trim_end())).collect();
            assert_eq!(calls, expected, "{version}");
            let sent = noted(&pod, "stdin.GC");
            assert_eq!(sent.contains(r#"{"containerID":"c7","ifname":"net1"}"#), version == "1.1.0", "{sent}");
        }
    }
}
