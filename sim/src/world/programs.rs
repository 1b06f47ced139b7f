//! Starts the real programs over the simulated edges.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::join_all};
use lifeboat_agent::{
    core::{Limits, Options as AgentOptions, Parts, Replicator},
    memory::Trouble,
};
use lifeboat_applier::core::{Applier, Options as ApplierOptions, Status as ApplierStatus};
use lifeboat_process_server::core::{
    Assigned, Ingest, Shared, fair::FairSlots, space::Space, spool::Spool as _, switchboard::Switchboard,
};
use lifeboat_replication::{
    ids::ServerId,
    log::{LogOptions, LogWriter, Order},
    vault::Vault,
    wire::Dial,
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinHandle,
    time::sleep,
};

use super::{APPLIERS, World, server::Server};
use crate::{
    faults::{Class, Dice},
    net::{Line, Net},
    program::Program,
    retention::{Reader, SimSealer},
    rng::Rng,
    wire::{Host, Hosted, SimDial, Wire, agents_dial, watch_ingest},
};

/// Of logs and of appliers: shorter than by default, so that schedules see more of them run out.
pub(super) const LEASE: Duration = Duration::from_secs(30);
/// A failover lasts at most so long before it is taken back, in milliseconds.
const LONGEST_FAILOVER_MS: u64 = 70_000;

/// What a schedule's dice say to each freeze or hook.
struct Strikes(Arc<Dice>, Class);

impl Trouble for Strikes {
    fn strikes(&self, kinds: u64) -> Option<u64> {
        let dice = &self.0;
        dice.roll(self.1).then(|| dice.below(self.1, kinds))
    }
}

impl World {
    fn log_options(&self) -> LogOptions {
        LogOptions {
            rotate_after_appends: self.load.rotate_after_appends,
            lease_term: LEASE,
            planted: self.planted,
            ..Default::default()
        }
    }

    /// A process server: serves whenever the server is assigned to it.
    pub(super) fn start_process_server(&self, node: usize) -> Program {
        let Some(clock) = self.clocks.get(node) else { return Program::start(async {}) };
        let Some(spool) = self.spools.get(node).cloned() else { return Program::start(async {}) };
        if self.net.dice.roll(Class::SpoolLost) {
            // Without an await in it: a volume in memory.
            for server in &self.servers {
                let _ = spool.volume.clear(server.id.as_str()).now_or_never();
            }
        }
        let shared = Shared {
            vault: self.vault(node),
            env: self.env(clock),
            name: format!("ps-{node}"),
            writer: format!("ps-{node}"),
            spool,
            space: Space::spool(64 << 20),
            memory: Space::memory(32 << 20),
            sealer: Arc::new(SimSealer { inline_bytes: self.retain.inline_bytes }),
            uploads: FairSlots::long(4, 24 << 20),
            // Every second one knows no other way than through the spool.
            unspooled: Arc::new(Semaphore::new(node % 2)),
            log_options: self.log_options(),
            groups: Switchboard::default(),
        };
        if self.wire != Wire::Messages {
            let hosted = self.servers.iter().zip(&self.certificates).filter_map(|(server, certificates)| {
                Some(Hosted {
                    id: server.id.clone(),
                    line: server.line.clone(),
                    certificates: certificates.clone(),
                    assigned: server.assignments.get(node)?.subscribe(),
                })
            });
            let host = Host {
                net: self.net.clone(),
                node,
                process_servers: self.load.process_servers,
                wire: self.wire,
                servers: hosted.collect(),
                planted: self.planted,
            };
            return Program::start(host.run(shared));
        }
        let serve = |server: &Server| {
            let assigned = server.assignments.get(node).map(watch::Sender::subscribe);
            serve(server.line.clone(), node, shared.clone(), server.id.clone(), assigned)
        };
        let all: Vec<_> = self.servers.iter().map(serve).collect();
        Program::start(join_all(all).map(|_| ()))
    }

    pub(super) fn start_agent(&self, server: &Server) -> Program {
        let dial: Arc<dyn Dial> = match self.certificates.get(server.number) {
            Some(certificates) => {
                let buffer = self.load.pipe_bytes;
                agents_dial(server.line.clone(), self.wire, certificates, buffer, self.planted)
            }
            None => Arc::new(SimDial { net: server.line.clone(), server: server.id.to_string() }),
        };
        let parts = Parts {
            server: server.id.clone(),
            dial,
            map: server.machine.map(),
            source: server.machine.source(),
            freezer: server.machine.freezer(Some(Arc::new(Strikes(server.dice.clone(), Class::Freeze)))),
            hooks: server.machine.hooks(Some(Arc::new(Strikes(server.dice.clone(), Class::Hook)))),
            env: server.env(),
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
            planted: self.planted,
            ..Default::default()
        };
        let net = self.net.clone();
        Program::start(async move {
            let error = Replicator::new(parts, options).run().await;
            net.fail(format!("the agent ended: {error}"));
        })
    }

