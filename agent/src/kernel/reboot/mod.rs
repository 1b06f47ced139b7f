//! An orderly restart of the machine without a resynchronization: what is dirty is saved when nothing writes any more,
//! and a tracker from the initramfs covers the boot.
//!
//! ```text
//!   shutdown: everything unmounted or read-only ─► save ─► image (a file's own blocks, written past its file system)
//!   boot:     initramfs, nothing mounted        ─► early: tracker over all disks, fingerprints ─► /run
//!   start of the agent: own tracker attached ─► resume: image read and used up, early marks read
//!                                                 └─► believe: dirty = saved ∪ early, or why everything is compared
//! ```
//! `saved`, `image`, `areas` (with `file_system`, `xfs`, `lvm`) and `believe` are pure (format, fingerprints, decision);
//! `raw` (with `device_mapper`), `boot`, `save`, `early` and `resume` are the edge.
//!
//! - **Once.** The image is emptied, durably, before its content is relied on, and at every other start as well.
//! - **Nobody in between.** A fingerprint of what a mount for writing changes first (the superblock of ext, the end of
//!   XFS's log), taken at save and again before the first mount, tells of another system that has mounted the file system. What
//!   has no such tell-tale is compared.
//! - **Weakness accepted.** A system booted in between that writes to the disks past their file systems is not seen.

mod areas;
mod believe;
mod boot;
mod device_mapper;
mod early;
mod file_system;
mod image;
mod lvm;
mod lvm_text;
mod raw;
mod ready;
mod resume;
mod save;
mod saved;
mod xfs;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{disks::Disk, tracker::RebootPlaces};

pub(super) use believe::Believed;
pub use early::{EarlyError, run as early, run_within_limit as early_within_limit};
pub(super) use ready::carried;
pub use ready::{DISK_NAMES, ready};
pub(super) use resume::{Resumption, resume};
pub(super) use resume::{discard, prepare};
pub use save::{SaveError, SaveOptions, save};

/// The default of [`RebootPlaces::run`].
pub const RUN: &str = "/run/lifeboat-agent";
/// Name of the image in the state directory.
pub const IMAGE: &str = "shutdown-state";
/// Directory of the early tracker's pins, beside those of servers (whose ids are longer).
const EARLY_PINS: &str = "early";
pub(super) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// In [`RUN`]: what the early tracker saw, and what the agent tracks.
const EARLY: &str = "early.json";
const TRACKED: &str = "tracked.json";

/// What the agent tracks in this boot: for the program that saves when the agent has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Tracked {
    boot: String,
    server: String,
    disks: Vec<Disk>,
    /// File systems of /boot and of the root.
    #[serde(default)]
    mounted: Option<[(u32, u32); 2]>,
}

/// Leaves word of what is tracked in a directory that lives as long as the boot.
pub(super) fn note_tracked(places: &RebootPlaces, server: &str, disks: &[Disk]) -> io::Result<()> {
    let mounted = boot::mounted(&places.root.join("boot"), &places.root).ok();
    let note = Tracked { boot: places.boot(), server: server.to_owned(), disks: disks.to_vec(), mounted };
    write_note(&places.run, TRACKED, &note)
}

/// Replaced as a whole; only root may read it.
fn write_note(run: &Path, name: &str, note: &impl Serialize) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(run)?;
    let partial: PathBuf = run.join(format!("{name}.{}", std::process::id()));
    fs::write(&partial, serde_json::to_vec(note)?)?;
    fs::rename(partial, run.join(name))
}

/// `None`: there is none, or it is damaged.
fn read_note<T: DeserializeOwned>(run: &Path, name: &str) -> Option<T> {
    serde_json::from_slice(&fs::read(run.join(name)).ok()?).ok()
}
