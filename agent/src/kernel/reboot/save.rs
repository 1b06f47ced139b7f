//! `lifeboat-agent shutdown-save`: runs as the last of all, when every process has ended and every file system is
//! unmounted or read-only, and saves what is dirty in the image.
//!
//! ```text
//!   every block of the image proven to be ours (read past the file system)
//!   ─► nothing writes any more? ─► marks taken, fingerprints ─► payload written and read back
//!   ─► nothing but our own blocks written meanwhile? ─► block 0 says "saved" (or "refused", and why)
//! ```
//! A crash before block 0 is written leaves an empty image: the next start compares. The writes are changes of the disk
//! as any other, so the blocks of the image are among what is saved as dirty, and so is GRUB's environment block, which
//! the boot loader may write before any kernel runs.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lifeboat_replication::{blocks::BlockSet, env::Wall, errors::chain};

use super::{
    super::{
        disks::Disk,
        mounts, sys,
        tracker::{RebootPlaces, Tracker},
    },
    IMAGE, TRACKED, Tracked,
    areas::{ReadAt as _, distrust, partitions, survey},
    believe::{Quiet, blocks_of, orderly},
    boot::{self, Boot},
    image::{self, Content},
    raw::{Direct, Place, locate},
    read_note,
    ready::carried,
    saved::{Saved, SavedDisk, SavedMark},
};
use crate::edge::{DirtyMap as _, TrackError};

/// Writes of the last unmount end within this time, or the shutdown is not orderly.
const SETTLE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

pub struct SaveOptions {
    /// The agent's state directory.
    pub state: PathBuf,
    pub pins: PathBuf,
    pub places: RebootPlaces,
    pub sysfs: PathBuf,
    /// `/boot`, `/etc/fstab`.
    pub boot: PathBuf,
    pub fstab: PathBuf,
    /// `/dev/disk`.
    pub disk_names: PathBuf,
    pub wall: Arc<dyn Wall>,
}

#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error("nothing can be saved, and the next start compares the disks: {reason}")]
    NoImage { reason: String },
    #[error("nothing is saved, and the next start compares the disks: {reason}")]
    Refused { reason: String },
}

/// What was saved, in bytes.
pub fn save(options: &SaveOptions) -> Result<usize, SaveError> {
    let image = Image::open(options).map_err(|reason| SaveError::NoImage { reason })?;
    match gather(options, &image).and_then(|payload| image.write(&payload.0, payload.1)) {
        Ok(length) => Ok(length),
        Err(reason) => {
            // Also what an earlier shutdown may have left: from here on it is not true any more.
            _ = image.write_first(&Content::Refused(reason.clone()));
            Err(SaveError::Refused { reason })
        }
    }
}

/// The image's blocks on their disk, each of which was seen to be ours.
struct Image {
    disk: Direct,
    place: Place,
    blocks: Vec<u64>,
    label: image::Label,
}

impl Image {
    fn open(options: &SaveOptions) -> Result<Self, String> {
        let path = options.state.join(IMAGE);
        let of = |error: io::Error| format!("{}: {error}", path.display());
        let place = locate(&options.sysfs, &path).map_err(of)?;
        let blocks = place.blocks(image::BLOCK as u64, image::BLOCKS);
        let blocks = blocks.ok_or_else(|| format!("{} does not lie in whole blocks", path.display()))?;
        if !sys::is_read_only(&path).map_err(of)? {
            return Err(format!("the file system with {} is still mounted for writing", path.display()));
        }
        let disk = Direct::open(&place.disk, true).map_err(of)?;
        let mut image = Self { disk, place, blocks, label: image::Label::default() };
        image.label = image::label(&image.read().map_err(of)?)
            .map_err(|error| format!("{} is not where it seems to be: {error}", path.display()))?;
        Ok(image)
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let mut content = Vec::with_capacity(image::BLOCK * image::BLOCKS);
        for (first, length) in neighbours(&self.blocks) {
            content.extend(self.disk.read_at(first, length)?);
        }
        Ok(content)
    }

    /// `check` is asked when all is written but block 0, which makes it count.
    fn write(&self, payload: &[u8], mut tracker: Quiesced) -> Result<usize, String> {
        let of = |error: io::Error| format!("the image cannot be written ({error})");
        let content = Content::Saved(payload.to_vec());
        let bytes = image::write(&self.label, &content).map_err(|error| error.to_string())?;
        let mut at = 0;
        for (first, length) in neighbours(&self.blocks) {
            let piece = bytes.get(at..at + length as usize).unwrap_or_default();
            // Block 0 comes last.
            let skip = if at == 0 { image::BLOCK } else { 0 };
            self.disk.write_at(first + skip as u64, piece.get(skip..).unwrap_or_default()).map_err(of)?;
            at += length as usize;
        }
        tracker.only_ours_was_written()?;
        self.write_first(&content).map_err(of)?;
        let back = self.read().map_err(of)?;
        if image::read(&back) != Ok(content) {
            return Err("the image does not read back as it was written".to_owned());
        }
        tracker.only_ours_was_written()?;
        Ok(payload.len())
    }

