//! Creating, changing and deleting: what is filled in, what is refused and in which words, and what stays.

use serde_json::{Value, json};

use super::fixture::{APPLY, DEFINITIONS, JSON_PATCH, MERGE, PODS, STRATEGIC, Server, annotations, definition, pod};

const EVENTS: &str = "/api/v1/namespaces/default/events";

#[test]
fn requests_a_real_server_refuses_are_refused() {
    let server = Server::start();
    server.api().create(&pod("p", "node1"));
    server.api().create(&definition("net"));
    let (p, net) = (format!("{PODS}/p"), format!("{DEFINITIONS}/net"));
    let with = |mut object: Value, path: &str, value: Value| {
        *object.pointer_mut(path).unwrap() = value;
        object
    };
    let event = |namespace: &str| {
        json!({"metadata": {"generateName": "p."}, "reason": "r", "message": "m", "type": "Normal",
               "involvedObject": {"kind": "Pod", "namespace": namespace, "name": "p"}})
    };
    let mut new_event = event("default");
    new_event["eventTime"] = "2026-11-21T08:00:00.000000Z".into();
    let unnamed = json!({"metadata": {}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
    // (method, path, content type, body) → status, reason, part of the message
    let post = |path: &'static str, body: Value| ("POST", path.to_owned(), "application/json", body);
    let patch = |kind: &'static str, path: &str, body: Value| ("PATCH", path.to_owned(), kind, body);
    let rows = [
        (post(PODS, unnamed), 422, "Invalid", "name or generateName is required"),
        (post(PODS, with(pod("q", "n"), "/metadata/name", json!("Q"))), 422, "Invalid", "RFC 1123 subdomain"),
        (post(PODS, with(pod("q", "n"), "/spec", json!({}))), 422, "Invalid", "spec.containers: Required value"),
        (
            post(PODS, with(pod("q", "n"), "/spec/containers", json!("x"))),
            400,
            "BadRequest",
            "cannot be handled as a Pod",
        ),
        (
            post(PODS, with(pod("q", "n"), "/metadata/namespace", json!("o"))),
            400,
            "BadRequest",
            "does not match the namespace",
        ),
        (post(PODS, definition("q")), 400, "BadRequest", "does not match the expected API version"),
        (post(PODS, pod("p", "n")), 409, "AlreadyExists", "pods \"p\" already exists"),
        (
            post("/api/v1/namespaces/nowhere/pods", with(pod("q", "n"), "/metadata/namespace", json!("nowhere"))),
            404,
            "NotFound",
            "namespaces \"nowhere\" not found",
        ),
        (post("/api/v1/pods", pod("q", "n")), 405, "MethodNotAllowed", "does not allow this method"),
        (post(DEFINITIONS, json!({"metadata": {"name": "q"}})), 400, "BadRequest", "is missing"),
        (post(EVENTS, event("other")), 422, "Invalid", "does not match event.namespace"),
        (post(EVENTS, new_event), 422, "Invalid", "reportingComponent: Required value"),
        (post(EVENTS, with(event("default"), "/reason", json!(7))), 400, "BadRequest", "cannot be handled as a Event"),
        (
            ("PUT", p.clone(), "application/json", pod("q", "n")),
            400,
            "BadRequest",
            "does not match the name on the URL",
        ),
        (
            ("PUT", net.clone(), "application/json", definition("net")),
            422,
            "Invalid",
            "must be specified for an update",
        ),
        (
            ("PUT", p.clone(), "application/json", pod("p", "elsewhere")),
            422,
            "Invalid",
            "pod updates may not change fields",
        ),
        (patch(STRATEGIC, &net, annotations(json!({"a": "b"}))), 415, "UnsupportedMediaType", "accepted media types"),
        (patch(MERGE, &p, annotations(json!({"a": 1}))), 422, "Invalid", "patch: Invalid value"),
        (patch(MERGE, &p, annotations(json!({"a b": "c"}))), 422, "Invalid", "name part must consist"),
        (patch(MERGE, &p, json!([1])), 400, "BadRequest", "error decoding patch"),
        (patch(MERGE, &p, json!({"metadata": {"name": "q"}})), 422, "Invalid", "metadata.name"),
        (
            patch(JSON_PATCH, &p, json!([{"op": "replace", "path": "/none", "value": 1}])),
            422,
            "Invalid",
            "rejected our request",
        ),
        (patch(APPLY, &p, pod("p", "node1")), 422, "Invalid", "fieldManager: Required value"),
        (patch(MERGE, &format!("{p}?force=true"), json!({})), 422, "Invalid", "force: Forbidden"),
        (patch(MERGE, &format!("{net}/status"), json!({})), 404, "NotFound", "not found"),
        (
            patch(MERGE, &format!("{net}?fieldValidation=Strict"), json!({"spec": {"x": 1}})),
            422,
            "Invalid",
            "unknown field \"spec.x\"",
        ),
        (patch(MERGE, &net, json!({"spec": {"config": 1}})), 422, "Invalid", "must be of type string: \"integer\""),
        (
            ("DELETE", p.clone(), "application/json", json!({"preconditions": {"uid": "other"}})),
            409,
            "Conflict",
            "UID in precondition: other",
        ),
        (("DELETE", format!("{PODS}/nope"), "application/json", json!({})), 404, "NotFound", "pods \"nope\" not found"),
    ];
    let before = server.api().version();
    for ((method, path, kind, body), status, reason, message) in rows {
        let got = server.call(method, &path, kind, &body.to_string());
        let (found, found_reason, found_message) = got.refused();
        let what = format!("{method} {path} {body}: {found_message}");
        assert_eq!((found, found_reason.as_str()), (status, reason), "{what}");
        assert!(found_message.contains(message), "{what}");
    }
    assert_eq!(server.api().version(), before, "nothing was changed by any of them");
}

#[test]
fn a_new_object_gets_its_identity() {
    let server = Server::start();
    let mut generated = pod("", "node1");
    generated["metadata"] = json!({"generateName": "web-", "uid": "mine", "creationTimestamp": "2000-01-01T00:00:00Z"});
    let [first, second] = [0, 1].map(|_| server.post(PODS, &generated).ok());
    for created in [&first, &second] {
        let name = created["metadata"]["name"].as_str().unwrap();
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
        assert_eq!(created["metadata"]["namespace"], "default");
        assert_ne!(created["metadata"]["uid"], "mine");
        assert!(created["metadata"]["creationTimestamp"].as_str().unwrap() > "2026");
        assert_eq!(created["status"]["phase"], "Pending");
    }
    assert_ne!(first["metadata"]["name"], second["metadata"]["name"]);
    assert_ne!(first["metadata"]["uid"], second["metadata"]["uid"]);
    assert_eq!(server.api().list("pods").len(), 2);
    let dry = server.post(&format!("{PODS}?dryRun=All"), &pod("dry", "node1")).ok();
    assert_eq!(dry["metadata"].get("resourceVersion"), None);
    assert_eq!(server.api().list("pods").len(), 2, "a dry run has no effect");
}

#[test]
fn a_write_that_changes_nothing_is_none() {
    let server = Server::start();
    server.api().create(&pod("p", "node1"));
    let path = format!("{PODS}/p");
    let same = annotations(json!({"a": "b"}));
    let first = server.patch(MERGE, &path, &same).ok();
    let watch = server.watch(PODS, &format!("&resourceVersion={}", server.api().version()));
    for kind in [MERGE, STRATEGIC] {
        assert_eq!(server.patch(kind, &path, &same).ok(), first, "{kind}");
    }
    watch.silent();
    let removed = server.patch(MERGE, &path, &annotations(json!({"a": null}))).ok();
    assert_eq!(removed["metadata"]["annotations"], json!({}));
    assert_eq!(watch.told(), "MODIFIED p");
}

#[test]
fn spec_and_status_are_written_by_their_own_paths() {
    let server = Server::start();
    server.api().create(&pod("p", "node1"));
    let path = format!("{PODS}/p");
    let running = json!({"status": {"phase": "Running"}, "metadata": {"annotations": {"a": "b"}}});
    assert_eq!(server.patch(MERGE, &path, &running).ok()["status"]["phase"], "Pending");
    let status = server.patch(MERGE, &format!("{path}/status"), &running).ok();
    assert_eq!((&status["status"]["phase"], &status["metadata"]["annotations"]["a"]), (&json!("Running"), &json!("b")));
    let mut replaced = status.clone();
    replaced["metadata"]["annotations"] = json!({"c": "d"});
    replaced["status"] = json!({"phase": "Failed"});
    let replaced = server.put(&path, &replaced).ok();
    assert_eq!(
        (&replaced["status"]["phase"], &replaced["metadata"]["annotations"]),
        (&json!("Running"), &json!({"c": "d"}))
    );
    let stale = server.put(&path, &status);
    assert_eq!(stale.refused().1, "Conflict", "it was read before the last write");
}

#[test]
fn generation_counts_what_is_desired() {
    let server = Server::start();
    server.api().create(&definition("net"));
    let path = format!("{DEFINITIONS}/net");
    let generation = |body: Value| server.patch(MERGE, &path, &body).ok()["metadata"]["generation"].clone();
    assert_eq!(generation(annotations(json!({"a": "b"}))), 1);
    assert_eq!(generation(json!({"spec": {"config": "{\"a\":1}"}})), 2);
}

#[test]
fn applying_takes_back_what_is_no_longer_wanted() {
    let server = Server::start();
    server.api().create(&pod("p", "node1"));
    let path = |manager: &str| format!("{PODS}/p?fieldManager={manager}");
    let wanted =
        |wanted: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "annotations": wanted}});
    let apply = |manager: &str, annotations: Value| server.patch(APPLY, &path(manager), &wanted(annotations));
    apply("one", json!({"a": "1", "b": "1"})).ok();
    apply("two", json!({"c": "2"})).ok();
    let now = apply("one", json!({"b": "1"})).ok();
    assert_eq!(now["metadata"]["annotations"], json!({"b": "1", "c": "2"}));
    let (status, reason, message) = apply("two", json!({"b": "2"})).refused();
    assert_eq!((status, reason.as_str()), (409, "Conflict"));
    assert_eq!(message, "Apply failed with 1 conflict: conflict with \"one\": .metadata.annotations.b");
    let forced = server.patch(APPLY, &format!("{}&force=true", path("two")), &wanted(json!({"b": "2"}))).ok();
    assert_eq!(forced["metadata"]["annotations"], json!({"b": "2"}), "c was given up, b was taken");
    // In YAML too, as its name says, and for an object that is not there.
    let yaml = "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\nmetadata:\n  name: net\nspec:\n  config: '{}'\n";
    let created = server.call("PATCH", &format!("{DEFINITIONS}/net?fieldManager=one"), APPLY, yaml);
    assert_eq!((created.status, &created.json()["spec"]["config"]), (201, &json!("{}")));
}

