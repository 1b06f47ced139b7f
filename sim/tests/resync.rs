//! A resynchronization by checksums over the real agent, process server and applier, without faults: exactly what
//! differs travels, and afterwards the vault is the disk.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use lifeboat_agent::{
    core::{Options as AgentOptions, Parts, Replicator},
    edge::{NoFreezer, NoHooks},
    memory::{Address, Machine, Tag},
};
use lifeboat_applier::core::{Applier, Options as ApplierOptions, Step};
use lifeboat_process_server::core::{
    Assigned, Ingest, Shared, fair::FairSlots, sealing::InlineSealer, space::Space, spool::MemSpool,
    switchboard::Switchboard,
};
use lifeboat_replication::{
    blocks::BLOCK_BYTES,
    env::Env,
    ids::{DiskSlot, ServerId},
    keys::DataKeys,
    log::{LogOptions, history},
    store::{BlobStore as _, model::ModelStore},
    vault::{Vault, layout},
    wire::{Accepted, CONNECTION_DEPTH, Connection, Dial, DialError, v1},
};
use lifeboat_sim::{
    env::{NodeClock, env},
    rng::Rng,
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep},
};

/// Several rows each, the last one partial.
const DISKS: [u32; 2] = [700, 300];

struct Direct {
    listener: mpsc::Sender<Accepted>,
    server: String,
}

#[async_trait]
impl Dial for Direct {
    async fn dial(&self) -> Result<Connection, DialError> {
        let (up, server_up) = mpsc::channel(CONNECTION_DEPTH);
        let (server_down, down) = mpsc::channel(CONNECTION_DEPTH);
        let accepted = Accepted { up: server_up, down: server_down, server_id: self.server.clone() };
        self.listener
            .send(accepted)
            .await
            .map_err(|_| DialError::Unreachable { address: "here".into(), message: "gone".into() })?;
        Ok(Connection { up, down })
    }
}

struct Site {
    machine: Machine,
    model: ModelStore,
    vault: Vault,
    server: ServerId,
    env: Env,
    rng: Rng,
    listener: mpsc::Sender<Accepted>,
    applier: Applier,
    _assigned: watch::Sender<Option<Assigned>>,
}

impl Site {
    fn new(seed: u64) -> Self {
        let rng = Rng::new(seed);
        let clock = NodeClock::new(Instant::now(), 0);
        let env = env(&clock, rng.fork());
        let model = ModelStore::new();
        let vault = Vault {
            store: Arc::new(model.clone()),
            cache: Arc::new(model.clone()),
            keys: Arc::new(DataKeys::generate(&*env.entropy)),
            id: "vault".to_owned(),
        };
        let server = ServerId::from_random([7; 16]);
        let machine = Machine::new(Arc::new(clock), &DISKS, 10);
        let settings = v1::Settings { round_interval_micros: 1_000_000, ..Default::default() };
        let assigned = Assigned {
            display_name: "sim/server".to_owned(),
            settings,
            compression_level: 1,
            points: Vec::new(),
            lost: None,
        };
        let (assigned, assignment) = watch::channel(Some(assigned));
        let (listener, connections) = mpsc::channel(4);
        let shared = Shared {
            vault: vault.clone(),
            env: env.clone(),
            name: "ps".to_owned(),
            writer: "ps".to_owned(),
            spool: Arc::new(MemSpool::default()),
            space: Space::spool(64 << 20),
            memory: Space::memory(32 << 20),
            sealer: Arc::new(InlineSealer),
            uploads: FairSlots::long(4, 24 << 20),
            unspooled: Arc::new(Semaphore::new(1)),
            log_options: LogOptions::default(),
            groups: Switchboard::default(),
        };
        tokio::spawn(Ingest::new(shared, server.clone(), assignment).run(connections));
        let applier = Applier::new(vault.clone(), server.clone(), env.clone(), ApplierOptions::default());
        Self { machine, model, vault, server, env, rng, listener, applier, _assigned: assigned }
    }

    fn start_agent(&self) -> JoinHandle<()> {
        let parts = Parts {
            server: self.server.clone(),
            dial: Arc::new(Direct { listener: self.listener.clone(), server: self.server.to_string() }),
            map: self.machine.map(),
            source: self.machine.source(),
            freezer: Box::new(NoFreezer),
            hooks: Box::new(NoHooks),
            env: self.env.clone(),
        };
        tokio::spawn(async move {
            let error = Replicator::new(parts, AgentOptions::default()).run().await;
            panic!("the agent ended: {error}");
        })
    }

    fn any_block(&self) -> Address {
        let disk = self.rng.below(2) as usize;
        (DiskSlot(disk as u32 + 1), self.rng.below(u64::from(DISKS[disk])) as u32)
    }

    /// Until the agent has nothing left to send.
    async fn settle(&self) {
        let all: u64 = DISKS.iter().map(|blocks| u64::from(*blocks)).sum();
        for _ in 0..600 {
            sleep(Duration::from_millis(500)).await;
            if self.machine.clean().len() == all {
                // A round that proves it.
                sleep(Duration::from_secs(3)).await;
                return;
            }
        }
        panic!("the agent does not come to rest: {} of {all} blocks clean", self.machine.clean().len());
    }

    async fn apply(&mut self) {
        while self.applier.step().await.unwrap() != Step::CaughtUp {}
    }

