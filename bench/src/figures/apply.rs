//! Applying a prepared log against ingesting the same, on the same Azurite.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::FileExt as _,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use lifeboat_replication::{
    catalogue::{self, Position},
    store::{
        BlobStore as _,
        azure::{AzureOptions, AzureStore, Credential},
    },
};
use lifeboat_tests::{
    blob_store::BlobStore,
    rig::{Loop, Site, SiteOptions, now, point, run},
};

use crate::{
    load::{Fio, mixed_disk},
    report::{Figure, Goal},
    statistics::quantile,
};

const DISK_MIB: u64 = 512;
/// As the applier writes: pages of 4 MiB, six writes at a time for a server.
const WRITE_BYTES: u64 = 4 << 20;
const PARALLEL: usize = 6;
const LONGEST: Duration = Duration::from_secs(300);
const CHURN: Duration = Duration::from_secs(40);
/// Rare enough that looking costs the store nothing worth mentioning.
const LOOK: Duration = Duration::from_millis(100);

pub fn measure(repeat: usize) -> Vec<Figure> {
    let mut disk = mixed_disk(DISK_MIB);
    let (mut ratios, mut limits, mut churns) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ingests, mut applies, mut bare_rates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..repeat {
        let (ingest, apply, churn);
        (disk, ingest, apply, churn) = once(disk);
        churns.push(churn);
        ratios.push(apply.as_secs_f64() / ingest.as_secs_f64());
        ingests.push(DISK_MIB as f64 / ingest.as_secs_f64());
        let (rate, bare) = (DISK_MIB as f64 / apply.as_secs_f64(), bare_pages());
        limits.push(rate / bare);
        applies.push(rate);
        bare_rates.push(bare);
    }
    let median = |samples: &[f64]| quantile(samples, 0.5).unwrap();
    vec![
        Figure::new(
            "apply_over_ingest",
            "time to apply the log of a first copy of 512 MiB to a new seed disk, from the applier's start / time of that first copy, both with Azurite",
            "",
            &ratios,
        )
        .goal(Goal::AtMost(0.5))
        .beside(format!("ingest {:.0} MiB/s, apply {:.0} MiB/s of the disk", median(&ingests), median(&applies))),
        Figure::new(
            "apply_vs_limit",
            "bytes of a disk a second that are applied with Azurite / those of a bare client that writes pages (4 MiB, 6 at a time) into Azurite",
            "",
            &limits,
        )
        .beside(format!("bare client {:.0} MiB/s", median(&bare_rates))),
        Figure::new(
            "apply_over_ingest_churn",
            "time to apply the log of 40 s of churn (20 MiB/s of 16 KiB writes, some places far more often than others) / that time, both with Azurite",
            "",
            &churns.iter().map(|churn| churn.seconds / CHURN.as_secs_f64()).collect::<Vec<_>>(),
        )
        .goal(Goal::AtMost(0.5))
        .beside(format!(
            "records of {:.0} MiB",
            median(&churns.iter().map(|churn| churn.mib).collect::<Vec<_>>())
        )),
    ]
}

/// The log of a churn, applied at once afterwards.
struct Churn {
    seconds: f64,
    /// What the records carry.
    mib: f64,
}

/// The disk for the next time, the time of the first copy and that of applying it, and what a churn afterwards took.
fn once(disk: Loop) -> (Loop, Duration, Duration, Churn) {
    let mut site =
        Site::new(&SiteOptions { name: "apply", spool_bytes: 1 << 30, ..SiteOptions::default() }, vec![disk]);
    // Nothing is applied while the log is made.
    site.applier.as_mut().unwrap().kill();
    let began = Instant::now();
    let last = loop {
        let records = site.records();
        if let Some(last) = records.last().filter(|record| record.complete) {
            break last.number;
        }
        assert!(began.elapsed() < LONGEST, "the copy does not end");
        sleep(LOOK);
    };
    let ingest = began.elapsed();
    let apply = applied(&mut site, last);

    site.applier.as_mut().unwrap().kill();
    let first = site.records().len();
    let disk = &site.servers[0].disk;
    let load =
        Fio { disk, block_kib: 16, depth: 8, kib_per_second: Some(20 << 10), skewed: true, time: CHURN };
    load.run();
    let ended = now();
    // A server that writes nothing has no records: this one is behind the churn.
    let file = site.servers[0].disk.open(0);
    file.write_all_at(&[1; 4096], 0).unwrap();
    file.sync_all().unwrap();
    let records = site.wait_for("the churn is in the vault", |records| {
        point(records).is_some_and(|point| point.t0_micros > ended)
    });
    let changed: u64 = records[first..].iter().map(|record| record.changed_bytes).sum();
    let took = applied(&mut site, records.last().unwrap().number);
    let churn = Churn { seconds: took.as_secs_f64(), mib: changed as f64 / f64::from(1 << 20) };
    let disk = site.into_disks().remove(0);
    run("blockdev", &["--flushbufs", disk.name()]);
    (disk, ingest, apply, churn)
}

/// Starts the applier and returns the time until it has applied this record.
fn applied(site: &mut Site, number: u64) -> Duration {
    let began = Instant::now();
    site.applier.as_mut().unwrap().start();
    let server = site.servers[0].id.clone();
    loop {
        let position = site.block_on(catalogue::read::<Position>(&site.vault, &server)).unwrap();
        if position.is_some_and(|(position, _)| position.log.last_number.0 >= number) {
            return began.elapsed();
        }
        assert!(began.elapsed() < LONGEST, "it is not applied");
        sleep(LOOK);
    }
}

/// MiB a second of plain page writes into an Azurite of its own.
fn bare_pages() -> f64 {
    let azurite = BlobStore::start("bare-pages").unwrap();
    let account = azurite.endpoint.rsplit('/').next().unwrap().to_owned();
    let key = azurite.account_key.clone().into();
    let options = AzureOptions {
        endpoint: azurite.endpoint.clone(),
        container: "bare".to_owned(),
        credential: Credential::AccountKey { account, key },
    };
    let store = Arc::new(AzureStore::new(&options).unwrap());
    let mut content = vec![0; usize::try_from(WRITE_BYTES).unwrap()];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut content).unwrap();
    let content = Bytes::from(content);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        store.ensure_container().await.unwrap();
        store.create_page("disk", DISK_MIB << 20).await.unwrap();
        let began = Instant::now();
        let writes = stream::iter((0..DISK_MIB << 20).step_by(content.len())).map(|offset| {
            let (store, content) = (Arc::clone(&store), content.clone());
            async move { store.write_pages("disk", offset, content, None, 0).await }
        });
        let _: Vec<_> = writes.buffer_unordered(PARALLEL).try_collect().await.unwrap();
        DISK_MIB as f64 / began.elapsed().as_secs_f64()
    })
}
