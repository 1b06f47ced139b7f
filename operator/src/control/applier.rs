//! The stream from an applier: what stands on the seed disks, and which recovery points there are.

use lifeboat_replication::{
    errors::chain,
    wire::v1::{self, applier_control_client::ApplierControlClient},
};
use tokio::sync::watch;

use super::{
    ApplianceKey, Endpoint, Fleet, Identity,
    process_server::{RETRY_INTERVAL, StreamError, connect},
};

/// Never ends; aborted by the fleet.
pub(super) async fn run(
    fleet: Fleet,
    key: ApplianceKey,
    endpoint: Endpoint,
    identity: Identity,
    mut servers: watch::Receiver<Vec<String>>,
) {
    loop {
        let server_ids = servers.borrow_and_update().clone();
        let ended = tokio::select! {
            biased;
            result = follow(&fleet, &key, &endpoint, &identity, server_ids) => match result {
                Ok(()) => StreamError::Ended { address: endpoint.address.clone() },
                Err(error) => error,
            },
            changed = servers.changed() => match changed {
                Ok(()) => continue, // Ask anew for the servers that there are now.
                Err(_) => return,
            },
        };
        if fleet.trouble_of(&key, &endpoint.name).as_deref() != Some(&chain(&ended)) {
            tracing::warn!(appliance = key.name, applier = endpoint.name, error = %chain(&ended), "no control stream");
        }
        fleet.trouble(&key, &endpoint.name, chain(&ended));
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

async fn follow(
    fleet: &Fleet,
    key: &ApplianceKey,
    endpoint: &Endpoint,
    identity: &Identity,
    server_ids: Vec<String>,
) -> Result<(), StreamError> {
    let refused =
        |status| StreamError::Refused { address: endpoint.address.clone(), status: Box::new(status) };
    let channel = connect(endpoint, identity).await?;
    let response = ApplierControlClient::new(channel).watch(v1::WatchApplier { server_ids }).await;
    let mut incoming = response.map_err(refused)?.into_inner();
    tracing::info!(appliance = key.name, applier = endpoint.name, "control stream open");
    while let Some(report) = incoming.message().await.map_err(refused)? {
        fleet.heard_applier(key, &endpoint.name, report);
    }
    Ok(())
}
