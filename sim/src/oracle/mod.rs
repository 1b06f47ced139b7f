//! The oracle: sees every request in the order in which the store takes it, and keeps its own simple truth.
//!
//! 1. Every block that counts as clean reads the same from the replayed log as from the disk.
//! 2. Every exact and complete record is the disk at its instant (writes in flight old or new); records stand once,
//!    in order, without a gap; their segments are there and verify.
//! 3. Every listed point's snapshots are bit for bit the disk at its record, and so is what the block index reads.
//! 4. Nothing is acknowledged that the log does not hold; a closed log takes nothing but its own run's release.
//! 5. Nothing is deleted that a listed point, the journal's promise, an unapplied record or a pin needs.
//! 6. What a server's log names and carries is its own.
//! 7. When faults stop it comes to rest (asked by the world).

mod kept;
mod points;
mod rest;
mod restore;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::FutureExt as _;
use lifeboat_agent::memory::{Address, Machine, Tag, tag};
use lifeboat_replication::{
    blocks::BLOCK_BYTES,
    catalogue::is_point,
    env::{Env, Micros},
    errors::chain,
    ids::{DiskSlot, Epoch, ServerId},
    journal,
    log::{LogReader, Patience},
    segment::ExtentData,
    store::model::ModelStore,
    vault::Vault,
    wire::v1::{self, RecordKind, log_record::Body},
};

pub use self::kept::Held;
use crate::reached::Reached;

const BLOCK: usize = BLOCK_BYTES as usize;
/// What a block holds says above these bits which server wrote it.
pub(crate) const OWNER_BITS: u32 = 48;

type Image = BTreeMap<Address, Tag>;

pub struct Oracle {
    vault: Vault,
    model: ModelStore,
    server: ServerId,
    /// From 0: what its blocks hold is marked with it.
    number: u64,
    env: Env,
    machine: Machine,
    reader: LogReader,
    /// The disks as the log replays, by the machine's slots.
    replay: Image,
    /// The same at each point.
    images: BTreeMap<u64, Image>,
    epochs: BTreeMap<u64, Epoch>,
    /// Of records that the store had before it went back.
    lost_epochs: BTreeMap<u64, Epoch>,
    /// The store lost records, and everything had been ordered to be copied again so often then.
    lost: Option<u64>,
    last_part: Option<(Epoch, u32)>,
    /// Session of the newest record, and the epoch in which the session was.
    session: Option<(u64, Epoch)>,
    /// Epoch in which the newest `Closed` stands.
    closed_in: Option<Epoch>,
    compared: BTreeSet<(u32, u64)>,
    kept: kept::Kept,
    /// What committed segments hold: the log is read anew when the store was restored, and retention may have deleted
    /// those of its beginning.
    segments: BTreeMap<String, Vec<ExtentData>>,
    pub reached: Reached,
}

impl Oracle {
    pub fn new(
        vault: Vault,
        model: ModelStore,
        server: ServerId,
        number: usize,
        env: Env,
        machine: Machine,
        journal: Duration,
    ) -> Self {
        let reader = LogReader::from_start(&vault, &server, &env);
        Self {
            vault,
            model,
            server,
            number: number as u64,
            env,
            machine,
            reader,
            replay: Image::new(),
            images: BTreeMap::new(),
            epochs: BTreeMap::new(),
            lost_epochs: BTreeMap::new(),
            lost: None,
            last_part: None,
            session: None,
            closed_in: None,
            compared: BTreeSet::new(),
            kept: kept::Kept::new(journal),
            segments: BTreeMap::new(),
            reached: Reached::default(),
        }
    }

    /// Is it a blob of this server?
    pub fn owns(&self, name: &str) -> bool {
        name.split('/').any(|part| part == self.server.as_str())
    }

    /// Number of the last committed record.
    pub fn last_number(&self) -> u64 {
        self.epochs.last_key_value().map_or(0, |(number, _)| *number)
    }

    /// Takes in what the log has since the last call.
    pub fn log_changed(&mut self) -> Result<(), String> {
        loop {
            let next = self.reader.next().now_or_never().ok_or("the log's reader waits for something")?;
            let Some(entry) = next.map_err(|error| format!("the log cannot be read: {}", chain(&error)))?
            else {
                self.closed_is_closed()?;
                return self.clean_is_in_the_vault();
            };
            if self.last_part != Some((entry.epoch, entry.part)) {
                self.last_part = Some((entry.epoch, entry.part));
                self.reached.parts += 1;
                self.reached.epochs += u64::from(entry.part == 0);
            }
            match entry.body {
                Body::Data(data) => self.record(entry.epoch, &data)?,
                Body::Closed(_) => {
                    self.reached.closed += 1;
                    self.closed_in = Some(entry.epoch);
                }
                Body::Release(_) => self.reached.released += 1,
                Body::Disks(_) | Body::Header(_) | Body::Rotate(_) => {}
            }
        }
    }

    /// An epoch in a closed log is opened by the closing run only, which says so in the same append.
    fn closed_is_closed(&self) -> Result<(), String> {
        match self.reader.state() {
            Some(state) if state.closed_run.is_some() && self.closed_in != Some(state.epoch) => Err(format!(
                "epoch {} was opened in a log that {:?} had closed",
                state.epoch, state.closed_run
            )),
            _ => Ok(()),
        }
    }

