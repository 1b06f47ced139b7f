//! What a start of the agent may believe of what was saved at shutdown. Pure.
//!
//! ```text
//!   saved (image) ─┐
//!   early (initramfs) ─┼─► believe ─► dirty = saved ∪ early, to copy = saved ∪ areas that nothing proves
//!   disks, boot ───┘          └────► or why everything is compared: cause, words, remedy
//! ```

use lifeboat_replication::{
    blocks::{BlockRun, BlockSet, RoaringBitmap},
    ids::DiskSlot,
    resync::Cause,
};

use super::{
    super::disks::Disk,
    areas::{Area, Kind, PRINTS, unproven},
    early::Early,
    saved::{Saved, SavedMark},
};

/// What was found in the image, which is empty from then on.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found {
    Saved(Box<Saved>),
    /// Nothing could be saved at the last shutdown, and why.
    Refused(String),
    /// The shutdown did not come to its end, or there is no image.
    Nothing,
    /// It cannot be read or emptied, and why.
    Unusable(String),
}

/// What is known when the agent's own tracker runs.
pub(super) struct Known<'a> {
    pub(super) server: &'a str,
    pub(super) boot: &'a str,
    pub(super) disks: &'a [Disk],
    pub(super) early: Option<&'a Early>,
    /// Marks of the early tracker, by its own order of disks; or why they cannot be relied on.
    pub(super) marks: Result<&'a BlockSet, &'a str>,
}

/// With the numbers of `Known::disks`.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::kernel) struct Believed {
    pub(in crate::kernel) dirty: BlockSet,
    pub(in crate::kernel) to_copy: BlockSet,
    pub(in crate::kernel) durable: Option<SavedMark>,
    pub(in crate::kernel) sent: Option<u64>,
    pub(in crate::kernel) request: Option<String>,
    pub(in crate::kernel) reason: Option<String>,
    pub(in crate::kernel) issue_only: bool,
}

/// An error is the reason, with its cause's code, why all is compared.
pub(super) fn believe(found: Found, known: &Known<'_>) -> Result<Believed, String> {
    let saved = match found {
        Found::Saved(saved) => *saved,
        Found::Refused(reason) => {
            return Err(Cause::UncleanShutdown
                .because(format!("at the last shutdown the changes could not be saved: {reason}")));
        }
        Found::Nothing => {
            return Err(Cause::UncleanShutdown.because(
                "the server was restarted and had saved no changes: it lost power, crashed or was reset, or the agent was not installed for orderly restarts (`lifeboat-agent install` says)",
            ));
        }
        Found::Unusable(reason) => {
            return Err(
                Cause::UncleanShutdown.because(format!("what was saved at shutdown is no use: {reason}"))
            );
        }
    };
    let Known { server, boot, disks, early, marks } = known;
    if saved.server != *server || saved.boot == *boot {
        return Err(
            Cause::UncleanShutdown.because("what was saved is of another server or of this very boot")
        );
    }
    let missing = |words: &str| Cause::EarlyTrackerMissing.because(words);
    let early = early.ok_or_else(|| {
        missing(
            "no tracker ran before the disks were first mounted; on systems with initramfs-tools, `lifeboat-agent install` puts it into the initramfs",
        )
    })?;
    if early.boot != *boot {
        return Err(missing("the early tracker's word is of another boot"));
    }
    if let Some(error) = &early.error {
        return Err(missing(&format!("the early tracker failed: {error}")));
    }
    if early.prints != PRINTS {
        return Err(missing("the initramfs has another version of the agent: update-initramfs -u -k all"));
    }
    let marks = marks.map_err(missing)?;
    if disks.len() != saved.disks.len() {
        return Err(
            Cause::DisksChanged.because("the disks of the server are not those of before the restart")
        );
    }
    let mut believed = Believed {
        dirty: BlockSet::default(),
        to_copy: BlockSet::default(),
        durable: saved.durable,
        sent: saved.sent,
        request: saved.request,
        reason: saved.copy_reason,
        issue_only: saved.issue_only,
    };
    let mut compared = Vec::new();
    for (number, disk) in disks.iter().enumerate() {
        let path = disk.path();
        let path = path.display();
        let before = saved
            .disks
            .iter()
            .position(|before| before.id == disk.id && before.size_bytes == disk.size_bytes);
        let Some((before, areas)) = before.and_then(|at| Some((at, &saved.disks.get(at)?.areas))) else {
            return Err(Cause::DisksChanged.because(format!("{path} is new or has another size")));
        };
        let seen = early.disks.iter().position(|seen| seen.disk == *disk);
        let Some((seen, early)) = seen.and_then(|at| Some((at, early.disks.get(at)?))) else {
            return Err(missing(&format!("{path} was not there yet when the early tracker began")));
        };
        if early.writes_before > 0 {
            return Err(missing(&format!("{path} was written before the early tracker began")));
        }
        let runs = unproven(areas, &early.areas).map_err(|what| {
            Cause::ChangedWhileDown
                .because(format!("{path} was changed by another system since the shutdown: {what}"))
        })?;
        let slot = slot(number);
        let mut dirty = RoaringBitmap::new();
        for set in [saved.dirty.disk(self::slot(before)), marks.disk(self::slot(seen))].into_iter().flatten()
        {
            dirty |= set;
        }
        believed.dirty.insert_disk(slot, dirty);
        let mut to_copy = saved.to_copy.disk(self::slot(before)).cloned().unwrap_or_default();
        let blocks = u32::try_from(disk.size_bytes.div_ceil(lifeboat_replication::blocks::BLOCK_BYTES))
            .unwrap_or(u32::MAX);
        for (first, count) in runs {
            to_copy.insert_range(first..first.saturating_add(count).min(blocks));
            compared.push(told(areas, first, count, &path));
        }
        believed.to_copy.insert_disk(slot, to_copy);
    }
    if !compared.is_empty() && believed.reason.is_none() {
        believed.reason = Some(Cause::UncleanShutdown.because(format!(
            "after an orderly restart these areas are compared, for nothing in them shows that nobody else wrote there: {}",
            compared.join(", ")
        )));
    }
    Ok(believed)
}

