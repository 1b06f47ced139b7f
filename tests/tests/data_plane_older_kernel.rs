//! A server with an older kernel on real parts: a whole Debian 11 (Linux 5.10, systemd 247) in QEMU, process server and
//! applier as programs, Azurite. Its changes are tracked by the program for kernels without atomic operations: there are
//! points while it is written, overwritten, trimmed and swapped, nothing is lost over a kill of the agent and an orderly
//! restart, and every block of the vault is the disk's at the end.
//!
//! Needs root, QEMU, and the server of `dev/server/build bullseye` (made if it is missing).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real programs run in real time")]

use std::time::Duration;

use lifeboat_replication::wire::v1::RecordKind;
use lifeboat_tests::rig::{DEBIAN_11, Guest, Site, SiteOptions};

/// Copying most of a gigabyte out of an emulated machine.
const COPY: Duration = Duration::from_secs(1500);
const ROUND: Duration = Duration::from_secs(300);
/// Points while everything writes: before the agent is killed, and after.
const POINTS: usize = 3;
const TRACKED_ANEW: &str = "tracking starts with new marks";

/// Small overwrites of one file, files that come and go and are trimmed, memory that goes to swap. With pauses: an emulated
/// machine that is written all the time has no rounds that nobody disturbs.
const LOAD: &str = r#"
cd /root
fallocate -l 96M swap && chmod 600 swap && mkswap swap >/dev/null && swapon swap
head -c 33554432 /dev/urandom >over
cat >load-over <<'EOF'
while :; do dd if=/dev/urandom of=/root/over bs=4k count=$((RANDOM % 8 + 1)) seek=$((RANDOM % 8000)) conv=notrunc,fsync status=none; sleep 0.2; done
EOF
cat >load-files <<'EOF'
while :; do head -c $((RANDOM * 100)) /dev/urandom >/root/file-$((RANDOM % 8)); rm -f /root/file-$((RANDOM % 8)); sync; sleep 2; done
EOF
cat >load-trim <<'EOF'
while :; do fstrim /; sleep 10; done
EOF
cat >load-swap <<'EOF'
while :; do head -c 50331648 /dev/urandom >/dev/shm/swapped; cat /dev/shm/swapped >/dev/null; rm /dev/shm/swapped; sleep 10; done
EOF
for load in over files trim; do systemd-run --quiet --unit load-$load bash /root/load-$load; done
systemd-run --quiet --unit load-swap --property MemoryMax=16M bash /root/load-swap
"#;

const END_OF_LOAD: &str =
    "systemctl stop load-over load-files load-trim load-swap; rm -f /dev/shm/swapped; swapoff -a";

/// Waits for this many points after a record; the number of the last.
fn points_after(site: &Site, guest: &Guest, number: u64) -> u64 {
    guest.wait("points while it is written", ROUND, || {
        let records = site.records_by(&site.enrolled[0].0);
        let points = records
            .iter()
            .filter(|record| record.number > number && record.complete && record.kind() == RecordKind::Exact);
        points.map(|record| record.number).nth(POINTS - 1)
    })
}

fn count(guest: &Guest, words: &str) -> usize {
    guest.agent_log().matches(words).count()
}

#[test]
fn a_server_with_linux_5_10_has_exact_rounds_and_loses_nothing() {
    let options = SiteOptions { name: "older", without_agent: 1, ..SiteOptions::default() };
    let site = Site::new(&options, Vec::new());
    let guest = Guest::boot(&site, DEBIAN_11);
    let kernel = guest.shell("uname -r");
    assert!(kernel.starts_with("5.10."), "{kernel}");
    let records = guest.settled(&site, "the first copy", COPY);
    let log = guest.agent_log();
    assert!(log.contains("\"tracking\":\"ebpf-32k\""), "{log}");

    let swapped = "awk '/pswpout/ {print $2}' /proc/vmstat";
    guest.shell(LOAD);
    let number = points_after(&site, &guest, records.last().unwrap().number);
    assert_eq!(count(&guest, TRACKED_ANEW), 1);
    guest.shell("systemctl kill --signal=KILL lifeboat-agent");
    let number = points_after(&site, &guest, number);
    // The marks of before the kill were taken up.
    assert_eq!(count(&guest, "changes are found by an eBPF program"), 2);
    assert_eq!(count(&guest, TRACKED_ANEW), 1);
    assert!(guest.shell(swapped).trim().parse::<u64>().unwrap() > 0, "nothing was written to swap");
    guest.shell("systemctl is-active load-over load-files load-trim load-swap");
    guest.shell(END_OF_LOAD);
    let records = guest.settled(&site, "a round after the load", ROUND);
    let points = records.iter().filter(|record| record.complete && record.kind() == RecordKind::Exact);
    println!("{} records, of them {} points; {number} was one", records.len(), points.count());

    guest.reboot();
    guest.settled(&site, "a round after the restart", ROUND);
    let log = guest.agent_log();
    assert!(log.contains("no comparison of what is unchanged"), "{log}");
    guest.assert_same(&site);
}
