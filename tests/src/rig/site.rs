//! Protected disks and the programs that replicate them, each a process of its own as in production, with the files
//! that the operator and enrolment would have made.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use lifeboat_agent::kernel::remove_pins;
use lifeboat_process_server::{edge::persisted::PersistedConfiguration, net::peer::OPERATOR_URI};
use lifeboat_recovery::{BlockIndex, IndexOptions, PointSelector};
use lifeboat_replication::{
    catalogue::{self, Position},
    env::{Env, Micros},
    ids::ServerId,
    keys::DataKeys,
    log::{LogDisk, LogReader},
    store::azure::{AzureOptions, AzureStore, Credential},
    vault::{self, Vault, layout},
    wire::v1::{self, RecordKind, log_record::Body},
};
use serde_json::json;

use super::{Link, Loop, Program, pki::Ca};
use crate::{blob_store::BlobStore, programs::free_ports};

/// As the operator names those of an appliance `main`.
const PROCESS_SERVERS: [&str; 2] = ["main-process-server-0", "main-process-server-1"];
/// The same for its appliers, with an identity over their restarts, as a container has it in its pod.
const APPLIERS: [(&str, &str); 2] = [
    ("main-applier-0", "5f0c8a52-7c1e-4b6a-9d0e-000000000000"),
    ("main-applier-1", "5f0c8a52-7c1e-4b6a-9d0e-000000000001"),
];
/// What process servers serve as agent: missing until [`Site::serve_agent`].
const SERVED_AGENT: &str = "served-agent";
/// The shortest that the store knows, so that tests need not wait long for a dead one's lease.
const APPLIER_LEASE_SECONDS: u64 = 15;
/// Longer than any wait here should be: a restarted process server waits for its former lease of 60 s.
const PATIENCE: Duration = Duration::from_secs(240);

/// A blob store that speaks the Azure protocol.
#[derive(Debug, Clone)]
pub struct StoreAddress {
    /// URL of the blob service, with the account in its path.
    pub endpoint: String,
    /// In base64.
    pub account_key: String,
}

/// How a site is set up.
#[derive(Debug)]
pub struct SiteOptions<'a> {
    /// Names folders and pins: unique among the sites of a process.
    pub name: &'a str,
    /// `None`: an Azurite of its own.
    pub store: Option<StoreAddress>,
    /// Towards the store, through a link that can be cut: bytes a second, 0: as fast as it can. `None`: no link.
    pub link: Option<u64>,
    pub round_interval: Duration,
    pub point_interval: Duration,
    pub spool_bytes: u64,
    /// Bytes a second that the process server may upload; 0: no limit.
    pub upload_limit: u64,
    pub applier: bool,
    /// Appliers look and renew as seldom as they do by default, instead of as often as tests like it.
    pub default_pace: bool,
    /// A second applier beside the first.
    pub second_applier: bool,
    /// A second process server, which has no server yet.
    pub second_process_server: bool,
    /// Servers beside those with disks: enrolled, but without an agent.
    pub without_agent: usize,
    /// Of all servers with disks; empty: none.
    pub consistency_group: &'a str,
    /// Points for which file systems are frozen come this often; zero: only when there is no other.
    pub freeze_interval: Duration,
    /// How the agents find changes (`--tracking`).
    pub tracking: &'a str,
}

impl Default for SiteOptions<'_> {
    fn default() -> Self {
        Self {
            name: "site",
            store: None,
            link: None,
            round_interval: Duration::from_secs(1),
            point_interval: Duration::from_secs(15),
            spool_bytes: 256 << 20,
            upload_limit: 0,
            applier: true,
            default_pace: false,
            second_applier: false,
            second_process_server: false,
            without_agent: 0,
            consistency_group: "",
            freeze_interval: Duration::ZERO,
            tracking: "auto",
        }
    }
}

/// Of one process server.
#[derive(Clone, Copy)]
struct Ports {
    data: u16,
    management: u16,
    control: u16,
    probes: u16,
}

