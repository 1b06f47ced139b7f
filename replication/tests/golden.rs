//! Files of a small vault as they were written once: today's readers must read them, and today's writers must write
//! the same bytes wherever nothing random goes in. A test that fails here means that vaults in use cannot be read any
//! more: a new version of the format needs a new set of files beside the old one. `v2` has what is different since
//! segments have their table in front: segments, and a log that names them; those of `v1` are read still.
//!
//! `LIFEBOAT_BLESS=1 cargo test --test golden` writes files that are missing; it never replaces one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc};

use bytes::Bytes;
use lifeboat_replication::{
    blocks::BlockRun,
    catalogue::{self, Point, PointConsistency, PointDisk, Points, Position, Seed},
    env::{Entropy, Env, Micros, Wall},
    ids::{DiskSlot, Epoch, RecordNumber, ServerId},
    journal,
    keys::DataKeys,
    log::{
        LogDisk, LogReader, LogState, PartName,
        frame::{self, CHAIN_START, ChainKey},
        state::HeaderBase,
    },
    segment::{self, ExtentData},
    store::{BlobStore, LeaseId, PutCondition, model::ModelStore},
    vault::{self, KeyBundle, Vault, VaultDescription, layout},
    vhd,
    wire::v1::{self, log_record::Body},
};

const SERVER: &str = "6d3f9a52-7c1e-4b6a-9d0e-0123456789ab";
const RECIPIENT: &str = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";
const NOW: i64 = 1_767_225_600_000_000;

#[derive(Debug)]
struct Fixed;

impl Wall for Fixed {
    fn now(&self) -> Micros {
        Micros(NOW)
    }
}

impl Entropy for Fixed {
    fn fill(&self, bytes: &mut [u8]) {
        (1..).zip(bytes).for_each(|(number, byte)| *byte = number);
    }
}

fn env() -> Env {
    Env { wall: Arc::new(Fixed), entropy: Arc::new(Fixed) }
}

fn server() -> ServerId {
    SERVER.parse().unwrap()
}

fn keys() -> DataKeys {
    DataKeys::generate(&Fixed)
}

fn path(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    if name.starts_with("v2/") { folder.join(name) } else { folder.join("v1").join(name) }
}

/// The version of segments in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    fn file(self, name: &str) -> String {
        if self == Self::Two { format!("v2/{name}") } else { name.to_owned() }
    }
}

