//! Every recorded answer of a real server, asked for again: `tests/data/kubernetes-api/`.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::fixture::{
    APPLY, DEFINITIONS, JSON, JSON_PATCH, MERGE, PODS, STRATEGIC, Server, annotations, definition, pod, recording,
    same_but_for_identity,
};

const UID: &str = "3e68678c-eed1-4977-b291-da926e4dbe72";
const OTHER_UID: &str = "00000000-0000-0000-0000-000000000000";

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/kubernetes-api")
}

#[test]
fn the_copied_recordings_are_the_shared_ones() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/kubernetes-api");
    if !shared.is_dir() {
        return;
    }
    let mut compared = 0;
    for folder in ["", "admission"] {
        for entry in std::fs::read_dir(shared.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let ours = data().join(path.strip_prefix(&shared).unwrap());
                let same = std::fs::read(&ours).unwrap_or_default() == std::fs::read(&path).unwrap();
                assert!(same, "{} differs from the shared one: copy it again", ours.display());
                compared += 1;
            }
        }
    }
    assert!(compared > 10, "the recordings are there");
}

/// The server as it was when the answers were recorded.
fn server() -> Server {
    let server = Server::start();
    server.api().create(&recording("pod.json"));
    for (name, node) in [("p0-1", "node1"), ("p0-2", "node1"), ("p1-1", "node2")] {
        server.api().create(&pod(name, node));
    }
    server.api().create(&definition("br1"));
    server
}