impl Ports {
    fn of(ports: &[u16]) -> Self {
        Self { data: ports[0], management: ports[1], control: ports[2], probes: ports[3] }
    }
}

/// A server with one disk, and what runs on it.
pub struct Protected {
    pub agent: Program,
    pub id: ServerId,
    pub watchdog: Program,
    pins: Pins,
    pub disk: Loop,
}

/// The way to the process servers' control ports.
pub struct Control {
    pub ca_pem: String,
    /// The operator's.
    pub certificate_pem: String,
    pub key_pem: String,
    /// Names and control ports, in order.
    pub process_servers: Vec<(String, String)>,
    /// What they were started with.
    pub configuration: v1::Configuration,
}

/// What the tracker leaves in the kernel; gone with it.
struct Pins(PathBuf);

/// A running site.
pub struct Site {
    pub servers: Vec<Protected>,
    /// Servers without an agent, and their state directories.
    pub enrolled: Vec<(ServerId, PathBuf)>,
    pub process_server: Program,
    pub second_process_server: Option<Program>,
    /// What an operator needs to be theirs.
    pub control: Control,
    pub applier: Option<Program>,
    pub second_applier: Option<Program>,
    pub link: Option<Link>,
    /// The Azurite of its own.
    pub store: Option<BlobStore>,
    /// Seen past the link.
    pub vault: Vault,
    /// Of the process server and the applier: `http://…/metrics`.
    pub metrics: [SocketAddr; 2],
    runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
}

