//! One protected server, and what the operator knows of it.

use std::{
    cell::{Cell, RefCell},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::FutureExt as _;
use lifeboat_agent::memory::Machine;
use lifeboat_process_server::core::Assigned;
use lifeboat_replication::{
    env::Env,
    ids::{DiskSlot, Epoch, ServerId},
    log::PartName,
    store::{BlobStore as _, model::ModelStore},
    vault::{RetentionPolicy, Vault, layout},
    wire::v1,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    env::{NodeClock, env},
    faults::{Class, Dice},
    load::Load,
    net::{Line, lock},
    oracle::OWNER_BITS,
    rng::Rng,
};

/// Points that are asked for at a time; older requests are taken back.
const MOST_ASKED: usize = 3;
/// What blocks hold that were written while nothing was tracked; apart from what is written otherwise.
const UNSEEN: u64 = 1 << 40;

pub(crate) struct Server {
    /// From 0.
    pub(super) number: usize,
    pub(super) id: ServerId,
    pub(super) line: Line,
    pub(super) rng: Rng,
    /// Of what happens to it alone.
    pub(super) dice: Arc<Dice>,
    pub(super) load: Load,
    pub(super) machine: Machine,
    pub(super) clock: NodeClock,
    /// To each process server.
    pub(super) assignments: Vec<watch::Sender<Option<Assigned>>>,
    pub(super) policy: Cell<Policy>,
    /// Points that are asked for.
    pub(super) asked: Mutex<Vec<v1::PointRequest>>,
    pub(super) writing: RefCell<Writing>,
}

/// The next write.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) value: u64,
    pub(super) at: Instant,
}

/// What the operator can change at any time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    pub(super) round_interval_ms: u64,
    pub(super) paused: bool,
}

/// An id of its own: as the operator makes it where appliers share servers, which they find in the vault.
pub(super) fn id(vault: &Vault, number: usize, retention: Option<RetentionPolicy>, env: &Env) -> ServerId {
    let mut random = [0; 16];
    let drawn = |env: &Env, random: &mut [u8]| env.entropy.fill(random);
    let Some(retention) = retention else {
        drawn(env, &mut random);
        return ServerId::from_random(random);
    };
    // The model answers at once.
    let adopted = async {
        let adopted = vault.adopt_server("sim", &format!("server-{number}"), env).await?;
        let read = vault.read_server(&adopted.id).await?;
        if let Some((mut description, etag)) = read {
            description.retention = Some(retention);
            vault.write_server(&description, Some(&etag)).await?;
        }
        Ok::<_, lifeboat_replication::vault::VaultError>(adopted.id)
    };
    match adopted.now_or_never() {
        Some(Ok(id)) => id,
        // Its blobs would then be nobody's, which fails the schedule.
        _ => ServerId::from_random(random),
    }
}

impl Server {
    pub(super) fn env(&self) -> Env {
        env(&self.clock, self.rng.fork())
    }

    fn assigned(&self) -> Assigned {
        let settings = v1::Settings {
            round_interval_micros: self.policy.get().round_interval_ms * 1000,
            paused: self.policy.get().paused,
            rpo_threshold_micros: 900_000_000,
            freeze_timeout_micros: 3_000_000,
            max_freezes_per_hour: 120,
            app_consistent_interval_micros: 40_000_000,
            ..Default::default()
        };
        Assigned {
            display_name: "sim/server".to_owned(),
            settings,
            compression_level: 1,
            points: lock(&self.asked).clone(),
            lost: None,
        }
    }

    /// The operator gives the server to `node`, and takes it from the others.
    pub(super) fn assign(&self, node: usize) {
        self.line.mark("assign", format_args!("{node}"));
        self.line.assign(node);
        for (other, assignment) in self.assignments.iter().enumerate() {
            assignment.send_replace((other == node).then(|| self.assigned()));
        }
    }

    /// The operator gives the server to `node`, and the others do not hear of it.
    pub(super) fn assign_also(&self, node: usize, lost: Option<Epoch>) {
        self.line.mark("assign also", format_args!("{node}, given up: {lost:?}"));
        self.line.assign(node);
        if let Some(assignment) = self.assignments.get(node) {
            assignment.send_replace(Some(Assigned { lost, ..self.assigned() }));
        }
    }

