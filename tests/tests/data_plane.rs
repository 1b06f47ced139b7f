//! The data plane on real parts: agent with its kernel tracker, process server and applier as programs, Azurite, a
//! block device with a file system under load. Whatever is killed or cut off, in the first copy and in rounds: when
//! the writes stop and one more round is committed, the seed disk equals the source, sector for sector, and nothing
//! was copied again.
//!
//! Needs root, loop devices, fio and eBPF.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real programs run in real time")]

use std::{
    fs::File,
    io::{Read as _, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use lifeboat_tests::rig::{Loop, Mode, Mounted, Site, SiteOptions, now, point, run};

const DISK_BYTES: u64 = 640 << 20;
/// Of data that cannot be compressed, so that the first copy has something to do.
const FILLED_BYTES: u64 = 320 << 20;
/// While the first copy is under way; slow enough that every fault falls into it.
const COPY_BYTES_PER_SECOND: u64 = 8 << 20;

#[derive(Debug, Clone, Copy)]
enum Fault {
    AgentKilled,
    ProcessServerKilled,
    ApplierKilled,
    StoreStopped,
    StoreRefused,
    /// Longer than a call waits: what was sent arrives after it was given up.
    StoreSilent,
}

const FAULTS: [Fault; 6] = [
    Fault::AgentKilled,
    Fault::StoreRefused,
    Fault::ApplierKilled,
    Fault::StoreSilent,
    Fault::ProcessServerKilled,
    Fault::StoreStopped,
];

fn strike(site: &mut Site, fault: Fault) {
    println!("{fault:?} at record {}", site.records().len());
    // Long enough for writes and messages to run into it.
    let a_while = Duration::from_secs(3);
    let program = match fault {
        Fault::AgentKilled => &mut site.servers[0].agent,
        Fault::ProcessServerKilled => &mut site.process_server,
        Fault::ApplierKilled => site.applier.as_mut().unwrap(),
        Fault::StoreStopped => {
            let store = site.store.as_ref().unwrap();
            store.stop().unwrap();
            sleep(a_while);
            return store.resume().unwrap();
        }
        Fault::StoreRefused | Fault::StoreSilent => {
            let silent = matches!(fault, Fault::StoreSilent);
            let link = site.link.as_ref().unwrap();
            link.set(if silent { Mode::Silent } else { Mode::Refused });
            sleep(if silent { Duration::from_secs(13) } else { a_while });
            return link.set(Mode::Open);
        }
    };
    program.kill();
    sleep(a_while);
    program.start();
}

/// Random buffered writes with fsyncs until it is killed.
struct Load(Child);

impl Load {
    fn start(file: &Path) -> Self {
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

    fn stop(mut self) {
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

fn fill(file: &Path) {
    let mut file = File::create(file).unwrap();
    let mut random = File::open("/dev/urandom").unwrap().take(FILLED_BYTES);
    std::io::copy(&mut random, &mut file).unwrap();
    file.flush().unwrap();
    file.sync_all().unwrap();
}

fn survives_everything(file_system: &str) {
    let disk = Loop::new(DISK_BYTES);
    let mounted = Mounted::new(&disk, file_system);
    fill(&mounted.path().join("filled"));
    let load = Load::start(&mounted.path().join("written"));
    let options =
        SiteOptions { name: file_system, link: Some(COPY_BYTES_PER_SECOND), ..SiteOptions::default() };
    let mut site = Site::new(&options, vec![disk]);

    for fault in FAULTS {
        let before = site.wait_for("the copy goes on", |records| !records.is_empty()).len();
        strike(&mut site, fault);
        let after = site.wait_for("the copy goes on after the fault", |records| records.len() > before);
        assert!(
            !after.last().unwrap().complete,
            "the first copy ended before {fault:?} struck: make it slower"
        );
    }
    site.link.as_ref().unwrap().limit(0);
    site.wait_for("the first copy ends", |records| point(records).is_some());

    for fault in FAULTS {
        strike(&mut site, fault);
        let healed = now();
        site.wait_for("a point after the fault", |records| {
            point(records).is_some_and(|point| point.t0_micros > healed)
        });
    }

    load.stop();
    mounted.unmount();
    let disk = &site.servers[0].disk;
    run("blockdev", &["--flushbufs", disk.name()]);
    let stopped = now();
    // The same bytes again: a change that changes nothing asks for one more round.
    let mut first = vec![0; 4096];
    disk.open(0).read_exact(&mut first).unwrap();
    disk.open(libc::O_SYNC).write_all(&first).unwrap();
    let records = site
        .wait_for("the last round", |records| point(records).is_some_and(|point| point.t0_micros > stopped));
    let last = records.last().unwrap().number;

    let source = disk.content();
    assert_same(&source, &site.recovered(last), "the point read through the block index");
    assert_same(&source, &site.seed_disk(last), "the seed disk");

    let complete = records.iter().position(|record| record.complete).unwrap();
    assert!(records[complete..].iter().all(|record| record.complete), "something was copied again");
    let log = site.servers[0].agent.log();
    let again: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("session begins") && !line.contains(r#""full_copy":"""#))
        .collect();
    assert!(again.is_empty(), "a session had to copy everything again: {again:?}");
    assert!(!log.contains("tracking was lost"), "{log}");
}

fn assert_same(source: &[u8], copy: &[u8], what: &str) {
    assert_eq!(source.len(), copy.len(), "{what}: size");
    let different: Vec<usize> = source
        .chunks(512)
        .zip(copy.chunks(512))
        .enumerate()
        .filter_map(|(sector, (a, b))| (a != b).then_some(sector))
        .collect();
    assert!(
        different.is_empty(),
        "{what}: {} sectors differ, the first is {}",
        different.len(),
        different[0]
    );
}

#[test]
fn ext4_survives_everything() {
    survives_everything("ext4");
}

#[test]
fn xfs_survives_everything() {
    survives_everything("xfs");
}
