//! Writes on a protected disk, and the proof at the end that nothing of them was lost.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
};

use super::{Mounted, Site, compare, run, site::Protected};

/// Random buffered writes with fsyncs until it is stopped.
pub struct Load(Child);

impl Load {
    pub fn start(file: &Path) -> Self {
        let mut fio = Command::new("fio");
        fio.args([
            // As a thread, so that it ends with the process that is killed.
            "--name=load",
            "--thread",
            "--rw=randwrite",
            "--bsrange=4k-64k",
            "--size=96m",
            "--time_based",
            "--runtime=3600",
        ])
        .args(["--ioengine=psync", "--fsync=32", "--rate=2m", "--randrepeat=0"])
        .arg(format!("--filename={}", file.display()));
        Self(fio.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    pub fn stop(mut self) {
        assert_eq!(self.0.try_wait().unwrap(), None, "fio ended by itself");
        let pid = self.0.id().to_string();
        run("kill", &["-INT", &pid]);
        self.0.wait().unwrap();
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Data that cannot be compressed, so that the first copy has something to do.
pub fn fill(file: &Path, bytes: u64) {
    let mut file = File::create(file).unwrap();
    let mut random = File::open("/dev/urandom").unwrap().take(bytes);
    std::io::copy(&mut random, &mut file).unwrap();
    file.flush().unwrap();
    file.sync_all().unwrap();
}

/// Ends the load and waits for one more round: every sector of the first server's disk is the same in the point read
/// through the block index and on the seed disk, and nothing was copied again.
pub fn assert_nothing_lost(site: &Site, load: Load, mounted: Mounted) {
    assert_nothing_lost_on(site, &site.servers[0], load, mounted);
}

/// The same for any server; the number of the last record.
pub fn assert_nothing_lost_on(site: &Site, server: &Protected, load: Load, mounted: Mounted) -> u64 {
    load.stop();
    mounted.unmount();
    run("blockdev", &["--flushbufs", server.disk.name()]);
    let records = compare::settled_on(site, server);
    compare::assert_same_on(site, server, &records);
    let last = records.last().unwrap().number;

    let complete = records.iter().position(|record| record.complete).unwrap();
    assert!(records[complete..].iter().all(|record| record.complete), "something was copied again");
    let log = server.agent.log();
    let again: Vec<&str> = sessions(&log).filter(|line| !line.contains(r#""full_copy":"""#)).collect();
    assert!(again.is_empty(), "a session had to copy everything again: {again:?}");
    assert!(!log.contains("tracking was lost"), "{log}");
    last
}

/// Where an agent's log says that a session begins.
pub fn sessions(log: &str) -> impl Iterator<Item = &str> {
    log.lines().filter(|line| line.contains("session begins"))
}
