//! A CNI plugin that does nothing but write down how it was called: environment and stdin, one file a call, in the folder
//! that `RECORDER_FOLDER` names. Copied under any plugin's name. Its own configuration key `recorder` says what it answers.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Map, Value, json};

fn main() -> ExitCode {
    let mut stdin = String::new();
    io::stdin().read_to_string(&mut stdin).expect("the configuration");
    let command = std::env::var("CNI_COMMAND").expect("CNI_COMMAND");
    record(&command, &stdin).expect("a call to be written down");
    let conf: Value = serde_json::from_str(&stdin).unwrap_or_default();
    let (answer, code) = answer(&command, &conf);
    io::stdout().write_all(answer.as_bytes()).expect("an answer");
    code
}

fn record(command: &str, stdin: &str) -> io::Result<()> {
    let folder = std::env::var_os("RECORDER_FOLDER").unwrap_or_else(|| OsString::from("/nonexistent"));
    let program = std::env::args_os().next().unwrap_or_default();
    let plugin = Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let env: Map<String, Value> = std::env::vars()
        .filter(|(key, _)| key.starts_with("CNI_") || key.starts_with("TRACE"))
        .map(|(key, value)| (key, value.into()))
        .collect();
    let call = json!({"plugin": plugin, "command": command, "env": env, "stdin": stdin});
    let folder = Path::new(&folder);
    let mut number = std::fs::read_dir(folder)?.count();
    loop {
        match OpenOptions::new().write(true).create_new(true).open(folder.join(format!("{number:04}.json"))) {
            Ok(mut file) => return file.write_all(call.to_string().as_bytes()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(e) => return Err(e),
        }
    }
}

/// `recorder.error.<COMMAND>` is a CNI error to fail with, `recorder.result` what ADD prints; a chained call passes on
/// what came before it.
fn answer(command: &str, conf: &Value) -> (String, ExitCode) {
    let own = &conf["recorder"];
    if let Some(error) = own["error"].get(command) {
        return (error.to_string(), ExitCode::FAILURE);
    }
    if command != "ADD" {
        return (String::new(), ExitCode::SUCCESS);
    }
    let result = [&own["result"], &conf["prevResult"]].into_iter().find(|value| value.is_object()).cloned();
    let mut result = result.unwrap_or_else(|| json!({}));
    result["cniVersion"] = conf["cniVersion"].clone();
    (result.to_string(), ExitCode::SUCCESS)
}
