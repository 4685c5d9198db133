//! What a test does to the server from outside: faults, outages, tokens, silence, and the log.

use std::time::{Duration, Instant};

use musubi_tests::api_server::{ApiServer, Fault, Rule};
use musubi_tests::cluster::Cluster;
use musubi_tests::node::Node;
use serde_json::json;

use super::fixture::{MERGE, PODS, Server, annotations, pod};

#[test]
fn a_rule_befalls_only_what_it_names() {
    let server = Server::start();
    server.api().create(&pod("p", "node1"));
    let path = format!("{PODS}/p");
    server.api().inject(Rule::always(Fault::Code(500)).method("PATCH").path("/pods/p").times(2));
    let statuses = |count: usize| -> Vec<u16> {
        (0..count).map(|n| server.patch(MERGE, &path, &annotations(json!({"n": n.to_string()}))).status).collect()
    };
    assert_eq!(server.get(&path).status, 200, "another method");
    assert_eq!(statuses(3), [500, 500, 200]);
    server.api().inject(Rule::always(Fault::TooManyRequests(7)));
    let refused = server.get(&path);
    assert_eq!((refused.status, refused.header("Retry-After")), (429, "7"));
    server.api().clear_faults();
    assert_eq!(server.get(&path).status, 200);
}

#[test]
fn a_dropped_request_has_an_effect_or_none_as_said() {
    let server = Server::start();
    server.api().create(&pod("p", "node1"));
    let annotated = || server.api().get("pods", "default", "p").unwrap()["metadata"]["annotations"]["a"].clone();
    let authorization = format!("Bearer {}", server.token);
    let headers = [("Authorization", authorization.as_str()), ("Content-Type", MERGE)];
    for (fault, value, wanted) in
        [(Fault::Drop, "1", json!(null)), (Fault::DropAfter, "2", json!("2")), (Fault::Half, "3", json!("3"))]
    {
        server.api().inject(Rule::once(fault.clone()).method("PATCH"));
        let body = annotations(json!({"a": value})).to_string();
        let answer = server.send("PATCH", &format!("{PODS}/p"), &headers, &body);
        assert!(answer.is_err(), "{fault:?}: {answer:?}");
        assert_eq!(annotated(), wanted, "{fault:?}");
    }
}

#[test]
fn a_watch_can_break_in_the_middle_or_be_refused() {
    let server = Server::start();
    server.api().create(&pod("p", "node1"));
    server.api().inject(Rule::once(Fault::Half).path("watch=1"));
    server.watch("/api/v1/pods", "").ended();
    server.api().inject(Rule::once(Fault::Gone).path("watch=1"));
    let event = server.watch("/api/v1/pods", "").next();
    assert_eq!((&event["type"], &event["object"]["reason"]), (&json!("ERROR"), &json!("Expired")));
    server.api().inject(Rule::once(Fault::Gone));
    assert_eq!(server.get("/api/v1/pods").refused().0, 410, "a list is refused by its status");
}

#[test]
fn answers_are_late_or_never_come() {
    let server = Server::start();
    server.api().inject(Rule::once(Fault::Delay(Duration::from_millis(120))));
    let begun = Instant::now();
    assert_eq!(server.get(PODS).status, 200);
    assert!(begun.elapsed() >= Duration::from_millis(120));
    server.api().set_latency(Duration::from_millis(60));
    let begun = Instant::now();
    assert_eq!(server.get(PODS).status, 200);
    assert!(begun.elapsed() >= Duration::from_millis(60));
    server.api().set_latency(Duration::ZERO);

    server.api().inject(Rule::once(Fault::Silence));
    let client = server.cluster.client();
    let waited = server.cluster.run(async move {
        tokio::time::timeout(Duration::from_millis(150), client.apiserver_version()).await.is_err()
    });
    assert!(waited, "nothing comes");
    assert_eq!(server.api().log().last().unwrap().status, None);
    assert_eq!(server.get(PODS).status, 200, "others are served");
}

#[test]
fn a_stopped_server_refuses_connections_and_comes_back_as_it_was() {
    let server = Server::start();
    server.api().create(&pod("p", "node1"));
    let watch = server.watch("/api/v1/pods", "&resourceVersion=0");
    assert_eq!(watch.told(), "ADDED p");
    let address = server.api().address();
    server.api().stop();
    watch.ended();
    let refused = std::net::TcpStream::connect(address).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    server.api().resume();
    assert_eq!(server.api().address(), address);
    assert_eq!(server.get(&format!("{PODS}/p")).status, 200);
}

