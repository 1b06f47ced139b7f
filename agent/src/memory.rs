//! A server in memory: disks, tracker and writes that are issued, land and complete one after the other.
//!
//! Tests and the simulation run the replicator over it. It keeps the disks' content at each flip, as the truth that
//! exact records are compared with. Clones are the same machine; maps and sources survive the replicator's crash.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use lifeboat_replication::{
    blocks::{BLOCK_BYTES, BlockRun, BlockSet},
    env::{Micros, Wall},
    ids::DiskSlot,
    wire::v1,
};
use tokio::time::Instant;

use crate::edge::{
    BlockSource, DirtyMap, FreezeError, Freezer, Frozen, HookError, HookLimits, Hooks, Thawed, TrackError,
};

const BLOCK: usize = BLOCK_BYTES as usize;

/// Content of a block in short: it is made of this number over and over. 0 is a block of zeros.
pub type Tag = u64;

/// Address of a block: the tracker's number of the disk, and the block.
pub type Address = (DiskSlot, u32);

/// A write that is issued and not completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    pub address: Address,
    /// What was there when it was issued; once it has landed: what it replaced (another write may have landed first).
    pub old: Tag,
    pub new: Tag,
    landed: bool,
}

/// The disks at the instant of a flip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flip {
    pub content: BTreeMap<Address, Tag>,
    pub in_flight: Vec<Write>,
    /// Every file system stood frozen.
    pub frozen: bool,
    /// The applications were held.
    pub held: bool,
}

impl Flip {
    /// Whether the disks at this instant may be said to hold `tag` here: a write in flight counts as old or new,
    /// whether it has reached the disk or not, as after a power cut.
    pub fn may_hold(&self, address: Address, tag: Tag) -> bool {
        let in_flight = |write: &Write| write.address == address && (write.old == tag || write.new == tag);
        self.content.get(&address) == Some(&tag) || self.in_flight.iter().any(in_flight)
    }
}

#[derive(Debug)]
struct State {
    disks: Vec<v1::Disk>,
    content: BTreeMap<Address, Tag>,
    /// What a block held before its last write.
    before: BTreeMap<Address, Tag>,
    writes: BTreeMap<u64, Write>,
    next_write: u64,
    generation: usize,
    issued: [BlockSet; 2],
    completed: [BlockSet; 2],
    held: BlockSet,
    to_copy: BlockSet,
    copy_reason: Option<String>,
    copies_ordered: u64,
    request: Option<String>,
    lost: Option<String>,
    mark: Option<v1::DurableMark>,
    sent: Option<u64>,
    flips: BTreeMap<Micros, Flip>,
    keep_flips: usize,
    read_time: Duration,
    freeze: Freeze,
    /// Applications are held until then, unless they are released before.
    applications_held: Option<Instant>,
    /// Changes are only found by looking.
    blind: bool,
    /// By looking, and not taken yet.
    found: BlockSet,
}

/// The file systems and the watchdog, which outlive the agent.
#[derive(Debug, Default)]
struct Freeze {
    /// Frozen until then, unless it is thawed before: the watchdog's limit.
    until: Option<Instant>,
    /// One was left out of the freeze.
    left_out: bool,
    count: u64,
}

/// Of [`Machine::snapshot`], when no write is under way.
#[derive(Debug)]
pub struct Snapshot {
    content: BTreeMap<Address, Tag>,
    held: BlockSet,
    to_copy: BlockSet,
    copy_reason: Option<String>,
    mark: Option<v1::DurableMark>,
    sent: Option<u64>,
    request: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Machine {
    state: Arc<Mutex<State>>,
    wall: Arc<dyn Wall>,
}

fn one((disk, block): Address) -> BlockSet {
    let mut set = BlockSet::default();
    set.insert_run(BlockRun { disk, first: block, blocks: 1 });
    set
}

/// The bytes of a block.
pub fn fill(tag: Tag) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    bytes.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&tag.to_le_bytes()));
    bytes
}

/// The tag of a block's bytes; `None` when they are not made of one tag (torn).
pub fn tag(bytes: &[u8]) -> Option<Tag> {
    let first = Tag::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (bytes.len() == BLOCK && *bytes == fill(first)).then_some(first)
}

