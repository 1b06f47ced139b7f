//! A server with an older kernel on real parts: a whole Debian 11 (Linux 5.10, systemd 247) in QEMU, process server and
//! applier as programs, Azurite. Its changes are tracked by the program for kernels without atomic operations: there are
//! points while it is written, overwritten, trimmed and swapped, nothing is lost over a kill of the agent and an orderly
//! restart, and every block of the vault is the disk's at the end, also after a shutdown by order in the middle of a load.
//!
//! Needs root, QEMU, and the server of `dev/server/build bullseye` (made if it is missing).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real programs run in real time")]

use std::time::Duration;

use lifeboat_tests::rig::{DEBIAN_11, Guest, NOT_COMPARED, Site, SiteOptions};

/// Copying most of a gigabyte out of an emulated machine.
const COPY: Duration = Duration::from_secs(1500);
const ROUND: Duration = Duration::from_secs(300);

#[test]
fn a_server_with_linux_5_10_has_exact_rounds_and_loses_nothing() {
    let options = SiteOptions { name: "older", without_agent: 1, ..SiteOptions::default() };
    let mut site = Site::new(&options, Vec::new());
    let mut guest = Guest::boot(&site, DEBIAN_11);
    let kernel = guest.shell("uname -r");
    assert!(kernel.starts_with("5.10."), "{kernel}");
    guest.settled(&site, "the first copy", COPY);
    assert_eq!(guest.said("\"tracking\":\"ebpf-32k\""), 1, "{}", guest.agent_log());
    guest.points_over_a_kill(&site, "/root");

    guest.reboot();
    guest.settled(&site, "a round after the restart", ROUND);
    assert_eq!(guest.said(NOT_COMPARED), 1, "{}", guest.agent_log());
    guest.assert_same(&site);
    guest.thawed();
    guest.shut_down(&mut site, ROUND);
}
