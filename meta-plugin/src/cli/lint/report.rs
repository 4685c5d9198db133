//! How findings are printed: for reading, for programs, and for what reads SARIF 2.1.0, as code review does.

use serde_json::{Value, json};

use super::Found;
use crate::check::Severity;

pub(super) fn table(found: &[Found], files: usize, objects: usize) -> String {
    let errors = found.iter().filter(|found| found.finding.is_error()).count();
    let lines: String = found
        .iter()
        .map(|found| format!("{}:{}: {}: {}\n", found.file, found.line, level(found.finding.severity), found.finding))
        .collect();
    let count = |n: usize, word: &str| if n == 1 { format!("1 {word}") } else { format!("{n} {word}s") };
    format!(
        "{lines}{} and {} in {} of {}\n",
        count(errors, "error"),
        count(found.len() - errors, "warning"),
        count(objects, "object"),
        count(files, "file"),
    )
}

pub(super) fn json(found: &[Found], files: usize, objects: usize) -> Value {
    let findings: Vec<Value> = found
        .iter()
        .map(|Found { file, line, object, finding }| {
            json!({
                "file": file, "line": line, "object": object, "severity": level(finding.severity),
                "field": finding.field, "key": finding.key, "message": finding.message, "advice": finding.advice,
            })
        })
        .collect();
    json!({"findings": findings, "files": files, "objects": objects})
}

pub(super) fn sarif(found: &[Found]) -> Value {
    let results: Vec<Value> = found
        .iter()
        .map(|Found { file, line, finding, .. }| {
            json!({
                "ruleId": rule(&finding.field),
                "level": level(finding.severity),
                "message": {"text": finding.to_string()},
                "locations": [{"physicalLocation": {
                    "artifactLocation": {"uri": file}, "region": {"startLine": line},
                }}],
            })
        })
        .collect();
    let rules = [
        ("manifest", "The manifest can be read"),
        ("definition", "ADD can use the definition"),
        ("annotation", "The pod's annotation asks for what there is"),
        ("metadata", "Names and devices are right"),
    ];
    let rules: Vec<Value> =
        rules.iter().map(|(id, text)| json!({"id": id, "shortDescription": {"text": text}})).collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "musubi lint", "version": env!("CARGO_PKG_VERSION"), "rules": rules}},
            "results": results,
        }],
    })
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

fn rule(field: &str) -> &'static str {
    match field {
        "" => "manifest",
        "spec.config" => "definition",
        field if field.starts_with("metadata.annotations") => "annotation",
        _ => "metadata",
    }
}
