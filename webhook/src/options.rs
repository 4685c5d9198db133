//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use jiff::SignedDuration;
use musubi::config::LogLevel;

use crate::mutate::Existing;

/// The admission server of Musubi: finds when a pod or a network definition is applied what would otherwise fail when the
/// pod starts, decides who may use which network, and gives pods the resource requests that their networks need.
#[derive(Debug, Clone, Parser)]
#[command(name = "musubi-webhook", version, max_term_width = 100)]
pub struct Options {
    /// Where to listen: /validate, /mutate, /healthz, /readyz and /metrics, all over TLS
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:8443")]
    pub listen: SocketAddr,
    /// The cluster [default: that of the pod's service account]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The agents' configuration, whose namespaceIsolation, globalNamespaces, multusNamespace, defaultNetworks,
    /// nativeDelegates and legacyCniArgs hold here, too; a file that is not there is as good as an empty one
    #[arg(long, value_name = "FILE", default_value = "/etc/musubi/agent.json")]
    pub config: PathBuf,

    /// A definition that a pod names and that does not exist: refuse the pod, or warn, as it may come before the pod starts
    #[arg(long, value_name = "ANSWER", default_value = "deny", help_heading = "Decisions")]
    pub missing_definition: Answer,
    /// A pod that uses its node's network and names networks, which it does not get
    #[arg(long, value_name = "ANSWER", default_value = "warn", help_heading = "Decisions")]
    pub host_network: Answer,

    /// Requests that a pod makes itself for a resource that its networks need
    #[arg(long, value_name = "RULE", default_value = "fill", help_heading = "Resource requests")]
    pub existing_requests: Existing,
    /// Do not give pods that get requests the volume /etc/podnetinfo, which tells them their labels and annotations
    #[arg(long, help_heading = "Resource requests")]
    pub no_pod_info: bool,
    /// Have that volume tell each container its huge pages as well
    #[arg(long, help_heading = "Resource requests")]
    pub huge_pages: bool,
    /// Annotations for pods that get requests and have a label that is "true": the ConfigMap of network-resources-injector as a
    /// file ("user-defined-injections"), read anew when it changes; a file that is not there is as good as an empty one
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/musubi-injections/config.json",
        help_heading = "Resource requests"
    )]
    pub injections: PathBuf,

    /// Folder with tls.crt and tls.key, which somebody else keeps; they are read anew when they change, and caBundle is not
    /// touched [default: certificates are made here and kept in a Secret]
    #[arg(long, value_name = "DIR", help_heading = "Certificates")]
    pub tls_dir: Option<PathBuf>,
    /// Namespace of the Secret and of the Service
    #[arg(
        long,
        value_name = "NAME",
        env = "POD_NAMESPACE",
        default_value = "kube-system",
        help_heading = "Certificates"
    )]
    pub namespace: String,
    /// The Secret, which has to be there, if only empty
    #[arg(long, value_name = "NAME", default_value = "musubi-webhook", help_heading = "Certificates")]
    pub secret: String,
    /// The Service by which API servers reach us; certificates bear its name
    #[arg(long, value_name = "NAME", default_value = "musubi-webhook", help_heading = "Certificates")]
    pub service: String,
    /// The ValidatingWebhookConfiguration and the MutatingWebhookConfiguration whose caBundle is kept
    #[arg(long, value_name = "NAME", default_value = "musubi-webhook", help_heading = "Certificates")]
    pub configurations: String,
    /// How long a certificate is valid: 90d, 12h, 30m or 20s. It is renewed with a sixth of that left
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = duration, help_heading = "Certificates")]
    pub certificate_lifetime: SignedDuration,

    /// What is logged: error, warning, verbose or debug
    #[arg(long, value_name = "LEVEL", default_value = "verbose", value_parser = log_level, help_heading = "Log")]
    pub log_level: LogLevel,
    /// How log lines look
    #[arg(long, value_name = "FORMAT", default_value = "text", help_heading = "Log")]
    pub log_format: LogFormat,
}

/// What is answered to something that may be meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Answer {
    /// It is refused
    Deny,
    /// It is allowed, with a warning
    Warn,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For reading
    Text,
    /// One JSON object a line
    Json,
}

fn duration(text: &str) -> Result<SignedDuration, String> {
    const SHORTEST: SignedDuration = SignedDuration::from_secs(5);
    const LONGEST: SignedDuration = SignedDuration::from_hours(24 * 3650);
    let wrong = || format!("a whole number and d, h, m or s, from {SHORTEST:#} to ten years");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: i64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    let duration = SignedDuration::from_secs(number.checked_mul(seconds).ok_or_else(wrong)?);
    if (SHORTEST..=LONGEST).contains(&duration) { Ok(duration) } else { Err(wrong()) }
}

fn log_level(text: &str) -> Result<LogLevel, String> {
    match text {
        "error" => Ok(LogLevel::Error),
        "warning" => Ok(LogLevel::Warning),
        "verbose" => Ok(LogLevel::Verbose),
        "debug" => Ok(LogLevel::Debug),
        _ => Err("error, warning, verbose or debug".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Options::command().debug_assert();
    }

    #[test]
    fn times_have_a_unit() {
        for (text, seconds) in [("90d", 7_776_000), ("12h", 43_200), ("30m", 1_800), ("5s", 5)] {
            assert_eq!(duration(text), Ok(SignedDuration::from_secs(seconds)), "{text}");
        }
        for text in ["", "90", "d", "4s", "-1d", "3651d", "1.5d", "9223372036854775807d", "90é"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
