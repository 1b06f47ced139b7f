//! What is frozen is thawed: by the agent in time, by the watchdog when the agent is slow or dead.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real disks are written by real threads in real time")]

mod kernel_support;

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use kernel_support::{Loop, Mounted, discover};
use lifeboat_agent::{
    edge::{FreezeError, Freezer as _},
    kernel::{KernelFreezer, watchdog},
};

const ROLE: &str = "LIFEBOAT_TEST_ROLE";

/// This test program started again in another role.
struct Process(Child);

impl Process {
    fn start(role: &str, arguments: &[(&str, &str)]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "plays_the_role_it_is_given", "--nocapture"]).env(ROLE, role);
        command.envs(arguments.iter().copied()).stdin(Stdio::null()).stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    fn watchdog(folder: &Path) -> Self {
        let socket = folder.join("thaw.sock");
        let process = Self::start("watchdog", &[("SOCKET", socket.to_str().unwrap())]);
        for _ in 0..200 {
            if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
                return process;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the watchdog does not listen");
    }

    fn wait_for(&mut self, word: &str) {
        let output = BufReader::new(self.0.stdout.as_mut().unwrap());
        assert!(output.lines().any(|line| line.unwrap().contains(word)), "ended without {word}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[test]
fn plays_the_role_it_is_given() {
    let variable = |name: &str| std::env::var(name).unwrap();
    match std::env::var(ROLE).as_deref() {
        Ok("watchdog") => watchdog::run(Path::new(&variable("SOCKET"))).unwrap(),
        Ok("agent") => {
            let include = vec![variable("DISK").into()];
            let found = lifeboat_agent::kernel::Discovery { include, ..Default::default() }.find().unwrap();
            let mut freezer =
                KernelFreezer::new(&found.disks, Path::new("/sys"), Path::new(&variable("SOCKET"))).unwrap();
            runtime().block_on(freezer.freeze(Duration::from_secs(30))).unwrap();
            println!("\nFROZEN");
            loop {
                std::thread::park();
            }
        }
        _ => {}
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

/// True when a write to this file system comes to its end within the time given.
fn can_write(mounted: &Mounted, within: Duration) -> bool {
    let file = mounted.path().join("written");
    let (done, result) = mpsc::channel();
    std::thread::spawn(move || done.send(std::fs::write(file, b"x").is_ok()));
    result.recv_timeout(within) == Ok(true)
}

struct Stage {
    disk: Loop,
    mounted: Option<Mounted>,
    folder: tempfile::TempDir,
}

impl Stage {
    fn new(file_system: &str) -> Self {
        let disk = Loop::new(512 << 20);
        let mounted = Some(Mounted::new(&disk, file_system));
        Self { disk, mounted, folder: tempfile::tempdir().unwrap() }
    }

    fn mounted(&self) -> &Mounted {
        self.mounted.as_ref().unwrap()
    }

    fn freezer(&self) -> KernelFreezer {
        KernelFreezer::new(&discover(&[&self.disk]), Path::new("/sys"), &self.folder.path().join("thaw.sock"))
            .unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A failed test must not leave a frozen file system behind.
        if let Some(mounted) = self.mounted.take() {
            _ = Command::new("fsfreeze").arg("--unfreeze").arg(mounted.path()).stderr(Stdio::null()).status();
            mounted.unmount();
        }
    }
}

#[test]
fn what_is_frozen_stands_still_until_it_is_thawed() {
    for file_system in ["ext4", "xfs"] {
        let stage = Stage::new(file_system);
        let _watchdog = Process::watchdog(stage.folder.path());
        let mut freezer = stage.freezer();
        let runtime = runtime();
        assert!(runtime.block_on(freezer.estimate()).is_some());
        runtime.block_on(freezer.write_back());
        let frozen = runtime.block_on(freezer.freeze(Duration::from_secs(20))).unwrap();
        assert_eq!(frozen.left_out, Vec::<String>::new());
        assert_eq!(freezer.not_freezable(), Vec::<String>::new());
        assert!(!can_write(stage.mounted(), Duration::from_millis(300)), "{file_system} is not frozen");
        let thawed = runtime.block_on(freezer.thaw());
        assert!(thawed.held_until_now, "{thawed:?}");
        assert!(thawed.longest >= Duration::from_millis(300), "{thawed:?}");
        assert!(can_write(stage.mounted(), Duration::from_secs(20)));
    }
}

#[test]
fn the_watchdog_thaws_when_the_limit_has_passed() {
    let stage = Stage::new("ext4");
    let _watchdog = Process::watchdog(stage.folder.path());
    let mut freezer = stage.freezer();
    let runtime = runtime();
    runtime.block_on(freezer.freeze(Duration::from_millis(1500))).unwrap();
    assert!(can_write(stage.mounted(), Duration::from_secs(20)), "the watchdog did not thaw");
    let thawed = runtime.block_on(freezer.thaw());
    assert!(!thawed.held_until_now, "the freeze was over before: nothing may be concluded from it");
    runtime.block_on(freezer.freeze(Duration::from_secs(20))).unwrap();
    assert!(runtime.block_on(freezer.thaw()).held_until_now, "the watchdog serves the next freeze");
}

#[test]
fn the_watchdog_thaws_when_the_agent_is_killed_while_frozen() {
    let stage = Stage::new("ext4");
    let _watchdog = Process::watchdog(stage.folder.path());
    let socket = stage.folder.path().join("thaw.sock");
    let mut agent =
        Process::start("agent", &[("SOCKET", socket.to_str().unwrap()), ("DISK", stage.disk.name())]);
    agent.wait_for("FROZEN");
    assert!(!can_write(stage.mounted(), Duration::from_millis(300)), "it is not frozen");
    agent.0.kill().unwrap();
    agent.0.wait().unwrap();
    assert!(can_write(stage.mounted(), Duration::from_secs(10)), "nobody thawed");
}

#[test]
fn a_freezer_that_is_dropped_thaws() {
    let stage = Stage::new("ext4");
    let _watchdog = Process::watchdog(stage.folder.path());
    let mut freezer = stage.freezer();
    runtime().block_on(freezer.freeze(Duration::from_secs(30))).unwrap();
    drop(freezer);
    assert!(can_write(stage.mounted(), Duration::from_secs(10)));
}

#[test]
fn nothing_is_frozen_without_a_watchdog() {
    let stage = Stage::new("ext4");
    let mut freezer = stage.freezer();
    let runtime = runtime();
    assert_eq!(runtime.block_on(freezer.estimate()), None);
    let refused = runtime.block_on(freezer.freeze(Duration::from_secs(5))).unwrap_err();
    assert!(matches!(refused, FreezeError::Watchdog { .. }), "{refused}");
    assert!(refused.to_string().contains("lifeboat-thaw.service"), "{refused}");
    assert!(can_write(stage.mounted(), Duration::from_secs(10)));
}

#[test]
fn a_disk_without_a_file_system_has_nothing_to_freeze() {
    let disk = Loop::new(64 << 20);
    let folder = tempfile::tempdir().unwrap();
    let _watchdog = Process::watchdog(folder.path());
    let mut freezer =
        KernelFreezer::new(&discover(&[&disk]), Path::new("/sys"), &folder.path().join("thaw.sock")).unwrap();
    let refused = runtime().block_on(freezer.freeze(Duration::from_secs(5))).unwrap_err();
    assert!(matches!(refused, FreezeError::NothingToFreeze { .. }), "{refused}");
}

/// A file system that only a container has mounted cannot be reached from here: the freeze proves nothing then.
#[test]
fn a_file_system_of_another_mount_namespace_is_named_as_left_out() {
    let (stage, hidden) = (Stage::new("ext4"), Loop::new(64 << 20));
    let device = hidden.name();
    let made = Command::new("mkfs.ext4").args(["-q", device]).status().unwrap();
    assert!(made.success());
    let folder = stage.folder.path().join("hidden");
    std::fs::create_dir(&folder).unwrap();
    let script = format!("mount {device} {} && echo MOUNTED && exec sleep 60", folder.display());
    let mut other = Process(
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    other.wait_for("MOUNTED");
    let _watchdog = Process::watchdog(stage.folder.path());
    let disks = discover(&[&stage.disk, &hidden]);
    let mut freezer =
        KernelFreezer::new(&disks, Path::new("/sys"), &stage.folder.path().join("thaw.sock")).unwrap();
    let runtime = runtime();
    let frozen = runtime.block_on(freezer.freeze(Duration::from_secs(20))).unwrap();
    assert!(runtime.block_on(freezer.thaw()).held_until_now);
    assert_eq!(frozen.left_out.len(), 1);
    assert!(frozen.left_out[0].contains("in the namespace of process"), "{frozen:?}");
}
