//! What the dice do to nodes, network, store and orchestration at a tick.

use std::{sync::atomic::Ordering, time::Duration};

use futures::FutureExt as _;
use lifeboat_replication::{
    ids::{DiskSlot, Epoch},
    log::PartName,
    store::BlobStore as _,
    vault::layout,
};
use tokio::{task::JoinHandle, time::Instant};

use super::{APPLIERS, Policy, World, hostile::Site};
use crate::{
    faults::Class,
    net::AGENT,
    oracle::Oracle,
    program::{Crash, Program},
};

/// What blocks hold that were written while nothing was tracked; apart from what is written otherwise.
const UNSEEN: u64 = 1 << 40;
/// Longer than a lease lasts.
const PAUSE: Duration = Duration::from_secs(32);
const BACKUP_EVERY: Duration = Duration::from_secs(8);
/// A store is away while it is restored, for longer than anything that is under way is tried or is late.
const OUTAGE: Duration = Duration::from_secs(180);

impl World {
    /// What happens in this tick.
    pub(super) fn strike(&self, site: &mut Site, tick: u64) {
        self.strike_programs(site, tick);
        self.strike_network(site);
        self.strike_orchestration(site, tick);
        self.strike_store(site);
    }

    /// While a server starts, nothing is tracked: blocks change, most to what they were once, which old checksums in the
    /// vault would take for unchanged.
    fn write_unseen(&self, tick: u64) {
        let dice = &self.net.dice;
        for change in 0..dice.below(Class::Reboot, 16) {
            let disk = dice.below(Class::Reboot, self.load.disk_blocks.len() as u64) as usize;
            let blocks = self.load.disk_blocks.get(disk).copied().unwrap_or(1);
            let block = dice.below(Class::Reboot, u64::from(blocks)) as u32;
            let address = (DiskSlot(disk as u32 + 1), block);
            match change % 4 {
                0..=2 => self.machine.undo_unseen(address),
                _ => self.machine.write_unseen(address, UNSEEN + tick * 16 + change),
            }
        }
    }

    fn strike_programs(&self, site: &mut Site, tick: u64) {
        let dice = &self.net.dice;
        let below = |class: Class, bound: usize| dice.below(class, bound as u64) as usize;
        if dice.roll(Class::ProcessServerCrash) {
            let node = below(Class::ProcessServerCrash, self.load.process_servers);
            self.crash("process server", site.process_servers.get_mut(node), node);
        }
        if dice.roll(Class::ApplierCrash) {
            let node = below(Class::ApplierCrash, APPLIERS);
            self.crash("applier", site.appliers.get_mut(node), node);
        }
        if dice.roll(Class::AgentCrash) {
            self.crash("agent", Some(&mut site.agent), 0);
        }
        if dice.roll(Class::Reboot) {
            // Nothing of the agent may run on after it.
            site.agent.crash(Crash::Now, Duration::from_secs(1 + dice.below(Class::Reboot, 20)));
            self.machine.reboot();
            self.net.mark("reboot", format_args!(""));
            self.write_unseen(tick);
        }
        if dice.roll(Class::OrderlyReboot) {
            // What is written until the agent runs again the early tracker marks.
            site.agent.crash(Crash::Now, Duration::from_secs(1 + dice.below(Class::OrderlyReboot, 20)));
            self.machine.orderly_reboot();
            self.net.mark("orderly reboot", format_args!(""));
        }
        if dice.roll(Class::Pause) {
            let lasts = PAUSE + Duration::from_millis(dice.below(Class::Pause, 40_000));
            let all = site.process_servers.iter().chain(&site.appliers).chain([&site.agent]);
            let node = below(Class::Pause, self.clocks.len() + 1);
            self.net.mark("pause", format_args!("{node} for {lasts:?}"));
            let agents = self.clocks.len();
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
            self.clocks.get(node).unwrap_or(&self.agent_clock).jump(hours * 3_600_000_000);
            self.net.mark("clock jump", format_args!("{hours}"));
        }
    }

