//! Rot and tampering: each kind of blob of a vault, changed, cut, gone or put back to an older version. Verification
//! names it, and no point opens as something else than it was.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]
#![allow(unreachable_pub, dead_code, reason = "helpers that several programs of tests share")]

#[path = "../../applier/tests/support/mod.rs"]
mod support;
mod tampered;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use lifeboat_applier::core::{Applier, Limits, Options, Step};
use lifeboat_recovery::{
    BlockIndex, IndexError, IndexOptions, PointSelector,
    book::{Finding, Held, ServerReport, Severity, inventory, verify},
};
use lifeboat_replication::{
    ids::{Epoch, RecordNumber},
    log::Patience,
    store::{
        BlobStore, SnapshotId,
        gated::{Call, Gate, Gated},
    },
    vault::{self, Vault, layout},
    wire::v1::RecordKind,
};
use support::{Images, Source, Write, disk_id};
use tampered::{Tamper, Tampered};

const SIZES: [u64; 2] = [(1 << 20) + 512, 2 << 20];
/// A recovery key of these tests alone, and its public half.
const RECOVERY_KEY: &str = "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";
const RECIPIENT: &str = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";

/// Two epochs, points in snapshots and in the journal, large segments and small ones within records.
struct Site {
    source: Source,
}

impl Site {
    async fn new() -> Self {
        let mut source = Source::new(&SIZES).await;
        let bundle = Arc::clone(&source.vault.keys);
        let store: Arc<dyn BlobStore> = Arc::new(source.store.clone());
        let made =
            vault::bootstrap(Arc::clone(&store), store, bundle, &[RECIPIENT.to_owned()], &source.env).await;
        source.vault.id = made.unwrap().vault_id;
        let mut site = Self { source };
        let whole = |disk, blocks, byte| vec![Write { disk, first: 0, blocks, byte: Some(byte) }];
        site.source.record(RecordKind::Copy, false, 0, &[whole(1, 257, 1), whole(2, 500, 2)]).await;
        site.rounds(2..8).await;
        site.apply().await;
        site.source.next_epoch().await;
        site.rounds(8..14).await;
        site.apply().await;
        site.rounds(14..17).await;
        site
    }

    async fn rounds(&mut self, seconds: std::ops::Range<u32>) {
        for second in seconds {
            let write = |disk, first, blocks, byte| vec![Write { disk, first, blocks, byte }];
            let (byte, first) = (Some(second as u8), second * 4);
            let groups = match second % 3 {
                0 => vec![write(1, first, 6, byte), write(2, first, 30, None)],
                _ => vec![write(2, first, 1, byte)],
            };
            self.source.record(RecordKind::Exact, true, i64::from(second), &groups).await;
        }
    }

    async fn apply(&mut self) {
        let limits = Limits { records: 3, ..Limits::default() };
        let options = Options { point_interval: Duration::from_secs(3), limits, ..Options::default() };
        let source = &self.source;
        let mut applier =
            Applier::new(source.vault.clone(), source.server.clone(), source.env.clone(), options);
        while applier.step().await.unwrap() != Step::CaughtUp {}
    }

    fn tampered(&self, name: &str, snapshot: Option<SnapshotId>, how: Tamper) -> Vault {
        let inner: Arc<dyn BlobStore> = Arc::new(self.source.store.clone());
        let store: Arc<dyn BlobStore> =
            Arc::new(Tampered { store: inner, name: name.to_owned(), snapshot, how });
        Vault { store: Arc::clone(&store), cache: store, ..self.source.vault.clone() }
    }

    fn part(&self, epoch: u32) -> String {
        layout::log_part(&self.source.server, Epoch(epoch), 0)
    }

    fn seed(&self) -> String {
        layout::seed_disk(&self.source.server, &disk_id(1))
    }

    /// Snapshot of the first disk at a listed point.
    async fn snapshot(&self, index: usize) -> (u64, SnapshotId) {
        let listed = lifeboat_recovery::scan::listed(&self.source.vault, &self.source.server).await;
        let points = listed.unwrap().points;
        (points[index].number, SnapshotId(points[index].disks[0].snapshot.clone()))
    }

    async fn verify(&self, vault: &Vault, deep: bool) -> ServerReport {
        let patience = Patience::new(self.source.env.clone());
        let servers = inventory::servers(vault, &patience).await.unwrap();
        let held = inventory::choose(servers, self.source.server.as_str())
            .unwrap_or_else(|_| panic!("the server is not found"));
        verify::server(vault, &held, &self.source.env, deep, |_| {}).await.unwrap()
    }