    fn write_first(&self, content: &Content) -> io::Result<()> {
        let bytes = image::write(&self.label, content).map_err(io::Error::other)?;
        match (self.blocks.first(), bytes.get(..image::BLOCK)) {
            (Some(first), Some(block)) => self.disk.write_at(*first, block),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

/// Blocks that follow one another, as first byte and length.
fn neighbours(blocks: &[u64]) -> Vec<(u64, u64)> {
    let block = image::BLOCK as u64;
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for first in blocks {
        match runs.last_mut() {
            Some((start, length)) if *start + *length == *first => *length += block,
            _ => runs.push((*first, block)),
        }
    }
    runs
}

/// The tracker, with what is saved as dirty.
struct Quiesced {
    tracker: Tracker,
    saved: BlockSet,
}

impl Quiesced {
    fn only_ours_was_written(&mut self) -> Result<(), String> {
        settle(&mut self.tracker)?;
        let mut other = self.tracker.everything_dirty().map_err(words)?;
        other.subtract(&self.saved);
        match (self.tracker.lost(), other.is_empty()) {
            (None, true) => Ok(()),
            (Some(lost), _) => Err(lost),
            (None, false) => Err(format!("something wrote to {} blocks while they were saved", other.len())),
        }
    }
}

fn words(error: TrackError) -> String {
    chain(&error).to_string()
}

fn gather(options: &SaveOptions, image: &Image) -> Result<(Vec<u8>, Quiesced), String> {
    let tracked: Option<Tracked> = read_note(&options.places.run, TRACKED);
    let tracked = tracked.filter(|tracked| tracked.boot == options.places.boot());
    let Tracked { boot, server, disks, mounted } = tracked.ok_or(
        "the agent has not run since the machine was started: systemctl enable --now lifeboat-agent",
    )?;
    carried(&disks)?;
    let mut tracker = Tracker::reopen(&options.pins, &server, &disks, &options.sysfs, options.wall.clone())?;
    let in_flight = settle(&mut tracker)?;
    let (writers, elsewhere) = mounts::find(&options.sysfs, &disks).map_err(|error| error.to_string())?;
    let writable: Vec<String> =
        writers.iter().map(|mount| mount.point.display().to_string()).chain(elsewhere).collect();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default().lines().skip(1).count();
    let lost = tracker.lost();
    orderly(&Quiet { writable: &writable, swaps, in_flight, lost })?;
    let loader = boot::find(&options.sysfs, &options.boot, &options.fstab, &options.disk_names)?;
    mounted.map_or(Ok(()), |mounted| loader.is_mounted(mounted))?;

    let mut dirty = tracker.everything_dirty().map_err(words)?;
    let place_of = |disk: &str| disks.iter().position(|known| known.name == disk);
    if let Some(disk) = place_of(&image.place.disk) {
        dirty.union(&blocks_of(disk, &image.place.ranges)?);
    }
    for path in ["grub/grubenv", "grub2/grubenv"].map(|name| options.boot.join(name)) {
        if !path.exists() {
            continue;
        }
        let place = locate(&options.sysfs, &path).map_err(|error| error.to_string())?;
        if let Some(disk) = place_of(&place.disk) {
            dirty.union(&blocks_of(disk, &place.ranges)?);
        }
    }
    let saved = Saved {
        boot,
        server,
        disks: disks.iter().map(|disk| look_at(&options.sysfs, disk, &loader)).collect::<Result<_, _>>()?,
        durable: tracker.durable_mark().map(|mark| SavedMark {
            number: mark.number,
            epoch: mark.epoch,
            chain: mark.chain,
        }),
        sent: tracker.sent(),
        request: tracker.request(),
        copy_reason: tracker.copy_reason(),
        issue_only: tracker.is_issue_only(),
        dirty: dirty.clone(),
        to_copy: tracker.to_copy().map_err(words)?,
    };
    let payload = saved.encode(image::CAPACITY).map_err(|error| error.to_string())?;
    Ok((payload, Quiesced { tracker, saved: dirty }))
}

fn look_at(sysfs: &Path, disk: &Disk, boot: &Boot) -> Result<SavedDisk, String> {
    let areas = || -> io::Result<_> {
        let (partitions, holder) = partitions(sysfs, &disk.name)?;
        survey(disk.size_bytes, &partitions, holder, &Direct::open(&disk.name, false)?)
    };
    let mut areas = areas().map_err(|error| format!("{} cannot be read ({error})", disk.path().display()))?;
    if let Boot::Partition { disk: name, first_byte, .. } = boot
        && *name == disk.name
    {
        distrust(&mut areas, *first_byte)?;
    }
    Ok(SavedDisk { id: disk.id.clone(), size_bytes: disk.size_bytes, areas })
}

/// Waits until the kernel counts nothing under way, but not for ever; returns the count.
#[allow(clippy::disallowed_methods, reason = "nothing else runs any more, no runtime either")]
fn settle(tracker: &mut Tracker) -> Result<Option<u64>, String> {
    let mut waited = Duration::ZERO;
    loop {
        let count = tracker.kernel_in_flight();
        if count.is_none_or(|count| count == 0) || waited >= SETTLE {
            return Ok(count);
        }
        std::thread::sleep(LOOK);
        waited += LOOK;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_follow_one_another_are_one_run() {
        assert_eq!(neighbours(&[8192, 12288, 0, 4096, 16384]), [(8192, 8192), (0, 8192), (16384, 4096)]);
    }
}
