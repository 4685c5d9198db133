//! Where we differ from the reference plugins (Debian's 1.1.1) on purpose: the only such list. An entry names one case, one
//! fact and the reason; one that no longer differs fails the case's test.

const L2_CHECK: &str = "layer 2 is checked too; the reference asks ipam, which there is none of";
const KEPT: &str = "addresses outlive a link that goes down, as in plugins since 1.2";
const NO_DETECTION: &str = "nothing is detected, the link-local address included, so no address is tentative after ADD";
const NOTIFY: &str = "neighbours learn a new pod's MAC at once";
const DNS_OF_IPAM: &str = "the dns that ipam returns reaches the result; the reference drops it";
const ONLINK: &str = "all gateways are behind the one link, in its subnet or not";
const VLAN_1: &str = "a port in another VLAN leaves the default one, as in later plugins (preserveDefaultVlan)";
const ANY_MASTER: &str =
    "CHECK knows a master by default route or by the chain, as ADD does; the reference wants it named";
const NO_ADDRESS: &str =
    "a bridge's port has no IPv6 address: nobody reaches it there, and detection would be run for each pod";
const MODES: &str = "only root reads who has which address, as in later plugins";
const CNI_GATEWAY: &str = "GATEWAY counts for each address of its subnet; 1.1.1 passes over those of the configuration";

