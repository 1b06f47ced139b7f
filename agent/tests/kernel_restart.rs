//! The agent may end at any moment: what the kernel has marked is found again, or it is said why not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real disks are written by real threads in real time")]

mod kernel_support;

use std::os::unix::fs::FileExt as _;

use kernel_support::{Loop, Mirror, Rig, run};
use lifeboat_agent::{edge::DirtyMap as _, kernel::Tracker};
use lifeboat_replication::{ids::ServerId, wire::v1};

fn write(disk: &Loop, block: u64) {
    disk.open(0).write_all_at(&[block as u8 + 1; 4096], block * 4096).unwrap();
    run("blockdev", &["--flushbufs", disk.name()]);
}

#[test]
fn nothing_is_lost_when_the_agent_ends_between_any_two_steps() {
    let disk = Loop::new(64 << 20);
    let rig = Rig::new(&[&disk]);
    let mut tracker = rig.open();
    let mut mirror = Mirror::new(&rig.disks[0]);
    // Half of the copy, then it ends.
    let mut half = tracker.to_copy().unwrap();
    let whole = half.len();
    half.subtract(&{
        let mut second = lifeboat_replication::blocks::BlockSet::default();
        second.insert_run(lifeboat_replication::blocks::BlockRun {
            disk: lifeboat_replication::ids::DiskSlot(1),
            first: 8192,
            blocks: 8192,
        });
        second
    });
    mirror.read(&half);
    tracker.copied(&half).unwrap();
    drop(tracker);
    // While no agent runs the kernel goes on marking.
    write(&disk, 1);
    let mut tracker = rig.open();
    assert_eq!(tracker.to_copy().unwrap().len(), whole - half.len());
    mirror.copy(&mut tracker);
    tracker.flip().unwrap();
    drop(tracker);
    // Flipped and not taken.
    write(&disk, 2);
    let mut tracker = rig.open();
    assert!(tracker.to_copy().unwrap().is_empty());
    let held = tracker.held().unwrap();
    assert_eq!(held.len(), 1);
    tracker.flip().unwrap();
    tracker.take().unwrap();
    drop(tracker);
    // Taken and not durable.
    let mut tracker = rig.open();
    let held = tracker.held().unwrap();
    assert_eq!(held.len(), 2);
    mirror.read(&held);
    tracker.forget(&held).unwrap();
    drop(tracker);
    let mut tracker = rig.open();
    assert!(tracker.held().unwrap().is_empty());
    // What may have been under way when the agent before ended is read once more, and nothing else.
    let again = mirror.round(&mut tracker);
    assert!(again <= 2, "{again}");
    assert_eq!((tracker.lost(), tracker.copy_reason()), (None, None));
    mirror.assert_equals(&disk);
}

#[test]
fn the_durable_mark_lives_as_long_as_the_marks() {
    let disk = Loop::new(64 << 20);
    let rig = Rig::new(&[&disk]);
    let mut tracker = rig.open();
    assert_eq!(tracker.durable_mark(), None);
    let mark = v1::DurableMark { number: 12, epoch: 3, chain: vec![7; 32] };
    tracker.set_durable_mark(&mark).unwrap();
    drop(tracker);
    assert_eq!(rig.open().durable_mark(), Some(mark));
    lifeboat_agent::kernel::remove_pins(&rig.pin_folder()).unwrap();
    assert_eq!(rig.open().durable_mark(), None);
}

#[test]
fn a_second_agent_is_refused_while_the_first_runs() {
    let disk = Loop::new(64 << 20);
    let rig = Rig::new(&[&disk]);
    let first = rig.open();
    let refused = Tracker::open(&rig.options, &rig.disks).err().unwrap().to_string();
    assert!(refused.contains("another agent") && refused.contains("stop it first"), "{refused}");
    drop(first);
    rig.open();
}

#[test]
fn the_first_copy_has_no_reason_and_later_full_copies_have_one() {
    let disk = Loop::new(64 << 20);
    let mut rig = Rig::new(&[&disk]);
    assert_eq!(rig.open().copy_reason(), None);
    // Pins removed, as by a restart of the machine.
    lifeboat_agent::kernel::remove_pins(&rig.pin_folder()).unwrap();
    let mut tracker = rig.open();
    assert_eq!(tracker.copy_reason().unwrap(), "TrackingLost: the pinned tracking maps were removed");
    assert_eq!(tracker.to_copy().unwrap().len(), (64 << 20) / 4096);
    drop(tracker);
    // Another boot.
    let state = rig.options.state.join("tracking");
    let text = "lifeboat-tracking 1\n".to_owned() + rig.options.server.as_str() + "\nanother boot\n";
    std::fs::write(&state, format!("{text}{:08x}\n", crc32c::crc32c(text.as_bytes()))).unwrap();
    lifeboat_agent::kernel::remove_pins(&rig.pin_folder()).unwrap();
    assert!(rig.open().copy_reason().unwrap().starts_with("UncleanShutdown: the server was restarted"));
    // The disk was taken away and another one came in its place.
    rig.disks[0].sequence += 1;
    assert!(rig.open().copy_reason().unwrap().contains("disks"));
    // Another server's pins are not touched, and its first copy is a first one.
    rig.options.server = ServerId::from_random([8; 16]);
    assert_eq!(rig.open().copy_reason(), None);
    lifeboat_agent::kernel::remove_pins(&rig.pin_folder()).unwrap();
    rig.options.server = ServerId::from_random([7; 16]);
}

#[test]
fn writes_to_other_disks_leave_no_mark() {
    let (disk, other) = (Loop::new(64 << 20), Loop::new(64 << 20));
    let rig = Rig::new(&[&disk]);
    let mut tracker = rig.open();
    write(&other, 1);
    assert_eq!(tracker.dirty_now().unwrap(), 0);
    write(&disk, 1);
    assert_eq!(tracker.dirty_now().unwrap(), 1);
}
