//! Compression and encryption on threads of their own, so that they never keep connections or leases waiting.

use std::sync::Arc;

use async_trait::async_trait;
use lifeboat_replication::segment::Sealed;

use crate::core::{
    fair::FairSlots,
    sealing::{SealError, SealJob, Sealer, seal_now},
};

/// As many jobs at a time as the machine has cores, shared among servers by the bytes that they have sealed.
#[derive(Debug)]
pub struct SealPool {
    cores: Arc<FairSlots>,
}

impl Default for SealPool {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { cores: FairSlots::brief(cores) }
    }
}

#[async_trait]
impl Sealer for SealPool {
    #[allow(
        clippy::disallowed_methods,
        reason = "the edge that core::sealing::Sealer hides from the simulation"
    )]
    async fn seal(&self, job: SealJob) -> Result<Sealed, SealError> {
        let bytes =
            job.extents.iter().filter_map(|extent| extent.data.as_ref()).map(|data| data.len() as u64);
        // Moved into the job: one whose caller is gone still counts until it ends.
        let core = self.cores.acquire(job.server.as_str(), bytes.sum()).await;
        let sealing = tokio::task::spawn_blocking(move || {
            let sealed = seal_now(&job);
            drop(core);
            sealed
        });
        sealing.await.map_err(|_| SealError::Gone)?
    }
}
