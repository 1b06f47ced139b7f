//! One schedule: starts the programs, lets faults happen, then stops them and waits for rest.

mod hostile;
mod programs;
mod rest;
mod strikes;

use std::{
    cell::Cell,
    sync::{Arc, Mutex},
    time::Duration,
};

use lifeboat_agent::memory::Machine;
use lifeboat_process_server::core::{Assigned, spool::MemSpool};
use lifeboat_replication::{
    env::Env,
    ids::{Epoch, ServerId},
    keys::DataKeys,
    planted::Planted,
    store::model::ModelStore,
    vault::Vault,
    wire::v1,
};
use tokio::sync::watch;

use crate::{
    env::{NodeClock, env},
    faults::{Class, Dice},
    load::{Load, Simpler},
    net::{Net, Outcome, lock},
    oracle::Oracle,
    retention::Retain,
    rng::Rng,
    spool::SimSpool,
    store::{Behind, NodeWay},
    wire::{Certificates, Wire},
};

const APPLIERS: usize = 2;
/// Points that are asked for at a time; older requests are taken back.
const MOST_ASKED: usize = 3;

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
        (Dice::draw(&rng.named("faults"), &self.off), Load::draw(&rng.named("load"), &self.simpler))
    }

    pub fn run(&self) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        match runtime {
            Ok(runtime) => runtime.block_on(self.play()),
            Err(error) => {
                let net = Net::new(Rng::new(0), Dice::draw(&Rng::new(0), Class::ALL), 0, false);
                net.fail(error.to_string());
                net.outcome()
            }
        }
    }

    async fn play(&self) -> Outcome {
        let world = World::new(self);
        world.hostile().await;
        world.net.outcome()
    }
}

pub(crate) struct World {
    net: Arc<Net>,
    rng: Rng,
    load: Load,
    retain: Retain,
    planted: Option<Planted>,
    wire: Wire,
    /// On a wire of bytes.
    certificates: Option<Arc<Certificates>>,
    machine: Machine,
    agent_clock: NodeClock,
    /// Of the process servers, then of the appliers.
    clocks: Vec<NodeClock>,
    server: ServerId,
    /// The first data key, then both after a rotation.
    keys: [Arc<DataKeys>; 2],
    keys_rotated: Cell<bool>,
    model: ModelStore,
    cache: ModelStore,
    spools: Vec<Arc<SimSpool>>,
    assignments: Vec<watch::Sender<Option<Assigned>>>,
    policy: Cell<Policy>,
    /// Points that are asked for.
    asked: Mutex<Vec<v1::PointRequest>>,
}

/// What the operator can change at any time.
#[derive(Debug, Clone, Copy)]
struct Policy {
    round_interval_ms: u64,
    paused: bool,
}

impl World {
    fn new(schedule: &Schedule) -> Self {
        let rng = Rng::new(schedule.seed);
        let (dice, load) = schedule.drawn();
        if schedule.trace {
            println!("faults per mille: {:?}\n{load:?}", dice.chances());
        }
        let net = Net::new(rng.named("network"), dice, load.process_servers, schedule.trace);
        let began = net.began;
        let clock = |node: &str| {
            NodeClock::new(began, rng.named("clocks").named(node).below(20_000_000) as i64 - 10_000_000)
        };
        let agent_clock = clock("agent");
        let nodes = load.process_servers + APPLIERS;
        let clocks = (0..nodes).map(|node| clock(&node.to_string())).collect();
        let machine = Machine::new(Arc::new(agent_clock.clone()), &load.disk_blocks, 4000);
        let oracle_env = env(&agent_clock, rng.named("oracle"));
        let first_key = DataKeys::generate(&*oracle_env.entropy);
        let keys = [Arc::new(first_key.clone()), Arc::new(first_key.rotated(&*oracle_env.entropy))];
        let mut id = [0; 16];
        oracle_env.entropy.fill(&mut id);
        let server = ServerId::from_random(id);
        let certificates = (schedule.wire != Wire::Messages).then(|| Certificates::of(&server));
        let certificates = certificates.and_then(|made| made.map_err(|why| net.fail(why)).ok()).map(Arc::new);
        let model = ModelStore::new().list_in_pages_of(load.list_page);
        let cache = ModelStore::new().list_in_pages_of(load.list_page);
        let vault = Vault {
            store: Arc::new(model.clone()),
            cache: Arc::new(cache.clone()),
            keys: keys[1].clone(),
            id: "vault".to_owned(),
        };
        let retain = Retain::draw(&rng.named("retention"), load.point_interval_ms);
        let journal = Duration::from_secs(retain.policy.journal_seconds);
        let oracle = Oracle::new(vault, model.clone(), server.clone(), oracle_env, machine.clone(), journal);
        net.watched_by(oracle);
        let assignments = (0..load.process_servers).map(|_| watch::Sender::new(None)).collect();
        let spool = |_| Arc::new(SimSpool { volume: MemSpool::default(), net: net.clone() });
        let spools = (0..load.process_servers).map(spool).collect();
        let policy = Cell::new(Policy { round_interval_ms: load.round_interval_ms, paused: false });
        Self {
            net,
            rng: rng.named("world"),
            load,
            retain,
            planted: schedule.planted,
            wire: schedule.wire,
            certificates,
            machine,
            agent_clock,
            clocks,
            server,
            keys,
            keys_rotated: Cell::new(false),
            model,
            cache,
            spools,
            assignments,
            policy,
            asked: Mutex::default(),
        }
    }

    fn env(&self, clock: &NodeClock) -> Env {
        env(clock, self.rng.fork())
    }

    /// The vault as a node sees it: process servers first, then appliers, then the operator.
    fn vault(&self, node: usize) -> Vault {
        let store =
            |model: &ModelStore| Behind(NodeWay { model: model.clone(), net: self.net.clone(), node });
        Vault {
            store: Arc::new(store(&self.model)),
            cache: Arc::new(store(&self.cache)),
            keys: self.keys[usize::from(self.keys_rotated.get())].clone(),
            id: "vault".to_owned(),
        }
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
    fn assign(&self, node: usize) {
        self.net.mark("assign", format_args!("{node}"));
        self.net.assign(node);
        for (other, assignment) in self.assignments.iter().enumerate() {
            assignment.send_replace((other == node).then(|| self.assigned()));
        }
    }

    /// The operator gives the server to `node`, and the others do not hear of it.
    fn assign_also(&self, node: usize, lost: Option<Epoch>) {
        self.net.mark("assign also", format_args!("{node}, given up: {lost:?}"));
        self.net.assign(node);
        if let Some(assignment) = self.assignments.get(node) {
            assignment.send_replace(Some(Assigned { lost, ..self.assigned() }));
        }
    }

    fn set_policy(&self, policy: Policy) {
        self.net.mark("policy", format_args!("{policy:?}"));
        self.policy.set(policy);
        self.tell_changes();
    }

    /// Somebody asks for a point; the operator passes that on to whoever has the server.
    fn ask_for_a_point(&self, number: u64) {
        let consistency = match self.net.dice.below(Class::PointRequest, 3) {
            0 => v1::Consistency::CrashConsistent,
            1 => v1::Consistency::FilesystemConsistent,
            _ => v1::Consistency::AppConsistent,
        };
        self.net.mark("point asked for", format_args!("{consistency:?}"));
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

    fn blocks(&self) -> u64 {
        self.load.disk_blocks.iter().map(|blocks| u64::from(*blocks)).sum()
    }
}
