//! Serves all disks of a point: an NBD socket and an overlay for each.

use std::{
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use lifeboat_replication::{
    blocks::BLOCK_BYTES,
    errors::chain,
    ids::{DiskSlot, ServerId},
};
use serde::Serialize;
use tokio::{
    net::UnixListener,
    sync::Mutex,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    damage::{Alarm, Lost, Trouble},
    device::{Base, Device},
    index::BlockIndex,
    nbd,
    overlay::{OpenError, Overlay},
    select::time_text,
};

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Overlay(#[from] OpenError),
    #[error(
        "the socket {path} cannot be made: check that the folder exists and is writable, and that the path has at most 107 bytes"
    )]
    Socket {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the point has no disks: protect the server's disks and wait for the next point")]
    NoDisks,
}

/// One disk of an index as the base of an overlay.
#[derive(Debug)]
struct IndexedDisk {
    index: Arc<BlockIndex>,
    slot: DiskSlot,
    size_bytes: u64,
    alarm: Arc<Alarm>,
    refused_for: Duration,
}

/// Blocks of one read of the index: the pieces of larger requests come one after the other.
const MOST_BLOCKS: u32 = (4 << 20) / BLOCK_BYTES as u32;

/// Between tries where the vault refuses or is away.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

impl IndexedDisk {
    /// Waits for a vault that is away, and for a while for one that refuses.
    async fn read(&self, first: u32, blocks: u32) -> io::Result<Bytes> {
        let (mut damaged, mut refused_since) = (false, None);
        loop {
            let error = match self.index.read(self.slot, first, blocks).await {
                Ok(content) => return Ok(content),
                Err(error) => error,
            };
            match Trouble::of(&error) {
                // Once more: what was only damaged on its way here ends no machine.
                Trouble::Damage if !damaged => {
                    damaged = true;
                    continue;
                }
                Trouble::Damage => self.alarm.damaged(&error),
                Trouble::Refusal => {
                    let since = *refused_since.get_or_insert_with(Instant::now);
                    if since.elapsed() < self.refused_for {
                        tracing::warn!(error = %chain(&error), "a read waits for a vault that refuses it");
                        sleep(AGAIN_AFTER).await;
                        continue;
                    }
                    self.alarm.refused(&error);
                }
                Trouble::Away => {
                    refused_since = None;
                    tracing::warn!(error = %chain(&error), "a read waits for a vault that is away");
                    sleep(AGAIN_AFTER).await;
                    continue;
                }
                Trouble::Other => {}
            }
            return Err(io::Error::other(error));
        }
    }
}

#[async_trait]
impl Base for IndexedDisk {
    fn size(&self) -> u64 {
        self.size_bytes
    }

    async fn read_blocks(&self, first: u32, blocks: u32) -> io::Result<Bytes> {
        if blocks <= MOST_BLOCKS {
            return self.read(first, blocks).await;
        }
        let mut whole = bytes::BytesMut::with_capacity(blocks as usize * BLOCK_BYTES as usize);
        for start in (0..blocks).step_by(MOST_BLOCKS as usize) {
            whole.extend_from_slice(&self.read(first + start, (blocks - start).min(MOST_BLOCKS)).await?);
        }
        Ok(whole.freeze())
    }
}

/// A disk that is served.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServedDisk {
    pub slot: u32,
    pub id: String,
    pub path: String,
    pub size_bytes: u64,
    pub socket: PathBuf,
}

/// What the first line on standard output says once every socket listens.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ready {
    pub ready: bool,
    pub point: u64,
    pub epoch: u32,
    pub t0: String,
    pub t0_micros: i64,
    pub consistency: lifeboat_replication::catalogue::PointConsistency,
    /// Record of the snapshots that it stands on; absent: only the journal.
    pub base: Option<u64>,
    pub journal_records: usize,
    pub disks: Vec<ServedDisk>,
}

