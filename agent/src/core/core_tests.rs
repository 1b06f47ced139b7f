//! The replicator over a machine in memory and a process server that breaks connections at any message.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use lifeboat_replication::{
    env::{Entropy, Env, Micros, Wall},
    ids::{DiskSlot, ServerId},
    planted::Planted,
    wire::{CONNECTION_DEPTH, Connection, Dial, DialError, v1},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{Limits, Options, Parts, Replicator};
use crate::{
    edge::{FreezeError, Freezer, NoFreezer, Thawed},
    memory::{Address, Machine, Tag, tag},
};

/// splitmix64.
#[derive(Clone)]
struct Random(Arc<Mutex<u64>>);

impl Random {
    fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed)))
    }

    fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn millis(&self, limit: u64) -> Duration {
        Duration::from_millis(self.below(limit))
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}

impl Entropy for Random {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.chunks_mut(8).for_each(|part| {
            let length = part.len();
            part.copy_from_slice(&self.next().to_le_bytes()[..length]);
        });
    }
}

/// A date three hours off.
#[derive(Debug)]
struct VirtualWall(Instant);

impl Wall for VirtualWall {
    fn now(&self) -> Micros {
        Micros(i64::try_from(self.0.elapsed().as_micros()).unwrap() + 3 * 3_600_000_000)
    }
}

#[derive(Default)]
struct Vault {
    last: u64,
    content: BTreeMap<(u32, u64), Tag>,
    complete: bool,
    connection: u64,
    exact: u64,
    clean_at: i64,
    full_copy_reason: String,
    kinds: Vec<v1::RecordKind>,
    wrong: Vec<String>,
}

/// Hands out connections to a process server that commits records one after the other.
#[derive(Clone)]
struct Server {
    vault: Arc<Mutex<Vault>>,
    machine: Machine,
    random: Random,
    start: Instant,
    /// One in so many messages breaks the connection; 0: none.
    breaks: Arc<Mutex<u64>>,
    paused: bool,
    freezes_per_hour: u32,
}

#[async_trait]
impl Dial for Server {
    async fn dial(&self) -> Result<Connection, DialError> {
        sleep(self.random.millis(20)).await;
        let (up, server_up) = mpsc::channel(CONNECTION_DEPTH);
        let (server_down, down) = mpsc::channel(CONNECTION_DEPTH);
        let served = tokio::spawn(self.clone().serve(server_up, server_down));
        let vault = self.vault.clone();
        tokio::spawn(async move {
            if let Err(panic) = served.await {
                vault.lock().unwrap().wrong.push(panic.to_string());
            }
        });
        Ok(Connection { up, down })
    }
}

struct Pending {
    extents: Vec<((u32, u64), Tag)>,
    end: v1::End,
}

impl Server {
    fn breaks_now(&self) -> bool {
        let one_in = *self.breaks.lock().unwrap();
        one_in > 0 && self.random.below(one_in) == 0
    }