/// Case, fact, reason.
pub const WANTED: &[(&str, &str, &str)] = &[
    // bridge
    ("bridge: layer 2", "CHECK", L2_CHECK),
    ("bridge: layer 2 by an empty ipam", "CHECK", L2_CHECK),
    ("bridge: MAC of CNI_ARGS", "CHECK", L2_CHECK),
    ("bridge: MAC of args.cni over CNI_ARGS", "CHECK", L2_CHECK),
    ("bridge: MAC of runtimeConfig over both", "CHECK", L2_CHECK),
    ("bridge: unknown CNI_ARGS ignored", "CHECK", L2_CHECK),
    ("bridge: layer 2 in version 0.4.0", "CHECK", L2_CHECK),
    ("bridge: layer 2 in version 1.0.0", "CHECK", L2_CHECK),
    ("bridge: dual stack", "pod/eth0/sysctl/ipv6/ndisc_notify", NOTIFY),
    ("bridge: dual stack", "pod/eth0/sysctl/ipv6/keep_addr_on_down", KEPT),
    ("bridge: enabledad", "pod/eth0/sysctl/ipv6/ndisc_notify", NOTIFY),
    ("bridge: enabledad", "pod/eth0/sysctl/ipv6/keep_addr_on_down", KEPT),
    ("bridge: no gateway", "host/<peer of eth0>/sysctl/ipv6/addr_gen_mode", NO_ADDRESS),
    ("bridge: dual stack", "host/<peer of eth0>/sysctl/ipv6/addr_gen_mode", NO_ADDRESS),
    ("bridge: enabledad", "host/<peer of eth0>/sysctl/ipv6/addr_gen_mode", NO_ADDRESS),
    (
        "bridge: static addresses",
        "ADD",
        "two gateways of one result are both put on the bridge; the reference takes the first for a stranger's",
    ),
    (
        "bridge: routes with and without gateway",
        "CHECK",
        "the reference looks for the route without the gateway it gave it",
    ),
    (
        "bridge: default route twice",
        "ADD",
        "one default route is enough; the reference adds it twice and fails (\"file exists\")",
    ),
    ("bridge: resolvConf", "result/dns/nameservers/0", DNS_OF_IPAM),
    ("bridge: resolvConf", "result/dns/nameservers/1", DNS_OF_IPAM),
    ("bridge: resolvConf", "result/dns/options/0", DNS_OF_IPAM),
    ("bridge: resolvConf", "result/dns/options/1", DNS_OF_IPAM),
    ("bridge: resolvConf", "result/dns/search/0", DNS_OF_IPAM),
    ("bridge: resolvConf", "result/dns/search/1", DNS_OF_IPAM),
    ("bridge: VLAN 100", "host/<peer of eth0>/vlan/1-1", VLAN_1),
    ("bridge: VLAN 100 with gateway", "host/<peer of eth0>/vlan/1-1", VLAN_1),
    ("bridge: VLAN 100 with gateway", "host/<peer of br0.100>/vlan/1-1", VLAN_1),
    ("bridge: VLAN 100 with gateway", "after DEL/host/<peer of br0.100>/vlan/1-1", VLAN_1),
    // macvlan
    ("macvlan: layer 2", "pod/eth0/sysctl/ipv4/arp_notify", NOTIFY),
    ("macvlan: layer 2", "pod/eth0/sysctl/ipv6/accept_dad", NO_DETECTION),
    ("macvlan: layer 2", "pod/eth0/sysctl/ipv6/ndisc_notify", NOTIFY),
    ("macvlan: mode bridge", "pod/eth0/sysctl/ipv6/accept_dad", NO_DETECTION),
    ("macvlan: mode bridge", "pod/eth0/sysctl/ipv6/ndisc_notify", NOTIFY),
    ("macvlan: dual stack", "pod/eth0/sysctl/ipv6/accept_dad", NO_DETECTION),
    ("macvlan: dual stack", "pod/eth0/sysctl/ipv6/ndisc_notify", NOTIFY),
    ("macvlan: dual stack", "pod/eth0/sysctl/ipv6/keep_addr_on_down", KEPT),
    // ipvlan
    ("ipvlan: mode l2", "pod/eth0/sysctl/ipv6/accept_dad", NO_DETECTION),
    ("ipvlan: mode l2", "pod/eth0/sysctl/ipv6/ndisc_notify", NOTIFY),
    ("ipvlan: dual stack", "pod/eth0/sysctl/ipv6/accept_dad", NO_DETECTION),
    ("ipvlan: dual stack", "pod/eth0/sysctl/ipv6/ndisc_notify", NOTIFY),
    ("ipvlan: dual stack", "pod/eth0/sysctl/ipv6/keep_addr_on_down", KEPT),
    ("ipvlan: master by default route", "CHECK", ANY_MASTER),
    ("ipvlan: addresses and master of the plugin before", "CHECK", ANY_MASTER),
    // vlan
    ("vlan: IPv4", "pod/eth0/sysctl/ipv4/arp_notify", NOTIFY),
    ("vlan: IPv4", "pod/eth0/sysctl/ipv6/accept_dad", NO_DETECTION),
    ("vlan: dual stack", "pod/eth0/sysctl/ipv4/arp_notify", NOTIFY),
    ("vlan: dual stack", "pod/eth0/sysctl/ipv6/accept_dad", NO_DETECTION),
    ("vlan: dual stack", "pod/eth0/sysctl/ipv6/ndisc_notify", NOTIFY),
    ("vlan: dual stack", "pod/eth0/sysctl/ipv6/keep_addr_on_down", KEPT),
    // ptp
    ("ptp: IPv4", "pod/eth0/sysctl/ipv4/arp_notify", NOTIFY),
    ("ptp: IPv4", "pod/eth0/sysctl/ipv6/accept_dad", NO_DETECTION),
    ("ptp: dual stack with default routes", "pod/eth0/sysctl/ipv4/arp_notify", NOTIFY),
    ("ptp: dual stack with default routes", "pod/eth0/sysctl/ipv6/accept_dad", NO_DETECTION),
    ("ptp: dual stack with default routes", "pod/eth0/sysctl/ipv6/ndisc_notify", NOTIFY),
    ("ptp: dual stack with default routes", "pod/eth0/sysctl/ipv6/keep_addr_on_down", KEPT),
    ("ptp: route by another gateway", "pod/eth0/route/10.50.0.0/16 via 10.7.0.9", ONLINK),
    // host-local and static
    ("host-local: one subnet", "after DEL/files/net/last_reserved_ip.0/mode", MODES),
    ("host-local: one subnet", "files/net/10.7.0.2/mode", MODES),
    ("host-local: one subnet", "files/net/last_reserved_ip.0/mode", MODES),
    (
        "host-local: a file that says \"\"",
        "next",
        "a file that a crash left empty is nobody's; the reference loses its address for good (plugins#498)",
    ),
    ("static: CNI_ARGS", "result/ips/0/gateway", CNI_GATEWAY),
    ("static: CNI_ARGS of several", "result/ips/0/gateway", CNI_GATEWAY),
    ("static: CNI_ARGS of several", "result/ips/1/gateway", CNI_GATEWAY),
];

#[test]
fn each_is_of_a_case_that_runs() {
    use super::{bridge, in_vm, ipam, kinds, versions};
    let tables = [bridge::TABLES, in_vm::TABLES, ipam::TABLES, kinds::TABLES, versions::TABLES].concat();
    let mut names: Vec<String> = tables.iter().flat_map(|table| table()).map(|case| case.name).collect();
    names.extend(ipam::CONTENTS.iter().map(|content| ipam::case_of(content)));
    let unknown: Vec<&str> =
        WANTED.iter().map(|(case, _, _)| *case).filter(|case| !names.iter().any(|name| name == case)).collect();
    assert_eq!(unknown, Vec::<&str>::new());
    names.sort();
    let doubles: Vec<&[String]> = names.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert_eq!(doubles, Vec::<&[String]>::new(), "two cases of one name share their differences");
}
