//! The first copy against `zstd -1` and a TLS pipe, and the upload against the slower of our pipeline and the store.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use lifeboat_replication::{
    env::Env,
    log::LogReader,
    store::{
        BlobStore as _, PutCondition,
        azure::{AzureOptions, AzureStore, Credential},
    },
    wire::v1::{self, log_record::Body},
};
use lifeboat_tests::{
    blob_store::BlobStore,
    programs::free_ports,
    rig::{Loop, Site, SiteOptions, StoreAddress, run},
};

use crate::{
    free_store::FreeStore,
    load::mixed_disk,
    report::{Figure, Goal},
    statistics::quantile,
};

const DISK_MIB: u64 = 1024;
/// As the process server uploads: segments of 4 MiB, four at a time for a server.
const SEGMENT_BYTES: usize = 4 << 20;
const PARALLEL: usize = 4;

pub fn measure(repeat: usize) -> Vec<Figure> {
    let mut disk = mixed_disk(DISK_MIB);
    let (mut against_peer, mut against_limit, mut azurite_rates) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ours, mut peers, mut bare_rates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..repeat {
        let store = FreeStore::start();
        let free;
        (disk, free) = first_copy(disk, Some(store.address.clone()));
        drop(store);
        let peer = zstd_tls(&disk);
        let azurite;
        (disk, azurite) = first_copy(disk, None);
        let bare = bare_upload(azurite.stored_bytes);
        against_peer.push(peer.as_secs_f64() / free.time.as_secs_f64());
        let [pipeline, into_azurite] = [&free, &azurite].map(Copied::stored_mib_per_second);
        against_limit.push(into_azurite / pipeline.min(bare));
        ours.push(free.read_mib_per_second());
        azurite_rates.push(azurite.read_mib_per_second());
        peers.push(DISK_MIB as f64 / peer.as_secs_f64());
        bare_rates.push(bare);
    }
    let median = |samples: &[f64]| quantile(samples, 0.5).unwrap();
    vec![
        Figure::new(
            "initial_copy_vs_zstd_tls",
            "rate of the first copy of 1 GiB into a store without cost / rate of `zstd -1` and a TLS pipe into nothing",
            "",
            &against_peer,
        )
        .goal(Goal::AtLeast(0.8))
        .beside(format!(
            "ours {:.0} MiB/s read, into Azurite {:.0}; `zstd -1` with TLS {:.0}",
            median(&ours),
            median(&azurite_rates),
            median(&peers)
        )),
        Figure::new(
            "upload_vs_limit",
            "stored bytes a second into Azurite / the smaller of our pipeline into a store without cost and a bare client (4 MiB, 4 at a time) into Azurite",
            "",
            &against_limit,
        )
        .beside(format!("bare client into Azurite {:.0} MiB/s", median(&bare_rates))),
    ]
}

struct Copied {
    time: Duration,
    stored_bytes: u64,
}

impl Copied {
    fn read_mib_per_second(&self) -> f64 {
        DISK_MIB as f64 / self.time.as_secs_f64()
    }

    fn stored_mib_per_second(&self) -> f64 {
        self.stored_bytes as f64 / f64::from(1 << 20) / self.time.as_secs_f64()
    }
}

/// From the agent's start to the first record after which nothing is left to copy. Returns the disk for the next one.
fn first_copy(disk: Loop, store: Option<StoreAddress>) -> (Loop, Copied) {
    let options =
        SiteOptions { name: "copy", store, spool_bytes: 1 << 30, applier: false, ..SiteOptions::default() };
    let site = Site::new(&options, vec![disk]);
    let began = Instant::now();
    let stored_bytes = site.block_on(async {
        let mut reader = LogReader::from_start(&site.vault, &site.servers[0].id, &Env::system());
        let mut stored = 0;
        loop {
            let Some(entry) = reader.next().await.unwrap() else {
                assert!(began.elapsed() < Duration::from_secs(300), "the copy does not end");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            if let Body::Data(data) = entry.body {
                stored += stored_of(&data);
                if data.complete {
                    return stored;
                }
            }
        }
    });
    (site.into_disks().remove(0), Copied { time: began.elapsed(), stored_bytes })
}

fn stored_of(record: &v1::Data) -> u64 {
    record.segments.iter().map(|segment| segment.length).sum()
}

/// Time of `zstd -1 < disk | TLS > nothing`.
fn zstd_tls(disk: &Loop) -> Duration {
    let dir = tempfile::tempdir().unwrap();
    let [certificate, key] = ["cert.pem", "key.pem"].map(|name| dir.path().join(name));
    run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-keyout",
            key.to_str().unwrap(),
            "-out",
            certificate.to_str().unwrap(),
        ],
    );
    let pair = dir.path().join("pair.pem");
    fs::write(&pair, [fs::read(&key).unwrap(), fs::read(&certificate).unwrap()].concat()).unwrap();
    let [port] = free_ports().unwrap();
    let mut sink = sink(&pair, port);
    thread::sleep(Duration::from_millis(500));
    run("blockdev", &["--flushbufs", disk.name()]);
    let began = Instant::now();
    let pipe = format!("zstd -q -1 -c <{} | socat -u - OPENSSL:127.0.0.1:{port},verify=0", disk.name());
    run("sh", &["-c", &pipe]);
    sink.wait().unwrap();
    began.elapsed()
}

fn sink(pair: &Path, port: u16) -> Child {
    let listen = format!("OPENSSL-LISTEN:{port},bind=127.0.0.1,cert={},verify=0", pair.display());
    Command::new("socat").args(["-u", &listen, "OPEN:/dev/null"]).stdin(Stdio::null()).spawn().unwrap()
}

/// MiB a second of plain puts into an Azurite of its own.
fn bare_upload(bytes: u64) -> f64 {
    let azurite = BlobStore::start("bare").unwrap();
    let account = azurite.endpoint.rsplit('/').next().unwrap().to_owned();
    let key = azurite.account_key.clone().into();
    let options = AzureOptions {
        endpoint: azurite.endpoint.clone(),
        container: "bare".to_owned(),
        credential: Credential::AccountKey { account, key },
    };
    let store = Arc::new(AzureStore::new(&options).unwrap());
    let mut content = vec![0; SEGMENT_BYTES];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut content).unwrap();
    let content = Bytes::from(content);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        store.ensure_container().await.unwrap();
        let began = Instant::now();
        let puts = stream::iter(0..bytes.div_ceil(SEGMENT_BYTES as u64)).map(|number| {
            let (store, content) = (Arc::clone(&store), content.clone());
            async move { store.put(&format!("{number}"), content, &PutCondition::IfAbsent).await }
        });
        let done: Vec<_> = puts.buffer_unordered(PARALLEL).try_collect().await.unwrap();
        (done.len() * SEGMENT_BYTES) as f64 / f64::from(1 << 20) / began.elapsed().as_secs_f64()
    })
}
