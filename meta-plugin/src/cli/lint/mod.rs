//! `musubi lint`: what admission would say of manifests, before anything is applied: definitions against each other, pods
//! against definitions, all within the policies among them. The checks are [`crate::check`]'s; here are files and lines.

mod report;
mod source;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use self::source::Source;
use super::explain::own_configuration;
use crate::check::{Finding, Settings, Severity, World, definition, pod};
use crate::config::Config;
use crate::store::directory::{items_of, manifest_files};
use crate::store::manifest::Object;

/// Options of `musubi lint`.
#[derive(Args)]
pub struct Options {
    /// Manifests, or folders of manifests (*.yaml, *.yml, *.json)
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Musubi's CNI configuration, where it differs from the defaults
    #[arg(long, value_name = "CONF")]
    config: Option<PathBuf>,
    /// Whether a pod may name a definition that is in none of the manifests
    #[arg(long, value_name = "WHAT", default_value = "deny")]
    missing_definition: MissingDefinition,
    /// How to print
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MissingDefinition {
    Deny,
    Warn,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    Sarif,
}

/// A finding and where it is.
struct Found {
    file: String,
    line: usize,
    /// `Kind namespace/name`; empty where no object could be read.
    object: String,
    finding: Finding,
}

/// What was read.
#[derive(Default)]
struct Lint {
    sources: Vec<Source>,
    /// Each with the source it is in and the line it begins.
    objects: Vec<(usize, Object)>,
    found: Vec<Found>,
}

pub(super) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let (world, files) = match prepare(options) {
        Ok(prepared) => prepared,
        Err(error) => return super::unusable(&error),
    };
    let mut lint = Lint::default();
    for file in &files {
        lint.read(file);
    }
    let objects = lint.objects.len();
    let found = lint.check(world);
    match options.output {
        Format::Table => super::print(&report::table(&found, files.len(), objects))?,
        Format::Json => super::print_json(&report::json(&found, files.len(), objects))?,
        Format::Sarif => super::print_json(&report::sarif(&found))?,
    }
    let failed = found.iter().any(|found| found.finding.is_error());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn prepare(options: &Options) -> anyhow::Result<(World, Vec<PathBuf>)> {
    let config = match &options.config {
        None => Config::assumed()?,
        Some(file) => {
            let of = || format!("--config {}", file.display());
            let bytes = std::fs::read(file).with_context(of)?;
            own_configuration(&bytes).and_then(|own| Config::parse(&own)).with_context(of)?
        }
    };
    let settings = Settings {
        missing_definitions_may_come: options.missing_definition == MissingDefinition::Warn,
        ..Settings::default()
    };
    let mut files = Vec::new();
    for path in &options.paths {
        let mut unreadable = Vec::new();
        let found = match std::fs::metadata(path).with_context(|| path.display().to_string())?.is_dir() {
            true => manifest_files(path, &mut unreadable).with_context(|| path.display().to_string())?,
            false => vec![path.clone()],
        };
        anyhow::ensure!(unreadable.is_empty(), "{}", unreadable.join("; "));
        files.extend(found);
    }
    anyhow::ensure!(!files.is_empty(), "there is no manifest (*.yaml, *.yml, *.json) in what was named");
    Ok((World::new(config, settings), files))
}

impl Lint {
    fn read(&mut self, file: &std::path::Path) {
        let name = file.display().to_string();
        let documents = match source::documents(file) {
            Ok(documents) => documents,
            Err(problem) => return self.unreadable(name, 1, problem),
        };
        for document in documents {
            match document {
                Ok((source, value)) => self.take(source, value),
                Err((line, problem)) => self.unreadable(name.clone(), line, problem),
            }
        }
    }

    fn unreadable(&mut self, file: String, line: usize, problem: String) {
        let finding = Finding {
            severity: Severity::Error,
            field: String::new(),
            key: String::new(),
            message: problem,
            advice: String::new(),
        };
        self.found.push(Found { file, line, object: String::new(), finding });
    }

    /// Takes an object, those of a list, or the pod that a workload makes.
    fn take(&mut self, source: Source, value: Value) {
        if let Some(items) = items_of(&value) {
            let places = source.items(items.len());
            places.into_iter().zip(items).for_each(|(place, item)| self.take(place, item));
            return;
        }
        match Object::read(pod_of(&value).unwrap_or(value)) {
            Ok(Some(object)) => {
                self.objects.push((self.sources.len(), object));
                self.sources.push(source);
            }
            Ok(None) => {}
            Err(problem) => self.unreadable(source.file.clone(), source.line("metadata.name", ""), problem),
        }
    }

    /// Every object against all.
    fn check(mut self, mut world: World) -> Vec<Found> {
        let mut first: HashMap<String, usize> = HashMap::new();
        for (source, object) in &self.objects {
            let name = name_of(object);
            match first.get(&name) {
                Some(earlier) => {
                    let here = &self.sources[*source];
                    let there = &self.sources[*earlier];
                    let message = format!("{name} is in {}:{}, too", there.file, there.line("metadata.name", ""));
                    self.found.push(Found {
                        file: here.file.clone(),
                        line: here.line("metadata.name", ""),
                        object: name.clone(),
                        finding: Finding {
                            severity: Severity::Error,
                            field: "metadata.name".to_owned(),
                            key: String::new(),
                            message,
                            advice: "remove all but one".to_owned(),
                        },
                    });
                }
                None => {
                    first.insert(name, *source);
                    world.apply(object.clone());
                }
            }
        }
        for (source, object) in &self.objects {
            let findings = match object {
                Object::Definition(found) => definition::created(&world, found),
                Object::Pod(known) => pod::admitted(&world, known),
                Object::Policy(..) | Object::Namespace(..) => Vec::new(),
            };
            let source = &self.sources[*source];
            let (file, object) = (source.file.clone(), name_of(object));
            self.found.extend(findings.into_iter().map(|finding| Found {
                file: file.clone(),
                line: source.line(&finding.field, &finding.key),
                object: object.clone(),
                finding,
            }));
        }
        self.found.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        self.found
    }
}

fn name_of(object: &Object) -> String {
    match object {
        Object::Pod(known) => format!("Pod {}", known.pod.key()),
        Object::Definition(definition) => format!("NetworkAttachmentDefinition {}", definition.key()),
        Object::Policy(name, _) => format!("AttachmentPolicy {name}"),
        Object::Namespace(name, _) => format!("Namespace {name}"),
    }
}

/// The pod that a workload makes, under the workload's name.
fn pod_of(value: &Value) -> Option<Value> {
    let template = match value.get("kind")?.as_str()? {
        "Deployment" | "DaemonSet" | "StatefulSet" | "ReplicaSet" | "Job" => value.pointer("/spec/template")?,
        "CronJob" => value.pointer("/spec/jobTemplate/spec/template")?,
        _ => return None,
    };
    let mut metadata = template.get("metadata").cloned().unwrap_or(json!({}));
    metadata["name"] = value.pointer("/metadata/name")?.clone();
    if let Some(namespace) = value.pointer("/metadata/namespace") {
        metadata["namespace"] = namespace.clone();
    }
    Some(json!({"kind": "Pod", "metadata": metadata, "spec": template.get("spec")}))
}
