//! A QEMU virtual machine in a pod of this cluster, booting at once from the vault: a sidecar shows the recovery point
//! as block devices (NBD over Unix sockets), reads on demand and keeps writes in a local overlay. So the time to boot
//! does not grow with the disk, and nothing is ever written to the vault.
//!
//! **Cut off.** In a test the machine reaches nothing and is reached by nothing but the run's checks and scripts:
//! QEMU's user-mode network runs with `restrict=on` (the guest can open no connection to the host, the cluster or
//! beyond; only the ports of the spec are forwarded inwards), and a NetworkPolicy lets only pods of the same run in.
//! The first is enforced by QEMU whatever the cluster's network is; the second where the network plugin does it.
//!
//! The overlay is an `emptyDir`: a pod that is gone is gone with what the machine wrote, so it is never made again.

mod network;
mod observe;
mod pod;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use async_trait::async_trait;
use k8s_openapi::api::{core::v1::Pod, networking::v1::NetworkPolicy};
use kube::{
    ResourceExt as _,
    api::{DeleteParams, ListParams},
};
use lifeboat_crds::{
    FailoverRun, Reason, ReplicationAppliance,
    names::{RUN_UID_LABEL, SERVER_LABEL},
    run::ResolvedServer,
};

use super::Target;
use crate::{
    controllers::{
        appliance::validate::validate,
        shared::{create, delete},
    },
    failover::world::Machine,
    runtime::{Context, Failure},
};

/// QEMU is stopped as if the power went: a test machine has nothing to save.
const STOP_SECONDS: u32 = 1;
/// Tells machines from the run's other pods.
pub(crate) const MACHINE_LABEL: &str = "lifeboat.dev/machine";

pub struct VirtualMachinePods {
    context: Context,
}

impl VirtualMachinePods {
    pub fn new(context: Context) -> Self {
        Self { context }
    }
}

#[async_trait]
impl Target for VirtualMachinePods {
    async fn create(&self, run: &FailoverRun, name: &str, server: &ResolvedServer) -> Result<(), Failure> {
        let namespace = run.namespace().unwrap_or_default();
        let appliance =
            self.context.api::<ReplicationAppliance>(&namespace).get_opt(&server.appliance).await?;
        let appliance = appliance.ok_or_else(|| {
            Failure::waiting(
                Reason::ReferenceNotFound,
                format!(
                    "ReplicationAppliance {} does not exist: its vault cannot be opened",
                    server.appliance
                ),
            )
        })?;
        let validated = validate(&appliance)?;
        // The policy first: the machine is never reachable without it.
        create(&self.context.api::<NetworkPolicy>(&namespace), &network::build(run, name, server)).await?;
        let pod = pod::build(run, name, server, &appliance, &validated, &self.context.settings.images)?;
        create(&self.context.api::<Pod>(&namespace), &pod).await?;
        Ok(())
    }

    async fn observe(&self, run: &FailoverRun) -> Result<BTreeMap<String, Machine>, Failure> {
        let selector = format!("{RUN_UID_LABEL}={},{MACHINE_LABEL}", run.uid().unwrap_or_default());
        let pods = self
            .context
            .api::<Pod>(&run.namespace().unwrap_or_default())
            .list(&ListParams::default().labels(&selector))
            .await?;
        let named = |pod: Pod| Some((pod.labels().get(SERVER_LABEL)?.clone(), observe::machine(&pod)));
        Ok(pods.items.into_iter().filter_map(named).collect())
    }

    async fn remove(&self, run: &FailoverRun, name: &str) -> Result<(), Failure> {
        let namespace = run.namespace().unwrap_or_default();
        let params = DeleteParams { grace_period_seconds: Some(STOP_SECONDS), ..DeleteParams::default() };
        delete(&self.context.api::<NetworkPolicy>(&namespace), name, &DeleteParams::default()).await?;
        // The pod last: while it is seen, the removal is repeated.
        delete(&self.context.api::<Pod>(&namespace), name, &params).await
    }
}
