//! What tests of retention stand on: a server in an empty vault.

use std::sync::Arc;

use lifeboat_replication::{
    catalogue::{Point, PointConsistency, PointDisk},
    env::Env,
    ids::ServerId,
    keys::DataKeys,
    log::{LogState, Patience},
    store::{
        BlobStore, Refusal, Result, SnapshotId,
        gated::{Call, Gate, Gated},
        model::ModelStore,
    },
    vault::Vault,
};

use crate::core::seeds::Seeds;

pub(super) fn seeds() -> Seeds {
    let env = Env::system();
    let vault = Vault {
        store: Arc::new(ModelStore::new()),
        cache: Arc::new(ModelStore::new()),
        keys: Arc::new(DataKeys::generate(&*env.entropy)),
        id: "vault".to_owned(),
    };
    let server = ServerId::from_random([7; 16]);
    Seeds { vault, server, patience: Patience::new(env), planted: None }
}

/// Refuses one kind of call of the store and the cache.
#[derive(Debug)]
struct Refuses(&'static str, Refusal);

impl Gate for Refuses {
    async fn pass<T: Send>(
        &self,
        call: Call<'_>,
        request: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        match call.operation == self.0 {
            true => Err(call.refused(self.1, "planted")),
            false => request.await,
        }
    }
}

/// The same vault, of which calls of one operation are refused.
pub(super) fn refusing(seeds: &Seeds, operation: &'static str, why: Refusal) -> Seeds {
    let gated = |store: &Arc<dyn BlobStore>| Gated::new(Arc::clone(store), Refuses(operation, why));
    let (store, cache) = (gated(&seeds.vault.store), gated(&seeds.vault.cache));
    let vault = Vault { store, cache, ..seeds.vault.clone() };
    Seeds { vault, server: seeds.server.clone(), patience: Patience::new(Env::system()), planted: None }
}

/// The point of the record at `log`, an hour after the one before, with one disk.
pub(super) fn point(log: &LogState, snapshot: &SnapshotId) -> Point {
    let number = log.last_number.0;
    Point {
        number,
        epoch: log.epoch.0,
        t0_micros: number as i64 * 3_600_000_000,
        consistency: PointConsistency::CrashConsistent,
        group: None,
        disks: vec![PointDisk {
            slot: 1,
            disk_id: "disk".to_owned(),
            size_bytes: 1 << 20,
            snapshot: snapshot.0.clone(),
        }],
        log: log.clone(),
    }
}
