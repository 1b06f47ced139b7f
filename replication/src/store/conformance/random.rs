//! The same random sequence of calls on two stores, answers compared one by one.
//!
//! ETags and snapshot names differ between stores by nature: they are compared by which answer they came from. Calls
//! that the emulator is known to answer differently (see [`crate::store::model`]) are not made. A difference comes with
//! its seed and step, so it can be replayed.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use bytes::Bytes;

use super::{holder, page::merged};
use crate::store::{
    BlobKind, BlobStore, ETag, LeaseId, LeaseState, PutCondition, Refusal, Result, SnapshotId, StoreError,
};

/// Longer than a sequence takes, so that no lease expires on one store and not on the other.
const TERM: Duration = Duration::from_secs(60);
const DISK_BYTES: u64 = 16 << 10;
/// Two blobs of each kind.
const NAMES: [(&str, BlobKind); 6] = [
    ("block/1", BlobKind::Block),
    ("block/2", BlobKind::Block),
    ("log/1", BlobKind::Append),
    ("log/2", BlobKind::Append),
    ("disk/1", BlobKind::Page),
    ("disk/2", BlobKind::Page),
];

/// Where the stores disagreed.
#[derive(Debug, thiserror::Error)]
#[error("seed {seed}, step {step}: {call}: one store answered {one}, the other {other}")]
pub struct Difference {
    pub seed: u64,
    pub step: usize,
    pub call: String,
    pub one: String,
    pub other: String,
}

/// How many calls ended how: a sequence in which a kind of answer never comes proves nothing about it.
pub type Reached = BTreeMap<String, usize>;

/// Runs `steps` calls below `prefix`, which nobody has used before.
pub async fn compare(
    one: &dyn BlobStore,
    other: &dyn BlobStore,
    prefix: &str,
    seed: u64,
    steps: usize,
) -> std::result::Result<Reached, Difference> {
    let mut random = SplitMix64(seed);
    let (mut first, mut second) = (Side::new(one, prefix), Side::new(other, prefix));
    let mut lengths = BTreeMap::new();
    let mut reached = Reached::new();
    for step in 0..steps {
        let call = Call::draw(&mut random, &lengths);
        if matches!(call, Call::Snapshot { .. }) {
            // The emulator names snapshots by the millisecond.
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        let answer = first.run(&call).await;
        let answer_other = second.run(&call).await;
        if answer != answer_other {
            let (one, other) = (format!("{answer:?}"), format!("{answer_other:?}"));
            return Err(Difference { seed, step, call: format!("{call:?}"), one, other });
        }
        call.note_length(&answer, &mut lengths);
        *reached.entry(format!("{} {}", call.kind(), answer.kind())).or_default() += 1;
    }
    Ok(reached)
}

/// Small, seeded, the same everywhere.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

type Name = usize;

#[derive(Debug, Clone)]
enum Call {
    Put { name: Name, fill: u8, length: usize, condition: Condition },
    Delete { name: Name, snapshot: Option<usize> },
    CreateAppend { name: Name },
    CreatePage { name: Name },
    Append { name: Name, fill: u8, length: usize, holder: u8, position: u64 },
    Seal { name: Name, holder: u8 },
    WritePages { name: Name, pages: Range<u64>, fill: u8, holder: Option<u8>, at_most: u64 },
    ClearPages { name: Name, pages: Range<u64>, holder: Option<u8>, at_most: u64 },
    RaiseSequence { name: Name, to: u64, holder: Option<u8> },
    Snapshot { name: Name, holder: Option<u8>, etag: Option<usize> },
    Acquire { name: Name, holder: u8 },
    Renew { name: Name, holder: u8 },
    Release { name: Name, holder: u8 },
    Break { name: Name },
    Properties { name: Name, snapshot: Option<usize> },
    Get { name: Name, snapshot: Option<usize>, range: Option<Range<u64>> },
    PageRanges { name: Name, snapshot: Option<usize> },
    List { with_snapshots: bool },
}

/// ETags are named by how many answers ago they came; 0 is the newest.
#[derive(Debug, Clone, Copy)]
enum Condition {
    Absent,
    Match(usize),
    Always,
}

impl Call {
    fn draw(random: &mut SplitMix64, lengths: &BTreeMap<Name, u64>) -> Self {
        let name = random.below(NAMES.len() as u64) as usize;
        let (block, log, disk) = (name % 2, 2 + name % 2, 4 + name % 2);
        // Mostly a blob of the right kind; creating goes to the right one always.
        let log_or_other = if random.one_in(20) { name } else { log };
        let disk_or_other = if random.one_in(20) { name } else { disk };
        let fill = random.below(250) as u8 + 1;
        let holder = random.below(3) as u8 + 1;
        let maybe_holder = (!random.one_in(3)).then_some(holder);
        let snapshot = random.one_in(3).then(|| random.below(3) as usize);
        let start = random.below(DISK_BYTES / 512);
        let pages = start..(start + 1 + random.below(12)).min(DISK_BYTES / 512);
        let at_most = random.below(12);
        let end = lengths.get(&log_or_other).copied().unwrap_or(0);
        let position = if random.one_in(4) { random.below(end + 2) } else { end };
        let length = 1 + random.below(40) as usize;
        match random.below(37) {
            0 | 1 => Self::Put { name: block, fill, length, condition: Condition::Absent },
            2 => Self::Put { name: block, fill, length: length - 1, condition: Condition::Always },
            3 | 4 => {
                Self::Put { name: block, fill, length, condition: Condition::Match(random.below(2) as usize) }
            }
            5 => Self::Delete { name, snapshot },
            6 => Self::CreateAppend { name: log },
            7 => Self::CreatePage { name: disk },
            8..=13 => Self::Append { name: log_or_other, fill, length, holder, position },
            14 if random.one_in(3) => Self::Seal { name: log_or_other, holder },
            14..=17 => Self::WritePages { name: disk_or_other, pages, fill, holder: maybe_holder, at_most },
            18 | 19 => Self::ClearPages { name: disk_or_other, pages, holder: maybe_holder, at_most },
            20 => Self::RaiseSequence { name: disk, to: at_most, holder: maybe_holder },
            21 | 22 => Self::Snapshot {
                name,
                holder: random.one_in(3).then_some(holder),
                etag: random.one_in(2).then(|| random.below(2) as usize),
            },
            23..=25 => Self::Acquire { name, holder },
            26 => Self::Renew { name, holder },
            27 => Self::Release { name, holder },
            28 => Self::Break { name },
            29 | 30 => Self::Properties { name, snapshot },
            31..=33 => {
                let start = random.below(60);
                let range = (!random.one_in(4)).then(|| start..start + 1 + random.below(3000));
                Self::Get { name, snapshot, range }
            }
            34 | 35 => Self::PageRanges { name: disk_or_other, snapshot },
            _ => Self::List { with_snapshots: random.one_in(2) },
        }
    }

    fn kind(&self) -> String {
        let shown = format!("{self:?}");
        shown.split([' ', '{']).next().unwrap_or_default().to_owned()
    }

    fn note_length(&self, answer: &Answer, lengths: &mut BTreeMap<Name, u64>) {
        match (self, answer) {
            (Self::Append { name, length, .. }, Answer::Done) => {
                *lengths.entry(*name).or_default() += *length as u64
            }
            (Self::Delete { name, snapshot: None }, Answer::Done) => {
                lengths.remove(name);
            }
            _ => {}
        }
    }
}

#[derive(Debug, PartialEq)]
enum Answer {
    Done,
    Refused(Refusal),
    /// Two healthy stores always answer.
    Unknown(String),
    Content(Bytes),
    Properties(BlobKind, u64, LeaseState, bool, u32, u64, Option<usize>),
    Ranges(Vec<Range<u64>>),
    Sequence(u64),
    List(Vec<(String, Option<usize>, BlobKind, u64)>),
}

impl Answer {
    fn kind(&self) -> String {
        match self {
            Self::Refused(why) => format!("refused: {why:?}"),
            Self::Unknown(_) => "unknown".to_owned(),
            _ => "done".to_owned(),
        }
    }
}

/// One store, and what it has answered so far.
struct Side<'a> {
    store: &'a dyn BlobStore,
    prefix: &'a str,
    etags: BTreeMap<Name, Vec<ETag>>,
    snapshots: BTreeMap<Name, Vec<SnapshotId>>,
}

