//! How old the vault is: markers are written on the disk, and looked for in the records as the log shows them.

use std::{
    io::{Seek as _, Write as _},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lifeboat_recovery::PointSelector;
use lifeboat_replication::{
    env::Env,
    ids::DiskSlot,
    journal,
    log::{LogReader, Patience},
    wire::v1::{self, RecordKind, log_record::Body},
};
use lifeboat_tests::rig::{Loop, Site, SiteOptions, point};

use crate::{
    load::{Fio, zero_disk},
    report::{Figure, Goal},
    statistics::quantile,
};

const DISK_MIB: u64 = 1024;
const MARKER_INTERVAL: Duration = Duration::from_millis(100);
const TIME: Duration = Duration::from_secs(20);
/// The design's promise.
const RPO_SECONDS: f64 = 3.0;

pub fn measure(repeat: usize) -> Vec<Figure> {
    let (mut p99, mut p50) = (Vec::new(), Vec::new());
    for _ in 0..repeat {
        let ages = ages(20);
        p99.push(quantile(&ages, 0.99).unwrap());
        p50.push(quantile(&ages, 0.5).unwrap());
    }
    let mut beside = format!("median age {:.2} s", quantile(&p50, 0.5).unwrap());
    for churn in [40, 80, 120, 160] {
        let age = quantile(&ages(churn), 0.99).unwrap();
        beside += &format!("; {churn} MiB/s: {age:.1} s");
        if age > RPO_SECONDS {
            break;
        }
    }
    vec![
        Figure::new(
            "rpo_p99_seconds_20mbps",
            "p99 of the time from a marker's write to its readability from the vault (Azurite), rounds of 1 s, churn of 20 MiB/s in 16 KiB random writes",
            "s",
            &p99,
        )
        .goal(Goal::AtMost(RPO_SECONDS))
        .beside(beside),
    ]
}

/// Seconds from each marker's write until the vault showed it or a later one.
fn ages(mib_per_second: u32) -> Vec<f64> {
    let options = SiteOptions { name: "rpo", spool_bytes: 1 << 30, ..SiteOptions::default() };
    let site = Site::new(&options, vec![zero_disk(DISK_MIB)]);
    let first = site.wait_for("the first copy ends", |records| point(records).is_some()).len();
    let disk = &site.servers[0].disk;
    let churn = Fio {
        disk,
        block_kib: 16,
        depth: 8,
        kib_per_second: Some(mib_per_second << 10),
        skewed: false,
        time: TIME * 4,
    };
    let churn = churn.start();
    // Until rates and batches have settled.
    thread::sleep(Duration::from_secs(4));

    let written = Arc::new(Mutex::new(Vec::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let readable = thread::scope(|scope| {
        let (marked, ended) = (Arc::clone(&written), Arc::clone(&stop));
        scope.spawn(move || mark(disk, &marked, &ended));
        let readable = follow(&site, first);
        stop.store(true, Ordering::Relaxed);
        readable
    });
    let end = Instant::now();
    drop(churn);
    let markers = markers(&site, &readable);
    ages_of(&written.lock().unwrap(), &readable, &markers, end)
}

/// Writes a number into the disk's first block again and again, and notes when each was written.
fn mark(disk: &Loop, written: &Mutex<Vec<Instant>>, stop: &AtomicBool) {
    let mut file = disk.open(libc::O_DIRECT | libc::O_SYNC);
    let mut memory = vec![0; 8192];
    let start = memory.as_ptr().align_offset(4096);
    for number in 1_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let block = &mut memory[start..start + 4096];
        block[..8].copy_from_slice(&number.to_le_bytes());
        file.rewind().unwrap();
        file.write_all(block).unwrap();
        written.lock().unwrap().push(Instant::now());
        thread::sleep(MARKER_INTERVAL);
    }
}

/// A record from which on a point could be recovered.
struct Readable {
    data: v1::Data,
    /// When the log showed it.
    since: Instant,
}

/// Follows the log. Nothing is opened meanwhile: whoever recovers a machine does not do it every second beside the
/// production's load on the same cores.
fn follow(site: &Site, first: usize) -> Vec<Readable> {
    let began = Instant::now();
    site.block_on(async {
        let mut reader = LogReader::from_start(&site.vault, &site.servers[0].id, &Env::system());
        let (mut seen, mut readable) = (0, Vec::new());
        while began.elapsed() < TIME {
            while let Some(entry) = reader.next().await.unwrap() {
                if let Body::Data(data) = entry.body {
                    seen += 1;
                    if seen > first && data.complete && data.kind() == RecordKind::Exact {
                        readable.push(Readable { data, since: Instant::now() });
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        readable
    })
}

/// The marker that each record carries, from the journal; that of the last one is compared with what the block index
/// gives for the whole point.
fn markers(site: &Site, readable: &[Readable]) -> Vec<Option<u64>> {
    let patience = Patience::new(Env::system());
    let number = |block: &[u8]| u64::from_le_bytes(block[..8].try_into().unwrap());
    site.block_on(async {
        let mut markers = Vec::new();
        for Readable { data, .. } in readable {
            let mut marker = None;
            for source in journal::sources(data).unwrap() {
                let extents = source.read(&site.vault, &patience).await.unwrap();
                // A later extent supersedes an earlier one: a round may have read the block in several passes.
                let blocks = extents.iter().filter(|extent| extent.run.first == 0);
                marker = blocks.filter_map(|block| Some(number(block.data.as_ref()?))).last().or(marker);
            }
            markers.push(marker);
        }
        if let (Some(last), Some(Some(marker))) = (readable.last(), markers.last()) {
            let index = site.open_async(PointSelector::Number(last.data.number)).await;
            let slot = index.disks().next().unwrap().slot;
            assert_eq!(number(&index.read(DiskSlot(slot.0), 0, 1).await.unwrap()), *marker);
        }
        markers
    })
}

/// Seconds from each marker's write until a record with it or a later one was readable; what never became readable is
/// as old as it was at the end, at least.
fn ages_of(written: &[Instant], readable: &[Readable], markers: &[Option<u64>], end: Instant) -> Vec<f64> {
    let Some(from) = markers.iter().flatten().next() else {
        return written.iter().map(|at| (end - *at).as_secs_f64()).collect();
    };
    let mut ages = Vec::new();
    // Numbered from one; the ones before the first record that was seen say nothing.
    let mut next = usize::try_from(*from).unwrap();
    for (readable, marker) in readable.iter().zip(markers) {
        let Some(marker) = marker else { continue };
        let reached = usize::try_from(*marker).unwrap().min(written.len());
        while next < reached {
            ages.push((readable.since - written[next]).as_secs_f64());
            next += 1;
        }
    }
    let overdue = written[next.min(written.len())..].iter().filter(|at| **at < end);
    ages.extend(overdue.map(|at| (end - *at).as_secs_f64()).filter(|age| *age > RPO_SECONDS));
    ages
}
