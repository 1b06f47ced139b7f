//! Every parser of bytes that come from elsewhere, fed with valid examples that were changed: none may panic, none may
//! take more memory than its limit, and each says what is wrong. Seeded: a failure prints its seed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]
#![allow(unsafe_code, reason = "an allocator that counts")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use lifeboat_replication::{
    catalogue::{self, Points, Position},
    env::Env,
    errors::chain,
    ids::{Epoch, ServerId},
    journal,
    keys::DataKeys,
    log::{
        LogReader, PartName,
        frame::{CHAIN_START, ChainKey, RawFrame},
        state::Start,
    },
    segment,
    store::{BlobStore, LeaseId, model::ModelStore},
    vault::{KeyBundle, Vault, VaultConfig, VaultDescription, layout},
    wire::v1,
};
use prost::Message;

/// Of each parser; more with `LIFEBOAT_HOSTILE_CASES`.
const CASES: u64 = 3000;
const MIB: usize = 1 << 20;
const SERVER: &str = "6d3f9a52-7c1e-4b6a-9d0e-0123456789ab";

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands everything on to the system's allocator and counts beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test at a time, so that the memory counted is its own.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// splitmix64: a seed stays what it is, whatever libraries do.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

fn mutate(random: &mut Random, example: &[u8]) -> Vec<u8> {
    let mut bytes = example.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        let to = (at + random.below(40)).min(bytes.len());
        match random.below(9) {
            _ if bytes.is_empty() => bytes.push(random.next() as u8),
            0 | 1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = [0, 0x7f, 0x80, 0xff][random.below(4)],
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..to)),
            5 => bytes.extend_from_within(at..to),
            6 => {
                let number = [0, 1, u64::from(u32::MAX), u64::MAX, 1 << 31, 1 << 63][random.below(6)];
                let number = if random.below(2) == 0 { number.to_le_bytes() } else { number.to_be_bytes() };
                for (byte, new) in bytes[at..].iter_mut().zip(number) {
                    *byte = new;
                }
            }
            7 => {
                let insert: Vec<u8> = (0..random.below(20)).map(|_| random.next() as u8).collect();
                drop(bytes.splice(at..at, insert));
            }
            _ => bytes[at..to].reverse(),
        }
    }
    bytes
}

/// Runs `parse` on changed examples; it may take `limit` bytes of memory.
fn hostile(what: &str, examples: &[Vec<u8>], limit: usize, mut parse: impl FnMut(&[u8])) {
    let cases = std::env::var("LIFEBOAT_HOSTILE_CASES").ok().and_then(|cases| cases.parse().ok());
    for seed in 0..cases.unwrap_or(CASES) {
        let mut random = Random(seed);
        let example = &examples[random.below(examples.len())];
        let bytes = mutate(&mut random, example);
        let before = LIVE.load(Relaxed);
        PEAK.store(before, Relaxed);
        let parsed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| parse(&bytes)));
        assert!(parsed.is_ok(), "{what}: seed {seed} panics");
        let taken = PEAK.load(Relaxed).saturating_sub(before);
        assert!(taken <= limit, "{what}: seed {seed} takes {taken} bytes for {} bytes of input", bytes.len());
    }
}

fn golden(name: &str) -> Vec<u8> {
    fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1").join(name)).unwrap()
}

fn keys() -> DataKeys {
    DataKeys::from_json(&golden("keys.json")).unwrap()
}

fn server() -> ServerId {
    SERVER.parse().unwrap()
}