impl<'a> Side<'a> {
    fn new(store: &'a dyn BlobStore, prefix: &'a str) -> Self {
        Self { store, prefix, etags: BTreeMap::new(), snapshots: BTreeMap::new() }
    }

    async fn run(&mut self, call: &Call) -> Answer {
        self.try_run(call).await.unwrap_or_else(|error| match error {
            StoreError::Refused { why, .. } => Answer::Refused(why),
            StoreError::Unknown { detail, .. } => Answer::Unknown(detail),
        })
    }

    async fn try_run(&mut self, call: &Call) -> Result<Answer> {
        let store = self.store;
        match call.clone() {
            Call::Put { name, fill, length, condition } => {
                let condition = match condition {
                    Condition::Absent => PutCondition::IfAbsent,
                    Condition::Always => PutCondition::Always,
                    Condition::Match(ago) => PutCondition::IfMatch(self.etag(name, ago)),
                };
                let etag = store.put(&self.path(name), Bytes::from(vec![fill; length]), &condition).await?;
                Ok(self.changed(name, etag))
            }
            Call::Delete { name, snapshot } => {
                let snapshot = snapshot.map(|ago| self.snapshot(name, ago));
                store.delete(&self.path(name), snapshot.as_ref()).await?;
                Ok(Answer::Done)
            }
            Call::CreateAppend { name } => {
                let etag = store.create_append(&self.path(name)).await?;
                Ok(self.changed(name, etag))
            }
            Call::CreatePage { name } => {
                let etag = store.create_page(&self.path(name), DISK_BYTES).await?;
                Ok(self.changed(name, etag))
            }
            Call::Append { name, fill, length, holder: number, position } => {
                let content = Bytes::from(vec![fill; length]);
                store.append(&self.path(name), content, &holder(number), position).await?;
                Ok(Answer::Done)
            }
            Call::Seal { name, holder: number } => {
                store.seal(&self.path(name), &holder(number)).await?;
                Ok(Answer::Done)
            }
            Call::WritePages { name, pages, fill, holder: number, at_most } => {
                let content = Bytes::from(vec![fill; ((pages.end - pages.start) * 512) as usize]);
                let lease = number.map(holder);
                let offset = pages.start * 512;
                let etag =
                    store.write_pages(&self.path(name), offset, content, lease.as_ref(), at_most).await?;
                Ok(self.changed(name, etag))
            }
            Call::ClearPages { name, pages, holder: number, at_most } => {
                let range = pages.start * 512..pages.end * 512;
                let lease = number.map(holder);
                let etag = store.clear_pages(&self.path(name), range, lease.as_ref(), at_most).await?;
                Ok(self.changed(name, etag))
            }
            Call::RaiseSequence { name, to, holder: number } => {
                let lease = number.map(holder);
                Ok(Answer::Sequence(store.raise_sequence(&self.path(name), to, lease.as_ref()).await?))
            }
            Call::Snapshot { name, holder: number, etag } => {
                let lease: Option<LeaseId> = number.map(holder);
                let etag = etag.map(|ago| self.etag(name, ago));
                let snapshot = store.snapshot(&self.path(name), lease.as_ref(), etag.as_ref()).await?;
                self.snapshots.entry(name).or_default().push(snapshot);
                Ok(Answer::Done)
            }
            Call::Acquire { name, holder: number } => {
                store.acquire_lease(&self.path(name), &holder(number), TERM).await?;
                Ok(Answer::Done)
            }
            Call::Renew { name, holder: number } => {
                store.renew_lease(&self.path(name), &holder(number)).await?;
                Ok(Answer::Done)
            }
            Call::Release { name, holder: number } => {
                store.release_lease(&self.path(name), &holder(number)).await?;
                Ok(Answer::Done)
            }
            Call::Break { name } => {
                store.break_lease(&self.path(name)).await?;
                Ok(Answer::Done)
            }
            Call::Properties { name, snapshot } => {
                let snapshot = snapshot.map(|ago| self.snapshot(name, ago));
                let found = store.properties(&self.path(name), snapshot.as_ref()).await?;
                let etag = self.known(name, found.etag);
                let (appends, sequence) = (found.appends, found.sequence_number);
                Ok(Answer::Properties(
                    found.kind,
                    found.length,
                    found.lease,
                    found.sealed,
                    appends,
                    sequence,
                    etag,
                ))
            }
            Call::Get { name, snapshot, range } => {
                let snapshot = snapshot.map(|ago| self.snapshot(name, ago));
                Ok(Answer::Content(store.get(&self.path(name), snapshot.as_ref(), range).await?))
            }
            Call::PageRanges { name, snapshot } => {
                let snapshot = snapshot.map(|ago| self.snapshot(name, ago));
                Ok(Answer::Ranges(merged(store.page_ranges(&self.path(name), snapshot.as_ref()).await?)))
            }
            Call::List { with_snapshots } => self.list(with_snapshots).await,
        }
    }

