//! A recovery point as a disk of this machine that can be written: `lifeboat-recovery serve` shows it by NBD, QEMU's
//! storage daemon shows that as a file (a kernel need not have an NBD client), a loop device makes a disk of the file.
//! Every read and write goes through the program, and what is written stays in its overlay.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{ChildStdout, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use lifeboat_replication::ids::ServerId;
use serde_json::Value;

use super::{
    process::{Process, command},
    run,
};
use crate::programs::program;

/// A point as the vault offers it.
#[derive(Debug, Clone)]
pub struct Offered {
    pub number: u64,
    /// In the process server's clock.
    pub t0_micros: i64,
    pub journal: bool,
    pub snapshot: bool,
}

/// What `lifeboat-recovery points` lists, oldest first.
pub fn offered(vault_config: &Path, server: &ServerId) -> Vec<Offered> {
    let recovery = program("lifeboat-recovery");
    let config = vault_config.to_str().unwrap();
    let list = run(
        recovery.to_str().unwrap(),
        &["points", "--json", "--vault-config", config, "--server", server.as_str()],
    );
    let list: Vec<Value> = serde_json::from_str(&list).unwrap();
    list.iter()
        .map(|point| Offered {
            number: point["number"].as_u64().unwrap(),
            t0_micros: point["t0Micros"].as_i64().unwrap(),
            journal: point["journal"].as_bool().unwrap(),
            snapshot: point["snapshot"].as_bool().unwrap(),
        })
        .collect()
}

/// A point that is served, and its only disk.
pub struct Served {
    // In this order: nobody reads the disk of a server that has ended.
    disk: Option<ShownDisk>,
    server: Option<Process>,
    /// Kept open: it says its figures there when it ends.
    output: Option<BufReader<ChildStdout>>,
    arguments: Vec<String>,
    number: u64,
    home: tempfile::TempDir,
}

impl Served {
    pub fn open(vault_config: &Path, server: &ServerId, number: u64) -> Self {
        let home = tempfile::Builder::new().prefix("lifeboat-served-").tempdir().unwrap();
        let folder = |name: &str| {
            let path = home.path().join(name);
            fs::create_dir(&path).unwrap();
            path.display().to_string()
        };
        let arguments = [
            ["--vault-config", vault_config.to_str().unwrap()],
            ["--server", server.as_str()],
            ["--point", &number.to_string()],
            ["--run", &format!("test-{server}-{number}")],
            ["--socket-dir", &folder("sockets")],
            ["--overlay-dir", &folder("overlays")],
            ["--cache-mib", "128"],
            ["--listen", "127.0.0.1:0"],
        ];
        let arguments = arguments.concat().into_iter().map(str::to_owned).collect();
        let mut served = Self { disk: None, server: None, output: None, arguments, number, home };
        served.start();
        served
    }

    /// The loop device.
    pub fn device(&self) -> &Path {
        &self.disk.as_ref().unwrap().device
    }

    /// The program killed, and started again as its pod would be; what was flushed to the disk must be there.
    pub fn kill_and_reopen(&mut self) {
        self.disk = None;
        self.server.as_mut().unwrap().kill();
        self.start();
    }

    fn start(&mut self) {
        let log = self.home.path().join("serve.log");
        let mut serve = command(None, &program("lifeboat-recovery"));
        serve.arg("serve").args(&self.arguments).stdout(Stdio::piped());
        serve.stderr(File::options().create(true).append(true).open(&log).unwrap());
        // It releases its pin when it is asked to end.
        let mut server = Process::start(serve, "-TERM");
        let mut output = BufReader::new(server.child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|_| {
            panic!("no point {} is served: {}", self.number, fs::read_to_string(&log).unwrap())
        });
        assert_eq!(ready["point"].as_u64(), Some(self.number), "{ready}");
        assert_eq!(ready["disks"].as_array().unwrap().len(), 1, "{ready}");
        self.server = Some(server);
        self.output = Some(output);
        self.disk = Some(ShownDisk::new(self.home.path(), ready["disks"][0]["socket"].as_str().unwrap()));
    }
}

struct ShownDisk {
    device: PathBuf,
    file: PathBuf,
    daemon: Option<Process>,
}

impl ShownDisk {
    fn new(home: &Path, socket: &str) -> Self {
        let (file, begun) = (home.join("disk"), home.join("daemon.pid"));
        _ = fs::remove_file(&begun);
        File::create(&file).unwrap();
        let mut daemon = command(None, Path::new("qemu-storage-daemon"));
        let node = format!("driver=nbd,node-name=disk,server.type=unix,server.path={socket},discard=unmap");
        daemon.args(["--blockdev", &node, "--export"]);
        daemon
            .arg(format!("type=fuse,id=disk,node-name=disk,mountpoint={},writable=on", file.display()))
            .arg("--pidfile")
            .arg(&begun);
        let mut daemon = Process::start(daemon, "-TERM");
        // Written when the exports stand.
        while !begun.exists() {
            assert!(daemon.runs(), "qemu-storage-daemon cannot show {socket} as a file: needs /dev/fuse");
            sleep(Duration::from_millis(10));
        }
        let device = run("losetup", &["--find", "--show", file.to_str().unwrap()]).into();
        Self { device, file, daemon: Some(daemon) }
    }
}

impl Drop for ShownDisk {
    fn drop(&mut self) {
        _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
        self.daemon = None;
        // Only there if the daemon had to be killed.
        _ = Command::new("umount").arg("--lazy").arg(&self.file).stderr(Stdio::null()).status();
    }
}
