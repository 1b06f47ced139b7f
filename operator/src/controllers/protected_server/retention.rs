//! Writes into the vault how long a server's data is kept. The applier reads it there, so it obeys the last word also
//! while no operator runs, in a cluster near the vault, or after a disaster.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lifeboat_crds::ReplicationPolicySpec;
use lifeboat_replication::{
    ids::ServerId,
    store::Refusal,
    vault::{RetentionPolicy, Vault, VaultError},
};

/// What was written, by server: the vault is not asked at every pass. Cheap to clone.
#[derive(Clone, Default)]
pub struct Written(Arc<Mutex<BTreeMap<ServerId, RetentionPolicy>>>);

impl Written {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServerId, RetentionPolicy>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `server.json` say what the policy says, unless it does. Another writer in between only means that the next
    /// pass looks again.
    pub(super) async fn settle(
        &self,
        vault: &Vault,
        id: &ServerId,
        policy: &ReplicationPolicySpec,
    ) -> Result<(), VaultError> {
        let wanted = of(policy);
        if self.lock().get(id) == Some(&wanted) {
            return Ok(());
        }
        let Some((mut server, etag)) = vault.read_server(id).await? else { return Ok(()) };
        if server.retention != Some(wanted) {
            server.retention = Some(wanted);
            match vault.write_server(&server, Some(&etag)).await {
                Err(VaultError::Store(error)) if error.is(Refusal::Condition) => return Ok(()),
                written => drop(written?),
            }
        }
        self.lock().insert(id.clone(), wanted);
        Ok(())
    }
}

fn of(policy: &ReplicationPolicySpec) -> RetentionPolicy {
    RetentionPolicy {
        point_interval_seconds: policy.recovery_points.interval.as_secs(),
        retention_seconds: policy.recovery_points.retention.as_secs(),
        journal_seconds: policy.journal_retention.as_secs(),
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_replication::{
        env::Env,
        keys::DataKeys,
        store::{BlobStore as _, model::ModelStore},
        vault::layout,
    };

    use super::*;

    #[tokio::test]
    async fn the_vault_says_what_the_policy_says_and_is_not_written_without_need() {
        let (env, store) = (Env::system(), ModelStore::new());
        let vault = Vault {
            store: Arc::new(store.clone()),
            cache: Arc::new(store.clone()),
            keys: Arc::new(DataKeys::generate(&*env.entropy)),
            id: "v".into(),
        };
        let id = vault.adopt_server("ns", "db", &env).await.unwrap().id;
        let (mut policy, written) = (ReplicationPolicySpec::default(), Written::default());
        let etag = || async { store.properties(&layout::server_json(&id), None).await.unwrap().etag };
        written.settle(&vault, &id, &policy).await.unwrap();
        let first = vault.read_server(&id).await.unwrap().unwrap().0.retention;
        let wanted =
            RetentionPolicy { point_interval_seconds: 300, retention_seconds: 86_400, journal_seconds: 7200 };
        assert_eq!(first, Some(wanted));
        let before = etag().await;
        // Neither this operator nor one that was started anew writes it again.
        written.settle(&vault, &id, &policy).await.unwrap();
        Written::default().settle(&vault, &id, &policy).await.unwrap();
        assert_eq!(etag().await, before);
        policy.journal_retention = lifeboat_crds::Duration::from_mins(1);
        written.settle(&vault, &id, &policy).await.unwrap();
        assert_eq!(vault.read_server(&id).await.unwrap().unwrap().0.retention.unwrap().journal_seconds, 60);
    }
}
