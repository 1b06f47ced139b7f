//! Loop devices, file systems and trackers of one test each, cleaned up when dropped. Needs root.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use lifeboat_agent::{
    edge::{BlockSource as _, DirtyMap as _},
    kernel::{Discovery, Disk, DiskReader, Tracker, TrackerOptions, remove_pins},
};
use lifeboat_replication::{blocks::BlockSet, env::Env, ids::ServerId};

/// Runs a command to its end; its words are part of the failure.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| {
        panic!("{program} (apt-get install btrfs-progs xfsprogs fio util-linux): {error}")
    });
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A loop device over a sparse file.
pub struct Loop {
    pub path: PathBuf,
    file: tempfile::NamedTempFile,
}

impl Loop {
    pub fn new(bytes: u64) -> Self {
        Self::within(&std::env::temp_dir(), bytes)
    }

    /// With its file in `folder`.
    pub fn within(folder: &Path, bytes: u64) -> Self {
        assert_eq!(run("id", &["-u"]), "0", "this makes loop devices: run it as root");
        let file = tempfile::Builder::new().prefix("lifeboat-disk-").tempfile_in(folder).unwrap();
        file.as_file().set_len(bytes).unwrap();
        let path = run("losetup", &["--find", "--show", file.path().to_str().unwrap()]).into();
        Self { path, file }
    }

    /// The file that it stands on.
    pub fn file(&self) -> &Path {
        self.file.path()
    }

    pub fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// Everything on it, past the cache.
    pub fn content(&self) -> Vec<u8> {
        content(self)
    }

    pub fn open(&self, flags: i32) -> File {
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(&self.path).unwrap()
    }
}

impl AsRef<Path> for Loop {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

/// Everything on a disk, past the cache.
pub fn content(disk: impl AsRef<Path>) -> Vec<u8> {
    run("blockdev", &["--flushbufs", disk.as_ref().to_str().unwrap()]);
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(disk).unwrap();
    let length = file.seek(std::io::SeekFrom::End(0)).unwrap() as usize;
    file.rewind().unwrap();
    let mut buffer = vec![0; length + 4096];
    let start = buffer.as_ptr().align_offset(4096);
    file.read_exact(&mut buffer[start..start + length]).unwrap();
    buffer.drain(..start);
    buffer.truncate(length);
    buffer
}

/// A disk in memory whose driver takes bios, with statistics. Discovery refuses it for its sectors of 4 KiB; the tracker
/// does not mind those.
pub struct Zram {
    pub path: PathBuf,
    number: String,
}

impl Zram {
    pub fn new(bytes: u64) -> Self {
        let read = |path: &str| {
            std::fs::read_to_string(path)
                .unwrap_or_else(|error| panic!("{path}: {error} (needs CONFIG_ZRAM)"))
        };
        let number = read("/sys/class/zram-control/hot_add").trim().to_owned();
        let zram = Self { path: format!("/dev/zram{number}").into(), number };
        for (file, value) in [("disksize", bytes.to_string()), ("queue/iostats", "1".to_owned())] {
            std::fs::write(zram.sysfs().join(file), value).unwrap();
        }
        zram
    }

    pub fn sysfs(&self) -> PathBuf {
        format!("/sys/block/zram{}", self.number).into()
    }

