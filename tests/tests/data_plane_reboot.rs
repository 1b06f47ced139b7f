//! Restarts of a protected server on real parts: a whole Debian in QEMU with its own kernel and initramfs, process server
//! and applier as programs, Azurite. An orderly restart needs no comparison and every block of the vault is the disk's; a
//! reset is followed by one, and says why.
//!
//! Needs root, QEMU, and the server of dev/server/build (made if it is missing).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real programs run in real time")]

use std::time::Duration;

use lifeboat_replication::wire::v1;
use lifeboat_tests::rig::{DEBIAN_12, Guest, Site, SiteOptions};

/// Copying a gigabyte out of an emulated machine.
const COPY: Duration = Duration::from_secs(1500);
const ROUND: Duration = Duration::from_secs(300);

fn changed_bytes(records: &[v1::Data], after: u64) -> u64 {
    records.iter().filter(|record| record.number > after).map(|record| record.changed_bytes).sum()
}

#[test]
fn an_orderly_restart_is_followed_by_rounds_and_a_reset_by_a_comparison() {
    let options = SiteOptions { name: "reboot", without_agent: 1, ..SiteOptions::default() };
    let site = Site::new(&options, Vec::new());
    let guest = Guest::boot(&site, DEBIAN_12);
    let records = guest.settled(&site, "the first copy", COPY);
    let copied = changed_bytes(&records, 0);

    guest.shell(
        "head -c 3000000 /dev/urandom >/root/before; sync; head -c 5000000 /dev/urandom >/root/at-the-end",
    );
    let last = records.last().unwrap().number;
    guest.reboot();
    guest.shell("head -c 3000000 /dev/urandom >/root/after");
    let records = guest.settled(&site, "a round after the restart", ROUND);
    let log = guest.agent_log();
    assert!(log.contains("no comparison of what is unchanged"), "{log}");
    assert!(log.contains("\"to_copy_blocks\":0"), "{log}");
    let sent = changed_bytes(&records, last);
    println!("the first copy sent {copied} bytes, the restart {sent}");
    assert!(sent < copied / 4, "{sent} bytes sent after the restart, {copied} in the first copy");
    guest.assert_same(&site);
    guest.thawed();

    guest.reset();
    let log = guest.wait("the agent after the reset", ROUND, || {
        Some(guest.agent_log()).filter(|log| log.contains("tracking starts with new marks"))
    });
    assert!(log.contains("UncleanShutdown: the server was restarted and had saved no changes"), "{log}");
}