    fn now(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_micros()).unwrap()
    }

    async fn serve(self, mut up: mpsc::Receiver<v1::Up>, down: mpsc::Sender<v1::Down>) -> Option<()> {
        let send = |message| down.send(v1::Down { message: Some(message) });
        let Some(v1::up::Message::Hello(hello)) = up.recv().await?.message else { panic!("no hello") };
        let (connection, last, reason) = {
            let mut vault = self.vault.lock().unwrap();
            vault.connection += 1;
            (vault.connection, vault.last, std::mem::take(&mut vault.full_copy_reason))
        };
        let welcome = v1::Welcome {
            protocol: 1,
            epoch: 1,
            last_number: last,
            disks: hello
                .disks
                .iter()
                .zip(11..)
                .map(|(disk, slot)| v1::Disk { slot, ..disk.clone() })
                .collect(),
            settings: Some(v1::Settings {
                round_interval_micros: 1_000_000,
                paused: self.paused,
                max_freezes_per_hour: self.freezes_per_hour,
                freeze_timeout_micros: 5_000_000,
                rpo_threshold_micros: 900_000_000,
            }),
            full_copy_reason: reason,
            process_server_time_micros: self.now(),
            ..v1::Welcome::default()
        };
        send(v1::down::Message::Welcome(welcome)).await.ok()?;
        let mut extents = Vec::new();
        let mut next = last + 1;
        while let Some(message) = up.recv().await {
            if self.breaks_now() {
                return None;
            }
            match message.message? {
                v1::up::Message::Chunk(chunk) => {
                    assert_eq!(chunk.number, next);
                    assert_eq!(chunk.crc32c, crc32c::crc32c(&chunk.data));
                    let mut data = chunk.data.chunks_exact(4096);
                    for extent in &chunk.extents {
                        for block in 0..u64::from(extent.blocks) {
                            let tag =
                                if extent.zero { 0 } else { tag(data.next().unwrap()).expect("torn block") };
                            extents.push(((extent.disk_slot, extent.first_block + block), tag));
                        }
                    }
                }
                v1::up::Message::End(end) => {
                    assert_eq!(end.number, next);
                    next += 1;
                    send(v1::down::Message::Received(v1::Received { number: end.number })).await.ok()?;
                    sleep(self.random.millis(300)).await;
                    if self.breaks_now() {
                        return None;
                    }
                    let number = end.number;
                    if !self.commit(connection, Pending { extents: std::mem::take(&mut extents), end }) {
                        return None;
                    }
                    if self.breaks_now() {
                        return None;
                    }
                    let durable = v1::Durable { number, epoch: 1, chain: vec![7] };
                    send(v1::down::Message::Durable(durable)).await.ok()?;
                }
                v1::up::Message::Heartbeat(heartbeat) => {
                    self.vault.lock().unwrap().clean_at = heartbeat.clean_at_micros;
                    let answer = v1::HeartbeatAnswer {
                        agent_time_micros: heartbeat.agent_time_micros,
                        process_server_time_micros: self.now(),
                    };
                    send(v1::down::Message::HeartbeatAnswer(answer)).await.ok()?;
                }
                v1::up::Message::Hello(_) | v1::up::Message::SumsAsk(_) => {
                    panic!("a second hello, or a question")
                }
            }
        }
        None
    }

    fn commit(&self, connection: u64, record: Pending) -> bool {
        let mut vault = self.vault.lock().unwrap();
        if vault.connection != connection {
            return false;
        }
        vault.last = record.end.number;
        vault.content.extend(record.extents);
        let kind = record.end.kind();
        vault.kinds.push(kind);
        if kind == v1::RecordKind::Exact {
            vault.exact += 1;
            vault.complete |= record.end.complete;
            let wrong = self.compare(&vault, &record.end);
            vault.wrong.extend(wrong);
        }
        true
    }

    /// An exact record is the disk at its instant, writes in flight old or new.
    fn compare(&self, vault: &Vault, end: &v1::End) -> Option<String> {
        assert!(end.complete);
        let date = Micros(end.t0_micros - end.clock_offset_micros);
        let flip = self.machine.flip_at(date).expect("an exact record names a flip");
        for (address, tag) in &flip.content {
            let found = vault.content.get(&wire(*address)).copied();
            if !found.is_some_and(|found| flip.may_hold(*address, found)) {
                return Some(format!("record {}: {address:?} is {found:?} instead of {tag}", end.number));
            }
        }
        None
    }
}

fn wire((disk, block): Address) -> (u32, u64) {
    (disk.0 + 10, u64::from(block))
}

/// Freezes writers that look at it.
#[derive(Debug, Clone, Default)]
struct Frozen(Arc<Mutex<(bool, u32)>>);

#[async_trait]
impl Freezer for Frozen {
    async fn estimate(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(100))
    }

    async fn freeze(&mut self, _limit: Duration) -> Result<(), FreezeError> {
        sleep(Duration::from_millis(30)).await;
        let mut state = self.0.lock().unwrap();
        *state = (true, state.1 + 1);
        Ok(())
    }

    async fn thaw(&mut self) -> Thawed {
        self.0.lock().unwrap().0 = false;
        Thawed { longest: Duration::from_millis(40), held_until_now: true }
    }
}

