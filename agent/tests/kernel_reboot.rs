//! An orderly restart of the machine, played on one kernel: the pins go and the boot has another name, as a new kernel
//! would have it. Only that the initramfs starts the early tracker is left to the end-to-end suite.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real disks are written by real threads in real time")]

mod kernel_support;

use std::{
    fs,
    os::unix::fs::{FileExt as _, symlink},
    path::{Path, PathBuf},
};

use kernel_support::{Loop, Mirror, Mounted, Rig, run};
use lifeboat_agent::{
    edge::DirtyMap as _,
    kernel::{Discovery, RebootPlaces, Tracker, reboot, remove_pins},
};
use lifeboat_replication::{env::Env, wire::v1};

const SIZE: u64 = 64 << 20;
/// The smallest on which XFS is made.
const XFS_SIZE: u64 = 320 << 20;

/// A server whose protected disk holds the agent's state, as most do.
struct Server {
    disk: Loop,
    rig: Rig,
    mirror: Mirror,
    folder: tempfile::TempDir,
    boot: u32,
}

impl Server {
    /// Everything is durable but what happens from here on.
    fn new() -> Self {
        Self::on("ext4").0
    }

    /// With a disk that is large enough for this file system; and its blocks.
    fn on(file_system: &str) -> (Self, u64) {
        let size = if file_system == "xfs" { XFS_SIZE } else { SIZE };
        let disk = Loop::new(size);
        let mut rig = Rig::new(&[&disk]);
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("boot")).unwrap();
        fs::write(folder.path().join("boot/vmlinuz"), "").unwrap();
        let (run, boot_id) = (folder.path().join("run"), folder.path().join("boot_id"));
        fs::write(&boot_id, "boot 0").unwrap();
        rig.options.reboot =
            Some(RebootPlaces { run, boot_id, root: folder.path().into(), ..RebootPlaces::default() });
        let mirror = Mirror::new(&rig.disks[0]);
        (Self { disk, rig, mirror, folder, boot: 0 }, size / 4096)
    }

    fn places(&self) -> RebootPlaces {
        self.rig.options.reboot.clone().unwrap()
    }

    /// The agent's start, with its state on the mounted disk.
    fn start(&mut self, mounted: &Mounted) -> Tracker {
        self.rig.options.state = mounted.path().join("state");
        fs::create_dir_all(&self.rig.options.state).unwrap();
        self.rig.open()
    }

    /// Replicates until all is durable, which the mark says.
    fn catch_up(&mut self, tracker: &mut Tracker) {
        run("sync", &[]);
        self.mirror.copy(tracker);
        self.mirror.round(tracker);
        tracker.set_durable_mark(&v1::DurableMark { number: 7, epoch: 1, chain: vec![1; 32] }).unwrap();
        tracker.set_sent(8).unwrap();
    }

    fn save(&self) -> Result<usize, String> {
        let options = reboot::SaveOptions {
            state: self.rig.options.state.clone(),
            pins: self.rig.options.pins.clone(),
            places: self.places(),
            sysfs: "/sys".into(),
            boot: self.folder.path().join("boot"),
            fstab: self.folder.path().join("fstab"),
            disk_names: self.folder.path().join("disk"),
            wall: Env::system().wall,
        };
        reboot::save(&options).map_err(|error| error.to_string())
    }

    /// The last steps of a shutdown: read-only, saved, power off. What an unmount here would still write (XFS does) is
    /// undone.
    fn shut_down(&self, mounted: Mounted) -> Result<usize, String> {
        run("mount", &["-o", "remount,ro", mounted.path().to_str().unwrap()]);
        let saved = self.save();
        let left = self.disk.content();
        mounted.unmount();
        self.put_back(&left);
        saved
    }

    fn put_back(&self, content: &[u8]) {
        let now = self.disk.content();
        let file = self.disk.open(libc::O_SYNC);
        for (number, (block, now)) in content.chunks(4096).zip(now.chunks(4096)).enumerate() {
            if block != now {
                file.write_all_at(block, number as u64 * 4096).unwrap();
            }
        }
    }

    /// Another kernel: nothing pinned, nothing in /run.
    fn power(&mut self) {
        remove_pins(&self.rig.options.pins).unwrap();
        _ = fs::remove_dir_all(self.places().run);
        self.boot += 1;
        fs::write(self.places().boot_id, format!("boot {}", self.boot)).unwrap();
    }

    /// What the initramfs does. The kernel's count of writes is that of a disk that it has just found.
    fn early(&self, writes: u64) {
        let name = self.disk.name().trim_start_matches("/dev/");
        let sysfs = tempfile::tempdir().unwrap();
        let (of, folder) = (Path::new("/sys/block").join(name), sysfs.path().join("block").join(name));
        fs::create_dir_all(&folder).unwrap();
        for file in
            fs::read_dir(of).unwrap().map(|file| file.unwrap()).filter(|file| file.file_name() != "stat")
        {
            symlink(file.path(), folder.join(file.file_name())).unwrap();
        }
        fs::write(folder.join("stat"), format!("9 0 9 0 {writes} 0 0 0 0 0 0 0 0 0 0 0 0\n")).unwrap();
        let discovery = Discovery {
            sysfs: sysfs.path().to_owned(),
            include: vec![PathBuf::from(self.disk.name())],
            ..Discovery::default()
        };
        reboot::early(&discovery, &self.rig.options.pins, &self.places()).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = remove_pins(&self.rig.options.pins);
    }
}

