//! The oracle: sees every request in the order in which the store takes it, and keeps its own simple truth.
//!
//! 1. Every block that counts as clean reads the same from the replayed log as from the disk.
//! 2. Every exact and complete record is the disk at its instant (writes in flight old or new); records stand once,
//!    in order, without a gap; their segments are there and verify.
//! 3. Every listed point's snapshots are bit for bit the disk at its record, and so is what the block index reads.
//! 4. Nothing is acknowledged that the log does not hold; a closed log takes nothing but its own run's release.
//! 5. When faults stop it comes to rest (asked by the world).

use std::collections::{BTreeMap, BTreeSet};

use futures::FutureExt as _;
use lifeboat_agent::memory::{Address, Machine, Tag, tag};
use lifeboat_recovery::{
    index::{BlockIndex, IndexOptions},
    select::PointSelector,
};
use lifeboat_replication::{
    blocks::{BLOCK_BYTES, BlockSet},
    catalogue::{self, Points, is_point},
    env::{Env, Micros},
    errors::chain,
    ids::{DiskSlot, Epoch, ServerId},
    journal,
    log::{LogReader, Patience},
    store::{BlobStore as _, SnapshotId, model::ModelStore},
    vault::{Vault, layout},
    wire::v1::{self, RecordKind, log_record::Body},
};

const BLOCK: usize = BLOCK_BYTES as usize;

/// How often a state was reached. A run of many schedules in which one of them stays zero proves nothing about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reached {
    pub records: u64,
    pub exact: u64,
    pub points: u64,
    pub epochs: u64,
    pub parts: u64,
    pub closed: u64,
    pub released: u64,
    pub snapshots_compared: u64,
    pub index_compared: u64,
    pub durable: u64,
    pub crashes: u64,
    pub handovers: u64,
    pub reboots: u64,
    pub unanswered: u64,
    pub refused: u64,
}

