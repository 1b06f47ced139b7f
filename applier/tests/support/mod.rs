//! A server that writes its log as a process server does, and remembers what its disks looked like at each point.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test")]

pub mod faulty;
pub mod sums;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use lifeboat_replication::{
    blocks::{BLOCK_BYTES, BlockRun},
    env::Env,
    ids::{DiskSlot, RecordNumber, ServerId},
    keys::DataKeys,
    log::{LogOptions, LogWriter, Order},
    segment::{self, ExtentData},
    store::{PutCondition, model::ModelStore},
    vault::{Vault, layout},
    wire::v1::{self, RecordKind, log_record::Body},
};

/// A run of blocks filled with one byte; `None`: zeros without data.
#[derive(Debug, Clone, Copy)]
pub struct Write {
    pub disk: u32,
    pub first: u32,
    pub blocks: u32,
    pub byte: Option<u8>,
}

/// Disks by slot, padded to whole blocks.
pub type Images = BTreeMap<u32, Vec<u8>>;

/// `S`: where the vault stands.
pub struct Source<S = ModelStore> {
    pub store: S,
    pub vault: Vault,
    pub server: ServerId,
    pub env: Env,
    pub log: LogWriter,
    pub images: Images,
    /// What the disks were at each exact and complete record.
    pub points: BTreeMap<u64, Images>,
    /// The same at every record, and before the first.
    pub history: BTreeMap<u64, Images>,
    /// Blocks that a record has named, by slot.
    pub written: BTreeMap<u32, std::collections::BTreeSet<u32>>,
    sizes: Vec<u64>,
}

pub fn disk_id(slot: u32) -> String {
    format!("disk-{slot}")
}

impl Source {
    /// A vault in memory with one server whose disks (slots from 1) have these sizes.
    pub async fn new(sizes: &[u64]) -> Self {
        let env = Env::system();
        let store = ModelStore::new();
        let keys = Arc::new(DataKeys::generate(&*env.entropy));
        let vault = Vault {
            store: Arc::new(store.clone()),
            cache: Arc::new(store.clone()),
            keys,
            id: "test".to_owned(),
        };
        let server = "6d3f9a52-7c1e-4b6a-9d0e-0123456789ab".parse().unwrap();
        Self::of(store, vault, server, sizes).await
    }
}

impl<S> Source<S> {
    /// A server of a vault that stands in `store`.
    pub async fn of(store: S, vault: Vault, server: ServerId, sizes: &[u64]) -> Self {
        let env = Env::system();
        let log = take(&vault, &server, &env, Order::WhenFree, u32::MAX).await;
        let images =
            (1..).zip(sizes).map(|(slot, size)| (slot, vec![0; size.next_multiple_of(BLOCK_BYTES) as usize]));
        let images: Images = images.collect();
        let history = BTreeMap::from([(0, images.clone())]);
        let mut source = Self {
            store,
            vault,
            server,
            env,
            log,
            images,
            points: BTreeMap::new(),
            history,
            written: BTreeMap::new(),
            sizes: sizes.to_vec(),
        };
        source.name_disks().await;
        source
    }

    async fn name_disks(&mut self) {
        let disks = (1..).zip(&self.sizes).map(|(slot, size)| v1::Disk {
            slot,
            id: disk_id(slot),
            size_bytes: *size,
            path: format!("/dev/d{slot}"),
            left_out: false,
        });
        self.log.append(Body::Disks(v1::Disks { disks: disks.collect() })).await.unwrap();
    }

    /// The disk grows by zeros, and the log says so.
    pub async fn grow(&mut self, slot: u32, size: u64) {
        self.sizes[slot as usize - 1] = size;
        let image = self.images.get_mut(&slot).unwrap();
        image.resize(size.next_multiple_of(BLOCK_BYTES) as usize, 0);
        for images in self.history.values_mut() {
            images.get_mut(&slot).unwrap().resize(size.next_multiple_of(BLOCK_BYTES) as usize, 0);
        }
        self.name_disks().await;
    }

