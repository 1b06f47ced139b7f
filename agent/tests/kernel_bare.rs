//! Partitions without a file system beside mounted ones: found when somebody uses them, and not when nobody does.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real disks are written by real threads in real time")]

mod kernel_support;

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use kernel_support::{Loop, Mounted, discover, run};
use lifeboat_agent::{
    edge::Freezer as _,
    kernel::{KernelFreezer, watchdog},
};

/// Two partitions: one with a mounted ext4, one without anything.
struct Stage {
    disk: Loop,
    mounted: Option<Mounted>,
    folder: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let disk = Loop::new(256 << 20);
        let mut sfdisk = Command::new("sfdisk")
            .args(["--quiet", "--no-reread", "--no-tell-kernel", disk.name()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        sfdisk.stdin.take().unwrap().write_all(b"label: gpt\nsize=128MiB\nsize=64MiB\n").unwrap();
        assert!(sfdisk.wait().unwrap().success());
        run("partx", &["--add", disk.name()]);
        let mounted = Some(Mounted::new(partition(&disk, 1), "ext4"));
        Self { disk, mounted, folder: tempfile::tempdir().unwrap() }
    }

    fn bare(&self) -> PathBuf {
        partition(&self.disk, 2)
    }

    fn open_bare(&self) -> File {
        OpenOptions::new().write(true).open(self.bare()).unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("thaw.sock")
    }

    fn freezer(&self) -> KernelFreezer {
        KernelFreezer::new(&discover(&[&self.disk]), Path::new("/sys"), &self.socket()).unwrap()
    }
}

fn partition(disk: &Loop, number: u32) -> PathBuf {
    format!("{}p{number}", disk.name()).into()
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(mounted) = self.mounted.take() {
            _ = Command::new("fsfreeze").arg("--unfreeze").arg(mounted.path()).stderr(Stdio::null()).status();
            mounted.unmount();
        }
        _ = Command::new("partx").args(["--delete", self.disk.name()]).status();
    }
}

#[test]
fn a_partition_that_nobody_uses_is_not_in_the_way() {
    let stage = Stage::new();
    let reader = File::open(stage.bare()).unwrap();
    assert_eq!(stage.freezer().not_freezable(), Vec::<String>::new());
    drop(reader);
}

#[test]
fn one_that_a_process_may_write_to_is_named_with_the_process() {
    let stage = Stage::new();
    let freezer = stage.freezer();
    let open = stage.open_bare();
    let told = freezer.not_freezable();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with(stage.bare().to_str().unwrap()), "{told:?}");
    assert!(told[0].contains(&format!("process {}", std::process::id())), "{told:?}");
    drop(open);
    assert_eq!(freezer.not_freezable(), Vec::<String>::new());
}

#[test]
fn one_that_was_written_is_named_at_the_next_look() {
    let stage = Stage::new();
    let freezer = stage.freezer();
    let writer = stage.open_bare();
    writer.write_all_at(&[1; 4096], 0).unwrap();
    writer.sync_all().unwrap();
    drop(writer);
    let told = freezer.not_freezable();
    assert!(told.len() == 1 && told[0].contains("written without a mounted file system"), "{told:?}");
    assert_eq!(freezer.not_freezable(), Vec::<String>::new());
}

#[test]
fn swap_on_it_is_swap_and_nothing_else() {
    let stage = Stage::new();
    let bare = stage.bare();
    let bare = bare.to_str().unwrap();
    run("mkswap", &["--quiet", bare]);
    run("swapon", &[bare]);
    let told = stage.freezer().not_freezable();
    run("swapoff", &[bare]);
    assert_eq!(told, [format!("{bare} (swap)")]);
}

/// Nothing may be said of the whole when a part of it was written while the rest stood still.
#[test]
fn one_that_is_in_use_makes_a_freeze_prove_nothing() {
    let stage = Stage::new();
    let socket = stage.socket();
    let listens = socket.clone();
    // Ends with the test's process.
    std::thread::spawn(move || watchdog::run(&listens));
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut freezer = stage.freezer();
    let mut freeze = |write: bool| {
        let frozen = runtime.block_on(freezer.freeze(Duration::from_secs(20))).unwrap();
        if write {
            let writer = stage.open_bare();
            writer.write_all_at(&[2; 4096], 8192).unwrap();
            writer.sync_all().unwrap();
        }
        assert!(runtime.block_on(freezer.thaw()).held_until_now);
        (frozen.left_out, freezer.moved())
    };
    assert_eq!(freeze(false), (Vec::new(), Vec::new()));
    let (left_out, moved) = freeze(true);
    assert_eq!(left_out, Vec::<String>::new(), "nobody had used it by then");
    assert_eq!(moved, [format!("{} (written meanwhile)", stage.bare().display())]);
    let open = stage.open_bare();
    let (left_out, _) = freeze(false);
    assert!(left_out.len() == 1 && left_out[0].contains("writes to it"), "{left_out:?}");
    drop(open);
}
