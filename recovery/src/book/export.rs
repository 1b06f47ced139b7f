//! A disk of a point as a file: raw or a fixed VHD, sparse, resumable.
//!
//! It is written to `<file>.partial`; how far it came stands in `<file>.partial.json`, which is only ever behind the
//! data. So an export that was interrupted, killed or cut off from the store is started again with the same command
//! and goes on where it was, with the same point. The file gets its name when it is whole and durable.
//!
//! What it reads is pinned meanwhile, so that retention cannot take it away, if the credential may write; an export that
//! was interrupted leaves its pin, which expires by itself, and takes it over when it goes on.
//!
//! Segments are verified as they are read (checksum, authentication); snapshots by their sequence number only, since
//! pages carry no checksum: `verify --deep` proves those against the journal.

mod note;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use lifeboat_replication::{
    blocks::BLOCK_BYTES, env::Env, ids::ServerId, log::LogDisk, pins::PinError, store::Refusal, vault::Vault,
    vhd,
};
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use self::note::{Note, noted, partial, read_note, save};
use super::content::runs;
use crate::{
    hold::{HELD_FOR, Hold},
    index::{BlockIndex, IndexError, IndexOptions},
    scan::{self, Found, ScanError},
    select::PointSelector,
};

/// Reads under way, of 4 MiB at most.
const PARALLEL: usize = 4;
/// What was written is made durable, and noted, this often: at most so much is read again.
const NOTE_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Format {
    /// The disk's bytes and nothing else.
    Raw,
    /// A fixed VHD, as Azure, Hyper-V and QEMU take it.
    Vhd,
}

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("{} names no format: call the file *.raw or *.vhd", path.display())]
    Format { path: PathBuf },
    #[error("{} exists already: name another file, or remove it", path.display())]
    Exists { path: PathBuf },
    #[error(
        "{} is of another export ({found}): continue that one with the same arguments, or remove it together with {} and start anew",
        note.display(), partial.display()
    )]
    OtherExport { note: PathBuf, partial: PathBuf, found: String },
    #[error("the point has several disks, name one with --disk: {disks}")]
    WhichDisk { disks: String },
    #[error("the point has no disk {wanted:?}: it has {disks}")]
    NoDisk { wanted: String, disks: String },
    #[error(
        "{} cannot be written: check that the folder exists, is writable and has room; the same command goes on from where it stopped",
        path.display()
    )]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// How far an export is, in bytes that hold something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub done_bytes: u64,
    pub total_bytes: u64,
    /// Were there already when it began.
    pub resumed_bytes: u64,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Whole,
    /// Told to stop; the same command goes on.
    Stopped,
}

/// An export that is about to run.
#[derive(Debug)]
pub struct Export {
    index: Arc<BlockIndex>,
    disk: LogDisk,
    server: ServerId,
    to: PathBuf,
    note: Note,
    blocks: RoaringBitmap,
    /// Or why what is read is not pinned.
    hold: Result<Hold, String>,
}

impl Export {
    /// Opens and pins the point and what an earlier try has left. `disk`: slot, id or path; not needed if there is only one.
    ///
    /// # Errors
    /// When there is no such point or disk, or the file belongs to something else.
    pub async fn open(
        vault: &Vault,
        server: &ServerId,
        env: &Env,
        selector: PointSelector,
        disk: Option<&str>,
        to: &Path,
    ) -> Result<Self, ExportError> {
        let format = match to.extension().and_then(|extension| extension.to_str()) {
            Some("raw" | "img") => Format::Raw,
            Some("vhd") => Format::Vhd,
            _ => return Err(ExportError::Format { path: to.to_owned() }),
        };
        if to.exists() {
            return Err(ExportError::Exists { path: to.to_owned() });
        }
        let begun = read_note(to)?;
        let selector = match (&begun, selector) {
            // The newest one has moved on meanwhile; what was begun is finished.
            (Some(note), PointSelector::Latest) => PointSelector::Number(note.point),
            (_, selector) => selector,
        };
        let known = begun.as_ref().filter(|note| note.server == server.as_str() && !note.pin.is_empty());
        let known = known.map(|note| note.pin.clone());
        let pin = known.clone().unwrap_or_else(|| format!("export-{}", env.entropy.uuid()));
        let (found, hold) = pinned(vault, server, env, selector, &pin).await.map_err(IndexError::from)?;
        let note = Note {
            vault: vault.id.clone(),
            server: server.to_string(),
            point: found.number,
            epoch: found.epoch.0,
            disk: String::new(),
            format,
            next_block: 0,
            pin,
        };
        match Opened::new(vault, server, env, found, (disk, to), (note, begun)).await {
            Ok(Opened { index, disk, note, blocks }) => {
                Ok(Self { index, disk, server: server.clone(), to: to.to_owned(), note, blocks, hold })
            }
            Err(error) => {
                // One that was there before is needed by the export that is to go on.
                if let (Ok(hold), None) = (hold, known) {
                    hold.release().await;
                }
                Err(error)
            }
        }
    }