#[test]
fn each_answer_is_given_again() {
    let server = server();
    let [p3, nope] = ["p3-1", "nope"].map(|name| format!("{PODS}/{name}"));
    let uid = |uid: &str| json!({"metadata": {"uid": uid, "annotations": {"x": uid}}}).to_string();
    let apply = |name: &str, uid: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "uid": uid, "annotations": {"z": "1"}}})
            .to_string()
    };
    let test = |uid: &str| {
        json!([{"op": "test", "path": "/metadata/uid", "value": uid},
               {"op": "add", "path": "/metadata/annotations/y", "value": "1"}])
        .to_string()
    };
    let own = |name: &str, spec: Value| {
        let mut own = definition(name);
        own["spec"] = spec;
        own.to_string()
    };
    let applied = format!("{p3}?fieldManager=m");
    let nobody = format!("{nope}?fieldManager=m");
    let stale = json!({"metadata": {"resourceVersion": "1", "annotations": {"x": "1"}}}).to_string();
    let big = annotations(json!({"big": "x".repeat(262_144)})).to_string();
    let unknown_strict = format!("{DEFINITIONS}?fieldValidation=Strict");
    // (recording, method, path, content type, body)
    let rows: Vec<(&str, &str, &str, &str, String)> = vec![
        ("GET pod missing", "GET", &nope, "", String::new()),
        ("GET with bad token", "GET", &p3, "", String::new()),
        ("GET without token", "GET", &p3, "", String::new()),
        ("merge patch, right uid", "PATCH", &p3, MERGE, uid(UID)),
        ("merge patch, wrong uid", "PATCH", &p3, MERGE, uid(OTHER_UID)),
        ("merge patch, old resourceVersion", "PATCH", &p3, MERGE, stale),
        ("merge patch, missing pod", "PATCH", &nope, MERGE, annotations(json!({"x": "y"})).to_string()),
        ("merge patch with uid, missing pod", "PATCH", &nope, MERGE, uid(UID)),
        ("json patch, test uid fails", "PATCH", &p3, JSON_PATCH, test("x")),
        ("json patch, test uid holds", "PATCH", &p3, JSON_PATCH, test(UID)),
        ("strategic merge patch, wrong uid", "PATCH", &p3, STRATEGIC, uid("x")),
        ("apply patch, wrong uid", "PATCH", &applied, APPLY, apply("p3-1", "x")),
        ("apply patch, right uid", "PATCH", &applied, APPLY, apply("p3-1", UID)),
        ("apply patch, pod does not exist", "PATCH", &nobody, APPLY, apply("nope", UID)),
        (
            "merge patch on pods/status subresource, annotation",
            "PATCH",
            "/api/v1/namespaces/default/pods/p3-1/status",
            MERGE,
            annotations(json!({"s": "1"})).to_string(),
        ),
        ("annotation over 256 KiB in total", "PATCH", &p3, MERGE, big),
        ("merge patch malformed JSON", "PATCH", &p3, MERGE, r#"{"metadata":"#.to_owned()),
        ("unsupported patch type", "PATCH", &p3, "text/plain", "x".to_owned()),
        ("list pods by node", "GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode1&limit=2", "", String::new()),
        ("list with stale continue token", "GET", "/api/v1/pods?limit=2&continue=stale", "", String::new()),
        ("watch from resourceVersion 1", "GET", "/api/v1/pods?watch=1&resourceVersion=1", "", String::new()),
        ("create definition twice", "POST", DEFINITIONS, JSON, own("br1", json!({"config": "{}"}))),
        ("definition with config of wrong type", "POST", DEFINITIONS, JSON, own("bad", json!({"config": {"a": 1}}))),
        (
            "definition with an unknown field, strict",
            "POST",
            &unknown_strict,
            JSON,
            own("more", json!({"config": "{}", "x": 1})),
        ),
        (
            "definition with an unknown field, default",
            "POST",
            DEFINITIONS,
            JSON,
            own("more", json!({"config": "{}", "x": 1})),
        ),
        ("unknown resource", "GET", "/apis/example.com/v1/things", "", String::new()),
    ];
    let answers = recording("answers.json");
    let mut left: Vec<&str> = answers.as_object().unwrap().keys().map(String::as_str).collect();
    for (name, method, path, content_type, body) in rows {
        left.retain(|key| *key != name);
        let recorded = &answers[name];
        let authorization = match name {
            "GET without token" => String::new(),
            "GET with bad token" => "Bearer wrong".to_owned(),
            _ => format!("Bearer {}", server.token),
        };
        let headers = [("Authorization", authorization.as_str()), ("Content-Type", content_type)];
        let headers: Vec<_> = headers.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let got = server.send(method, path, &headers, &body).unwrap();
        assert_eq!(got.status, recorded["status"], "{name}: {}", got.text);
        for (header, value) in recorded["headers"].as_object().unwrap() {
            assert_eq!(got.header(header), value.as_str().unwrap(), "{name}: {header}");
        }
        match &recorded["body"] {
            Value::String(text) => assert_eq!(&got.text, text, "{name}"),
            body if body["kind"] == "Status" => assert_eq!(&got.json(), body, "{name}"),
            body => {
                let found = got.json();
                assert_eq!(found["kind"], body["kind"], "{name}");
                for key in body["metadata"].as_object().unwrap().keys() {
                    assert!(found["metadata"][key].is_string(), "{name}: metadata.{key} in {found}");
                }
                let is_list = found["items"].is_array();
                assert!(!is_list || keys(&found["metadata"]) == keys(&body["metadata"]), "{name}: {found}");
            }
        }
    }
    assert!(left.is_empty(), "each recording is replayed: {left:?} are not");
}

#[test]
fn a_continue_token_says_where_the_next_page_begins() {
    let server = server();
    let page = server.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dnode1&limit=2").ok();
    let read = |token: &Value| -> Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.as_str().unwrap()).unwrap()).unwrap()
    };
    let recorded = recording("answers.json");
    let mut wanted = read(&recorded["list pods by node"]["body"]["metadata"]["continue"]);
    let mut found = read(&page["metadata"]["continue"]);
    assert_eq!(found["rv"].as_u64().unwrap().to_string(), page["metadata"]["resourceVersion"].as_str().unwrap());
    (wanted["rv"], found["rv"]) = (Value::Null, Value::Null);
    assert_eq!(found.to_string(), wanted.to_string());
}

#[test]
fn pages_of_a_list_look_as_recorded() {
    let server = Server::start();
    let [first, last] = ["list-page-1.json", "list-page-last.json"].map(recording);
    let items = [&first["items"][0], &first["items"][1], &last["items"][0]];
    for number in 0..8 {
        let mut item = items[number.min(2)].clone();
        item["metadata"]["name"] = format!("br{}", number + 1).into();
        server.api().create(&item);
    }
    let page = server.get(&format!("{}?limit=2", "/apis/k8s.cni.cncf.io/v1/network-attachment-definitions")).ok();
    same_but_for_identity("first page", &page, &first);
    let token = page["metadata"]["continue"].as_str().unwrap();
    let path = format!("/apis/k8s.cni.cncf.io/v1/network-attachment-definitions?limit=9&continue={token}");
    let mut page = server.get(&path).ok();
    assert_eq!(page["items"].as_array().unwrap().len(), 6);
    page["items"].as_array_mut().unwrap().truncate(1);
    same_but_for_identity("last page", &page, &last);
}

