//! What the dice do to nodes, network, store and orchestration at a tick.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::{task::JoinHandle, time::Instant};

use super::{
    APPLIERS, World,
    hostile::{Around, Site},
    server::{Policy, Server},
};
use crate::{
    faults::Class,
    net::AGENT,
    oracle::Oracle,
    program::{Crash, Program},
    rng::Rng,
};

/// Longer than a lease lasts.
const PAUSE: Duration = Duration::from_secs(32);
const BACKUP_EVERY: Duration = Duration::from_secs(8);
/// A store is away while it is restored, for longer than anything that is under way is tried or is late.
const OUTAGE: Duration = Duration::from_secs(180);

impl World {
    /// What happens in this tick.
    pub(super) fn strike(&self, site: &mut Site) {
        self.strike_programs(site);
        for (server, around) in self.servers.iter().zip(&mut site.servers) {
            self.strike_agent(server, around);
        }
        self.strike_nodes(site);
        self.strike_network(site);
        for number in 0..self.servers.len() {
            self.strike_orchestration(site, number);
        }
        self.strike_store(site);
    }

    fn strike_programs(&self, site: &mut Site) {
        let dice = &self.net.dice;
        let below = |class: Class, bound: usize| dice.below(class, bound as u64) as usize;
        if dice.roll(Class::ProcessServerCrash) {
            let node = below(Class::ProcessServerCrash, self.load.process_servers);
            self.crash("process server", &self.rng, site.process_servers.get_mut(node), node);
        }
        if dice.roll(Class::ApplierCrash) {
            let node = below(Class::ApplierCrash, APPLIERS);
            let in_order = self.load.leases && self.rng.below(2) == 0;
            match site.appliers.get_mut(node) {
                Some(program) if in_order => {
                    let down = Duration::from_millis(50 + self.rng.below(40_000));
                    self.stop_sharer(node, program, down);
                }
                program => self.crash("applier", &self.rng, program, node),
            }
        }
    }

    /// The number of the write that comes next, which names what happens.
    fn tick(server: &Server) -> u64 {
        server.writing.borrow().value
    }

    fn strike_agent(&self, server: &Server, around: &mut Around) {
        let dice = &server.dice;
        if dice.roll(Class::AgentCrash) {
            self.crash("agent", &server.rng, Some(&mut around.agent), server.number);
        }
        if dice.roll(Class::Reboot) {
            // Nothing of the agent may run on after it.
            around.agent.crash(Crash::Now, Duration::from_secs(1 + dice.below(Class::Reboot, 20)));
            server.machine.reboot();
            self.net.mark("reboot", format_args!(""));
            server.write_unseen(Self::tick(server));
        }
        if dice.roll(Class::OrderlyReboot) {
            // What is written until the agent runs again the early tracker marks.
            around.agent.crash(Crash::Now, Duration::from_secs(1 + dice.below(Class::OrderlyReboot, 20)));
            server.machine.orderly_reboot();
            self.net.mark("orderly reboot", format_args!(""));
        }
        // The first one's agent stands still as one of all nodes.
        if server.number > 0 && dice.roll(Class::Pause) {
            around.agent.stand_still(PAUSE + Duration::from_millis(dice.below(Class::Pause, 40_000)));
        }
    }

    fn strike_nodes(&self, site: &Site) {
        let dice = &self.net.dice;
        if dice.roll(Class::Pause) {
            let lasts = PAUSE + Duration::from_millis(dice.below(Class::Pause, 40_000));
            let agent = site.servers.iter().take(1).map(|around| &around.agent);
            let all = site.process_servers.iter().chain(&site.appliers).chain(agent);
            let agents = self.clocks.len();
            let node = dice.below(Class::Pause, agents as u64 + 1) as usize;
            // Whoever sleeps through the whole outage does not know that the store went back: then it was not away to
            // him, which is a known weakness (docs/roadmap.md).
            if site.restore_at.is_some() && node != agents {
                return;
            }
            self.net.mark("pause", format_args!("{node} for {lasts:?}"));
            self.net.stand_still(if node == agents { AGENT } else { node }, Instant::now() + lasts);
            if let Some(program) = all.into_iter().nth(node) {
                program.stand_still(lasts);
            }
        }
    }

    fn strike_network(&self, site: &mut Site) {
        let dice = &self.net.dice;
        if dice.roll(Class::Cut) {
            let node = dice.below(Class::Cut, self.clocks.len() as u64) as usize;
            let which = 1 + dice.below(Class::Cut, 7);
            self.net.mark("cut", format_args!("{node} {which}"));
            let cuts = [&self.net.store_cuts, &self.net.up_cuts, &self.net.down_cuts];
            for (bit, cut) in cuts.into_iter().enumerate() {
                if which >> bit & 1 == 1 {
                    cut.add(node);
                }
            }
            if let Some(heal) = site.heal.get_mut(node) {
                *heal = Some(Instant::now() + Duration::from_millis(500 + dice.below(Class::Cut, 50_000)));
            }
        }
        if dice.roll(Class::ClockJump) {
            let hours = dice.below(Class::ClockJump, 7) as i64 - 3;
            let node = dice.below(Class::ClockJump, 2 * self.clocks.len() as u64) as usize;
            let agents = self.servers.iter().map(|server| &server.clock);
            let jumps = self.clocks.get(node).into_iter().chain(agents).next();
            jumps.into_iter().for_each(|clock| clock.jump(hours * 3_600_000_000));
            self.net.mark("clock jump", format_args!("{hours}"));
        }
    }