struct World {
    frozen: Frozen,
    machine: Machine,
    server: Server,
    random: Random,
    env: Env,
    planted: Option<Planted>,
}

impl World {
    fn new(seed: u64, breaks: u64) -> Self {
        let random = Random::new(seed);
        let env = Env { wall: Arc::new(VirtualWall(Instant::now())), entropy: Arc::new(random.clone()) };
        let machine = Machine::new(env.wall.clone(), &[40, 24], 1000);
        let server = Server {
            vault: Arc::default(),
            machine: machine.clone(),
            random: random.clone(),
            start: Instant::now(),
            breaks: Arc::new(Mutex::new(breaks)),
            paused: false,
            freezes_per_hour: 0,
        };
        let frozen = Frozen::default();
        Self { machine, server, random, env, frozen, planted: None }
    }

    fn start(&self) -> tokio::task::JoinHandle<crate::edge::TrackError> {
        let parts = Parts {
            server: ServerId::from_random([5; 16]),
            dial: Arc::new(self.server.clone()),
            map: self.machine.map(),
            source: self.machine.source(),
            freezer: if self.server.freezes_per_hour > 0 {
                Box::new(self.frozen.clone())
            } else {
                Box::new(NoFreezer)
            },
            env: self.env.clone(),
        };
        let limits = Limits {
            chunk_bytes: 4 * 4096,
            batch_bytes: 8 * 4096,
            batch_covers_bytes: 12 * 4096,
            catch_up_bytes: 16 * 4096,
            window_bytes: 24 * 4096,
            window_records: 4,
            frozen_bytes: 4 * 4096,
        };
        let options = Options { limits, planted: self.planted, ..Options::default() };
        tokio::spawn(Replicator::new(parts, options).run())
    }

    /// Clean means in the vault.
    fn check(&self) -> Option<String> {
        let vault = self.server.vault.lock().unwrap();
        if let Some(wrong) = vault.wrong.first() {
            return Some(wrong.clone());
        }
        let content = self.machine.content();
        self.machine.clean().runs(1).find_map(|run| {
            let address = (run.disk, run.first);
            let (disk, found) = (content.get(&address), vault.content.get(&wire(address)));
            (disk != found)
                .then(|| format!("{address:?} counts as clean, but the vault has {found:?} of {disk:?}"))
        })
    }

    /// Writes, breaks and crashes, then rest. Returns what was wrong.
    async fn live(&self, steps: u64) -> Option<String> {
        let mut agent = self.start();
        let mut writing = Vec::new();
        for step in 1..=steps {
            sleep(self.random.millis(40)).await;
            let disk = 1 + u32::try_from(self.random.below(2)).unwrap();
            let hot = self.random.below(3) == 0;
            let block = u32::try_from(self.random.below(if hot { 3 } else { 24 })).unwrap();
            let address = (DiskSlot(disk), block);
            match self.random.below(100) {
                0 => {
                    agent.abort();
                    agent = self.start();
                }
                // Overlapping writes of one block have no order, so nobody issues them.
                1..50 if writing.iter().all(|(of, _)| *of != address) => {
                    writing.push((address, self.machine.issue(address, step)));
                }
                50..60 => writing.iter().for_each(|(_, id)| self.machine.land(*id)),
                60..90 if !writing.is_empty() => {
                    let (_, id) =
                        writing.remove(usize::try_from(self.random.below(writing.len() as u64)).unwrap());
                    self.machine.complete(id);
                }
                _ => {}
            }
            if let Some(wrong) = self.check() {
                return Some(wrong);
            }
        }
        writing.iter().for_each(|(_, id)| self.machine.complete(*id));
        *self.server.breaks.lock().unwrap() = 0;
        sleep(Duration::from_secs(90)).await;
        agent.abort();
        self.check().or_else(|| self.not_at_rest())
    }

