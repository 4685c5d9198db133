//! `musubi delegate TYPE`, and being called by a bundled plugin's name: that plugin alone, as an ordinary CNI plugin.

use std::path::Path;
use std::process::ExitCode;

use musubi_delegates::cni::request;
use musubi_delegates::standalone;

use crate::config::STATE_DIR;

/// Answers one CNI request as a bundled plugin.
#[must_use]
pub fn run(plugin_type: &str) -> ExitCode {
    request::serve(|request| standalone::run(plugin_type, request, Path::new(STATE_DIR)))
}
