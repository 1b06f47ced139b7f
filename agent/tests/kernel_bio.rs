//! A disk without a request queue is mirrored by its bios as one with requests is, alone and beside one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real disks are written by real threads in real time")]

mod kernel_support;

use std::{
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use kernel_support::{Loop, Mirror, Mounted, Rig, Zram, run};
use lifeboat_agent::{edge::DirtyMap as _, kernel::Tracker};
use lifeboat_replication::{blocks::BlockSet, ids::DiskSlot};

const DISK_BYTES: u64 = 384 << 20;

/// Random writes of several sizes until it is killed. (It ends by itself after five minutes.)
fn fio(target: &Path, direct: bool) -> Child {
    let mut command = Command::new("fio");
    command.args(["--name=w", "--rw=randwrite", "--size=160m", "--time_based", "--runtime=300"]);
    command.args(["--rate=40m", "--randrepeat=0", "--minimal", "--thread"]);
    if direct {
        command.args(["--direct=1", "--bsrange=4k-128k", "--ioengine=libaio", "--iodepth=16"]);
    } else {
        command.args(["--direct=0", "--bsrange=512-128k", "--ioengine=psync", "--fsync=64"]);
    }
    command.arg(format!("--filename={}", target.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

fn under_load(tracker: &mut Tracker, mirror: &mut Mirror, target: &Path, direct: bool) {
    let mut writer = fio(target, direct);
    std::thread::sleep(Duration::from_millis(300));
    mirror.copy(tracker);
    let (mut taken, mut rounds) = (0, 0);
    while taken < 10_000 || rounds < 20 {
        assert!(writer.try_wait().unwrap().is_none(), "fio ended after {rounds} rounds with {taken} blocks");
        taken += mirror.round(tracker);
        rounds += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
}

fn mirrors(file_system: Option<&str>, direct: bool) {
    let disk = Zram::new(DISK_BYTES);
    let mounted = file_system.map(|file_system| Mounted::new(&disk, file_system));
    let rig = Rig::of(vec![disk.disk()]);
    let mut tracker = rig.open();
    let mut mirror = Mirror::new(&rig.disks[0]);
    let target = mounted.as_ref().map_or(disk.path.clone(), |mounted| mounted.path().join("file"));
    under_load(&mut tracker, &mut mirror, &target, direct);
    if let Some(mounted) = mounted {
        // Deleting discards, which changes the disk without writing.
        std::fs::remove_file(&target).unwrap();
        mounted.unmount();
    }
    run("blockdev", &["--flushbufs", disk.path.to_str().unwrap()]);
    mirror.round(&mut tracker);
    assert_eq!(mirror.round(&mut tracker), 0, "nobody writes any more");
    assert_eq!(tracker.in_flight(), Some(0));
    assert_eq!(tracker.lost(), None);
    assert_eq!(tracker.tracking(), "ebpf-bio");
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
fn mirrors_xfs_under_direct_writes() {
    mirrors(Some("xfs"), true);
}

#[test]
fn mirrors_btrfs_under_buffered_writes() {
    mirrors(Some("btrfs"), false);
}

#[test]
fn mirrors_the_raw_disk_under_direct_writes() {
    mirrors(None, true);
}

/// The opposite: the comparison sees a write that was not taken.
#[test]
fn a_mirror_that_misses_a_round_differs() {
    let disk = Zram::new(16 << 20);
    let rig = Rig::of(vec![disk.disk()]);
    let mut tracker = rig.open();
    let mut mirror = Mirror::new(&rig.disks[0]);
    mirror.copy(&mut tracker);
    write(&disk.path, 2);
    let differs = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| mirror.assert_equals(&disk)));
    assert!(differs.is_err());
    assert_eq!(mirror.round(&mut tracker), 1);
    mirror.assert_equals(&disk);
}

fn write(path: &Path, block: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[1; 4096], block * 4096).unwrap();
    file.sync_all().unwrap();
}

/// One instant, one numbering: each disk by its own tracepoints, and no write of the one is taken for the other's.
#[test]
fn stands_beside_a_disk_with_requests() {
    let (bios, requests) = (Zram::new(16 << 20), Loop::new(16 << 20));
    let mut disks = vec![bios.disk()];
    disks.extend(kernel_support::discover(&[&requests]));
    let rig = Rig::of(disks);
    let mut tracker = rig.open();
    tracker.flip().unwrap();
    tracker.take().unwrap();
    write(&bios.path, 5);
    write(&requests.path, 7);
    tracker.flip().unwrap();
    let taken = tracker.take().unwrap();
    let blocks = |taken: &BlockSet, disk| -> Vec<u32> {
        taken.disk(DiskSlot(disk)).map(|blocks| blocks.iter().collect()).unwrap_or_default()
    };
    assert_eq!((blocks(&taken, 1), blocks(&taken, 2)), (vec![5], vec![7]));
}

/// The marks, the writes under way and the programs stay in the kernel without an agent.
#[test]
fn goes_on_after_the_agent_was_gone() {
    let disk = Zram::new(16 << 20);
    let rig = Rig::of(vec![disk.disk()]);
    let mut tracker = rig.open();
    let mut mirror = Mirror::new(&rig.disks[0]);
    mirror.copy(&mut tracker);
    drop(tracker);
    write(&disk.path, 9);
    let mut tracker = rig.open();
    assert_eq!(tracker.copy_reason(), None);
    assert!(tracker.to_copy().unwrap().is_empty(), "nothing is copied again");
    assert_eq!(mirror.round(&mut tracker), 1);
    mirror.assert_equals(&disk);
}
