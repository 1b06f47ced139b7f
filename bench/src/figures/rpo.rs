//! How old the vault is: markers are written on the disk, and read back from the vault through the block index.

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
    log::LogReader,
    wire::v1::{RecordKind, log_record::Body},
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
    let churn = Fio { disk, block_kib: 16, depth: 8, mib_per_second: Some(mib_per_second), time: TIME * 4 };
    let _churn = churn.start();
    // Until rates and batches have settled.
    thread::sleep(Duration::from_secs(4));

    let written = Arc::new(Mutex::new(Vec::new()));
    let stop = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        let (marked, ended) = (Arc::clone(&written), Arc::clone(&stop));
        scope.spawn(move || mark(disk, &marked, &ended));
        let ages = read_markers(&site, first, &written);
        stop.store(true, Ordering::Relaxed);
        ages
    })
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

fn read_markers(site: &Site, first: usize, written: &Mutex<Vec<Instant>>) -> Vec<f64> {
    let server = &site.servers[0].id;
    let mut ages = Vec::new();
    let began = Instant::now();
    site.block_on(async {
        let mut reader = LogReader::from_start(&site.vault, server, &Env::system());
        let mut seen = 0;
        while began.elapsed() < TIME {
            let mut newest = None;
            while let Some(entry) = reader.next().await.unwrap() {
                if let Body::Data(data) = entry.body {
                    seen += 1;
                    if seen > first && data.complete && data.kind() == RecordKind::Exact {
                        newest = Some(data.number);
                    }
                }
            }
            let Some(number) = newest else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let index = site.open_async(PointSelector::Number(number)).await;
            let block = index.read(DiskSlot(index.disks().next().unwrap().slot.0), 0, 1).await.unwrap();
            let marker = u64::from_le_bytes(block[..8].try_into().unwrap());
            let read = Instant::now();
            let written = written.lock().unwrap();
            let markers = usize::try_from(marker).unwrap().min(written.len());
            ages.extend(
                written[ages.len().min(markers)..markers].iter().map(|at| (read - *at).as_secs_f64()),
            );
        }
        // What never became readable is as old as it is now, at least.
        let written = written.lock().unwrap();
        let overdue = written[ages.len().min(written.len())..].iter().map(|at| at.elapsed().as_secs_f64());
        let overdue: Vec<f64> = overdue.filter(|age| *age > RPO_SECONDS).collect();
        ages.extend(overdue);
    });
    ages
}
