//! Where servers are recovered to. One implementation so far: a QEMU virtual machine in a pod of this cluster.

pub mod virtual_machine_pod;

use std::collections::BTreeMap;

use async_trait::async_trait;
use lifeboat_crds::{FailoverRun, run::ResolvedServer};

use crate::{failover::world::Machine, runtime::Failure};

/// A kind of machine. Every method can be repeated without harm.
#[async_trait]
pub trait Target: Send + Sync {
    /// Makes the machine and what it needs, unless it is there; starts it.
    async fn create(&self, run: &FailoverRun, name: &str, server: &ResolvedServer) -> Result<(), Failure>;

    /// The run's machines by server.
    async fn observe(&self, run: &FailoverRun) -> Result<BTreeMap<String, Machine>, Failure>;

    /// Removes the machine and what was made for it; it is gone when it is no longer observed.
    async fn remove(&self, run: &FailoverRun, name: &str) -> Result<(), Failure>;
}