impl Machine {
    /// Disks 1, 2, … of so many blocks each, all zero and all to be copied. The last `keep_flips` flips are kept.
    pub fn new(wall: Arc<dyn Wall>, disk_blocks: &[u32], keep_flips: usize) -> Self {
        let disks = (1..).zip(disk_blocks).map(|(slot, blocks)| v1::Disk {
            slot,
            id: format!("memory-{slot}"),
            size_bytes: u64::from(*blocks) * BLOCK_BYTES,
            path: format!("/dev/memory{slot}"),
            left_out: false,
        });
        let mut state = State {
            disks: disks.collect(),
            content: BTreeMap::new(),
            before: BTreeMap::new(),
            writes: BTreeMap::new(),
            next_write: 0,
            generation: 0,
            issued: Default::default(),
            completed: Default::default(),
            held: BlockSet::default(),
            to_copy: BlockSet::default(),
            copy_reason: None,
            copies_ordered: 0,
            request: None,
            lost: None,
            mark: None,
            sent: None,
            flips: BTreeMap::new(),
            keep_flips,
            read_time: Duration::ZERO,
            freeze: Freeze::default(),
            applications_held: None,
            blind: false,
            found: BlockSet::default(),
        };
        state.to_copy = state.everything();
        let all: Vec<_> = state.everything().runs(1).map(|run| ((run.disk, run.first), 0)).collect();
        state.content.extend(all);
        Self { state: Arc::new(Mutex::new(state)), wall }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each read takes this long from now on.
    pub fn set_read_time(&self, time: Duration) {
        self.state().read_time = time;
    }

    /// From now on the map finds changes only when somebody looks.
    pub fn blind(&self) {
        self.state().blind = true;
    }

    /// A reading of all disks, for a blind map. Takes no time.
    pub fn look(&self) {
        self.state().look();
    }

    /// A write is issued; it is on the disk after [`Machine::land`] and over after [`Machine::complete`].
    pub fn issue(&self, address: Address, tag: Tag) -> u64 {
        let state = &mut *self.state();
        let id = state.next_write;
        state.next_write += 1;
        state.issued[state.generation].union(&one(address));
        let old = state.content.get(&address).copied().unwrap_or(0);
        state.writes.insert(id, Write { address, old, new: tag, landed: false });
        id
    }

    pub fn land(&self, write: u64) {
        let state = &mut *self.state();
        if let Some(write) = state.writes.get_mut(&write).filter(|write| !write.landed) {
            write.landed = true;
            write.old = state.content.insert(write.address, write.new).unwrap_or(0);
            state.before.insert(write.address, write.old);
        }
    }

    /// Lands first if it has not.
    pub fn complete(&self, write: u64) {
        self.land(write);
        let state = &mut *self.state();
        if let Some(Write { address, .. }) = state.writes.remove(&write) {
            state.completed[state.generation].union(&one(address));
        }
    }

    /// Issued and completed at once.
    pub fn write(&self, address: Address, tag: Tag) {
        let id = self.issue(address, tag);
        self.complete(id);
    }

    /// All marks are gone, as after a reboot: writes in flight are not there any more, and nobody knows what changed.
    pub fn reboot(&self) {
        let state = &mut *self.state();
        state.writes.clear();
        state.issued = Default::default();
        state.completed = Default::default();
        state.held = BlockSet::default();
        state.mark = None;
        state.sent = None;
        state.request = None;
        state.to_copy = state.everything();
        state.lost = Some("the server was restarted".to_owned());
    }

    /// What is marked was saved when nothing wrote any more, and is taken up by marks that have seen all since.
    pub fn orderly_reboot(&self) {
        let under_way: Vec<u64> = self.state().writes.keys().copied().collect();
        for write in under_way {
            self.complete(write);
        }
        let state = &mut *self.state();
        for set in state.issued.iter_mut().chain(&mut state.completed) {
            state.held.union(&std::mem::take(set));
        }
    }

    /// What a snapshot of the machine keeps: the disks and, with its memory or what was saved at shutdown, the marks.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state();
        let State { content, held, to_copy, copy_reason, mark, sent, request, .. } = &*state;
        Snapshot {
            content: content.clone(),
            held: held.clone(),
            to_copy: to_copy.clone(),
            copy_reason: copy_reason.clone(),
            mark: mark.clone(),
            sent: *sent,
            request: request.clone(),
        }
    }