    /// Data records behind `number`.
    async fn records_after(&self, number: u64) -> Vec<v1::Data> {
        let records = history(&self.vault, &self.server, &self.env).await.unwrap();
        records.into_iter().map(|(_, data)| data).filter(|data| data.number > number).collect()
    }

    async fn last_number(&self) -> u64 {
        self.records_after(0).await.last().map_or(0, |data| data.number)
    }

    /// The seed disks are the disks.
    async fn compare(&mut self) {
        self.apply().await;
        let content = self.machine.content();
        for (slot, blocks) in (1..).zip(DISKS) {
            let name = layout::seed_disk(&self.server, &format!("memory-{slot}"));
            let seed = self.model.get(&name, None, None).await.unwrap();
            for block in 0..blocks {
                let at = block as usize * BLOCK_BYTES as usize;
                let found = Tag::from_le_bytes(*seed[at..].first_chunk().unwrap());
                assert_eq!(Some(&found), content.get(&(DiskSlot(slot), block)), "disk {slot} block {block}");
            }
        }
    }

    async fn filled(seed: u64) -> Self {
        let mut site = Self::new(seed);
        for tag in 1..400 {
            site.machine.write(site.any_block(), tag);
        }
        let agent = site.start_agent();
        site.settle().await;
        site.apply().await;
        agent.abort();
        let _ = agent.await;
        site
    }

    /// Blocks that change while nothing is tracked.
    fn change_unseen(&self, changes: u64) -> BTreeSet<Address> {
        let before = self.machine.content();
        let mut changed = BTreeSet::new();
        for tag in 0..changes {
            let address = self.any_block();
            // Some become what they are, and zero.
            let tag = match tag % 4 {
                0 => 0,
                1 => before[&address],
                _ => 10_000 + tag,
            };
            self.machine.write_unseen(address, tag);
            changed.insert(address);
        }
        let after = self.machine.content();
        changed.into_iter().filter(|address| before[address] != after[address]).collect()
    }
}

fn run(seed: u64, test: impl AsyncFnOnce(u64)) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(test(seed));
}

#[test]
fn exactly_what_differs_travels_after_a_reboot() {
    for seed in 0..20 {
        run(seed, async |seed| {
            let mut site = Site::filled(seed).await;
            let last = site.last_number().await;
            site.machine.reboot();
            let changed = site.change_unseen(seed * 10);
            let agent = site.start_agent();
            site.settle().await;
            let records = site.records_after(last).await;
            let sent: u64 = records.iter().map(|data| data.changed_bytes).sum();
            assert_eq!(sent, changed.len() as u64 * BLOCK_BYTES, "seed {seed}: {records:?}");
            let point = records.last().unwrap();
            assert!(point.complete && point.kind() == v1::RecordKind::Exact, "seed {seed}: {point:?}");
            agent.abort();
            site.compare().await;
        });
    }
}

/// Records that the applier has not applied are not in the checksums: their blocks travel, whatever they hold.
#[test]
fn blocks_that_changed_after_the_checksums_record_count_as_different() {
    for seed in 0..10 {
        run(seed, async |seed| {
            let mut site = Site::filled(seed).await;
            let agent = site.start_agent();
            site.settle().await;
            let before = site.machine.content();
            let written: BTreeSet<_> = (0..20).map(|_| site.any_block()).collect();
            written.iter().for_each(|address| site.machine.write(*address, 77_000));
            site.settle().await;
            agent.abort();
            let _ = agent.await;
            let last = site.last_number().await;
            site.machine.reboot();
            // As they were when the checksums were made: a comparison with them alone would call them the same.
            written.iter().for_each(|address| site.machine.write_unseen(*address, before[address]));
            let agent = site.start_agent();
            site.settle().await;
            let records = site.records_after(last).await;
            let sent: u64 = records.iter().map(|data| data.changed_bytes).sum();
            assert_eq!(sent, written.len() as u64 * BLOCK_BYTES, "seed {seed}");
            agent.abort();
            site.compare().await;
        });
    }
}

/// Without checksums everything is copied, as before.
#[test]
fn without_checksums_everything_is_copied() {
    run(1, async |seed| {
        let mut site = Site::filled(seed).await;
        for slot in 1..=2 {
            let name = layout::seed_sum(&site.server, &format!("memory-{slot}"));
            site.model.delete(&name, None).await.unwrap();
        }
        let last = site.last_number().await;
        site.machine.reboot();
        site.change_unseen(30);
        let agent = site.start_agent();
        site.settle().await;
        let sent: u64 = site.records_after(last).await.iter().map(|data| data.changed_bytes).sum();
        assert_eq!(sent, DISKS.iter().map(|blocks| u64::from(*blocks)).sum::<u64>() * BLOCK_BYTES);
        agent.abort();
        site.compare().await;
    });
}

/// The agent is killed again and again: what was found the same is not looked at again, and nothing is left out.
#[test]
fn a_comparison_goes_on_after_every_kill_of_the_agent() {
    for seed in 0..10 {
        run(seed, async |seed| {
            let mut site = Site::filled(seed).await;
            site.machine.reboot();
            site.change_unseen(200);
            site.machine.set_read_time(Duration::from_millis(20));
            for kill in 0..12 {
                let agent = site.start_agent();
                sleep(Duration::from_millis(5 + site.rng.below(60 + kill * 20))).await;
                agent.abort();
                let _ = agent.await;
            }
            let agent = site.start_agent();
            site.settle().await;
            agent.abort();
            site.compare().await;
        });
    }
}
