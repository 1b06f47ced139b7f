//! One schedule: starts the programs, lets faults happen, then stops them and waits for rest.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use lifeboat_agent::{
    core::{Limits, Options as AgentOptions, Parts, PlantedFaults as AgentFaults, Replicator},
    edge::NoFreezer,
    memory::Machine,
};
use lifeboat_applier::core::{Applier, Options as ApplierOptions};
use lifeboat_process_server::core::{
    Assigned, Ingest, MemoryBudget, Shared,
    sealing::InlineSealer,
    spool::{MemSpool, SpoolSpace},
};
use lifeboat_replication::{
    env::Env,
    ids::{DiskSlot, ServerId},
    keys::DataKeys,
    log::{LogOptions, LogWriter, Order, PlantedFaults},
    store::model::ModelStore,
    vault::Vault,
    wire::v1,
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    env::{NodeClock, env},
    faults::{Faults, Load},
    net::{Net, lock},
    oracle::{Oracle, Reached},
    rng::Rng,
    store::NodeStore,
    wire::SimDial,
};

/// Faults happen for this long, in virtual time: several lease terms.
const HOSTILE: Duration = Duration::from_secs(150);
/// After them everything must have come to rest within this time: lease terms, the longest pauses of every program.
const REST: Duration = Duration::from_secs(600);
const APPLIERS: usize = 2;

/// What became of a schedule.
#[derive(Debug)]
pub struct Outcome {
    pub bad: Option<String>,
    /// Hash of the trace: equal for equal seeds.
    pub digest: u64,
    pub steps: u64,
    pub reached: Reached,
}

/// A program that can be crashed and started again.
struct Node {
    task: JoinHandle<()>,
    /// Down until then.
    down_until: Option<Instant>,
}

struct World {
    net: Arc<Net>,
    rng: Rng,
    load: Load,
    planted: PlantedFaults,
    machine: Machine,
    agent_clock: NodeClock,
    clocks: Vec<NodeClock>,
    server: ServerId,
    keys: Arc<DataKeys>,
    model: ModelStore,
    cache: ModelStore,
    assignments: Vec<watch::Sender<Option<Assigned>>>,
}

/// Runs the schedule of `seed`.
pub fn run(seed: u64, planted: PlantedFaults, verbose: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    match runtime {
        Ok(runtime) => runtime.block_on(schedule(seed, planted, verbose)),
        Err(error) => {
            Outcome { bad: Some(error.to_string()), digest: 0, steps: 0, reached: Reached::default() }
        }
    }
}

async fn schedule(seed: u64, planted: PlantedFaults, verbose: bool) -> Outcome {
    let rng = Rng::new(seed);
    let (faults, load) = (Faults::draw(&rng.fork(1)), Load::draw(&rng.fork(2)));
    if verbose {
        println!("{faults:?}\n{load:?}");
    }
    let began = Instant::now();
    let spread = |purpose: u64| rng.fork(purpose).below(20_000_000) as i64 - 10_000_000;
    let agent_clock = NodeClock::new(began, spread(3));
    let clocks: Vec<_> =
        (0..load.process_servers).map(|node| NodeClock::new(began, spread(10 + node as u64))).collect();
    let machine = Machine::new(Arc::new(agent_clock.clone()), &load.disk_blocks, 4000);
    let oracle_env = env(&agent_clock, rng.fork(4));
    let keys = Arc::new(DataKeys::generate(&*oracle_env.entropy));
    let mut id = [0; 16];
    oracle_env.entropy.fill(&mut id);
    let server = ServerId::from_random(id);
    let (model, cache) = (ModelStore::new().list_in_pages_of(3), ModelStore::new());
    let net = Arc::new(Net {
        began,
        rng: rng.fork(5),
        faults: Mutex::new(faults.clone()),
        store_cuts: AtomicU32::new(0),
        agent_cuts: AtomicU32::new(0),
        assigned: AtomicUsize::new(0),
        listeners: Mutex::new(vec![None; load.process_servers]),
        oracle: Mutex::new(None),
        bad: Mutex::new(None),
        digest: AtomicU64::new(0xcbf2_9ce4_8422_2325),
        steps: AtomicU64::new(0),
        verbose,
    });
    let vault = Vault {
        store: Arc::new(model.clone()),
        cache: Arc::new(cache.clone()),
        keys: keys.clone(),
        id: "vault".to_owned(),
    };
    let oracle = Oracle::new(vault, model.clone(), server.clone(), oracle_env, machine.clone());
    *lock(&net.oracle) = Some(oracle);
    let assignments = (0..load.process_servers).map(|_| watch::Sender::new(None)).collect();
    let world = World {
        net: net.clone(),
        rng: rng.fork(6),
        load,
        planted,
        machine,
        agent_clock,
        clocks,
        server,
        keys,
        model,
        cache,
        assignments,
    };
    world.run(&faults).await;
    let reached = lock(&net.oracle).as_ref().map(|oracle| oracle.reached).unwrap_or_default();
    let bad = lock(&net.bad).clone();
    Outcome {
        bad,
        digest: net.digest.load(Ordering::Relaxed),
        steps: net.steps.load(Ordering::Relaxed),
        reached,
    }
}

