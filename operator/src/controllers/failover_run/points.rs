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
    vault::Vault,
};

use crate::{
    control::ApplianceKey,
    controllers::{protected_server::rollback, vaults},
    failover::resolve::Lost,
    runtime::Context,
};

/// What the vault says of a server.
pub(super) struct Points {
    /// All points in order, or why the vault did not tell them.
    pub points: Result<Vec<ResolvedPoint>, String>,
    /// T0 of the newest snapshot of the seed disks.
    pub latest_processed: Option<Time>,
    /// What it does not hold any more of what was seen in it.
    pub lost: Option<Lost>,
    /// It gave no answer, or a refusal: not one that nobody has opened yet, since the operator has just started.
    pub silent: bool,
}

pub(super) async fn of(server: &ProtectedServer, context: &Context) -> Points {
    let namespace = server.namespace().unwrap_or_default();
    let appliance = &server.spec.appliance_ref.name;
    let Some(id) = server.status.as_ref().and_then(|status| status.id.clone()) else {
        let points = Err("it has no identity in the vault yet: see its conditions".to_owned());
        return Points { points, latest_processed: None, lost: None, silent: false };
    };
    let key = ApplianceKey { namespace: namespace.clone(), name: appliance.clone() };
    let processed = context
        .fleet
        .applied(&key, &id)
        .and_then(|applied| applied.report.points.iter().map(|point| point.t0_micros).max());
    let latest_processed = processed.and_then(|micros| Time::from_microsecond(micros).ok());
    let (read, silent) = match (vaults::of(&namespace, appliance, context).await, id.parse::<ServerId>()) {
        (Ok(vault), Ok(id)) => {
            let read = read(server, &vault, &id, context).await;
            let silent = read.is_err();
            (read, silent)
        }
        (Err(failure), _) => (Err(failure.message), context.vaults.is_silent(&key)),
        (_, Err(invalid)) => (Err(invalid.to_string()), false),
    };
    match read {
        Ok((points, snapshot, lost)) => {
            // An applier of another cluster reports to nobody here: what it has listed in the vault counts.
            Points { points: Ok(points), latest_processed: latest_processed.max(snapshot), lost, silent }
        }
        Err(why) => Points { points: Err(why), latest_processed, lost: None, silent },
    }
}

/// Points, T0 of the newest snapshot, and what is lost: told by the status, or noticed here, since no process server may be left to notice it.
async fn read(
    server: &ProtectedServer,
    vault: &Vault,
    id: &ServerId,
    context: &Context,
) -> Result<(Vec<ResolvedPoint>, Option<Time>, Option<Lost>), String> {
    let points = recoverable::points(vault, id, &context.env).await.map_err(|error| chain(&error))?;
    let told = rollback::unacknowledged(server).and_then(|rollback| {
        Some(Lost { record: rollback.lost_record, point_time: rollback.lost_point_time? })
    });
    let noticed = match server.status.as_ref().and_then(|status| status.last_seen_head.as_ref()) {
        Some(seen) => {
            let holds = rollback::holds(vault, id, seen, &context.env).await;
            let lost = !holds.map_err(|error| chain(&error))?;
            seen.point_time.filter(|_| lost).map(|point_time| Lost { record: seen.record, point_time })
        }
        None => None,
    };
    let lost = told.into_iter().chain(noticed).max_by_key(|lost| lost.point_time);
    let snapshot = points.iter().filter(|point| point.snapshot).map(|point| point.t0.0).max();
    let snapshot = snapshot.and_then(|micros| Time::from_microsecond(micros).ok());
    Ok((points.into_iter().filter_map(resolved).collect(), snapshot, lost))
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
        group_point: point.group,
    })
}