    fn record(&mut self, epoch: Epoch, data: &v1::Data) -> Result<(), String> {
        self.reached.records += 1;
        self.epochs.insert(data.number, epoch);
        // A session ends with its epoch.
        let began = self.session.filter(|(session, _)| *session == data.session).map_or(epoch, |at| at.1);
        self.reached.resumed_records += u64::from(began != epoch);
        self.session = Some((data.session, began));
        let patience = Patience { env: self.env.clone(), tries: 1 };
        let sources = journal::sources(data).map_err(|error| chain(&error))?;
        for source in sources {
            if source.inline.is_none() && !self.owns(&source.name) {
                return Err(format!(
                    "record {} names {}, which is another server's",
                    data.number, source.name
                ));
            }
            self.kept.names(&source);
            let extents = match self.segments.get(&source.name) {
                Some(extents) => extents.clone(),
                None => {
                    let read = source.read(&self.vault, &patience).now_or_never();
                    let read = read.ok_or("a segment's read waits")?;
                    read.map_err(|error| format!("record {}: {}", data.number, chain(&error)))?
                }
            };
            self.segments.insert(source.name.clone(), extents.clone());
            for extent in extents {
                let slot = self.machine_slot(extent.run.disk)?;
                for index in 0..extent.run.blocks {
                    let at = index as usize * BLOCK;
                    let value = match &extent.data {
                        None => 0,
                        Some(bytes) => bytes
                            .get(at..at + BLOCK)
                            .and_then(tag)
                            .ok_or_else(|| format!("record {} carries a torn block", data.number))?,
                    };
                    if value != 0 && value >> OWNER_BITS != self.number {
                        return Err(format!("record {} carries a block of another server", data.number));
                    }
                    self.replay.insert((slot, extent.run.first + index), value);
                }
            }
        }
        if data.kind() == RecordKind::Exact {
            self.reached.exact_records += 1;
        }
        if is_point(data) {
            self.reached.points += 1;
            self.is_its_instant(data)?;
            self.images.insert(data.number, self.replay.clone());
        }
        Ok(())
    }

    fn is_its_instant(&mut self, data: &v1::Data) -> Result<(), String> {
        let date = Micros(data.t0_micros - data.clock_offset_micros);
        let flip = self.machine.flip_at(date).ok_or_else(|| {
            format!("point {} names an instant at which no generation was flipped", data.number)
        })?;
        if data.consistency() as i32 > v1::Consistency::CrashConsistent as i32 {
            self.reached.consistent_points += 1;
            self.reached.app_consistent_points +=
                u64::from(data.consistency() == v1::Consistency::AppConsistent);
            if data.consistency() == v1::Consistency::AppConsistent && !flip.held {
                return Err(format!(
                    "point {} is called AppConsistent, and no application was held",
                    data.number
                ));
            }
            if !flip.frozen {
                let called = data.consistency();
                return Err(format!("point {} is called {called:?}, and nothing was frozen", data.number));
            }
        }
        for (address, wanted) in &flip.content {
            let found = self.replay.get(address).copied().unwrap_or(0);
            let in_flight = flip.may_hold(*address, found);
            if found != *wanted && !in_flight {
                return Err(format!(
                    "point {} is not the disk at its instant: block {} of disk {} is {found} and was {wanted}",
                    data.number, address.1, address.0
                ));
            }
        }
        Ok(())
    }

    /// A block that the agent would not send again must be in the vault.
    pub fn clean_is_in_the_vault(&mut self) -> Result<(), String> {
        if self.loss_unknown() {
            return Ok(());
        }
        let replay = &self.replay;
        let wrong = self.machine.find_clean(|address, tag| replay.get(&address).copied().unwrap_or(0) != tag);
        match wrong {
            None => Ok(()),
            Some((address, tag)) => Err(format!(
                "block {} of disk {} was forgotten: the disk has {tag}, the vault {}",
                address.1,
                address.0,
                self.replay.get(&address).copied().unwrap_or(0)
            )),
        }
    }

    /// `Durable` was sent to the agent.
    pub fn acknowledged(&mut self, durable: &v1::Durable) -> Result<(), String> {
        self.reached.durable += 1;
        match self.epochs.get(&durable.number) {
            Some(epoch) if epoch.0 == durable.epoch => Ok(()),
            _ if self.lost_epochs.get(&durable.number).is_some_and(|epoch| epoch.0 == durable.epoch) => {
                Ok(())
            }
            found => Err(format!(
                "record {} was acknowledged for epoch {}, the log has it in {found:?}",
                durable.number, durable.epoch
            )),
        }
    }

    /// The machine's number of a disk of the log.
    fn machine_slot(&self, slot: DiskSlot) -> Result<DiskSlot, String> {
        let disk = self.reader.state().and_then(|state| state.disk(slot));
        let number = disk.and_then(|disk| disk.id.rsplit('-').next()?.parse().ok());
        number.map(DiskSlot).ok_or_else(|| format!("the log has no disk {slot}"))
    }
}