    fn not_at_rest(&self) -> Option<String> {
        let clean = self.machine.clean().len();
        let vault = self.server.vault.lock().unwrap();
        let state = (clean, vault.complete, vault.exact > 0, vault.clean_at > 0);
        (state != (64, true, true, true))
            .then(|| format!("not at rest: clean, complete, exact, clean at: {state:?}"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_break_or_crash_at_any_message_loses_nothing() {
    for seed in 0..60 {
        let world = World::new(seed, 4 + seed % 40);
        world.machine.set_read_time(Duration::from_millis(seed % 7));
        let wrong = world.live(300).await;
        assert_eq!(wrong, None, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn forgetting_on_received_is_found() {
    let mut found = false;
    for seed in 0..20 {
        let mut world = World::new(seed, 10);
        world.planted = Some(Planted::ForgetOnReceived);
        found |= world.live(300).await.is_some();
    }
    assert!(found);
}

#[tokio::test(start_paused = true)]
async fn the_first_point_comes_after_the_copy_even_if_nobody_writes() {
    let world = World::new(1, 0);
    let agent = world.start();
    sleep(Duration::from_secs(20)).await;
    agent.abort();
    let vault = world.server.vault.lock().unwrap();
    assert_eq!(vault.kinds.last(), Some(&v1::RecordKind::Exact));
    let copies = vault.kinds.iter().filter(|kind| **kind == v1::RecordKind::Copy).count();
    assert_eq!(vault.kinds.len(), copies + 1, "nothing else is sent: {:?}", vault.kinds);
    assert!(vault.clean_at > 15_000_000, "{}", vault.clean_at);
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_or_by_order_of_the_vault_everything_is_copied_again() {
    let world = World::new(2, 0);
    let agent = world.start();
    sleep(Duration::from_secs(20)).await;
    agent.abort();
    for reboot in [true, false] {
        match reboot {
            true => world.machine.reboot(),
            false => {
                world.server.vault.lock().unwrap().full_copy_reason = "the vault went back in time".to_owned()
            }
        }
        world.server.vault.lock().unwrap().content.clear();
        world.machine.write((DiskSlot(1), 3), 33);
        let agent = world.start();
        sleep(Duration::from_secs(20)).await;
        agent.abort();
        assert_eq!(world.check().or_else(|| world.not_at_rest()), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_server_sends_nothing_but_heartbeats() {
    let mut world = World::new(3, 0);
    world.server.paused = true;
    let agent = world.start();
    sleep(Duration::from_secs(20)).await;
    agent.abort();
    assert_eq!(world.server.vault.lock().unwrap().last, 0);
    assert_eq!(world.server.vault.lock().unwrap().connection, 1);
}

/// Writes four blocks over and over, faster than they can be read, unless frozen.
async fn hammer(machine: Machine, frozen: Frozen) {
    for tag in 1.. {
        sleep(Duration::from_millis(1)).await;
        if !frozen.0.lock().unwrap().0 {
            machine.write((DiskSlot(1), u32::try_from(tag % 4).unwrap()), tag);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_load_that_leaves_no_exact_round_gets_points_by_freezing_and_only_so_many() {
    for freezes_per_hour in [0, 2] {
        let mut world = World::new(4, 0);
        world.server.freezes_per_hour = freezes_per_hour;
        world.machine.set_read_time(Duration::from_millis(20));
        let agent = world.start();
        let load = tokio::spawn(hammer(world.machine.clone(), world.frozen.clone()));
        sleep(Duration::from_secs(300)).await;
        load.abort();
        agent.abort();
        let vault = world.server.vault.lock().unwrap();
        assert_eq!(vault.wrong, Vec::<String>::new());
        assert_eq!(vault.exact, u64::from(freezes_per_hour));
        assert_eq!(world.frozen.0.lock().unwrap().1, freezes_per_hour);
        let inexact = vault.kinds.iter().filter(|kind| **kind == v1::RecordKind::Inexact).count();
        assert!(inexact > 200, "rounds go on: {inexact}");
    }
}
