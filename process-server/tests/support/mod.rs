//! A vault in memory that can be away, forget answers or stand still, and the agent's end of a connection by hand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(unreachable_pub, dead_code, reason = "each test program uses a part of it")]

pub mod line;
pub mod pki;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lifeboat_process_server::core::{
    Assigned, Ended, Ingest, Shared, fair::FairSlots, sealing::InlineSealer, space::Space, spool::MemSpool,
    status::Status, switchboard::Switchboard,
};
use lifeboat_replication::{
    blocks::BLOCK_BYTES,
    env::{Entropy, Env, Micros, Wall},
    ids::ServerId,
    journal,
    keys::DataKeys,
    log::{LogOptions, LogReader, Patience},
    store::{
        Result,
        gated::{Call, Gate, Gated},
        model::ModelStore,
    },
    vault::Vault,
    wire::{
        Accepted,
        v1::{self, log_record::Body},
    },
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

#[derive(Debug)]
struct Clock(tokio::time::Instant);

impl Wall for Clock {
    fn now(&self) -> Micros {
        // Later than the instants of the records that tests send.
        Micros(1_700_000_001_000_000 + i64::try_from(self.0.elapsed().as_micros()).unwrap())
    }
}

#[derive(Debug, Default)]
struct Counting(AtomicU64);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        for byte in bytes {
            // splitmix64's steps are enough to make ids differ.
            let mut value = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            *byte = (value >> 56) as u8;
        }
    }
}

/// What goes wrong with the store at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    Fair,
    /// Nothing arrives.
    Away,
    /// Every second change is done, and its answer lost.
    LosesAnswers,
    /// Appends never end; segments are taken.
    AppendsHang,
    /// Segments do not arrive; the log is written.
    SegmentsAway,
}

#[derive(Debug)]
struct Faulty {
    weather: watch::Receiver<Weather>,
    calls: AtomicU64,
}

impl Gate for Faulty {
    async fn pass<T: Send>(
        &self,
        call: Call<'_>,
        request: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let operation = call.operation;
        // Its credential may lack the right: it never asks.
        assert!(operation != "delete", "a process server deletes {}", call.name);
        let lost = |detail| call.unknown(detail);
        tokio::time::sleep(Duration::from_millis(5)).await;
        let weather = *self.weather.borrow();
        match weather {
            Weather::Away => Err(lost("connection refused")),
            Weather::AppendsHang if operation == "append" => std::future::pending().await,
            Weather::SegmentsAway if operation == "put" => Err(lost("connection refused")),
            Weather::LosesAnswers if call.changes() => {
                let done = request.await?;
                match self.calls.fetch_add(1, Ordering::Relaxed) % 2 {
                    0 => Err(lost("connection reset")),
                    _ => Ok(done),
                }
            }
            _ => request.await,
        }
    }
}

/// One vault, one server, any number of process servers.
pub struct World {
    pub env: Env,
    pub vault: Vault,
    pub server: ServerId,
    pub weather: watch::Sender<Weather>,
    /// What the vault and its cache storage hold, past the weather.
    pub stores: [ModelStore; 2],
}

impl World {
    pub fn new() -> Self {
        let env = Env {
            wall: Arc::new(Clock(tokio::time::Instant::now())),
            entropy: Arc::new(Counting::default()),
        };
        let (weather, now) = watch::channel(Weather::Fair);
        let faulty = || Faulty { weather: now.clone(), calls: AtomicU64::new(0) };
        let store = |inner| Gated::new(Arc::new(inner), faulty());
        let keys = Arc::new(DataKeys::generate(&*env.entropy));
        let stores = [ModelStore::new(), ModelStore::new()];
        let vault = Vault {
            store: store(stores[0].clone()),
            cache: store(stores[1].clone()),
            keys,
            id: "test".into(),
        };
        Self { env, vault, server: ServerId::from_random([3; 16]), weather, stores }
    }

    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    pub fn process_server(&self, name: &str) -> ProcessServer {
        self.process_server_with_spool(name, 64 << 20)
    }

    pub fn shared(&self, name: &str, spool: Arc<MemSpool>, space: Arc<Space>) -> Shared {
        Shared {
            vault: self.vault.clone(),
            env: self.env.clone(),
            name: name.to_owned(),
            writer: name.to_owned(),
            spool,
            space,
            memory: Space::memory(32 << 20),
            sealer: Arc::new(InlineSealer),
            uploads: FairSlots::long(16, 24 << 20),
            unspooled: Arc::new(Semaphore::new(1)),
            log_options: LogOptions::default(),
            groups: Switchboard::default(),
        }
    }

