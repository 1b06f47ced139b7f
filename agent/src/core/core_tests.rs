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
    edge::{NoFreezer, NoHooks},
    memory::{Address, Machine, Tag, Trouble, tag},
};

#[path = "group_tests.rs"]
mod group;
#[path = "shutdown_tests.rs"]
mod shutdown;

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

/// Half of all freezes.
impl Trouble for Random {
    fn strikes(&self, kinds: u64) -> Option<u64> {
        (self.below(2) == 0).then(|| self.below(kinds))
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

const PROGRAM_SHA256: [u8; 32] = [9; 32];

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
    ends: Vec<v1::End>,
    answers: BTreeMap<String, v1::PointAnswer>,
    shutdown: Option<v1::ShutdownAnswer>,
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
    paused: Arc<Mutex<bool>>,
    shutdown: Arc<Mutex<String>>,
    freezes_per_hour: u32,
    asked: Arc<Mutex<Vec<v1::PointRequest>>>,
    app_interval: Duration,
    group: Arc<Mutex<group::Script>>,
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

    fn settings(&self) -> v1::Settings {
        v1::Settings {
            round_interval_micros: 1_000_000,
            paused: *self.paused.lock().unwrap(),
            shutdown: self.shutdown.lock().unwrap().clone(),
            max_freezes_per_hour: self.freezes_per_hour,
            freeze_timeout_micros: 5_000_000,
            rpo_threshold_micros: 900_000_000,
            app_consistent_interval_micros: u64::try_from(self.app_interval.as_micros()).unwrap(),
            ..v1::Settings::default()
        }
    }

    fn ask(&self, id: &str, consistency: v1::Consistency) {
        let request = v1::PointRequest { id: id.to_owned(), consistency: consistency.into(), group: false };
        self.asked.lock().unwrap().push(request);
    }

    fn answer(&self, id: &str) -> v1::PointAnswer {
        self.vault.lock().unwrap().answers.get(id).cloned().expect("an answer")
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
            settings: Some(self.settings()),
            full_copy_reason: reason,
            process_server_time_micros: self.now(),
            points: Some(v1::PointRequests { requests: self.asked.lock().unwrap().clone() }),
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
                    {
                        let mut vault = self.vault.lock().unwrap();
                        vault.clean_at = heartbeat.clean_at_micros;
                        if heartbeat.agent_sha256 != PROGRAM_SHA256 {
                            vault.wrong.push("a heartbeat does not say which program runs".to_owned());
                        }
                        vault.shutdown = heartbeat.shutdown;
                        vault.answers.extend(heartbeat.points.into_iter().map(|one| (one.id.clone(), one)));
                    }
                    send(v1::down::Message::Settings(self.settings())).await.ok()?;
                    if let Some(order) = self.prepare_group() {
                        send(v1::down::Message::Group(order)).await.ok()?;
                    }
                    let requests = self.asked.lock().unwrap().clone();
                    send(v1::down::Message::Points(v1::PointRequests { requests })).await.ok()?;
                    let answer = v1::HeartbeatAnswer {
                        agent_time_micros: heartbeat.agent_time_micros,
                        process_server_time_micros: self.now(),
                    };
                    send(v1::down::Message::HeartbeatAnswer(answer)).await.ok()?;
                }
                v1::up::Message::Group(answer) => {
                    if let Some(order) = self.order_group(answer).await {
                        send(v1::down::Message::Group(order)).await.ok()?;
                    }
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
        vault.ends.push(record.end.clone());
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
        if end.consistency() == v1::Consistency::AppConsistent && !flip.held {
            return Some(format!(
                "record {} is said to be application-consistent and nothing was held",
                end.number
            ));
        }
        if end.consistency() != v1::Consistency::CrashConsistent && !flip.frozen {
            return Some(format!("record {} is said to be consistent and nothing was frozen", end.number));
        }
        None
    }
}

fn wire((disk, block): Address) -> (u32, u64) {
    (disk.0 + 10, u64::from(block))
}

struct World {
    machine: Machine,
    server: Server,
    random: Random,
    env: Env,
    planted: Option<Planted>,
    /// Freezes fail, expire and leave file systems out.
    hostile: bool,
    hooks: bool,
    power: Option<Arc<dyn crate::edge::Power>>,
}

impl World {
    fn trouble(&self) -> Option<Arc<dyn Trouble>> {
        self.hostile.then(|| Arc::new(self.random.clone()) as Arc<dyn Trouble>)
    }

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
            paused: Arc::default(),
            shutdown: Arc::default(),
            freezes_per_hour: 0,
            asked: Arc::default(),
            app_interval: Duration::ZERO,
            group: Arc::default(),
        };
        Self { machine, server, random, env, planted: None, hostile: false, hooks: false, power: None }
    }

    fn start(&self) -> tokio::task::JoinHandle<crate::edge::TrackError> {
        let parts = Parts {
            server: ServerId::from_random([5; 16]),
            dial: Arc::new(self.server.clone()),
            map: self.machine.map(),
            source: self.machine.source(),
            freezer: if self.server.freezes_per_hour > 0 {
                self.machine.freezer(self.trouble())
            } else {
                Box::new(NoFreezer)
            },
            hooks: match self.hooks {
                true => self.machine.hooks(self.trouble()),
                false => Box::new(NoHooks),
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
        let options = Options {
            machine: super::Machine { program_sha256: PROGRAM_SHA256.to_vec(), ..Default::default() },
            limits,
            planted: self.planted,
            power: self.power.clone(),
            ..Options::default()
        };
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
                1 => {
                    agent.abort();
                    self.machine.orderly_reboot();
                    writing.clear();
                    agent = self.start();
                }
                // Overlapping writes of one block have no order, so nobody issues them.
                2..50 if !self.machine.is_frozen() && writing.iter().all(|(of, _)| *of != address) => {
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

/// The records and the chain that its marks know of are all in the log: only that the log has more gives it away.
#[tokio::test(start_paused = true)]
async fn a_machine_put_back_to_an_earlier_state_is_compared() {
    let world = World::new(4, 0);
    let agent = world.start();
    sleep(Duration::from_secs(20)).await;
    agent.abort();
    let snapshot = world.machine.snapshot();
    let agent = world.start();
    world.machine.write((DiskSlot(1), 3), 33);
    sleep(Duration::from_secs(20)).await;
    agent.abort();
    world.machine.put_back(snapshot);
    assert_ne!(world.check(), None, "the vault has what the disk does not have any more");
    let agent = world.start();
    sleep(Duration::from_secs(20)).await;
    agent.abort();
    assert_eq!(world.check().or_else(|| world.not_at_rest()), None);
}

#[tokio::test(start_paused = true)]
async fn a_paused_server_sends_nothing_but_heartbeats() {
    let world = World::new(3, 0);
    *world.server.paused.lock().unwrap() = true;
    let agent = world.start();
    sleep(Duration::from_secs(20)).await;
    agent.abort();
    assert_eq!(world.server.vault.lock().unwrap().last, 0);
    assert_eq!(world.server.vault.lock().unwrap().connection, 1);
}

/// Writes four blocks over and over, faster than they can be read, unless frozen.
async fn hammer(machine: Machine) {
    for tag in 1.. {
        sleep(Duration::from_millis(1)).await;
        if !machine.is_frozen() {
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
        let load = tokio::spawn(hammer(world.machine.clone()));
        sleep(Duration::from_secs(300)).await;
        load.abort();
        agent.abort();
        let vault = world.server.vault.lock().unwrap();
        assert_eq!(vault.wrong, Vec::<String>::new());
        assert_eq!(vault.exact, u64::from(freezes_per_hour));
        assert_eq!(world.machine.freezes(), u64::from(freezes_per_hour));
        let inexact = vault.kinds.iter().filter(|kind| **kind == v1::RecordKind::Inexact).count();
        assert!(inexact > 200, "rounds go on: {inexact}");
    }
}

/// Looks every three seconds.
async fn looks(machine: Machine) {
    loop {
        sleep(Duration::from_secs(3)).await;
        machine.look();
    }
}

#[tokio::test(start_paused = true)]
async fn a_map_that_only_looks_gets_points_when_nobody_writes_and_else_by_standing_still() {
    for freezes_per_hour in [0, 2] {
        let mut world = World::new(9, 0);
        world.server.freezes_per_hour = freezes_per_hour;
        world.machine.blind();
        let agent = world.start();
        let looking = tokio::spawn(looks(world.machine.clone()));
        let load = tokio::spawn(hammer(world.machine.clone()));
        sleep(Duration::from_secs(300)).await;
        load.abort();
        let busy = world.server.vault.lock().unwrap().exact;
        assert_eq!(busy, u64::from(freezes_per_hour), "one for each freeze, and no other");
        assert_eq!(world.machine.freezes(), u64::from(freezes_per_hour));
        sleep(Duration::from_secs(20)).await;
        agent.abort();
        looking.abort();
        assert_eq!(world.check(), None);
        let vault = world.server.vault.lock().unwrap();
        assert!(vault.exact > busy, "it is quiet");
        let inexact = vault.kinds.iter().filter(|kind| **kind == v1::RecordKind::Inexact).count();
        assert!(inexact > 50, "what is found is sent: {inexact}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_map_that_only_looks_looks_for_a_consistent_point_that_is_asked_for() {
    let mut world = World::new(10, 0);
    world.server.freezes_per_hour = 1;
    world.machine.blind();
    let agent = world.start();
    let looking = tokio::spawn(looks(world.machine.clone()));
    let load = tokio::spawn(hammer(world.machine.clone()));
    sleep(Duration::from_secs(20)).await;
    world.server.ask("a", v1::Consistency::FilesystemConsistent);
    sleep(Duration::from_secs(5)).await;
    load.abort();
    looking.abort();
    agent.abort();
    let answer = world.server.answer("a");
    assert_eq!(answer.consistency(), v1::Consistency::FilesystemConsistent, "{answer:?}");
    assert_eq!(world.server.vault.lock().unwrap().wrong, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_point_that_is_asked_for_comes_at_once_and_once_even_if_nobody_writes() {
    let world = World::new(5, 0);
    let agent = world.start();
    sleep(Duration::from_secs(20)).await;
    let before = world.server.vault.lock().unwrap().last;
    world.server.ask("a", v1::Consistency::CrashConsistent);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(world.server.answer("a").number, before + 1);
    assert_eq!(world.server.answer("a").consistency(), v1::Consistency::CrashConsistent);
    sleep(Duration::from_secs(20)).await;
    agent.abort();
    assert_eq!(world.server.vault.lock().unwrap().last, before + 1, "the same id asks for nothing more");
}

#[tokio::test(start_paused = true)]
async fn a_consistent_point_is_one_record_of_frozen_file_systems() {
    let mut world = World::new(6, 0);
    world.server.freezes_per_hour = 1;
    let agent = world.start();
    let load = tokio::spawn(hammer(world.machine.clone()));
    sleep(Duration::from_secs(20)).await;
    world.server.ask("a", v1::Consistency::FilesystemConsistent);
    sleep(Duration::from_secs(5)).await;
    let answer = world.server.answer("a");
    assert_eq!(answer.consistency(), v1::Consistency::FilesystemConsistent, "{answer:?}");
    assert_eq!((answer.longest_freeze_micros, answer.reason.as_str()), (30_000, ""));
    let end = world
        .server
        .vault
        .lock()
        .unwrap()
        .ends
        .iter()
        .find(|end| end.number == answer.number)
        .unwrap()
        .clone();
    assert_eq!(end.consistency(), v1::Consistency::FilesystemConsistent);
    world.server.ask("b", v1::Consistency::FilesystemConsistent);
    sleep(Duration::from_secs(5)).await;
    load.abort();
    agent.abort();
    let answer = world.server.answer("b");
    assert_eq!(
        (answer.consistency(), answer.reason.as_str()),
        (v1::Consistency::CrashConsistent, "FreezesSpent")
    );
    assert!(answer.number > 0, "a crash-consistent point is better than none: {answer:?}");
    assert_eq!(world.machine.freezes(), 1);
    assert_eq!(world.server.vault.lock().unwrap().wrong, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_point_cannot_be_had_while_paused_or_copying_and_the_answer_says_so() {
    let world = World::new(7, 0);
    world.machine.set_read_time(Duration::from_millis(900));
    world.server.ask("a", v1::Consistency::FilesystemConsistent);
    let agent = world.start();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(world.server.answer("a").reason, "CopyNotComplete");
    *world.server.paused.lock().unwrap() = true;
    world.server.ask("b", v1::Consistency::CrashConsistent);
    sleep(Duration::from_secs(10)).await;
    assert_eq!((world.server.answer("b").number, world.server.answer("b").reason.as_str()), (0, "Paused"));
    agent.abort();
}

#[tokio::test(start_paused = true)]
async fn a_pause_ends_the_record_under_way_and_loses_nothing() {
    let world = World::new(8, 0);
    world.machine.set_read_time(Duration::from_millis(1500));
    let agent = world.start();
    sleep(Duration::from_secs(4)).await;
    *world.server.paused.lock().unwrap() = true;
    sleep(Duration::from_secs(10)).await;
    let last = world.server.vault.lock().unwrap().last;
    world.machine.write((DiskSlot(1), 3), 33);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(world.server.vault.lock().unwrap().last, last, "nothing is sent");
    assert!(world.machine.clean().len() < 64);
    *world.server.paused.lock().unwrap() = false;
    sleep(Duration::from_secs(90)).await;
    agent.abort();
    assert_eq!(world.check().or_else(|| world.not_at_rest()), None);
}

#[tokio::test(start_paused = true)]
async fn every_request_is_answered_whatever_breaks_and_consistent_means_frozen() {
    let mut reached = BTreeMap::new();
    for seed in 0..40 {
        let mut world = World::new(1000 + seed, 30 + seed % 40);
        (world.hostile, world.hooks, world.server.freezes_per_hour) = (true, true, 120);
        let asking = async {
            for id in 0..6 {
                let wanted = match world.random.below(3) {
                    0 => v1::Consistency::CrashConsistent,
                    1 => v1::Consistency::AppConsistent,
                    _ => v1::Consistency::FilesystemConsistent,
                };
                world.server.ask(&id.to_string(), wanted);
                sleep(world.random.millis(3000)).await;
            }
        };
        let (wrong, ()) = tokio::join!(world.live(300), asking);
        assert_eq!(wrong, None, "seed {seed}");
        for id in 0..6 {
            let answer = world.server.answer(&id.to_string());
            let point = answer.number > 0;
            assert!(point || !answer.reason.is_empty(), "seed {seed}: {answer:?}");
            *reached
                .entry((point.then(|| answer.consistency().as_str_name()), answer.reason))
                .or_insert(0) += 1;
        }
    }
    for reason in ["", "NotAllFrozen", "FreezeExpired", "FreezeFailed", "CopyNotComplete", "HookFailed"] {
        assert!(reached.keys().any(|(_, seen)| seen == reason), "{reason} was never seen: {reached:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn trusting_a_freeze_that_the_watchdog_ended_is_found() {
    let mut found = false;
    for seed in 0..20 {
        let mut world = World::new(seed, 0);
        (world.hostile, world.server.freezes_per_hour) = (true, 120);
        world.planted = Some(Planted::TrustExpiredFreeze);
        for id in 0..8 {
            world.server.ask(&id.to_string(), v1::Consistency::FilesystemConsistent);
        }
        let later = async {
            for id in 8..20 {
                sleep(Duration::from_millis(1500)).await;
                world.server.ask(&id.to_string(), v1::Consistency::FilesystemConsistent);
            }
        };
        found |= tokio::join!(world.live(900), later).0.is_some();
    }
    assert!(found);
}

#[tokio::test(start_paused = true)]
async fn an_application_consistent_point_is_taken_while_the_applications_are_held() {
    let mut world = World::new(9, 0);
    (world.hooks, world.server.freezes_per_hour) = (true, 10);
    let agent = world.start();
    let load = tokio::spawn(hammer(world.machine.clone()));
    sleep(Duration::from_secs(20)).await;
    world.server.ask("a", v1::Consistency::AppConsistent);
    sleep(Duration::from_secs(5)).await;
    let answer = world.server.answer("a");
    assert_eq!(
        (answer.consistency(), answer.reason.as_str()),
        (v1::Consistency::AppConsistent, ""),
        "{answer:?}"
    );
    load.abort();
    agent.abort();
    assert_eq!(world.server.vault.lock().unwrap().wrong, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn without_hooks_the_file_systems_are_frozen_and_the_answer_says_what_is_missing() {
    let mut world = World::new(10, 0);
    world.server.freezes_per_hour = 10;
    let agent = world.start();
    sleep(Duration::from_secs(20)).await;
    world.server.ask("a", v1::Consistency::AppConsistent);
    sleep(Duration::from_secs(5)).await;
    agent.abort();
    let answer = world.server.answer("a");
    assert_eq!(answer.consistency(), v1::Consistency::FilesystemConsistent, "{answer:?}");
    assert_eq!(answer.reason, "HooksMissing");
}

#[tokio::test(start_paused = true)]
async fn the_policy_gets_its_application_consistent_points_by_the_clock() {
    let mut world = World::new(11, 0);
    (world.hooks, world.server.freezes_per_hour) = (true, 100);
    world.server.app_interval = Duration::from_secs(60);
    let agent = world.start();
    sleep(Duration::from_secs(200)).await;
    agent.abort();
    let vault = world.server.vault.lock().unwrap();
    let app = vault.ends.iter().filter(|end| end.consistency() == v1::Consistency::AppConsistent).count();
    assert!((3..=4).contains(&app), "{app}");
    assert!(vault.answers.is_empty(), "nobody had asked: {:?}", vault.answers);
}

#[test]
fn every_disk_that_has_the_same_trouble_is_named() {
    let refused =
        |path: &str| super::issue("DiskTooLarge", "Error", format!("{path} is too large"), "leave it out");
    let all = super::by_code(&[refused("/dev/sda"), refused("/dev/sdb")]);
    let told = all.get("DiskTooLarge").map(|issue| (issue.message.as_str(), issue.remedy.as_str()));
    assert_eq!(told, Some(("/dev/sda is too large; /dev/sdb is too large", "leave it out")));
}