impl Site {
    /// Starts everything; the first copies begin.
    pub fn new(options: &SiteOptions<'_>, disks: Vec<Loop>) -> Self {
        let dir = tempfile::Builder::new().prefix("lifeboat-site-").tempdir().unwrap();
        let home = dir.path();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (store, address) = match &options.store {
            Some(address) => (None, address.clone()),
            None => {
                let store = BlobStore::start(options.name).unwrap();
                let (endpoint, account_key) = (store.endpoint.clone(), store.account_key.clone());
                (Some(store), StoreAddress { endpoint, account_key })
            }
        };
        let link = options.link.map(|bytes_per_second| {
            let link = Link::new(authority(&address.endpoint).parse().unwrap()).unwrap();
            link.limit(bytes_per_second);
            link
        });
        let vault = runtime.block_on(make_vault(&address, home));
        let ids: Vec<ServerId> = (0..disks.len() + options.without_agent)
            .map(|number| runtime.block_on(adopt(&vault, &format!("db-{}", number + 1))))
            .collect();

        let ca = Ca::new();
        fs::create_dir(home.join("tls")).unwrap();
        ca.listener_of(&PROCESS_SERVERS).write(&home.join("tls"), &ca);
        let linked = match &link {
            Some(link) => address.endpoint.replace(&authority(&address.endpoint), &link.address.to_string()),
            None => address.endpoint.clone(),
        };
        write(
            &home.join("vault.json"),
            &json!({
                "endpoint": linked, "container": "vault", "cacheContainer": "cache",
                "account": linked.rsplit('/').next().unwrap(),
                "authentication": {"accountKeyFile": home.join("account-key")}, "keysFile": home.join("keys.json"),
            }),
        );
        let [control_0, applier_probes, control_1, probes_1, ports @ ..] = free_ports::<12>().unwrap();
        let applier_ports = [(control_0, applier_probes), (control_1, probes_1)];
        let ports: Vec<Ports> = ports.chunks_exact(4).map(Ports::of).collect();
        let count = if options.second_process_server { 2 } else { 1 };
        let process_servers = || PROCESS_SERVERS.into_iter().zip(&ports).take(count);
        let management_addresses: Vec<String> =
            process_servers().map(|(_, ports)| format!("localhost:{}", ports.management)).collect();
        let assignments = ids
            .iter()
            .enumerate()
            .map(|(number, id)| {
                let public_key_sha256 = state_dir(home, number, &ca, id, &management_addresses);
                assignment(options, number, id, public_key_sha256)
            })
            .collect();
        let configuration = v1::Configuration {
            generation: 1,
            servers: assignments,
            process_servers: process_servers()
                .map(|(name, ports)| v1::ProcessServerAddress {
                    name: name.to_owned(),
                    data_addresses: vec![local(ports.data)],
                })
                .collect(),
            management_addresses,
            upload_limit_bytes_per_second: options.upload_limit,
        };
        let operator = ca.client(OPERATOR_URI);
        let control = Control {
            ca_pem: ca.pem.clone(),
            certificate_pem: operator.certificate,
            key_pem: operator.key,
            process_servers: process_servers()
                .map(|(name, ports)| (name.to_owned(), local(ports.control)))
                .collect(),
            configuration,
        };

        let config = |name: &str, content: serde_json::Value| {
            write(&home.join(name), &content);
            vec!["--config".to_owned(), home.join(name).display().to_string()]
        };
        let start = |(name, ports): (&str, &Ports)| {
            let spool = home.join(format!("spool-{name}"));
            fs::create_dir(&spool).unwrap();
            runtime.block_on(PersistedConfiguration::new(&spool).save(&control.configuration)).unwrap();
            let arguments = config(
                &format!("{name}.json"),
                json!({
                    "name": name, "dataListen": local(ports.data), "managementListen": local(ports.management),
                    "controlListen": local(ports.control), "metricsListen": local(ports.probes),
                    "tlsDir": home.join("tls"), "managementTlsDir": home.join("tls"),
                    "spool": {"dir": spool, "sizeBytes": options.spool_bytes},
                    "vaultConfig": home.join("vault.json"), "agentBinary": home.join(SERVED_AGENT), "installScript": "/nowhere",
                }),
            );
            Program::new("lifeboat-process-server", home, &format!("{name}.log"), arguments)
        };
        let mut started = process_servers().map(start);
        let count = usize::from(options.applier) + usize::from(options.second_applier);
        let start = |((name, identity), (control, probes)): (&(&str, &str), (u16, u16))| {
            let (lease, poll) = match options.default_pace {
                true => (None, None),
                false => (Some(APPLIER_LEASE_SECONDS), Some(500)),
            };
            let arguments = config(
                &format!("{name}.json"),
                json!({
                    "name": name, "identity": identity, "leaseSeconds": lease,
                    "controlListen": local(control), "metricsListen": local(probes),
                    "tlsDir": home.join("tls"), "vaultConfig": home.join("vault.json"),
                    "pointIntervalSeconds": options.point_interval.as_secs(), "pollIntervalMilliseconds": poll,
                }),
            );
            Program::new("lifeboat-applier", home, &format!("{name}.log"), arguments)
        };
        let mut appliers = APPLIERS.iter().zip(applier_ports).take(count).map(start);
        let (applier, second_applier) = (appliers.next(), appliers.next());
        drop(appliers);
        let (process_server, second_process_server) = (started.next().unwrap(), started.next());
        drop(started);
        let enrolled = (disks.len()..ids.len())
            .map(|number| (ids[number].clone(), home.join(format!("agent-{number}"))))
            .collect();
        let servers = disks
            .into_iter()
            .zip(ids)
            .enumerate()
            .map(|(number, (disk, id))| Protected::start(options, home, number, disk, id))
            .collect();
        Self {
            servers,
            enrolled,
            process_server,
            second_process_server,
            metrics: [ports[0].probes, applier_probes].map(|port| local(port).parse().unwrap()),
            control,
            applier,
            second_applier,
            link,
            store,
            vault,
            runtime,
            dir,
        }
    }

    /// How programs open the vault.
    pub fn vault_config(&self) -> PathBuf {
        self.dir.path().join("vault.json")
    }

    /// The first process server has its servers shut down: it hears of that with its start, as from an operator.
    pub fn order_shutdown(&mut self, id: &str) {
        self.control.configuration.generation += 1;
        for server in &mut self.control.configuration.servers {
            server.settings.get_or_insert_default().shutdown = id.to_owned();
        }
        let spool = self.dir.path().join(format!("spool-{}", PROCESS_SERVERS[0]));
        self.process_server.kill();
        self.runtime.block_on(PersistedConfiguration::new(&spool).save(&self.control.configuration)).unwrap();
        self.process_server.start();
    }

