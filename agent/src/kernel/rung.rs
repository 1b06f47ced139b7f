//! How changes are tracked on this machine: the best of what its kernel can do (docs/adr/0012).
//!
//! ```text
//!   ebpf   a program on the block tracepoints (`tracker`)    Linux 5.7 and later with BTF: which, see `program`
//!   scan   all disks are read again and again (`scan`)       every other kernel
//! ```
//! Whether a program can be loaded is tried at each start, with a disk that does not exist. Nothing is decided for good: a
//! server that starts with a better kernel is tracked better, after a comparison with its vault.

use std::{path::Path, sync::Arc};

use clap::ValueEnum;
use lifeboat_replication::env::Wall;

use super::{
    disks::Disk,
    pins::{kernel, remove},
    reader::DiskReader,
    reboot,
    scan::{Scanner, Why},
    tracker::{Tracker, TrackerOptions},
};
use crate::edge::{BlockSource, DirtyMap, TrackError};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Tracking {
    /// eBPF where the kernel can do it, otherwise by reading the disks.
    #[default]
    Auto,
    /// eBPF, or not at all.
    Ebpf,
    /// By reading all disks again and again, also where the kernel could do better.
    Scan,
}

/// The marks, and the disks whose changes they tell of.
pub struct Tracked {
    pub map: Box<dyn DirtyMap>,
    pub source: Arc<dyn BlockSource>,
}

/// Opens what is asked for.
pub fn open(wanted: Tracking, options: &TrackerOptions, disks: &[Disk]) -> Result<Tracked, TrackError> {
    let why = match wanted {
        Tracking::Ebpf => None,
        Tracking::Auto => try_load(&options.sysfs, Arc::clone(&options.wall), disks).err(),
        Tracking::Scan => Some(Why {
            reason: "the agent was started with --tracking scan".to_owned(),
            remedy: "start it without --tracking, for an RPO of seconds where the kernel has BTF".to_owned(),
        }),
    };
    let Some(why) = why.filter(|_| !disks.is_empty()) else {
        let map = Box::new(Tracker::open(options, disks)?);
        tracing::info!(tracking = map.tracking(), "changes are found by an eBPF program");
        let source = Arc::new(DiskReader::open(disks).map_err(kernel("open the disks"))?);
        return Ok(Tracked { map, source });
    };
    tracing::warn!(reason = why.reason, remedy = why.remedy, "changes are found by reading the disks");
    // Marks of a run with a better kernel (or of another choice) say nothing of what is sent from now on.
    remove(&options.pins.join(options.server.as_str())).map_err(kernel("remove old pins"))?;
    if options.reboot.is_some() {
        // Nor does what was saved at the last shutdown, also for a later start that could use it.
        reboot::discard(&options.state, &options.pins);
    }
    let (scanner, source) = Scanner::open(options, disks, why)?;
    Ok(Tracked { map: Box::new(scanner), source: Arc::new(source) })
}

/// In words: how changes of these disks would be found on this machine. Needs root, as the agent does.
pub fn best(sysfs: &Path, wall: Arc<dyn Wall>, disks: &[Disk]) -> String {
    match try_load(sysfs, wall, disks) {
        Ok(tracking) => tracking,
        Err(Why { reason, remedy }) => format!("scan: {reason}; {remedy}"),
    }
}

/// The name of the rung that this kernel takes, or why it takes no program. What fails for another reason is told by
/// whoever opens the tracker.
fn try_load(sysfs: &Path, wall: Arc<dyn Wall>, disks: &[Disk]) -> Result<String, Why> {
    let nothing = Disk::none(disks);
    match Tracker::unpinned(sysfs.to_owned(), wall, &[nothing]) {
        Err(TrackError::Unsupported { reason, remedy }) => Err(Why { reason, remedy }),
        Err(TrackError::Kernel { .. }) => Ok("ebpf".to_owned()),
        Ok(tracker) => Ok(tracker.tracking()),
    }
}
