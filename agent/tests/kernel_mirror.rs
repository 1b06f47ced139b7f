//! A mirror made of one full copy and the taken blocks alone equals the disk, whoever writes and however.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real disks are written by real threads in real time")]

mod kernel_support;

use std::{
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use kernel_support::{Loop, Mirror, Mounted, Rig, run};
use lifeboat_agent::edge::DirtyMap as _;

const DISK_BYTES: u64 = 512 << 20;

/// Random writes of several sizes until it is killed, with some fsyncs. (It ends by itself after five minutes.)
fn fio(target: &Path, direct: bool) -> Child {
    let mut command = Command::new("fio");
    command.args(["--name=w", "--rw=randwrite"]);
    if direct {
        command.args(["--direct=1", "--bsrange=4k-128k", "--ioengine=libaio", "--iodepth=16"]);
    } else {
        command.args(["--direct=0", "--bsrange=512-128k", "--ioengine=psync", "--fsync=64"]);
    }
    command.args(["--size=192m", "--time_based", "--runtime=300", "--rate=40m", "--randrepeat=0"]);
    // All of it in one process, which can be killed.
    command.args(["--minimal", "--thread"]);
    command.arg(format!("--filename={}", target.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

/// Copies and takes while fio writes, then once more when all is quiet.
fn mirrors(file_system: Option<&str>, direct: bool) {
    let disk = Loop::new(DISK_BYTES);
    let mounted = file_system.map(|file_system| Mounted::new(&disk, file_system));
    let rig = Rig::new(&[&disk]);
    let mut tracker = rig.open();
    let mut mirror = Mirror::new(&rig.disks[0]);
    let target = mounted.as_ref().map_or(disk.path.clone(), |mounted| mounted.path().join("file"));
    let mut writer = fio(&target, direct);
    std::thread::sleep(Duration::from_millis(300));
    mirror.copy(&mut tracker);
    // However long the copy took, and however slow the machine is: rounds are made while it writes.
    let (mut taken, mut rounds) = (0, 0);
    while taken < 20_000 || rounds < 30 {
        assert!(writer.try_wait().unwrap().is_none(), "fio ended after {rounds} rounds with {taken} blocks");
        taken += mirror.round(&mut tracker);
        rounds += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
    if let Some(mounted) = mounted {
        // Deleting discards, which changes the disk without writing.
        std::fs::remove_file(&target).unwrap();
        mounted.unmount();
    }
    run("blockdev", &["--flushbufs", disk.name()]);
    mirror.round(&mut tracker);
    assert_eq!(mirror.round(&mut tracker), 0, "nobody writes any more");
    assert_eq!(tracker.in_flight(), Some(0));
    assert_eq!(tracker.lost(), None);
    // On some hosts completions run where no program is called, and the tracker finds that out: then it goes on by issue
    // only, which must mirror as well.
    assert!(tracker.tracking().starts_with("ebpf-"), "{}", tracker.tracking());
    mirror.assert_equals(&disk);
}

#[test]
fn mirrors_ext4_under_buffered_writes() {
    mirrors(Some("ext4"), false);
}

#[test]
fn mirrors_ext4_under_direct_writes() {
    mirrors(Some("ext4"), true);
}

#[test]
fn mirrors_xfs_under_buffered_writes() {
    mirrors(Some("xfs"), false);
}

#[test]
fn mirrors_xfs_under_direct_writes() {
    mirrors(Some("xfs"), true);
}

#[test]
fn mirrors_a_raw_disk_under_buffered_writes() {
    mirrors(None, false);
}

#[test]
fn mirrors_a_raw_disk_under_direct_writes() {
    mirrors(None, true);
}

/// The opposite: the comparison sees a write that was not taken.
#[test]
fn a_mirror_that_misses_a_round_differs() {
    let disk = Loop::new(64 << 20);
    let rig = Rig::new(&[&disk]);
    let mut tracker = rig.open();
    let mut mirror = Mirror::new(&rig.disks[0]);
    mirror.copy(&mut tracker);
    disk.open(0).write_all_at(&[1; 4096], 8192).unwrap();
    run("blockdev", &["--flushbufs", disk.name()]);
    let differs = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| mirror.assert_equals(&disk)));
    assert!(differs.is_err());
    assert_eq!(mirror.round(&mut tracker), 1);
    mirror.assert_equals(&disk);
}

/// Whole ranges that end within a block: the disk's last block is partial.
#[test]
fn a_disk_that_ends_within_a_block_is_mirrored_to_its_end() {
    let disk = Loop::new((64 << 20) + 1536);
    let rig = Rig::new(&[&disk]);
    let mut tracker = rig.open();
    let mut mirror = Mirror::new(&rig.disks[0]);
    mirror.copy(&mut tracker);
    disk.open(0).write_all_at(&[9; 1536], 64 << 20).unwrap();
    run("blockdev", &["--flushbufs", disk.name()]);
    assert_eq!(mirror.round(&mut tracker), 1);
    mirror.assert_equals(&disk);
    assert_eq!(mirror.content[(64 << 20) + 1536..], [0; 4096 - 1536]);
}

/// A discard longer than the bitmap loop goes to the extent table and is taken whole.
#[test]
fn a_discard_of_a_gibibyte_is_taken_whole() {
    let disk = Loop::new(2 << 30);
    let rig = Rig::new(&[&disk]);
    let mut tracker = rig.open();
    run("blkdiscard", &["--offset", "1M", "--length", "1G", disk.name()]);
    let issued = tracker.to_copy().unwrap();
    assert_eq!(tracker.issued_now(&issued).unwrap().len(), 1 << 18);
    tracker.flip().unwrap();
    let taken = tracker.take().unwrap();
    assert_eq!(taken.len(), 1 << 18);
    assert!(taken.contains(lifeboat_replication::ids::DiskSlot(1), 256));
    assert_eq!(tracker.held().unwrap(), taken);
    assert_eq!(tracker.lost(), None);
}

#[test]
fn more_large_discards_than_the_table_holds_are_lost_with_the_reason() {
    let disk = Loop::new(320 << 30);
    let rig = Rig::new(&[&disk]);
    let mut tracker = rig.open();
    let all = tracker.to_copy().unwrap();
    tracker.copied(&all).unwrap();
    assert_eq!(tracker.copy_reason(), None);
    run("blkdiscard", &["--step", "256M", disk.name()]);
    let reason = tracker.lost().unwrap();
    assert!(reason.contains("large ranges"), "{reason}");
    tracker.flip().unwrap();
    tracker.take().unwrap();
    assert!(tracker.lost().is_some(), "it stays until everything is copied again");
    tracker.copy_all(&reason).unwrap();
    assert_eq!(tracker.lost(), None);
    assert_eq!(tracker.to_copy().unwrap(), all);
    assert_eq!(tracker.copy_reason(), Some(reason));
}