    /// The first process server serves this program from now on: it is started anew with it, as after an upgrade of the
    /// appliance.
    pub fn serve_agent(&mut self, program: &Path) {
        self.process_server.stop();
        fs::copy(program, self.dir.path().join(SERVED_AGENT)).unwrap();
        self.process_server.start();
    }

    /// Number of the last record of the first server that its process server has received and not committed.
    pub fn received(&self) -> Option<u64> {
        let spool = self.dir.path().join(format!("spool-{}/segments", PROCESS_SERVERS[0]));
        let files = fs::read_dir(spool.join(self.servers[0].id.as_str())).ok()?;
        let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
        let records = names.filter(|name| name.starts_with("record-"));
        records.filter_map(|name| u64::from_str_radix(name.rsplit('-').next()?, 16).ok()).max()
    }

    /// Of the first server with a disk.
    pub fn records(&self) -> Vec<v1::Data> {
        self.records_by(&self.servers[0].id)
    }

    /// The data records of a server's log, as the store has them now; none when it cannot be read.
    pub fn records_by(&self, server: &ServerId) -> Vec<v1::Data> {
        self.runtime.block_on(async {
            let mut reader = LogReader::from_start(&self.vault, server, &Env::system());
            let mut records = Vec::new();
            loop {
                match reader.next().await {
                    Ok(Some(entry)) => {
                        if let Body::Data(data) = entry.body {
                            records.push(data);
                        }
                    }
                    Ok(None) => return records,
                    // A store that is just back may need a moment, and whoever waits asks again.
                    Err(error) => {
                        println!("the log cannot be read now: {error}");
                        return Vec::new();
                    }
                }
            }
        })
    }

    /// Waits until `done` says so of the first server's records; returns them.
    pub fn wait_for(&self, what: &str, done: impl Fn(&[v1::Data]) -> bool) -> Vec<v1::Data> {
        self.wait(what, || Some(self.records()).filter(|records| done(records)))
    }

