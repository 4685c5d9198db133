//! Masquerading, spoof checks and isolation, proved by packets.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use ipnet::IpNet;
use musubi_delegates::netlink::{LinkChange, MacAddress, NewLink, address};
use musubi_tests::netns::Netns;
use musubi_tests::node::{Sandbox, link};
use nix::libc;
use serde_json::{Value, json};

use super::stage::{Stage, Who, dual_stack, extend, host_local};

const PORT: u16 = 4000;
/// Long enough for any packet that comes at all.
const PATIENCE: Duration = Duration::from_secs(5);

/// A UDP socket of a namespace.
fn udp(netns: &Netns, port: u16, v6: bool) -> UdpSocket {
    netns.enter(|| {
        let socket = UdpSocket::bind((if v6 { "::" } else { "0.0.0.0" }, port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_broadcast(true).unwrap();
        socket
    })
}

/// Words, and whom they come from.
fn hear(socket: &UdpSocket) -> (String, IpAddr) {
    let mut words = [0; 64];
    let (length, from) = socket.recv_from(&mut words).expect("a packet");
    (String::from_utf8_lossy(&words[..length]).into_owned(), from.ip())
}

/// Attaches a sandbox and returns its addresses without prefix.
fn attach(stage: &Stage, sandbox: &Sandbox, conf: &Value) -> Vec<String> {
    let result = stage.call_for(Who::Ours, "ADD", sandbox, "eth0", conf).result();
    let ips = result["ips"].as_array().cloned().unwrap_or_default();
    ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
}

fn conf(kind: &str, more: &Value) -> Value {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "net", "type": kind});
    extend(&mut conf, more);
    conf
}

/// A namespace outside the node, which knows no way to the pods: 192.0.2.2 and 2001:db8::2 behind the host's 192.0.2.1
/// and 2001:db8::1.
fn outside(stage: &Stage) -> Netns {
    let outside = Netns::new();
    let (host, far) = (stage.node.host.open(), outside.open());
    host.netlink.request(NewLink::named("up0").up().veth(NewLink::named("eth0").in_namespace(&far))).unwrap();
    for (netns, name, nets) in
        [(&host, "up0", ["192.0.2.1/24", "2001:db8::1/64"]), (&far, "eth0", ["192.0.2.2/24", "2001:db8::2/64"])]
    {
        let index = netns.netlink.link_by_name(name).unwrap().unwrap().index;
        netns.netlink.request(LinkChange::of(index, "up").up().request()).unwrap();
        for net in nets {
            netns.netlink.request(address::add(index, net.parse::<IpNet>().unwrap(), false)).unwrap();
        }
    }
    outside
}

#[test]
fn the_outside_sees_the_host_and_neighbours_see_the_pod() {
    let routes = json!({"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]});
    for (kind, more) in [("bridge", json!({"bridge": "br0", "isGateway": true})), ("ptp", json!({}))] {
        let stage = Stage::new();
        let outside = outside(&stage);
        let mut conf = conf(kind, &more);
        conf["ipam"] = dual_stack(&routes);
        conf["ipMasq"] = true.into();
        let other = stage.sandbox("c2");
        let own = attach(&stage, &stage.sandbox, &conf);
        let neighbour = attach(&stage, &other, &conf);
        for (v6, at, far, seen) in [(false, 0, "192.0.2.2", "192.0.2.1"), (true, 1, "2001:db8::2", "2001:db8::1")] {
            let port = PORT + u16::from(v6);
            let pod = udp(&stage.sandbox.netns, 0, v6);
            let (listener, friend) = (udp(&outside, port, v6), udp(&other.netns, port, v6));
            pod.send_to(b"out", (far, port)).unwrap();
            assert_eq!(hear(&listener), ("out".to_owned(), seen.parse().unwrap()), "{kind} to the outside");
            pod.send_to(b"near", (neighbour[at].as_str(), port)).unwrap();
            assert_eq!(hear(&friend), ("near".to_owned(), own[at].parse().unwrap()), "{kind} in its own subnet");
            tcp_comes_back(&stage.sandbox.netns, &outside, far, port, seen);
        }
        // Without masquerading the pod's own address gets there: what is seen above is the rules' work.
        stage.call(Who::Ours, "DEL", &conf).succeeded();
        conf["ipMasq"] = false.into();
        let own = attach(&stage, &stage.sandbox, &conf);
        let listener = udp(&outside, PORT + 9, false);
        udp(&stage.sandbox.netns, 0, false).send_to(b"bare", ("192.0.2.2", PORT + 9)).unwrap();
        assert_eq!(hear(&listener), ("bare".to_owned(), own[0].parse().unwrap()), "{kind} without ipMasq");
    }
}

/// A connection outwards, with an answer: the translation is undone on the way back.
fn tcp_comes_back(pod: &Netns, outside: &Netns, far: &str, port: u16, seen: &str) {
    let listener = outside.enter(|| TcpListener::bind((far, port)).unwrap());
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (mut stream, from) = listener.accept().unwrap();
            stream.write_all(b"welcome").unwrap();
            from.ip()
        });
        let mut answer = String::new();
        let mut client = pod.enter(|| TcpStream::connect((far, port)).unwrap());
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!((answer.as_str(), server.join().unwrap()), ("welcome", seen.parse().unwrap()));
    });
}

