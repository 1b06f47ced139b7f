//! What opening a point fetches: the tables of the segments, not the segments.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "../../applier/tests/support/mod.rs"]
mod support;

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use lifeboat_recovery::{BlockIndex, IndexOptions, PointSelector};
use lifeboat_replication::{
    blocks::BlockRun,
    env::Env,
    ids::{DiskSlot, Epoch, RecordNumber},
    keys::DataKeys,
    segment::{self, ExtentData},
    store::{BlobStore, LeaseId, PutCondition, model::ModelStore},
    vault::{Vault, layout},
    wire::v1::{self, RecordKind, log_record::Body},
};
use support::Source;

const DISK: u64 = 64 << 20;
const RECORDS: u64 = 30;
const EXTENTS: u32 = 64;
const BLOCKS: u32 = 4;

/// Content that no compression makes smaller.
fn noise(source: &Source, bytes: usize) -> Bytes {
    let mut noise = vec![0; bytes];
    source.env.entropy.fill(&mut noise);
    Bytes::from(noise)
}

/// A record with one segment of a MiB, as a busy server makes them: many small extents, here and there.
async fn busy_record(source: &mut Source) -> Vec<ExtentData> {
    let number = source.log.state().last_number.next();
    let name = layout::segment(&source.server, source.log.state().epoch, number, "writer", 0);
    let extents: Vec<ExtentData> = (0..EXTENTS)
        .map(|at| {
            let first = at * 250 + number.0 as u32 * BLOCKS;
            let run = BlockRun { disk: DiskSlot(1), first, blocks: BLOCKS };
            ExtentData { run, data: Some(noise(source, BLOCKS as usize * 4096)) }
        })
        .collect();
    let sealed = segment::seal(&source.vault.keys, &name, &extents, 1).unwrap();
    source.vault.cache.put(&name, sealed.content.clone(), &PutCondition::IfAbsent).await.unwrap();
    let data = v1::Data {
        first_number: number.0,
        number: number.0,
        kind: RecordKind::Exact.into(),
        consistency: v1::Consistency::CrashConsistent.into(),
        t0_micros: number.0 as i64 * 1_000_000,
        complete: true,
        segments: vec![sealed.named(name)],
        ..Default::default()
    };
    source.log.append(Body::Data(data)).await.unwrap();
    extents
}

#[tokio::test(start_paused = true)]
async fn a_point_opens_by_the_tables_of_its_segments() {
    let mut source = Source::new(&[DISK]).await;
    let mut records = Vec::new();
    for _ in 0..RECORDS {
        records.push(busy_record(&mut source).await);
    }
    let (options, latest) = (IndexOptions::default(), PointSelector::Latest);
    let index = BlockIndex::open(&source.vault, &source.server, &source.env, latest, &options).await.unwrap();
    let opened = index.figures();
    let segment = u64::from(EXTENTS * BLOCKS) * 4096;
    assert_eq!(opened.fetches, RECORDS, "one for each segment");
    let share = opened.fetched_bytes as f64 / (RECORDS * segment) as f64;
    assert!(share < 0.002, "{} bytes of {}", opened.fetched_bytes, RECORDS * segment);

    let extent = &records[7][3];
    let read = index.read(DiskSlot(1), extent.run.first + 1, 2).await.unwrap();
    assert_eq!(read, extent.data.as_ref().unwrap().slice(4096..3 * 4096));
    let figures = index.figures();
    assert_eq!(figures.fetches, RECORDS + 1, "the segment that was read");
    assert!(figures.fetched_bytes - opened.fetched_bytes >= segment);
}

/// What opening does not look at must not be served either.
#[tokio::test(start_paused = true)]
async fn damaged_data_fails_the_read_that_needs_it() {
    let mut source = Source::new(&[DISK]).await;
    let extents = busy_record(&mut source).await;
    let name = layout::segment(&source.server, Epoch(1), RecordNumber(1), "writer", 0);
    let mut content = source.store.get(&name, None, None).await.unwrap().to_vec();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    source.store.put(&name, content.into(), &PutCondition::Always).await.unwrap();
    let (options, latest) = (IndexOptions::default(), PointSelector::Latest);
    let index = BlockIndex::open(&source.vault, &source.server, &source.env, latest, &options).await.unwrap();
    let error = index.read(DiskSlot(1), extents[0].run.first, 1).await.unwrap_err();
    let error = error.to_string();
    assert!(error.contains(&name) && error.contains("not what was written"), "{error}");
}

fn golden(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../replication/tests/golden/v1");
    fs::read(folder.join(name)).unwrap()
}

/// A vault from before segments had their table in front.
#[tokio::test(start_paused = true)]
async fn segments_of_version_1_are_read_as_before() {
    let server = "6d3f9a52-7c1e-4b6a-9d0e-0123456789ab".parse().unwrap();
    let store: Arc<dyn BlobStore> = Arc::new(ModelStore::new());
    let keys = Arc::new(DataKeys::from_json(&golden("keys.json")).unwrap());
    let vault = Vault { store: Arc::clone(&store), cache: Arc::clone(&store), keys, id: String::new() };
    let log = layout::log_part(&server, Epoch(1), 0);
    let lease = LeaseId("6d3f9a52-7c1e-4b6a-9d0e-000000000000".into());
    store.create_append(&log).await.unwrap();
    store.acquire_lease(&log, &lease, Duration::from_secs(60)).await.unwrap();
    store.append(&log, golden("log-part-1").into(), &lease, 0).await.unwrap();
    let name = layout::segment(&server, Epoch(1), RecordNumber(1), "0102", 0);
    store.put(&name, golden("segment").into(), &PutCondition::IfAbsent).await.unwrap();

    let (options, latest) = (IndexOptions::default(), PointSelector::Latest);
    let index = BlockIndex::open(&vault, &server, &Env::system(), latest, &options).await.unwrap();
    assert_eq!(index.figures().fetches, 1, "the other segment stands in its record");
    let content: Vec<u8> = (0..2 * 4096).map(|byte| (byte % 251) as u8).collect();
    assert_eq!(index.read(DiskSlot(1), 7, 2).await.unwrap(), content);
    assert_eq!(index.figures().fetches, 1, "what was fetched whole is kept");
}