    async fn open(&self, vault: &Vault, selector: PointSelector) -> Result<(u64, Images), IndexError> {
        let options = IndexOptions::default();
        let source = &self.source;
        let index = BlockIndex::open(vault, &source.server, &source.env, selector, &options).await?;
        let mut images = Images::new();
        for disk in index.disks() {
            let blocks = disk.size_bytes.div_ceil(4096) as u32;
            images.insert(disk.slot.0, index.read(disk.slot, 0, blocks).await?.to_vec());
        }
        Ok((index.point().number, images))
    }

    /// What verification calls recoverable opens as it was; what it calls lost does not open as something else; and
    /// nobody who asks for the latest point gets another one.
    async fn verdict_is_true(&self, vault: &Vault, report: &ServerReport, what: &str) {
        for (number, wanted) in &self.source.points {
            let opened = self.open(vault, PointSelector::Number(*number)).await;
            let run =
                report.points.runs.iter().find(|run| (run.first.number..=run.last.number).contains(number));
            match (opened, run.is_some_and(|run| run.recoverable)) {
                (Ok((_, images)), true) => assert!(images == *wanted, "{what}: point {number} differs"),
                (Err(error), true) => panic!("{what}: point {number} does not open: {error}"),
                (Ok(_), false) => panic!("{what}: point {number} opens although it is called lost"),
                (Err(_), false) => {}
            }
        }
        let newest = *self.source.points.keys().last().unwrap();
        if let Ok((number, images)) = self.open(vault, PointSelector::Latest).await {
            assert_eq!(number, newest, "{what}: an older point is given for the latest one");
            assert!(images == self.source.points[&newest], "{what}: the latest point differs");
        }
    }
}

fn worst(findings: &[Finding]) -> Option<Severity> {
    findings.iter().map(|finding| finding.severity).max()
}

#[track_caller]
fn names(report: &ServerReport, blob: &str, severity: Severity, what: &str) {
    let found = report.findings.iter().any(|finding| finding.blob == blob && finding.severity == severity);
    assert!(found, "{what}: {blob} is not named as {severity:?}: {:#?}", report.findings);
}