impl World {
    fn env(&self, clock: &NodeClock) -> Env {
        env(clock, self.rng.fork(7))
    }

    fn vault(&self, node: usize) -> Vault {
        let store = |model: &ModelStore| NodeStore { model: model.clone(), net: self.net.clone(), node };
        Vault {
            store: Arc::new(store(&self.model)),
            cache: Arc::new(store(&self.cache)),
            keys: self.keys.clone(),
            id: "vault".to_owned(),
        }
    }

    fn log_options(&self) -> LogOptions {
        LogOptions { rotate_after_appends: self.load.rotate_after_appends, planted: self.planted }
    }

    fn assigned(&self) -> Assigned {
        let settings = v1::Settings {
            round_interval_micros: self.load.round_interval_ms * 1000,
            rpo_threshold_micros: 900_000_000,
            freeze_timeout_micros: 5_000_000,
            ..Default::default()
        };
        Assigned { display_name: "sim/server".to_owned(), settings, compression_level: 1 }
    }

    fn assign(&self, node: usize) {
        self.net.mark("assign", &node.to_string());
        self.net.assigned.store(node, Ordering::Relaxed);
        for (other, assignment) in self.assignments.iter().enumerate() {
            assignment.send_replace((other == node).then(|| self.assigned()));
        }
    }

    /// A process server: serves whenever the server is assigned to it.
    fn start_process_server(&self, node: usize) -> JoinHandle<()> {
        let (Some(clock), Some(assignment)) = (self.clocks.get(node), self.assignments.get(node)) else {
            return tokio::spawn(async {});
        };
        let shared = Shared {
            vault: self.vault(node),
            env: self.env(clock),
            name: format!("ps-{node}"),
            writer: format!("ps-{node}"),
            spool: Arc::new(MemSpool::default()),
            space: SpoolSpace::new(64 << 20),
            memory: MemoryBudget::new(32 << 20),
            sealer: Arc::new(InlineSealer),
            uploads: Arc::new(Semaphore::new(4)),
            log_options: self.log_options(),
        };
        let (net, server, mut assigned) = (self.net.clone(), self.server.clone(), assignment.subscribe());
        tokio::spawn(async move {
            loop {
                if assigned.wait_for(Option::is_some).await.is_err() {
                    return;
                }
                let (listener, connections) = mpsc::channel(4);
                net.listen(node, Some(listener));
                let ingest = Ingest::new(shared.clone(), server.clone(), assigned.clone());
                let ended = ingest.run(connections).await;
                net.mark("ingest ended", &format!("{node} {ended:?}"));
                net.listen(node, None);
            }
        })
    }

    fn start_agent(&self) -> JoinHandle<()> {
        let parts = Parts {
            server: self.server.clone(),
            dial: Arc::new(SimDial { net: self.net.clone(), server: self.server.to_string() }),
            map: self.machine.map(),
            source: self.machine.source(),
            freezer: Box::new(NoFreezer),
            env: self.env(&self.agent_clock),
        };
        let options = AgentOptions {
            limits: Limits {
                chunk_bytes: 4 * 4096,
                batch_bytes: 6 * 4096,
                batch_covers_bytes: 12 * 4096,
                catch_up_bytes: 24 * 4096,
                window_bytes: 40 * 4096,
                window_records: 6,
                frozen_bytes: 8 * 4096,
            },
            faults: AgentFaults { forget_on_received: self.planted.forget_on_received },
            ..Default::default()
        };
        let net = self.net.clone();
        tokio::spawn(async move {
            let error = Replicator::new(parts, options).run().await;
            net.fail(format!("the agent ended: {error}"));
        })
    }

