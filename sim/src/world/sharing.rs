//! Appliers that share the servers by leases: the product's fleets, started, stopped in order, and looked at.

use std::time::Duration;

use futures::FutureExt as _;
use lifeboat_applier::{
    core::{Options as ApplierOptions, share::ShareOptions},
    edge::{board::Board, fleet::Fleet},
};
use lifeboat_replication::{
    env::Env,
    ids::ServerId,
    store::{BlobStore as _, LeaseId, LeaseState},
    vault::layout,
};
use tokio::{sync::watch, time::Instant};

use super::{World, hostile::Site, programs::LEASE, server::Server};
use crate::program::Program;

/// An applier notices that its lease has run out in no time; what it shows follows when it has its turn.
const SHOWN_AFTER: Duration = Duration::from_secs(1);

/// An applier that shares the servers with others.
#[derive(Default)]
pub(super) struct Sharer {
    identity: Option<LeaseId>,
    board: Board,
    stop: Option<watch::Sender<bool>>,
}

impl Sharer {
    fn has(&self, server: &ServerId) -> bool {
        self.board.servers().iter().any(|shown| shown.id == *server)
    }
}

impl World {
    /// One that shares the servers with the others, by leases.
    pub(super) fn start_sharer(
        &self,
        applier: usize,
        node: usize,
        env: Env,
        options: ApplierOptions,
    ) -> Program {
        let mut sharers = self.sharers.borrow_mut();
        let Some(sharer) = sharers.get_mut(applier) else { return Program::start(async {}) };
        // A container that starts again keeps its pod's; a new pod has one of its own.
        let known = sharer.identity.take().filter(|_| self.rng.below(2) == 0);
        let identity = known.unwrap_or_else(|| LeaseId(env.entropy.uuid()));
        let (stop, mut stopped) = watch::channel(false);
        let board = Board::default();
        *sharer = Sharer { identity: Some(identity.clone()), board: board.clone(), stop: Some(stop) };
        let share = ShareOptions { name: format!("applier-{applier}"), identity, term: LEASE };
        let vault = self.vault(node);
        let net = self.net.clone();
        net.tenures.stopping.remove(node);
        Program::start(async move {
            let mut fleet = Fleet::new(vault, env, options, share, board);
            tokio::select! { biased;
                _ = stopped.wait_for(|stopped| *stopped) => {}
                () = fleet.run() => return,
            }
            net.tenures.stopping.add(node);
            fleet.leave().await;
        })
    }

    /// It lets others have its servers, and ends.
    pub(super) fn stop_sharer(&self, applier: usize, program: &mut Program, down: Duration) {
        if program.ends(down)
            && let Some(stop) = self.sharers.borrow().get(applier).and_then(|sharer| sharer.stop.as_ref())
        {
            self.net.mark("stop", format_args!("applier {applier}"));
            stop.send_replace(true);
        }
    }

    /// No two appliers have a server at the same time: one stops before its lease can be another one's. Not once a lease
    /// was given free late or twice, or the store went back. What stands still is not asked.
    pub(super) fn no_server_has_two_appliers(&self, site: &mut Site) {
        if !self.load.leases || self.net.tenures.are_muddled() || site.restored {
            return;
        }
        let sharers = self.sharers.borrow();
        let runs = |applier: usize| {
            let node = self.load.process_servers + applier;
            !self.net.stands_still(node) && site.appliers.get(applier).is_some_and(Program::runs)
        };
        let running: Vec<&Sharer> = sharers
            .iter()
            .enumerate()
            .filter(|(applier, _)| runs(*applier))
            .map(|(_, sharer)| sharer)
            .collect();
        for (server, around) in self.servers.iter().zip(&mut site.servers) {
            if running.iter().filter(|sharer| sharer.has(&server.id)).count() < 2 {
                around.two_appliers = None;
                continue;
            }
            if around.two_appliers.get_or_insert_with(Instant::now).elapsed() > SHOWN_AFTER {
                self.net.fail(format!("server {} has two appliers at the same time", server.number));
            }
        }
    }

    pub(super) fn has_one_applier(&self, server: &Server) -> Result<(), String> {
        let has = |sharer: &&Sharer| sharer.has(&server.id);
        let appliers = self.sharers.borrow().iter().filter(has).count();
        if appliers != 1 {
            return Err(format!("{appliers} appliers have it"));
        }
        let lease = self.model.properties(&layout::apply_lease(&server.id), None).now_or_never();
        match lease {
            Some(Ok(found)) if found.lease == LeaseState::Leased => Ok(()),
            found => Err(format!(
                "the lease of its applier is {:?}",
                found.map(|found| found.map(|found| found.lease))
            )),
        }
    }
}
