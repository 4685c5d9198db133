//! `deploy/webhook/`: manifests that fit together and to the program, ask for no rights that are not used, and fail closed
//! only where nothing that keeps a cluster going depends on them.

use cel::{Context, Program, Value as CelValue};
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use musubi_tests::gate::{self, manifests};

use super::*;

/// Every verb that the server has, and what for.
const VERBS: [(&str, &str, &str, &str); 16] = [
    ("", "pods", "list", "the networks that running pods are on, when it starts"),
    ("", "pods", "watch", "from then on"),
    ("", "namespaces", "get", "one that is a moment old"),
    ("", "namespaces", "list", "labels, by which policies select, when it starts"),
    ("", "namespaces", "watch", "from then on"),
    ("k8s.cni.cncf.io", "network-attachment-definitions", "get", "one that is a moment old"),
    ("k8s.cni.cncf.io", "network-attachment-definitions", "list", "all, when it starts"),
    ("k8s.cni.cncf.io", "network-attachment-definitions", "watch", "all, from then on"),
    ("musubi.dev", "attachmentpolicies", "list", "all, when it starts"),
    ("musubi.dev", "attachmentpolicies", "watch", "all, from then on"),
    (ADMISSION, "mutatingwebhookconfigurations", "get", "what API servers believe"),
    (ADMISSION, "mutatingwebhookconfigurations", "patch", "its own authority"),
    (ADMISSION, "validatingwebhookconfigurations", "get", "as above"),
    (ADMISSION, "validatingwebhookconfigurations", "patch", "as above"),
    ("", "secrets", "get", "its certificate"),
    ("", "secrets", "update", "a renewed one"),
];
const ADMISSION: &str = "admissionregistration.k8s.io";
const FILES: [&str; 5] = ["configurations.yaml", "deployment.yaml", "rbac.yaml", "secret.yaml", "service.yaml"];

fn all() -> Vec<Value> {
    FILES.iter().flat_map(|file| manifests(file)).collect()
}

fn one(kind: &str) -> Value {
    let mut found: Vec<Value> = all().into_iter().filter(|object| object["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{kind}");
    found.remove(0)
}

fn webhooks() -> Vec<Value> {
    let kinds = ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];
    kinds.iter().flat_map(|kind| one(kind)["webhooks"].as_array().cloned().unwrap()).collect()
}

#[test]
fn every_key_is_one_that_the_api_knows() {
    for object in all() {
        let read = match object["kind"].as_str().unwrap() {
            "ClusterRole" => again::<ClusterRole>(&object),
            "ClusterRoleBinding" => again::<ClusterRoleBinding>(&object),
            "Deployment" => again::<Deployment>(&object),
            "MutatingWebhookConfiguration" => again::<MutatingWebhookConfiguration>(&object),
            "PodDisruptionBudget" => again::<PodDisruptionBudget>(&object),
            "Role" => again::<Role>(&object),
            "RoleBinding" => again::<RoleBinding>(&object),
            "Secret" => again::<Secret>(&object),
            "Service" => again::<Service>(&object),
            "ServiceAccount" => again::<ServiceAccount>(&object),
            "ValidatingWebhookConfiguration" => again::<ValidatingWebhookConfiguration>(&object),
            other => panic!("unexpected {other}"),
        };
        assert_eq!(read, object, "a key that is not in the left is not known");
    }
}

#[test]
fn the_folder_is_whole() {
    let listed: Vec<String> = serde_json::from_value(manifests("kustomization.yaml")[0]["resources"].clone()).unwrap();
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), FILES.map(str::to_owned).into());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/webhook");
    assert_eq!(folder.read_dir().unwrap().count(), FILES.len() + 1);
}

