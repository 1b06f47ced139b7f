//! Measurements of a machine in memory, on a clock that does not wait.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use lifeboat_replication::env::{Micros, Wall};

use super::*;
use crate::{edge::DirtyMap, memory::Machine};

#[derive(Debug)]
struct NoDate;

impl Wall for NoDate {
    fn now(&self) -> Micros {
        Micros(0)
    }
}

/// Counts what the tests write; the machine in memory does not.
struct MemoryChurn {
    map: Box<dyn DirtyMap>,
    written: Arc<AtomicU64>,
    lost: Arc<Mutex<Option<String>>>,
}

impl Churn for MemoryChurn {
    fn round(&mut self) -> Result<BlockSet, TrackError> {
        self.map.flip()?;
        let taken = self.map.take()?;
        self.map.forget(&taken)?;
        Ok(taken)
    }

    fn again(&mut self, blocks: &BlockSet) -> Result<BlockSet, TrackError> {
        self.map.issued_now(blocks)
    }

    fn written(&self) -> Vec<u64> {
        vec![self.written.load(Relaxed)]
    }

    fn lost(&mut self) -> Option<String> {
        self.lost.lock().unwrap().take()
    }
}

struct Rig {
    machine: Machine,
    written: Arc<AtomicU64>,
    lost: Arc<Mutex<Option<String>>>,
    measurement: Measurement,
}

impl Rig {
    fn new(blocks: u32, interval: u64, share: f64) -> Self {
        let machine = Machine::new(Arc::new(NoDate), &[blocks], 0);
        let (written, lost) = (Arc::new(AtomicU64::new(0)), Arc::default());
        let churn =
            MemoryChurn { map: machine.map(), written: Arc::clone(&written), lost: Arc::clone(&lost) };
        let interval = Duration::from_secs(interval);
        let measurement = Measurement::new(Box::new(churn), machine.source(), interval, share, 1);
        Self { machine, written, lost, measurement }
    }

    fn write(&self, block: u32, tag: u64) {
        self.machine.write((DiskSlot(1), block), tag);
        self.written.fetch_add(BLOCK_BYTES, Relaxed);
    }

    async fn after(&mut self, seconds: u64) -> u64 {
        self.measurement.rest(Instant::now() + Duration::from_secs(seconds)).await;
        self.measurement.round().await.unwrap()
    }
}

/// Each wait is rounded up to the timer's millisecond.
fn assert_span(span: Span, seconds: f64, bytes: u64) {
    assert_eq!(span.bytes, bytes);
    assert!((seconds..seconds * 1.01).contains(&span.seconds), "{span:?}");
}

#[tokio::test(start_paused = true)]
async fn a_block_written_often_counts_once_a_round_and_each_time_as_written() {
    let mut rig = Rig::new(1000, 1, 0.0);
    for _ in 0..5 {
        rig.write(3, 7);
    }
    rig.write(4, 8);
    assert_eq!(rig.after(1).await, 2 * 4096);
    rig.write(3, 9);
    assert_eq!(rig.after(1).await, 4096);
    assert_eq!(rig.after(1).await, 0);
    let figures = rig.measurement.figures();
    assert_eq!(figures.disks[0].changed_bytes, 3 * 4096);
    assert_eq!(figures.disks[0].written_bytes, 7 * 4096);
    assert_eq!((figures.rounds, figures.appends), (3, 2), "a round without changes costs nothing");
    assert_span(figures.changed.total(), 3.0, 3 * 4096);
    assert_eq!(figures.churn, Sample::default(), "nothing is read without a share");
}

#[tokio::test(start_paused = true)]
async fn longer_rounds_carry_less_of_a_hot_block() {
    let mut rig = Rig::new(1000, 1, 0.0);
    for second in 0..120 {
        rig.write(3, second + 1);
        rig.write(second as u32 + 10, 1);
        rig.after(1).await;
    }
    let wider = &rig.measurement.figures().wider;
    let minute = wider.iter().find(|wider| wider.interval.as_secs() == 60).unwrap();
    assert_span(minute.total, 120.0, 2 * 61 * 4096);
    assert_eq!(minute.most, 61 * 4096);
    let hour = wider.iter().find(|wider| wider.interval.as_secs() == 3600).unwrap();
    assert_eq!(hour.total, Span::default(), "no hour is over");
}

#[tokio::test(start_paused = true)]
async fn the_whole_of_a_small_disk_is_looked_at_within_a_few_rounds() {
    let mut rig = Rig::new(4 * SAMPLE_BLOCKS, 1, 0.1);
    for block in 0..SAMPLE_BLOCKS {
        rig.write(block, 5);
    }
    rig.after(5).await;
    rig.after(5).await;
    let figures = rig.measurement.figures();
    assert!(figures.content_complete);
    assert_eq!(figures.content.used(), Some(0.25));
    let ratio = figures.churn.ratio().unwrap();
    // (Level 1 of zstd makes 64 KiB of 2 MiB of it.)
    assert!(ratio < 0.05, "one word over and over: {ratio}");
}

#[tokio::test(start_paused = true)]
async fn samples_keep_to_their_share_of_the_time() {
    let mut rig = Rig::new(400 * SAMPLE_BLOCKS, 1, 0.1);
    // Two reads of 1 MiB for each sample, one after the other at worst.
    rig.machine.set_read_time(Duration::from_millis(200));
    for _ in 0..100 {
        rig.write(9, 1);
        rig.after(1).await;
    }
    let (busy, elapsed) =
        (rig.measurement.busy.as_secs_f64(), rig.measurement.started.elapsed().as_secs_f64());
    assert!(busy <= 0.1 * elapsed + 0.4, "{busy} of {elapsed}");
    assert!(busy >= 0.05 * elapsed, "it does sample: {busy} of {elapsed}");
}

#[tokio::test(start_paused = true)]
async fn a_round_is_not_exact_when_its_blocks_are_written_before_they_could_be_read() {
    let mut rig = Rig::new(1000, 1, 0.0);
    rig.write(1, 1);
    rig.after(1).await;
    // The flip takes block 2, then block 2 is issued again and not completed.
    rig.write(2, 1);
    rig.measurement.rest(Instant::now() + Duration::from_secs(1)).await;
    let machine = rig.machine.clone();
    let again = async {
        tokio::task::yield_now().await;
        machine.issue((DiskSlot(1), 2), 9);
    };
    let (round, ()) = tokio::join!(rig.measurement.round(), again);
    round.unwrap();
    let figures = rig.measurement.figures();
    assert_eq!((figures.judged, figures.exact), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn lost_marks_are_told() {
    let mut rig = Rig::new(10, 1, 0.0);
    *rig.lost.lock().unwrap() = Some("too many".to_owned());
    rig.after(1).await;
    rig.after(1).await;
    assert_eq!(rig.measurement.figures().losses.iter().collect::<Vec<_>>(), ["too many"]);
}
