//! Restarts of a protected server on real parts: a whole Debian in QEMU with its own kernel and initramfs, process server
//! and applier as programs, Azurite. An orderly restart needs no comparison and every block of the vault is the disk's; a
//! reset is followed by one, and says why.
//!
//! Needs root, QEMU, and the server of dev/server/build (made if it is missing).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real programs run in real time")]

use std::{path::PathBuf, time::Duration};

use lifeboat_replication::wire::v1;
use lifeboat_tests::rig::{Guest, Site, SiteOptions, different_blocks, now, point};

/// Copying a gigabyte out of an emulated machine.
const COPY: Duration = Duration::from_secs(1500);
const ROUND: Duration = Duration::from_secs(300);

fn agent() -> PathBuf {
    lifeboat_tests::programs::program("lifeboat-agent")
}

/// Records up to a point that is younger than this call.
fn settled(site: &Site, guest: &Guest, what: &str, patience: Duration) -> Vec<v1::Data> {
    let began = now();
    guest.shell("date >/root/asked-for-a-round; sync");
    guest.wait(what, patience, || {
        let records = site.records_by(&site.enrolled[0].0);
        point(&records).is_some_and(|point| point.t0_micros > began).then_some(records)
    })
}

fn changed_bytes(records: &[v1::Data], after: u64) -> u64 {
    records.iter().filter(|record| record.number > after).map(|record| record.changed_bytes).sum()
}

/// Nothing writes while the file system stands still, so the last record holds all of the disk.
fn assert_same(site: &Site, guest: &Guest) {
    guest.shell(
        "sync; setsid sh -c 'fsfreeze -f /; sleep 120; fsfreeze -u /' >/dev/null 2>&1 </dev/null & sleep 2",
    );
    let last = |records: &[v1::Data]| records.last().map(|record| record.number);
    let mut before = None;
    let number = guest.wait("the last round", Duration::from_secs(100), || {
        std::thread::sleep(Duration::from_secs(10));
        let now = last(&site.records_by(&site.enrolled[0].0));
        let rests = now == before;
        before = now;
        now.filter(|_| rests)
    });
    let (disk, vault) =
        (std::fs::read(guest.disk()).unwrap(), site.recovered_of(&site.enrolled[0].0, number));
    assert_eq!(disk.len(), vault.len());
    assert_eq!(different_blocks(&disk, &vault), 0, "blocks of the vault that are not the disk's");
    guest.shell("while ! touch /root/thawed; do sleep 1; done");
}

#[test]
fn an_orderly_restart_is_followed_by_rounds_and_a_reset_by_a_comparison() {
    let options = SiteOptions { name: "reboot", without_agent: 1, ..SiteOptions::default() };
    let site = Site::new(&options, Vec::new());
    let guest = Guest::boot(&site, &agent());
    let records = settled(&site, &guest, "the first copy", COPY);
    let copied = changed_bytes(&records, 0);

    guest.shell(
        "head -c 3000000 /dev/urandom >/root/before; sync; head -c 5000000 /dev/urandom >/root/at-the-end",
    );
    let last = records.last().unwrap().number;
    guest.reboot();
    guest.shell("head -c 3000000 /dev/urandom >/root/after");
    let records = settled(&site, &guest, "a round after the restart", ROUND);
    let log = guest.agent_log();
    assert!(log.contains("no comparison of what is unchanged"), "{log}");
    assert!(log.contains("\"to_copy_blocks\":0"), "{log}");
    let sent = changed_bytes(&records, last);
    println!("the first copy sent {copied} bytes, the restart {sent}");
    assert!(sent < copied / 4, "{sent} bytes sent after the restart, {copied} in the first copy");
    assert_same(&site, &guest);

    guest.reset();
    let log = guest.wait("the agent after the reset", ROUND, || {
        Some(guest.agent_log()).filter(|log| log.contains("tracking starts with new marks"))
    });
    assert!(log.contains("UncleanShutdown: the server was restarted and had saved no changes"), "{log}");
}
