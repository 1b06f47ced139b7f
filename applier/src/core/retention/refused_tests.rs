//! A store that refuses in the middle of a sweep: what is gone already is done, anything else ends it with the reason.

use lifeboat_replication::{
    catalogue::{self, Point, Points},
    ids::{Epoch, RecordId, RecordNumber},
    log::{LogState, PartName},
    pins::{Pin, Records},
    store::{PutCondition, Refusal, SnapshotId, StoreError},
    vault::layout,
};

use super::{
    ages::Keep,
    collector::{CollectError, Collector},
    fixture::{point, refusing, seeds},
    sweep::{Swept, sweep},
};
use crate::core::seeds::Seeds;

/// A seed disk with two pages and two snapshots, of which the newer one is listed; a segment of each of four records, of
/// which the journal needs the last.
async fn vault() -> (Seeds, Points, LogState) {
    let seeds = seeds();
    let disk = seeds.name("disk");
    let store = &seeds.vault.store;
    store.create_page(&disk, 1 << 20).await.unwrap();
    let mut log = LogState::empty(seeds.vault.keys.current().0.clone());
    log.epoch = Epoch(1);
    let mut snapshot = SnapshotId(String::new());
    for number in 1..=2 {
        log.last_number = RecordNumber(number);
        let sequence = RecordId { epoch: log.epoch, number: log.last_number }.sequence();
        store.raise_sequence(&disk, sequence, None).await.unwrap();
        store.write_pages(&disk, number * 4096, vec![1; 512].into(), None, sequence).await.unwrap();
        snapshot = store.snapshot(&disk, None, None).await.unwrap();
    }
    let mut listed = Points::none(&seeds.server);
    listed.points.push(point(&log, &snapshot));
    for number in 1..=4 {
        let name = layout::segment(&seeds.server, Epoch(1), RecordNumber(number), "writer", 0);
        seeds.vault.cache.put(&name, "xyz".into(), &PutCondition::IfAbsent).await.unwrap();
    }
    listed.collected = Some(RecordId { epoch: Epoch(1), number: RecordNumber(3) });
    (seeds, listed, log)
}

async fn swept(seeds: &Seeds, listed: &Points, log: &LogState, pins: &[Pin]) -> Result<Swept, StoreError> {
    let mut swept = Swept::default();
    sweep(seeds, listed, log, pins, &mut swept).await.map(|()| swept)
}

#[tokio::test(start_paused = true)]
async fn what_is_left_is_counted() {
    let (seeds, listed, log) = vault().await;
    let pin = Pin {
        format: 1,
        server: String::new(),
        run: "run".to_owned(),
        base: None,
        records: Some(Records { from: 2, to: 9 }),
        held_for_seconds: 3600,
        renewed_at_micros: 0,
        confirmed: true,
    };
    let swept = swept(&seeds, &listed, &log, &[pin]).await.unwrap();
    // Of record 1; those of 2 and 3 are pinned, that of 4 is needed.
    assert_eq!((swept.segments, swept.segment_bytes, swept.pinned, swept.left.journal_bytes), (1, 3, 2, 9));
    assert_eq!((swept.snapshots, swept.left.snapshots, swept.left.seed_disk_bytes), (1, 1, 1024));
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_has_deleted_meanwhile_is_done() {
    let (seeds, listed, log) = vault().await;
    // The snapshot is gone between the listing and the look at it.
    let look = swept(&refusing(&seeds, "properties", Refusal::NotFound), &listed, &log, &[]).await.unwrap();
    assert_eq!((look.snapshots, look.segments), (0, 3));
    let (seeds, listed, log) = vault().await;
    let pages = swept(&refusing(&seeds, "page_ranges", Refusal::NotFound), &listed, &log, &[]).await.unwrap();
    assert_eq!((pages.snapshots, pages.segments, pages.left.seed_disk_bytes), (1, 3, 0));
    let (seeds, listed, log) = vault().await;
    let gone = swept(&refusing(&seeds, "delete", Refusal::NotFound), &listed, &log, &[]).await.unwrap();
    assert_eq!((gone.snapshots, gone.segments, gone.left.journal_bytes), (1, 3, 3));
}

/// A credential that lost its right: said, and not taken for a vault that is clean.
#[tokio::test(start_paused = true)]
async fn a_refusal_ends_the_sweep_with_its_reason() {
    for operation in ["properties", "page_ranges", "delete", "list"] {
        let (seeds, listed, log) = vault().await;
        let refused = swept(&refusing(&seeds, operation, Refusal::Denied), &listed, &log, &[]).await;
        assert!(refused.is_err_and(|error| error.is(Refusal::Denied)), "{operation}");
    }
    // Nothing but a part of the log is to go.
    let seeds = seeds();
    for part in 0..2 {
        let part = PartName { epoch: Epoch(1), part }.blob(&seeds.server);
        seeds.vault.store.create_append(&part).await.unwrap();
    }
    let mut log = LogState::empty(seeds.vault.keys.current().0.clone());
    (log.epoch, log.part, log.last_number) = (Epoch(1), 1, RecordNumber(2));
    let mut listed = Points::none(&seeds.server);
    listed.points.push(point(&log, &SnapshotId(String::new())));
    listed.collected = listed.points.last().map(Point::id);
    listed.log_begins = Some(PartName { epoch: Epoch(1), part: 1 });
    assert_eq!(
        swept(&refusing(&seeds, "seal", Refusal::Denied), &listed, &log, &[]).await.unwrap().log_parts,
        1
    );
    seeds
        .vault
        .store
        .create_append(&PartName { epoch: Epoch(1), part: 0 }.blob(&seeds.server))
        .await
        .unwrap();
    let refused = swept(&refusing(&seeds, "delete", Refusal::Denied), &listed, &log, &[]).await;
    assert!(refused.is_err_and(|error| error.is(Refusal::Denied)));
}

#[tokio::test(start_paused = true)]
async fn a_list_that_cannot_be_looked_at_is_not_taken_for_none() {
    let (seeds, listed, log) = vault().await;
    let written = catalogue::write(&seeds.vault, &seeds.server, &listed, None).await.unwrap();
    let mut collector = Collector::new(std::time::Duration::from_secs(1), no_policy(), None);
    let keep = Keep { retention: std::time::Duration::MAX, journal: std::time::Duration::MAX };
    let denied = refusing(&seeds, "properties", Refusal::Denied);
    let ran = collector.run(&denied, keep, &log, &mut (listed, Some(written)), &mut Swept::default()).await;
    assert!(matches!(&ran, Err(CollectError::Store(error)) if error.is(Refusal::Denied)), "{ran:?}");
}

fn no_policy() -> tokio::sync::watch::Receiver<Option<lifeboat_replication::vault::RetentionPolicy>> {
    tokio::sync::watch::channel(None).1
}