    pub fn process_server_with_spool(&self, name: &str, spool_bytes: u64) -> ProcessServer {
        self.process_server_over(name, Arc::new(MemSpool::default()), spool_bytes)
    }

    /// With what is in this spool.
    pub fn process_server_over(&self, name: &str, spool: Arc<MemSpool>, spool_bytes: u64) -> ProcessServer {
        let space = Space::spool(spool_bytes);
        let shared = self.shared(name, Arc::clone(&spool), Arc::clone(&space));
        let settings = v1::Settings { round_interval_micros: 1_000_000, ..Default::default() };
        let assigned = Assigned {
            display_name: "default/web".into(),
            settings,
            compression_level: 1,
            points: vec![],
            lost: None,
        };
        let (assign, assigned) = watch::channel(Some(assigned));
        let ingest = Ingest::new(shared, self.server.clone(), assigned);
        let status = ingest.status();
        let (connections, accepted) = mpsc::channel(2);
        let running = tokio::spawn(ingest.run(accepted));
        ProcessServer { connections, assign, status, running, space, spool, server: self.server.to_string() }
    }

    /// Data records of the log and the blocks they carry: (number, [(slot, first block, first byte or zero)]).
    pub async fn log(&self) -> Vec<(u64, Vec<(u32, u32, Option<u8>)>)> {
        let mut reader = LogReader::from_start(&self.vault, &self.server, &self.env);
        let mut records = Vec::new();
        while let Some(entry) = reader.next().await.unwrap() {
            let Body::Data(data) = entry.body else { continue };
            let mut blocks = Vec::new();
            for source in journal::sources(&data).unwrap() {
                for extent in source.read(&self.vault, &Patience::new(self.env.clone())).await.unwrap() {
                    let byte = extent.data.as_ref().map(|data| data[0]);
                    blocks.push((extent.run.disk.0, extent.run.first, byte));
                }
            }
            records.push((data.number, blocks));
        }
        records
    }

    /// Instant and measured clock offset of each record.
    pub async fn instants(&self) -> Vec<(i64, i64)> {
        let mut reader = LogReader::from_start(&self.vault, &self.server, &self.env);
        let mut instants = Vec::new();
        while let Some(entry) = reader.next().await.unwrap() {
            if let Body::Data(data) = entry.body {
                instants.push((data.t0_micros, data.clock_offset_micros));
            }
        }
        instants
    }

    pub async fn numbers(&self) -> Vec<u64> {
        self.log().await.into_iter().map(|(number, _)| number).collect()
    }
}

pub struct ProcessServer {
    pub connections: mpsc::Sender<Accepted>,
    pub assign: watch::Sender<Option<Assigned>>,
    pub status: watch::Receiver<Status>,
    pub running: JoinHandle<Ended>,
    pub space: Arc<Space>,
    pub spool: Arc<MemSpool>,
    server: String,
}

impl ProcessServer {
    pub async fn until(&mut self, what: &str, reached: impl FnMut(&Status) -> bool) {
        let waited = timeout(Duration::from_secs(300), self.status.wait_for(reached)).await;
        let reached = waited.is_ok_and(|status| status.is_ok());
        assert!(reached, "never {what}: {:?}", *self.status.borrow());
    }

    /// The operator has given up the writer of this epoch.
    pub fn lose(&self, epoch: u32) {
        self.assign.send_modify(|assigned| {
            if let Some(assigned) = assigned {
                assigned.lost = Some(lifeboat_replication::ids::Epoch(epoch));
            }
        });
    }

    /// Stops it as a crash does.
    pub async fn crash(self) {
        self.running.abort();
        let _ = self.running.await;
    }

    pub async fn connect(&self) -> Agent {
        Agent::connect(&self.connections, &self.server).await
    }

