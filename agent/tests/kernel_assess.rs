//! `assess` on a real disk: it counts exactly what changes, and leaves nothing behind.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real disks are written by real threads in real time")]

mod kernel_support;

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    os::unix::fs::FileExt as _,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use kernel_support::{Loop, Rig, discover, run};
use lifeboat_agent::{
    assess::{measurement::Measurement, report::SCHEMA},
    edge::DirtyMap as _,
    kernel::{DiskReader, Tracker},
};
use lifeboat_replication::env::Env;
use tokio::time::Instant;

const BLOCK: u64 = 4096;

/// Writes blocks past the cache; `random`: content that does not compress.
fn write(disk: &Loop, first: u64, blocks: u64, random: bool) {
    let mut content = vec![b'x'; (blocks * BLOCK) as usize];
    if random {
        Env::system().entropy.fill(&mut content);
    }
    disk.open(0).write_all_at(&content, first * BLOCK).unwrap();
    run("blockdev", &["--flushbufs", disk.name()]);
}

fn measurement(disk: &Loop, share: f64) -> Measurement {
    let disks = discover(&[disk]);
    let tracker = Tracker::unpinned("/sys".into(), Env::system().wall, &disks).unwrap();
    let reader = DiskReader::open(&disks).unwrap();
    Measurement::new(Box::new(tracker), Arc::new(reader), Duration::from_secs(1), share, 7)
}

/// Every file below /sys/fs/bpf, but for those of other tests.
fn pins() -> Vec<String> {
    let found = run("find", &["/sys/fs/bpf"]);
    found.lines().filter(|line| !line.contains("lifeboat-test")).map(str::to_owned).collect()
}

#[tokio::test]
async fn distinct_blocks_are_counted_exactly_and_written_bytes_beside_them() {
    let disk = Loop::new(64 << 20);
    let mut measurement = measurement(&disk, 0.0);
    write(&disk, 100, 1000, false);
    for _ in 0..3 {
        write(&disk, 100, 10, false);
    }
    assert_eq!(measurement.round().await.unwrap(), 1000 * BLOCK);
    write(&disk, 1095, 10, false);
    assert_eq!(measurement.round().await.unwrap(), 10 * BLOCK);
    assert_eq!(measurement.round().await.unwrap(), 0);
    let figures = measurement.figures();
    let one = &figures.disks[0];
    assert_eq!((one.changed_bytes, one.written_bytes), (1010 * BLOCK, 1040 * BLOCK));
    assert_eq!(figures.judged, 2, "two rounds had something to judge");
    assert!(figures.losses.is_empty(), "{:?}", figures.losses);
}

#[tokio::test]
async fn compression_and_use_of_the_disk_are_learned_from_samples() {
    let disk = Loop::new(64 << 20);
    // A quarter of the disk is used, half of that by what does not compress.
    write(&disk, 0, 2048, true);
    write(&disk, 8192, 2048, false);
    let mut measurement = measurement(&disk, 1.0);
    write(&disk, 0, 1024, true);
    measurement.round().await.unwrap();
    while !measurement.figures().content_complete {
        measurement.rest(Instant::now() + Duration::from_millis(500)).await;
        measurement.round().await.unwrap();
    }
    let figures = measurement.figures();
    assert_eq!(figures.content.used(), Some(0.25));
    let (changed, whole) = (figures.churn.ratio().unwrap(), figures.content.ratio().unwrap());
    assert!((0.99..1.02).contains(&changed), "random blocks compress to {changed}");
    assert!((0.12..0.14).contains(&whole), "an eighth of the disk is random: {whole}");
}

/// An agent's marks are its own: what `assess` takes is not taken from it.
#[tokio::test]
async fn an_agent_beside_it_misses_nothing() {
    let disk = Loop::new(64 << 20);
    let rig = Rig::new(&[&disk]);
    let mut agent = rig.open();
    let mut measurement = measurement(&disk, 0.0);
    write(&disk, 5, 3, false);
    assert_eq!(measurement.round().await.unwrap(), 3 * BLOCK);
    agent.flip().unwrap();
    assert_eq!(agent.take().unwrap().len(), 3);
    drop(measurement);
    write(&disk, 50, 2, false);
    agent.flip().unwrap();
    assert_eq!(agent.take().unwrap().len(), 2, "its tracking goes on when the other has ended");
}

/// The program, stopped by a signal: figures up to then, as JSON, and no trace in the kernel.
#[test]
fn the_program_prints_what_it_knows_when_it_is_interrupted() {
    let disk = Loop::new(64 << 20);
    let before = pins();
    let mut program = Command::new(env!("CARGO_BIN_EXE_lifeboat-agent"))
        .args(["assess", "--for", "1h", "--interval", "1s", "--progress", "1s", "--output", "json"])
        .args(["--include-disk", disk.name()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stderr.take().unwrap()).lines();
    let mut until = |what: &str| {
        let found = lines.by_ref().map(Result::unwrap).find(|line| line.contains(what));
        found.unwrap_or_else(|| panic!("it never said {what:?}"))
    };
    until("measuring 1 disk");
    until("of 1h");
    write(&disk, 10, 256, false);
    // Two more rounds, so that the one with the writes is over.
    until("of 1h");
    until("of 1h");
    assert_eq!(pins(), before, "nothing is pinned meanwhile");
    run("kill", &["-INT", &program.id().to_string()]);
    let output = program.wait_with_output().unwrap();
    assert!(output.status.success());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["schema"], SCHEMA);
    // Issued in one round and completed in the next, a block is of both.
    let changed = report["churn"]["changedBytes"].as_u64().unwrap() / BLOCK;
    assert!((256..=512).contains(&changed), "{changed} blocks");
    assert_eq!(report["measurement"]["complete"], false);
    assert!(report["server"]["tracking"].as_str().unwrap().starts_with("ebpf-"), "{report}");
    let notes = report["notes"].to_string();
    assert!(notes.contains("stopped after"), "{notes}");
    assert_eq!(pins(), before);
}

/// Killed, it cannot clean up: the kernel does. A new run finds nothing of it and counts as if it had never been.
#[test]
fn the_program_killed_leaves_nothing_in_the_kernel() {
    let disk = Loop::new(64 << 20);
    let before = pins();
    let mut program = Command::new(env!("CARGO_BIN_EXE_lifeboat-agent"))
        .args(["assess", "--for", "1h", "--interval", "1s", "--include-disk", disk.name()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(program.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("measuring 1 disk"), "{line}");
    let programs = programs_of(program.id());
    assert_eq!(programs.intersection(&loaded()).count(), 3, "three are loaded: {programs:?}");
    program.kill().unwrap();
    program.wait().unwrap();
    // The kernel unloads them after a grace period.
    let gone = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        loaded().is_disjoint(&programs)
    });
    assert!(gone, "still loaded: {programs:?}");
    assert_eq!(pins(), before);
}

/// Ids of the eBPF programs that a process holds open.
fn programs_of(process: u32) -> BTreeSet<u32> {
    let files = std::fs::read_dir(format!("/proc/{process}/fdinfo")).unwrap();
    let texts = files.filter_map(|file| std::fs::read_to_string(file.unwrap().path()).ok());
    let id = |text: String| {
        // A link's information names its program too.
        text.lines().find_map(|line| line.strip_prefix("prog_id:")).and_then(|id| id.trim().parse().ok())
    };
    texts.filter_map(id).collect()
}

fn loaded() -> BTreeSet<u32> {
    aya::programs::loaded_programs().filter_map(Result::ok).map(|program| program.id()).collect()
}
