//! The beginning of an agent in a container: it keeps two folders, enters the host's mounts, and then says what it sees, a
//! line on stdin at a time. Called with the mount namespace, the service account's folder and the configuration file.

#![allow(clippy::print_stdout, reason = "answers go to the test that asks")]

use std::io::{self, BufRead};
use std::path::{Path, PathBuf};

use musubi::agent::credentials::Credentials;
use musubi::agent::host_mounts::{Folder, HostMounts, Kept, enter};
use serde_json::{Value, json};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [namespace, service_account, config_file] = &arguments[..] else { anyhow::bail!("three arguments") };
    let mut kept = Kept::open(service_account, config_file);
    let mounts = enter(Some(namespace));
    let state = match &mounts {
        HostMounts::Own => "own",
        HostMounts::Entered => "entered",
        HostMounts::Failed(_) => "failed",
    };
    println!("{}", json!({"state": state, "problem": mounts.problem()}));
    for line in io::stdin().lock().lines() {
        let line = line?;
        let (what, name) = line.split_once(' ').unwrap_or((&line, ""));
        println!(
            "{}",
            match what {
                "read" => text(std::fs::read(name)),
                "account" => kept_file(kept.service_account.as_ref(), name),
                "config" => kept_file(kept.configuration.as_ref(), name),
                "credentials" => credentials(kept.service_account.take(), Path::new(name)),
                _ => anyhow::bail!("what is {what}?"),
            }
        );
    }
    Ok(())
}

/// Both ways to a file have to lead to the same one.
fn kept_file(folder: Option<&Folder>, name: &str) -> Value {
    let Some(folder) = folder else { return Value::Null };
    let (read, by_path) = (text(folder.read(name)), text(std::fs::read(folder.path_of(name))));
    if read == by_path { read } else { json!({"read": read, "by path": by_path}) }
}

fn credentials(account: Option<Folder>, kubeconfig: &Path) -> Value {
    let Some(account) = account else { return Value::Null };
    let credentials = Credentials::new(account, "https://10.96.0.1:443".into(), kubeconfig.into());
    json!(credentials.refresh().map_err(|e| e.to_string()))
}

fn text(bytes: io::Result<Vec<u8>>) -> Value {
    bytes.map_or(Value::Null, |bytes| String::from_utf8_lossy(&bytes).into())
}
