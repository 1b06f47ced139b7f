//! Which servers are applied: those that the vault names, each by an applier of its own, and those that the operator
//! asks for. Needs nothing but the vault, so it goes on without the operator.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lifeboat_replication::{
    env::Env,
    errors::chain,
    ids::ServerId,
    vault::{RetentionPolicy, Vault, VaultError},
    wire::v1,
};
use tokio::{
    sync::{Semaphore, watch},
    task::{AbortHandle, JoinSet},
};

use super::stored::{self, Stored};
use crate::core::{Applier, Options, Status};

/// The vault is asked for new servers this often.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Batches applied at the same time, over all servers: bounds memory at some 40 MiB each.
const TURNS: usize = 2;

/// What is known about all servers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Board {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    servers: BTreeMap<ServerId, Entry>,
    asked_for: BTreeSet<ServerId>,
    /// Why the vault cannot be used; empty: it can.
    vault_error: String,
    /// The vault has been looked at once.
    looked: bool,
}

#[derive(Debug)]
struct Entry {
    /// namespace/name.
    name: String,
    status: watch::Receiver<Status>,
    stored: Stored,
    /// How long what is kept, as the vault says.
    policy: watch::Sender<Option<RetentionPolicy>>,
    task: AbortHandle,
    measuring: AbortHandle,
}

/// What the vault says of a server.
#[derive(Debug, Default)]
struct Wanted {
    /// namespace/name.
    name: String,
    retention: Option<RetentionPolicy>,
}

/// A server as metrics and reports show it.
#[derive(Debug, Clone)]
pub struct Shown {
    pub id: ServerId,
    pub name: String,
    pub status: Status,
    pub stored: Stored,
}

impl Board {
    pub fn servers(&self) -> Vec<Shown> {
        let inner = self.lock();
        let shown = inner.servers.iter().map(|(id, entry)| Shown {
            id: id.clone(),
            name: entry.name.clone(),
            status: entry.status.borrow().clone(),
            stored: entry.stored,
        });
        shown.collect()
    }

    /// Why the vault cannot be used; empty: it can.
    pub fn vault_error(&self) -> String {
        self.lock().vault_error.clone()
    }

    pub fn ready(&self) -> bool {
        let inner = self.lock();
        inner.looked && inner.vault_error.is_empty()
    }

    /// The operator wants these servers applied, named in the vault or not.
    pub fn ask_for(&self, servers: impl IntoIterator<Item = ServerId>) {
        self.lock().asked_for.extend(servers);
    }

    pub fn report(&self, name: &str, env: &Env) -> v1::ApplierReport {
        let servers =
            self.servers().into_iter().map(|Shown { id, name: _, status, stored }| v1::AppliedServer {
                server_id: id.to_string(),
                epoch: status.epoch,
                applied_number: status.applied_number,
                log_number: status.log_number,
                points: status.points,
                error: status.error,
                stored_bytes: stored.total(),
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

    fn set_stored(&self, server: &ServerId, stored: Stored) {
        if let Some(entry) = self.lock().servers.get_mut(server) {
            entry.stored = stored;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds servers and runs their appliers, for ever.
pub async fn run(vault: Vault, env: Env, options: Options, board: Board) {
    let turns = Arc::new(Semaphore::new(TURNS));
    let mut tasks = JoinSet::new();
    loop {
        match vault.servers().await {
            Ok(named) => {
                let mut wanted: BTreeMap<ServerId, Wanted> = named
                    .into_iter()
                    .map(|server| {
                        let name = format!("{}/{}", server.namespace, server.name);
                        (server.id, Wanted { name, retention: server.retention })
                    })
                    .collect();
                for asked in board.lock().asked_for.clone() {
                    wanted.entry(asked).or_default();
                }
                settle(&vault, &env, &options, &board, &turns, &mut tasks, wanted);
            }
            Err(error) => note(&board, &error),
        }
        let pause = tokio::time::sleep(LOOK_INTERVAL);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                biased;
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        // The next look starts it anew.
                        tracing::error!(%error, "an applier ended by a fault in the program");
                        board.lock().servers.retain(|_, entry| {
                            let ended = entry.task.is_finished() || entry.measuring.is_finished();
                            if ended {
                                entry.task.abort();
                                entry.measuring.abort();
                            }
                            !ended
                        });
                    }
                }
                () = &mut pause => break,
            }
        }
    }
}

fn note(board: &Board, error: &VaultError) {
    let error = chain(error);
    tracing::warn!(error, "the vault's servers cannot be listed");
    board.set_vault_error(error);
}

/// Starts what is wanted and not running, stops what is not wanted any more.
fn settle(
    vault: &Vault,
    env: &Env,
    options: &Options,
    board: &Board,
    turns: &Arc<Semaphore>,
    tasks: &mut JoinSet<()>,
    wanted: BTreeMap<ServerId, Wanted>,
) {
    let mut inner = board.lock();
    inner.vault_error.clear();
    inner.looked = true;
    inner.servers.retain(|id, entry| {
        let keep = wanted.contains_key(id);
        if !keep {
            tracing::info!(server = %id, "not applied any more: the vault does not name it");
            entry.task.abort();
            entry.measuring.abort();
        }
        keep
    });
    for (id, Wanted { name, retention }) in wanted {
        if let Some(entry) = inner.servers.get_mut(&id) {
            entry.name = name;
            entry.policy.send_if_modified(|policy| std::mem::replace(policy, retention) != retention);
            continue;
        }
        tracing::info!(server = %id, name, "applying");
        let policy = watch::Sender::new(retention);
        let applier = Applier::new(vault.clone(), id.clone(), env.clone(), options.clone())
            .with_turns(Arc::clone(turns))
            .with_policy(policy.subscribe());
        let status = applier.status();
        let task = tasks.spawn(applier.run());
        let (measured, measuring_board) = (id.clone(), board.clone());
        let measuring_vault = vault.clone();
        let measuring = tasks.spawn(async move {
            stored::measure(&measuring_vault, &measured, |stored| {
                measuring_board.set_stored(&measured, stored)
            })
            .await;
        });
        inner.servers.insert(id, Entry { name, status, stored: Stored::default(), policy, task, measuring });
    }
}
