//! A resynchronization after tracking was lost: what travels, and how long it takes beside reading the disk once.

use std::{
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use lifeboat_replication::{
    env::Env,
    log::LogReader,
    wire::v1::{RecordKind, log_record::Body},
};
use lifeboat_tests::rig::{Loop, Site, SiteOptions, different_blocks, now, point};

use crate::{
    free_store::FreeStore,
    load::mixed_disk,
    report::{Figure, Goal},
    slow::Slow,
    statistics::quantile,
};

const BLOCK: u64 = 4096;
/// A disk in memory, compared as fast as sums can be made.
const MEMORY_MIB: u64 = 1024;
/// A disk that gives what SATA does, large enough that connecting counts for little.
const DISK_MIB: u64 = 3072;
const DISK_BYTES_PER_SECOND: u64 = 500 << 20;
const LOOK: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(120);

pub fn measure(repeat: usize) -> Vec<Figure> {
    let memory: Vec<_> = (0..repeat).map(|_| once(MEMORY_MIB, None)).collect();
    let disk: Vec<_> = (0..repeat).map(|_| once(DISK_MIB, Some(DISK_BYTES_PER_SECOND))).collect();
    let median = |of: fn(&Compared) -> f64, all: &[Compared]| {
        quantile(&all.iter().map(of).collect::<Vec<_>>(), 0.5).unwrap()
    };
    let ratios =
        |all: &[Compared]| all.iter().map(|one| one.seconds / one.reading_seconds).collect::<Vec<_>>();
    let beside = |all: &[Compared], mib: u64| {
        let (took, reading) = (median(|one| one.seconds, all), median(|one| one.reading_seconds, all));
        format!("{mib} MiB: {took:.2} s until the point, {reading:.2} s to read the disk")
    };
    let sent: Vec<f64> = memory.iter().map(|one| one.sent_over_changed).collect();
    let mut figures = vec![
        Figure::new(
            "resync_sent_over_changed",
            "bytes of blocks sent / bytes changed, after tracking of a 1 GiB disk was lost and 1 % of its 4 KiB blocks had changed",
            "",
            &sent,
        )
        .goal(Goal::AtMost(1.2)),
        Figure::new(
            "resync_time_over_reading_memory",
            "the same of a disk in memory, which is read faster than one core makes sums of it",
            "",
            &ratios(&memory),
        )
        .beside(beside(&memory, MEMORY_MIB)),
    ];
    // Where the kernel cannot limit a disk there is no figure.
    if disk.iter().all(|one| one.limited) {
        figures.push(
            Figure::new(
                "resync_time_over_reading",
                "time from the agent's start to the next point in the vault (its connecting and a round of 100 ms included) / time to read the disk once, of one that gives 500 MiB/s",
                "",
                &ratios(&disk),
            )
            .goal(Goal::AtMost(1.1))
            .beside(beside(&disk, DISK_MIB)),
        );
    }
    figures
}

struct Compared {
    sent_over_changed: f64,
    /// From the agent's start to the next point.
    seconds: f64,
    reading_seconds: f64,
    /// The kernel kept reads to the limit.
    limited: bool,
}

fn once(disk_mib: u64, bytes_per_second: Option<u64>) -> Compared {
    let store = FreeStore::start();
    let options = SiteOptions {
        name: "resync",
        store: Some(store.address.clone()),
        spool_bytes: 1 << 30,
        // What is measured is the comparison, not the wait for a round.
        round_interval: Duration::from_millis(100),
        ..SiteOptions::default()
    };
    let mut site = Site::new(&options, vec![mixed_disk(disk_mib)]);
    let records = site.wait_for("the first copy ends", |records| point(records).is_some());
    // The checksums to compare with are the applier's.
    let last = records.last().unwrap().number;
    let before = site.seed_disk(last);
    site.servers[0].agent.kill();
    site.servers[0].forget_marks();
    change(&site.servers[0].disk, disk_mib * 256);
    let began = Instant::now();
    let after = site.servers[0].disk.content();
    let mut reading_seconds = began.elapsed().as_secs_f64();
    let changed = different_blocks(&before, &after) as u64 * BLOCK;
    drop((before, after));
    let name = site.servers[0].disk.name().to_owned();
    let slow = bytes_per_second.and_then(|limit| Slow::reads_of(&name, limit));
    if let Some(slow) = &slow {
        let began = Instant::now();
        slow.read(&name);
        reading_seconds = began.elapsed().as_secs_f64();
    }

    let (started, began) = (now(), Instant::now());
    site.servers[0].agent.start();
    if let Some(slow) = &slow {
        slow.add(site.servers[0].agent.pid().unwrap());
    }
    let travelled = until_point(&site, last, started);
    let seconds = began.elapsed().as_secs_f64();
    site.servers[0].agent.kill();
    Compared {
        sent_over_changed: travelled as f64 / changed as f64,
        seconds,
        reading_seconds,
        limited: slow.is_some(),
    }
}

/// Waits for a point after this instant in the log; returns what records after `last` carry, in bytes.
fn until_point(site: &Site, last: u64, started: i64) -> u64 {
    let began = Instant::now();
    site.block_on(async {
        let mut reader = LogReader::from_start(&site.vault, &site.servers[0].id, &Env::system());
        let mut travelled = 0;
        loop {
            while let Some(entry) = reader.next().await.unwrap() {
                let Body::Data(data) = entry.body else { continue };
                if data.number > last {
                    travelled += data.changed_bytes;
                }
                if data.complete && data.kind() == RecordKind::Exact && data.t0_micros > started {
                    return travelled;
                }
            }
            assert!(began.elapsed() < LONGEST, "no point after the comparison");
            tokio::time::sleep(LOOK).await;
        }
    })
}

/// 1 % of the blocks.
fn change(disk: &Loop, blocks: u64) {
    let file = disk.open(0);
    let entropy = Env::system().entropy;
    let mut block = vec![0; 4096];
    for _ in 0..blocks / 100 {
        entropy.fill(&mut block);
        let at = entropy.next_u64() % blocks;
        file.write_all_at(&block, at * BLOCK).unwrap();
    }
    file.sync_all().unwrap();
}