/// The file, which is made of `written` if it is missing and that was asked for.
fn golden(name: &str, written: &[u8]) -> Vec<u8> {
    let path = path(name);
    if !path.exists() && std::env::var_os("LIFEBOAT_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, written).unwrap();
    }
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[track_caller]
fn same(name: &str, written: &[u8]) {
    assert!(golden(name, written) == written, "{name} is not written as it was");
}

fn disk() -> LogDisk {
    LogDisk {
        slot: DiskSlot(1),
        id: "ata-QEMU_1".into(),
        size_bytes: 1 << 20,
        path: "/dev/sda".into(),
        left_out: false,
    }
}

fn extents() -> Vec<ExtentData> {
    let run = |first, blocks| BlockRun { disk: DiskSlot(1), first, blocks };
    let data = (0..2 * 4096).map(|byte| (byte % 251) as u8).collect::<Vec<_>>();
    vec![
        ExtentData { run: run(7, 2), data: Some(Bytes::from(data)) },
        ExtentData { run: run(100, 50), data: None },
    ]
}

fn segment_name(record: u64) -> String {
    layout::segment(&server(), Epoch(1), RecordNumber(record), "0102", 0)
}

fn segment(version: Version) -> Vec<u8> {
    let today = segment::seal(&keys(), &segment_name(1), &extents(), 1).unwrap().content;
    golden(&version.file("segment"), &today)
}

fn inline(version: Version) -> Vec<u8> {
    let today = segment::seal(&keys(), &segment_name(2), &extents(), 1).unwrap().content;
    golden(&version.file("segment-within-a-record"), &today)
}

fn named(version: Version, number: u64, sealed: &[u8]) -> v1::SegmentRef {
    let name = segment_name(number);
    if version == Version::One {
        let sha256 = ring::digest::digest(&ring::digest::SHA256, sealed).as_ref().to_vec();
        return v1::SegmentRef { name, length: sealed.len() as u64, sha256, ..Default::default() };
    }
    let key_id = usize::from(u16::from_le_bytes(sealed[8..10].try_into().unwrap()));
    let table = u32::from_le_bytes(sealed[10 + key_id..14 + key_id].try_into().unwrap());
    let front_bytes = (22 + key_id) as u64 + u64::from(table);
    segment::Sealed { content: Bytes::copy_from_slice(sealed), front_bytes }.named(name)
}

fn data(version: Version, number: u64, kind: v1::RecordKind, sealed: &[u8], within: bool) -> v1::Data {
    v1::Data {
        first_number: number,
        number,
        kind: kind.into(),
        consistency: v1::Consistency::CrashConsistent.into(),
        t0_micros: NOW + number as i64 * 1_000_000,
        clock_offset_micros: -250,
        complete: number > 1,
        segments: vec![named(version, number, sealed)],
        inline_segment: if within { sealed.to_vec() } else { Vec::new() },
        changed_bytes: 52 * 4096,
        session: 77,
        copy_remaining_blocks: if number > 1 { 0 } else { 204 },
        group: None,
    }
}

/// All frames of a log of two parts, the second of which continues the first by a takeover; and the state after
/// record 2.
fn log(version: Version) -> (Vec<u8>, Vec<u8>, LogState) {
    let keys = keys();
    let (key_id, key) = keys.current();
    let chain_key = ChainKey::new(key, SERVER);
    let mut state = LogState::empty(key_id.clone());
    let mut parts = [Vec::new(), Vec::new()];
    let mut at_two = None;
    let disks = v1::Disks { disks: vec![v1::Disk::from(&disk())] };
    let bodies: [Vec<Body>; 2] = [
        vec![
            Body::Disks(disks),
            Body::Data(data(version, 1, v1::RecordKind::Copy, &segment(version), false)),
            Body::Data(data(version, 2, v1::RecordKind::Exact, &inline(version), true)),
        ],
        vec![
            Body::Closed(v1::Closed { run: "default/drill".into() }),
            Body::Release(v1::Release { run: "default/drill".into() }),
        ],
    ];
    let mut chain = CHAIN_START;
    for (number, (part, bodies)) in (1..).zip(parts.iter_mut().zip(bodies)) {
        let base_part = (number > 1).then_some(PartName { epoch: Epoch(1), part: 0 });
        let base = HeaderBase {
            epoch: Epoch(number),
            part: 0,
            base_part,
            base_offset: state.offset,
            key_id: key_id.clone(),
        };
        let header = state.header(SERVER, base, "ps-0 spool run", Micros(NOW));
        let encoded = frame::encode(&chain_key, &chain, Body::Header(header)).unwrap();
        chain = encoded.chain;
        part.extend(encoded.bytes);
        (state.epoch, state.part) = (Epoch(number), 0);
        for body in bodies {
            state.apply(&body).unwrap();
            let two = matches!(&body, Body::Data(data) if data.number == 2);
            let encoded = frame::encode(&chain_key, &chain, body).unwrap();
            chain = encoded.chain;
            part.extend(encoded.bytes);
            (state.offset, state.chain) = (part.len() as u64, chain);
            if two {
                at_two = Some(state.clone());
            }
        }
    }
    let [one, two] = parts;
    (one, two, at_two.unwrap())
}

fn points() -> Points {
    let (_, _, log) = log(Version::One);
    let snapshot = "2026-01-01T00:00:02.0000000Z".to_owned();
    let disk = PointDisk { slot: 1, disk_id: disk().id, size_bytes: disk().size_bytes, snapshot };
    let point = Point {
        number: 2,
        epoch: 1,
        t0_micros: NOW + 2_000_000,
        consistency: PointConsistency::CrashConsistent,
        group: None,
        disks: vec![disk],
        log,
    };
    Points {
        format: catalogue::FORMAT,
        server: SERVER.into(),
        points: vec![point],
        collected: None,
        log_begins: None,
    }
}

fn position() -> Position {
    let seed = Seed { disk_id: disk().id, size_bytes: disk().size_bytes };
    let (_, _, log) = log(Version::One);
    let seeds = BTreeMap::from([(1, seed)]);
    Position { format: catalogue::FORMAT, server: SERVER.into(), log, seeds }
}

#[test]
fn data_keys() {
    same("keys.json", &keys().to_json());
    let read = DataKeys::from_json(&golden("keys.json", b"")).unwrap();
    assert_eq!(read.check_values(), keys().check_values());
}

#[test]
fn segments() {
    for version in [Version::One, Version::Two] {
        for (name, sealed) in [(segment_name(1), segment(version)), (segment_name(2), inline(version))] {
            assert_eq!(segment::open(&keys(), &name, &sealed).unwrap(), extents());
            if version == Version::Two {
                // What follows, and how long it is, depends on the version of zstd.
                let today = segment::seal(&keys(), &name, &extents(), 1).unwrap();
                assert_eq!(sealed[..26], today.content[..26]);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn commit_log() {
    commit_log_of(Version::One).await;
    commit_log_of(Version::Two).await;
}

async fn commit_log_of(version: Version) {
    let (one, two, at_two) = log(version);
    same(&version.file("log-part-1"), &one);
    same(&version.file("log-part-2"), &two);
    let store = ModelStore::new();
    let lease = LeaseId("6d3f9a52-7c1e-4b6a-9d0e-000000000000".into());
    for (epoch, name) in [(1, "log-part-1"), (2, "log-part-2")] {
        let blob = layout::log_part(&server(), Epoch(epoch), 0);
        store.create_append(&blob).await.unwrap();
        store.acquire_lease(&blob, &lease, std::time::Duration::from_secs(60)).await.unwrap();
        store.append(&blob, golden(&version.file(name), b"").into(), &lease, 0).await.unwrap();
        store.seal(&blob, &lease).await.unwrap();
    }
    store.put(&segment_name(1), segment(version).into(), &PutCondition::IfAbsent).await.unwrap();
    let store: Arc<dyn BlobStore> = Arc::new(store);
    let vault = Vault { store: Arc::clone(&store), cache: store, keys: Arc::new(keys()), id: String::new() };
    let mut reader = LogReader::from_start(&vault, &server(), &env());
    let mut kinds = Vec::new();
    let patience = lifeboat_replication::log::Patience::new(env());
    while let Some(entry) = reader.next().await.unwrap() {
        kinds.push(match entry.body {
            Body::Disks(disks) => format!("{} disks", disks.disks.len()),
            Body::Data(data) => {
                let sources = journal::sources(&data).unwrap();
                assert_eq!(sources[0].read(&vault, &patience).await.unwrap(), extents());
                let table = sources[0].table(&vault, &patience).await.unwrap();
                assert_eq!(table.extents, extents().iter().map(ExtentData::extent).collect::<Vec<_>>());
                format!("record {}", data.number)
            }
            other => format!("{other:?}"),
        });
        if reader.state().unwrap().last_number.0 == 2 && entry.epoch == Epoch(1) {
            assert_eq!(*reader.state().unwrap(), at_two);
        }
    }
    assert_eq!(kinds[..3], ["1 disks", "record 1", "record 2"]);
    assert!(kinds[3].contains("Closed") && kinds[4].contains("Release"), "{kinds:?}");
}

#[test]
fn catalogue_documents() {
    let keys = keys();
    same("points.json", &catalogue::encode(&keys, &server(), &points()));
    same("position.json", &catalogue::encode(&keys, &server(), &position()));
    let read: Points = catalogue::decode(&keys, &server(), &golden("points.json", b"")).unwrap();
    assert_eq!(read, points());
    let read: Position = catalogue::decode(&keys, &server(), &golden("position.json", b"")).unwrap();
    assert_eq!(read, position());
}

#[tokio::test(start_paused = true)]
async fn vault_json_and_its_key_bundle() {
    let new = || {
        let store: Arc<dyn BlobStore> = Arc::new(ModelStore::new());
        let ca = zeroize::Zeroizing::new("a key of a certificate authority".to_owned());
        let bundle = KeyBundle { data_keys: Arc::new(keys()), ca_key_pem: Some(ca) };
        (store, bundle)
    };
    let (store, bundle) = new();
    vault::bootstrap(Arc::clone(&store), Arc::clone(&store), bundle, &[RECIPIENT.to_owned()], &env())
        .await
        .unwrap();
    let today = store.get(layout::VAULT_JSON, None, None).await.unwrap();
    let read: VaultDescription = serde_json::from_slice(&golden("vault.json", &today)).unwrap();
    let today: VaultDescription = serde_json::from_slice(&today).unwrap();
    // The bundle is encrypted anew each time; everything else is the same.
    assert_eq!(
        VaultDescription { key_bundle: String::new(), ..today.clone() },
        VaultDescription { key_bundle: String::new(), ..read.clone() }
    );
    let recovery_key = fs::read_to_string(path("recovery-key.txt")).unwrap();
    let opened = KeyBundle::unseal(&read, &recovery_key).unwrap();
    assert_eq!(opened.data_keys.check_values(), read.key_checks);
    assert_eq!(opened.ca_key_pem.as_ref().unwrap().as_str(), "a key of a certificate authority");
    assert_eq!(opened.digest(), read.bundle_digest);
}

#[tokio::test(start_paused = true)]
async fn names_of_servers() {
    let store: Arc<dyn BlobStore> = Arc::new(ModelStore::new());
    let vault = Vault {
        store: Arc::clone(&store),
        cache: Arc::clone(&store),
        keys: Arc::new(keys()),
        id: String::new(),
    };
    let adopted = vault.adopt_server("default", "db-1", &env()).await.unwrap();
    same("server.json", &store.get(&layout::server_json(&adopted.id), None, None).await.unwrap());
    same("name.json", &store.get(&layout::name_json("default", "db-1"), None, None).await.unwrap());
    assert_eq!(vault.find_server("default", "db-1").await.unwrap(), Some(adopted));
}

#[test]
fn footer_of_a_seed_disk() {
    same("vhd-footer", &vhd::footer(SERVER, &disk().id, disk().size_bytes));
}
