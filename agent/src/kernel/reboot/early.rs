//! `lifeboat-agent early`: runs in the initramfs, when the disks are there and nothing is mounted.
//!
//! In: the machine's disks. Out: a tracker over all of them, pinned for the agent to take up, and a note with the
//! fingerprints of their areas in /run, which is kept when the real root takes over. First the tracker, then the
//! kernel's count of writes so far, then the fingerprints: so no write can be missed, whoever makes it.
//!
//! It ends soon and never holds up the boot: what goes wrong is noted, and the agent compares and says why. The work is
//! done by a process of its own, for a read of a disk that does not answer cannot be given up: that process is left behind.

use std::{
    fs, io,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

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
    areas::{Area, PRINTS, partitions, survey},
    raw::Direct,
    write_note,
};

/// Loading the tracker and some reads of each disk take a second, and ten where a machine is emulated.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

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
    /// Its fingerprints mean the same as those of a shutdown with the same number.
    #[serde(default)]
    pub(super) prints: u32,
    pub(super) boot: String,
    pub(super) disks: Vec<EarlyDisk>,
    pub(super) error: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum EarlyError {
    #[error("the early tracker's note cannot be written; is /run mounted?")]
    Note(#[source] io::Error),
}

/// Has `worker` do the work of [`run`], and notes that there is no early tracker if that takes too long.
pub fn run_within_limit(worker: &mut Command, places: &RebootPlaces) -> Result<(), EarlyError> {
    let Err(error) = within(worker, LIMIT) else { return Ok(()) };
    tracing::warn!(error, "no early tracker: this start of the machine will need a comparison");
    note(places, Vec::new(), Some(error))
}

fn note(places: &RebootPlaces, disks: Vec<EarlyDisk>, error: Option<String>) -> Result<(), EarlyError> {
    let note = Early { prints: PRINTS, boot: places.boot(), disks, error };
    write_note(&places.run, EARLY, &note).map_err(EarlyError::Note)
}

/// An error: it did not end in time, or not by itself. It may end later; what it would still do it does not get to do.
#[allow(clippy::disallowed_methods, reason = "the initramfs waits for this; there is no runtime")]
fn within(worker: &mut Command, limit: Duration) -> Result<(), String> {
    let ended = |error: io::Error| format!("its process cannot be started ({error})");
    let mut child = worker.stdin(Stdio::null()).spawn().map_err(ended)?;
    let mut waited = Duration::ZERO;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("its process ended by itself ({status})")),
            Ok(None) if waited < limit => {
                std::thread::sleep(LOOK);
                waited += LOOK;
            }
            // Not waited for: in the middle of a read it dies when the disk has answered.
            Ok(None) => {
                _ = child.kill();
                return Err(format!("the disks did not answer within {} s", limit.as_secs()));
            }
            Err(error) => return Err(format!("its process is lost ({error})")),
        }
    }
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
    note(places, disks, error)
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
    let (partitions, holder) = partitions(sysfs, &disk.name)?;
    let areas = survey(disk.size_bytes, &partitions, holder, &Direct::open(&disk.name, false)?)?;
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
    fn a_process_that_does_not_end_is_given_up_and_one_that_fails_is_told() {
        assert_eq!(within(&mut Command::new("true"), LIMIT), Ok(()));
        assert!(within(&mut Command::new("false"), LIMIT).unwrap_err().contains("exit status: 1"));
        assert!(within(&mut Command::new("/no/such/program"), LIMIT).unwrap_err().contains("started"));
        let slow = within(Command::new("sleep").arg("600"), Duration::from_secs(1));
        assert_eq!(slow, Err("the disks did not answer within 1 s".to_owned()));
    }

    #[test]
    fn writes_and_discards_are_counted_and_reads_are_not() {
        assert_eq!(ended("  90 1 3000 40 0 0 0 0 2 40 40 0 0 0 0 3 1\n"), Some(0));
        assert_eq!(ended("  90 1 3000 40 5 0 80 1 1 40 40 2 0 9 0 3 1\n"), Some(7));
        assert_eq!(ended("90 1 3000"), None);
    }
}
