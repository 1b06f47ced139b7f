//! Points that a server can be recovered to, read from its commit log: the vault's word, not the cluster's.

use kube::ResourceExt as _;
use lifeboat_crds::{
    ProtectedServer, Time,
    run::{Consistency, ResolvedPoint},
};
use lifeboat_replication::{
    catalogue::is_point,
    errors::chain,
    ids::ServerId,
    log::{LogReader, ReadError},
    wire::v1::{self, log_record::Body},
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
        (Ok(vault), Ok(id)) => {
            read(LogReader::from_start(&vault, &id, &context.env)).await.map_err(|error| chain(&error))
        }
        (Err(failure), _) => Err(failure.message),
        (_, Err(invalid)) => Err(invalid.to_string()),
    };
    (points, processed)
}

/// Only what a point is made of is kept of each record.
async fn read(mut log: LogReader) -> Result<Vec<ResolvedPoint>, ReadError> {
    let mut points = Vec::new();
    while let Some(entry) = log.next().await? {
        if let Body::Data(record) = entry.body
            && is_point(&record)
            && let Ok(time) = Time::from_microsecond(record.t0_micros)
        {
            let consistency = consistency(&record);
            points.push(ResolvedPoint {
                time,
                epoch: u64::from(entry.epoch.0),
                record: record.number,
                consistency,
            });
        }
    }
    Ok(points)
}

fn consistency(record: &v1::Data) -> Consistency {
    match record.consistency() {
        v1::Consistency::FilesystemConsistent => Consistency::FilesystemConsistent,
        v1::Consistency::CrashConsistent | v1::Consistency::Unspecified => Consistency::CrashConsistent,
    }
}
