//! What becomes of disks that cannot be read any more while a machine runs on them: the vault is damaged there, or it
//! refuses.
//!
//! Damage does not heal, and a machine must not go on with holes in its disks. So the first read whose damage is sure
//! ends the server with [`crate::exit::DAMAGED`]. A refusal (a credential that was changed, a container that is gone) may
//! end by itself, as a role takes its time to reach every server of the store, or by a new credential
//! ([`crate::credentials`]): the read waits and asks again. One that
//! lasts for [`REFUSED_FOR`] ends the server with [`crate::exit::REFUSED`]. A vault that is away ends nothing: reads wait
//! until it is back, as with a disk of a network.
//!
//! The end leaves a mark in two places: beside the overlays with its words, so that the server refuses with the same ones
//! when it is started again, and beside the sockets, empty, by which whoever started the machine stops it.
//!
//! **Crash** before the first mark stands: the next server finds out itself; before the second: it makes it.

use std::{
    fs::{self, File},
    io,
    path::Path,
    time::Duration,
};

use lifeboat_replication::{
    errors::chain,
    journal::JournalError,
    store::{Refusal, StoreError},
};
use tokio::sync::watch;

use crate::{IndexError, exit};

/// Name of the file beside the sockets, and beside the overlays where the vault is damaged.
pub const MARK: &str = "damaged";
/// Name of the file beside the overlays where the vault has refused.
const REFUSED_MARK: &str = "refused";
/// So long a refusal is waited out: rotated credentials and new roles take minutes until every server of the store knows
/// them.
pub const REFUSED_FOR: Duration = Duration::from_secs(300);
/// What the kubelet keeps of a container's last words.
const MOST_LAST_WORDS: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    #[error("the machine has read what is damaged in the vault, so its disks are not shown any more: {what}")]
    Damaged { what: String },
    #[error(
        "the vault refuses what the machine reads, and went on to do so, so its disks are not shown any more: {what}; mend \
         that, and start the machine anew from its point: what it has written is lost"
    )]
    Refused { what: String },
}

/// Why a read of the point has failed, as far as it decides what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    Damage,
    /// The store says no to us, whatever is asked.
    Refusal,
    /// There is no certain answer.
    Away,
    /// This request alone.
    Other,
}

impl Trouble {
    pub(crate) fn of(error: &IndexError) -> Self {
        let store = match error {
            IndexError::Store(store) | IndexError::Journal(JournalError::Store(store)) => Some(store),
            _ => None,
        };
        match (store, exit::code(error)) {
            (Some(StoreError::Refused { why: Refusal::Denied | Refusal::NoContainer, .. }), _) => {
                Self::Refusal
            }
            (_, exit::DAMAGED) => Self::Damage,
            (_, exit::UNREACHABLE) => Self::Away,
            _ => Self::Other,
        }
    }
}

/// Where reads tell that the disks are lost; the first one is kept.
#[derive(Debug)]
pub(crate) struct Alarm(watch::Sender<Option<Lost>>);

impl Default for Alarm {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Alarm {
    pub(crate) fn damaged(&self, error: &IndexError) {
        self.raise(Lost::Damaged { what: chain(error) });
    }

    pub(crate) fn refused(&self, error: &IndexError) {
        self.raise(Lost::Refused { what: chain(error) });
    }

    fn raise(&self, lost: Lost) {
        self.0.send_if_modified(|found| {
            let first = found.is_none();
            if first {
                *found = Some(lost);
            }
            first
        });
    }

    /// Waits for the first one.
    pub(crate) async fn raised(&self) -> Lost {
        let mut seen = self.0.subscribe();
        match seen.wait_for(Option::is_some).await.map(|found| found.clone()) {
            Ok(Some(lost)) => lost,
            // The sender is ours and cannot be gone.
            _ => std::future::pending().await,
        }
    }
}

/// Remembers why the disks are lost, and tells whoever started the machine to stop it.
///
/// # Errors
/// When a folder takes no file.
pub fn leave_mark(overlays: &Path, sockets: &Path, lost: &Lost) -> io::Result<()> {
    let (mark, what) = match lost {
        Lost::Damaged { what } => (MARK, what),
        Lost::Refused { what } => (REFUSED_MARK, what),
    };
    let partial = overlays.join(format!("{mark}.partial"));
    fs::write(&partial, what)?;
    fs::rename(partial, overlays.join(mark))?;
    stop_machine(sockets)
}

/// The machine can write to this folder: nothing that it may have put there is followed, or believed.
fn stop_machine(sockets: &Path) -> io::Result<()> {
    match File::create_new(sockets.join(MARK)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Refuses overlays whose machine has lost its disks: it was switched off in the midst of its work.
///
/// # Errors
/// With what was found then.
pub fn check_mark(overlays: &Path, sockets: &Path) -> Result<(), Lost> {
    // A folder that is not there, or cannot be read, is told of when the overlays are opened.
    let read =
        |mark| fs::read(overlays.join(mark)).ok().map(|what| String::from_utf8_lossy(&what).into_owned());
    let damaged = read(MARK).map(|what| Lost::Damaged { what });
    let Some(lost) = damaged.or_else(|| read(REFUSED_MARK).map(|what| Lost::Refused { what })) else {
        return Ok(());
    };
    tracing::error!(?overlays, "these disks were lost before: give another --overlay-dir");
    if let Err(error) = stop_machine(sockets) {
        tracing::warn!(%error, "the machine cannot be told that its disks are lost");
    }
    Err(lost)
}

/// Writes what the kubelet shows as the container's last words. Best effort: the log has them too.
pub fn say_last_words(file: &Path, words: &str) {
    let end = words.floor_char_boundary(MOST_LAST_WORDS);
    if let Err(error) = fs::write(file, &words[..end]) {
        tracing::warn!(?file, %error, "last words cannot be written");
    }
}