/// What was read and written; printed at the end and kept in `stats.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Bytes fetched from the vault.
    pub bytes_read: u64,
    pub requests: u64,
    pub cache_hits: u64,
    pub cache_misses: u64,
    pub cache_bytes: u64,
    pub overlay_bytes: u64,
}

#[derive(Debug)]
pub struct Server {
    index: Arc<BlockIndex>,
    overlays: Vec<Arc<Overlay>>,
    disks: Vec<ServedDisk>,
    alarm: Arc<Alarm>,
    running: Mutex<JoinSet<()>>,
}

/// Opens overlays and sockets for all disks of the index and starts to serve them. A vault that refuses a read for longer
/// than `refused_for` ends it all ([`Server::lost`]).
///
/// # Errors
/// When overlays or sockets cannot be made.
pub fn start(
    index: &Arc<BlockIndex>,
    server: &ServerId,
    sockets: &Path,
    overlays: &Path,
    refused_for: Duration,
) -> Result<Server, ServeError> {
    let point = index.point();
    let (mut running, mut disks, mut opened) = (JoinSet::new(), Vec::new(), Vec::new());
    let alarm = Arc::new(Alarm::default());
    for disk in index.disks() {
        let name = disk.slot.to_string();
        let identity = format!(
            "disk {} ({}) of server {server} at record {} of epoch {}",
            disk.slot, disk.id, point.number, point.epoch
        );
        let base = IndexedDisk {
            index: Arc::clone(index),
            slot: disk.slot,
            size_bytes: disk.size_bytes,
            alarm: Arc::clone(&alarm),
            refused_for,
        };
        let overlay = Arc::new(Overlay::open(overlays, &name, &identity, Arc::new(base))?);
        let path = sockets.join(format!("{name}.sock"));
        let listener = listen(&path).map_err(|source| ServeError::Socket { path: path.clone(), source })?;
        let device: Arc<dyn Device> = Arc::clone(&overlay) as Arc<dyn Device>;
        running.spawn(nbd::serve(listener, name, device));
        opened.push(overlay);
        disks.push(ServedDisk {
            slot: disk.slot.0,
            id: disk.id.clone(),
            path: disk.path.clone(),
            size_bytes: disk.size_bytes,
            socket: path,
        });
    }
    if disks.is_empty() {
        return Err(ServeError::NoDisks);
    }
    Ok(Server { index: Arc::clone(index), overlays: opened, disks, alarm, running: Mutex::new(running) })
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    // A socket left over by a run that was killed.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // The virtual machine may run as another user of the same group.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

impl Server {
    pub fn ready(&self) -> Ready {
        let point = self.index.point();
        Ready {
            ready: true,
            point: point.number,
            epoch: point.epoch.0,
            t0: time_text(point.t0),
            t0_micros: point.t0.0,
            consistency: point.consistency,
            base: point.base.as_ref().map(|base| base.number),
            journal_records: point.records.len(),
            disks: self.disks.clone(),
        }
    }

    pub fn stats(&self) -> Stats {
        let figures = self.index.figures();
        Stats {
            bytes_read: figures.fetched_bytes,
            requests: figures.fetches,
            cache_hits: figures.cache.hits,
            cache_misses: figures.cache.misses,
            cache_bytes: figures.cache.bytes,
            overlay_bytes: self.overlays.iter().map(|overlay| overlay.written_bytes()).sum(),
        }
    }

    /// Waits until a read has found that the disks cannot be read any more; nothing more should be served then.
    pub async fn lost(&self) -> Lost {
        self.alarm.raised().await
    }

    /// Ends all sessions, makes the overlays durable and removes the sockets.
    ///
    /// # Errors
    /// When an overlay cannot be made durable.
    pub async fn stop(&self) -> io::Result<()> {
        self.running.lock().await.shutdown().await;
        for disk in &self.disks {
            let _ = std::fs::remove_file(&disk.socket);
        }
        for overlay in &self.overlays {
            overlay.flush().await?;
        }
        Ok(())
    }
}