#[test]
fn unknown_fields_are_pruned_with_a_warning_unless_ignored() {
    let server = Server::start();
    for (name, query, warned) in [("a", "", true), ("b", "?fieldValidation=Ignore", false)] {
        let mut more = definition(name);
        more["spec"]["x"] = 1.into();
        let got = server.post(&format!("{DEFINITIONS}{query}"), &more);
        assert_eq!(got.header("Warning").contains("spec.x"), warned, "{query}");
        assert_eq!(got.ok()["spec"], json!({"config": "{}"}));
    }
}

#[test]
fn deleted_objects_answer_as_their_kind_does() {
    let server = Server::start();
    for name in ["p", "q", "r"] {
        server.api().create(&pod(name, "node1"));
    }
    server.api().create(&definition("net"));
    let uid = server.api().get("pods", "default", "p").unwrap()["metadata"]["uid"].clone();
    let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}).to_string();
    assert_eq!(server.call("DELETE", &format!("{PODS}/p"), "application/json", &options).ok()["kind"], "Pod");
    let status = server.call("DELETE", &format!("{DEFINITIONS}/net"), "application/json", "").ok();
    assert_eq!((&status["kind"], &status["status"]), (&json!("Status"), &json!("Success")));
    assert_eq!(status["details"]["kind"], "network-attachment-definitions");
    let all = format!("{PODS}?fieldSelector=metadata.name%3Dq");
    server.call("DELETE", &all, "application/json", "").ok();
    let left: Vec<Value> = server.api().list("pods").iter().map(|pod| pod["metadata"]["name"].clone()).collect();
    assert_eq!(left, ["r"]);
    server.call("DELETE", "/api/v1/namespaces/default", "application/json", "").ok();
    assert!(server.api().list("pods").is_empty(), "what is in a namespace goes with it");
}

#[test]
fn a_finalizer_holds_an_object() {
    let server = Server::start();
    let mut held = pod("p", "node1");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    server.api().create(&held);
    let path = format!("{PODS}/p");
    let watch = server.watch(PODS, &format!("&resourceVersion={}", server.api().version()));
    server.call("DELETE", &path, "application/json", "").ok();
    assert!(server.get(&path).ok()["metadata"]["deletionTimestamp"].is_string());
    server.patch(MERGE, &path, &json!({"metadata": {"finalizers": null}})).ok();
    assert_eq!(server.get(&path).status, 404);
    assert_eq!([watch.told(), watch.told(), watch.told()], ["MODIFIED p", "MODIFIED p", "DELETED p"]);
}
