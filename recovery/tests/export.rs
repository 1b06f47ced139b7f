//! A disk as a file: bit for bit, sparse, whole or not at all, and going on after an interruption.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "../../applier/tests/support/mod.rs"]
mod support;
#[allow(dead_code, unreachable_pub, reason = "another test uses the rest")]
mod tampered;

use std::{os::unix::fs::MetadataExt as _, path::Path, process::Command, sync::Arc};

use lifeboat_recovery::{
    PointSelector,
    book::{
        ExportError,
        export::{Export, Outcome},
    },
};
use lifeboat_replication::{
    pins::{self, Pin},
    store::BlobStore,
    vault::Vault,
    wire::v1::RecordKind,
};
use support::{Source, Write};
use tampered::{Tamper, Tampered};

/// Not a whole number of blocks, and one with a large hole.
const SIZES: [u64; 2] = [(1 << 20) + 512, 64 << 20];

async fn source() -> Source {
    let mut source = Source::new(&SIZES).await;
    let write = |disk, first, blocks, byte| vec![Write { disk, first, blocks, byte }];
    let groups = [write(1, 0, 257, Some(1)), write(2, 0, 3000, Some(2)), write(2, 9000, 3000, Some(3))];
    source.record(RecordKind::Copy, false, 0, &groups).await;
    source.record(RecordKind::Exact, true, 1, &write_all(&[(2, 9100, 50, None)])).await;
    source
}

fn write_all(writes: &[(u32, u32, u32, Option<u8>)]) -> Vec<Vec<Write>> {
    vec![writes.iter().map(|&(disk, first, blocks, byte)| Write { disk, first, blocks, byte }).collect()]
}

async fn open(source: &Source, disk: Option<&str>, to: &Path) -> Result<Export, ExportError> {
    let selector = PointSelector::Latest;
    Export::open(&source.vault, &source.server, &source.env, selector, disk, to).await
}

#[tokio::test(start_paused = true)]
async fn a_raw_file_is_the_disk_bit_for_bit_and_its_holes_take_no_room() {
    let source = source().await;
    let dir = tempfile::tempdir().unwrap();
    for (slot, size) in (1_u32..).zip(SIZES) {
        let to = dir.path().join(format!("{slot}.raw"));
        let export = open(&source, Some(&slot.to_string()), &to).await.unwrap();
        let mut last = None;
        assert_eq!(export.run(|progress| last = Some(progress), || false).await.unwrap(), Outcome::Whole);
        let progress = last.unwrap();
        assert_eq!(progress.done_bytes, progress.total_bytes);
        assert!(std::fs::read(&to).unwrap() == source.points[&2][&slot][..size as usize], "disk {slot}");
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            slot as usize,
            "something was left behind"
        );
    }
    let stored = std::fs::metadata(dir.path().join("2.raw")).unwrap().blocks() * 512;
    assert!(stored < SIZES[1] / 2, "{stored} bytes are stored");
}

