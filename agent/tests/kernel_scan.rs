//! Without any help of the kernel: what differs is found by reading, and only what stood still is called an instant.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real disks are written by real threads in real time")]

mod kernel_support;

use std::{
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use kernel_support::{Loop, Mounted, Rig, content, run};
use lifeboat_agent::{
    edge::{BlockSource, DirtyMap},
    kernel::{self, Tracked, Tracking},
};
use lifeboat_replication::blocks::BlockSet;

const DISK_BYTES: u64 = 384 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// What a vault would hold: only what was read for sending.
struct Server {
    map: Box<dyn DirtyMap>,
    source: Arc<dyn BlockSource>,
    mirror: Vec<u8>,
    runtime: tokio::runtime::Runtime,
}

impl Server {
    fn new(rig: &Rig) -> Self {
        let Tracked { map, source } = kernel::open(Tracking::Scan, &rig.options, &rig.disks).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Self { map, source, mirror: vec![0; rig.disks[0].size_bytes as usize], runtime }
    }

    fn read(&mut self, blocks: &BlockSet) {
        for run in blocks.runs(256) {
            let data = self.runtime.block_on(self.source.read(run)).unwrap();
            let start = run.first as usize * 4096;
            self.mirror[start..start + data.len()].copy_from_slice(&data);
        }
    }

    fn copy(&mut self) {
        let blocks = self.map.to_copy().unwrap();
        self.read(&blocks);
        self.map.copied(&blocks).unwrap();
    }

    fn round(&mut self) -> u64 {
        self.map.flip().unwrap();
        let taken = self.map.take().unwrap();
        self.read(&taken);
        self.map.forget(&taken).unwrap();
        taken.len()
    }

    /// Rounds until one is an instant, for as long as a pass and its rest may take many times over.
    fn rounds_until_it_stands(&mut self) {
        let began = Instant::now();
        loop {
            self.round();
            if self.map.stood() {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(300), "no pass has come to its end");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn differs_from(&self, disk: &Loop) -> Option<usize> {
        let source = content(disk);
        source.chunks(4096).zip(self.mirror.chunks(4096)).position(|(source, mirror)| source != mirror)
    }
}

fn write(disk: &Loop, block: u64, byte: u8) {
    disk.open(0).write_all_at(&[byte; 4096], block * 4096).unwrap();
    run("blockdev", &["--flushbufs", disk.name()]);
}

fn fio(folder: &Path) -> (Child, PathBuf) {
    let file = folder.join("file");
    let mut command = Command::new("fio");
    command.args(["--name=w", "--rw=randwrite", "--size=96m", "--time_based", "--runtime=300", "--rate=20m"]);
    command.args(["--bsrange=512-128k", "--ioengine=psync", "--fsync=64", "--randrepeat=0", "--thread"]);
    command.args(["--minimal", &format!("--filename={}", file.display())]);
    (command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap(), file)
}

/// The rung is what the kernel can do: here programs, and reading where it has no BTF (hidden from the agent).
#[test]
fn the_best_rung_is_taken_and_named() {
    let disk = Loop::new(16 << 20);
    let rig = Rig::new(&[&disk]);
    let Tracked { map, .. } = kernel::open(Tracking::Auto, &rig.options, &rig.disks).unwrap();
    assert!(map.tracking().starts_with("ebpf"), "{}", map.tracking());
    drop(map);
    let disks = format!("{} disks --include-disk {}", env!("CARGO_BIN_EXE_lifeboat-agent"), disk.name());
    let told = run("sh", &["-c", &disks]);
    assert!(told.contains("tracking: ebpf"), "{told}");
    let hidden = format!("mount -t tmpfs none /sys/kernel/btf && exec {disks}");
    let told = run("unshare", &["--mount", "--propagation", "private", "sh", "-c", &hidden]);
    assert!(told.contains("tracking: scan:") && told.contains("use a kernel with BTF"), "{told}");
}

/// Another rung than before knows nothing of what was sent: all is compared again, and no old marks are left.
#[test]
fn a_change_of_the_rung_compares_everything() {
    let disk = Loop::new(16 << 20);
    let rig = Rig::new(&[&disk]);
    let open = |tracking| kernel::open(tracking, &rig.options, &rig.disks).unwrap().map;
    for tracking in [Tracking::Ebpf, Tracking::Scan, Tracking::Ebpf] {
        let mut map = open(tracking);
        let all = map.to_copy().unwrap();
        assert_eq!(all.len(), (16 << 20) / 4096, "{tracking:?}");
        map.copied(&all).unwrap();
    }
    assert!(open(Tracking::Ebpf).to_copy().unwrap().is_empty(), "the same rung goes on");
}

fn mirrors(file_system: &str) {
    let disk = Loop::new(DISK_BYTES);
    let mounted = Mounted::new(&disk, file_system);
    let rig = Rig::new(&[&disk]);
    let mut server = Server::new(&rig);
    let (mut writer, file) = fio(mounted.path());
    std::thread::sleep(Duration::from_millis(500));
    server.copy();
    let (mut taken, mut rounds) = (0, 0);
    while taken < 5_000 || rounds < 3 {
        assert!(writer.try_wait().unwrap().is_none(), "fio ended after {rounds} rounds with {taken} blocks");
        let found = server.round();
        rounds += u64::from(found > 0);
        taken += found;
        std::thread::sleep(Duration::from_millis(200));
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
    std::fs::remove_file(file).unwrap();
    mounted.unmount();
    run("blockdev", &["--flushbufs", disk.name()]);
    server.rounds_until_it_stands();
    assert_eq!(server.differs_from(&disk), None);
    assert_eq!((server.map.dirty_now().unwrap(), server.map.in_flight()), (0, Some(0)));
    assert_eq!(server.map.tracking(), "scan");
}

#[test]
fn mirrors_ext4_under_buffered_writes() {
    mirrors("ext4");
}

#[test]
fn mirrors_xfs_under_buffered_writes() {
    mirrors("xfs");
}

#[test]
fn a_copy_of_a_quiet_disk_is_an_instant_until_somebody_writes() {
    let disk = Loop::new(16 << 20);
    let rig = Rig::new(&[&disk]);
    let mut server = Server::new(&rig);
    assert!(!server.map.stood(), "nothing was read yet");
    server.copy();
    assert!(server.map.stood());
    write(&disk, 700, 1);
    assert!(!server.map.stood());
    assert!(server.map.dirty_now().unwrap() > 0);
    assert_eq!(server.differs_from(&disk), Some(700));
    server.rounds_until_it_stands();
    assert_eq!(server.differs_from(&disk), None);
}

/// A copy during which somebody wrote is whole after a pass, and no instant before it.
#[test]
fn a_write_during_the_copy_is_found() {
    let disk = Loop::new(16 << 20);
    let rig = Rig::new(&[&disk]);
    let mut server = Server::new(&rig);
    let all = server.map.to_copy().unwrap();
    server.read(&all);
    write(&disk, 3, 9);
    server.map.copied(&all).unwrap();
    assert!(!server.map.stood());
    server.rounds_until_it_stands();
    assert_eq!(server.differs_from(&disk), None);
}

/// What was read for a comparison and is not owed to the vault does not count as being there.
#[test]
fn what_is_read_without_being_owed_is_found_by_the_next_pass() {
    let disk = Loop::new(16 << 20);
    let rig = Rig::new(&[&disk]);
    let mut server = Server::new(&rig);
    server.copy();
    write(&disk, 40, 5);
    let mirror = server.mirror.clone();
    let mut around = BlockSet::default();
    around.insert_run(lifeboat_replication::blocks::BlockRun {
        disk: lifeboat_replication::ids::DiskSlot(1),
        first: 0,
        blocks: 256,
    });
    server.read(&around);
    server.mirror = mirror;
    server.rounds_until_it_stands();
    assert_eq!(server.differs_from(&disk), None);
}

/// Under a freeze everything can be read and found, so a busy server has an instant as well.
#[test]
fn a_frozen_disk_under_load_is_an_instant() {
    let disk = Loop::new(DISK_BYTES);
    let mounted = Mounted::new(&disk, "ext4");
    let rig = Rig::new(&[&disk]);
    let mut server = Server::new(&rig);
    server.copy();
    let (mut writer, _) = fio(mounted.path());
    let began = Instant::now();
    while !server.map.may_stand(LIMIT) {
        assert!(began.elapsed() < Duration::from_secs(300), "no pass has come to its end");
        server.round();
        std::thread::sleep(Duration::from_millis(100));
    }
    let point = mounted.path().to_str().unwrap().to_owned();
    run("fsfreeze", &["--freeze", &point]);
    server.map.stand(LIMIT).unwrap();
    let taken = server.round();
    let (stood, differs) = (server.map.stood(), server.differs_from(&disk));
    let alive = writer.try_wait().unwrap().is_none();
    run("fsfreeze", &["--unfreeze", &point]);
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert!(alive && taken > 0, "fio writes");
    assert!(stood);
    assert_eq!(differs, None);
    mounted.unmount();
}
