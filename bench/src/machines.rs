//! Many servers without a disk: the agent's core over disks in memory, on the real wire to a process server.

use std::{io, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use lifeboat_agent::{
    core::{Options, Parts, Replicator},
    edge::{BlockSource, NoFreezer, NoHooks},
    memory::Machine,
    net::dialler::Dialler,
    state::StateDir,
};
use lifeboat_replication::{
    blocks::{BLOCK_BYTES, BlockRun},
    env::Env,
    ids::DiskSlot,
    wire::v1,
};
use lifeboat_tests::rig::{Random, Site};
use tokio::{runtime::Runtime, sync::watch};

/// Of each server: 64 MiB.
const DISK_BLOCKS: u32 = 16 << 10;
const DISK: DiskSlot = DiskSlot(1);

/// One machine for each server of the site that has no agent. They end with the runtime.
pub struct Machines {
    machines: Vec<Machine>,
    env: Env,
    _runtime: Runtime,
}

impl Machines {
    /// Every disk is full of data that cannot be compressed; returns when the first copies of all have ended.
    pub fn start(site: &Site) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let env = Env::system();
        let machines = site.enrolled.iter().map(|(_, state)| {
            let machine = Machine::new(env.wall.clone(), &[DISK_BLOCKS], 0);
            for block in 0..DISK_BLOCKS {
                machine.write((DISK, block), u64::from(block) + 1);
            }
            let identity = StateDir::new(state).load().unwrap();
            let server = identity.server.clone();
            let (sender, identity) = watch::channel(identity);
            let parts = Parts {
                server,
                dial: Arc::new(Dialler::new(identity)),
                map: machine.map(),
                source: Arc::new(Noise(machine.source())),
                freezer: Box::new(NoFreezer),
                hooks: Box::new(NoHooks),
                env: env.clone(),
            };
            runtime.spawn(async move {
                // The identity of the day, for as long as the agent runs.
                let _sender = sender;
                Replicator::new(parts, Options::default()).run().await
            });
            machine
        });
        let started = Self { machines: machines.collect(), env, _runtime: runtime };
        for (server, _) in &site.enrolled {
            site.wait("the first copy of each server ends", || {
                site.records_by(server).last().is_some_and(|record| record.complete).then_some(())
            });
        }
        started
    }

    /// So many blocks of a server change, anywhere on its disk.
    pub fn change(&self, server: usize, blocks: usize) {
        for _ in 0..blocks {
            let block = self.env.entropy.next_u64() % u64::from(DISK_BLOCKS);
            self.machines[server].write((DISK, u32::try_from(block).unwrap()), self.env.entropy.next_u64());
        }
    }
}

/// Content that cannot be compressed, made of the machine's short one. Zeros stay zeros.
struct Noise(Arc<dyn BlockSource>);

#[async_trait]
impl BlockSource for Noise {
    fn disks(&self) -> Vec<v1::Disk> {
        self.0.disks()
    }

    async fn read(&self, run: BlockRun) -> io::Result<Bytes> {
        let mut content = Vec::from(self.0.read(run).await?);
        for block in content.chunks_exact_mut(BLOCK_BYTES as usize) {
            let tag = u64::from_le_bytes(block[..8].try_into().unwrap());
            if tag != 0 {
                block.copy_from_slice(&Random::new(tag).bytes(block.len()));
            }
        }
        Ok(content.into())
    }
}
