//! In network namespaces of their own: what is written is read back, and packets prove what it does.

use std::fs::File;
use std::net::UdpSocket;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::netlink::nftables::{Jump, Rule, Transaction};
use crate::netlink::{LinkChange, NewLink, address, route::Route};

/// Runs a test in a fresh network namespace. Whoever is not root gets one of their own by running the test again in a
/// user namespace, which a process with several threads cannot enter (unshare(2)).
fn in_own_namespace(test: impl FnOnce() + Send) {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        let name = std::thread::current().name().unwrap().to_owned();
        let status = Command::new("unshare")
            .args(["--user", "--map-root-user"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--nocapture"])
            .status()
            .unwrap();
        assert!(status.success(), "{name} failed in its user namespace");
        return;
    }
    std::thread::scope(|scope| {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            test();
        };
        if let Err(panic) = scope.spawn(run).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn pod(id: &str) -> Owner {
    Owner::new(id, "default/lan", "net1")
}

fn nets(addresses: &[&str]) -> Vec<IpNet> {
    addresses.iter().map(|a| a.parse().unwrap()).collect()
}

fn mac(last: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, last])
}

/// A table of somebody else, with a chain and a map that look like ours.
const FOREIGN: Table<'static> = Table { family: Family::Inet, name: "somebody" };

fn write_foreign(nft: &Netlink) {
    let (base, address) = (MASQUERADE.base, masquerading("10.9.0.2/24".parse().unwrap()));
    let chain = pod("a").chain();
    nft.transaction(
        Transaction::default()
            .table(FOREIGN)
            .chain(FOREIGN, base, MASQUERADE.feature)
            .rule(FOREIGN, base.name, &address.rule, "theirs", MASQUERADE.feature)
            .inner_chain(FOREIGN, &chain, "")
            .map(FOREIGN, SOURCE_V4.map)
            .jump(FOREIGN, SOURCE_V4.map, &address.value, &chain),
    )
    .unwrap();
}

fn read_foreign(nft: &Netlink) -> (Vec<Rule>, Vec<Jump>) {
    (nft.rules(FOREIGN, "postrouting").unwrap(), nft.jumps(FOREIGN, SOURCE_V4.map).unwrap())
}

/// All that our tables hold for anybody.
fn leftovers(nft: &Netlink) -> Vec<String> {
    let mut left: Vec<String> = Vec::new();
    for dispatch in [MASQUERADE, SPOOF_CHECK] {
        left.extend(dispatch.owners(nft).unwrap().iter().map(Owner::to_string));
        left.extend(nft.rules(dispatch.table, "shared").unwrap().into_iter().map(|rule| rule.comment));
        for key in dispatch.keys {
            left.extend(nft.jumps(dispatch.table, key.map).unwrap().into_iter().map(|jump| jump.chain));
        }
    }
    left
}

fn delete_table(nft: &Netlink, table: Table<'_>) {
    nft.transaction(Transaction::default().delete_table(table)).unwrap();
}

#[test]
fn masquerading_begins_once_and_ends_for_good() {
    in_own_namespace(|| {
        let nft = Netlink::netfilter().unwrap();
        let addresses = nets(&["10.1.0.2/24", "fd00:1::2/64"]);
        assert!(!is_masqueraded(&nft, &pod("a"), &addresses).unwrap());
        unmasquerade(&nft, &pod("a")).unwrap();
        for _ in 0..2 {
            masquerade(&nft, &pod("a"), &addresses).unwrap();
            assert!(is_masqueraded(&nft, &pod("a"), &addresses).unwrap());
            assert_eq!(nft.rules(MASQUERADE.table, &pod("a").chain()).unwrap().len(), 2);
        }
        for _ in 0..2 {
            unmasquerade(&nft, &pod("a")).unwrap();
            assert!(!is_masqueraded(&nft, &pod("a"), &addresses).unwrap());
            assert_eq!(leftovers(&nft), [""; 0]);
        }
    });
}

#[test]
fn each_owner_of_an_address_has_a_rule_of_its_own() {
    in_own_namespace(|| {
        let nft = Netlink::netfilter().unwrap();
        let addresses = nets(&["10.1.0.2/24"]);
        let others = [pod("b"), Owner::new("a", "default/wan", "net1"), Owner::new("a", "default/lan", "net2")];
        for owner in others.iter().chain([&pod("a")]) {
            masquerade(&nft, owner, &addresses).unwrap();
        }
        unmasquerade(&nft, &pod("a")).unwrap();
        assert!(!is_masqueraded(&nft, &pod("a"), &addresses).unwrap());
        for owner in &others {
            assert!(is_masqueraded(&nft, owner, &addresses).unwrap(), "{owner}");
        }
        let mut expected = others.to_vec();
        expected.sort();
        assert_eq!(masqueraded_owners(&nft).unwrap(), expected);
    });
}

#[test]
fn what_an_owner_has_no_longer_goes() {
    in_own_namespace(|| {
        let nft = Netlink::netfilter().unwrap();
        masquerade(&nft, &pod("a"), &nets(&["10.1.0.2/24", "10.1.0.3/24"])).unwrap();
        masquerade(&nft, &pod("a"), &nets(&["10.1.0.3/24", "10.1.0.4/16"])).unwrap();
        assert!(is_masqueraded(&nft, &pod("a"), &nets(&["10.1.0.3/24", "10.1.0.4/16"])).unwrap());
        for gone in ["10.1.0.2/24", "10.1.0.3/16", "10.1.0.4/24"] {
            assert!(!is_masqueraded(&nft, &pod("a"), &nets(&[gone])).unwrap(), "{gone}");
        }
    });
}

#[test]
fn one_address_in_two_subnets_is_masqueraded_in_both_and_gone_from_both() {
    in_own_namespace(|| {
        let nft = Netlink::netfilter().unwrap();
        let addresses = nets(&["10.1.0.2/24", "10.1.0.2/16", "10.1.0.2/24"]);
        for owner in [pod("a"), pod("b")] {
            masquerade(&nft, &owner, &addresses).unwrap();
            assert!(is_masqueraded(&nft, &owner, &addresses).unwrap());
        }
        for owner in [pod("a"), pod("b")] {
            unmasquerade(&nft, &owner).unwrap();
        }
        assert_eq!(leftovers(&nft), [""; 0]);
    });
}

#[test]
fn no_address_is_nothing_to_masquerade() {
    in_own_namespace(|| {
        let nft = Netlink::netfilter().unwrap();
        masquerade(&nft, &pod("a"), &nets(&["10.1.0.2/24"])).unwrap();
        masquerade(&nft, &pod("a"), &[]).unwrap();
        assert!(is_masqueraded(&nft, &pod("a"), &[]).unwrap());
        assert_eq!(leftovers(&nft), [""; 0]);
    });
}

#[test]
fn chains_that_somebody_emptied_leave_nothing_behind() {
    in_own_namespace(|| {
        let nft = Netlink::netfilter().unwrap();
        let addresses = nets(&["10.1.0.2/24", "fd00:1::2/64"]);
        let empty_all = |dispatch: Dispatch| {
            let chains = nft.chains(dispatch.table).unwrap();
            let changes = chains.iter().fold(Transaction::default(), |c, chain| c.flush(dispatch.table, &chain.name));
            nft.transaction(changes).unwrap();
        };
        for id in ["a", "b"] {
            masquerade(&nft, &pod(id), &addresses).unwrap();
            check_spoofing(&nft, &pod(id), &format!("veth{id}"), mac(1)).unwrap();
        }
        empty_all(MASQUERADE);
        empty_all(SPOOF_CHECK);
        assert!(!is_masqueraded(&nft, &pod("a"), &addresses).unwrap());
        assert!(!is_spoof_checked(&nft, &pod("a"), "vetha", mac(1)).unwrap());
        masquerade(&nft, &pod("b"), &addresses).unwrap();
        check_spoofing(&nft, &pod("b"), "vethb", mac(1)).unwrap();
        assert!(is_masqueraded(&nft, &pod("b"), &addresses).unwrap());
        assert!(is_spoof_checked(&nft, &pod("b"), "vethb", mac(1)).unwrap());
        for id in ["a", "b"] {
            unmasquerade(&nft, &pod(id)).unwrap();
            uncheck_spoofing(&nft, &pod(id)).unwrap();
        }
        assert_eq!(leftovers(&nft), [""; 0]);
    });
}

#[test]
fn a_kernel_without_nat_is_told_so() {
    in_own_namespace(|| {
        let nft = Netlink::netfilter().unwrap();
        let base = BaseChain { kind: "nosuch", ..MASQUERADE.base };
        let changes = Transaction::default().table(MASQUERADE.table).chain(MASQUERADE.table, base, MASQUERADE.feature);
        let error = nft.transaction(changes).unwrap_err().to_string();
        assert!(error.contains("create chain postrouting") && error.contains("nft_chain_nat"), "{error}");
        assert_eq!(nft.chains(MASQUERADE.table).unwrap(), []);
    });
}

#[test]
fn what_a_reload_took_away_is_noticed_and_put_back() {
    in_own_namespace(|| {
        let nft = Netlink::netfilter().unwrap();
        let addresses = nets(&["10.1.0.2/24"]);
        masquerade(&nft, &pod("a"), &addresses).unwrap();
        check_spoofing(&nft, &pod("a"), "veth1", mac(1)).unwrap();
        delete_table(&nft, MASQUERADE.table);
        delete_table(&nft, SPOOF_CHECK.table);
        assert!(!is_masqueraded(&nft, &pod("a"), &addresses).unwrap());
        assert!(!is_spoof_checked(&nft, &pod("a"), "veth1", mac(1)).unwrap());
        unmasquerade(&nft, &pod("a")).unwrap();
        uncheck_spoofing(&nft, &pod("a")).unwrap();
        masquerade(&nft, &pod("a"), &addresses).unwrap();
        check_spoofing(&nft, &pod("a"), "veth1", mac(1)).unwrap();
        assert!(is_masqueraded(&nft, &pod("a"), &addresses).unwrap());
        assert!(is_spoof_checked(&nft, &pod("a"), "veth1", mac(1)).unwrap());
    });
}

#[test]
fn the_spoof_checks_own_rule_is_missed_too() {
    in_own_namespace(|| {
        let nft = Netlink::netfilter().unwrap();
        check_spoofing(&nft, &pod("a"), "veth1", mac(1)).unwrap();
        nft.transaction(Transaction::default().flush(SPOOF_CHECK.table, SPOOF_CHECK.base.name)).unwrap();
        assert!(!is_spoof_checked(&nft, &pod("a"), "veth1", mac(1)).unwrap());
        check_spoofing(&nft, &pod("b"), "veth2", mac(2)).unwrap();
        assert!(is_spoof_checked(&nft, &pod("a"), "veth1", mac(1)).unwrap());
    });
}

#[test]
fn a_spoof_check_is_of_one_interface_one_mac_and_one_owner() {
    in_own_namespace(|| {
        let nft = Netlink::netfilter().unwrap();
        let is_checked = |id, interface, last| is_spoof_checked(&nft, &pod(id), interface, mac(last)).unwrap();
        for _ in 0..2 {
            check_spoofing(&nft, &pod("a"), "veth1", mac(1)).unwrap();
            check_spoofing(&nft, &pod("b"), "veth12", mac(2)).unwrap();
        }
        assert!(is_checked("a", "veth1", 1) && is_checked("b", "veth12", 2));
        assert!(!is_checked("b", "veth1", 1) && !is_checked("a", "veth1", 2) && !is_checked("a", "veth12", 1));
        assert_eq!(spoof_checked_owners(&nft).unwrap(), [pod("a"), pod("b")]);

        // A new MAC, and a new owner of the name, leave nothing of the old one.
        check_spoofing(&nft, &pod("a"), "veth1", mac(3)).unwrap();
        assert!(is_checked("a", "veth1", 3) && !is_checked("a", "veth1", 1));
        check_spoofing(&nft, &pod("c"), "veth1", mac(3)).unwrap();
        uncheck_spoofing(&nft, &pod("a")).unwrap();
        assert!(is_checked("c", "veth1", 3) && is_checked("b", "veth12", 2));

        for _ in 0..2 {
            uncheck_spoofing(&nft, &pod("b")).unwrap();
            uncheck_spoofing(&nft, &pod("c")).unwrap();
            assert_eq!(leftovers(&nft), [""; 0]);
        }
    });
}

#[test]
fn the_tables_of_others_stay_as_they_are() {
    in_own_namespace(|| {
        let nft = Netlink::netfilter().unwrap();
        write_foreign(&nft);
        let before = read_foreign(&nft);
        assert_eq!((before.0.len(), before.1.len()), (1, 1));
        let network = NetworkName::parse("default-lan").unwrap();
        masquerade(&nft, &pod("a"), &nets(&["10.9.0.2/24"])).unwrap();
        check_spoofing(&nft, &pod("a"), "veth1", mac(1)).unwrap();
        unmasquerade(&nft, &pod("a")).unwrap();
        uncheck_spoofing(&nft, &pod("a")).unwrap();
        gc(&Namespace::current().unwrap(), &network, None, &[]).unwrap();
        assert_eq!(read_foreign(&nft), before);
    });
}

#[test]
fn gc_keeps_the_valid_and_other_networks() {
    in_own_namespace(|| {
        let nft = Netlink::netfilter().unwrap();
        let network = NetworkName::parse("lan").unwrap();
        let addresses = nets(&["10.1.0.2/24"]);
        let owners = [Owner::new("a", "lan", "net1"), Owner::new("b", "lan", "net1"), Owner::new("b", "wan", "net1")];
        for (owner, interface) in owners.iter().zip(["veth1", "veth2", "veth3"]) {
            masquerade(&nft, owner, &addresses).unwrap();
            check_spoofing(&nft, owner, interface, mac(1)).unwrap();
        }
        gc(
            &Namespace::current().unwrap(),
            &network,
            None,
            &[ValidAttachment { container_id: "a".into(), interface: "net1".into() }],
        )
        .unwrap();
        let left = [owners[0].clone(), owners[2].clone()];
        assert_eq!(masqueraded_owners(&nft).unwrap(), left);
        assert_eq!(spoof_checked_owners(&nft).unwrap(), left);
    });
}

#[test]
fn a_mark_tells_whose_records_speak_of_an_owner() {
    in_own_namespace(|| {
        let places = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [ours, theirs] = places.each_ref().map(|place| Mark::of(place.path()));
        let (nft, host) = (Netlink::netfilter().unwrap(), Namespace::current().unwrap());
        let owners = [pod("ours").marked(ours), pod("theirs").marked(theirs), pod("alone")];
        for (owner, interface) in owners.iter().zip(["veth1", "veth2", "veth3"]) {
            masquerade(&nft, owner, &nets(&["10.1.0.2/24"])).unwrap();
            check_spoofing(&nft, owner, interface, mac(1)).unwrap();
        }
        assert_eq!(owners_marked(&host, ours.unwrap()).unwrap(), BTreeSet::from([owners[0].clone()]));
        forget(&host, &owners[0]).unwrap();
        assert!(owners_marked(&host, ours.unwrap()).unwrap().is_empty());
        assert_eq!(spoof_checked_owners(&nft).unwrap(), [owners[2].clone(), owners[1].clone()]);
    });
}

#[test]
fn gc_takes_nothing_of_another_installation() {
    in_own_namespace(|| {
        let place = tempfile::tempdir().unwrap();
        let mark = Mark::of(place.path());
        let (nft, host) = (Netlink::netfilter().unwrap(), Namespace::current().unwrap());
        let network = NetworkName::parse("lan").unwrap();
        let alone = Owner::new("a", "lan", "net1");
        let marked = Owner::new("b", "lan", "net1").marked(mark);
        for (own, others) in [(None, &marked), (mark, &alone)] {
            for owner in [&alone, &marked] {
                masquerade(&nft, owner, &nets(&["10.1.0.2/24"])).unwrap();
            }
            gc(&host, &network, own, &[]).unwrap();
            assert_eq!(masqueraded_owners(&nft).unwrap(), std::slice::from_ref(others));
        }
    });
}

#[test]
fn pods_come_and_go_at_once() {
    in_own_namespace(|| {
        let namespace = File::open("/proc/thread-self/ns/net").unwrap();
        let address = |worker: u8, pod: u8| [IpNet::new([10, 1, worker, pod].into(), 16).unwrap()];
        std::thread::scope(|scope| {
            for worker in 0..4_u8 {
                let namespace = &namespace;
                scope.spawn(move || {
                    nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                    let nft = Netlink::netfilter().unwrap();
                    for number in 0..25_u8 {
                        let owner = pod(&format!("{worker}-{number}"));
                        masquerade(&nft, &owner, &address(worker, number)).unwrap();
                        check_spoofing(&nft, &owner, &format!("veth{worker}-{number}"), mac(number)).unwrap();
                        if number % 2 == 1 {
                            unmasquerade(&nft, &owner).unwrap();
                            uncheck_spoofing(&nft, &owner).unwrap();
                        }
                    }
                });
            }
        });
        let nft = Netlink::netfilter().unwrap();
        for (worker, number) in (0..4).flat_map(|worker| (0..25).map(move |number| (worker, number))) {
            let owner = pod(&format!("{worker}-{number}"));
            let there = number % 2 == 0;
            assert_eq!(is_masqueraded(&nft, &owner, &address(worker, number)).unwrap(), there, "{owner}");
            let interface = format!("veth{worker}-{number}");
            assert_eq!(is_spoof_checked(&nft, &owner, &interface, mac(number)).unwrap(), there, "{owner}");
        }
    });
}

#[test]
fn an_owner_fits_into_a_comment_whatever_its_names() {
    let id = "c".repeat(64);
    assert_eq!(Owner::new(&id, "default/lan", "net1").to_string(), format!("{id}/net1/default/lan"));
    for (id, network) in [(&id[..], "n".repeat(300)), (&"d".repeat(300), "é".repeat(200))] {
        let owner = Owner::new(id, &network, "interface-of-15");
        assert!(owner.name.len() < COMMENT_MAX, "{owner}");
        assert!(owner.is_in_network(&network) && !owner.is_in_network(&format!("{network}n")), "{owner}");
        assert_ne!(owner, Owner::new(&format!("{id}{id}"), &network, "interface-of-15"));
    }
}

#[test]
fn a_backend_is_nftables_or_refused() {
    let conf = |value: &str| crate::cni::NetConf::parse(format!("{{\"ipMasqBackend\":{value}}}").as_bytes()).unwrap();
    for (value, code) in
        [("null", None), ("\"nftables\"", None), ("\"iptables\"", Some(2)), ("\"ufw\"", Some(7)), ("1", Some(7))]
    {
        assert_eq!(parse_backend(&conf(value).view()).err().map(|e| e.code), code, "{value}");
    }
}

const PORT_V4: u16 = 4000;
/// Another one: a socket for any IPv6 address takes IPv4 too.
const PORT_V6: u16 = 4006;

/// A pod: a namespace with one veth, whose other end is in the test's own namespace, and UDP sockets to speak through.
struct Pod {
    routes: Netlink,
    interface: u32,
    v4: Vec<UdpSocket>,
    v6: Vec<UdpSocket>,
}

impl Pod {
    /// A pod whose host end has this name. The first socket of each family has a known port, the others any.
    fn new(host: &Netlink, host_interface: &str, own: MacAddress) -> Self {
        let enter = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
            let namespace = File::open("/proc/thread-self/ns/net").unwrap();
            (namespace, Netlink::route().unwrap(), udp_sockets("0.0.0.0", PORT_V4), udp_sockets("::", PORT_V6))
        };
        let (namespace, routes, v4, v6) = std::thread::scope(|scope| scope.spawn(enter).join().unwrap());
        let peer = NewLink::named("eth0").mac(Some(own)).in_namespace(&namespace);
        host.request(NewLink::named(host_interface).up().veth(peer)).unwrap();
        let interface = routes.link_by_name("eth0").unwrap().unwrap().index;
        routes.request(LinkChange::of(interface, "bring eth0 up").up().request()).unwrap();
        Self { routes, interface, v4, v6 }
    }

    fn address(&self, net: &str) {
        self.routes.request(address::add(self.interface, net.parse().unwrap(), false)).unwrap();
    }

    fn default_route(&self, gateway: &str) {
        let gateway: IpAddr = gateway.parse().unwrap();
        let all = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        self.routes.request(Route::new(all.parse().unwrap(), Some(gateway), self.interface).add()).unwrap();
    }
}

