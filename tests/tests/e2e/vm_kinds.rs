//! The delegates' own tests on a kernel that has every kind of interface: what `delegates/tests` leaves out where the
//! running kernel lacks one is an error in the machine.

use std::time::Duration;

use musubi_tests::vm::Machine;

/// QEMU's processor emulation takes tens of seconds for what a processor does in two.
const ENOUGH: Duration = Duration::from_secs(400);

#[test]
fn every_kind_of_interface_works_on_debians_kernel() {
    let mut machine = Machine::new().unwrap();
    let outcome = machine.run_all_tests("musubi-delegates", &["kinds", "vxlan"], ENOUGH).unwrap();
    assert_eq!(outcome.output.matches("test result: ok.").count(), 2, "{}", outcome.output);
}