    fn strike_orchestration(&self, site: &mut Site, tick: u64) {
        let dice = &self.net.dice;
        let now = Instant::now();
        let node = |class: Class| dice.below(class, self.load.process_servers as u64) as usize;
        let in_ms = |class: Class, most: u64| now + Duration::from_millis(dice.below(class, most));
        if let Some((_, node)) = site.assign_at.take_if(|(at, _)| *at <= now) {
            self.assign(node);
        }
        if dice.roll(Class::Handover) {
            self.assign(node(Class::Handover));
            if dice.below(Class::Handover, 3) == 0 {
                site.assign_at = Some((in_ms(Class::Handover, 3000), node(Class::Handover)));
                self.net.count(|reached| reached.double_handovers += 1);
            }
        }
        if dice.roll(Class::TwoTakers) {
            let node = node(Class::TwoTakers);
            // As when the operator has given up the one that does not hear it.
            let ordered = dice.below(Class::TwoTakers, 2) == 0;
            let lost = if ordered { self.newest_epoch() } else { None };
            self.net.count(|reached| reached.ordered_handovers += u64::from(lost.is_some()));
            self.assign_also(node, lost);
            site.assign_at = Some((in_ms(Class::TwoTakers, 60_000), node));
        }
        if site.resume_at.take_if(|at| *at <= now).is_some() {
            self.set_policy(Policy { paused: false, ..self.policy.get() });
        }
        if dice.roll(Class::PolicyChange) {
            let round_interval_ms = [300, 1000, 5000][dice.below(Class::PolicyChange, 3) as usize];
            let paused = dice.below(Class::PolicyChange, 4) == 0;
            self.set_policy(Policy { round_interval_ms, paused });
            site.resume_at = Some(in_ms(Class::PolicyChange, 20_000));
        }
        if dice.roll(Class::PointRequest) {
            self.ask_for_a_point(tick);
        }
        let no_failover = site.failover.as_ref().is_none_or(JoinHandle::is_finished);
        if no_failover && dice.roll(Class::Failover) {
            site.run = format!("run-{tick}");
            site.failover = Some(self.start_failover(&site.run));
        } else if no_failover && !self.keys_rotated.get() && dice.roll(Class::KeyRotated) {
            self.keys_rotated.set(true);
            self.net.mark("key rotated", format_args!(""));
            for program in site.process_servers.iter_mut().chain(&mut site.appliers) {
                program.crash(Crash::Now, Duration::from_millis(dice.below(Class::KeyRotated, 5000)));
            }
        }
    }

    fn strike_store(&self, site: &mut Site) {
        let dice = &self.net.dice;
        if dice.roll(Class::BrokenLease) {
            self.break_lease();
        }
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
                self.net.ask(Oracle::went_back);
                let running = site.failover.as_ref().is_some_and(|failover| !failover.is_finished());
                let closed = self.net.ask(|oracle| Ok(oracle.closed_run()));
                site.release =
                    closed.filter(|run| !(running && *run == site.run)).map(|run| self.start_release(run));
            }
        }
    }

    /// Of the newest part of the log, by somebody with a portal.
    fn newest_part(&self) -> Option<String> {
        let prefix = layout::log_prefix(&self.server);
        let mut newest = None;
        let mut after: Option<String> = None;
        // The model answers at once.
        while let Some(Ok(page)) = self.model.list(&prefix, false, after.as_deref()).now_or_never() {
            newest = page.blobs.last().map(|blob| blob.name.clone()).or(newest);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        newest
    }

    /// What the operator can know of the log's writer.
    fn newest_epoch(&self) -> Option<Epoch> {
        let name = self.newest_part()?;
        let part: PartName = name.rsplit('/').next()?.parse().ok()?;
        Some(part.epoch)
    }

    fn break_lease(&self) {
        if let Some(name) = self.newest_part() {
            self.net.mark("lease broken", format_args!("{name}"));
            let _ = self.model.break_lease(&name).now_or_never();
        }
    }

    fn crash(&self, what: &str, program: Option<&mut Program>, number: usize) {
        let down = Duration::from_millis(50 + self.rng.below(12_000));
        let how = match self.rng.below(2) {
            0 => Crash::Now,
            _ => Crash::After(1 + self.rng.below(60)),
        };
        if program.is_some_and(|program| program.crash(how, down)) {
            self.net.mark("crash", format_args!("{what} {number} {how:?}"));
            if let Crash::After(_) = how {
                self.net.count(|reached| reached.crashes_at_an_await += 1);
            }
        }
    }
}