fn write(mounted: &Mounted, name: &str) {
    fs::write(mounted.path().join(name), vec![name.len() as u8; 100_000]).unwrap();
}

#[test]
fn an_orderly_restart_needs_no_comparison_and_loses_nothing() {
    orderly("ext4");
}

#[test]
fn an_orderly_restart_with_xfs_needs_none_either() {
    orderly("xfs");
}

fn orderly(file_system: &str) {
    let (mut server, blocks) = Server::on(file_system);
    let mounted = Mounted::new(&server.disk, file_system);
    let mut tracker = server.start(&mounted);
    server.catch_up(&mut tracker);
    write(&mounted, "written and taken");
    run("sync", &[]);
    tracker.flip().unwrap();
    tracker.take().unwrap();
    drop(tracker);
    write(&mounted, "written when no agent ran");
    server.shut_down(mounted).unwrap();
    server.power();
    server.early(0);
    let mounted = Mounted::existing(&server.disk.path);
    write(&mounted, "written before the agent ran");
    let mut tracker = server.start(&mounted);
    assert_eq!((tracker.copy_reason(), tracker.to_copy().unwrap().len()), (None, 0));
    assert_eq!(tracker.durable_mark().map(|mark| mark.number), Some(7));
    assert_eq!(tracker.sent(), Some(8));
    write(&mounted, "written after");
    run("sync", &[]);
    // What was held and what is marked is all that the vault lacks: the image's own blocks are among it.
    let held = tracker.held().unwrap();
    assert!(held.len() < blocks / 2, "{} blocks", held.len());
    server.mirror.read(&held);
    server.mirror.round(&mut tracker);
    drop(tracker);
    mounted.unmount();
    let mut tracker = server.rig.open();
    server.mirror.round(&mut tracker);
    server.mirror.assert_equals(&server.disk);
}

#[test]
fn what_was_saved_is_believed_once() {
    let mut server = Server::new();
    let mounted = Mounted::new(&server.disk, "ext4");
    let mut tracker = server.start(&mounted);
    server.catch_up(&mut tracker);
    drop(tracker);
    server.shut_down(mounted).unwrap();
    server.power();
    server.early(0);
    let mounted = Mounted::existing(&server.disk.path);
    drop(server.start(&mounted));
    // The power goes: nothing is saved at this end.
    mounted.unmount();
    server.power();
    server.early(0);
    let mounted = Mounted::existing(&server.disk.path);
    let mut tracker = server.start(&mounted);
    let reason = tracker.copy_reason().unwrap();
    assert!(reason.starts_with("UncleanShutdown: ") && reason.contains("lost power"), "{reason}");
    assert_eq!(tracker.to_copy().unwrap().len(), SIZE / 4096);
}

