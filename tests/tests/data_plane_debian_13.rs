//! A server as Debian's installer makes it with LVM, on real parts: a whole Debian 13 (Linux 6.12, systemd 257) in QEMU with
//! /boot on a partition of its own, root (ext4), data (XFS) and swap as volumes, process server and applier as programs,
//! Azurite. There are points while the volumes are overwritten, trimmed and swapped to; nothing is lost over a kill of the
//! agent; an orderly restart compares only what nothing vouches for, and every block of the vault is what a shutdown by order
//! in the middle of a load leaves on the disks.
//! An md array of two more disks is mirrored by its bios in the same kernel (`kernel_bio`'s own test).
//!
//! Needs root, QEMU, and the server of `dev/server/build trixie lvm` (made if it is missing). With `-- --ignored` the
//! same release on one partition.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real programs run in real time")]

use std::time::Duration;

use lifeboat_tests::{
    programs::test_program,
    rig::{DEBIAN_13, DEBIAN_13_LVM, Guest, NOT_COMPARED, Site, SiteOptions},
};

/// Copying half a gigabyte out of an emulated machine.
const COPY: Duration = Duration::from_secs(1500);
const ROUND: Duration = Duration::from_secs(600);
const FREEZES: Duration = Duration::from_secs(30);
const MEMBER_BYTES: u64 = 16 << 20;
/// What nothing vouches for: the array's members, swap, and /boot, where the boot loader may write. Not root and not data.
const COMPARED_MIB: u64 = 2 * 16 + 128 + 192;
const ARRAY_TEST: &str = "mirrors_a_disk_that_is_named";

/// What the installer would have made.
const VOLUMES: &str = "
mkswap -q /dev/server/swap && swapon /dev/server/swap
mkfs.xfs -q /dev/server/data && mount /dev/server/data /srv
echo '/dev/server/swap none swap sw 0 0' >>/etc/fstab
echo '/dev/server/data /srv xfs defaults 0 2' >>/etc/fstab
";

/// Without the agent, which would read and send what is written there meanwhile; its marks stay.
fn array(guest: &Guest) {
    let Some(test) = test_program("kernel_bio").unwrap() else {
        panic!("build it first: cargo test --workspace --test kernel_bio --no-run")
    };
    guest.put(&test, "/tmp/kernel_bio");
    guest.shell("systemctl stop lifeboat-agent");
    guest.shell(
        "mdadm --create /dev/md0 --run --quiet --level=1 --raid-devices=2 --metadata=1.2 /dev/vdb /dev/vdc",
    );
    let ran = guest.shell(&format!(
        "LIFEBOAT_TEST_DISK=/dev/md0 /tmp/kernel_bio --ignored --exact {ARRAY_TEST} --nocapture 2>&1 || echo FAILED"
    ));
    println!("{ran}");
    assert!(ran.contains("1 passed") && !ran.contains("FAILED"), "{ran}");
    guest.shell("rm /tmp/kernel_bio; systemctl start lifeboat-agent");
}

#[test]
fn a_server_on_volumes_restarts_in_order_and_loses_nothing() {
    let options =
        SiteOptions { name: "volumes", without_agent: 1, freeze_interval: FREEZES, ..SiteOptions::default() };
    let mut site = Site::new(&options, Vec::new());
    let mut guest = Guest::boot_with(&site, DEBIAN_13_LVM, &[MEMBER_BYTES, MEMBER_BYTES]);
    let kernel = guest.shell("uname -r");
    assert!(kernel.starts_with("6.12."), "{kernel}");
    guest.shell(VOLUMES);
    guest.settled(&site, "the first copy", COPY);
    let log = guest.agent_log();
    assert!(log.contains("\"tracking\":\"ebpf-tp_btf\""), "{log}");
    assert!(!log.contains("followed by a comparison"), "{log}");
    array(&guest);
    let frozen = guest.points_over_a_kill(&site, "/srv");
    assert!(frozen > 0, "no point for which the file systems were frozen");

    guest.reboot();
    guest.settled(&site, "a round after the restart", ROUND);
    let log = guest.agent_log();
    assert_eq!(guest.said(NOT_COMPARED), 1, "{log}");
    assert!(log.contains(&format!("\"to_copy_blocks\":{}", COMPARED_MIB << 8)), "{log}");
    guest.shut_down(&mut site, ROUND);
}

/// The same release on one partition.
#[test]
#[ignore = "5 minutes; its parts are tested above and on Debian 12: -- --ignored"]
fn a_server_on_one_partition_does_too() {
    let options =
        SiteOptions { name: "trixie", without_agent: 1, freeze_interval: FREEZES, ..SiteOptions::default() };
    let site = Site::new(&options, Vec::new());
    let guest = Guest::boot(&site, DEBIAN_13);
    guest.settled(&site, "the first copy", COPY);
    guest.points_over_a_kill(&site, "/root");
    guest.reboot();
    guest.settled(&site, "a round after the restart", ROUND);
    assert_eq!(guest.said(NOT_COMPARED), 1, "{}", guest.agent_log());
    assert_eq!(guest.said("\"to_copy_blocks\":0"), 1, "{}", guest.agent_log());
    guest.assert_same(&site);
}