    pub(super) fn set_policy(&self, policy: Policy) {
        self.line.mark("policy", format_args!("{policy:?}"));
        self.policy.set(policy);
        self.tell_changes();
    }

    /// Somebody asks for a point; the operator passes that on to whoever has the server.
    pub(super) fn ask_for_a_point(&self, number: u64) {
        let consistency = match self.dice.below(Class::PointRequest, 3) {
            0 => v1::Consistency::CrashConsistent,
            1 => v1::Consistency::FilesystemConsistent,
            _ => v1::Consistency::AppConsistent,
        };
        self.line.mark("point asked for", format_args!("{consistency:?}"));
        let mut asked = lock(&self.asked);
        asked.push(v1::PointRequest {
            id: number.to_string(),
            consistency: consistency.into(),
            group: false,
        });
        let old = asked.len().saturating_sub(MOST_ASKED);
        asked.drain(..old);
        drop(asked);
        self.tell_changes();
    }

    fn tell_changes(&self) {
        for assignment in &self.assignments {
            assignment.send_if_modified(|assigned| {
                if let Some(assigned) = assigned {
                    *assigned = Assigned { lost: assigned.lost, ..self.assigned() };
                }
                assigned.is_some()
            });
        }
    }

    pub(super) fn blocks(&self) -> u64 {
        self.load.disk_blocks.iter().map(|blocks| u64::from(*blocks)).sum()
    }

    /// Above the bits that say whose it is.
    fn own(&self, value: u64) -> u64 {
        if value == 0 { 0 } else { value | (self.number as u64) << OWNER_BITS }
    }

    /// Writes whatever is due.
    pub(super) fn write_on(&self) {
        let mut writing = self.writing.borrow_mut();
        while writing.at <= Instant::now() {
            self.write(writing.value);
            writing.value += 1;
            writing.at += Duration::from_millis(1 + self.rng.below(2 * self.load.write_pause_ms));
        }
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
        let value = if self.rng.below(12) == 0 { 0 } else { self.own(value) };
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

    /// While a server starts, nothing is tracked: blocks change, most to what they were once, which old checksums in the
    /// vault would take for unchanged.
    pub(super) fn write_unseen(&self, tick: u64) {
        let dice = &self.dice;
        for change in 0..dice.below(Class::Reboot, 16) {
            let disk = dice.below(Class::Reboot, self.load.disk_blocks.len() as u64) as usize;
            let blocks = self.load.disk_blocks.get(disk).copied().unwrap_or(1);
            let block = dice.below(Class::Reboot, u64::from(blocks)) as u32;
            let address = (DiskSlot(disk as u32 + 1), block);
            match change % 4 {
                0..=2 => self.machine.undo_unseen(address),
                _ => self.machine.write_unseen(address, self.own(UNSEEN + tick * 16 + change)),
            }
        }
    }

    /// Of the newest part of the log, by somebody with a portal.
    fn newest_part(&self, model: &ModelStore) -> Option<String> {
        let prefix = layout::log_prefix(&self.id);
        let mut newest = None;
        let mut after: Option<String> = None;
        // The model answers at once.
        while let Some(Ok(page)) = model.list(&prefix, false, after.as_deref()).now_or_never() {
            newest = page.blobs.last().map(|blob| blob.name.clone()).or(newest);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        newest
    }

    /// What the operator can know of the log's writer.
    pub(super) fn newest_epoch(&self, model: &ModelStore) -> Option<Epoch> {
        let name = self.newest_part(model)?;
        let part: PartName = name.rsplit('/').next()?.parse().ok()?;
        Some(part.epoch)
    }

    pub(super) fn break_lease(&self, model: &ModelStore) {
        if let Some(name) = self.newest_part(model) {
            self.line.mark("lease broken", format_args!("{name}"));
            let _ = model.break_lease(&name).now_or_never();
        }
    }
}