#[tokio::test(start_paused = true)]
async fn a_whole_vault_is_called_whole() {
    let site = Site::new().await;
    for deep in [false, true] {
        let report = site.verify(&site.source.vault, deep).await;
        let bad: Vec<_> =
            report.findings.iter().filter(|finding| finding.severity > Severity::Note).collect();
        // Nobody has adopted the server here, so it has no server.json.
        assert_eq!(bad.len(), 1, "{bad:#?}");
        assert!(bad[0].blob.ends_with("server.json"));
        assert_eq!(report.points.known, site.source.points.len() as u64);
        assert_eq!(report.points.recoverable, report.points.known);
        assert_eq!(report.log.last_record, 16);
        assert!(report.snapshots.listed > 2, "{:?}", report.snapshots);
        assert_eq!(report.snapshots.standing, report.snapshots.listed);
        assert_eq!(report.snapshots.compared, if deep { report.snapshots.listed } else { 0 });
        assert_eq!(report.segments.opened, if deep { report.segments.named } else { 0 });
        site.verdict_is_true(&site.source.vault, &report, "whole").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_anywhere_in_the_log_is_named() {
    let site = Site::new().await;
    for epoch in [1, 2] {
        for permille in [0, 1, 40, 333, 700, 999] {
            let how = Tamper::Flip { permille, bit: (permille % 8) as u8 };
            let what = format!("{how:?} of part {epoch}");
            let vault = site.tampered(&site.part(epoch), None, how);
            let report = site.verify(&vault, true).await;
            names(&report, &site.part(epoch), Severity::Damage, &what);
            site.verdict_is_true(&vault, &report, &what).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_was_cut_or_lost_is_named() {
    let site = Site::new().await;
    for epoch in [1, 2] {
        let cuts = [Tamper::Missing, Tamper::Truncated { permille: 400 }, Tamper::Truncated { permille: 0 }];
        for how in cuts {
            let what = format!("{how:?} of part {epoch}");
            let vault = site.tampered(&site.part(epoch), None, how);
            let report = site.verify(&vault, true).await;
            assert_eq!(worst(&report.findings), Some(Severity::Damage), "{what}: {:#?}", report.findings);
            assert!(
                report.findings.iter().any(|finding| finding.blob == site.part(epoch)),
                "{what}: {:#?}",
                report.findings
            );
            site.verdict_is_true(&vault, &report, &what).await;
        }
    }
}

/// A part that is put back to an older version is a valid log; what shows it is what was read beyond.
#[tokio::test(start_paused = true)]
async fn a_log_part_of_an_older_version_is_named() {
    let site = Site::new().await;
    for epoch in [1, 2] {
        let content = site.source.store.get(&site.part(epoch), None, None).await.unwrap();
        // At the end of a frame, as the store's versions have it.
        let mut ends = vec![0];
        while let Some(frame) =
            lifeboat_replication::log::frame::RawFrame::split(&content[*ends.last().unwrap()..]).unwrap()
        {
            ends.push(ends.last().unwrap() + frame.len() as usize);
        }
        let how = Tamper::Older { content: content.slice(..ends[3]), sequence_number: 0 };
        let what = format!("an older version of part {epoch}");
        let vault = site.tampered(&site.part(epoch), None, how);
        let report = site.verify(&vault, false).await;
        names(&report, &site.part(epoch), Severity::Damage, &what);
        site.verdict_is_true(&vault, &report, &what).await;
        // From a snapshot of the second epoch nothing of the first is read.
        if epoch == 2 {
            let error = site.open(&vault, PointSelector::Latest).await.unwrap_err();
            let error = lifeboat_replication::errors::chain(&error);
            assert!(error.contains("ask for it by its number"), "{error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_cut_or_lost_segment_is_named_with_the_points_it_costs() {
    let site = Site::new().await;
    let name = layout::segment(&site.source.server, Epoch(2), RecordNumber(15), "writer", 0);
    let old = site.source.store.get(&name, None, None).await.unwrap();
    let other = layout::segment(&site.source.server, Epoch(1), RecordNumber(1), "writer", 0);
    let other = site.source.store.get(&other, None, None).await.unwrap();
    assert!(!old.is_empty());
    for (how, deep) in [
        (Tamper::Missing, false),
        (Tamper::Truncated { permille: 500 }, false),
        (Tamper::Flip { permille: 900, bit: 3 }, true),
        (Tamper::Flip { permille: 0, bit: 0 }, true),
        (Tamper::Older { content: other, sequence_number: 0 }, true),
    ] {
        let what = format!("{how:?}");
        let vault = site.tampered(&name, None, how);
        let report = site.verify(&vault, deep).await;
        names(&report, &name, Severity::Damage, &what);
        let finding = report.findings.iter().find(|finding| finding.blob == name).unwrap();
        assert_eq!(finding.record, Some(15), "{what}");
        assert!(report.points.recoverable < report.points.known, "{what}");
        assert_eq!(finding.hurts.count, report.points.known - report.points.recoverable, "{what}");
        site.verdict_is_true(&vault, &report, &what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_catalogue_is_named_and_no_point_opens_as_another() {
    let site = Site::new().await;
    for file in ["position.json", "points.json"] {
        let name = layout::catalogue(&site.source.server, file);
        let length = site.source.store.get(&name, None, None).await.unwrap().len();
        let flips = (0..length).step_by(41).map(|byte| Tamper::FlipAt { byte, bit: (byte % 7) as u8 });
        for how in flips.chain([Tamper::Truncated { permille: 500 }]) {
            let what = format!("{how:?} of {file}");
            let vault = site.tampered(&name, None, how);
            let report = site.verify(&vault, false).await;
            let bad = report.findings.iter().filter(|finding| !finding.blob.ends_with("server.json"));
            assert!(
                bad.map(|finding| finding.severity).max() > Some(Severity::Note),
                "{what} is not noticed: {:#?}",
                report.findings
            );
            site.verdict_is_true(&vault, &report, &what).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_catalogue_of_an_older_version_is_named() {
    let mut site = Site::new().await;
    let read = async |site: &Site, file| {
        let name = layout::catalogue(&site.source.server, file);
        (name.clone(), site.source.store.get(&name, None, None).await.unwrap())
    };
    let old = [read(&site, "position.json").await, read(&site, "points.json").await];
    site.rounds(17..24).await;
    site.apply().await;
    for (name, content) in old {
        let how = Tamper::Older { content, sequence_number: 0 };
        let vault = site.tampered(&name, None, how);
        let report = site.verify(&vault, false).await;
        names(&report, &name, Severity::Degraded, "an older version");
        site.verdict_is_true(&vault, &report, &name).await;
    }
}

#[tokio::test(start_paused = true)]
async fn lost_snapshots_and_seed_disks_are_named_and_the_journal_takes_their_place() {
    let site = Site::new().await;
    let (_, snapshot) = site.snapshot(1).await;
    let (_, newest) = site.snapshot(3).await;
    for (snapshot, how) in [
        (Some(snapshot.clone()), Tamper::Missing),
        (Some(newest), Tamper::Missing),
        (Some(snapshot), Tamper::Truncated { permille: 600 }),
        (None, Tamper::Missing),
    ] {
        let what = format!("{how:?} of {snapshot:?}");
        let vault = site.tampered(&site.seed(), snapshot, how);
        let report = site.verify(&vault, false).await;
        names(&report, &site.seed(), Severity::Degraded, &what);
        assert_eq!(report.points.recoverable, report.points.known, "{what}");
        site.verdict_is_true(&vault, &report, &what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_seed_disk_of_an_older_version_is_named() {
    let site = Site::new().await;
    let content = site.source.store.get(&site.seed(), None, None).await.unwrap();
    let how = Tamper::Older { content, sequence_number: (1 << 32) | 4 };
    let report = site.verify(&site.tampered(&site.seed(), None, how), false).await;
    names(&report, &site.seed(), Severity::Degraded, "an older seed disk");
}

/// Pages carry no checksum: only the comparison with the journal shows a flipped one.
#[tokio::test(start_paused = true)]
async fn a_flipped_page_of_a_snapshot_is_found_by_a_deep_verification() {
    let site = Site::new().await;
    let (number, snapshot) = site.snapshot(1).await;
    let footer = (2 << 20) + 40;
    for byte in [0, 7 * 4096 + 100, (1 << 20) + 7, footer] {
        let how = Tamper::FlipAt { byte, bit: 5 };
        let what = format!("{how:?}");
        let vault = site.tampered(&site.seed(), Some(snapshot.clone()), how);
        let report = site.verify(&vault, true).await;
        names(&report, &site.seed(), Severity::Damage, &what);
        let finding = report.findings.iter().find(|finding| finding.blob == site.seed()).unwrap();
        assert_eq!(finding.record, Some(number), "{what}");
        assert_eq!(finding.byte.map(|at| at / 4096), Some(byte as u64 / 4096), "{what}");
    }
}

/// Counts reads of one blob, of its snapshots too.
#[derive(Debug)]
struct Reads {
    of: String,
    count: AtomicUsize,
}

impl Gate for Reads {
    async fn pass<T: Send>(
        &self,
        call: Call<'_>,
        request: impl Future<Output = lifeboat_replication::store::Result<T>> + Send,
    ) -> lifeboat_replication::store::Result<T> {
        let counts = call.operation == "get" && call.name == self.of;
        self.count.fetch_add(usize::from(counts), Ordering::Relaxed);
        request.await
    }
}

/// With many snapshots it would take twice as long else.
#[tokio::test(start_paused = true)]
async fn what_the_journal_has_not_written_since_the_snapshot_before_is_read_once() {
    const MEBIBYTES: u32 = 16;
    let mut source = Source::new(&[u64::from(MEBIBYTES) << 20]).await;
    let write = |first, blocks, byte| vec![Write { disk: 1, first, blocks, byte: Some(byte) }];
    source.record(RecordKind::Copy, false, 0, &[write(0, MEBIBYTES * 256, 1)]).await;
    for second in 1..6 {
        source.record(RecordKind::Exact, true, i64::from(second), &[write(3, 1, 1 + second as u8)]).await;
    }
    let site = Site { source };
    let options = Options { point_interval: Duration::from_secs(1), ..Options::default() };
    let Source { vault, server, env, .. } = &site.source;
    let mut applier = Applier::new(vault.clone(), server.clone(), env.clone(), options);
    while applier.step().await.unwrap() != Step::CaughtUp {}
    let store = Arc::new(site.source.store.clone());
    let reads = Gated::new(store, Reads { of: site.seed(), count: AtomicUsize::new(0) });
    let vault = Vault { store: reads.clone(), cache: reads.clone(), ..site.source.vault.clone() };
    let report = site.verify(&vault, true).await;
    assert_eq!(report.snapshots.compared, 5, "{:#?}", report.findings);
    let chunks = MEBIBYTES as usize;
    // Of five snapshots each chunk and the footer; the seed disk itself, by its checksums.
    let once = 5 * (chunks + 1) + chunks;
    let reads = reads.count.load(Ordering::Relaxed);
    println!("{reads} reads, {once} at least");
    assert!(reads < once + 4 * chunks, "{reads} reads, {once} at least");
}

/// Before the next snapshot has it.
#[tokio::test(start_paused = true)]
async fn a_flipped_page_of_a_seed_disk_is_found_by_its_checksum() {
    let mut site = Site::new().await;
    site.apply().await;
    let byte = 9 * 4096 + 5;
    let vault = site.tampered(&site.seed(), None, Tamper::FlipAt { byte, bit: 1 });
    let report = site.verify(&vault, true).await;
    names(&report, &site.seed(), Severity::Degraded, "a flipped page");
    let finding = report.findings.iter().find(|finding| finding.blob == site.seed()).unwrap();
    assert_eq!(finding.byte, Some(9 * 4096));
}

#[tokio::test(start_paused = true)]
async fn a_changed_vault_json_is_named() {
    let site = Site::new().await;
    let length = site.source.store.get(layout::VAULT_JSON, None, None).await.unwrap().len();
    let check = |vault: Vault| async move { verify::vault(&vault, Some(RECOVERY_KEY)).await.unwrap() };
    let whole = check(site.source.vault.clone()).await;
    assert_eq!(whole.key_bundle, verify::BundleCheck::Opened, "{whole:#?}");
    assert_eq!(whole.findings, []);
    let content = site.source.store.get(layout::VAULT_JSON, None, None).await.unwrap();
    let text = std::str::from_utf8(&content).unwrap();
    let bundle = text.find("-----BEGIN AGE").unwrap()..text.find("-----END AGE").unwrap();
    for byte in (0..length).step_by(11) {
        // The age armour ignores the case of nothing and the end of no line, but white space is free in JSON.
        let report = check(site.tampered(layout::VAULT_JSON, None, Tamper::FlipAt { byte, bit: 2 })).await;
        let meaning = bundle.contains(&byte) || text[..byte].contains("bundleDigest");
        assert!(!report.findings.is_empty() || !meaning, "byte {byte} ({:?})", text.get(byte..byte + 9));
    }
    for how in [Tamper::Missing, Tamper::Truncated { permille: 500 }] {
        let report = check(site.tampered(layout::VAULT_JSON, None, how)).await;
        assert_eq!(worst(&report.findings), Some(Severity::Damage));
    }
}

#[tokio::test(start_paused = true)]
async fn a_vault_json_from_before_a_key_was_added_is_named() {
    let site = Site::new().await;
    let old = site.source.store.get(layout::VAULT_JSON, None, None).await.unwrap();
    let keys = Arc::new(site.source.vault.keys.rotated(&*site.source.env.entropy));
    let vault = Vault {
        keys,
        ..site.tampered(layout::VAULT_JSON, None, Tamper::Older { content: old, sequence_number: 0 })
    };
    let report = verify::vault(&vault, None).await.unwrap();
    assert!(report.findings[0].what.contains("older than the keys"), "{:#?}", report.findings);
}

#[tokio::test(start_paused = true)]
async fn a_changed_server_json_is_named_and_its_points_open() {
    let site = Site::new().await;
    let adopted = site.source.vault.adopt_server("default", "db-1", &site.source.env).await.unwrap();
    let name = layout::server_json(&adopted.id);
    let patience = Patience::new(site.source.env.clone());
    let find = |vault: Vault| {
        let (id, patience) = (adopted.id.clone(), patience.clone());
        async move {
            let servers = inventory::servers(&vault, &patience).await.unwrap();
            servers.into_iter().find(|held: &Held| held.id == id).unwrap()
        }
    };
    let whole = find(site.source.vault.clone()).await;
    assert_eq!((whole.name().as_str(), whole.findings.len()), ("default/db-1", 0));
    for how in [Tamper::Missing, Tamper::Truncated { permille: 500 }, Tamper::FlipAt { byte: 0, bit: 1 }] {
        let held = find(site.tampered(&name, None, how)).await;
        assert_eq!(held.findings[0].blob, name);
        assert_eq!(held.findings[0].severity, Severity::Degraded);
    }
    let named = layout::name_json("default", "db-1");
    let held = find(site.tampered(&named, None, Tamper::FlipAt { byte: 0, bit: 1 })).await;
    assert_eq!(held.findings[0].blob, named);
}