    /// Waits until there is an answer.
    pub fn wait<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            if Instant::now() > end {
                let programs = self.servers.iter().map(|server| &server.agent);
                let programs = programs.chain([&self.process_server]).chain(&self.second_process_server);
                let programs = programs.chain(&self.applier).chain(&self.second_applier);
                let tails: Vec<_> = programs
                    .map(|program| format!("== {} {}\n{}", program.name, program.state(), program.tail()))
                    .collect();
                panic!("{what}: not after {PATIENCE:?}\n{}", tails.join("\n"));
            }
            sleep(Duration::from_millis(250));
        }
    }

    /// A figure of the process server's metrics that stands there once; `None`: not yet.
    pub fn figure(&self, name: &str) -> Option<f64> {
        let mut stream = TcpStream::connect(self.metrics[0]).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let line = text
            .lines()
            .find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Waits until the first server's seed disk holds every record up to `number`; its content without the footer.
    pub fn seed_disk(&self, number: u64) -> Vec<u8> {
        self.seed_disk_of(&self.servers[0].id, number)
    }

    /// The same of any server.
    pub fn seed_disk_of(&self, server: &ServerId, number: u64) -> Vec<u8> {
        let (mut content, size) = self.seed_blob_of(server, number);
        content.truncate(size);
        content
    }

    /// With its footer: a VHD. And the size of the disk in bytes.
    pub fn seed_blob_of(&self, server: &ServerId, number: u64) -> (Vec<u8>, usize) {
        let position: Position = self.wait(&format!("record {number} on the seed disk"), || {
            // As with any first call after a while: the store may have closed the connection.
            let read = self.runtime.block_on(catalogue::read::<Position>(&self.vault, server));
            let read = read.inspect_err(|error| println!("the position cannot be read now: {error}"));
            let (position, _) = read.ok()??;
            (position.log.last_number.0 >= number).then_some(position)
        });
        let seed = position.seeds.values().next().unwrap();
        let blob = layout::seed_disk(server, &seed.disk_id);
        let mut content = Vec::new();
        let length = self.runtime.block_on(self.vault.store.properties(&blob, None)).unwrap().length;
        while (content.len() as u64) < length {
            let from = content.len() as u64;
            let range = from..(from + (4 << 20)).min(length);
            content.extend_from_slice(
                &self.runtime.block_on(self.vault.store.get(&blob, None, Some(range))).unwrap(),
            );
        }
        (content, usize::try_from(seed.size_bytes).unwrap())
    }

    /// Opens a point of the first server's disk.
    pub fn open(&self, selector: PointSelector) -> Arc<BlockIndex> {
        self.runtime.block_on(self.open_async(selector))
    }

    /// The same inside [`Site::block_on`].
    pub async fn open_async(&self, selector: PointSelector) -> Arc<BlockIndex> {
        let options = IndexOptions { cache_bytes: 64 << 20 };
        let server = &self.servers[0].id;
        BlockIndex::open(&self.vault, server, &Env::system(), selector, &options).await.unwrap()
    }

    /// The first server's disk at the record, read from snapshots and journal through the block index.
    pub fn recovered(&self, number: u64) -> Vec<u8> {
        self.recovered_of(&self.servers[0].id, number)
    }

    /// The same of any server with one disk.
    pub fn recovered_of(&self, server: &ServerId, number: u64) -> Vec<u8> {
        self.all_recovered_of(server, number).into_values().next().unwrap()
    }

    /// All disks of a server, by their ids.
    pub fn all_recovered_of(&self, server: &ServerId, number: u64) -> BTreeMap<String, Vec<u8>> {
        let options = IndexOptions { cache_bytes: 64 << 20 };
        let env = Env::system();
        // A connection that the store has closed while this runtime stood still is found out by its first use.
        let index = self.wait("a point that opens", || {
            let selector = PointSelector::Number(number);
            let opened = self.block_on(BlockIndex::open(&self.vault, server, &env, selector, &options));
            opened.inspect_err(|error| println!("record {number} does not open yet: {error}")).ok()
        });
        let read = |disk: &LogDisk| {
            let blocks = u32::try_from(disk.size_bytes.div_ceil(4096)).unwrap();
            let mut content = Vec::new();
            for first in (0..blocks).step_by(1024) {
                let read = index.read(disk.slot, first, (blocks - first).min(1024));
                content.extend_from_slice(&self.runtime.block_on(read).unwrap());
            }
            content.truncate(usize::try_from(disk.size_bytes).unwrap());
            (disk.id.to_string(), content)
        };
        index.disks().map(read).collect()
    }

    /// Ends everything but the disks.
    pub fn into_disks(mut self) -> Vec<Loop> {
        std::mem::take(&mut self.servers).into_iter().map(Protected::into_disk).collect()
    }

    /// For calls of the store and the block index.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }
}

impl Protected {
    fn start(options: &SiteOptions<'_>, home: &Path, number: usize, disk: Loop, id: ServerId) -> Self {
        let site = options.name;
        let pins = PathBuf::from(format!("/sys/fs/bpf/lifeboat-test-{}-{site}-{number}", std::process::id()));
        let socket = home.join(format!("thaw-{number}.sock")).display().to_string();
        let state = home.join(format!("agent-{number}"));
        let agent =
            ["run", "--state-dir", state.to_str().unwrap(), "--include-disk", disk.name(), "--pin-dir"]
                .into_iter()
                .chain([pins.to_str().unwrap(), "--thaw-socket", &socket, "--tracking", options.tracking])
                .map(str::to_owned)
                .collect();
        let watchdog = vec!["thaw-watchdog".to_owned(), "--thaw-socket".to_owned(), socket];
        Self {
            watchdog: Program::new("lifeboat-agent", home, &format!("watchdog-{number}.log"), watchdog),
            agent: Program::new("lifeboat-agent", home, &format!("agent-{number}.log"), agent),
            disk,
            id,
            pins: Pins(pins),
        }
    }

