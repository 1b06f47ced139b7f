//! The start of the agent after a restart of the machine: the image is read and used up, the early tracker's marks are
//! read and its pins removed.
//!
//! The agent's own tracker is attached before: a write is in the early marks, in its own, or in both.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Arc,
};

use lifeboat_replication::{blocks::BlockSet, env::Wall};
use ring::rand::{SecureRandom as _, SystemRandom};

use super::{
    super::{
        disks::Disk,
        pins,
        tracker::{RebootPlaces, Tracker},
    },
    EARLY, EARLY_PINS, IMAGE,
    believe::{Believed, Found, Known, believe},
    early::{Early, IDENTITY},
    image::{self, Content},
    read_note,
    saved::Saved,
};
use crate::edge::DirtyMap as _;

/// What a start has to go by.
pub(in crate::kernel) struct Resumption<'a> {
    pub(in crate::kernel) server: &'a str,
    pub(in crate::kernel) state: &'a Path,
    pub(in crate::kernel) pins: &'a Path,
    pub(in crate::kernel) places: &'a RebootPlaces,
    pub(in crate::kernel) sysfs: &'a Path,
    pub(in crate::kernel) disks: &'a [Disk],
    pub(in crate::kernel) wall: Arc<dyn Wall>,
}

/// Uses the image up; an error is the reason why all is compared.
pub(in crate::kernel) fn resume(resumption: &Resumption<'_>) -> Result<Believed, String> {
    let Resumption { server, state, pins, places, sysfs, disks, wall } = resumption;
    let found = use_up(state);
    let early: Option<Early> = read_note(&places.run, EARLY);
    let marks = match &early {
        Some(early) => early_marks(pins, sysfs, early, wall.clone()),
        None => Err("there is no early tracker".to_owned()),
    };
    let marks = marks.as_ref().map_err(String::as_str);
    let believed =
        believe(found, &Known { server, boot: &places.boot(), disks, early: early.as_ref(), marks });
    drop_early(pins);
    believed
}

/// For a start that has no use for what was saved: it must never be believed later, and the early tracker can go.
pub(in crate::kernel) fn discard(state: &Path, pins: &Path) {
    if let Found::Unusable(reason) = use_up(state) {
        tracing::warn!(
            reason,
            "the image for orderly restarts is not usable; the next restart may need a comparison"
        );
    }
    drop_early(pins);
}

fn drop_early(pins: &Path) {
    if let Err(error) = pins::remove(&pins.join(EARLY_PINS)) {
        tracing::warn!(%error, "the early tracker stays, and costs a little until the next restart");
    }
}

/// Makes the image if there is none that can be written at shutdown.
pub(in crate::kernel) fn prepare(state: &Path) -> io::Result<()> {
    let usable = fs::read(state.join(IMAGE)).is_ok_and(|image| image::read(&image) == Ok(Content::Empty));
    if usable { Ok(()) } else { write_empty(state) }
}

/// A new label, so that no block of an older image is taken for one of this. Written in place: no hole, and where the
/// file system has put it once it stays.
fn write_empty(state: &Path) -> io::Result<()> {
    let mut label = image::Label::default();
    SystemRandom::new()
        .fill(&mut label)
        .map_err(|_| io::Error::other("the kernel gives no random numbers"))?;
    let image = image::write(&label, &Content::Empty).map_err(io::Error::other)?;
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(false).mode(0o600).open(state.join(IMAGE))?;
    file.write_all(&image)?;
    file.set_len(image.len() as u64)?;
    file.sync_all()?;
    fs::File::open(state)?.sync_all()
}

/// Returns what was there, and only when nobody will find it again.
fn use_up(state: &Path) -> Found {
    let image = match fs::read(state.join(IMAGE)) {
        Ok(image) => image,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Nothing,
        Err(error) => return Found::Unusable(error.to_string()),
    };
    let found = match image::read(&image) {
        Ok(Content::Empty) => return Found::Nothing,
        Ok(Content::Saved(payload)) => match Saved::decode(&payload) {
            Ok(saved) => Found::Saved(Box::new(saved)),
            Err(error) => Found::Unusable(error.to_string()),
        },
        Ok(Content::Refused(reason)) => Found::Refused(reason),
        Err(error) => Found::Unusable(error.to_string()),
    };
    match write_empty(state) {
        Ok(()) => found,
        Err(error) => Found::Unusable(format!("it cannot be emptied ({error})")),
    }
}

fn early_marks(pins: &Path, sysfs: &Path, early: &Early, wall: Arc<dyn Wall>) -> Result<BlockSet, String> {
    let disks: Vec<Disk> = early.disks.iter().map(|seen| seen.disk.clone()).collect();
    let mut tracker = Tracker::reopen_as(&pins.join(EARLY_PINS), IDENTITY, &disks, sysfs, wall).map_err(|reason| {
        format!("the early tracker cannot be taken up ({reason}); if the agent was updated: update-initramfs -u")
    })?;
    let marks = tracker.everything_dirty().map_err(|error| error.to_string())?;
    match tracker.lost() {
        Some(lost) => Err(format!("the early tracker missed changes ({lost})")),
        None => Ok(marks),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_found_once() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(use_up(state.path()), Found::Nothing);
        prepare(state.path()).unwrap();
        assert_eq!(use_up(state.path()), Found::Nothing);
        let path = state.path().join(IMAGE);
        let label = image::label(&fs::read(&path).unwrap()).unwrap();
        fs::write(&path, image::write(&label, &Content::Refused("why".into())).unwrap()).unwrap();
        assert_eq!(use_up(state.path()), Found::Refused("why".into()));
        assert_eq!(use_up(state.path()), Found::Nothing);
        // Blocks of before are not taken for blocks of the image that is there now.
        assert_ne!(image::label(&fs::read(&path).unwrap()).unwrap(), label);
    }

    #[test]
    fn a_damaged_image_is_no_use_once_and_then_whole_again() {
        let state = tempfile::tempdir().unwrap();
        fs::write(state.path().join(IMAGE), "something else, and longer than nothing").unwrap();
        assert!(matches!(use_up(state.path()), Found::Unusable(_)));
        assert_eq!(use_up(state.path()), Found::Nothing);
        fs::write(state.path().join(IMAGE), "again").unwrap();
        prepare(state.path()).unwrap();
        assert_eq!(use_up(state.path()), Found::Nothing);
    }
}