    async fn list(&self, with_snapshots: bool) -> Result<Answer> {
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let page = self.store.list(self.prefix, with_snapshots, after.as_deref()).await?;
            for blob in page.blobs {
                let snapshot = blob.snapshot.map(|id| {
                    let made = self.snapshots.values().flatten().position(|known| *known == id);
                    made.unwrap_or(usize::MAX)
                });
                listed.push((blob.name, snapshot, blob.kind, blob.length));
            }
            after = page.next;
            if after.is_none() {
                return Ok(Answer::List(listed));
            }
        }
    }

    fn path(&self, name: Name) -> String {
        format!("{}/{}", self.prefix, NAMES.get(name).map_or("", |(name, _)| name))
    }

    fn changed(&mut self, name: Name, etag: ETag) -> Answer {
        self.etags.entry(name).or_default().push(etag);
        Answer::Done
    }

    /// Which answer brought this ETag first; one that is new here is learnt.
    fn known(&mut self, name: Name, etag: ETag) -> Option<usize> {
        let etags = self.etags.entry(name).or_default();
        let place = etags.iter().position(|known| *known == etag);
        if place.is_none() {
            etags.push(etag);
        }
        place
    }

    fn etag(&self, name: Name, ago: usize) -> ETag {
        let known = self.etags.get(&name).and_then(|etags| etags.iter().rev().nth(ago));
        known.cloned().unwrap_or_else(|| ETag("\"0x0\"".to_owned()))
    }

    fn snapshot(&self, name: Name, ago: usize) -> SnapshotId {
        let known = self.snapshots.get(&name).and_then(|made| made.iter().rev().nth(ago));
        known.cloned().unwrap_or_else(|| SnapshotId("2020-01-01T00:00:00.0000000Z".to_owned()))
    }
}
