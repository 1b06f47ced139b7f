//! Points that a server can be recovered to, as log and catalogue have them: the vault's word, not the cluster's.
//! What retention has deleted is not among them.

use kube::ResourceExt as _;
use lifeboat_crds::{
    ProtectedServer, Time,
    run::{Consistency, ResolvedPoint},
};
use lifeboat_replication::{
    catalogue::PointConsistency,
    errors::chain,
    ids::ServerId,
    recoverable::{self, Recoverable},
};

use crate::{control::ApplianceKey, controllers::vaults, runtime::Context};

/// All points in order, and T0 of the newest snapshot of the seed disks.
pub(super) async fn of(
    server: &ProtectedServer,
    context: &Context,
) -> (Result<Vec<ResolvedPoint>, String>, Option<Time>) {
    let namespace = server.namespace().unwrap_or_default();
    let appliance = &server.spec.appliance_ref.name;
    let Some(id) = server.status.as_ref().and_then(|status| status.id.clone()) else {
        return (Err("it has no identity in the vault yet: see its conditions".to_owned()), None);
    };
    let key = ApplianceKey { namespace: namespace.clone(), name: appliance.clone() };
    let processed = context
        .fleet
        .applied(&key, &id)
        .and_then(|applied| applied.points.iter().map(|point| point.t0_micros).max());
    let processed = processed.and_then(|micros| Time::from_microsecond(micros).ok());
    let points = match (vaults::of(&namespace, appliance, context).await, id.parse::<ServerId>()) {
        (Ok(vault), Ok(id)) => recoverable::points(&vault, &id, &context.env)
            .await
            .map(|points| points.into_iter().filter_map(resolved).collect())
            .map_err(|error| chain(&error)),
        (Err(failure), _) => Err(failure.message),
        (_, Err(invalid)) => Err(invalid.to_string()),
    };
    (points, processed)
}

fn resolved(point: Recoverable) -> Option<ResolvedPoint> {
    let consistency = match point.consistency {
        PointConsistency::AppConsistent => Consistency::AppConsistent,
        PointConsistency::FilesystemConsistent => Consistency::FilesystemConsistent,
        PointConsistency::CrashConsistent => Consistency::CrashConsistent,
    };
    Some(ResolvedPoint {
        time: Time::from_microsecond(point.t0.0).ok()?,
        epoch: u64::from(point.id.epoch.0),
        record: point.id.number.0,
        consistency,
    })
}
