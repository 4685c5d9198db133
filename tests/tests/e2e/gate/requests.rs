//! Requests as none should be: each client gets what it asked for, and no other notices.

use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use musubi_tests::gate::{self, Client};

use super::{Scene, recorded};

/// How long others may have to wait at the most.
const SOON: Duration = Duration::from_secs(3);

fn is_served(client: &mut Client) {
    let began = Instant::now();
    let review = recorded("Pod-CREATE-dry").to_string();
    assert!(client.post("/mutate", review.as_bytes()).unwrap().response()["allowed"] == true);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[test]
fn a_wrong_request_is_an_error_to_its_client_alone() {
    let scene = Scene::new(&[]);
    let mut other = scene.client();
    let post = |headers: &str, body: &str| format!("POST /validate HTTP/1.1\r\nHost: a\r\n{headers}\r\n{body}");
    let json = "Content-Type: application/json\r\n";
    let rows = [
        ("x\r\n\r\n".to_owned(), 400),
        ("GET /validate HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 405),
        ("GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 404),
        (post("Content-Length: 2\r\n", "{}"), 415),
        (post(&format!("{json}Content-Length: 2\r\n"), "{}"), 400),
        (post(&format!("{json}Content-Length: 9\r\n"), "[null,\"x\""), 400),
        (post(&format!("{json}Content-Length: 3145729\r\n"), ""), 413),
        (post(&format!("{json}Transfer-Encoding: chunked\r\n"), "zz\r\n"), 400),
    ];
    for (request, status) in rows {
        let mut client = scene.client();
        client.send(request.as_bytes()).unwrap();
        assert_eq!(client.answer().unwrap().status, status, "{request}");
        is_served(&mut other);
    }
}

#[test]
fn a_body_may_be_three_mebibytes_long_and_no_longer() {
    let scene = Scene::new(&[]);
    let review = |length: usize| {
        let mut review = recorded("NetworkAttachmentDefinition-CREATE-sriov-a");
        review["request"]["object"]["metadata"]["annotations"]["padding"] = "".into();
        let padding = length - review.to_string().len();
        review["request"]["object"]["metadata"]["annotations"]["padding"] = "x".repeat(padding).into();
        review.to_string()
    };
    let limit = 3 << 20;
    let answer = scene.client().post("/validate", review(limit).as_bytes()).unwrap();
    assert_eq!(answer.response()["allowed"], true);
    // It may answer before it has read all, and close.
    let refused = scene.client().post("/validate", review(limit + 1).as_bytes());
    assert!(refused.as_ref().map_or(true, |answer| answer.status == 413), "{refused:?}");
}

#[test]
fn chunks_without_end_are_cut_off() {
    let scene = Scene::new(&[]);
    let mut client = scene.client();
    client.send(b"POST /validate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let sent = (0..1000).take_while(|_| client.send(chunk.as_bytes()).is_ok()).count();
    assert!(sent < 200, "{sent} chunks of 64 KiB were taken");
    is_served(&mut scene.client());
}

#[test]
fn slow_clients_keep_nobody_waiting() {
    let scene = Scene::new(&[]);
    let mut other = scene.client();
    let large =
        "POST /validate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 3000000\r\n\r\n";
    let mut slow: Vec<Client> = (0..20).map(|_| scene.client()).collect();
    for client in &mut slow {
        client.send(large.as_bytes()).unwrap();
        client.send(&[b' '; 100_000]).unwrap();
    }
    let _silent: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(scene.gate.address()).unwrap()).collect();
    for _ in 0..20 {
        is_served(&mut other);
        is_served(&mut scene.client());
    }
    let began = Instant::now();
    assert_eq!(slow[0].answer().unwrap().status, 408);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn those_who_only_hold_connections_make_room() {
    let scene = Scene::new(&[]);
    let mut other = scene.client();
    is_served(&mut other);
    let mut silent: Vec<TcpStream> = Vec::new();
    for _ in 0..12 {
        silent.extend((0..50).map(|_| TcpStream::connect(scene.gate.address()).unwrap()));
        is_served(&mut other);
    }
    is_served(&mut scene.client());
    let metrics = scene.gate.get("/metrics").body;
    let displaced = metrics.lines().find_map(|line| line.strip_prefix("musubi_webhook_displaced_connections_total "));
    assert!(displaced.unwrap().parse::<u64>().unwrap() > 80, "{displaced:?}");
}

#[test]
fn who_hangs_up_halfway_is_forgotten() {
    let scene = Scene::new(&[]);
    let review = recorded("Pod-CREATE-dry").to_string();
    let head = format!(
        "POST /mutate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        review.len()
    );
    // In the head, in the body, and after it.
    for sent in [&head[..20], &format!("{head}{}", &review[..100]), &format!("{head}{review}")] {
        let mut client = scene.client();
        client.send(sent.as_bytes()).unwrap();
        client.half_close().unwrap();
        let _ = client.answer();
    }
    is_served(&mut scene.client());
    let open = || {
        let metrics = scene.gate.get("/metrics").body;
        let line = metrics.lines().find_map(|line| line.strip_prefix("musubi_webhook_connections ").map(str::to_owned));
        line.unwrap().parse::<u64>().unwrap()
    };
    scene.gate.until("only the one that asks is there", || open() == 1);
}

#[test]
fn it_says_how_it_is() {
    let scene = Scene::new(&[]);
    for path in ["/healthz", "/readyz"] {
        let answer = scene.gate.get(path);
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok\n"), "{path}");
    }
    scene.client().post("/validate", recorded("Pod-CREATE-dry").to_string().as_bytes()).unwrap();
    let metrics = scene.gate.get("/metrics").body;
    for line in [
        "musubi_webhook_requests_total{path=\"validate\",outcome=\"denied\"} 1",
        "musubi_webhook_decision_seconds_count{path=\"validate\"} 1",
        "musubi_webhook_cached_objects{cache=\"definitions\"} 0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "no {line} in\n{metrics}");
    }
    let expiry = "musubi_webhook_certificate_expiry_timestamp_seconds ";
    let expiry: u64 = metrics.lines().find_map(|line| line.strip_prefix(expiry)).unwrap().parse().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(expiry.saturating_sub(now).div_ceil(86_400), 90);
}

#[test]
fn what_was_asked_is_answered_when_it_stops() {
    let scene = Scene::new(&[]);
    let (address, authority) = (scene.gate.address(), gate::believed(&scene.server));
    let mut open = scene.client();
    is_served(&mut open);
    let stopping = std::thread::spawn(move || scene.gate.stop());
    // Those that have not heard of it still connect for a while, and keep their connections.
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(200));
        is_served(&mut open);
        is_served(&mut Client::connect(address, &authority));
    }
    assert!(stopping.join().unwrap());
}
