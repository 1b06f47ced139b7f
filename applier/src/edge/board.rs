//! What is known about the servers that this applier has: for probes, metrics and the operator.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lifeboat_replication::{env::Env, ids::ServerId, vault::RetentionPolicy, wire::v1};
use tokio::{sync::watch, task::AbortHandle};

use crate::core::{Status, Storage};

/// What is known about all servers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Board {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    /// Those whose lease this applier holds.
    pub(super) servers: BTreeMap<ServerId, Entry>,
    pub(super) asked_for: BTreeSet<ServerId>,
    /// Why the vault cannot be used; empty: it can.
    vault_error: String,
    /// Why leases cannot be kept or taken; empty: they can.
    share_error: String,
    /// The vault has been looked at once.
    pub(super) looked: bool,
}

#[derive(Debug)]
pub(super) struct Entry {
    /// namespace/name.
    pub(super) name: String,
    pub(super) status: watch::Receiver<Status>,
    /// How long what is kept, as the vault says.
    pub(super) policy: watch::Sender<Option<RetentionPolicy>>,
    pub(super) task: AbortHandle,
}

/// A server as metrics and reports show it.
#[derive(Debug, Clone)]
pub struct Shown {
    pub id: ServerId,
    pub name: String,
    pub status: Status,
}

impl Board {
    /// Those that are applied: when a lease may have run out its work ends at once, also while a round that would tidy up
    /// here hangs in the store.
    pub fn servers(&self) -> Vec<Shown> {
        let inner = self.lock();
        let applied = inner.servers.iter().filter(|(_, entry)| !entry.task.is_finished());
        let shown = applied.map(|(id, entry)| Shown {
            id: id.clone(),
            name: entry.name.clone(),
            status: entry.status.borrow().clone(),
        });
        shown.collect()
    }

    /// Why the vault cannot be used; empty: it can.
    pub fn vault_error(&self) -> String {
        let inner = self.lock();
        if inner.vault_error.is_empty() { inner.share_error.clone() } else { inner.vault_error.clone() }
    }

    pub fn ready(&self) -> bool {
        self.lock().looked && self.vault_error().is_empty()
    }

    /// The operator wants these servers applied, named in the vault or not, instead of those that it asked for before.
    pub fn ask_for(&self, servers: impl IntoIterator<Item = ServerId>) {
        self.lock().asked_for = servers.into_iter().collect();
    }

    pub fn report(&self, name: &str, env: &Env) -> v1::ApplierReport {
        // Whoever holds a server's lease reports it, and nobody else.
        let servers = self.servers().into_iter().map(|Shown { id, name: _, status }| v1::AppliedServer {
            server_id: id.to_string(),
            epoch: status.epoch,
            applied_number: status.applied_number,
            log_number: status.log_number,
            points: status.points,
            error: status.error,
            storage: status.storage.map(wire),
            journal_begins_micros: status.journal_begins_micros,
            retention_error: status.collect_error,
        });
        v1::ApplierReport {
            name: name.to_owned(),
            time_micros: env.wall.now().0,
            vault_error: self.vault_error(),
            servers: servers.collect(),
        }
    }

    pub fn set_vault_error(&self, error: String) {
        self.lock().vault_error = error;
    }

    pub(super) fn set_share_error(&self, error: String) {
        self.lock().share_error = error;
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wire(storage: Storage) -> v1::Storage {
    let Storage { stored, growth_bytes_per_day, observed_at_micros } = storage;
    v1::Storage {
        journal_bytes: stored.journal_bytes,
        log_bytes: stored.log_bytes,
        seed_disk_bytes: stored.seed_disk_bytes,
        snapshots: stored.snapshots,
        growth_bytes_per_day,
        observed_at_micros,
    }
}
