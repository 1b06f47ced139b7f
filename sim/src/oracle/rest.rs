//! When faults have stopped: everything comes to rest.

use futures::FutureExt as _;
use lifeboat_replication::{errors::chain, store::BlobStore as _, vault::layout};

use super::{Oracle, points::compare};

impl Oracle {
    /// At rest the vault is the disk, and so are the seed disks.
    pub fn at_rest(&mut self) -> Result<(), String> {
        let content = self.machine.content();
        for (address, wanted) in &content {
            let found = self.replay.get(address).copied().unwrap_or(0);
            if found != *wanted {
                return Err(format!(
                    "at rest, block {} of disk {} is {found}, not {wanted}",
                    address.1, address.0
                ));
            }
        }
        let disks = self.reader.state().map(|state| state.disks.clone()).unwrap_or_default();
        for disk in disks {
            let slot = self.machine_slot(disk.slot)?;
            let name = layout::seed_disk(&self.server, &disk.id);
            let seed = self
                .model
                .get(&name, None, Some(0..disk.size_bytes))
                .now_or_never()
                .ok_or("the seed disk's read waits")?;
            let seed = seed.map_err(|error| chain(&error))?;
            compare(&content, slot, &seed, disk.size_bytes, "seed disk at rest")?;
        }
        Ok(())
    }
}
