//! Lists and watches: selectors, resource versions, forms, and the order and end of events.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::fixture::{DEFINITIONS, JSON, MERGE, PODS, Server, annotations, definition, pod};

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[test]
fn selectors_select() {
    let server = Server::start();
    for (name, node, labels) in [
        ("a", "node1", json!({"app": "web", "tier": "front"})),
        ("b", "node1", json!({"app": "db"})),
        ("c", "node2", json!({"app": "web"})),
        ("d", "node2", json!({})),
    ] {
        let mut pod = pod(name, node);
        pod["metadata"]["labels"] = labels;
        server.api().create(&pod);
    }
    server.api().create(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "e", "namespace": "other"}}));
    let rows: [(&str, &[&str]); 13] = [
        ("labelSelector=app%3Dweb", &["a", "c"]),
        ("labelSelector=app%3D%3Dweb,tier", &["a"]),
        ("labelSelector=app!%3Dweb", &["b", "d", "e"]),
        ("labelSelector=app+in+(web,db),!tier", &["b", "c"]),
        ("labelSelector=app+notin+(web)", &["b", "d", "e"]),
        ("fieldSelector=spec.nodeName%3Dnode1", &["a", "b"]),
        ("fieldSelector=spec.nodeName!%3Dnode1", &["c", "d", "e"]),
        ("fieldSelector=metadata.name%3Da", &["a"]),
        ("fieldSelector=metadata.namespace%3Dother", &["e"]),
        ("fieldSelector=spec.nodeName%3Dnode2&labelSelector=app", &["c"]),
        ("fieldSelector=status.phase%3DPending,spec.nodeName%3Dnode2", &["c", "d"]),
        ("fieldSelector=status.phase%3DRunning", &[]),
        ("", &["a", "b", "c", "d", "e"]),
    ];
    for (query, wanted) in rows {
        assert_eq!(names(&server.get(&format!("/api/v1/pods?{query}")).ok()), wanted, "{query}");
    }
    assert_eq!(names(&server.get(PODS).ok()), ["a", "b", "c", "d"], "one namespace");
    let refused = server.get(&format!("{DEFINITIONS}?fieldSelector=spec.config%3Dx")).refused();
    assert_eq!((refused.0, refused.1.as_str()), (400, "BadRequest"));
    assert!(refused.2.ends_with("field label not supported: spec.config"), "{}", refused.2);
}

#[test]
fn lists_of_built_in_kinds_name_the_kind_once() {
    let server = Server::start();
    server.api().create(&pod("a", "node1"));
    server.api().create(&definition("net"));
    let pods = server.get(PODS).ok();
    assert_eq!((&pods["kind"], &pods["items"][0]["kind"]), (&json!("PodList"), &json!(null)));
    assert_eq!(pods["items"][0]["metadata"]["name"], "a");
    let definitions = server.get(DEFINITIONS).ok();
    assert_eq!(definitions["items"][0]["kind"], "NetworkAttachmentDefinition");
}