/// The host remembers for some seconds which MAC an address had; the new pod has another.
#[test]
fn an_address_that_is_given_again_reaches_its_new_pod_at_once() {
    let stage = Stage::new();
    let addresses = json!([
        {"address": "10.7.0.2/24", "gateway": "10.7.0.1"},
        {"address": "fd00:7::2/64", "gateway": "fd00:7::1"},
    ]);
    let ipam = json!({"type": "static", "addresses": addresses});
    let conf = conf("bridge", &json!({"bridge": "br0", "isGateway": true, "ipam": ipam}));
    // A bridge without a port would forget all it knows.
    attach(&stage, &stage.sandbox, &self::conf("bridge", &json!({"bridge": "br0"})));
    let (host_v4, host_v6) = (udp(&stage.node.host, 0, false), udp(&stage.node.host, 0, true));
    for number in 0..6 {
        let id = format!("pod-{number}");
        let sandbox = stage.sandbox(&id);
        let pod = udp(&sandbox.netns, PORT, true);
        attach(&stage, &sandbox, &conf);
        for (host, address) in [(&host_v4, "10.7.0.2"), (&host_v6, "fd00:7::2")] {
            let words = format!("{id} at {address}");
            host.send_to(words.as_bytes(), (address, PORT)).unwrap();
            assert_eq!(hear(&pod).0, words, "lost: {words}");
        }
        stage.call_for(Who::Ours, "DEL", &sandbox, "eth0", &conf).succeeded();
    }
}

#[test]
fn macspoofchk_drops_frames_under_anothers_mac() {
    for (checked, heard) in [(true, "honest"), (false, "spoofed")] {
        let stage = Stage::new();
        let ipam = host_local("10.7.0.0/24", &json!({}));
        let conf = conf("bridge", &json!({"bridge": "br0", "macspoofchk": checked, "ipam": ipam}));
        let other = stage.sandbox("c2");
        attach(&stage, &stage.sandbox, &conf);
        attach(&stage, &other, &conf);
        let (pod, listener) = (udp(&stage.sandbox.netns, 0, false), udp(&other.netns, PORT, false));
        let own = link(&stage.sandbox.netns, "eth0");
        let netlink = stage.sandbox.netns.open().netlink;
        let say = |mac: MacAddress, words: &str| {
            netlink.request(LinkChange::of(own.index, "MAC").attr(libc::IFLA_ADDRESS, mac).request()).unwrap();
            // A broadcast waits for no neighbour's answer.
            pod.send_to(words.as_bytes(), ("10.7.0.255", PORT)).unwrap();
        };
        say("02:00:00:00:00:99".parse().unwrap(), "spoofed");
        say(own.mac.unwrap(), "honest");
        assert_eq!(hear(&listener).0, heard, "macspoofchk {checked}");
    }
}