/// `128 MiB at byte 1048576 of /dev/sda (why)`
fn told(areas: &[Area], first: u32, count: u32, path: &impl std::fmt::Display) -> String {
    let is_it = |area: &&Area| area.kind == Kind::Unproven && area.first_byte >> 12 == u64::from(first);
    let why = areas.iter().find(is_it).map_or("", |area| &area.print);
    let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
    format!("{} MiB at byte {} of {path}{why}", count >> 8, u64::from(first) << 12)
}

fn slot(index: usize) -> DiskSlot {
    DiskSlot(u32::try_from(index + 1).unwrap_or(u32::MAX))
}

/// Why there is nothing that could be saved; `Ok`: nothing writes any more.
pub(super) struct Quiet<'a> {
    /// File systems on protected disks that are mounted for writing.
    pub(super) writable: &'a [String],
    /// Lines of /proc/swaps.
    pub(super) swaps: usize,
    /// Writes that the kernel counts as under way; `None` when it does not count.
    pub(super) in_flight: Option<u64>,
    /// Why marks may be missing.
    pub(super) lost: Option<String>,
}

pub(super) fn orderly(quiet: &Quiet<'_>) -> Result<(), String> {
    if let Some(lost) = &quiet.lost {
        return Err(format!("changes were missed before ({lost})"));
    }
    if let Some(first) = quiet.writable.first() {
        return Err(format!("{first} was still mounted for writing; something kept it from being unmounted"));
    }
    if quiet.swaps > 0 {
        return Err("swap was still in use".to_owned());
    }
    match quiet.in_flight {
        None => {
            return Err("the kernel does not count writes: echo 1 > /sys/block/DISK/queue/iostats".to_owned());
        }
        Some(0) => {}
        Some(_) => return Err("writes were still under way".to_owned()),
    }
    Ok(())
}

/// Blocks of a disk that these bytes touch.
pub(super) fn blocks_of(disk: usize, ranges: &[(u64, u64)]) -> Result<BlockSet, String> {
    let mut set = BlockSet::default();
    for (first, bytes) in ranges {
        let block = lifeboat_replication::blocks::BLOCK_BYTES;
        let (first, after) = (first / block, (first + bytes).div_ceil(block));
        let number = |value: u64| {
            u32::try_from(value).map_err(|_| "a file lies beyond the end of its disk".to_owned())
        };
        set.insert_run(BlockRun { disk: slot(disk), first: number(first)?, blocks: number(after - first)? });
    }
    Ok(set)
}

#[cfg(test)]
#[path = "believe_tests.rs"]
mod tests;