    fn into_disk(self) -> Loop {
        self.disk
    }
}

impl Protected {
    /// The kernel tracks no more, and nobody knows what has changed. The agent must not run.
    pub fn forget_marks(&self) {
        remove_pins(&self.pins.0).unwrap();
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        _ = remove_pins(&self.0);
    }
}

/// The newest record if it is a point.
pub fn point(records: &[v1::Data]) -> Option<&v1::Data> {
    records.last().filter(|record| record.complete && record.kind() == RecordKind::Exact)
}

/// Microseconds since 1970.
pub fn now() -> i64 {
    let Micros(now) = Env::system().wall.now();
    now
}

/// What enrolment leaves on a server; returns the hash of its public key.
fn state_dir(home: &Path, number: usize, ca: &Ca, id: &ServerId, management: &[String]) -> Vec<u8> {
    let dir = home.join(format!("agent-{number}"));
    fs::create_dir(&dir).unwrap();
    let leaf = ca.client(&format!("lifeboat:server:{id}"));
    for (file, content) in [("key.pem", &leaf.key), ("cert.pem", &leaf.certificate), ("ca.pem", &ca.pem)] {
        fs::write(dir.join(file), content).unwrap();
    }
    write(&dir.join("agent.json"), &json!({"serverId": id.as_str(), "managementAddresses": management}));
    leaf.public_key_sha256
}

fn assignment(
    options: &SiteOptions<'_>,
    number: usize,
    id: &ServerId,
    public_key_sha256: Vec<u8>,
) -> v1::Assignment {
    v1::Assignment {
        server_id: id.to_string(),
        display_name: format!("default/db-{}", number + 1),
        process_server: PROCESS_SERVERS[0].to_owned(),
        settings: Some(v1::Settings {
            round_interval_micros: u64::try_from(options.round_interval.as_micros()).unwrap(),
            max_freezes_per_hour: 30,
            freeze_timeout_micros: 2_000_000,
            rpo_threshold_micros: 30_000_000,
            app_consistent_interval_micros: u64::try_from(options.freeze_interval.as_micros()).unwrap(),
            ..v1::Settings::default()
        }),
        compression_level: 1,
        public_key_sha256,
        points: Vec::new(),
        lost_epoch: 0,
        consistency_group: options.consistency_group.to_owned(),
        group_members: 0,
    }
}

async fn make_vault(address: &StoreAddress, home: &Path) -> Vault {
    let env = Env::system();
    let keys = Arc::new(DataKeys::generate(&*env.entropy));
    secret(&home.join("keys.json"), &keys.to_json());
    secret(&home.join("account-key"), address.account_key.as_bytes());
    let account = address.endpoint.rsplit('/').next().unwrap().to_owned();
    let open = |container: &str| {
        let key = address.account_key.clone().into();
        let credential = Credential::AccountKey { account: account.clone(), key };
        let options =
            AzureOptions { endpoint: address.endpoint.clone(), container: container.to_owned(), credential };
        Arc::new(AzureStore::new(&options).unwrap())
    };
    let (store, cache) = (open("vault"), open("cache"));
    let recipients = [age::x25519::Identity::generate().to_public().to_string()];
    vault::bootstrap(store.clone(), cache.clone(), Arc::clone(&keys), &recipients, &env).await.unwrap();
    vault::open(store, cache, keys).await.unwrap()
}

async fn adopt(vault: &Vault, name: &str) -> ServerId {
    vault.adopt_server("default", name, &Env::system()).await.unwrap().id
}

/// `host:port` of a URL.
fn authority(url: &str) -> String {
    url.split('/').nth(2).unwrap().to_owned()
}

fn local(port: u16) -> String {
    SocketAddr::from(([127, 0, 0, 1], port)).to_string()
}

fn write(path: &Path, content: &serde_json::Value) {
    fs::write(path, content.to_string()).unwrap();
}

fn secret(path: &Path, content: &[u8]) {
    let mut file = File::options().create_new(true).write(true).mode(0o600).open(path).unwrap();
    file.write_all(content).unwrap();
}
