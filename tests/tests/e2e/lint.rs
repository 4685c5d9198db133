//! `musubi lint`: findings with file and line, for people and programs, and an exit status that scripts can use.
#![allow(clippy::unwrap_used, reason = "what is outside of test functions is part of a test, too")]

use std::path::Path;
use std::process::Command;

use musubi_tests::node::musubi;
use serde_json::{Value, json};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

/// Files that belong together, and what lint is to say of them.
struct Folder(tempfile::TempDir);

impl Folder {
    fn of(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let file = folder.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        Self(folder)
    }

    fn lint(&self, arguments: &[&str]) -> (i32, String) {
        lint(self.0.path(), &[&["."], arguments].concat())
    }
}

fn lint(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(musubi()).arg("lint").args(arguments).current_dir(folder).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

const NETWORKS: &str = r#"# Two networks.
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: lan}
spec:
  config: |
    {
      "cniVersion": "1.0.0",
      "type": "macvlan",
      "ipam": {
        "type": "host-local", "subnet": "10.0.0.0/24",
        "rangeStart": "10.0.1.9"
      }
    }
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata:
  name: odd
spec:
  config: '{"cniVersion": "1.0.0", "type": "bridge", "colour": "red"}'
"#;

const PODS: &str = r#"apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    metadata:
      annotations:
        k8s.v1.cni.cncf.io/networks: odd, nowhere
    spec: {containers: []}
"#;

#[test]
fn findings_name_file_and_line() {
    let folder = Folder::of(&[
        ("networks.yaml", NETWORKS),
        ("deep/pods.yml", PODS),
        ("broken.yaml", "kind: [\n"),
        ("README.md", "{"),
    ]);
    let (code, text) = folder.lint(&[]);
    assert_eq!(code, 1, "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    assert!(lines[0].starts_with("./broken.yaml:"), "{text}");
    assert!(lines[1].starts_with("./deep/pods.yml:8: error: annotation k8s.v1.cni.cncf.io/networks, element 2: network default/nowhere: there is no such NetworkAttachmentDefinition; create the definition"), "{text}");
    assert_eq!(
        lines[2],
        "./networks.yaml:12: error: network default/lan: ipam.rangeStart: 10.0.1.9 is not in 10.0.0.0/24"
    );
    assert_eq!(
        lines[3],
        "./networks.yaml:21: warning: network default/odd: key \"colour\" is not known and is ignored"
    );
    assert_eq!(lines[4], "3 errors and 1 warning in 3 objects of 3 files");

    let (code, text) = folder.lint(&["-o", "json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &report["objects"], report["findings"].as_array().unwrap().len()), (1, &json!(3), 4), "{text}");
    assert_eq!(
        report["findings"][2],
        json!({"file": "./networks.yaml", "line": 12, "object": "NetworkAttachmentDefinition default/lan", "severity": "error",
               "field": "spec.config", "key": "ipam.rangeStart", "advice": "",
               "message": "network default/lan: ipam.rangeStart: 10.0.1.9 is not in 10.0.0.0/24"})
    );

    let (code, text) = folder.lint(&["-o", "sarif"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    let run = &report["runs"][0];
    let rules: Vec<&Value> =
        run["tool"]["driver"]["rules"].as_array().unwrap().iter().map(|rule| &rule["id"]).collect();
    assert_eq!((code, &report["version"]), (1, &json!("2.1.0")));
    for result in run["results"].as_array().unwrap() {
        assert!(rules.contains(&&result["ruleId"]) && result["message"]["text"].is_string(), "{result}");
    }
    let place = &run["results"][2]["locations"][0]["physicalLocation"];
    assert_eq!(place, &json!({"artifactLocation": {"uri": "./networks.yaml"}, "region": {"startLine": 12}}));
}

#[test]
fn the_exit_status_says_what_there_is_to_do() {
    let good = NETWORKS.replace("10.0.1.9", "10.0.0.9");
    let folder = Folder::of(&[("networks.yaml", &good), ("empty/none.txt", "")]);
    let rows: [(&[&str], i32, &str); 9] = [
        (&["."], 0, "0 errors and 1 warning in 2 objects of 1 file"),
        (&["networks.yaml", "-o", "json"], 0, "\"severity\": \"warning\""),
        (&["nowhere"], 2, "musubi: nowhere: No such file or directory"),
        (&["empty"], 2, "there is no manifest"),
        (&[], 2, "required arguments were not provided"),
        (&[".", "-o", "xml"], 2, "invalid value 'xml'"),
        (&[".", "--config", "nowhere"], 2, "--config nowhere"),
        (&[".", "--config", "networks.yaml"], 2, "--config networks.yaml"),
        (&[".", "--missing-definition", "warn"], 0, "0 errors"),
    ];
    for (arguments, expected, text) in rows {
        let (code, output) = lint(folder.0.path(), arguments);
        assert!(code == expected && output.contains(text), "{arguments:?}: {code} {output}");
    }
}

#[test]
fn a_definition_that_is_not_there_is_what_the_setting_says() {
    let folder = Folder::of(&[("pods.yml", PODS)]);
    let (code, text) = folder.lint(&[]);
    assert!(code == 1 && text.contains("pods.yml:8: error"), "{text}");
    let (code, text) = folder.lint(&["--missing-definition", "warn"]);
    assert!(code == 0 && text.contains("0 errors and 2 warnings"), "{text}");
}

#[test]
fn policies_and_namespaces_among_the_manifests_count() {
    let policy = std::fs::read_to_string(Path::new(EXAMPLES).join("policies/tenant-blue.yaml")).unwrap();
    let definition = |bridge: &str| {
        let config = json!({"cniVersion": "1.0.0", "type": "bridge", "bridge": bridge, "vlan": 100});
        json!({"kind": "List", "items": [
            {"kind": "Namespace", "metadata": {"name": "blue", "labels": {"tenant": "blue"}}},
            {"kind": "NetworkAttachmentDefinition", "metadata": {"name": "net", "namespace": "blue"}, "spec": {"config": config.to_string()}},
        ]})
        .to_string()
    };
    for (bridge, expected) in [("blue-1", 0), ("cni0", 1)] {
        let folder = Folder::of(&[("policy.yaml", &policy), ("net.json", &definition(bridge))]);
        let (code, text) = folder.lint(&[]);
        assert_eq!(code, expected, "{text}");
        assert_eq!(
            text.contains(
                "net.json:1: error: network blue/net: bridge: cni0 is not among what policy tenant-blue grants"
            ),
            code == 1,
            "{text}"
        );
    }
    let folder = Folder::of(&[("policy.yaml", &policy.replace("type: macvlan", "type: tun"))]);
    let (code, text) = folder.lint(&[]);
    assert!(
        code == 1 && text.contains("policy.yaml:6: error: AttachmentPolicy tenant-blue: unknown variant `tun`"),
        "{text}"
    );
}

#[test]
fn one_object_is_in_one_manifest() {
    let folder = Folder::of(&[("a.yaml", PODS), ("b.yaml", PODS)]);
    let (_, text) = folder.lint(&["--missing-definition", "warn"]);
    assert!(text.contains("./b.yaml:3: error: Pod default/web is in ./a.yaml:3, too; remove all but one"), "{text}");
}

#[test]
fn nothing_is_to_be_said_of_the_examples() {
    let (code, text) = lint(Path::new(EXAMPLES), &[".", "--config", "00-musubi.conf"]);
    assert!(code == 0 && text.starts_with("0 errors and 0 warnings in "), "{text}");
}