    /// The machine is put back to it, whatever it has sent since.
    pub fn put_back(&self, snapshot: Snapshot) {
        let state = &mut *self.state();
        state.writes.clear();
        state.issued = Default::default();
        state.completed = Default::default();
        let Snapshot { content, held, to_copy, copy_reason, mark, sent, request } = snapshot;
        (state.content, state.held, state.to_copy, state.copy_reason) = (content, held, to_copy, copy_reason);
        (state.mark, state.sent, state.request) = (mark, sent, request);
    }

    /// Changes a block without leaving a mark: written while nothing was tracked.
    pub fn write_unseen(&self, address: Address, tag: Tag) {
        self.state().content.insert(address, tag);
    }

    /// As [`Machine::write_unseen`], with what the block held before its last write: for the vault, what it once held.
    pub fn undo_unseen(&self, address: Address) {
        let state = &mut *self.state();
        let before = state.before.get(&address).copied().unwrap_or(0);
        state.content.insert(address, before);
    }

    /// Writers stand still: nothing may be issued. Over as soon as the limit has passed, whatever the agent does.
    pub fn is_frozen(&self) -> bool {
        self.state().is_frozen()
    }

    /// How often the file systems were frozen.
    pub fn freezes(&self) -> u64 {
        self.state().freeze.count
    }

    pub fn content(&self) -> BTreeMap<Address, Tag> {
        self.state().content.clone()
    }

    /// The disks at a flip, by the date it returned.
    pub fn flip_at(&self, date: Micros) -> Option<Flip> {
        self.state().flips.get(&date).cloned()
    }

    /// Blocks that count as clean: neither marked, nor held, nor to be copied, nor being written.
    pub fn clean(&self) -> BlockSet {
        let state = &*self.state();
        let mut clean = state.everything();
        let marks = state.marks();
        marks.for_each(|marks| clean.subtract(marks));
        state.writes.values().for_each(|write| clean.subtract(&one(write.address)));
        clean
    }

    /// How often everything was ordered to be copied again.
    pub fn copies_ordered(&self) -> u64 {
        self.state().copies_ordered
    }

    /// The first clean block whose content `wrong` says so of, with that content.
    pub fn find_clean(&self, wrong: impl Fn(Address, Tag) -> bool) -> Option<(Address, Tag)> {
        let state = &*self.state();
        let marks = || state.marks();
        let dirty = |(disk, block): Address| {
            marks().any(|marks| marks.contains(disk, block))
                || state.writes.values().any(|write| write.address == (disk, block))
        };
        let mut content = state.content.iter().map(|(address, tag)| (*address, *tag));
        content.find(|(address, tag)| wrong(*address, *tag) && !dirty(*address))
    }

    pub fn map(&self) -> Box<dyn DirtyMap> {
        Box::new(MemoryMap(self.clone()))
    }

    /// `trouble`: without, a freeze always succeeds.
    pub fn freezer(&self, trouble: Option<Arc<dyn Trouble>>) -> Box<dyn Freezer> {
        Box::new(MemoryFreezer { machine: self.clone(), since: None, trouble })
    }

    /// `trouble`: without, a hook always does what it should.
    pub fn hooks(&self, trouble: Option<Arc<dyn Trouble>>) -> Box<dyn Hooks> {
        Box::new(MemoryHooks { machine: self.clone(), trouble })
    }

    pub fn source(&self) -> Arc<dyn BlockSource> {
        Arc::new(MemorySource(self.clone()))
    }
}

impl State {
    fn is_frozen(&self) -> bool {
        self.freeze.until.is_some_and(|until| Instant::now() < until)
    }

    /// Everything that does not count as clean, but for writes under way.
    fn marks(&self) -> impl Iterator<Item = &BlockSet> {
        self.issued.iter().chain(&self.completed).chain([&self.held, &self.to_copy, &self.found])
    }

    fn look(&mut self) {
        for marks in self.issued.iter_mut().chain(&mut self.completed) {
            self.found.union(&std::mem::take(marks));
        }
    }

    fn is_held(&self) -> bool {
        self.applications_held.is_some_and(|until| Instant::now() < until)
    }

    fn everything(&self) -> BlockSet {
        let mut all = BlockSet::default();
        for disk in &self.disks {
            let blocks = u32::try_from(disk.size_bytes / BLOCK_BYTES).unwrap_or(u32::MAX);
            all.insert_run(BlockRun { disk: DiskSlot(disk.slot), first: 0, blocks });
        }
        all
    }
}

