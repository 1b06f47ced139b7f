//! The hostile time: the load goes on, and whatever the dice say happens.

use std::time::Duration;

use lifeboat_replication::ids::DiskSlot;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{APPLIERS, World};
use crate::{faults::Class, program::Program};

/// Everything that runs.
pub(super) struct Site {
    pub(super) process_servers: Vec<Program>,
    pub(super) appliers: Vec<Program>,
    pub(super) agent: Program,
    pub(super) failover: Option<JoinHandle<()>>,
    /// When the cuts of a process server end.
    heal: Vec<Option<Instant>>,
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
            heal: vec![None; self.load.process_servers],
        };
        let reader = self.start_reader();
        let mut value = 1;
        let began = Instant::now();
        let mut next_write = began;
        let lasts = Duration::from_millis(self.load.hostile_ms);
        while began.elapsed() < lasts && !self.net.failed() {
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

    /// What happens in this tick.
    fn strike(&self, site: &mut Site, tick: u64) {
        let dice = &self.net.dice;
        let nodes = self.load.process_servers as u64;
        let node = |class: Class| dice.below(class, nodes) as usize;
        if dice.roll(Class::ProcessServerCrash) {
            let node = node(Class::ProcessServerCrash);
            self.crash("process server", site.process_servers.get_mut(node), node);
            self.net.listen(node, None);
        }
        if dice.roll(Class::ApplierCrash) {
            let node = dice.below(Class::ApplierCrash, APPLIERS as u64) as usize;
            self.crash("applier", site.appliers.get_mut(node), node);
        }
        if dice.roll(Class::AgentCrash) {
            self.crash("agent", Some(&mut site.agent), 0);
        }
        if dice.roll(Class::Reboot) {
            self.crash("agent", Some(&mut site.agent), 0);
            self.machine.reboot();
            self.net.mark("reboot", format_args!(""));
        }
        if dice.roll(Class::Cut) {
            let node = node(Class::Cut);
            let which = 1 + dice.below(Class::Cut, 3);
            self.net.mark("cut", format_args!("{node} {which}"));
            if which & 1 == 1 {
                self.net.store_cuts.add(node);
            }
            if which & 2 == 2 {
                self.net.agent_cuts.add(node);
            }
            if let Some(heal) = site.heal.get_mut(node) {
                *heal = Some(Instant::now() + Duration::from_millis(500 + dice.below(Class::Cut, 50_000)));
            }
        }
        if dice.roll(Class::Handover) {
            self.assign(node(Class::Handover));
        }
        if dice.roll(Class::ClockJump) {
            let hours = dice.below(Class::ClockJump, 7) as i64 - 3;
            let node = dice.below(Class::ClockJump, 2 * self.clocks.len() as u64) as usize;
            self.clocks.get(node).unwrap_or(&self.agent_clock).jump(hours * 3_600_000_000);
            self.net.mark("clock jump", format_args!("{hours}"));
        }
        if site.failover.as_ref().is_none_or(JoinHandle::is_finished) && dice.roll(Class::Failover) {
            site.failover = Some(self.start_failover(tick));
        }
    }

    fn crash(&self, what: &str, program: Option<&mut Program>, number: usize) {
        let down = Duration::from_millis(50 + self.rng.below(12_000));
        if program.is_some_and(|program| program.crash(down)) {
            self.net.mark("crash", format_args!("{what} {number}"));
        }
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
                self.net.agent_cuts.remove(node);
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