    fn strike_orchestration(&self, site: &mut Site, number: usize) {
        let all_stand = site.servers.iter().all(Around::no_failover);
        let (Some(server), Some(around)) = (self.servers.get(number), site.servers.get_mut(number)) else {
            return;
        };
        let dice = &server.dice;
        let now = Instant::now();
        let node = |class: Class| dice.below(class, self.load.process_servers as u64) as usize;
        let in_ms = |class: Class, most: u64| now + Duration::from_millis(dice.below(class, most));
        if let Some((_, node)) = around.assign_at.take_if(|(at, _)| *at <= now) {
            server.assign(node);
        }
        if dice.roll(Class::Handover) {
            server.assign(node(Class::Handover));
            if dice.below(Class::Handover, 3) == 0 {
                around.assign_at = Some((in_ms(Class::Handover, 3000), node(Class::Handover)));
                self.net.count(|reached| reached.double_handovers += 1);
            }
        }
        if dice.roll(Class::TwoTakers) {
            let node = node(Class::TwoTakers);
            // As when the operator has given up the one that does not hear it.
            let ordered = dice.below(Class::TwoTakers, 2) == 0;
            let lost = if ordered { server.newest_epoch(&self.model) } else { None };
            self.net.count(|reached| reached.ordered_handovers += u64::from(lost.is_some()));
            server.assign_also(node, lost);
            around.assign_at = Some((in_ms(Class::TwoTakers, 60_000), node));
        }
        if around.resume_at.take_if(|at| *at <= now).is_some() {
            server.set_policy(Policy { paused: false, ..server.policy.get() });
        }
        if dice.roll(Class::PolicyChange) {
            let round_interval_ms = [300, 1000, 5000][dice.below(Class::PolicyChange, 3) as usize];
            let paused = dice.below(Class::PolicyChange, 4) == 0;
            server.set_policy(Policy { round_interval_ms, paused });
            around.resume_at = Some(in_ms(Class::PolicyChange, 20_000));
        }
        let tick = Self::tick(server);
        if dice.roll(Class::PointRequest) {
            server.ask_for_a_point(tick);
        }
        if around.no_failover() && dice.roll(Class::Failover) {
            around.run = format!("run-{tick}");
            around.failover = Some(self.start_failover(server, &around.run));
        } else if number == 0 && all_stand && !self.keys_rotated.get() && dice.roll(Class::KeyRotated) {
            self.keys_rotated.set(true);
            self.net.mark("key rotated", format_args!(""));
            for program in site.process_servers.iter_mut().chain(&mut site.appliers) {
                program.crash(Crash::Now, Duration::from_millis(dice.below(Class::KeyRotated, 5000)));
            }
        }
    }

    fn strike_store(&self, site: &mut Site) {
        for server in self.servers.iter().filter(|server| server.dice.roll(Class::BrokenLease)) {
            server.break_lease(&self.model);
        }
        let dice = &self.net.dice;
        if !dice.may(Class::StoreRestored) {
            return;
        }
        let now = Instant::now();
        if site.restore_at.is_none() && site.backup_at <= now {
            site.backup_at = now + BACKUP_EVERY;
            site.backups.push((self.model.fork(), self.cache.fork()));
        }
        // Once in a schedule: see the known weaknesses in docs/roadmap.md.
        if !site.restored && dice.roll(Class::StoreRestored) {
            site.restored = true;
            site.restore_at = Some(now + OUTAGE);
            self.net.outage.store(true, Ordering::Relaxed);
            self.net.mark("store away", format_args!(""));
        }
        if site.restore_at.take_if(|at| *at <= now).is_some() {
            self.net.outage.store(false, Ordering::Relaxed);
            let backup = dice.below(Class::StoreRestored, site.backups.len() as u64) as usize;
            if let Some((model, cache)) = site.backups.get(backup) {
                self.net.mark("store restored", format_args!("to backup {backup}"));
                self.model.restore(model);
                self.cache.restore(cache);
                for (server, around) in self.servers.iter().zip(&mut site.servers) {
                    self.after_restore(server, around);
                }
            }
        }
    }

    fn after_restore(&self, server: &Server, around: &mut Around) {
        server.line.ask(Oracle::went_back);
        let running =
            around.failover.as_ref().is_some_and(|failover: &JoinHandle<()>| !failover.is_finished());
        let closed = server.line.ask(|oracle| Ok(oracle.closed_run()));
        let over = closed.filter(|run| !(running && *run == around.run));
        around.release = over.map(|run| self.start_release(server, run));
    }

    fn crash(&self, what: &str, rng: &Rng, program: Option<&mut Program>, number: usize) {
        let down = Duration::from_millis(50 + rng.below(12_000));
        let how = match rng.below(2) {
            0 => Crash::Now,
            _ => Crash::After(1 + rng.below(60)),
        };
        if program.is_some_and(|program| program.crash(how, down)) {
            self.net.mark("crash", format_args!("{what} {number} {how:?}"));
            if let Crash::After(_) = how {
                self.net.count(|reached| reached.crashes_at_an_await += 1);
            }
        }
    }
}