fn said(error: &(dyn std::error::Error + 'static)) {
    assert!(!chain(error).is_empty());
}

#[test]
fn frames_and_headers() {
    let _alone = alone();
    let (keys, part) = (keys(), PartName { epoch: Epoch(1), part: 0 });
    let key = ChainKey::new(keys.current().1, SERVER);
    hostile("frames", &[golden("log-part-1"), golden("log-part-2")], MIB, |bytes| {
        let mut rest = bytes;
        loop {
            match RawFrame::split(rest) {
                Ok(Some(frame)) => {
                    let _ = Start::read(&keys, SERVER, &part, &frame).map_err(|error| said(&error));
                    let _ = frame.verify(&key, &CHAIN_START);
                    if let Ok(v1::log_record::Body::Data(data)) = frame.decode_unverified() {
                        let _ = journal::sources(&data);
                    }
                    rest = &rest[frame.len() as usize..];
                }
                Ok(None) => break,
                Err(error) => return said(&error),
            }
        }
    });
}

#[test]
fn whole_logs() {
    let _alone = alone();
    let lease = LeaseId("6d3f9a52-7c1e-4b6a-9d0e-000000000000".into());
    let second = golden("log-part-2");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    hostile("a log", &[golden("log-part-1")], 8 * MIB, |bytes| {
        let store = ModelStore::new();
        let put = |epoch, content: Vec<u8>| {
            let blob = layout::log_part(&server(), Epoch(epoch), 0);
            let term = std::time::Duration::from_secs(60);
            let made = async {
                store.create_append(&blob).await.unwrap();
                store.acquire_lease(&blob, &lease, term).await.unwrap();
                if !content.is_empty() {
                    store.append(&blob, content.into(), &lease, 0).await.unwrap();
                }
                store.seal(&blob, &lease).await.unwrap();
            };
            runtime.block_on(made);
        };
        put(1, bytes.to_vec());
        put(2, second.clone());
        let store: Arc<dyn BlobStore> = Arc::new(store);
        let vault =
            Vault { store: Arc::clone(&store), cache: store, keys: Arc::new(keys()), id: String::new() };
        let mut reader = LogReader::from_start(&vault, &server(), &Env::system());
        let mut entries = 0;
        let end = loop {
            match runtime.block_on(reader.next()) {
                Ok(Some(_)) => entries += 1,
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
            assert!(entries <= 5, "more entries than were written");
        };
        let whole = bytes == golden("log-part-1").as_slice();
        assert_eq!(entries == 5 && end.is_none(), whole, "{end:?} after {entries} entries");
        if let Some(error) = end {
            said(&error);
        }
    });
}

#[test]
fn segments() {
    let _alone = alone();
    let keys = keys();
    let name = format!("journal/{SERVER}/0000000001/00000000000000000001-0102/0000000000");
    let [one, two] = ["segment", "../v2/segment"].map(golden);
    let front = 22 + 16 + u32::from_le_bytes(two[26..30].try_into().unwrap()) as usize;
    segment::open(&keys, &name, &one).unwrap();
    segment::open_table(&keys, &name, &two[..front]).unwrap();
    let examples = [one, two];
    // A header may claim up to 32 MiB, but only of what is authentic is anything unpacked.
    hostile("segments", &examples, MIB, |bytes| {
        match segment::open(&keys, &name, bytes) {
            Ok(_) => assert!(examples.iter().any(|example| bytes == example.as_slice())),
            Err(error) => said(&error),
        }
        match segment::open_table(&keys, &name, bytes) {
            Ok(_) => assert!(bytes.starts_with(&examples[1][..front])),
            Err(error) => said(&error),
        }
    });
}

#[test]
fn catalogue_documents() {
    let _alone = alone();
    let keys = keys();
    hostile("points.json", &[golden("points.json")], MIB, |bytes| {
        match catalogue::decode::<Points>(&keys, &server(), bytes) {
            Ok(_) => assert_eq!(bytes, golden("points.json")),
            Err(error) => said(&error),
        }
    });
    hostile("position.json", &[golden("position.json")], MIB, |bytes| {
        match catalogue::decode::<Position>(&keys, &server(), bytes) {
            Ok(_) => assert_eq!(bytes, golden("position.json")),
            Err(error) => said(&error),
        }
    });
}

#[test]
fn the_description_of_a_vault_and_its_bundle() {
    let _alone = alone();
    let recovery_key = String::from_utf8(golden("recovery-key.txt")).unwrap();
    hostile("vault.json", &[golden("vault.json")], 4 * MIB, |bytes| {
        if let Ok(description) = serde_json::from_slice::<VaultDescription>(bytes) {
            let _ = KeyBundle::unseal(&description, &recovery_key).map_err(|error| said(&error));
        }
    });
    let whole: VaultDescription = serde_json::from_slice(&golden("vault.json")).unwrap();
    hostile("key bundles", &[whole.key_bundle.clone().into_bytes()], 4 * MIB, |bytes| {
        let key_bundle = String::from_utf8_lossy(bytes).into_owned();
        let description = VaultDescription { key_bundle, ..whole.clone() };
        let _ = KeyBundle::unseal(&description, &recovery_key).map_err(|error| said(&error));
    });
    hostile("recovery keys", &[golden("recovery-key.txt")], 4 * MIB, |bytes| {
        let key = String::from_utf8_lossy(bytes);
        if let Err(error) = KeyBundle::unseal(&whole, &key) {
            assert!(!chain(&error).contains("GQ9778VQXMMJVE8SK7J6VT8UJ4"), "an error shows the key");
        }
    });
}

#[test]
fn data_keys_and_configurations() {
    let _alone = alone();
    hostile("keys.json", &[golden("keys.json")], MIB, |bytes| {
        if let Err(error) = DataKeys::from_json(bytes) {
            assert!(!chain(&error).contains("CQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g"), "an error shows a key");
        }
    });
    let config = br#"{"endpoint": "https://acme.blob.core.windows.net", "container": "vault", "cacheContainer": "cache",
        "authentication": {"accountKeyFile": "/k"}, "keysFile": "/keys.json", "recoveryKeyFile": "/r"}"#;
    hostile("config.json", &[config.to_vec()], MIB, |bytes| {
        let _ = serde_json::from_slice::<VaultConfig>(bytes);
    });
}

#[test]
fn names_of_blobs() {
    let _alone = alone();
    let part = layout::log_part(&server(), Epoch(7), 3);
    let segment = format!("journal/{SERVER}/0000000001/00000000000000000001-0102/0000000000");
    hostile("names", &[part.into_bytes(), segment.into_bytes()], MIB, |bytes| {
        let name = String::from_utf8_lossy(bytes);
        if let Some((epoch, part)) = layout::parse_log_part(&server(), &name) {
            assert_eq!(layout::log_part(&server(), epoch, part), name);
        }
        let _ = layout::parse_segment(&server(), &name);
        let _ = layout::server_of(&name);
        let _ = name.parse::<PartName>();
        let _ = name.parse::<ServerId>();
    });
}

/// Protobuf may take a small message for many small fields; what it takes must stay in proportion. The largest messages
/// of an agent are refused before they are decoded: see `wire/limited.rs`.
#[test]
fn messages_of_the_wire() {
    let _alone = alone();
    let disk =
        v1::Disk { slot: 1, id: "a".into(), size_bytes: 1 << 30, path: "/dev/sda".into(), left_out: false };
    let hello = v1::Hello {
        protocol: 1,
        server_id: SERVER.into(),
        session: 5,
        agent_version: "0.1.0".into(),
        disks: vec![disk; 3],
        believes: Some(v1::DurableMark { number: 9, epoch: 1, chain: vec![7; 32] }),
        ..Default::default()
    };
    let extent = v1::Extent { disk_slot: 1, first_block: 3, blocks: 2, zero: false };
    let chunk = v1::Chunk {
        number: 4,
        sequence: 1,
        extents: vec![extent; 20],
        data: vec![1; 8192].into(),
        crc32c: 77,
    };
    let up = [v1::up::Message::Hello(hello), v1::up::Message::Chunk(chunk)]
        .map(|message| v1::Up { message: Some(message) }.encode_to_vec());
    hostile("messages of an agent", &up, MIB, |bytes| {
        let _ = v1::Up::decode(bytes);
    });
    let settings = v1::Settings { round_interval_micros: 1, ..Default::default() };
    let down = v1::Down { message: Some(v1::down::Message::Settings(settings)) }.encode_to_vec();
    hostile("messages of a process server", &[down], MIB, |bytes| {
        let _ = v1::Down::decode(bytes);
    });
    let request = v1::EnrolRequest { token: "t".into(), hostname: "h".into(), ..Default::default() };
    hostile("enrolments", &[request.encode_to_vec()], MIB, |bytes| {
        let _ = v1::EnrolRequest::decode(bytes);
    });
}
