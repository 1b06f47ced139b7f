//! Offers the checksums of the vault's disks to an agent that resynchronizes, and answers what it asks.
//!
//! In: the applier's position and `<disk>.sum` files, as they are before the Welcome. Out: rows of checksums, in
//! which every block that may have changed since is unknown.
//!
//! **Never equal what is not.** The answer is about the log's end at the Welcome (its *tip*):
//! - A checksum is of a record from the applier's position on, so blocks of records between the position and the tip
//!   are unknown. For these records the segments are read once, [`MOST_CHANGED`] at most: then memory and time stay
//!   bounded, and the agent is told to copy everything.
//! - The position has to be a place of this very log: following the log from there must lead to the tip, frame by
//!   frame. The file's sequence number has to be that of a record on this way.
//! - Records behind the tip come from this session, whose agent tracks what is written after its reads.
//! - A file that was made anew or went back in time while it is asked for is noticed: header and sequence number
//!   are looked at after each read.
//!
//! **Cost**: two calls for each disk, and for an answer three and one more for each stretch of neighbouring rows.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use lifeboat_replication::{
    blocks::BlockSet,
    catalogue::{self, CatalogueError, Position},
    env::Env,
    errors::chain,
    ids::{DiskSlot, ServerId, sequence_number},
    journal::{self, JournalError},
    log::{LogReader, LogState, Patience, ReadError},
    planted::Planted,
    store::StoreError,
    sums::{self, GROUP_ROWS, HEADER_PAGE, Header, ROW_BLOCKS, ROW_BYTES, SUM_BYTES, UNKNOWN},
    vault::{Vault, layout},
    wire::v1::{self, log_record::Body},
};
use tokio::{sync::mpsc, time::timeout};

/// A vault that takes longer is away; the Welcome must not wait for it.
const LOOK_LIMIT: Duration = Duration::from_secs(10);
/// Changed bytes of records that the applier has not applied: the tables of their segments are read to learn which
/// blocks they name. 4 Mi blocks, so at most 8 MiB of bitmaps.
const MOST_CHANGED: u64 = 16 << 30;
/// Rows whose own sums one question may be about: 256 KiB.
const MOST_ROW_SUMS: u64 = GROUP_ROWS as u64;
/// Rows whose blocks' sums one question may be about: 1 MiB.
const MOST_ROWS: u64 = 256;
/// Calls under way for one answer.
const CALLS: usize = 4;