#[test]
fn a_watch_looks_as_recorded() {
    let server = Server::start();
    server.api().set_bookmarks(std::time::Duration::from_millis(100));
    let from = server.api().version();
    let path = "/apis/k8s.cni.cncf.io/v1/network-attachment-definitions";
    let watch = server.watch(path, &format!("&resourceVersion={from}&allowWatchBookmarks=true&timeoutSeconds=30"));
    server.post(DEFINITIONS, &definition("w1")).ok();
    let w1 = format!("{DEFINITIONS}/w1");
    server.patch(MERGE, &w1, &annotations(json!({"a": "b"}))).ok();
    server.call("DELETE", &w1, JSON, "").ok();
    let mut events: Vec<Value> = std::iter::repeat_with(|| watch.next()).take(6).collect();
    // Bookmarks may come in between: their place is not recorded, their order is.
    events.sort_by_key(|event| event["type"] == "BOOKMARK");
    let wanted = recording("watch-events.json");
    for (event, wanted) in events.iter().zip(wanted.as_array().unwrap()) {
        same_but_for_identity("event", event, wanted);
    }
    let version =
        |event: &Value| event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    let versions: Vec<u64> = events[..3].iter().map(version).collect();
    assert_eq!(versions, [from + 1, from + 2, from + 3], "each change has a version of its own");
}

#[test]
fn a_watch_from_too_long_ago_is_told_so_inside_a_200() {
    let server = Server::start();
    let mut event = server.watch("/api/v1/pods", "&resourceVersion=1").next();
    let mut wanted = recording("watch-too-old.json");
    for message in [&mut event["object"]["message"], &mut wanted["object"]["message"]] {
        let text = message.as_str().unwrap().split('(').next().unwrap().to_owned();
        *message = text.into();
    }
    assert_eq!(event, wanted);
}

#[test]
fn a_streaming_list_is_refused_as_recorded() {
    let server = Server::start();
    server.api().set_streaming_lists(false);
    let query = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let watch = server.watch("/api/v1/pods", query);
    assert_eq!(json!([watch.next()]), recording("streaming-list-refused.json"));
    watch.ended();
}

#[test]
fn events_and_pods_are_stored_as_recorded() {
    let server = Server::start();
    let stored = recording("event-created.json");
    let mut event = stored.clone();
    let fields = event.as_object_mut().unwrap();
    for key in ["eventTime", "reportingComponent", "reportingInstance"] {
        fields.shift_remove(key);
    }
    event["metadata"] = json!({"generateName": "p3-1.", "namespace": "default"});
    let created = server.post("/api/v1/namespaces/default/events", &event).ok();
    same_but_for_identity("event", &created, &stored);
    assert_eq!(created["metadata"]["name"].as_str().unwrap().len(), "p3-1.n9qjj".len());

    let recorded = recording("pod.json");
    let mut pod = pod("p3-1", "node1");
    pod["metadata"]["annotations"] = recorded["metadata"]["annotations"].clone();
    let mut wanted = recorded.clone();
    wanted["metadata"]["managedFields"].as_array_mut().unwrap().truncate(1);
    let added = json!({"f:t": {}, "f:x": {}});
    let managed = &mut wanted["metadata"]["managedFields"][0];
    managed["fieldsV1"]["f:metadata"]["f:annotations"]
        .as_object_mut()
        .unwrap()
        .extend(added.as_object().unwrap().clone());
    let created = server.post(&format!("{PODS}?fieldManager=kubectl-client-side-apply"), &pod).ok();
    same_but_for_identity("pod", &created, &wanted);
}

fn keys(value: &Value) -> Vec<&String> {
    let mut keys: Vec<&String> = value.as_object().unwrap().keys().collect();
    keys.sort();
    keys
}
