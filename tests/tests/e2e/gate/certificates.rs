//! Certificates: made once for all replicas, renewed under load without a lost request, or taken from files.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use musubi_tests::api_server::ApiServer;
use musubi_tests::gate::{self, Client, Gate};
use serde_json::Value;

use super::{Scene, recorded};

fn secret(server: &ApiServer) -> Value {
    server.get("secrets", "kube-system", "musubi-webhook").unwrap()["data"].clone()
}

fn is_served(client: &mut Client) {
    let review = recorded("Pod-CREATE-dry").to_string();
    assert_eq!(client.post("/mutate", review.as_bytes()).unwrap().status, 200);
}

#[test]
fn replicas_that_race_agree() {
    let server = ApiServer::start();
    gate::install(&server);
    server.set_latency(Duration::from_millis(5));
    let gates: Vec<Gate> = (0..5).map(|_| Gate::spawn(&server, &[])).collect();
    for gate in &gates {
        gate.until("it is ready", || gate.try_get("/readyz").is_some_and(|answer| answer.status == 200));
    }
    let writes = server.log().iter().filter(|s| s.method == "PUT" && s.status == Some(200)).count();
    assert_eq!(writes, 1, "one of them made it");
    let believed = gate::believed(&server);
    assert_eq!(believed.matches("BEGIN").count(), 1);
    for gate in &gates {
        is_served(&mut gate.connect(&believed));
    }
    let mutating = server.get("mutatingwebhookconfigurations", "", "musubi-webhook").unwrap();
    let validating = server.get("validatingwebhookconfigurations", "", "musubi-webhook").unwrap();
    for webhook in [&mutating, &validating].into_iter().flat_map(|c| c["webhooks"].as_array().unwrap()) {
        assert_eq!(webhook["clientConfig"]["caBundle"], mutating["webhooks"][0]["clientConfig"]["caBundle"]);
    }
}

#[test]
fn one_that_starts_later_takes_what_is_there() {
    let scene = Scene::new(&[]);
    let before = secret(&scene.server);
    let second = Gate::start(&scene.server, &[]);
    is_served(&mut second.connect(&gate::believed(&scene.server)));
    assert_eq!(secret(&scene.server), before);
}

/// Certificates of nine seconds, two replicas, and clients that connect anew with what an API server believes at that
/// moment, or that keep their connections.
#[test]
fn certificates_expire_under_load_and_no_request_is_lost() {
    const LIFETIME: &str = "--certificate-lifetime=9s";
    let scene = Scene::new(&[LIFETIME]);
    let second = Gate::start(&scene.server, &[LIFETIME]);
    let first = secret(&scene.server)["tls.crt"].clone();
    let done = AtomicBool::new(false);
    let until = Instant::now() + Duration::from_secs(17);
    let (mut renewals, mut shown) = (0, first);
    std::thread::scope(|scope| {
        for gate in [&scene.gate, &second] {
            let done = &done;
            let server = &scene.server;
            scope.spawn(move || {
                let mut kept = gate.connect(&gate::believed(server));
                let mut served = 0;
                while !done.load(Ordering::Relaxed) {
                    is_served(&mut kept);
                    is_served(&mut gate.connect(&gate::believed(server)));
                    served += 2;
                    std::thread::sleep(Duration::from_millis(2));
                }
                assert!(served > 500, "{served}");
            });
        }
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
            let now = secret(&scene.server)["tls.crt"].clone();
            renewals += usize::from(now != shown);
            shown = now;
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(renewals >= 2, "{renewals}");
    assert!(gate::believed(&scene.server).matches("BEGIN").count() <= 3, "what has expired is left out");
}

#[test]
fn what_somebody_spoils_is_mended() {
    let scene = Scene::new(&["--certificate-lifetime=60s"]);
    let mut configuration = scene.server.get("validatingwebhookconfigurations", "", "musubi-webhook").unwrap();
    configuration["webhooks"][1]["clientConfig"].as_object_mut().unwrap().remove("caBundle");
    scene.server.replace(&configuration);
    scene.gate.until("it is told again", || {
        let now = scene.server.get("validatingwebhookconfigurations", "", "musubi-webhook").unwrap();
        now["webhooks"][1]["clientConfig"]["caBundle"].is_string()
    });
    let mut emptied = scene.server.get("secrets", "kube-system", "musubi-webhook").unwrap();
    emptied["data"] = Value::Null;
    scene.server.replace(&emptied);
    scene.gate.until("there is another certificate", || secret(&scene.server)["tls.crt"].is_string());
    scene.gate.until("it is shown", || {
        let believed = gate::believed(&scene.server);
        scene.gate.connect(&believed).post("/mutate", b"").is_ok_and(|answer| answer.status == 400)
    });
}

#[test]
fn what_it_waits_for_is_said() {
    let server = ApiServer::start();
    let gate = Gate::spawn(&server, &[]);
    let reason = |text: &str| gate.log().contains(text);
    gate.until("the configuration is missed", || reason("ValidatingWebhookConfiguration musubi-webhook: "));
    for object in gate::manifests("configurations.yaml") {
        server.create(&object);
    }
    gate.until("the Secret is missed", || reason("there is no Secret kube-system/musubi-webhook"));
    server.create(&gate::manifests("secret.yaml")[0]);
    gate.until("it is ready", || gate.try_get("/readyz").is_some_and(|answer| answer.status == 200));
}

#[test]
fn files_are_shown_and_read_anew_when_they_change() {
    let folder = tempfile::tempdir().unwrap();
    let write = || {
        let made = rcgen::generate_simple_self_signed(vec![gate::NAME.to_owned()]).unwrap();
        std::fs::write(folder.path().join("tls.crt"), made.cert.pem()).unwrap();
        std::fs::write(folder.path().join("tls.key"), made.signing_key.serialize_pem()).unwrap();
        made.cert.pem()
    };
    let first = write();
    let server = ApiServer::start();
    gate::install(&server);
    let gate = Gate::start(&server, &["--tls-dir", folder.path().to_str().unwrap()]);
    let mut kept = gate.connect(&first);
    is_served(&mut kept);

    // Half of a change is no change.
    std::fs::write(folder.path().join("tls.key"), "x").unwrap();
    gate.until("it is said", || gate.get("/readyz").body.contains("certificates: "));
    is_served(&mut gate.connect(&first));
    let second = write();
    gate.until("the second is shown", || gate.connect(&second).post("/mutate", b"").is_ok());
    is_served(&mut kept);
    assert_eq!(gate::believed(&server), "", "somebody else tells API servers");
    assert!(!server.log().iter().any(|served| served.path.contains("secrets")));
}
