//! What can be recovered: the listed points' snapshots, and what the block index reads.

use std::sync::Arc;

use futures::FutureExt as _;
use lifeboat_agent::memory::tag;
use lifeboat_recovery::{
    index::{BlockIndex, IndexOptions},
    select::PointSelector,
};
use lifeboat_replication::{
    blocks::BLOCK_BYTES,
    catalogue::{self, Points},
    errors::chain,
    ids::DiskSlot,
    recoverable,
    store::{BlobStore as _, SnapshotId},
    vault::{Vault, layout},
};

use tokio::task::unconstrained;

use super::{BLOCK, Image, Oracle};

impl Oracle {
    /// The vault as it is, whatever faults a program meets.
    pub(super) fn past_faults(&self) -> Vault {
        Vault { store: Arc::new(self.model.clone()), ..self.vault.clone() }
    }

    /// The catalogue's points are the disks at their records.
    pub fn points_changed(&mut self) -> Result<(), String> {
        let read = catalogue::read::<Points>(&self.past_faults(), &self.server).now_or_never();
        let Some((points, _)) = read.ok_or("the catalogue's read waits")?.map_err(|error| chain(&error))?
        else {
            return Ok(());
        };
        self.journal_keeps_its_promise(&points)?;
        for point in points.points {
            if !self.compared.insert((point.epoch, point.number)) {
                continue;
            }
            let image = self
                .images
                .get(&point.number)
                .ok_or_else(|| format!("listed point {} is no exact record", point.number))?;
            for disk in &point.disks {
                let slot = self.machine_slot(DiskSlot(disk.slot))?;
                let name = layout::seed_disk(&self.server, &disk.disk_id);
                let snapshot = SnapshotId(disk.snapshot.clone());
                let content = self.model.get(&name, Some(&snapshot), Some(0..disk.size_bytes)).now_or_never();
                let content = content.ok_or("a snapshot's read waits")?.map_err(|error| chain(&error))?;
                let what = format!("snapshot of point {}", point.number);
                compare(image, slot, &content, disk.size_bytes, &what)?;
            }
            self.reached.snapshots_compared += 1;
        }
        Ok(())
    }

    /// What the block index reads for a point, chosen by `pick`, is the disk at its record.
    pub fn index_agrees(&mut self, pick: u64) -> Result<(), String> {
        let promised = recoverable::points(&self.vault, &self.server, &self.env).now_or_never();
        let promised = promised.ok_or("the list of points waits")?.map_err(|error| chain(&error))?;
        let Some(point) = promised.get(pick as usize % promised.len().max(1)) else { return Ok(()) };
        let number = point.id.number.0;
        let image =
            self.images.get(&number).ok_or_else(|| format!("offered point {number} is no exact record"))?;
        let selector = PointSelector::Number(number);
        let options = IndexOptions::default();
        let open = BlockIndex::open(&self.vault, &self.server, &self.env, selector, &options);
        // A long journal takes more steps than tokio grants a task at a time.
        let index = unconstrained(open).now_or_never().ok_or("the block index waits")?;
        let index = index.map_err(|error| format!("point {number} cannot be opened: {}", chain(&error)))?;
        for disk in index.disks() {
            let slot = self.machine_slot(disk.slot)?;
            let blocks = (disk.size_bytes / BLOCK_BYTES) as u32;
            let read = unconstrained(index.read(disk.slot, 0, blocks)).now_or_never();
            let read = read.ok_or("the block index waits")?;
            let content =
                read.map_err(|error| format!("point {number} cannot be read: {}", chain(&error)))?;
            compare(image, slot, &content, disk.size_bytes, &format!("block index at record {number}"))?;
        }
        self.reached.index_compared += 1;
        Ok(())
    }
}

/// Bit for bit: `content` is disk `slot` as `image` has it.
pub(super) fn compare(
    image: &Image,
    slot: DiskSlot,
    content: &[u8],
    size: u64,
    what: &str,
) -> Result<(), String> {
    for block in 0..(size / BLOCK_BYTES) as u32 {
        let at = block as usize * BLOCK;
        let found = content.get(at..at + BLOCK).and_then(tag);
        let wanted = image.get(&(slot, block)).copied().unwrap_or(0);
        if found != Some(wanted) {
            return Err(format!("{what}: block {block} of disk {slot} is {found:?}, not {wanted}"));
        }
    }
    Ok(())
}
