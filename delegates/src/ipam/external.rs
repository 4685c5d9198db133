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
            extra_env: &[],
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
                extra_env: &[],
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
