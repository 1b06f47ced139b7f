//! One schedule: starts the programs, lets faults happen, then stops them and waits for rest.
//!
//! One to three servers share process servers, appliers, store and network; each has an agent, a load, an oracle and, after
//! the first, dice of its own.

mod hostile;
mod programs;
mod rest;
mod server;
mod sharing;
mod strikes;

use std::{
    cell::{Cell, RefCell},
    sync::{Arc, Mutex},
    time::Duration,
};

use lifeboat_agent::memory::Machine;
use lifeboat_process_server::core::spool::MemSpool;
use lifeboat_replication::{
    env::Env, keys::DataKeys, planted::Planted, store::model::ModelStore, vault::Vault,
};
use tokio::{sync::watch, time::Instant};

use self::{
    server::{Policy, Server, Writing},
    sharing::Sharer,
};
use crate::{
    env::{NodeClock, env},
    faults::{Class, Dice},
    load::{Load, Simpler},
    net::{Line, Net, Outcome},
    oracle::Oracle,
    retention::Retain,
    rng::Rng,
    spool::SimSpool,
    store::{Behind, NodeWay},
    wire::{Certificates, Wire},
};

const APPLIERS: usize = 2;

/// What is run: everything follows from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Schedule {
    pub seed: u64,
    pub wire: Wire,
    pub planted: Option<Planted>,
    /// Fault classes that are switched off although the seed has them.
    pub off: Vec<Class>,
    /// The load made simpler than the seed has it.
    pub simpler: Vec<Simpler>,
    /// Prints every step.
    pub trace: bool,
}

impl Schedule {
    pub fn of(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// The seed over this wire.
    pub fn over(wire: Wire, seed: u64) -> Self {
        Self { seed, wire, ..Self::default() }
    }

    /// The faults and the load that the seed draws.
    pub fn drawn(&self) -> (Dice, Load) {
        let rng = Rng::new(self.seed);
        let load = Load::draw(&rng.named("load"), &self.simpler);
        (Dice::draw(&rng.named("faults"), &self.off), load)
    }

    pub fn run(&self) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        match runtime {
            Ok(runtime) => runtime.block_on(self.play()),
            Err(error) => {
                let net = Net::new(Rng::new(0), Dice::draw(&Rng::new(0), Class::ALL), 0, 0, false);
                net.fail(error.to_string());
                net.outcome()
            }
        }
    }

    async fn play(&self) -> Outcome {
        let world = World::new(self);
        world.hostile().await;
        let mut outcome = world.net.outcome();
        for server in world.servers.iter().skip(1) {
            outcome.struck.iter_mut().zip(server.dice.struck()).for_each(|(all, own)| *all += own);
        }
        outcome
    }
}

pub(crate) struct World {
    net: Arc<Net>,
    rng: Rng,
    load: Load,
    retain: Retain,
    planted: Option<Planted>,
    wire: Wire,
    /// Of the servers, on a wire of bytes.
    certificates: Vec<Arc<Certificates>>,
    servers: Vec<Server>,
    /// Of the process servers, then of the appliers.
    clocks: Vec<NodeClock>,
    /// The first data key, then both after a rotation.
    keys: [Arc<DataKeys>; 2],
    keys_rotated: Cell<bool>,
    model: ModelStore,
    cache: ModelStore,
    spools: Vec<Arc<SimSpool>>,
    /// Of appliers that share the servers by leases.
    sharers: RefCell<Vec<Sharer>>,
}