#[test]
fn a_system_that_mounted_the_disk_in_between_is_noticed() {
    for (file_system, writes) in [("ext4", true), ("ext4", false), ("xfs", true), ("xfs", false)] {
        mounted_in_between(file_system, Some(writes));
        mounted_in_between(file_system, None);
    }
}

/// It writes a file or nothing, and leaves in order; or (`None`) it loses power right after it has mounted.
fn mounted_in_between(file_system: &str, writes: Option<bool>) {
    let (mut server, blocks) = Server::on(file_system);
    let mounted = Mounted::new(&server.disk, file_system);
    let mut tracker = server.start(&mounted);
    server.catch_up(&mut tracker);
    drop(tracker);
    server.shut_down(mounted).unwrap();
    server.power();
    let elsewhere = Mounted::existing(&server.disk.path);
    match writes {
        Some(writes) => {
            if writes {
                write(&elsewhere, "rescue");
            }
            elsewhere.unmount();
        }
        None => {
            // What the disk holds now, when nothing was written back that need not be.
            let crashed = server.disk.content();
            elsewhere.unmount();
            server.put_back(&crashed);
        }
    }
    server.early(0);
    let mounted = Mounted::existing(&server.disk.path);
    let mut tracker = server.start(&mounted);
    let reason = tracker.copy_reason().unwrap();
    assert!(reason.starts_with("ChangedWhileDown: "), "{reason}");
    assert_eq!(tracker.to_copy().unwrap().len(), blocks);
}

#[test]
fn without_an_early_tracker_or_with_one_that_began_late_all_is_compared() {
    for (early, words) in [(None, "no tracker ran"), (Some(3), "was written before")] {
        let mut server = Server::new();
        let mounted = Mounted::new(&server.disk, "ext4");
        let mut tracker = server.start(&mounted);
        server.catch_up(&mut tracker);
        drop(tracker);
        server.shut_down(mounted).unwrap();
        server.power();
        if let Some(writes) = early {
            server.early(writes);
        }
        let mounted = Mounted::existing(&server.disk.path);
        let mut tracker = server.start(&mounted);
        let reason = tracker.copy_reason().unwrap();
        assert!(reason.starts_with("EarlyTrackerMissing: ") && reason.contains(words), "{reason}");
        assert_eq!(tracker.to_copy().unwrap().len(), SIZE / 4096);
    }
}

#[test]
fn a_file_system_that_stays_mounted_for_writing_is_never_written_past() {
    let mut server = Server::new();
    let mounted = Mounted::new(&server.disk, "ext4");
    let mut tracker = server.start(&mounted);
    server.catch_up(&mut tracker);
    drop(tracker);
    let refused = server.save().unwrap_err();
    assert!(refused.contains("still mounted for writing"), "{refused}");
    let mut tracker = server.rig.open();
    assert_eq!(tracker.dirty_now().unwrap(), 0, "something was written");
}

#[test]
fn changes_that_were_missed_before_are_not_forgotten_over_a_restart() {
    let mut server = Server::new();
    let mounted = Mounted::new(&server.disk, "ext4");
    let mut tracker = server.start(&mounted);
    server.catch_up(&mut tracker);
    drop(tracker);
    // Beyond the end that the tracker knows: as if the disk had grown.
    let file = std::fs::OpenOptions::new().write(true).open(server.disk.file()).unwrap();
    file.set_len(SIZE + 4096).unwrap();
    run("losetup", &["--set-capacity", server.disk.name()]);
    server.disk.open(libc::O_DIRECT | libc::O_SYNC).write_all_at(aligned(), SIZE).unwrap();
    file.set_len(SIZE).unwrap();
    run("losetup", &["--set-capacity", server.disk.name()]);
    let refused = server.shut_down(mounted).unwrap_err();
    assert!(refused.contains("DiskResized"), "{refused}");
    server.power();
    server.early(0);
    let mounted = Mounted::existing(&server.disk.path);
    let reason = server.start(&mounted).copy_reason().unwrap();
    assert!(reason.contains("could not be saved") && reason.contains("grown"), "{reason}");
}

/// A block for O_DIRECT.
fn aligned() -> &'static [u8] {
    #[repr(align(4096))]
    struct Block([u8; 4096]);
    static BLOCK: Block = Block([1; 4096]);
    &BLOCK.0
}