struct MemoryMap(Machine);

impl DirtyMap for MemoryMap {
    fn flip(&mut self) -> Result<Micros, TrackError> {
        let now = self.0.wall.now();
        let state = &mut *self.0.state();
        state.generation = 1 - state.generation;
        // Two flips never have the same date, so that a date names one.
        let date = state.flips.last_key_value().map_or(now, |(last, _)| now.max(Micros(last.0 + 1)));
        let in_flight = state.writes.values().copied().collect();
        let frozen = state.is_frozen() && !state.freeze.left_out;
        let flip = Flip { content: state.content.clone(), in_flight, frozen, held: state.is_held() };
        state.flips.insert(date, flip);
        while state.flips.len() > state.keep_flips.max(1) {
            state.flips.pop_first();
        }
        Ok(date)
    }

    fn take(&mut self) -> Result<BlockSet, TrackError> {
        let state = &mut *self.0.state();
        if state.blind {
            let found = std::mem::take(&mut state.found);
            state.held.union(&found);
            return Ok(found);
        }
        let old = 1 - state.generation;
        let mut taken = std::mem::take(&mut state.issued[old]);
        taken.union(&std::mem::take(&mut state.completed[old]));
        state.held.union(&taken);
        Ok(taken)
    }

    fn issued_now(&mut self, within: &BlockSet) -> Result<BlockSet, TrackError> {
        let state = self.0.state();
        Ok(if state.blind {
            BlockSet::default()
        } else {
            state.issued[state.generation].intersection(within)
        })
    }

    fn held(&mut self) -> Result<BlockSet, TrackError> {
        Ok(self.0.state().held.clone())
    }

    fn forget(&mut self, blocks: &BlockSet) -> Result<(), TrackError> {
        self.0.state().held.subtract(blocks);
        Ok(())
    }

    fn to_copy(&mut self) -> Result<BlockSet, TrackError> {
        Ok(self.0.state().to_copy.clone())
    }

    fn copied(&mut self, blocks: &BlockSet) -> Result<(), TrackError> {
        self.0.state().to_copy.subtract(blocks);
        Ok(())
    }

    fn copy_all(&mut self, reason: &str) -> Result<(), TrackError> {
        let state = &mut *self.0.state();
        state.to_copy = state.everything();
        state.copy_reason = Some(reason.to_owned());
        state.copies_ordered += 1;
        state.lost = None;
        Ok(())
    }

    fn copy_reason(&self) -> Option<String> {
        let state = self.0.state();
        state.copy_reason.clone().filter(|_| !state.to_copy.is_empty())
    }

    fn request(&self) -> Option<String> {
        self.0.state().request.clone()
    }

    fn set_request(&mut self, request: &str) -> Result<(), TrackError> {
        self.0.state().request = Some(request.to_owned());
        Ok(())
    }

    fn dirty_now(&mut self) -> Result<u64, TrackError> {
        let state = self.0.state();
        let mut dirty = state.issued[state.generation].clone();
        dirty.union(&state.completed[state.generation]);
        Ok(dirty.len())
    }

    fn in_flight(&mut self) -> Option<u64> {
        Some(self.0.state().writes.len() as u64)
    }

    fn lost(&mut self) -> Option<String> {
        self.0.state().lost.clone()
    }

    fn durable_mark(&self) -> Option<v1::DurableMark> {
        self.0.state().mark.clone()
    }

    fn set_durable_mark(&mut self, mark: &v1::DurableMark) -> Result<(), TrackError> {
        self.0.state().mark = Some(mark.clone());
        Ok(())
    }

    fn sent(&self) -> Option<u64> {
        self.0.state().sent
    }

    fn set_sent(&mut self, number: u64) -> Result<(), TrackError> {
        self.0.state().sent = Some(number);
        Ok(())
    }

    fn tracking(&self) -> String {
        "memory".to_owned()
    }

    fn stood(&mut self) -> bool {
        let state = self.0.state();
        let mut changed = state.issued.iter().chain(&state.completed).chain([&state.to_copy, &state.found]);
        !state.blind || (state.writes.is_empty() && changed.all(BlockSet::is_empty))
    }

    fn may_stand(&self, _limit: Duration) -> bool {
        let state = self.0.state();
        state.blind && state.to_copy.is_empty()
    }