    pub fn disk(&self) -> Disk {
        let read = |file: &str| std::fs::read_to_string(self.sysfs().join(file)).unwrap().trim().to_owned();
        let device = read("dev");
        let (major, minor) = device.split_once(':').unwrap();
        Disk {
            name: format!("zram{}", self.number),
            id: format!("zram-{}", self.number),
            size_bytes: read("size").parse::<u64>().unwrap() * 512,
            device: (major.parse::<u32>().unwrap() << 20) | minor.parse::<u32>().unwrap(),
            sequence: read("diskseq").parse().unwrap(),
            bio_based: true,
        }
    }
}

impl AsRef<Path> for Zram {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        // Readers that have just been dropped may still have it open.
        for _ in 0..50 {
            _ = std::fs::write(self.sysfs().join("reset"), "1");
            if std::fs::write("/sys/class/zram-control/hot_remove", &self.number).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

/// A file system mounted on a loop device.
pub struct Mounted {
    point: Option<tempfile::TempDir>,
}

impl Mounted {
    pub fn new(disk: impl AsRef<Path>, file_system: &str) -> Self {
        let name = disk.as_ref().to_str().unwrap();
        match file_system {
            "ext4" => run("mkfs.ext4", &["-q", "-F", name]),
            "xfs" => run("mkfs.xfs", &["-q", "-f", name]),
            "btrfs" => run("mkfs.btrfs", &["-q", "-f", name]),
            other => panic!("no such file system: {other}"),
        };
        Self::existing(disk.as_ref())
    }

    /// What stands on the device already.
    pub fn existing(device: &Path) -> Self {
        let point = tempfile::Builder::new().prefix("lifeboat-mount-").tempdir().unwrap();
        run("mount", &["-o", "discard", device.to_str().unwrap(), point.path().to_str().unwrap()]);
        Self { point: Some(point) }
    }

    pub fn path(&self) -> &Path {
        self.point.as_ref().unwrap().path()
    }

    pub fn unmount(mut self) {
        // A write that a freeze held up may only just be ending.
        let unmount =
            || Command::new("umount").arg(self.path()).stderr(Stdio::null()).status().unwrap().success();
        let unmounted = (0..50).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            unmount()
        });
        assert!(unmounted, "{} cannot be unmounted", self.path().display());
        drop(self.point.take());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(point) = &self.point {
            _ = Command::new("umount").arg("--lazy").arg(point.path()).status();
        }
    }
}

/// Where one test keeps its pins and state.
pub struct Rig {
    pub options: TrackerOptions,
    pub disks: Vec<Disk>,
    _state: tempfile::TempDir,
}

impl Rig {
    pub fn new(loops: &[&Loop]) -> Self {
        Self::of(discover(loops))
    }

    pub fn of(disks: Vec<Disk>) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let state = tempfile::tempdir().unwrap();
        let env = Env::system();
        let options = TrackerOptions {
            server: ServerId::from_random([7; 16]),
            pins: format!("/sys/fs/bpf/lifeboat-test-{}-{number}", std::process::id()).into(),
            state: state.path().to_owned(),
            sysfs: "/sys".into(),
            wall: env.wall,
            reboot: None,
        };
        Self { options, disks, _state: state }
    }

    pub fn open(&self) -> Tracker {
        Tracker::open(&self.options, &self.disks).unwrap()
    }

    pub fn pin_folder(&self) -> PathBuf {
        self.options.pins.join(self.options.server.as_str())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        _ = remove_pins(&self.options.pins);
    }
}

/// In the order of the loops given.
pub fn discover(loops: &[&Loop]) -> Vec<Disk> {
    let include: Vec<PathBuf> = loops.iter().map(|disk| disk.path.clone()).collect();
    let found = Discovery { include: include.clone(), ..Discovery::default() }.find().unwrap();
    assert_eq!(found.disks.len(), loops.len(), "{:?}", found.issues);
    let of = |path: &PathBuf| found.disks.iter().find(|disk| disk.path() == *path).unwrap().clone();
    include.iter().map(of).collect()
}

/// What a vault would hold of one disk: only what the tracker said had changed.
pub struct Mirror {
    pub content: Vec<u8>,
    reader: DiskReader,
    runtime: tokio::runtime::Runtime,
    pub blocks_read: u64,
}

impl Mirror {
    pub fn new(disk: &Disk) -> Self {
        Self {
            content: vec![0; disk.size_bytes.next_multiple_of(4096) as usize],
            reader: DiskReader::open(std::slice::from_ref(disk)).unwrap(),
            runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
            blocks_read: 0,
        }
    }

    pub fn read(&mut self, blocks: &BlockSet) {
        for run in blocks.runs(256) {
            let data = self.runtime.block_on(self.reader.read(run)).unwrap();
            let start = run.first as usize * 4096;
            self.content[start..start + data.len()].copy_from_slice(&data);
            self.blocks_read += u64::from(run.blocks);
        }
    }

    /// A round as the replicator makes it: flip, take, read, forget.
    pub fn round(&mut self, tracker: &mut Tracker) -> u64 {
        tracker.flip().unwrap();
        let taken = tracker.take().unwrap();
        self.read(&taken);
        tracker.forget(&taken).unwrap();
        taken.len()
    }

    /// Copies everything that is left to copy.
    pub fn copy(&mut self, tracker: &mut Tracker) {
        let blocks = tracker.to_copy().unwrap();
        self.read(&blocks);
        tracker.copied(&blocks).unwrap();
    }

    pub fn assert_equals(&self, disk: impl AsRef<Path>) {
        let source = content(disk);
        let different: Vec<usize> = source
            .chunks(4096)
            .zip(self.content.chunks(4096))
            .enumerate()
            .filter_map(|(block, (source, mirror))| (*source != mirror[..source.len()]).then_some(block))
            .collect();
        assert!(different.is_empty(), "{} blocks differ, the first is {}", different.len(), different[0]);
    }
}
