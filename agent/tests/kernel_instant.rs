//! A flip is one instant for all disks, and what is written after it is told apart from what was written before.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real disks are written by real threads in real time")]

mod kernel_support;

use std::{
    os::unix::fs::FileExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use kernel_support::{Loop, Rig};
use lifeboat_agent::edge::DirtyMap as _;
use lifeboat_replication::{
    blocks::{BlockRun, BlockSet},
    ids::DiskSlot,
};

#[repr(align(4096))]
struct Page([u8; 4096]);

/// Two threads write in turn, each to a disk of its own, each only after the other's write was acknowledged. What the
/// flips separate must never hold a write without the one that it waited for.
#[test]
fn no_flip_comes_between_a_write_and_the_one_it_depends_on() {
    let loops = [Loop::new(256 << 20), Loop::new(256 << 20)];
    let rig = Rig::new(&[&loops[0], &loops[1]]);
    let mut tracker = rig.open();
    let acknowledged = Arc::new(AtomicU32::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let (to_second, second) = mpsc::channel();
    let (to_first, first) = mpsc::channel();
    let writers: Vec<_> = [(&loops[0], first, to_second), (&loops[1], second, to_first.clone())]
        .into_iter()
        .map(|(disk, turn, next)| {
            let (file, acknowledged, stop) = (disk.open(libc::O_DIRECT), acknowledged.clone(), stop.clone());
            std::thread::spawn(move || {
                let page = Page([1; 4096]);
                while let Ok(number) = turn.recv() {
                    if stop.load(SeqCst) {
                        return;
                    }
                    file.write_all_at(&page.0, u64::from(number / 2) * 4096).unwrap();
                    acknowledged.store(number + 1, SeqCst);
                    _ = next.send(number + 1);
                }
            })
        })
        .collect();
    to_first.send(0_u32).unwrap();
    let mut seen = BlockSet::default();
    let mut flips = 0;
    while acknowledged.load(SeqCst) < 30_000 && flips < 400 {
        let before = acknowledged.load(SeqCst);
        tracker.flip().unwrap();
        let taken = tracker.take().unwrap();
        seen.union(&taken);
        flips += 1;
        // Write n went to block n / 2 of disk 1 (even) or 2 (odd): what was seen must be 0 to some n, without a gap.
        let count = |disk| seen.disk(DiskSlot(disk)).map_or(0, |blocks| u64::from(blocks.max().unwrap()) + 1);
        let (even, odd) = (count(1), count(2));
        assert_eq!(seen.len(), even + odd, "flip {flips}: a gap before {even}, {odd}");
        assert!(even == odd || even == odd + 1, "flip {flips}: {even} writes of disk 1, {odd} of disk 2");
        assert!(even + odd >= u64::from(before), "flip {flips}: {before} were acknowledged before it");
        std::thread::sleep(Duration::from_millis(5));
    }
    stop.store(true, SeqCst);
    drop(to_first);
    for writer in writers {
        writer.join().unwrap();
    }
    assert!(flips > 20, "only {flips} flips");
}

#[test]
fn a_block_written_again_after_the_flip_is_named() {
    let disk = Loop::new(64 << 20);
    let rig = Rig::new(&[&disk]);
    let mut tracker = rig.open();
    let file = disk.open(libc::O_DIRECT);
    let page = Page([1; 4096]);
    for block in [3, 4, 5] {
        file.write_all_at(&page.0, block * 4096).unwrap();
    }
    tracker.flip().unwrap();
    let taken = tracker.take().unwrap();
    assert_eq!(taken.len(), 3);
    assert!(tracker.issued_now(&taken).unwrap().is_empty());
    assert_eq!(tracker.dirty_now().unwrap(), 0);
    file.write_all_at(&page.0, 4 * 4096).unwrap();
    file.write_all_at(&page.0, 9 * 4096).unwrap();
    let mut again = BlockSet::default();
    again.insert_run(BlockRun { disk: DiskSlot(1), first: 4, blocks: 1 });
    assert_eq!(tracker.issued_now(&taken).unwrap(), again);
    assert_eq!(tracker.dirty_now().unwrap(), 2);
    // The way for large sets finds the same.
    let mut large = taken;
    large.insert_run(BlockRun { disk: DiskSlot(1), first: 100, blocks: 1 << 17 });
    assert_eq!(tracker.issued_now(&large).unwrap(), again);
}

#[test]
fn marks_of_a_flip_that_was_not_taken_come_with_the_next_take() {
    let disk = Loop::new(64 << 20);
    let rig = Rig::new(&[&disk]);
    let mut tracker = rig.open();
    let file = disk.open(libc::O_DIRECT);
    let page = Page([1; 4096]);
    for block in 0..4 {
        file.write_all_at(&page.0, block * 4096).unwrap();
        tracker.flip().unwrap();
    }
    assert_eq!(tracker.take().unwrap().len(), 4);
    assert!(tracker.take().unwrap().is_empty());
}