#[test]
fn metadata_alone_is_answered_where_it_is_asked_for() {
    let server = Server::start();
    server.api().create(&pod("a", "node1"));
    let authorization = format!("Bearer {}", server.token);
    let ask = |method: &str, path: &str, accept: &str, body: &str| {
        let headers = [("Authorization", authorization.as_str()), ("Accept", accept), ("Content-Type", MERGE)];
        server.send(method, path, &headers, body).unwrap()
    };
    let one = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let many = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let pod = format!("{PODS}/a");
    for (method, body) in [("GET", ""), ("PATCH", r#"{"metadata":{"annotations":{"a":"b"}}}"#)] {
        let got = ask(method, &pod, one, body).ok();
        assert_eq!((&got["kind"], &got["apiVersion"]), (&json!("PartialObjectMetadata"), &json!("meta.k8s.io/v1")));
        assert_eq!((&got["metadata"]["name"], got.get("spec")), (&json!("a"), None));
    }
    let list = ask("GET", PODS, many, "").ok();
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!((&list["items"][0]["kind"], list["items"][0].get("spec")), (&json!("PartialObjectMetadata"), None));
    assert_eq!(ask("GET", PODS, one, "").status, 406, "a list is no object");
    assert_eq!(ask("GET", &pod, "application/vnd.kubernetes.protobuf", "").status, 406);
    assert_eq!(ask("GET", &pod, &format!("application/vnd.kubernetes.protobuf,{JSON}"), "").status, 200);

    let watch = server.watch_as("/api/v1/pods", "&resourceVersion=0", one);
    let event = watch.next();
    assert_eq!((&event["object"]["kind"], event["object"].get("spec")), (&json!("PartialObjectMetadata"), None));
}

#[test]
fn an_object_that_begins_or_ceases_to_match_comes_and_goes() {
    let server = Server::start();
    let mut unscheduled = pod("p", "node1");
    unscheduled["spec"].as_object_mut().unwrap().shift_remove("nodeName");
    server.api().create(&unscheduled);
    let from = server.api().version();
    let watch = server.watch(PODS, &format!("&resourceVersion={from}&fieldSelector=spec.nodeName%3Dnode1"));
    server.api().replace(&pod("p", "node1"));
    server.api().replace(&pod("p", "node2"));
    assert_eq!([watch.told(), watch.told()], ["ADDED p", "DELETED p"]);
    server.api().replace(&pod("p", "node1"));
    let mut changed = pod("p", "node1");
    changed["metadata"]["annotations"] = json!({"a": "b"});
    server.api().replace(&changed);
    server.api().delete("pods", "default", "p");
    assert_eq!([watch.told(), watch.told()], ["ADDED p", "MODIFIED p"]);
    let last = watch.next();
    assert_eq!((&last["type"], &last["object"]["metadata"]["annotations"]["a"]), (&json!("DELETED"), &json!("b")));
    assert_eq!(last["object"]["metadata"]["resourceVersion"], server.api().version().to_string());
    watch.silent();
}

#[test]
fn a_watch_begins_where_it_is_told_to() {
    let server = Server::start();
    server.api().create(&pod("a", "node1"));
    let between = server.api().version();
    server.api().create(&pod("b", "node1"));
    for (query, wanted) in [
        ("&resourceVersion=0".to_owned(), vec!["ADDED a", "ADDED b"]),
        (String::new(), vec!["ADDED a", "ADDED b"]),
        (format!("&resourceVersion={between}"), vec!["ADDED b"]),
        ("&fieldSelector=metadata.name%3Db".to_owned(), vec!["ADDED b"]),
        (
            "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true".to_owned(),
            vec!["ADDED a", "ADDED b", "BOOKMARK -"],
        ),
    ] {
        let watch = server.watch(PODS, &query);
        let told: Vec<String> = wanted.iter().map(|_| watch.told()).collect();
        assert_eq!(told, wanted, "{query:?}");
        watch.silent();
    }
    let refused = server.get(&format!("{PODS}?watch=1&sendInitialEvents=true"));
    assert_eq!((refused.status, &refused.json()["reason"]), (422, &json!("Invalid")));
}

#[test]
fn a_watch_ends_at_its_time_with_a_bookmark_before() {
    let server = Server::start();
    let begun = Instant::now();
    let watch = server.watch(PODS, "&resourceVersion=0&allowWatchBookmarks=true&timeoutSeconds=3");
    assert_eq!(watch.told(), "BOOKMARK -");
    assert!(begun.elapsed() < Duration::from_millis(2_500), "well before the end");
    watch.ended();
    assert!(begun.elapsed() >= Duration::from_millis(2_900));
}

#[test]
fn bookmarks_of_pods_can_be_read_as_pods() {
    let server = Server::start();
    server.api().set_bookmarks(Duration::from_millis(20));
    let event = server.watch(PODS, "&allowWatchBookmarks=true").next();
    assert_eq!(event["type"], "BOOKMARK");
    let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(event["object"].clone()).unwrap();
    assert_eq!(pod.metadata.resource_version.unwrap(), server.api().version().to_string());
    server.watch(PODS, "").silent();
}

#[test]
fn resource_versions_mean_what_they_say() {
    let server = Server::start();
    server.api().create(&pod("a", "node1"));
    let before = server.api().version();
    server.api().delete("pods", "default", "a");
    server.api().create(&pod("b", "node1"));
    let at = |query: String| server.get(&format!("{PODS}?{query}"));
    assert_eq!(names(&at(format!("resourceVersion={before}&resourceVersionMatch=Exact")).ok()), ["a"]);
    assert_eq!(names(&at(format!("resourceVersion={before}&resourceVersionMatch=NotOlderThan")).ok()), ["b"]);
    assert_eq!(names(&at("resourceVersion=0".to_owned()).ok()), ["b"]);
    assert_eq!(at("resourceVersion=x".to_owned()).status, 422);
    let too_far = at("resourceVersion=999999".to_owned());
    assert_eq!(too_far.refused().1, "Timeout");
    assert_eq!((too_far.status, too_far.header("Retry-After")), (504, "1"));
    server.api().compact();
    assert_eq!(at(format!("resourceVersion={before}&resourceVersionMatch=Exact")).status, 410);
    let patched = server.patch(MERGE, &format!("{PODS}/b"), &annotations(json!({"a": "b"}))).ok();
    assert_eq!(patched["metadata"]["resourceVersion"], server.api().version().to_string());
}