/// The admission server of the other tests has these rights: they are enough.
#[test]
fn the_roles_have_the_verbs_that_are_used_and_no_others() {
    let mut granted = BTreeSet::new();
    for role in [one("ClusterRole"), one("Role")] {
        for rule in role["rules"].as_array().unwrap() {
            let texts = |key: &str| serde_json::from_value::<Vec<String>>(rule[key].clone()).unwrap_or_default();
            for resource in texts("resources") {
                let writes = texts("verbs").iter().any(|verb| ["patch", "update"].contains(&verb.as_str()));
                assert!(!writes || texts("resourceNames") == ["musubi-webhook"], "{resource}: only its own is written");
                granted.extend(texts("verbs").into_iter().map(|verb| (texts("apiGroups"), resource.clone(), verb)));
            }
        }
    }
    let used = VERBS.map(|(group, resource, verb, _)| (vec![group.to_owned()], resource.to_owned(), verb.to_owned()));
    assert_eq!(granted, used.into());
    for binding in [one("ClusterRoleBinding"), one("RoleBinding")] {
        assert_eq!(binding["roleRef"]["name"], "musubi-webhook");
        assert_eq!(binding["subjects"][0]["name"], one("ServiceAccount")["metadata"]["name"]);
        assert_eq!(binding["subjects"][0]["namespace"], one("ServiceAccount")["metadata"]["namespace"]);
    }
}

#[test]
fn its_pods_have_nothing_of_the_node_and_no_rights_there() {
    let deployment = one("Deployment");
    let spec = &deployment["spec"]["template"]["spec"];
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        assert_eq!(spec[key], Value::Null, "{key}");
    }
    assert_eq!(
        (&spec["securityContext"]["runAsNonRoot"], &spec["securityContext"]["seccompProfile"]["type"]),
        (&json!(true), &json!("RuntimeDefault"))
    );
    let container = &spec["containers"][0];
    assert_eq!(
        container["securityContext"],
        json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
    );
    let volumes = spec["volumes"].as_array().unwrap();
    assert!(volumes.iter().all(|volume| volume["hostPath"].is_null()), "{volumes:?}");
    assert_eq!(
        spec["volumes"][0]["configMap"],
        json!({"name": "musubi", "optional": true}),
        "the base need not be there"
    );
}

#[test]
fn one_of_two_may_go() {
    let deployment = one("Deployment");
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    assert_eq!(deployment["spec"]["replicas"], 2);
    assert_eq!(&deployment["spec"]["selector"]["matchLabels"], labels);
    let budget = one("PodDisruptionBudget");
    assert_eq!((&budget["spec"]["minAvailable"], &budget["spec"]["selector"]["matchLabels"]), (&json!(1), labels));
    assert_eq!(&one("Service")["spec"]["selector"], labels);
}

#[test]
fn the_program_takes_its_arguments_and_listens_where_it_is_asked() {
    let container = one("Deployment")["spec"]["template"]["spec"]["containers"][0].clone();
    assert_eq!(container["image"], format!("musubi-webhook:{}", env!("CARGO_PKG_VERSION")));
    let arguments: Vec<String> = serde_json::from_value(container["args"].clone()).unwrap();
    let output = Command::new(gate::program()).args(&arguments).arg("--help").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let help = String::from_utf8(output.stdout).unwrap();
    let port = &container["ports"][0];
    assert!(help.contains(&format!("[default: [::]:{}]", port["containerPort"])), "{help}");
    for (probe, path) in [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        let expected = json!({"scheme": "HTTPS", "port": port["name"], "path": path});
        assert_eq!(container[probe]["httpGet"], expected, "{probe}");
    }
    let service = one("Service");
    assert_eq!(service["spec"]["ports"][0]["targetPort"], port["name"]);
    for name in [&service, &one("Secret"), &one("MutatingWebhookConfiguration"), &one("ValidatingWebhookConfiguration")]
    {
        assert_eq!(name["metadata"]["name"], "musubi-webhook", "what the program takes by itself");
    }
    for webhook in webhooks() {
        let called = &webhook["clientConfig"]["service"];
        assert_eq!(
            (&called["name"], &called["namespace"]),
            (&service["metadata"]["name"], &service["metadata"]["namespace"])
        );
        assert_eq!(called["port"], service["spec"]["ports"][0]["port"]);
    }
}