    pub(super) fn start_applier(&self, applier: usize) -> Program {
        let options = ApplierOptions {
            point_interval: Duration::from_millis(self.load.point_interval_ms),
            poll_interval: Duration::from_secs(1),
            collect_interval: self.retain.collect_interval,
            planted: self.planted,
            ..Default::default()
        };
        let node = self.load.process_servers + applier;
        let Some(clock) = self.clocks.get(node) else { return Program::start(async {}) };
        let env = self.env(clock);
        if self.load.leases {
            return self.start_sharer(applier, node, env, options);
        }
        let apply = |server: &Server| {
            let (policy, followed) = watch::channel(Some(self.retain.policy));
            let applier = Applier::new(self.vault(node), server.id.clone(), env.clone(), options.clone())
                .with_policy(followed);
            tokio::spawn(watch_applier(self.net.clone(), applier.status()));
            async move {
                applier.run().await;
                drop(policy);
            }
        };
        let all: Vec<_> = self.servers.iter().map(apply).collect();
        Program::start(join_all(all).map(|_| ()))
    }

    /// Opens points for a while, under pins.
    pub(super) fn start_reader(&self, server: &Server) -> JoinHandle<()> {
        let reader = Reader {
            // It outlives a rotation: both keys from the beginning.
            vault: Vault { keys: self.keys[1].clone(), ..self.vault(self.load.process_servers + APPLIERS) },
            server: server.id.clone(),
            env: server.env(),
            net: server.line.clone(),
            rng: server.rng.fork(),
            held_for: self.retain.held_for,
        };
        tokio::spawn(reader.run())
    }

    /// A failover closes the log and takes that back after a while.
    pub(super) fn start_failover(&self, server: &Server, run: &str) -> JoinHandle<()> {
        let (run, rng) = (run.to_owned(), server.rng.fork());
        self.start_orders(server, vec![Order::Failover { run: run.clone() }, Order::Release { run }], rng)
    }

    /// A person takes back a closed log whose run is over: the store brought it back from an older copy.
    pub(super) fn start_release(&self, server: &Server, run: String) -> JoinHandle<()> {
        self.start_orders(server, vec![Order::Release { run }], server.rng.fork())
    }

    /// As an operator that keeps trying.
    fn start_orders(&self, server: &Server, orders: Vec<Order>, rng: Rng) -> JoinHandle<()> {
        let vault = self.vault(self.load.process_servers + APPLIERS);
        let (env, server, options) = (server.env(), server.id.clone(), self.log_options());
        let net = self.net.clone();
        tokio::spawn(async move {
            for order in orders {
                let mut taken = Err(());
                while taken.is_err() {
                    let attempt = LogWriter::take_over(
                        &vault,
                        &server,
                        "failover",
                        &env,
                        order.clone(),
                        options.clone(),
                    );
                    taken = attempt.await.map_err(|error| {
                        net.mark("failover", format_args!("{order:?}: {error}"));
                    });
                    if taken.is_err() {
                        sleep(Duration::from_secs(2)).await;
                    }
                }
                let Ok(writer) = taken else { return };
                net.mark("failover", format_args!("{order:?} in epoch {}", writer.state().epoch));
                if rng.below(2) == 0 {
                    writer.release().await;
                }
                if matches!(order, Order::Failover { .. }) {
                    sleep(Duration::from_millis(rng.below(LONGEST_FAILOVER_MS))).await;
                }
            }
        })
    }
}

/// Serves a server whenever it is assigned to this node.
async fn serve(
    net: Line,
    node: usize,
    shared: Shared,
    server: ServerId,
    assigned: Option<watch::Receiver<Option<Assigned>>>,
) {
    let Some(mut assigned) = assigned else { return };
    loop {
        if assigned.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let (listener, connections) = mpsc::channel(4);
        net.listen(node, Some(listener));
        let ingest = Ingest::new(shared.clone(), server.clone(), assigned.clone());
        tokio::spawn(watch_ingest(net.net.clone(), ingest.status()));
        let ended = ingest.run(connections).await;
        net.mark("ingest ended", format_args!("{node} {ended:?}"));
        net.listen(node, None);
    }
}

/// What an applier reports is counted; ends with it.
async fn watch_applier(net: Arc<Net>, mut status: watch::Receiver<ApplierStatus>) {
    let mut superseded = 0;
    while status.changed().await.is_ok() {
        let batches = status.borrow_and_update().figures.superseded_batches;
        net.count(|reached| reached.superseded_batches += batches.saturating_sub(superseded));
        superseded = batches;
    }
}
