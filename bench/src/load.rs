//! Disks with content, and writers.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use lifeboat_tests::rig::Loop;
use serde_json::Value;

/// Where disks of measurements stand: memory, so that no device is measured.
pub const TMPFS: &str = "/dev/shm";
const MIB: u64 = 1 << 20;

/// A disk of zeros whose memory is there.
pub fn zero_disk(mib: u64) -> Loop {
    let disk = Loop::within(Path::new(TMPFS), mib * MIB);
    let zeros = vec![0; MIB as usize];
    let mut file = disk.open(0);
    (0..mib).for_each(|_| file.write_all(&zeros).unwrap());
    file.sync_all().unwrap();
    disk
}

/// Half of each MiB cannot be compressed, half is text-like: about what zstd makes of file servers and databases.
pub fn mixed_disk(mib: u64) -> Loop {
    let disk = Loop::within(Path::new(TMPFS), mib * MIB);
    let mut random = File::open("/dev/urandom").unwrap();
    let words = ["account ", "balance=", "0042", "\n", "update ", "Berlin", "2026-11-", "null, "];
    let mut file = disk.open(0);
    let mut piece = vec![0; MIB as usize];
    for _ in 0..mib {
        random.read_exact(&mut piece).unwrap();
        let half = piece.len() / 2;
        let choices = piece[..half].to_vec();
        let mut at = half;
        for choice in choices {
            let word = words[usize::from(choice) % words.len()].as_bytes();
            let length = word.len().min(piece.len() - at);
            piece[at..at + length].copy_from_slice(&word[..length]);
            at += length;
        }
        file.write_all(&piece).unwrap();
    }
    file.sync_all().unwrap();
    disk
}

/// fio's random writes past the cache.
pub struct Fio<'a> {
    pub disk: &'a Loop,
    pub block_kib: u32,
    pub depth: u32,
    /// `None`: as fast as it goes.
    pub kib_per_second: Option<u32>,
    /// Some places are written far more often than others (Zipf, 1.1), as databases do.
    pub skewed: bool,
    pub time: Duration,
}

/// What fio measured.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    pub iops: f64,
    pub p99_micros: f64,
}

impl Fio<'_> {
    fn command(&self) -> Command {
        let mut fio = Command::new("fio");
        // As a thread, so that it ends with the process that is killed.
        fio.args([
            "--name=load",
            "--thread",
            "--rw=randwrite",
            "--direct=1",
            "--ioengine=libaio",
            "--time_based",
        ])
        // The first MiB is left to markers.
        .args(["--offset=1m", "--randrepeat=0", "--norandommap", "--refill_buffers", "--output-format=json"])
        .arg(format!("--filename={}", self.disk.name()))
        .arg(format!("--bs={}k", self.block_kib))
        .arg(format!("--iodepth={}", self.depth))
        .arg(format!("--runtime={}", self.time.as_secs()));
        if let Some(rate) = self.kib_per_second {
            fio.arg(format!("--rate={rate}k"));
        }
        if self.skewed {
            fio.arg("--random_distribution=zipf:1.1");
        }
        fio.stdin(Stdio::null());
        fio
    }

    /// Runs it to its end.
    pub fn run(&self) -> Written {
        let output = self.command().output().unwrap();
        assert!(output.status.success(), "fio: {}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let write = &report["jobs"][0]["write"];
        Written {
            iops: write["iops"].as_f64().unwrap(),
            p99_micros: write["clat_ns"]["percentile"]["99.000000"].as_f64().unwrap() / 1000.0,
        }
    }

    /// Runs it beside; it ends by itself after its time, or when dropped.
    pub fn start(&self) -> Running {
        Running(self.command().stdout(Stdio::null()).spawn().unwrap())
    }
}

pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
