//! The virtual machine itself: it boots, has the kinds of interface it is there for, runs the reference plugins and
//! tests built from this file, and says what went wrong when something does.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use musubi_tests::vm::{CNI_BIN, Machine, Outcome};

const ENOUGH: Duration = Duration::from_secs(60);

/// Runs a script of the host's `sh` in the machine, with `programs` of the host beside it.
fn script(machine: &mut Machine, programs: &[&str], script: &str, timeout: Duration) -> Result<Outcome> {
    for program in ["/bin/sh"].iter().chain(programs) {
        machine.file(Path::new(program), program);
    }
    machine.run("/bin/sh", &["-c", script], timeout)
}

#[test]
fn boots_fast_with_every_kind_of_interface() {
    let mut machine = Machine::new().unwrap();
    let started = Instant::now();
    let outcome = script(&mut machine, &["/bin/cat"], "cat /proc/modules /proc/uptime /proc/version", ENOUGH).unwrap();
    println!("boot, one program, power off: {:.1} s", started.elapsed().as_secs_f32());
    println!("uptime and version: {}", outcome.output.lines().rev().take(2).collect::<Vec<_>>().join("; "));

    assert_eq!(outcome.exit_code, 0, "{}", outcome.output);
    for module in ["ipvlan", "macvlan", "8021q", "dummy", "bridge", "veth", "vxlan", "nf_tables", "nft_masq", "vrf"] {
        let loaded = outcome.output.lines().any(|line| line.starts_with(&format!("{module} ")));
        assert!(loaded, "{module} is not loaded:\n{}", outcome.output);
    }
}

#[test]
fn output_and_exit_code_come_back_as_they_were() {
    let cases = [
        ("echo out; echo err >&2; exit 3", 3, "out\nerr\n"),
        ("printf 'no newline\\r\\n\\ttab'", 0, "no newline\r\n\ttab"),
        ("echo $TOLD $MUSUBI_VM $CARGO; kill -9 $$", 137, "a b 1\n"),
        ("ls /etc", 127, "/bin/sh: 1: ls: not found\n"),
    ];
    let mut machine = Machine::new().unwrap();
    machine.env("TOLD", "a b");
    for (line, exit_code, output) in cases {
        let outcome = script(&mut machine, &[], line, ENOUGH).unwrap();
        assert_eq!(outcome, Outcome { exit_code, output: output.into() }, "{line}");
    }
}

#[test]
fn a_machine_that_does_not_end_well_is_an_error() {
    let cases = [
        ("echo c > /proc/sysrq-trigger", ENOUGH, "Kernel panic"),
        ("echo working; kill -STOP $$", Duration::from_secs(20), "working"),
    ];
    let mut machine = Machine::new().unwrap();
    for (line, timeout, complaint) in cases {
        let error = script(&mut machine, &[], line, timeout).unwrap_err().to_string();
        assert!(error.contains(complaint), "{line}: {error}");
    }
    let error = machine.run("/no/such", &[], ENOUGH).unwrap_err().to_string();
    assert!(error.contains("start /no/such: No such file"), "{error}");
}

#[test]
fn reference_plugins_attach_a_pod() {
    let cases = [
        ("ipvlan", r#""master":"dummy0","mode":"l2""#),
        // A link is master of ipvlans or of macvlans.
        ("macvlan", r#""master":"ifb0""#),
        ("vlan", r#""master":"dummy0","vlanId":7"#),
        ("bridge", r#""bridge":"br0","vlan":5"#),
    ];
    let mut lines = String::from(
        "set -e; echo 1 > /sys/class/net/dummy0/flags\n\
         mkdir /run/netns; : > /run/netns/pod; unshare --net=/run/netns/pod true\n",
    );
    for (number, (kind, options)) in cases.iter().enumerate() {
        lines += &format!(
            r#"CNI_IFNAME=net{number} /usr/lib/cni/{kind} <<END
{{"cniVersion":"1.0.0","name":"n{number}","type":"{kind}",{options},
 "ipam":{{"type":"static","addresses":[{{"address":"10.0.{number}.2/24"}}]}}}}
END
"#
        );
    }
    lines += "echo filtering $(cat /sys/class/net/br0/bridge/vlan_filtering)";
    let mut machine = Machine::new().unwrap();
    machine
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", "pod")
        .env("CNI_NETNS", "/run/netns/pod")
        .env("CNI_PATH", CNI_BIN)
        .module("ifb");
    let outcome =
        script(&mut machine, &["/bin/mkdir", "/usr/bin/unshare", "/bin/true", "/bin/cat"], &lines, ENOUGH).unwrap();

    assert_eq!(outcome.exit_code, 0, "{}", outcome.output);
    assert!(outcome.output.ends_with("filtering 1\n"), "br0 does not filter VLANs:\n{}", outcome.output);
    for (number, (kind, _)) in cases.iter().enumerate() {
        for wanted in [format!(r#""name": "net{number}""#), format!(r#""address": "10.0.{number}.2/24""#)] {
            assert!(outcome.output.contains(&wanted), "{kind}: no {wanted} in\n{}", outcome.output);
        }
    }
}

#[test]
fn tests_of_this_file_run_in_the_machine() {
    let mut machine = Machine::new().unwrap();
    let outcome = machine.run_tests("e2e", "in_the_machine::passes", ENOUGH).unwrap();
    assert!(outcome.output.contains("1 passed; 0 failed"), "{}", outcome.output);

    let failed = machine.run_tests("e2e", "in_the_machine::fails", ENOUGH).unwrap_err().to_string();
    assert!(failed.contains("only on purpose"), "{failed}");
    let none = machine.run_tests("e2e", "in_the_machine::absent", ENOUGH).unwrap_err().to_string();
    assert!(none.contains("in_the_machine::absent"), "{none}");
}

mod in_the_machine {
    use musubi_tests::vm::guest;

    #[test]
    #[ignore = "runs in the virtual machine"]
    fn passes() {
        assert!(guest::inside());
        assert!(std::fs::exists("/proc/net/vlan/config").unwrap());
        // Only a loopback interface that is up answers.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    }

    #[test]
    #[ignore = "runs in the virtual machine"]
    fn fails() {
        panic!("only on purpose");
    }
}