    /// Why retention may take away what is read; `None`: it is pinned.
    pub fn not_held(&self) -> Option<&str> {
        self.hold.as_ref().err().map(String::as_str)
    }

    pub fn point(&self) -> &crate::scan::Found {
        self.index.point()
    }

    pub fn disk(&self) -> &LogDisk {
        &self.disk
    }

    /// Writes it; looks after each piece whether `stop` says so. The pin goes when the file is whole; else it stays for
    /// the next try until it expires.
    ///
    /// # Errors
    /// When the vault cannot be read or the file cannot be written; what was written stays for the next try.
    pub async fn run(
        mut self,
        progress: impl FnMut(Progress),
        stop: impl FnMut() -> bool,
    ) -> Result<Outcome, ExportError> {
        let hold = std::mem::replace(&mut self.hold, Err(String::new()));
        let Ok(hold) = hold else { return self.write(progress, stop).await };
        let outcome = tokio::select! {
            biased;
            outcome = self.write(progress, stop) => outcome,
            () = hold.keep() => Ok(Outcome::Stopped),
        };
        if matches!(outcome, Ok(Outcome::Whole)) {
            hold.release().await;
        }
        outcome
    }

    async fn write(
        mut self,
        mut progress: impl FnMut(Progress),
        mut stop: impl FnMut() -> bool,
    ) -> Result<Outcome, ExportError> {
        let path = partial(&self.to);
        let failed = |source| ExportError::File { path: path.clone(), source };
        let (length, footer) = match self.note.format {
            Format::Raw => (self.disk.size_bytes, None),
            Format::Vhd => {
                let footer = vhd::footer(self.server.as_str(), &self.disk.id, self.disk.size_bytes);
                (vhd::blob_bytes(self.disk.size_bytes), Some(footer))
            }
        };
        // Without its note a partial file says nothing.
        let fresh = self.note.next_block == 0;
        let open = || {
            let file = OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(fresh)
                // It holds the server's data in the clear.
                .mode(0o600)
                .open(&path)?;
            file.set_len(length)?;
            Ok(file)
        };
        let file: File = open().map_err(failed)?;
        let done = self.blocks.rank(self.note.next_block.saturating_sub(1)) * u64::from(!fresh);
        let mut now = Progress {
            done_bytes: done * BLOCK_BYTES,
            total_bytes: self.blocks.len() * BLOCK_BYTES,
            resumed_bytes: done * BLOCK_BYTES,
        };
        progress(now);
        let rest = {
            let mut rest = self.blocks.clone();
            rest.remove_range(..self.note.next_block);
            rest
        };
        let mut pieces = stream::iter(runs(&rest))
            .map(|run| {
                let index = Arc::clone(&self.index);
                let slot = self.disk.slot;
                async move {
                    let content = index.read(slot, run.start, run.end - run.start).await;
                    content.map(|content| (run, content))
                }
            })
            .buffered(PARALLEL);
        let mut last_note = Instant::now();
        let mut outcome = Outcome::Whole;
        let mut next_block = self.note.next_block;
        while let Some(piece) = pieces.next().await {
            let (run, content) = match piece {
                Ok(piece) => piece,
                Err(error) => {
                    self.note.next_block = next_block;
                    save(&self.to, &file, &self.note)?;
                    return Err(error.into());
                }
            };
            let start = u64::from(run.start) * BLOCK_BYTES;
            // The last block is padded with zeros.
            let room = usize::try_from(self.disk.size_bytes.saturating_sub(start)).unwrap_or(usize::MAX);
            let mut at = 0;
            for block in
                content.get(..content.len().min(room)).unwrap_or_default().chunks(BLOCK_BYTES as usize)
            {
                if block.iter().any(|byte| *byte != 0) {
                    file.write_all_at(block, start + at).map_err(failed)?;
                }
                at += block.len() as u64;
            }
            next_block = run.end;
            now.done_bytes += u64::from(run.end - run.start) * BLOCK_BYTES;
            progress(now);
            if stop() {
                outcome = Outcome::Stopped;
                break;
            }
            if last_note.elapsed() >= NOTE_INTERVAL {
                let note = Note { next_block, ..self.note.clone() };
                save(&self.to, &file, &note)?;
                last_note = Instant::now();
            }
        }
        drop(pieces);
        self.note.next_block = next_block;
        if outcome == Outcome::Stopped {
            save(&self.to, &file, &self.note)?;
            return Ok(outcome);
        }
        let finish = || {
            if let Some(footer) = footer {
                file.write_all_at(&footer, length - vhd::FOOTER_BYTES)?;
            }
            file.sync_all()?;
            fs::rename(&path, &self.to)?;
            match fs::remove_file(noted(&self.to)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        };
        finish().map_err(failed)?;
        Ok(outcome)
    }
}

/// Finds the point and pins it, or says why it cannot be pinned: a credential that may only read is enough to export.
async fn pinned(
    vault: &Vault,
    server: &ServerId,
    env: &Env,
    selector: PointSelector,
    pin: &str,
) -> Result<(Found, Result<Hold, String>), ScanError> {
    match Hold::take(vault, server, env, selector, pin, HELD_FOR).await {
        Ok((found, hold)) => Ok((found, Ok(hold))),
        Err(ScanError::Pins(PinError::Store(error))) if error.is(Refusal::Denied) => {
            let found = scan::find(vault, server, env, selector).await?;
            Ok((found, Err("the credential may not write pins into the vault".to_owned())))
        }
        Err(error) => Err(error),
    }
}

/// A point whose disk is chosen, and what an earlier try has left of it.
struct Opened {
    index: Arc<BlockIndex>,
    disk: LogDisk,
    note: Note,
    blocks: RoaringBitmap,
}

impl Opened {
    async fn new(
        vault: &Vault,
        server: &ServerId,
        env: &Env,
        found: Found,
        (disk, to): (Option<&str>, &Path),
        (mut note, begun): (Note, Option<Note>),
    ) -> Result<Self, ExportError> {
        let index = BlockIndex::of(vault, server, env, found, &IndexOptions::default()).await?;
        let disk = choose(&index, disk)?;
        note.disk.clone_from(&disk.id);
        if let Some(begun) = begun {
            note.next_block = begun.next_block;
            if note != (Note { pin: note.pin.clone(), ..begun.clone() }) {
                return Err(ExportError::OtherExport {
                    note: noted(to),
                    partial: partial(to),
                    found: format!("point {}, disk {} of server {}", begun.point, begun.disk, begun.server),
                });
            }
        }
        let mut blocks = index.used_blocks(disk.slot).await?;
        blocks.remove_range(u32::try_from(disk.size_bytes.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX)..);
        Ok(Self { index, disk, note, blocks })
    }
}

fn choose(index: &BlockIndex, wanted: Option<&str>) -> Result<LogDisk, ExportError> {
    let disks: Vec<&LogDisk> = index.disks().collect();
    let list = || {
        let names = disks.iter().map(|disk| format!("{} ({}, {})", disk.slot, disk.id, disk.path));
        names.collect::<Vec<_>>().join(", ")
    };
    let Some(wanted) = wanted else {
        return match disks.as_slice() {
            [only] => Ok((*only).clone()),
            _ => Err(ExportError::WhichDisk { disks: list() }),
        };
    };
    let is = |disk: &&&LogDisk| disk.slot.to_string() == wanted || disk.id == wanted || disk.path == wanted;
    match disks.iter().find(is) {
        Some(disk) => Ok((*disk).clone()),
        None => Err(ExportError::NoDisk { wanted: wanted.to_owned(), disks: list() }),
    }
}
