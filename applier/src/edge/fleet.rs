//! Which servers are applied: those that the vault names and those that the operator asks for, as far as this applier
//! holds their leases, each by an applier of its own. Needs nothing but the vault, so it goes on without the operator.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use lifeboat_replication::{
    env::Env,
    errors::chain,
    ids::ServerId,
    vault::{RetentionPolicy, Vault},
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};

use super::board::{Board, Entry};
use crate::core::{
    Applier, Options,
    share::{ShareOptions, Sharer, Tenure},
};

/// The vault is asked for its servers and their policies this often: two operations a server and look, of each
/// applier. A new server does not wait for it, since the operator asks for that; a changed policy does.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// After a look that failed.
const LOOK_AGAIN_INTERVAL: Duration = Duration::from_secs(5);
/// Batches applied at the same time, over all servers: bounds memory at some 40 MiB each.
const TURNS: usize = 2;

/// What the vault says of a server.
#[derive(Debug, Clone, Default, PartialEq)]
struct Wanted {
    /// namespace/name.
    name: String,
    retention: Option<RetentionPolicy>,
}

/// Servers by id; `None`: not known yet.
type Named = Option<BTreeMap<ServerId, Wanted>>;

/// The servers of one applier program.
#[derive(Debug)]
pub struct Fleet {
    vault: Vault,
    env: Env,
    options: Options,
    board: Board,
    interval: Duration,
    sharer: Sharer,
    turns: Arc<Semaphore>,
    tasks: JoinSet<()>,
    named: watch::Receiver<Named>,
    looking: JoinSet<()>,
}

impl Fleet {
    pub fn new(vault: Vault, env: Env, options: Options, share: ShareOptions, board: Board) -> Self {
        let (interval, (tell, named)) = (share.interval(), watch::channel(None));
        let mut looking = JoinSet::new();
        // On its own, since a long list must not keep leases from being renewed.
        looking.spawn(look(vault.clone(), board.clone(), tell));
        Self {
            sharer: Sharer::new(vault.clone(), env.clone(), share).with(options.planted),
            vault,
            env,
            options,
            board,
            interval,
            turns: Arc::new(Semaphore::new(TURNS)),
            tasks: JoinSet::new(),
            named,
            looking,
        }
    }

    /// Finds servers, takes its share of them and applies these; ends only by a fault in the program. Dropped at any
    /// place, it is as if the program had been killed.
    pub async fn run(&mut self) {
        loop {
            self.share().await;
            self.settle();
            let pause = tokio::time::sleep(self.interval);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    biased;
                    Some(ended) = self.tasks.join_next() => {
                        if let Err(error) = ended && error.is_panic() {
                            tracing::error!(%error, "an applier ended by a fault in the program");
                        }
                        // Those that panicked are started anew with the next round, not at once.
                        let mut inner = self.board.lock();
                        inner.servers.retain(|_, entry| !entry.task.is_finished());
                    }
                    _ = self.looking.join_next() => return,
                    changed = self.named.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        break;
                    }
                    () = &mut pause => break,
                }
            }
        }
    }

    /// Stops applying and lets other appliers have the servers at once. Best effort: leases run out by themselves.
    pub async fn leave(&mut self) {
        self.looking.shutdown().await;
        self.tasks.shutdown().await;
        self.board.lock().servers.clear();
        self.sharer.leave().await;
    }

    async fn share(&mut self) {
        let named: Option<BTreeSet<ServerId>> =
            self.named.borrow_and_update().as_ref().map(|named| named.keys().cloned().collect());
        let mut extra = self.board.lock().asked_for.clone();
        extra.retain(|server| named.as_ref().is_none_or(|named| !named.contains(server)));
        let shared = self.sharer.round(named.as_ref(), &extra).await;
        let error = shared.err().map_or_else(String::new, |error| {
            tracing::warn!(error = %chain(&error), "servers cannot be shared out now");
            format!("servers cannot be shared out among appliers: {}", chain(&error))
        });
        self.board.set_share_error(error);
    }

    /// Starts what is held and not running, stops what is not held any more.
    fn settle(&mut self) {
        let named = self.named.borrow().clone().unwrap_or_default();
        let mut inner = self.board.lock();
        inner.servers.retain(|id, entry| {
            let keep = self.sharer.holds(id) && !entry.task.is_finished();
            if !keep {
                tracing::info!(server = %id, "not applied here any more");
                entry.task.abort();
            }
            keep
        });
        for (id, tenure) in self.sharer.held() {
            let Wanted { name, retention } = named.get(id).cloned().unwrap_or_default();
            if let Some(entry) = inner.servers.get_mut(id) {
                entry.name = name;
                entry.policy.send_if_modified(|policy| std::mem::replace(policy, retention) != retention);
                continue;
            }
            tracing::info!(server = %id, name, "applying");
            let policy = watch::Sender::new(retention);
            let applier =
                Applier::new(self.vault.clone(), id.clone(), self.env.clone(), self.options.clone())
                    .with_turns(Arc::clone(&self.turns))
                    .with_policy(policy.subscribe());
            let status = applier.status();
            let work = work(applier, tenure);
            let task = self.tasks.spawn(work);
            inner.servers.insert(id.clone(), Entry { name, status, policy, task });
        }
    }
}

/// Applies a server as long as its lease lasts.
async fn work(applier: Applier, tenure: Tenure) {
    tokio::select! {
        biased;
        () = tenure.over() => {}
        () = applier.run() => {}
    }
}

/// Asks the vault for its servers again and again.
async fn look(vault: Vault, board: Board, tell: watch::Sender<Named>) {
    loop {
        let mut pause = LOOK_INTERVAL;
        match vault.servers().await {
            Ok(servers) => {
                let named: BTreeMap<ServerId, Wanted> = servers
                    .into_iter()
                    .map(|server| {
                        let name = format!("{}/{}", server.namespace, server.name);
                        (server.id, Wanted { name, retention: server.retention })
                    })
                    .collect();
                board.set_vault_error(String::new());
                board.lock().looked = true;
                tell.send_if_modified(|known| {
                    let changed = known.as_ref() != Some(&named);
                    *known = Some(named);
                    changed
                });
            }
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(error, "the vault's servers cannot be listed");
                board.set_vault_error(error);
                pause = LOOK_AGAIN_INTERVAL;
            }
        }
        tokio::time::sleep(pause).await;
    }
}