    fn stand(&mut self, _limit: Duration) -> Result<(), TrackError> {
        let state = &mut *self.0.state();
        if state.blind {
            state.look();
        }
        Ok(())
    }
}

/// Whether something goes wrong, and which of so many kinds.
pub trait Trouble: Send + Sync {
    fn strikes(&self, kinds: u64) -> Option<u64>;
}

/// Freezes whoever asks [`Machine::is_frozen`] before writing.
struct MemoryFreezer {
    machine: Machine,
    since: Option<Instant>,
    trouble: Option<Arc<dyn Trouble>>,
}

#[async_trait]
impl Freezer for MemoryFreezer {
    async fn estimate(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(100))
    }

    fn write_back(&mut self) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(Duration::from_millis(200)))
    }

    async fn freeze(&mut self, limit: Duration) -> Result<Frozen, FreezeError> {
        let trouble = self.trouble.as_ref().and_then(|trouble| trouble.strikes(3));
        if trouble == Some(0) {
            return Err(FreezeError::NothingToFreeze { reason: "today nothing will".to_owned() });
        }
        let left_out = trouble == Some(1);
        // What is under way comes to its end before a file system stands still.
        let under_way: Vec<u64> = self.machine.state().writes.keys().copied().collect();
        if !left_out {
            under_way.into_iter().for_each(|write| self.machine.complete(write));
        }
        let now = Instant::now();
        self.since = Some(now);
        self.machine.state().freeze =
            Freeze { until: Some(now + limit), left_out, count: self.machine.freezes() + 1 };
        let stall = if trouble == Some(2) { limit * 2 } else { Duration::from_millis(30) };
        tokio::time::sleep(stall).await;
        Ok(Frozen { left_out: if left_out { vec!["/boot/efi".to_owned()] } else { Vec::new() } })
    }

    async fn thaw(&mut self) -> Thawed {
        let held_until_now = self.machine.is_frozen();
        self.machine.state().freeze.until = None;
        let longest = self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        Thawed { longest, held_until_now }
    }
}

/// One application, which says whether it was held.
struct MemoryHooks {
    machine: Machine,
    trouble: Option<Arc<dyn Trouble>>,
}

impl Hooks for MemoryHooks {
    fn installed(&self) -> Result<Vec<String>, HookError> {
        Ok(vec!["memory".to_owned()])
    }

    fn hold(&mut self, limits: HookLimits) -> BoxFuture<'static, Result<(), HookError>> {
        let trouble = self.trouble.as_ref().and_then(|trouble| trouble.strikes(3));
        let machine = self.machine.clone();
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(80)).await;
            // It fails, lets go before the point, or is as it should be (slow, perhaps).
            let hold = match trouble {
                Some(0) => return Err(memory_hook("no")),
                Some(1) => Duration::from_millis(10),
                _ => limits.hold,
            };
            machine.state().applications_held = Some(Instant::now() + hold);
            Ok(())
        })
    }

    fn release(&mut self) -> BoxFuture<'static, Result<(), HookError>> {
        let machine = self.machine.clone();
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(80)).await;
            let held = machine.state().is_held();
            machine.state().applications_held = None;
            if held { Ok(()) } else { Err(memory_hook("it was not held to the end")) }
        })
    }

    fn since_last(&self) -> Option<Duration> {
        None
    }
}

fn memory_hook(reason: &str) -> HookError {
    HookError { hook: "memory".to_owned(), reason: reason.to_owned() }
}

struct MemorySource(Machine);

#[async_trait]
impl BlockSource for MemorySource {
    fn disks(&self) -> Vec<v1::Disk> {
        self.0.state().disks.clone()
    }

    /// Other tasks may run between two blocks: a read is no instant.
    async fn read(&self, run: BlockRun) -> io::Result<Bytes> {
        let time = self.0.state().read_time;
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
        let mut data = Vec::with_capacity(run.blocks as usize * BLOCK);
        for block in (run.first..).take(run.blocks as usize) {
            let content = self.0.state().content.get(&(run.disk, block)).copied();
            let missing = || io::Error::new(io::ErrorKind::UnexpectedEof, "beyond the end of the disk");
            data.extend_from_slice(&fill(content.ok_or_else(missing)?));
            tokio::task::yield_now().await;
        }
        Ok(data.into())
    }
}