    /// Another process server takes over: the next record has a higher epoch.
    pub async fn next_epoch(&mut self) {
        self.next_epoch_with_parts_of(u32::MAX).await;
    }

    /// Likewise; each part of its log has so many appends.
    pub async fn next_epoch_with_parts_of(&mut self, appends: u32) {
        self.log = take(&self.vault, &self.server, &self.env, Order::Forced, appends).await;
    }

    /// Commits one record. Each group of writes becomes a segment; a single small one travels inline.
    pub async fn record(
        &mut self,
        kind: RecordKind,
        complete: bool,
        t0_seconds: i64,
        groups: &[Vec<Write>],
    ) -> u64 {
        let state = self.log.state();
        let number = state.last_number.next();
        let epoch = state.epoch;
        let mut data = v1::Data {
            first_number: number.0,
            number: number.0,
            kind: kind.into(),
            consistency: v1::Consistency::CrashConsistent.into(),
            t0_micros: t0_seconds * 1_000_000,
            complete,
            ..Default::default()
        };
        for (part, group) in (0..).zip(groups) {
            let name = layout::segment(&self.server, epoch, RecordNumber(number.0), "writer", part);
            let extents: Vec<ExtentData> = group.iter().map(extent).collect();
            let sealed = segment::seal(&self.vault.keys, &name, &extents, 1).unwrap();
            data.segments.push(sealed.named(name.clone()));
            if groups.len() == 1 && sealed.content.len() < 1000 {
                data.inline_segment = sealed.content.to_vec();
            } else {
                self.vault.cache.put(&name, sealed.content, &PutCondition::IfAbsent).await.unwrap();
            }
            for write in group {
                let image = self.images.get_mut(&write.disk).unwrap();
                let range = write.first as usize * 4096..(write.first + write.blocks) as usize * 4096;
                image[range].fill(write.byte.unwrap_or(0));
                let written = self.written.entry(write.disk).or_default();
                written.extend(write.first..write.first + write.blocks);
                data.changed_bytes += u64::from(write.blocks) * BLOCK_BYTES;
            }
        }
        self.log.append(Body::Data(data)).await.unwrap();
        self.history.insert(number.0, self.images.clone());
        if complete && kind == RecordKind::Exact {
            self.points.insert(number.0, self.images.clone());
        }
        number.0
    }

    /// The seed disk's virtual disk as it is now, or at a snapshot.
    pub async fn seed(&self, slot: u32, snapshot: Option<&str>) -> Vec<u8> {
        let name = layout::seed_disk(&self.server, &disk_id(slot));
        let snapshot = snapshot.map(|snapshot| lifeboat_replication::store::SnapshotId(snapshot.to_owned()));
        let whole = self.vault.store.get(&name, snapshot.as_ref(), None).await.unwrap();
        assert_eq!(&whole[whole.len() - 512..][..8], b"conectix", "the footer is missing");
        whole[..whole.len() - 512].to_vec()
    }
}

/// Does `disk` begin with `image`, and is the rest zero?
pub fn same_disk(disk: &[u8], image: &[u8]) -> bool {
    disk.starts_with(image) && disk[image.len()..].iter().all(|byte| *byte == 0)
}

fn extent(write: &Write) -> ExtentData {
    let run = BlockRun { disk: DiskSlot(write.disk), first: write.first, blocks: write.blocks };
    let data = write.byte.map(|byte| Bytes::from(vec![byte; write.blocks as usize * BLOCK_BYTES as usize]));
    ExtentData { run, data }
}

async fn take(
    vault: &Vault,
    server: &ServerId,
    env: &Env,
    order: Order,
    rotate_after_appends: u32,
) -> LogWriter {
    let options = LogOptions { rotate_after_appends, ..LogOptions::default() };
    LogWriter::take_over(vault, server, "test", env, order, options).await.unwrap()
}
