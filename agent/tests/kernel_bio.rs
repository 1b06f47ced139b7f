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

/// Four writers at once past every cache, until told to end.
fn write_at_random(path: &Path, size: u64, end: &std::sync::atomic::AtomicBool) {
    use std::{os::unix::fs::OpenOptionsExt as _, sync::atomic::Ordering::SeqCst};
    std::thread::scope(|scope| {
        for writer in 1..=4_u64 {
            scope.spawn(move || {
                let file =
                    std::fs::OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
                let mut buffer = vec![0; 65_536 + 4096];
                let start = buffer.as_ptr().align_offset(4096);
                let mut state = writer;
                while !end.load(SeqCst) {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let length = 4096 * (1 + (state >> 40) as usize % 16);
                    let block = (state >> 33) % ((size - 65_536) / 4096);
                    let content = &mut buffer[start..start + length];
                    content.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&state.to_le_bytes()));
                    file.write_all_at(content, block * 4096).unwrap();
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
        }
    });
}

/// For machines that have such disks; whatever is on it is overwritten.
#[test]
#[ignore = "set LIFEBOAT_TEST_DISK to an md array or a multipath map that may be overwritten"]
fn mirrors_a_disk_that_is_named() {
    let path = std::path::PathBuf::from(std::env::var("LIFEBOAT_TEST_DISK").unwrap());
    let found = lifeboat_agent::kernel::Discovery { include: vec![path.clone()], ..Default::default() }
        .find()
        .unwrap();
    assert!(found.disks.len() == 1 && found.disks[0].bio_based, "{found:?}");
    let rig = Rig::of(found.disks);
    let mut tracker = rig.open();
    let mut mirror = Mirror::new(&rig.disks[0]);
    let end = std::sync::atomic::AtomicBool::new(false);
    let size = rig.disks[0].size_bytes;
    std::thread::scope(|scope| {
        scope.spawn(|| write_at_random(&path, size, &end));
        mirror.copy(&mut tracker);
        let mut under_way = 0;
        for _ in 0..40 {
            mirror.round(&mut tracker);
            under_way = under_way.max(tracker.in_flight().unwrap());
            std::thread::sleep(Duration::from_millis(100));
        }
        end.store(true, std::sync::atomic::Ordering::SeqCst);
        println!("{}: {} blocks read, up to {under_way} under way", path.display(), mirror.blocks_read);
    });
    run("blkdiscard", &["--force", "--length", "1M", path.to_str().unwrap()]);
    mirror.round(&mut tracker);
    assert_eq!(mirror.round(&mut tracker), 0, "nobody writes any more");
    assert_eq!((tracker.in_flight(), tracker.lost()), (Some(0), None));
    assert_eq!(tracker.tracking(), "ebpf-bio");
    mirror.assert_equals(&path);
}