impl World {
    fn new(schedule: &Schedule) -> Self {
        let rng = Rng::new(schedule.seed);
        let (dice, load) = schedule.drawn();
        if schedule.trace {
            println!("faults per mille: {:?}\n{load:?}", dice.chances());
        }
        let net = Net::new(rng.named("network"), dice, load.process_servers, load.servers, schedule.trace);
        let began = net.began;
        let clock = |node: &str| {
            NodeClock::new(began, rng.named("clocks").named(node).below(20_000_000) as i64 - 10_000_000)
        };
        let agent_clock = clock("agent");
        let nodes = load.process_servers + APPLIERS;
        let clocks = (0..nodes).map(|node| clock(&node.to_string())).collect();
        let oracle_env = env(&agent_clock, rng.named("oracle"));
        let first_key = DataKeys::generate(&*oracle_env.entropy);
        let keys = [Arc::new(first_key.clone()), Arc::new(first_key.rotated(&*oracle_env.entropy))];
        let model = ModelStore::new().list_in_pages_of(load.list_page);
        let cache = ModelStore::new().list_in_pages_of(load.list_page);
        let vault = Vault {
            store: Arc::new(model.clone()),
            cache: Arc::new(cache.clone()),
            keys: keys[1].clone(),
            id: "vault".to_owned(),
        };
        let retain = Retain::draw(&rng.named("retention"), load.point_interval_ms);
        let world = rng.named("world");
        let first =
            Origin { rng: world.clone(), dice: net.dice.clone(), load: load.clone(), clock: agent_clock };
        let others = (1..load.servers).map(|number| {
            let rng = rng.named(&format!("server {number}"));
            Origin {
                dice: Arc::new(Dice::draw(&rng.named("faults"), &schedule.off)),
                load: Load::draw(&rng.named("load"), &schedule.simpler),
                clock: clock(&format!("agent {number}")),
                rng,
            }
        });
        let origins: Vec<_> = std::iter::once(first).chain(others).collect();
        let mut servers = Vec::new();
        for (number, origin) in origins.into_iter().enumerate() {
            let env =
                if number == 0 { oracle_env.clone() } else { env(&origin.clock, origin.rng.named("oracle")) };
            servers.push(origin.server(number, &net, &load, &vault, &model, &retain, env));
        }
        let bytes = schedule.wire != Wire::Messages;
        let certificates = servers.iter().filter(|_| bytes).filter_map(|server: &Server| {
            Certificates::of(&server.id).map(Arc::new).map_err(|why| net.fail(why)).ok()
        });
        let certificates = certificates.collect();
        let spool = |_| Arc::new(SimSpool { volume: MemSpool::default(), net: net.clone() });
        let spools = (0..load.process_servers).map(spool).collect();
        Self {
            net,
            rng: world,
            load,
            retain,
            planted: schedule.planted,
            wire: schedule.wire,
            certificates,
            servers,
            clocks,
            keys,
            keys_rotated: Cell::new(false),
            model,
            cache,
            spools,
            sharers: RefCell::new((0..APPLIERS).map(|_| Sharer::default()).collect()),
        }
    }

    fn env(&self, clock: &NodeClock) -> Env {
        env(clock, self.rng.fork())
    }

    /// The vault as a node sees it: process servers first, then appliers, then the operator.
    fn vault(&self, node: usize) -> Vault {
        let applier = (self.load.process_servers..self.load.process_servers + APPLIERS).contains(&node);
        let tasks = self.load.leases && applier;
        let store =
            |model: &ModelStore| Behind(NodeWay { model: model.clone(), net: self.net.clone(), node, tasks });
        Vault {
            store: Arc::new(store(&self.model)),
            cache: Arc::new(store(&self.cache)),
            keys: self.keys[usize::from(self.keys_rotated.get())].clone(),
            id: "vault".to_owned(),
        }
    }
}

/// What a server is made of.
struct Origin {
    rng: Rng,
    dice: Arc<Dice>,
    load: Load,
    clock: NodeClock,
}

impl Origin {
    #[allow(clippy::too_many_arguments, reason = "what all servers share, once")]
    fn server(
        self,
        number: usize,
        net: &Arc<Net>,
        shared: &Load,
        vault: &Vault,
        model: &ModelStore,
        retain: &Retain,
        env: Env,
    ) -> Server {
        let Self { rng, dice, load, clock } = self;
        let machine = Machine::new(Arc::new(clock.clone()), &load.disk_blocks, 4000);
        let id = server::id(vault, number, shared.leases.then_some(retain.policy), &env);
        let journal = Duration::from_secs(retain.policy.journal_seconds);
        net.watched_by(Oracle::new(
            vault.clone(),
            model.clone(),
            id.clone(),
            number,
            env,
            machine.clone(),
            journal,
        ));
        Server {
            number,
            id,
            line: Line { net: net.clone(), server: number },
            rng,
            dice,
            machine,
            clock,
            assignments: (0..shared.process_servers).map(|_| watch::Sender::new(None)).collect(),
            policy: Cell::new(Policy { round_interval_ms: load.round_interval_ms, paused: false }),
            asked: Mutex::default(),
            writing: RefCell::new(Writing { value: 1, at: Instant::now() }),
            load,
        }
    }
}