    fn start_applier(&self, node: usize) -> JoinHandle<()> {
        let options = ApplierOptions {
            point_interval: Duration::from_secs(8),
            poll_interval: Duration::from_secs(1),
            ..Default::default()
        };
        let vault = self.vault(self.load.process_servers + node);
        tokio::spawn(Applier::new(vault, self.server.clone(), self.env(&self.agent_clock), options).run())
    }

    /// A failover closes the log and takes that back after a while: as an operator that keeps trying.
    fn start_failover(&self, run: u64) -> JoinHandle<()> {
        let vault = self.vault(self.load.process_servers + APPLIERS);
        let (server, env, options) = (self.server.clone(), self.env(&self.agent_clock), self.log_options());
        let (net, rng) = (self.net.clone(), self.rng.fork(8));
        tokio::spawn(async move {
            let run = format!("run-{run}");
            let keep = Duration::from_millis(rng.below(70_000));
            for order in [Order::Failover { run: run.clone() }, Order::Release { run: run.clone() }] {
                loop {
                    let taken = LogWriter::take_over(
                        &vault,
                        &server,
                        "failover",
                        &env,
                        order.clone(),
                        options.clone(),
                    );
                    match taken.await {
                        Ok(writer) => {
                            net.mark("failover", &format!("{order:?} in epoch {}", writer.state().epoch));
                            if rng.below(2) == 0 {
                                writer.release().await;
                            }
                            break;
                        }
                        Err(error) => {
                            net.mark("failover", &format!("{order:?}: {error}"));
                            sleep(Duration::from_secs(2)).await;
                        }
                    }
                }
                sleep(keep).await;
            }
        })
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

    async fn run(&self, faults: &Faults) {
        self.assign(0);
        let up = |task| Node { task, down_until: None };
        let mut servers: Vec<_> =
            (0..self.load.process_servers).map(|node| up(self.start_process_server(node))).collect();
        let mut appliers: Vec<_> = (0..APPLIERS).map(|node| up(self.start_applier(node))).collect();
        let mut agent = up(self.start_agent());
        let mut failover: Option<JoinHandle<()>> = None;
        let mut value = 1;
        let mut next_write = Instant::now();
        let mut heal = vec![None; self.load.process_servers];
        let began = Instant::now();
        while began.elapsed() < HOSTILE && !self.net.failed() {
            sleep(Duration::from_millis(20 + self.rng.below(260))).await;
            while next_write <= Instant::now() {
                self.write(value);
                value += 1;
                next_write += Duration::from_millis(1 + self.rng.below(2 * self.load.write_pause_ms));
            }
            self.net.ask(|oracle| oracle.clean_is_in_the_vault());
            self.revive(&mut servers, |world, node| world.start_process_server(node));
            self.revive(&mut appliers, |world, node| world.start_applier(node));
            self.revive(std::slice::from_mut(&mut agent), |world, _| world.start_agent());
            for (node, healed) in heal.iter_mut().enumerate() {
                if healed.is_some_and(|at| at <= Instant::now()) {
                    *healed = None;
                    self.net.store_cuts.fetch_and(!(1 << node), Ordering::Relaxed);
                    self.net.agent_cuts.fetch_and(!(1 << node), Ordering::Relaxed);
                }
            }
            let node = self.rng.below(self.load.process_servers as u64) as usize;
            if self.rng.permille(faults.process_server_crash) {
                self.crash("process server", servers.get_mut(node), node);
                self.net.listen(node, None);
            }
            if self.rng.permille(faults.applier_crash) {
                let node = self.rng.below(APPLIERS as u64) as usize;
                self.crash("applier", appliers.get_mut(node), node);
            }
            if self.rng.permille(faults.agent_crash) {
                self.crash("agent", Some(&mut agent), 0);
            }
            if self.rng.permille(faults.reboot) {
                self.crash("agent", Some(&mut agent), 0);
                self.machine.reboot();
                self.net.mark("reboot", "");
                self.net.count(|reached| reached.reboots += 1);
            }
            if self.rng.permille(faults.cut) {
                let which = 1 + self.rng.below(3);
                self.net.mark("cut", &format!("{node} {which}"));
                if which & 1 == 1 {
                    self.net.store_cuts.fetch_or(1 << node, Ordering::Relaxed);
                }
                if which & 2 == 2 {
                    self.net.agent_cuts.fetch_or(1 << node, Ordering::Relaxed);
                }
                if let Some(heal) = heal.get_mut(node) {
                    *heal = Some(Instant::now() + Duration::from_millis(500 + self.rng.below(50_000)));
                }
            }
            if self.rng.permille(faults.handover) {
                self.assign(node);
                self.net.count(|reached| reached.handovers += 1);
            }
            if self.rng.permille(faults.clock_jump) {
                let hours = self.rng.below(7) as i64 - 3;
                let clock = self.clocks.get(node).unwrap_or(&self.agent_clock);
                let clock = if self.rng.below(2) == 0 { clock } else { &self.agent_clock };
                clock.jump(hours * 3_600_000_000);
                self.net.mark("clock jump", &hours.to_string());
            }
            if failover.is_none() && self.rng.permille(faults.failover) {
                failover = Some(self.start_failover(value));
            }
        }
        self.rest(servers, appliers, agent, failover).await;
    }

    fn crash(&self, what: &str, node: Option<&mut Node>, number: usize) {
        let Some(node) = node.filter(|node| node.down_until.is_none()) else { return };
        self.net.mark("crash", &format!("{what} {number}"));
        self.net.count(|reached| reached.crashes += 1);
        node.task.abort();
        node.down_until = Some(Instant::now() + Duration::from_millis(50 + self.rng.below(12_000)));
    }

    fn revive(&self, nodes: &mut [Node], start: impl Fn(&Self, usize) -> JoinHandle<()>) {
        for (number, node) in nodes.iter_mut().enumerate() {
            match node.down_until {
                Some(until) if until <= Instant::now() => {
                    *node = Node { task: start(self, number), down_until: None };
                }
                None if node.task.is_finished() => {
                    self.net.fail(format!("a program ended by itself (node {number})"))
                }
                _ => {}
            }
        }
    }

    /// Faults stop: everything must come to rest, with nothing dirty and the vault equal to the disk.
    async fn rest(
        &self,
        mut servers: Vec<Node>,
        mut appliers: Vec<Node>,
        mut agent: Node,
        failover: Option<JoinHandle<()>>,
    ) {
        *lock(&self.net.faults) = Faults::default();
        self.net.store_cuts.store(0, Ordering::Relaxed);
        self.net.agent_cuts.store(0, Ordering::Relaxed);
        self.net.mark("faults stop", "");
        let began = Instant::now();
        let blocks: u64 = self.load.disk_blocks.iter().map(|blocks| u64::from(*blocks)).sum();
        while began.elapsed() < REST && !self.net.failed() {
            sleep(Duration::from_millis(700)).await;
            self.revive(&mut servers, |world, node| world.start_process_server(node));
            self.revive(&mut appliers, |world, node| world.start_applier(node));
            self.revive(std::slice::from_mut(&mut agent), |world, _| world.start_agent());
            let clean = self.machine.clean().len();
            let over = failover.as_ref().is_none_or(JoinHandle::is_finished);
            let rest = lock(&self.net.oracle).as_mut().map_or(Ok(()), Oracle::at_rest);
            if rest.is_ok() && over && clean == blocks {
                break;
            }
            if began.elapsed() + Duration::from_secs(2) > REST {
                let state = format!("{clean} of {blocks} blocks clean, failover over: {over}, {rest:?}");
                self.net.fail(format!("did not come to rest: {state}"));
            }
        }
        self.net.ask(Oracle::log_changed);
        self.net.ask(Oracle::points_changed);
        for _ in 0..3 {
            let pick = self.rng.next();
            self.net.ask(|oracle| oracle.index_agrees(pick));
        }
    }
}