impl Reached {
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counters_mut().into_iter().zip(other.counters()) {
            *mine.1 += theirs.1;
        }
    }

    pub fn counters(&self) -> [(&'static str, u64); 15] {
        let mut copy = *self;
        copy.counters_mut().map(|(name, count)| (name, *count))
    }

    fn counters_mut(&mut self) -> [(&'static str, &mut u64); 15] {
        let Self {
            records,
            exact,
            points,
            epochs,
            parts,
            closed,
            released,
            snapshots_compared,
            index_compared,
            durable,
            crashes,
            handovers,
            reboots,
            unanswered,
            refused,
        } = self;
        [
            ("records", records),
            ("exact", exact),
            ("points", points),
            ("epochs", epochs),
            ("parts", parts),
            ("closed", closed),
            ("released", released),
            ("snapshots compared", snapshots_compared),
            ("index compared", index_compared),
            ("durable", durable),
            ("crashes", crashes),
            ("handovers", handovers),
            ("reboots", reboots),
            ("unanswered calls", unanswered),
            ("refused calls", refused),
        ]
    }
}

type Image = BTreeMap<Address, Tag>;

pub struct Oracle {
    vault: Vault,
    model: ModelStore,
    server: ServerId,
    env: Env,
    machine: Machine,
    reader: LogReader,
    /// The disks as the log replays, by the machine's slots.
    replay: Image,
    /// The same at each point.
    images: BTreeMap<u64, Image>,
    epochs: BTreeMap<u64, Epoch>,
    last_part: Option<(Epoch, u32)>,
    /// Epoch in which the newest `Closed` stands.
    closed_in: Option<Epoch>,
    compared: BTreeSet<(u32, u64)>,
    pub reached: Reached,
}

impl Oracle {
    pub fn new(vault: Vault, model: ModelStore, server: ServerId, env: Env, machine: Machine) -> Self {
        let reader = LogReader::from_start(&vault, &server, &env);
        Self {
            vault,
            model,
            server,
            env,
            machine,
            reader,
            replay: Image::new(),
            images: BTreeMap::new(),
            epochs: BTreeMap::new(),
            last_part: None,
            closed_in: None,
            compared: BTreeSet::new(),
            reached: Reached::default(),
        }
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
        let patience = Patience { env: self.env.clone(), tries: 1 };
        let sources = journal::sources(data).map_err(|error| chain(&error))?;
        for source in sources {
            let read = source.read(&self.vault, &patience).now_or_never().ok_or("a segment's read waits")?;
            let extents = read.map_err(|error| format!("record {}: {}", data.number, chain(&error)))?;
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
                    self.replay.insert((slot, extent.run.first + index), value);
                }
            }
        }
        if data.kind() == RecordKind::Exact {
            self.reached.exact += 1;
        }
        if is_point(data) {
            self.reached.points += 1;
            self.is_its_instant(data)?;
            self.images.insert(data.number, self.replay.clone());
        }
        Ok(())
    }

    fn is_its_instant(&self, data: &v1::Data) -> Result<(), String> {
        let date = Micros(data.t0_micros - data.clock_offset_micros);
        let flip = self.machine.flip_at(date).ok_or_else(|| {
            format!("point {} names an instant at which no generation was flipped", data.number)
        })?;
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
    pub fn clean_is_in_the_vault(&self) -> Result<(), String> {
        let clean: BlockSet = self.machine.clean();
        if clean.is_empty() {
            return Ok(());
        }
        let content = self.machine.content();
        for run in clean.runs(1) {
            let address = (run.disk, run.first);
            let (disk, vault) = (content.get(&address), self.replay.get(&address).copied().unwrap_or(0));
            if disk.copied().unwrap_or(0) != vault {
                return Err(format!(
                    "block {} of disk {} was forgotten: the disk has {disk:?}, the vault {vault}",
                    address.1, address.0
                ));
            }
        }
        Ok(())
    }

    /// `Durable` was sent to the agent.
    pub fn acknowledged(&mut self, durable: &v1::Durable) -> Result<(), String> {
        self.reached.durable += 1;
        match self.epochs.get(&durable.number) {
            Some(epoch) if epoch.0 == durable.epoch => Ok(()),
            found => Err(format!(
                "record {} was acknowledged for epoch {}, the log has it in {found:?}",
                durable.number, durable.epoch
            )),
        }
    }

    /// The catalogue's points are the disks at their records.
    pub fn points_changed(&mut self) -> Result<(), String> {
        let read = catalogue::read::<Points>(&self.model, &self.server).now_or_never();
        let Some((points, _)) = read.ok_or("the catalogue's read waits")?.map_err(|error| chain(&error))?
        else {
            return Ok(());
        };
        for point in points.points {
            if !self.compared.insert((point.epoch, point.number)) {
                continue;
            }
            let image = self
                .images
                .get(&point.number)
                .cloned()
                .ok_or_else(|| format!("listed point {} is no exact record", point.number))?;
            for disk in &point.disks {
                let slot = self.machine_slot(DiskSlot(disk.slot))?;
                let name = layout::seed_disk(&self.server, &disk.disk_id);
                let snapshot = SnapshotId(disk.snapshot.clone());
                let content = self.model.get(&name, Some(&snapshot), None).now_or_never();
                let content = content.ok_or("a snapshot's read waits")?.map_err(|error| chain(&error))?;
                let what = format!("snapshot of point {}", point.number);
                compare(&image, slot, 0, &content, disk.size_bytes, &what)?;
            }
            self.reached.snapshots_compared += 1;
        }
        Ok(())
    }

    /// What the block index reads for a point, chosen by `pick`, is the disk at its record.
    pub fn index_agrees(&mut self, pick: u64) -> Result<(), String> {
        let Some((number, image)) = self.images.iter().nth(pick as usize % self.images.len().max(1)) else {
            return Ok(());
        };
        let selector = PointSelector::Number(*number);
        let options = IndexOptions::default();
        let open = BlockIndex::open(&self.vault, &self.server, &self.env, selector, &options);
        let index = open.now_or_never().ok_or("the block index waits")?;
        let index = index.map_err(|error| format!("point {number} cannot be opened: {}", chain(&error)))?;
        for disk in index.disks() {
            let slot = self.machine_slot(disk.slot)?;
            let blocks = (disk.size_bytes / BLOCK_BYTES) as u32;
            let read = index.read(disk.slot, 0, blocks).now_or_never().ok_or("the block index waits")?;
            let content =
                read.map_err(|error| format!("point {number} cannot be read: {}", chain(&error)))?;
            compare(image, slot, 0, &content, disk.size_bytes, &format!("block index at record {number}"))?;
        }
        self.reached.index_compared += 1;
        Ok(())
    }

    /// At rest the vault is the disk, and so are the seed disks.
    pub fn at_rest(&mut self) -> Result<(), String> {
        let content = self.machine.content();
        for (address, wanted) in &content {
            let found = self.replay.get(address).copied().unwrap_or(0);
            if found != *wanted {
                return Err(format!(
                    "at rest, block {} of disk {} is {found}, not {wanted}",
                    address.1, address.0
                ));
            }
        }
        let disks = self.reader.state().map(|state| state.disks.clone()).unwrap_or_default();
        for disk in disks {
            let slot = self.machine_slot(disk.slot)?;
            let name = layout::seed_disk(&self.server, &disk.id);
            let seed =
                self.model.get(&name, None, None).now_or_never().ok_or("the seed disk's read waits")?;
            let seed = seed.map_err(|error| chain(&error))?;
            compare(&content, slot, 0, &seed, disk.size_bytes, "seed disk at rest")?;
        }
        Ok(())
    }

    /// The machine's number of a disk of the log.
    fn machine_slot(&self, slot: DiskSlot) -> Result<DiskSlot, String> {
        let disk = self.reader.state().and_then(|state| state.disk(slot));
        let number = disk.and_then(|disk| disk.id.rsplit('-').next()?.parse().ok());
        number.map(DiskSlot).ok_or_else(|| format!("the log has no disk {slot}"))
    }
}

fn compare(
    image: &Image,
    slot: DiskSlot,
    first: u32,
    content: &[u8],
    size: u64,
    what: &str,
) -> Result<(), String> {
    for block in first..(size / BLOCK_BYTES) as u32 {
        let at = block as usize * BLOCK;
        let found = content.get(at..at + BLOCK).and_then(tag);
        let wanted = image.get(&(slot, block)).copied().unwrap_or(0);
        if found != Some(wanted) {
            return Err(format!("{what}: block {block} of disk {slot} is {found:?}, not {wanted}"));
        }
    }
    Ok(())
}
