//! The Kubernetes store and the agent's cache against an API server: what is asked, what is written, and what becomes of a pod
//! when the server is slow, broken or gone. What needs no broken server runs unchanged on a real cluster (`make test-cluster`).

mod cache;
mod gate;
mod identity;
mod outage;
mod refusals;
mod requests;
mod stage;

use std::process::Command;

use musubi_tests::cluster::{CLUSTER_WIDE, Cluster};

/// What `make test-cluster` does, against a server of another process: the tests that need no broken one prepare the cluster,
/// reach it from their nodes, run, and clean it; the others say that they do not run.
#[test]
fn tests_run_unchanged_on_a_real_cluster() {
    if stage::is_real_cluster() {
        return;
    }
    let cluster = Cluster::start();
    let folder = tempfile::tempdir().unwrap();
    let mut tests = Command::new(std::env::current_exe().unwrap());
    tests.args(["kubernetes::requests", "kubernetes::identity", "kubernetes::gate", "--test-threads=1", "--nocapture"]);
    tests.env("MUSUBI_TEST_KUBECONFIG", cluster.kubeconfig(folder.path()));
    let output = tests.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("SKIPPED") && text.contains("a_static_pod_is_known"), "{text}");
    let api = cluster.fake().unwrap();
    let tested = api.log().iter().filter(|request| request.method == "PATCH").count();
    assert!(tested > 10, "{tested} statuses were written");
    assert_eq!(api.list("pods"), [serde_json::Value::Null; 0], "it is clean afterwards");
    for kind in CLUSTER_WIDE.map(|path| path.rsplit('/').next().unwrap()) {
        assert_eq!(api.list(kind), [serde_json::Value::Null; 0], "it is clean afterwards");
    }
}
