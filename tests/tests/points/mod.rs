//! Workloads that know their own order, and what a recovered point must hold of them.

#![allow(unreachable_pub, reason = "parts of one test")]

pub mod blocks;
pub mod files;
pub mod postgres;
pub mod writer;

use std::{ops::RangeInclusive, path::Path, sync::Mutex};

use lifeboat_tests::rig::{Mounted, Served, now, run};

/// A disk under load.
pub trait Workload: Send + Sync {
    fn name(&self) -> &'static str;

    /// When its records were issued and acknowledged.
    fn times(&self) -> &Times;

    /// No record is issued any more, the file system is unmounted.
    fn stop(&mut self);

    /// Judges a served point, whose newest record must be one of `allowed`: mounts it read-write, lets everything that
    /// runs on it recover as after a power cut, compares, writes to it, and checks the file system afterwards. With
    /// `kill` the server of the point is killed before that last check.
    /// Returns the newest record found.
    fn judge(&self, point: &mut Served, allowed: RangeInclusive<u64>, kill: bool) -> u64;
}

/// When each record was issued and acknowledged. They are numbered from 1, and none is issued before the one before it
/// is acknowledged.
#[derive(Debug, Default)]
pub struct Times(Mutex<Vec<(i64, Option<i64>)>>);

impl Times {
    /// Called before anything of the record is written; returns its number.
    pub fn issue(&self) -> u64 {
        let mut all = self.0.lock().unwrap();
        assert!(all.last().is_none_or(|(_, acknowledged)| acknowledged.is_some()));
        all.push((now(), None));
        all.len() as u64
    }

    /// Called when all of it is durable.
    pub fn acknowledge(&self) {
        self.0.lock().unwrap().last_mut().unwrap().1 = Some(now());
    }

    pub fn issued(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }

    /// How many had been issued by then.
    pub fn issued_by(&self, instant: i64) -> u64 {
        self.0.lock().unwrap().partition_point(|(issued, _)| *issued <= instant) as u64
    }

    /// How many had been acknowledged by then.
    pub fn acknowledged_by(&self, instant: i64) -> u64 {
        let by_then = |time: &(i64, Option<i64>)| time.1.is_some_and(|acknowledged| acknowledged <= instant);
        self.0.lock().unwrap().partition_point(by_then) as u64
    }
}

/// The file system's own check of what is not mounted. Nothing is mended: what is not clean fails.
pub fn check_file_system(file_system: &str, device: &Path) {
    let device = device.to_str().unwrap();
    run("blockdev", &["--flushbufs", device]);
    match file_system {
        "ext4" => run("e2fsck", &["-f", "-n", device]),
        "xfs" => run("xfs_repair", &["-n", device]),
        "btrfs" => run("btrfs", &["check", "--check-data-csum", device]),
        other => panic!("no check for {other}"),
    };
}

/// What a recovered file system is used for first.
const AFTERWARDS: &str = "written-after-recovery";

/// Mounts the point read-write, lets `judge` look at it, writes a file, unmounts, and checks the file system; then the
/// file must be there.
pub fn judge_mounted(
    file_system: &str,
    point: &mut Served,
    kill: bool,
    judge: impl FnOnce(&Path) -> u64,
) -> u64 {
    let mounted = Mounted::existing(point.device());
    let newest = judge(mounted.path());
    let content = vec![0x5a; 300_000];
    std::fs::write(mounted.path().join(AFTERWARDS), &content).unwrap();
    mounted.unmount();
    if kill {
        point.kill_and_reopen();
    }
    check_file_system(file_system, point.device());
    let mounted = Mounted::existing(point.device());
    let found = std::fs::read(mounted.path().join(AFTERWARDS)).unwrap();
    assert!(found == content, "what was written to the mounted point changed");
    mounted.unmount();
    newest
}

/// Whether a write of `new` over `old`, or a part of it, can have left `found`: each sector is of one of the two.
pub fn torn(found: &[u8], old: &[u8], new: &[u8]) -> bool {
    const SECTOR: usize = 512;
    let mut sectors = found.chunks(SECTOR).zip(old.chunks(SECTOR).zip(new.chunks(SECTOR)));
    found.len() == old.len()
        && old.len() == new.len()
        && sectors.all(|(found, (old, new))| found == old || found == new)
}

/// Whether writing `new` to the end of nothing, or a part of that, can have left `found`: what is not written yet is
/// missing or zero.
pub fn begun(found: &[u8], new: &[u8]) -> bool {
    found.len() <= new.len() && found.iter().zip(new).all(|(found, new)| found == new || *found == 0)
}