#[test]
fn tokens_are_valid_until_revoked_and_may_be_limited() {
    let server = Server::start();
    server.api().create(&pod("p", "node1"));
    let status = |token: &str, method: &str, path: &str| {
        let authorization = format!("Bearer {token}");
        let headers = [("Authorization", authorization.as_str()), ("Content-Type", MERGE)];
        let got = server.send(method, path, &headers, "{}").unwrap();
        (got.status, got.text)
    };
    let pod = format!("{PODS}/p");
    let rules = json!([
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "watch"]},
        {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]},
    ]);
    let limited = server.api().issue_token_for(rules.as_array().unwrap());
    for (method, path, wanted) in [
        ("GET", pod.as_str(), 200),
        ("GET", PODS, 403),
        ("PATCH", pod.as_str(), 403),
        ("PATCH", "/api/v1/namespaces/default/pods/p/status", 200),
        ("GET", "/api/v1/nodes", 403),
    ] {
        assert_eq!(status(&limited, method, path).0, wanted, "{method} {path}");
    }
    let (_, text) = status(&limited, "GET", "/api/v1/nodes");
    assert!(text.contains("cannot list resource \\\"nodes\\\" in API group \\\"\\\" at the cluster scope"), "{text}");
    let token = server.api().issue_token();
    assert_eq!(status(&token, "GET", &pod).0, 200);
    server.api().revoke_token(&token);
    assert_eq!(status(&token, "GET", &pod).0, 401, "on a connection that is open");
}

#[test]
fn watches_are_silent_closed_and_cut_off_as_said() {
    let server = Server::start();
    server.api().set_bookmarks(Duration::from_millis(50));
    let from = server.api().version();
    let query = format!("&resourceVersion={from}&allowWatchBookmarks=true");
    let watch = server.watch("/api/v1/pods", &query);
    assert_eq!(watch.told(), "BOOKMARK -");
    server.api().pause_watches(true);
    // One that was on its way may still arrive.
    std::thread::sleep(Duration::from_millis(60));
    while watch.arrived() {}
    server.api().create(&pod("p", "node1"));
    watch.silent();
    assert_eq!(server.api().open_watches(), 1);
    server.api().pause_watches(false);
    assert_eq!(watch.told(), "ADDED p", "what happened comes late, not never");
    server.api().close_watches();
    while watch.arrived() {}
    watch.ended();
    server.api().compact();
    let error = server.watch("/api/v1/pods", &query).next();
    assert_eq!((&error["type"], &error["object"]["code"]), (&json!("ERROR"), &json!(410)));
}

#[test]
fn the_log_has_what_was_asked_and_answered() {
    let server = Server::start();
    let _ = server.api().take_log();
    let authorization = format!("Bearer {}", server.token);
    let headers = [("Authorization", authorization.as_str()), ("Content-Type", MERGE), ("User-Agent", "musubi/0.1.0")];
    server.send("PATCH", &format!("{PODS}/nope?fieldManager=m"), &headers, r#"{"metadata":{}}"#).unwrap();
    let log = server.api().take_log();
    assert_eq!(log.len(), 1);
    let entry = &log[0];
    assert_eq!(
        (entry.method.as_str(), entry.path.as_str(), entry.query.as_str(), entry.status),
        ("PATCH", "/api/v1/namespaces/default/pods/nope", "fieldManager=m", Some(404))
    );
    assert_eq!((entry.content_type.as_str(), entry.user_agent.as_str()), (MERGE, "musubi/0.1.0"));
    assert_eq!(entry.json(), json!({"metadata": {}}));
    assert!(server.api().log().is_empty(), "taken is taken");
}

#[test]
fn a_server_lives_in_the_namespace_it_was_started_in() {
    let node = Node::new();
    let cluster = node.host.enter(|| Cluster::of(ApiServer::start()));
    cluster.create_pod("node1", "p", &[]);
    assert!(cluster.pod("p").is_some(), "the cluster's own calls come from there");
    let address = cluster.fake().unwrap().address();
    assert!(std::net::TcpStream::connect(address).is_err(), "it is not reached from elsewhere");
    cluster.fake().unwrap().stop();
    cluster.fake().unwrap().resume();
    assert!(cluster.pod("p").is_some(), "it comes back where it was");
}

#[test]
fn a_server_without_tls_answers_the_same() {
    let cluster = Cluster::of(ApiServer::start_plain());
    assert!(cluster.fake().unwrap().url().starts_with("http://"));
    let created = cluster.create_pod("node1", "p", &[("a", "b")]);
    assert_eq!(cluster.annotation("p", "a").unwrap(), "b");
    assert_eq!(created.metadata.generation, Some(1));
}
