//! Points of a consistency group on real parts: two servers with a file system each, agents with kernel tracker and
//! watchdog, a process server that coordinates, Azurite; what the operator sends is the operator's own code.
//!
//! A writer counts up alternately: first on the disk of one server, then on that of the other, each synced. So at every
//! instant the second is never ahead of the first, and the first at most one ahead. Every group point keeps that, read
//! from the vault; two points of their own do not, or the check would prove nothing.
//!
//! Needs root, loop devices and eBPF.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real programs run in real time")]

#[path = "common/desired.rs"]
mod desired;

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{JoinHandle, sleep},
    time::{Duration, Instant},
};

use lifeboat_operator::control::{ApplianceKey, Asked, Fleet};
use lifeboat_replication::wire::v1;
use lifeboat_tests::rig::{Loop, Mounted, Site, SiteOptions, point};
use tokio::runtime::Runtime;

/// XFS is never smaller.
const DISK_BYTES: u64 = 320 << 20;
const POINTS: usize = 10;
/// Of the busiest machine: some may be refused, with a reason.
const ASKED: usize = 25;
const MARK: &[u8; 24] = b"counter of a group test:";
const PROCESS_SERVER: &str = "main-process-server-0";

/// The operator's part: asks, and hears what has become of it.
struct Operator {
    runtime: Runtime,
    fleet: Fleet,
    key: ApplianceKey,
    first: String,
}

impl Operator {
    fn new(site: &Site) -> Self {
        let desired = desired::of(site, site.control.configuration.servers.clone());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (fleet, key) =
            (Fleet::default(), ApplianceKey { namespace: "default".to_owned(), name: "main".to_owned() });
        let inside = runtime.enter();
        fleet.sync(&key, desired);
        drop(inside);
        Self { runtime, fleet, key, first: site.servers[0].id.to_string() }
    }

    /// Asks through the first server, and waits for the answer.
    fn ask(&self, site: &Site, id: &str) -> v1::PointAnswer {
        let _inside = self.runtime.enter();
        let wanted = Asked { consistency: v1::Consistency::FilesystemConsistent, group: true };
        let answer = site.wait("an answer to a request for the group's point", || {
            self.fleet.ask_point(&self.key, PROCESS_SERVER, &self.first, id, wanted)
        });
        self.fleet.settle_point(&self.key, &self.first, id);
        answer
    }

    /// The newest point of the group.
    fn taken(&self) -> v1::GroupOutcome {
        self.fleet.group(&self.key, PROCESS_SERVER, "erp").unwrap().taken.unwrap()
    }
}

/// Counts up on both disks.
struct Writer {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

fn write(file: &File, count: u64) {
    let mut block = [0; 4096];
    block[..24].copy_from_slice(MARK);
    block[24..32].copy_from_slice(&count.to_le_bytes());
    file.write_all_at(&block, 0).unwrap();
    file.sync_data().unwrap();
}

impl Writer {
    fn start(places: [&Path; 2]) -> Self {
        let [first, second] = places.map(|place| {
            OpenOptions::new().create(true).write(true).truncate(false).open(place.join("counter")).unwrap()
        });
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&count));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let next = counted.load(Ordering::Relaxed) + 1;
                write(&first, next);
                write(&second, next);
                counted.store(next, Ordering::Relaxed);
                sleep(Duration::from_millis(1));
            }
        });
        Self { stop, count, thread: Some(thread) }
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The counter in a disk's content: overwritten in place, so it is there once.
fn counter(disk: &[u8]) -> u64 {
    // By sectors: file systems of this size may have blocks of 1 KiB.
    let mut found = disk.chunks_exact(512).filter(|sector| sector.starts_with(MARK));
    let count = u64::from_le_bytes(found.next().unwrap()[24..32].try_into().unwrap());
    assert!(found.next().is_none(), "the counter is there twice");
    count
}

#[test]
fn every_point_of_a_group_is_one_instant_of_two_servers() {
    let disks = [Loop::new(DISK_BYTES), Loop::new(DISK_BYTES)];
    let mounted = [Mounted::new(&disks[0], "ext4"), Mounted::new(&disks[1], "xfs")];
    let writer = Writer::start([mounted[0].path(), mounted[1].path()]);
    let options = SiteOptions {
        name: "group",
        consistency_group: "erp",
        applier: false,
        round_interval: Duration::from_secs(1),
        ..SiteOptions::default()
    };
    let mut site = Site::new(&options, disks.into());
    let ids = [site.servers[0].id.clone(), site.servers[1].id.clone()];
    for id in &ids {
        site.wait("the first copy", || point(&site.records_by(id)).map(|_| ()));
    }
    let operator = Operator::new(&site);

    let mut points = Vec::new();
    for number in 0..ASKED {
        let began = Instant::now();
        let answer = operator.ask(&site, &format!("group/db-1/{number}/1"));
        if answer.number == 0 {
            println!("refused: {} ({})", answer.reason, answer.message);
            sleep(Duration::from_secs(2));
            continue;
        }
        let taken = operator.taken();
        println!(
            "point {} after {:.1} s, longest freeze {:.1} ms",
            points.len(),
            began.elapsed().as_secs_f64(),
            taken.longest_freeze_micros as f64 / 1000.0
        );
        points.push(taken);
        if points.len() == POINTS {
            break;
        }
    }
    assert_eq!(points.len(), POINTS, "too many were refused");

    let mut apart = 0;
    for taken in &points {
        let number = |server: usize| {
            taken.members.iter().find(|part| part.server_id == ids[server].as_str()).unwrap().number
        };
        let [first, second] = [0, 1].map(|server| counter(&site.recovered_of(&ids[server], number(server))));
        println!("{}: {first} and {second}", taken.id);
        assert!(second <= first && first <= second + 1, "{}: {first} and {second}", taken.id);
        // What a point of the one and a later one of the other would be.
        let later = site.records_by(&ids[1]).into_iter().find(|record| {
            record.number > number(1) && record.kind() == v1::RecordKind::Exact && record.complete
        });
        let later = later.map(|record| counter(&site.recovered_of(&ids[1], record.number)));
        apart += u32::from(later.is_some_and(|second| second > first));
        for (server, id) in ids.iter().enumerate() {
            let bears = |record: &v1::Data| record.group.as_ref().is_some_and(|group| group.id == taken.id);
            let records = site.records_by(id);
            let record = records.iter().find(|record| bears(record)).unwrap();
            assert_eq!(record.number, number(server));
            assert_eq!(record.consistency(), v1::Consistency::FilesystemConsistent);
        }
    }
    assert!(apart > 0, "points of different instants look the same: the check proves nothing");

    // A member that is dead: no point, a reason, and nobody stands still.
    site.servers[1].agent.kill();
    let answer = operator.ask(&site, "group/db-1/dead/1");
    assert_eq!(answer.number, 0);
    assert!(["NotConnected", "ConnectionLost"].contains(&answer.reason.as_str()), "{answer:?}");
    assert!(answer.message.contains("db-2"), "{answer:?}");
    let before = writer.count();
    sleep(Duration::from_secs(5));
    assert!(writer.count() > before, "somebody is still frozen");
    drop(writer);
}