    /// Connects, again and again while it is asked to come again.
    pub async fn welcome(&self, believes: Option<&v1::Durable>) -> (Agent, v1::Welcome) {
        for _ in 0..200 {
            let mut agent = self.connect().await;
            agent.hello(believes).await;
            match agent.next().await {
                Some(v1::down::Message::Welcome(welcome)) => return (agent, welcome),
                Some(v1::down::Message::Refused(refused)) => {
                    assert!(refused.retry_after_micros > 0, "{refused:?}");
                    tokio::time::sleep(Duration::from_micros(refused.retry_after_micros)).await;
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("never welcome: {:?}", *self.status.borrow());
    }
}

pub struct Agent {
    pub up: mpsc::Sender<v1::Up>,
    pub down: mpsc::Receiver<v1::Down>,
    server: String,
}

impl Agent {
    pub async fn connect(connections: &mpsc::Sender<Accepted>, server: &str) -> Self {
        let (up, from_agent) = mpsc::channel(8);
        let (to_agent, down) = mpsc::channel(64);
        let accepted = Accepted { up: from_agent, down: to_agent, server_id: server.to_owned() };
        connections.send(accepted).await.unwrap();
        Self { up, down, server: server.to_owned() }
    }

    pub async fn send(&self, message: v1::up::Message) {
        let _ = self.up.send(v1::Up { message: Some(message) }).await;
    }

    pub async fn hello(&self, believes: Option<&v1::Durable>) {
        let disk = v1::Disk {
            slot: 0,
            id: "serial-1".into(),
            size_bytes: 1 << 30,
            path: "/dev/vda".into(),
            left_out: false,
        };
        let believes = believes.cloned();
        let believes =
            believes.map(|v1::Durable { number, epoch, chain }| v1::DurableMark { number, epoch, chain });
        self.send(v1::up::Message::Hello(v1::Hello {
            protocol: 1,
            server_id: self.server.clone(),
            session: 1,
            disks: vec![disk],
            believes,
            ..Default::default()
        }))
        .await;
    }

    /// Content that does not compress.
    pub fn chunk(number: u64, sequence: u32, first: u64, blocks: u32) -> v1::Chunk {
        let mut data = Vec::with_capacity(blocks as usize * BLOCK_BYTES as usize);
        let mut value = number * 1_000_003 + u64::from(sequence);
        while data.len() < blocks as usize * BLOCK_BYTES as usize {
            value = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            data.extend_from_slice(&(value >> 16).to_le_bytes()[..4]);
        }
        data[0] = number as u8;
        let extents = vec![v1::Extent { disk_slot: 1, first_block: first, blocks, zero: false }];
        let crc32c = crc32c::crc32c(&data);
        v1::Chunk { number, sequence, extents, data: data.into(), crc32c }
    }

    pub async fn send_chunk(&self, chunk: v1::Chunk) {
        self.send(v1::up::Message::Chunk(chunk)).await;
    }

    pub async fn end(&self, number: u64, chunks: u32) {
        self.end_at(number, chunks, 1_700_000_000_000_000 + number as i64).await;
    }

    /// With the instant that the agent believes it to be.
    pub async fn end_at(&self, number: u64, chunks: u32, t0_micros: i64) {
        self.send(v1::up::Message::End(v1::End {
            number,
            chunks,
            kind: v1::RecordKind::Exact.into(),
            consistency: v1::Consistency::CrashConsistent.into(),
            t0_micros,
            complete: true,
            ..Default::default()
        }))
        .await;
    }

    /// A record of `chunks` chunks of 2 MiB each.
    pub async fn record(&self, number: u64, chunks: u32) {
        for sequence in 0..chunks {
            self.send_chunk(Self::chunk(number, sequence, u64::from(sequence) * 512, 512)).await;
        }
        self.end(number, chunks).await;
    }

    pub async fn heartbeat(&self) {
        self.send(v1::up::Message::Heartbeat(v1::Heartbeat { agent_time_micros: 5, ..Default::default() }))
            .await;
    }

    /// The next message, settings left out; `None` when the connection is gone or nothing comes.
    pub async fn next(&mut self) -> Option<v1::down::Message> {
        loop {
            match timeout(Duration::from_secs(120), self.down.recv()).await.ok().flatten()?.message? {
                v1::down::Message::Settings(_) => {}
                message => return Some(message),
            }
        }
    }

    /// Waits for `Received` of this number.
    pub async fn received(&mut self, number: u64) {
        loop {
            match self.next().await {
                Some(v1::down::Message::Received(received)) if received.number == number => return,
                Some(v1::down::Message::Received(_) | v1::down::Message::Durable(_)) => {}
                other => panic!("waiting for Received({number}): {other:?}"),
            }
        }
    }

    /// Waits for `Durable` of this number; says nothing is skipped.
    pub async fn durable(&mut self, number: u64) -> v1::Durable {
        loop {
            match self.next().await {
                Some(v1::down::Message::Durable(durable)) => {
                    assert_eq!(durable.number, number, "in order");
                    return durable;
                }
                Some(v1::down::Message::Received(_) | v1::down::Message::HeartbeatAnswer(_)) => {}
                other => panic!("waiting for Durable({number}): {other:?}"),
            }
        }
    }

    pub async fn refusal(&mut self) -> v1::Refused {
        loop {
            match self.next().await {
                Some(v1::down::Message::Refused(refused)) => return refused,
                Some(_) => {}
                None => panic!("no refusal"),
            }
        }
    }
}