#[test]
fn isolated_ports_reach_the_gateway_and_not_each_other() {
    for (isolated, heard) in [(true, "from the gateway"), (false, "from the pod")] {
        let stage = Stage::new();
        let ipam = host_local("10.7.0.0/24", &json!({}));
        let conf =
            conf("bridge", &json!({"bridge": "br0", "isGateway": true, "portIsolation": isolated, "ipam": ipam}));
        let other = stage.sandbox("c2");
        attach(&stage, &stage.sandbox, &conf);
        attach(&stage, &other, &conf);
        let gateway = udp(&stage.node.host, PORT, false);
        let (pod, listener) = (udp(&stage.sandbox.netns, 0, false), udp(&other.netns, PORT, false));
        pod.send_to(b"from the pod", ("10.7.0.255", PORT)).unwrap();
        assert_eq!(hear(&gateway).0, "from the pod", "the gateway hears everybody");
        gateway.send_to(b"from the gateway", ("10.7.0.255", PORT)).unwrap();
        assert_eq!(hear(&listener).0, heard, "portIsolation {isolated}");
        pod.send_to(b"to the gateway", ("10.7.0.1", PORT)).unwrap();
        let mut at_the_gateway = hear(&gateway);
        while at_the_gateway.0 == "from the gateway" {
            at_the_gateway = hear(&gateway);
        }
        assert_eq!(at_the_gateway.0, "to the gateway");
    }
}

/// Pods of one bridge hear each other when they are in one VLAN; a trunk carries it tagged.
pub fn vlans_keep_pods_apart() {
    let stage = Stage::new();
    let attached = |id: &str, address: &str, more: Value| {
        let sandbox = stage.sandbox(id);
        let ipam = json!({"type": "static", "addresses": [{"address": address}]});
        let mut conf = conf("bridge", &json!({"bridge": "br0", "ipam": ipam}));
        extend(&mut conf, &more);
        attach(&stage, &sandbox, &conf);
        sandbox
    };
    let speaker = attached("speaker", "10.7.0.2/24", json!({"vlan": 100}));
    let same = attached("same", "10.7.0.3/24", json!({"vlan": 100}));
    let other = attached("other", "10.7.0.4/24", json!({"vlan": 200}));
    let second = attached("second", "10.7.0.5/24", json!({"vlan": 200}));
    let trunk = attached("trunk", "10.9.0.2/24", json!({"vlanTrunk": [{"minID": 90, "maxID": 110}]}));
    tagged(&trunk, 100, "10.7.0.6/24");
    let [to_same, to_other, to_trunk] = [&same, &other, &trunk].map(|pod| udp(&pod.netns, PORT, false));
    let say = |pod: &Sandbox, words: &str| {
        udp(&pod.netns, 0, false).send_to(words.as_bytes(), ("10.7.0.255", PORT)).unwrap();
    };
    say(&speaker, "in VLAN 100");
    say(&second, "in VLAN 200");
    assert_eq!(hear(&to_same).0, "in VLAN 100");
    assert_eq!(hear(&to_other).0, "in VLAN 200", "the first that VLAN 200 hears is its own");
    assert_eq!(hear(&to_trunk).0, "in VLAN 100", "the trunk carries it with its tag");
    say(&trunk, "by the trunk");
    assert_eq!(hear(&to_same).0, "by the trunk", "and back");
}

/// An interface of a pod in a VLAN, on top of its own.
fn tagged(pod: &Sandbox, id: u16, net: &str) {
    let netlink = pod.netns.open().netlink;
    let below = netlink.link_by_name("eth0").unwrap().unwrap().index;
    netlink.request(NewLink::named("tagged").parent(below).of_kind("vlan", |data| data.u16(1, id))).unwrap();
    let index = netlink.link_by_name("tagged").unwrap().unwrap().index;
    netlink.request(LinkChange::of(index, "up").up().request()).unwrap();
    netlink.request(address::add(index, net.parse::<IpNet>().unwrap(), false)).unwrap();
}
