//! Runs one [`Ingest`] for each server that is assigned to this process server.
//!
//! In: the newest [`Directory`]. Out: [`Members`], by which the data port finds a server's ingest and reports find
//! its status. A server whose assignment ends finishes what it has and releases its log; it is listed until then.

use std::{collections::BTreeMap, sync::Arc};

use lifeboat_replication::{errors::chain, ids::ServerId, wire::Accepted};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    core::{Assigned, Ended, Ingest, Shared, status::Status},
    directory::Directory,
};

/// Connections of one server that wait to be looked at; a newer one replaces the older one anyway.
const CONNECTIONS: usize = 2;

/// Servers that this process server has, by id.
pub type Members = BTreeMap<String, Member>;

#[derive(Debug, Clone)]
pub struct Member {
    pub connections: mpsc::Sender<Accepted>,
    pub status: watch::Receiver<Status>,
}

pub struct Servers {
    shared: Shared,
    directory: watch::Receiver<Option<Arc<Directory>>>,
    members: watch::Sender<Arc<Members>>,
    assigned: BTreeMap<String, watch::Sender<Option<Assigned>>>,
    running: JoinSet<(String, Ended)>,
}

impl Servers {
    pub fn new(
        shared: Shared,
        directory: watch::Receiver<Option<Arc<Directory>>>,
        members: watch::Sender<Arc<Members>>,
    ) -> Self {
        Self { shared, directory, members, assigned: BTreeMap::new(), running: JoinSet::new() }
    }

    /// Runs until `stop` ends, then until all logs are released.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        self.forget_others().await;
        self.assign();
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                changed = self.directory.changed() => match changed {
                    Ok(()) => self.assign(),
                    Err(_) => break,
                },
                Some(ended) = self.running.join_next(), if !self.running.is_empty() => {
                    if let Some(id) = self.ended(ended) {
                        self.forget(&id).await;
                    }
                    // It may have been assigned again meanwhile.
                    self.assign();
                }
            }
        }
        for assigned in self.assigned.values() {
            assigned.send_replace(None);
        }
        // What could not be committed in time waits in the spool for the next start.
        while let Some(ended) = self.running.join_next().await {
            self.ended(ended);
        }
    }

    /// What was received of it and not committed is sent again where it is served now.
    async fn forget(&self, server: &str) {
        if let Err(error) = self.shared.spool.clear(server).await {
            tracing::error!(server, error = %chain(&error), "spool not cleared");
        }
    }

    /// What an earlier life received of servers that are not assigned here any more is sent again where they are.
    async fn forget_others(&self) {
        let Some(directory) = self.directory.borrow().clone() else { return };
        let own = directory.assigned_to(&self.shared.name).map(|(id, _)| id.clone()).collect();
        if let Err(error) = self.shared.spool.keep_only(&own).await {
            tracing::error!(error = %chain(&error), "spool not cleared of other servers");
        }
    }

    /// Starts what is new, tells the others what has changed.
    fn assign(&mut self) {
        let Some(directory) = self.directory.borrow_and_update().clone() else { return };
        let name = self.shared.name.clone();
        let wanted: BTreeMap<&String, Assigned> =
            directory.assigned_to(&name).map(|(id, assignment)| (id, assignment.into())).collect();
        for (id, sender) in &self.assigned {
            let assigned = wanted.get(id).cloned();
            sender.send_if_modified(|before| {
                // One that is ending is started anew once it has ended.
                let changed = before.is_some() && *before != assigned;
                if changed {
                    *before = assigned;
                }
                changed
            });
        }
        for (id, assigned) in wanted {
            if self.assigned.contains_key(id) {
                continue;
            }
            match id.parse() {
                Ok(server) => self.start(server, assigned),
                Err(error) => tracing::error!(%error, "assignment ignored"),
            }
        }
    }

    fn start(&mut self, server: ServerId, assigned: Assigned) {
        tracing::info!(%server, name = assigned.display_name, "server assigned");
        let id = server.to_string();
        let (sender, receiver) = watch::channel(Some(assigned));
        let ingest = Ingest::new(self.shared.clone(), server, receiver);
        let (connections, accepted) = mpsc::channel(CONNECTIONS);
        let member = Member { connections, status: ingest.status() };
        self.assigned.insert(id.clone(), sender);
        self.change(|members| _ = members.insert(id.clone(), member));
        self.running.spawn(async move { (id, ingest.run(accepted).await) });
    }

    /// Which server's it was.
    fn ended(&mut self, ended: Result<(String, Ended), tokio::task::JoinError>) -> Option<String> {
        match ended {
            Ok((id, how)) => {
                tracing::info!(server = id, ?how, "server not assigned any more");
                self.assigned.remove(&id);
                self.change(|members| _ = members.remove(&id));
                Some(id)
            }
            // A violated invariant stops the program: what it was is in the log, and the lease runs out.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => None,
        }
    }

    fn change(&self, change: impl FnOnce(&mut Members)) {
        let mut members = Members::clone(&self.members.borrow());
        change(&mut members);
        self.members.send_replace(Arc::new(members));
    }
}