#[test]
fn what_fails_closed_is_asked_for_little() {
    for webhook in webhooks() {
        let name = &webhook["name"];
        assert_eq!((&webhook["sideEffects"], &webhook["admissionReviewVersions"]), (&json!("None"), &json!(["v1"])));
        assert!(webhook["timeoutSeconds"].as_u64().unwrap() <= 5, "{name}");
        let rule = &webhook["rules"][0];
        if webhook["failurePolicy"] == "Ignore" {
            assert_eq!(rule["operations"], json!(["DELETE"]), "{name}");
            continue;
        }
        assert!(webhook["matchConditions"].as_array().is_some_and(|conditions| !conditions.is_empty()), "{name}");
        assert!(!rule["operations"].as_array().unwrap().contains(&json!("DELETE")), "{name}");
        if rule["resources"][0] == "pods" {
            let system =
                json!([{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system"]}]);
            assert_eq!(webhook["namespaceSelector"]["matchExpressions"], system, "{name}");
        }
    }
}

/// Whether an API server asks a webhook, by its conditions.
fn is_asked(webhook: &Value, object: &Value, old: &Value) -> bool {
    let mut context = Context::default();
    context.add_variable("object", object).unwrap();
    context.add_variable("oldObject", old).unwrap();
    webhook["matchConditions"].as_array().unwrap().iter().all(|condition| {
        let expression = condition["expression"].as_str().unwrap();
        let program = Program::compile(expression).unwrap_or_else(|e| panic!("{expression}: {e}"));
        match program.execute(&context) {
            Ok(CelValue::Bool(holds)) => holds,
            other => panic!("{expression} of {object}: {other:?}"),
        }
    })
}

#[test]
fn only_pods_that_name_other_networks_than_before_are_asked_about() {
    let pod = |annotations: Value| json!({"metadata": {"name": "p", "annotations": annotations}, "spec": {}});
    let bare = json!({"metadata": {"name": "p"}, "spec": {}});
    let networks = |value: &str| pod(json!({"k8s.v1.cni.cncf.io/networks": value}));
    let default = pod(json!({"v1.multus-cni.io/default-network": "a"}));
    let mirror = pod(json!({"k8s.v1.cni.cncf.io/networks": "a", "kubernetes.io/config.mirror": "1"}));
    let with_status = pod(json!({"k8s.v1.cni.cncf.io/networks": "a", "k8s.v1.cni.cncf.io/network-status": "[]"}));
    let finalized = json!({"metadata": {"name": "p", "finalizers": ["x"], "labels": {"a": "b"},
        "annotations": {"k8s.v1.cni.cncf.io/networks": "a"}}, "spec": {}});
    let rows = [
        // New ones.
        (&bare, &Value::Null, false, false),
        (&pod(json!({"other": "x"})), &Value::Null, false, false),
        (&networks("a"), &Value::Null, true, true),
        (&default, &Value::Null, true, true),
        (&mirror, &Value::Null, false, false),
        // Changed ones.
        (&networks("a"), &networks("a"), false, false),
        (&finalized, &networks("a"), false, false),
        (&with_status, &networks("a"), false, false),
        (&networks("b"), &networks("a"), true, false),
        (&networks("a"), &bare, true, false),
        (&bare, &networks("a"), true, false),
        (&bare, &bare, false, false),
    ];
    let webhooks = webhooks();
    let of_pods: Vec<&Value> = webhooks.iter().filter(|webhook| webhook["name"] == "pods.musubi.dev").collect();
    let [mutating, validating] = of_pods[..] else { panic!("two") };
    for (object, old, validated, mutated) in rows {
        assert_eq!(is_asked(validating, object, old), validated, "{object} {old}");
        if old.is_null() {
            assert_eq!(is_asked(mutating, object, old), mutated, "{object}");
        }
    }
}

#[test]
fn only_definitions_that_say_something_else_are_asked_about() {
    let definition = |config: &str, annotations: Value| json!({"metadata": {"name": "d", "annotations": annotations}, "spec": {"config": config}});
    let plain = definition("{}", json!({}));
    let bare = json!({"metadata": {"name": "d"}});
    let finalized =
        json!({"metadata": {"name": "d", "finalizers": ["x"], "annotations": {}}, "spec": {"config": "{}"}});
    let rows = [
        (&plain, &Value::Null, true),
        (&bare, &Value::Null, true),
        (&plain, &plain, false),
        (&bare, &bare, false),
        (&finalized, &plain, false),
        (&definition("[]", json!({})), &plain, true),
        (&plain, &bare, true),
        (&bare, &plain, true),
        (&definition("{}", json!({"k8s.v1.cni.cncf.io/resourceName": "a/b"})), &plain, true),
    ];
    let webhooks = webhooks();
    let webhook = webhooks.iter().find(|webhook| webhook["name"] == "definitions.musubi.dev").unwrap();
    for (object, old, asked) in rows {
        assert_eq!(is_asked(webhook, object, old), asked, "{object} {old}");
    }
}
