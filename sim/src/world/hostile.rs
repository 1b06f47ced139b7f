//! The hostile time: the load goes on, and whatever the dice say happens.

use std::time::Duration;

use lifeboat_replication::{ids::DiskSlot, store::model::ModelStore};
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
    pub(super) agent: Program,
    pub(super) failover: Option<JoinHandle<()>>,
    /// The newest failover's run.
    pub(super) run: String,
    /// Takes back what a restored store says of a run that is over.
    pub(super) release: Option<JoinHandle<()>>,
    /// When the cuts of a node end.
    pub(super) heal: Vec<Option<Instant>>,
    /// The operator's next assignment, and when it comes.
    pub(super) assign_at: Option<(Instant, usize)>,
    /// When replication goes on.
    pub(super) resume_at: Option<Instant>,
    /// Copies of the store and of cache storage, to be restored.
    pub(super) backups: Vec<(ModelStore, ModelStore)>,
    pub(super) backup_at: Instant,
    pub(super) restored: bool,
    /// When the store is back, as an older copy.
    pub(super) restore_at: Option<Instant>,
}

impl World {
    pub(super) async fn hostile(&self) {
        self.assign(0);
        let mut site = Site {
            process_servers: (0..self.load.process_servers)
                .map(|node| self.start_process_server(node))
                .collect(),
            appliers: (0..APPLIERS).map(|node| self.start_applier(node)).collect(),
            agent: self.start_agent(),
            failover: None,
            run: String::new(),
            release: None,
            heal: vec![None; self.clocks.len()],
            assign_at: None,
            resume_at: None,
            backups: Vec::new(),
            backup_at: Instant::now(),
            restored: false,
            restore_at: None,
        };
        let reader = self.start_reader();
        let mut value = 1;
        let began = Instant::now();
        let mut next_write = began;
        let lasts = Duration::from_millis(self.load.hostile_ms);
        while (began.elapsed() < lasts || site.restore_at.is_some()) && !self.net.failed() {
            sleep(Duration::from_millis(20 + self.rng.below(260))).await;
            while next_write <= Instant::now() {
                self.write(value);
                value += 1;
                next_write += Duration::from_millis(1 + self.rng.below(2 * self.load.write_pause_ms));
            }
            self.net.ask(|oracle| oracle.clean_is_in_the_vault());
            self.revive(&mut site);
            self.strike(&mut site, value);
        }
        reader.abort();
        self.rest(site).await;
    }

    /// A write that is issued now, lands later, and is completed after that.
    fn write(&self, value: u64) {
        // Whoever writes to a frozen file system waits.
        if self.machine.is_frozen() {
            return;
        }
        let disk = self.rng.below(self.load.disk_blocks.len() as u64) as usize;
        let blocks = u64::from(self.load.disk_blocks.get(disk).copied().unwrap_or(1));
        let hot = self.rng.below(100) < self.load.hot_percent;
        let block = if hot { self.rng.below(3.min(blocks)) } else { self.rng.below(blocks) };
        // Now and then a block becomes zero again.
        let value = if self.rng.below(12) == 0 { 0 } else { value };
        let address = (DiskSlot(disk as u32 + 1), block as u32);
        let id = self.machine.issue(address, value);
        let (lands, completes) =
            (self.rng.below(self.load.write_takes_ms), self.rng.below(self.load.write_takes_ms));
        let machine = self.machine.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(lands)).await;
            machine.land(id);
            sleep(Duration::from_millis(completes)).await;
            machine.complete(id);
        });
    }

    /// Starts again what was down long enough, and mends what was cut long enough.
    pub(super) fn revive(&self, site: &mut Site) {
        self.revive_all(&mut site.process_servers, |node| self.start_process_server(node));
        self.revive_all(&mut site.appliers, |node| self.start_applier(node));
        self.revive_all(std::slice::from_mut(&mut site.agent), |_| self.start_agent());
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
