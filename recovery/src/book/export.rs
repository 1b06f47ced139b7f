//! A disk of a point as a file: raw or a fixed VHD, sparse, resumable.
//!
//! It is written to `<file>.partial`; how far it came stands in `<file>.partial.json`, which is only ever behind the
//! data. So an export that was interrupted, killed or cut off from the store is started again with the same command
//! and goes on where it was, with the same point. The file gets its name when it is whole and durable.
//!
//! Segments are verified as they are read (checksum, authentication); snapshots by their sequence number only, since
//! pages carry no checksum: `verify --deep` proves those against the journal.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use lifeboat_replication::{blocks::BLOCK_BYTES, env::Env, ids::ServerId, log::LogDisk, vault::Vault, vhd};
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::content::runs;
use crate::{
    index::{BlockIndex, IndexError, IndexOptions},
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

/// What is noted beside a file that is not whole yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    vault: String,
    server: String,
    point: u64,
    epoch: u32,
    disk: String,
    format: Format,
    /// Everything before this block is durable.
    next_block: u32,
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
}

impl Export {
    /// Opens the point and what an earlier try has left. `disk`: slot, id or path; not needed if there is only one.
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
        let options = IndexOptions::default();
        let index = BlockIndex::open(vault, server, env, selector, &options).await?;
        let disk = choose(&index, disk)?;
        let mut note = Note {
            vault: vault.id.clone(),
            server: server.to_string(),
            point: index.point().number,
            epoch: index.point().epoch.0,
            disk: disk.id.clone(),
            format,
            next_block: 0,
        };
        if let Some(begun) = begun {
            note.next_block = begun.next_block;
            if note != begun {
                return Err(ExportError::OtherExport {
                    note: noted(to),
                    partial: partial(to),
                    found: format!("point {}, disk {} of server {}", begun.point, begun.disk, begun.server),
                });
            }
        }
        let mut blocks = index.used_blocks(disk.slot).await?;
        blocks.remove_range(u32::try_from(disk.size_bytes.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX)..);
        Ok(Self { index, disk, server: server.clone(), to: to.to_owned(), note, blocks })
    }

    pub fn point(&self) -> &crate::scan::Found {
        self.index.point()
    }

    pub fn disk(&self) -> &LogDisk {
        &self.disk
    }

    /// Writes it; looks after each piece whether `stop` says so.
    ///
    /// # Errors
    /// When the vault cannot be read or the file cannot be written; what was written stays for the next try.
    pub async fn run(
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

fn with_suffix(to: &Path, suffix: &str) -> PathBuf {
    let mut name = to.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn partial(to: &Path) -> PathBuf {
    with_suffix(to, ".partial")
}

fn noted(to: &Path) -> PathBuf {
    with_suffix(to, ".partial.json")
}

/// `None`: there is nothing to go on with.
fn read_note(to: &Path) -> Result<Option<Note>, ExportError> {
    let path = noted(to);
    let content = match fs::read(&path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ExportError::File { path, source }),
    };
    let note = serde_json::from_slice(&content).map_err(|_| ExportError::OtherExport {
        note: path,
        partial: partial(to),
        found: "it cannot be read".to_owned(),
    })?;
    Ok(Some(note).filter(|_| partial(to).exists()))
}

/// What stands in the file becomes durable before the note says so.
fn save(to: &Path, file: &File, note: &Note) -> Result<(), ExportError> {
    let path = noted(to);
    let new = with_suffix(to, ".partial.json.new");
    let write = || {
        file.sync_data()?;
        fs::write(&new, serde_json::to_vec(note).map_err(io::Error::other)?)?;
        File::open(&new)?.sync_all()?;
        fs::rename(&new, &path)
    };
    write().map_err(|source| ExportError::File { path: path.clone(), source })
}