#[tokio::test(start_paused = true)]
async fn a_vhd_is_what_qemu_takes_for_the_disk() {
    let source = source().await;
    let dir = tempfile::tempdir().unwrap();
    let (vhd, raw) = (dir.path().join("1.vhd"), dir.path().join("out.raw"));
    open(&source, Some("disk-1"), &vhd).await.unwrap().run(|_| {}, || false).await.unwrap();
    let converted = Command::new("qemu-img")
        .args(["convert", "-f", "vpc", "-O", "raw"])
        .args([&vhd, &raw])
        .output()
        .unwrap();
    assert!(converted.status.success(), "{}", String::from_utf8_lossy(&converted.stderr));
    let read = std::fs::read(raw).unwrap();
    assert_eq!(read.len(), 2 << 20);
    let image = &source.points[&2][&1][..SIZES[0] as usize];
    assert!(read.starts_with(image) && read[image.len()..].iter().all(|byte| *byte == 0));
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_export_goes_on_with_the_same_point() {
    let mut source = source().await;
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("disk.raw");
    let mut pieces = 0;
    let stop = || {
        pieces += 1;
        pieces == 2
    };
    let export = open(&source, Some("2"), &to).await.unwrap();
    assert_eq!(export.run(|_| {}, stop).await.unwrap(), Outcome::Stopped);
    assert!(!to.exists());
    // The newest point moves on meanwhile.
    source.record(RecordKind::Exact, true, 2, &write_all(&[(2, 0, 10, Some(9))])).await;
    let error = open(&source, Some("1"), &to).await.unwrap_err().to_string();
    assert!(error.contains("another export") && error.contains("remove it together with"), "{error}");
    let export = open(&source, Some("2"), &to).await.unwrap();
    assert_eq!(export.point().number, 2);
    let mut first = None;
    assert_eq!(
        export
            .run(
                |progress| {
                    first.get_or_insert(progress);
                },
                || false
            )
            .await
            .unwrap(),
        Outcome::Whole
    );
    assert_eq!(first.unwrap().resumed_bytes, 2 * (4 << 20));
    assert!(std::fs::read(&to).unwrap() == source.points[&2][&2]);
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_or_in_the_way_is_named() {
    let source = source().await;
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("disk.raw");
    for (disk, file, said) in [
        (None, "disk.raw", "name one with --disk: 1 (disk-1, /dev/d1), 2 (disk-2, /dev/d2)"),
        (Some("sdz"), "disk.raw", "has no disk \"sdz\""),
        (Some("1"), "disk.qcow2", "*.raw or *.vhd"),
    ] {
        let error = open(&source, disk, &dir.path().join(file)).await.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    std::fs::write(&to, "mine").unwrap();
    let error = open(&source, Some("1"), &to).await.unwrap_err().to_string();
    assert!(error.contains("exists already"), "{error}");
}

async fn pins_of(source: &Source) -> Vec<Pin> {
    let standing = pins::all(&source.store, &source.server).await.unwrap();
    standing.into_iter().map(|standing| standing.pin).collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_read_is_pinned_until_the_file_is_whole_and_an_interrupted_export_keeps_its_pin() {
    let source = source().await;
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("disk.raw");
    let mut pieces = 0;
    let stop = || {
        pieces += 1;
        pieces == 2
    };
    let export = open(&source, Some("2"), &to).await.unwrap();
    assert_eq!(export.not_held(), None);
    let pinned = pins_of(&source).await;
    assert_eq!(pinned.len(), 1);
    assert!(pinned[0].confirmed && pinned[0].records.is_some(), "{pinned:?}");
    assert_eq!(export.run(|_| {}, stop).await.unwrap(), Outcome::Stopped);
    assert_eq!(pins_of(&source).await[0].run, pinned[0].run, "the next try needs it");

    let export = open(&source, Some("2"), &to).await.unwrap();
    let again = pins_of(&source).await;
    assert_eq!((again.len(), &again[0].run), (1, &pinned[0].run));
    assert_eq!(export.run(|_| {}, || false).await.unwrap(), Outcome::Whole);
    assert_eq!(pins_of(&source).await, []);
}

#[tokio::test(start_paused = true)]
async fn an_export_that_cannot_begin_leaves_no_pin() {
    let source = source().await;
    let dir = tempfile::tempdir().unwrap();
    open(&source, Some("sdz"), &dir.path().join("disk.raw")).await.unwrap_err();
    assert_eq!(pins_of(&source).await, []);
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_may_only_read_is_enough_and_is_told() {
    let source = source().await;
    let inner: Arc<dyn BlobStore> = Arc::new(source.store.clone());
    // Takes no writes; the blob that is missing is nobody's.
    let how = Tamper::Missing;
    let store: Arc<dyn BlobStore> =
        Arc::new(Tampered { store: inner, name: "nothing".to_owned(), snapshot: None, how });
    let vault = Vault { store, ..source.vault.clone() };
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("disk.raw");
    let selector = PointSelector::Latest;
    let export = Export::open(&vault, &source.server, &source.env, selector, Some("1"), &to).await.unwrap();
    assert!(export.not_held().unwrap().contains("may not write pins"), "{:?}", export.not_held());
    assert_eq!(export.run(|_| {}, || false).await.unwrap(), Outcome::Whole);
    assert!(std::fs::read(&to).unwrap() == source.points[&2][&1][..SIZES[0] as usize]);
}