fn udp_sockets(any: &str, port: u16) -> Vec<UdpSocket> {
    let open = |port| {
        let socket = UdpSocket::bind((any, port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.set_broadcast(true).unwrap();
        socket
    };
    [port, 0, 0, 0, 0].into_iter().map(open).collect()
}

/// Whom the receiver hears.
fn sender_seen(from: &UdpSocket, to: &UdpSocket, address: (&str, u16)) -> IpAddr {
    from.send_to(b"hello", address).unwrap();
    to.recv_from(&mut [0; 16]).unwrap().1.ip()
}

#[test]
fn the_outside_sees_the_hosts_address_the_own_subnet_the_pods() {
    in_own_namespace(|| {
        let (host, nft) = (Netlink::route().unwrap(), Netlink::netfilter().unwrap());
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        let (a, b) = (Pod::new(&host, "pa", mac(1)), Pod::new(&host, "pb", mac(2)));
        for (interface, net) in
            [("pa", "10.1.0.1/24"), ("pa", "fd00:1::1/64"), ("pb", "10.2.0.1/24"), ("pb", "fd00:2::1/64")]
        {
            let index = host.link_by_name(interface).unwrap().unwrap().index;
            host.request(address::add(index, net.parse().unwrap(), false)).unwrap();
        }
        for (pod, nets, gateways) in [
            (&a, ["10.1.0.2/24", "fd00:1::2/64"], ["10.1.0.1", "fd00:1::1"]),
            (&b, ["10.2.0.2/24", "fd00:2::2/64"], ["10.2.0.1", "fd00:2::1"]),
        ] {
            nets.iter().for_each(|net| pod.address(net));
            gateways.iter().for_each(|gateway| pod.default_route(gateway));
        }
        // A socket for each step: a connection keeps the translation that its first packet got.
        let cases: [(&[&str], [&str; 2]); 4] = [
            (&[], ["10.1.0.2", "fd00:1::2"]),
            (&["10.1.0.2/24", "fd00:1::2/64"], ["10.2.0.1", "fd00:2::1"]),
            (&["10.1.0.2/8", "fd00:1::2/16"], ["10.1.0.2", "fd00:1::2"]),
            (&["10.1.0.3/24", "fd00:1::3/64"], ["10.1.0.2", "fd00:1::2"]),
        ];
        for (step, (addresses, [v4, v6])) in cases.into_iter().enumerate() {
            masquerade(&nft, &pod("a"), &nets(addresses)).unwrap();
            assert_eq!(sender_seen(&a.v4[step], &b.v4[0], ("10.2.0.2", PORT_V4)).to_string(), v4, "{addresses:?}");
            assert_eq!(sender_seen(&a.v6[step], &b.v6[0], ("fd00:2::2", PORT_V6)).to_string(), v6, "{addresses:?}");
        }
    });
}

#[test]
fn frames_under_anothers_mac_do_not_pass() {
    in_own_namespace(|| {
        let (host, nft) = (Netlink::route().unwrap(), Netlink::netfilter().unwrap());
        host.request(NewLink::named("br0").up().of_kind("bridge", |data| data)).unwrap();
        let bridge = host.link_by_name("br0").unwrap().unwrap().index;
        let (a, b) = (Pod::new(&host, "pa", mac(1)), Pod::new(&host, "pb", mac(2)));
        for port in ["pa", "pb"] {
            let index = host.link_by_name(port).unwrap().unwrap().index;
            let change = LinkChange::of(index, "join").attr(libc::IFLA_MASTER, bridge.to_ne_bytes());
            host.request(change.request()).unwrap();
        }
        a.address("10.3.0.2/24");
        b.address("10.3.0.3/24");
        let say = |from: MacAddress, words: &str| {
            let change = LinkChange::of(a.interface, "take a MAC").attr(libc::IFLA_ADDRESS, from);
            a.routes.request(change.request()).unwrap();
            // A broadcast needs no neighbour's answer.
            a.v4[1].send_to(words.as_bytes(), ("10.3.0.255", PORT_V4)).unwrap();
        };
        let hear = || {
            let mut words = [0; 32];
            let length = b.v4[0].recv(&mut words).unwrap();
            String::from_utf8_lossy(&words[..length]).into_owned()
        };
        say(mac(9), "before");
        assert_eq!(hear(), "before");
        check_spoofing(&nft, &pod("a"), "pa", mac(1)).unwrap();
        say(mac(9), "spoofed");
        say(mac(1), "honest");
        assert_eq!(hear(), "honest");
        // Ports that nobody asked to check are not.
        uncheck_spoofing(&nft, &pod("a")).unwrap();
        say(mac(9), "after");
        assert_eq!(hear(), "after");
    });
}
