//! How changes are tracked on this machine: the best of what its kernel can do (docs/adr/0012).
//!
//! ```text
//!   ebpf   programs on the block tracepoints (`tracker`)     Linux 5.15 and later with BTF
//!   scan   all disks are read again and again (`scan`)       every other kernel
//! ```
//! Whether programs can be loaded is tried at each start, with a disk that does not exist. Nothing is decided for good: a
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
        Tracking::Auto => cannot_load(&options.sysfs, Arc::clone(&options.wall), disks),
        Tracking::Scan => Some(Why {
            reason: "the agent was started with --tracking scan".to_owned(),
            remedy: "start it without --tracking, for an RPO of seconds where the kernel has BTF".to_owned(),
        }),
    };
    let Some(why) = why.filter(|_| !disks.is_empty()) else {
        let map = Box::new(Tracker::open(options, disks)?);
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
    match cannot_load(sysfs, wall, disks) {
        None => "ebpf".to_owned(),
        Some(Why { reason, remedy }) => format!("scan: {reason}; {remedy}"),
    }
}

/// Why this kernel does not take the programs. What fails for another reason is told by whoever opens the tracker.
fn cannot_load(sysfs: &Path, wall: Arc<dyn Wall>, disks: &[Disk]) -> Option<Why> {
    let nothing = Disk {
        name: "none".to_owned(),
        id: "none".to_owned(),
        size_bytes: 1 << 20,
        device: u32::MAX,
        sequence: 0,
        bio_based: disks.iter().any(|disk| disk.bio_based),
    };
    match Tracker::unpinned(sysfs.to_owned(), wall, &[nothing]) {
        Err(TrackError::Unsupported { reason, remedy }) => Some(Why { reason, remedy }),
        Ok(_) | Err(TrackError::Kernel { .. }) => None,
    }
}
