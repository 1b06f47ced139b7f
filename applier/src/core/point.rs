//! Cuts a recovery point: one snapshot of each disk at one exact record.

use std::collections::BTreeMap;

use lifeboat_replication::{
    catalogue::{Point, PointConsistency, PointDisk, Seed},
    log::LogState,
    wire::v1,
};

use super::{ApplyError, seeds::Seeds};

/// Snapshots of all disks that the server has at `log`, whose last record is `record`; the seed disks stand at
/// exactly that record, with `sequence`.
pub(super) async fn cut(
    seeds: &Seeds,
    log: &LogState,
    record: &v1::Data,
    sequence: u64,
) -> Result<Point, ApplyError> {
    let mut disks = Vec::new();
    // Also of a disk that is left out: should it come back, only what differs will be in the journal behind.
    for disk in &log.disks {
        let seed = Seed { disk_id: disk.id.clone(), size_bytes: disk.size_bytes };
        let snapshot = seeds.snapshot(&seed, sequence).await?;
        disks.push(PointDisk {
            slot: disk.slot.0,
            disk_id: disk.id.clone(),
            size_bytes: disk.size_bytes,
            snapshot: snapshot.0,
        });
    }
    Ok(Point {
        number: record.number,
        epoch: log.epoch.0,
        t0_micros: record.t0_micros,
        consistency: PointConsistency::of(record),
        group: record.group.as_ref().map(|group| group.id.clone()),
        disks,
        log: log.clone(),
    })
}

/// Are all snapshots of the point still there?
pub(super) async fn stands(seeds: &Seeds, point: &Point) -> Result<bool, ApplyError> {
    for disk in &point.disks {
        if seeds.snapshot_sequence(&disk.disk_id, &disk.snapshot).await? != Some(point.sequence()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Do all seed disks of the point hold its record?
pub(super) async fn is_reached(seeds: &Seeds, point: &Point) -> Result<bool, ApplyError> {
    for disk in &point.disks {
        if seeds.sequence_of(&disk.disk_id).await?.is_none_or(|sequence| sequence < point.sequence()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The seed disks after the log has named `disks`.
///
/// # Errors
/// When a disk changed in a way that its seed disk cannot follow.
pub(super) fn seeds_with(
    known: &BTreeMap<u32, Seed>,
    disks: &[lifeboat_replication::log::LogDisk],
) -> Result<BTreeMap<u32, Seed>, ApplyError> {
    let mut seeds = known.clone();
    for disk in disks {
        let new = Seed { disk_id: disk.id.clone(), size_bytes: disk.size_bytes };
        let same_blob = seeds.iter().find(|(slot, seed)| **slot != disk.slot.0 && seed.disk_id == disk.id);
        if let Some((slot, _)) = same_blob {
            return Err(ApplyError::SecondSlot { disk: disk.id.clone(), first: *slot, second: disk.slot.0 });
        }
        match seeds.insert(disk.slot.0, new.clone()) {
            // A grown one is followed: the blobs are made longer before anything is written.
            Some(before) if before.disk_id != new.disk_id || before.size_bytes > new.size_bytes => {
                return Err(ApplyError::DiskShrank {
                    disk: disk.id.clone(),
                    from: before.size_bytes,
                    to: new.size_bytes,
                });
            }
            _ => {}
        }
    }
    Ok(seeds)
}
