//! `lifeboat-agent early`: runs in the initramfs, when the disks are there and nothing is mounted.
//!
//! In: the machine's disks. Out: a tracker over all of them, pinned for the agent to take up, and a note with the
//! fingerprints of their areas in /run, which is kept when the real root takes over. First the tracker, then the
//! kernel's count of writes so far, then the fingerprints: so no write can be missed, whoever makes it.
//!
//! It ends at once and never holds up the boot: what goes wrong is noted, and the agent compares and says why.

use std::{fs, io, path::Path};

use lifeboat_replication::errors::chain;
use serde::{Deserialize, Serialize};

use super::{
    super::{
        disks::{Discovery, Disk},
        in_flight,
        layout::Layout,
        pins::Pins,
        tracker::RebootPlaces,
    },
    EARLY, EARLY_PINS,
    areas::{Area, partitions, survey},
    raw::Direct,
    write_note,
};

/// Who the early pins belong to: this boot, no server.
pub(super) const IDENTITY: &str = "early";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EarlyDisk {
    pub(super) disk: Disk,
    /// Requests that wrote or discarded since the kernel found the disk, as it counted right after tracking began.
    pub(super) writes_before: u64,
    pub(super) areas: Vec<Area>,
}

/// The note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Early {
    pub(super) boot: String,
    pub(super) disks: Vec<EarlyDisk>,
    pub(super) error: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum EarlyError {
    #[error("the early tracker's note cannot be written; is /run mounted?")]
    Note(#[source] io::Error),
}

/// `pins` and `places` as the agent has them.
pub fn run(discovery: &Discovery, pins: &Path, places: &RebootPlaces) -> Result<(), EarlyError> {
    let (disks, error) = match track(discovery, pins) {
        Ok(disks) => (disks, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    if let Some(error) = &error {
        tracing::warn!(error, "no early tracker: this start of the machine will need a comparison");
    }
    write_note(&places.run, EARLY, &Early { boot: places.boot(), disks, error }).map_err(EarlyError::Note)
}

fn track(discovery: &Discovery, pins: &Path) -> Result<Vec<EarlyDisk>, String> {
    let words = |error: io::Error| error.to_string();
    let found = discovery.find().map_err(words)?;
    if found.disks.is_empty() {
        return Err("there was no disk yet".to_owned());
    }
    let layout = Layout::new(&found.disks);
    let folder = pins.join(EARLY_PINS);
    let (_pins, _) =
        Pins::open(&folder, IDENTITY, &found.disks, &layout).map_err(|error| chain(&error).to_string())?;
    found.disks.into_iter().map(|disk| look_at(&discovery.sysfs, disk).map_err(words)).collect()
}

fn look_at(sysfs: &Path, disk: Disk) -> io::Result<EarlyDisk> {
    let folder = sysfs.join("block").join(&disk.name);
    // In this order: a write that is not among those under way has ended before it, and is counted.
    let under_way = in_flight::writes(sysfs, &disk.name);
    let stat = fs::read_to_string(folder.join("stat"))?;
    let writes_before = under_way.and_then(|under_way| Some(under_way + ended(&stat)?)).ok_or_else(|| {
        io::Error::other(format!("the kernel does not count the requests of {}", disk.name))
    })?;
    let (partitions, held) = partitions(sysfs, &disk.name)?;
    let areas = survey(disk.size_bytes, &partitions, held, &Direct::open(&disk.name, false)?)?;
    Ok(EarlyDisk { disk, writes_before, areas })
}

/// Writes and discards in a disk's `stat` (fields 5 and 12, Documentation/block/stat.rst).
fn ended(stat: &str) -> Option<u64> {
    let fields: Vec<u64> = stat.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    Some(fields.get(4)? + fields.get(11)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_and_discards_are_counted_and_reads_are_not() {
        assert_eq!(ended("  90 1 3000 40 0 0 0 0 2 40 40 0 0 0 0 3 1\n"), Some(0));
        assert_eq!(ended("  90 1 3000 40 5 0 80 1 1 40 40 2 0 9 0 3 1\n"), Some(7));
        assert_eq!(ended("90 1 3000"), None);
    }
}
