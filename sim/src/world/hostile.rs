//! The hostile time: the load goes on, and whatever the dice say happens.

use std::time::Duration;

use lifeboat_replication::store::model::ModelStore;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{APPLIERS, World};
use crate::program::Program;

/// Everything that runs.
pub(super) struct Site {
    pub(super) process_servers: Vec<Program>,
    pub(super) appliers: Vec<Program>,
    /// What belongs to one server.
    pub(super) servers: Vec<Around>,
    /// When the cuts of a node end.
    pub(super) heal: Vec<Option<Instant>>,
    /// Copies of the store and of cache storage, to be restored.
    pub(super) backups: Vec<(ModelStore, ModelStore)>,
    pub(super) backup_at: Instant,
    pub(super) restored: bool,
    /// When the store is back, as an older copy.
    pub(super) restore_at: Option<Instant>,
}

/// What runs and is planned for one server.
pub(super) struct Around {
    pub(super) agent: Program,
    pub(super) failover: Option<JoinHandle<()>>,
    /// The newest failover's run.
    pub(super) run: String,
    /// Takes back what a restored store says of a run that is over.
    pub(super) release: Option<JoinHandle<()>>,
    /// The operator's next assignment, and when it comes.
    pub(super) assign_at: Option<(Instant, usize)>,
    /// When replication goes on.
    pub(super) resume_at: Option<Instant>,
    /// Since when two appliers have had it.
    pub(super) two_appliers: Option<Instant>,
}

impl Around {
    pub(super) fn no_failover(&self) -> bool {
        self.failover.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl World {
    pub(super) async fn hostile(&self) {
        self.servers.iter().for_each(|server| server.assign(server.number % self.load.process_servers));
        let around = |server| Around {
            agent: self.start_agent(server),
            failover: None,
            run: String::new(),
            release: None,
            assign_at: None,
            resume_at: None,
            two_appliers: None,
        };
        let mut site = Site {
            process_servers: (0..self.load.process_servers)
                .map(|node| self.start_process_server(node))
                .collect(),
            appliers: (0..APPLIERS).map(|node| self.start_applier(node)).collect(),
            servers: self.servers.iter().map(around).collect(),
            heal: vec![None; self.clocks.len()],
            backups: Vec::new(),
            backup_at: Instant::now(),
            restored: false,
            restore_at: None,
        };
        let readers: Vec<_> = self.servers.iter().map(|server| self.start_reader(server)).collect();
        let began = Instant::now();
        let lasts = Duration::from_millis(self.load.hostile_ms);
        while (began.elapsed() < lasts || site.restore_at.is_some()) && !self.net.failed() {
            sleep(Duration::from_millis(20 + self.rng.below(260))).await;
            for server in &self.servers {
                server.write_on();
                server.line.ask(|oracle| oracle.clean_is_in_the_vault());
            }
            self.no_server_has_two_appliers(&mut site);
            self.revive(&mut site);
            self.strike(&mut site);
        }
        readers.iter().for_each(JoinHandle::abort);
        self.rest(site).await;
    }

    /// Starts again what was down long enough, and mends what was cut long enough.
    pub(super) fn revive(&self, site: &mut Site) {
        self.revive_all(&mut site.process_servers, |node| self.start_process_server(node));
        self.revive_all(&mut site.appliers, |node| self.start_applier(node));
        for (server, around) in self.servers.iter().zip(&mut site.servers) {
            self.revive_all(std::slice::from_mut(&mut around.agent), |_| self.start_agent(server));
        }
        for (node, heal) in site.heal.iter_mut().enumerate() {
            if heal.is_some_and(|at| at <= Instant::now()) {
                *heal = None;
                self.net.store_cuts.remove(node);
                self.net.up_cuts.remove(node);
                self.net.down_cuts.remove(node);
            }
        }
    }

    fn revive_all(&self, programs: &mut [Program], start: impl Fn(usize) -> Program) {
        for (number, program) in programs.iter_mut().enumerate() {
            if program.due() {
                *program = start(number);
            } else if program.ended() {
                self.net.fail(format!("a program ended by itself (node {number})"));
            }
        }
    }
}