/// Why the checksums cannot be used; the agent copies everything instead.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("the applier has not written down any position yet")]
    NoPosition,
    #[error("the vault did not answer within {limit:?}")]
    Slow { limit: Duration },
    #[error("the log does not lead from the applier's position to its end: one of them went back in time")]
    OtherLog,
    #[error("the applier is {bytes} bytes behind")]
    Behind { bytes: u64 },
    #[error("the checksums of disk {disk} are older than the applier's position")]
    WentBack { disk: String },
    #[error("no disk has checksums")]
    NoFiles,
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error(transparent)]
    Log(#[from] ReadError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Debug)]
struct File {
    disk_id: String,
    name: String,
    /// Header and sequence number when it was first looked at.
    page: Bytes,
    sequence: u64,
    secret: [u8; 32],
}

#[derive(Debug)]
pub(super) struct Offer {
    vault: Vault,
    server: ServerId,
    patience: Patience,
    position: Position,
    /// Disks of the session by slot, with their rows.
    rows: BTreeMap<u32, u32>,
    files: BTreeMap<u32, File>,
    /// The log's end when the session began.
    tip: LogState,
    planted: Option<Planted>,
}

impl Offer {
    /// Looks at what the vault has, before the session's first record.
    pub(super) async fn look(
        vault: &Vault,
        server: &ServerId,
        env: &Env,
        disks: &[v1::Disk],
        tip: LogState,
        planted: Option<Planted>,
    ) -> Result<Self, Unusable> {
        let look = async {
            let position = catalogue::read::<Position>(vault, server).await?;
            let (position, _) = position.ok_or(Unusable::NoPosition)?;
            let mut offer = Self {
                vault: vault.clone(),
                server: server.clone(),
                patience: Patience { env: env.clone(), tries: 3 },
                position,
                rows: disks.iter().map(|disk| (disk.slot, sums::rows(disk.size_bytes))).collect(),
                files: BTreeMap::new(),
                tip,
                planted,
            };
            for disk in disks {
                if let Some(file) = offer.file(disk).await? {
                    offer.files.insert(disk.slot, file);
                }
            }
            if offer.files.is_empty() { Err(Unusable::NoFiles) } else { Ok(offer) }
        };
        timeout(LOOK_LIMIT, look).await.unwrap_or(Err(Unusable::Slow { limit: LOOK_LIMIT }))
    }

    /// `None`: nothing is known of this disk.
    async fn file(&self, disk: &v1::Disk) -> Result<Option<File>, StoreError> {
        let name = layout::seed_sum(&self.server, &disk.id);
        let looked = async {
            let page = self.vault.store.get(&name, None, Some(0..HEADER_PAGE)).await?;
            Ok((page, self.vault.store.properties(&name, None).await?.sequence_number))
        };
        let (page, sequence) = match looked.await {
            Err(StoreError::Refused { .. }) => return Ok(None),
            looked => looked?,
        };
        let secret = Header::from_page(&page)
            .and_then(|header| header.secret(&self.vault.keys, &self.server, &disk.id));
        let file = |secret| File { disk_id: disk.id.clone(), name: name.clone(), page, sequence, secret };
        Ok(secret.map(file))
    }

    /// For the Welcome.
    pub(super) fn to_wire(&self) -> v1::SumsOffer {
        let disk =
            |(slot, file): (&u32, &File)| v1::SumsKey { disk_slot: *slot, secret: file.secret.to_vec() };
        v1::SumsOffer { disks: self.files.iter().map(disk).collect(), unusable: String::new() }
    }

    /// Answers until nobody asks any more. The first question waits until the records behind the position are read.
    pub(super) async fn serve(self, mut asks: mpsc::Receiver<v1::SumsAsk>, down: mpsc::Sender<v1::Down>) {
        let mut changed = None;
        while let Some(ask) = asks.recv().await {
            let id = ask.id;
            let answer = async {
                let changed = match &mut changed {
                    Some(changed) => changed,
                    none => none.insert(self.changed().await?),
                };
                self.answer(&ask, changed).await
            };
            let sums = match answer.await {
                Ok(sums) => v1::Sums { id, sums, unusable: String::new() },
                Err(error) => {
                    let unusable = chain(&error);
                    tracing::warn!(server = %self.server, unusable, "the vault's checksums cannot be used");
                    v1::Sums { id, sums: Bytes::new(), unusable }
                }
            };
            if down.send(v1::Down { message: Some(v1::down::Message::Sums(sums)) }).await.is_err() {
                return;
            }
        }
    }

    /// Blocks of records from the position to the tip. Follows the log, so that position and files are known to be
    /// of this log.
    async fn changed(&self) -> Result<BlockSet, Unusable> {
        let position = &self.position.log;
        let env = &self.patience.env;
        let mut reader = LogReader::resume(&self.vault, &self.server, env, position.clone())?;
        let at_tip = |reader: &LogReader| reader.state().is_some_and(|state| state.chain == self.tip.chain);
        let mut applied: BTreeSet<u64> = BTreeSet::new();
        let (mut changed, mut bytes) = (BlockSet::default(), 0_u64);
        while !at_tip(&reader) {
            let Some(entry) = reader.next().await? else {
                // Behind the header of a part that has no record yet.
                if at_tip(&reader) {
                    break;
                }
                return Err(Unusable::OtherLog);
            };
            let Body::Data(data) = &entry.body else { continue };
            if data.number > self.tip.last_number.0 {
                // Of this session, in the tip's own epoch: the way here went through the tip.
                if entry.epoch == self.tip.epoch {
                    break;
                }
                return Err(Unusable::OtherLog);
            }
            applied
                .insert(sequence_number(entry.epoch, lifeboat_replication::ids::RecordNumber(data.number)));
            bytes = bytes.saturating_add(data.changed_bytes);
            if bytes > MOST_CHANGED {
                return Err(Unusable::Behind { bytes });
            }
            if self.planted != Some(Planted::ChecksumsIgnoreLaterRecords) {
                self.add_blocks(data, &mut changed).await?;
            }
        }
        for file in self.files.values() {
            let of_position = file.sequence & 0xffff_ffff == position.last_number.0 & 0xffff_ffff;
            if !of_position && !applied.contains(&file.sequence) {
                return Err(Unusable::WentBack { disk: file.disk_id.clone() });
            }
        }
        Ok(changed)
    }

    async fn add_blocks(&self, data: &v1::Data, changed: &mut BlockSet) -> Result<(), Unusable> {
        let sources = stream::iter(journal::sources(data)?);
        let read = |source: journal::Source| async move { source.table(&self.vault, &self.patience).await };
        let mut read = sources.map(read).buffered(CALLS);
        while let Some(table) = read.try_next().await? {
            table.extents.iter().for_each(|extent| changed.insert_run(extent.run));
        }
        Ok(())
    }

    async fn answer(&self, ask: &v1::SumsAsk, changed: &BlockSet) -> Result<Bytes, Unusable> {
        let rows = self.rows.get(&ask.disk_slot).copied().unwrap_or(0);
        let (level, most) =
            if ask.level == 1 { (Level::Rows, MOST_ROW_SUMS) } else { (Level::Blocks, MOST_ROWS) };
        let mut answer = BytesMut::new();
        let mut left = most;
        let mut stretches = Vec::new();
        for run in &ask.rows {
            let end = run.first.saturating_add(run.count).min(rows);
            left = match left.checked_sub(u64::from(run.count)) {
                Some(left) => left,
                None => break,
            };
            level.stretches(run.first..end, &mut stretches);
        }
        let file = self.files.get(&ask.disk_slot);
        let read = stream::iter(stretches).map(|stretch| self.stretch(file, level, stretch)).buffered(CALLS);
        let mut read = std::pin::pin!(read);
        while let Some((rows, mut content)) = read.try_next().await? {
            self.forget(level, DiskSlot(ask.disk_slot), rows, changed, &mut content);
            answer.extend_from_slice(&content);
        }
        if let Some(file) = file {
            self.is_the_same(file).await?;
        }
        Ok(answer.freeze())
    }

    /// What is stored of these rows; what is not there is unknown.
    async fn stretch(
        &self,
        file: Option<&File>,
        level: Level,
        rows: Range<u32>,
    ) -> Result<(Range<u32>, Vec<u8>), Unusable> {
        let bytes = level.bytes_of_rows(&rows);
        let mut content = match file {
            Some(file) => {
                let from = level.at(rows.start);
                match self.get(&file.name, from..from + bytes as u64).await {
                    // The disk has grown, and its file not yet.
                    Err(StoreError::Refused { .. }) => Vec::new(),
                    content => content?,
                }
            }
            None => Vec::new(),
        };
        content.resize(bytes, 0);
        Ok((rows, content))
    }

    async fn get(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let content = self.patience.sure(|| self.vault.store.get(name, None, Some(range.clone()))).await?;
        Ok(content.to_vec())
    }

    /// Blocks that changed behind the position become unknown.
    fn forget(&self, level: Level, disk: DiskSlot, rows: Range<u32>, changed: &BlockSet, content: &mut [u8]) {
        let Some(blocks) = changed.disk(disk) else { return };
        let first = rows.start.saturating_mul(ROW_BLOCKS);
        let last = rows.end.saturating_mul(ROW_BLOCKS);
        for block in blocks.range(first..last) {
            let index = match level {
                Level::Rows => (block / ROW_BLOCKS - rows.start) as usize,
                Level::Blocks => (block - first) as usize,
            };
            if let Some(sum) = content.get_mut(index * SUM_BYTES..(index + 1) * SUM_BYTES) {
                sum.copy_from_slice(&UNKNOWN);
            }
        }
    }

    async fn is_the_same(&self, file: &File) -> Result<(), Unusable> {
        let went_back = || Unusable::WentBack { disk: file.disk_id.clone() };
        let page = self.get(&file.name, 0..HEADER_PAGE).await?;
        let found = self.patience.sure(|| self.vault.store.properties(&file.name, None)).await?;
        if page != file.page || found.sequence_number < file.sequence { Err(went_back()) } else { Ok(()) }
    }
}

/// Sums of rows, or of their blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Rows,
    Blocks,
}

impl Level {
    fn at(self, row: u32) -> u64 {
        match self {
            Self::Rows => sums::row_sum_at(row),
            Self::Blocks => sums::row_at(row),
        }
    }

    fn bytes_of_rows(self, rows: &Range<u32>) -> usize {
        let each = match self {
            Self::Rows => SUM_BYTES,
            Self::Blocks => ROW_BYTES as usize,
        };
        rows.len() * each
    }

    /// Rows that stand together in the file.
    fn stretches(self, rows: Range<u32>, all: &mut Vec<Range<u32>>) {
        let mut first = rows.start;
        while first < rows.end {
            let end = (first / GROUP_ROWS + 1).saturating_mul(GROUP_ROWS).min(rows.end);
            all.push(first..end);
            first = end;
        }
    }
}
