//! What becomes of damage that a read finds while a machine runs on the point's disks.
//!
//! Damage does not heal, and a machine must not go on with holes in its disks. So the first read whose damage is sure
//! ends the server with [`crate::exit::DAMAGED`]. It leaves [`MARK`] in two places: beside the overlays with its words,
//! so that it refuses with the same ones when it is started again, and beside the sockets, empty, by which whoever
//! started the machine stops it.
//!
//! A vault that is away is no damage: such a read fails alone, and the next one is tried.
//!
//! **Crash** before the first mark stands: the next server finds the damage itself; before the second: it makes it.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use lifeboat_replication::errors::chain;
use tokio::sync::watch;

use crate::{IndexError, exit};

/// Name of the file in both folders.
pub const MARK: &str = "damaged";
/// What the kubelet keeps of a container's last words.
const MOST_LAST_WORDS: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the machine has read what is damaged in the vault, so its disks are not shown any more: {what}")]
pub struct Damaged {
    pub what: String,
}

/// Where reads tell of damage; the first one is kept.
#[derive(Debug)]
pub(crate) struct Alarm(watch::Sender<Option<Damaged>>);

impl Default for Alarm {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Alarm {
    pub(crate) fn raise(&self, error: &IndexError) {
        self.0.send_if_modified(|found| {
            let first = found.is_none();
            if first {
                *found = Some(Damaged { what: chain(error) });
            }
            first
        });
    }

    /// Waits for the first damage.
    pub(crate) async fn raised(&self) -> Damaged {
        let mut seen = self.0.subscribe();
        match seen.wait_for(Option::is_some).await.map(|found| found.clone()) {
            Ok(Some(damaged)) => damaged,
            // The sender is ours and cannot be gone.
            _ => std::future::pending().await,
        }
    }
}

/// Damage, and not a vault that is away or refuses.
pub(crate) fn is_damage(error: &IndexError) -> bool {
    exit::code(error) == exit::DAMAGED
}

/// Remembers the damage, and tells whoever started the machine to stop it.
///
/// # Errors
/// When a folder takes no file.
pub fn leave_mark(overlays: &Path, sockets: &Path, damaged: &Damaged) -> io::Result<()> {
    let partial = overlays.join(format!("{MARK}.partial"));
    fs::write(&partial, &damaged.what)?;
    fs::rename(partial, overlays.join(MARK))?;
    stop_machine(sockets)
}

/// The machine can write to this folder: nothing that it may have put there is followed, or believed.
fn stop_machine(sockets: &Path) -> io::Result<()> {
    match File::create_new(sockets.join(MARK)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Refuses overlays whose machine has read damage.
///
/// # Errors
/// With the damage that was found.
pub fn check_mark(overlays: &Path, sockets: &Path) -> Result<(), Damaged> {
    let path = overlays.join(MARK);
    // A folder that is not there, or cannot be read, is told of when the overlays are opened.
    let Ok(what) = fs::read(&path) else { return Ok(()) };
    tracing::error!(?path, "these disks were found damaged before: give another --overlay-dir");
    if let Err(error) = stop_machine(sockets) {
        tracing::warn!(%error, "the machine cannot be told that its disks are damaged");
    }
    Err(Damaged { what: String::from_utf8_lossy(&what).into_owned() })
}

/// Writes what the kubelet shows as the container's last words. Best effort: the log has them too.
pub fn say_last_words(file: &Path, words: &str) {
    let end = words.floor_char_boundary(MOST_LAST_WORDS);
    if let Err(error) = fs::write(file, &words[..end]) {
        tracing::warn!(?file, %error, "last words cannot be written");
    }
}
