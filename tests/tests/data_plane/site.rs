//! One protected disk and the programs that replicate it, each a process of its own as in production, with the files
//! that the operator and enrolment would have made.

use std::{
    fs::{self, File},
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use lifeboat_agent::kernel::remove_pins;
use lifeboat_process_server::edge::persisted::PersistedConfiguration;
use lifeboat_recovery::{BlockIndex, IndexOptions, PointSelector};
use lifeboat_replication::{
    catalogue::{self, Position},
    env::{Env, Micros},
    ids::ServerId,
    keys::DataKeys,
    log::LogReader,
    store::azure::{AzureOptions, AzureStore, Credential},
    vault::{self, Vault, layout},
    wire::v1::{self, RecordKind, log_record::Body},
};
use lifeboat_tests::{
    blob_store::BlobStore,
    programs::{free_ports, program},
};
use serde_json::json;

use super::{disk::Loop, link::Link, pki::Ca};

const PROCESS_SERVER: &str = "ps-0";
/// Longer than any wait here should be: a restarted process server waits for its former lease of 30 s.
const PATIENCE: Duration = Duration::from_secs(240);

/// A program that can be killed and started again.
pub struct Program {
    name: &'static str,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Program {
    fn new(name: &'static str, dir: &Path, arguments: Vec<String>) -> Self {
        let log = dir.join(format!(
            "{name}{}.log",
            arguments.first().map_or("", |first| first.trim_start_matches('-'))
        ));
        let mut program = Self { name, arguments, log, child: None };
        program.start();
        program
    }

    pub fn start(&mut self) {
        let path = program(self.name);
        assert!(path.exists(), "{} is not built: cargo build --workspace --bins", path.display());
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(path);
        command.args(&self.arguments).stdin(Stdio::null());
        self.child = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    /// As `kill -9` does it: nothing can be put in order.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            assert_eq!(child.try_wait().unwrap(), None, "{} ended by itself:\n{}", self.name, self.tail());
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Gone, whatever it was doing or if it had ended before.
    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            _ = child.kill();
            _ = child.wait();
        }
    }

    /// As the kernel names it, for whoever has to find out why a test waited in vain.
    fn state(&self) -> String {
        let pid = self.child.as_ref().map_or(0, Child::id);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or("State: gone");
        format!("({})", state.replace('\t', " "))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}

/// A running site.
pub struct Site {
    pub disk: Loop,
    pub agent: Program,
    pub process_server: Program,
    pub applier: Program,
    _watchdog: Program,
    pub link: Link,
    pub store: BlobStore,
    /// Seen past the link.
    vault: Vault,
    server: ServerId,
    runtime: tokio::runtime::Runtime,
    pins: PathBuf,
    _dir: tempfile::TempDir,
}

impl Site {
    /// Starts everything; the first copy begins, at `bytes_per_second` towards the store.
    pub fn new(name: &str, disk: Loop, bytes_per_second: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("lifeboat-site-").tempdir().unwrap();
        let home = dir.path();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let store = BlobStore::start(name).unwrap();
        let link = Link::new(authority(&store.endpoint).parse().unwrap()).unwrap();
        link.limit(bytes_per_second);
        let [data, management, control, probes, applier_control, applier_probes] = free_ports().unwrap();

        let (vault, server) = runtime.block_on(vault(&store, home));
        let linked = store.endpoint.replace(&authority(&store.endpoint), &link.address.to_string());
        let account = linked.rsplit('/').next().unwrap();
        write(
            &home.join("vault.json"),
            &json!({
                "endpoint": linked, "container": "vault", "cacheContainer": "cache", "account": account,
                "authentication": {"accountKeyFile": home.join("account-key")}, "keysFile": home.join("keys.json"),
            }),
        );

        let ca = Ca::new();
        let agent_leaf = ca.client(&format!("lifeboat:server:{server}"));
        for folder in ["tls", "spool", "agent"] {
            fs::create_dir(home.join(folder)).unwrap();
        }
        ca.listener().write(&home.join("tls"), &ca);
        for (file, content) in
            [("key.pem", &agent_leaf.key), ("cert.pem", &agent_leaf.certificate), ("ca.pem", &ca.pem)]
        {
            fs::write(home.join("agent").join(file), content).unwrap();
        }
        let management_addresses = vec![format!("localhost:{management}")];
        write(
            &home.join("agent/agent.json"),
            &json!({"serverId": server.as_str(), "managementAddresses": management_addresses}),
        );
        let configuration = v1::Configuration {
            generation: 1,
            servers: vec![v1::Assignment {
                server_id: server.to_string(),
                display_name: "default/db-1".to_owned(),
                process_server: PROCESS_SERVER.to_owned(),
                settings: Some(v1::Settings {
                    round_interval_micros: 1_000_000,
                    max_freezes_per_hour: 30,
                    freeze_timeout_micros: 2_000_000,
                    rpo_threshold_micros: 30_000_000,
                    ..v1::Settings::default()
                }),
                compression_level: 1,
                public_key_sha256: agent_leaf.public_key_sha256,
            }],
            process_servers: vec![v1::ProcessServerAddress {
                name: PROCESS_SERVER.to_owned(),
                data_addresses: vec![local(data)],
            }],
            management_addresses,
        };
        runtime.block_on(PersistedConfiguration::new(&home.join("spool")).save(&configuration)).unwrap();

        let config = |name: &str, content: serde_json::Value| {
            write(&home.join(name), &content);
            vec!["--config".to_owned(), home.join(name).display().to_string()]
        };
        let process_server = config(
            "process-server.json",
            json!({
                "name": PROCESS_SERVER, "dataListen": local(data), "managementListen": local(management),
                "controlListen": local(control), "metricsListen": local(probes), "tlsDir": home.join("tls"),
                "managementTlsDir": home.join("tls"), "spool": {"dir": home.join("spool"), "sizeBytes": 256 << 20},
                "vaultConfig": home.join("vault.json"), "agentBinary": "/nowhere", "installScript": "/nowhere",
            }),
        );
        let applier = config(
            "applier.json",
            json!({
                "name": "applier-0", "controlListen": local(applier_control), "metricsListen": local(applier_probes),
                "tlsDir": home.join("tls"), "vaultConfig": home.join("vault.json"), "pointIntervalSeconds": 15,
                "pollIntervalMilliseconds": 500,
            }),
        );
        let pins = PathBuf::from(format!("/sys/fs/bpf/lifeboat-test-{}-{name}", std::process::id()));
        let socket = home.join("thaw.sock").display().to_string();
        let agent = [
            "run",
            "--state-dir",
            home.join("agent").to_str().unwrap(),
            "--include-disk",
            disk.name(),
            "--pin-dir",
        ]
        .into_iter()
        .chain([pins.to_str().unwrap(), "--thaw-socket", &socket])
        .map(str::to_owned)
        .collect();
        Self {
            _watchdog: Program::new(
                "lifeboat-agent",
                home,
                vec!["thaw-watchdog".to_owned(), "--thaw-socket".to_owned(), socket],
            ),
            process_server: Program::new("lifeboat-process-server", home, process_server),
            applier: Program::new("lifeboat-applier", home, applier),
            agent: Program::new("lifeboat-agent", home, agent),
            disk,
            link,
            store,
            vault,
            server,
            runtime,
            pins,
            _dir: dir,
        }
    }

    /// The data records of the log, as the store has them now.
    pub fn records(&self) -> Vec<v1::Data> {
        self.runtime.block_on(async {
            let mut reader = LogReader::from_start(&self.vault, &self.server, &Env::system());
            let mut records = Vec::new();
            while let Some(entry) = reader.next().await.unwrap() {
                if let Body::Data(data) = entry.body {
                    records.push(data);
                }
            }
            records
        })
    }

    /// Waits until `done` says so of the log's records; returns them.
    pub fn wait_for(&self, what: &str, done: impl Fn(&[v1::Data]) -> bool) -> Vec<v1::Data> {
        self.wait(what, || Some(self.records()).filter(|records| done(records)))
    }

    fn wait<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            if Instant::now() > end {
                let tails = [&self.agent, &self.process_server, &self.applier]
                    .map(|program| format!("== {} {}\n{}", program.name, program.state(), program.tail()));
                panic!("{what}: not after {PATIENCE:?}\n{}", tails.join("\n"));
            }
            sleep(Duration::from_millis(250));
        }
    }

    /// Waits until the seed disk holds every record up to `number`, and returns its content without the footer.
    pub fn seed_disk(&self, number: u64) -> Vec<u8> {
        let position: Position = self.wait(&format!("record {number} on the seed disk"), || {
            let read = catalogue::read::<Position>(&*self.vault.store, &self.server);
            let (position, _) = self.runtime.block_on(read).unwrap()?;
            (position.log.last_number.0 >= number).then_some(position)
        });
        let seed = position.seeds.values().next().unwrap();
        let blob = layout::seed_disk(&self.server, &seed.disk_id);
        let mut content = Vec::new();
        while (content.len() as u64) < seed.size_bytes {
            let from = content.len() as u64;
            let range = from..(from + (4 << 20)).min(seed.size_bytes);
            content.extend_from_slice(
                &self.runtime.block_on(self.vault.store.get(&blob, None, Some(range))).unwrap(),
            );
        }
        content
    }

    /// The disk at the record, read from snapshots and journal through the block index.
    pub fn recovered(&self, number: u64) -> Vec<u8> {
        self.runtime.block_on(async {
            let options = IndexOptions { cache_bytes: 64 << 20 };
            let selector = PointSelector::Number(number);
            let index = BlockIndex::open(&self.vault, &self.server, &Env::system(), selector, &options)
                .await
                .unwrap();
            let disk = index.disks().next().unwrap().clone();
            let blocks = u32::try_from(disk.size_bytes.div_ceil(4096)).unwrap();
            let mut content = Vec::new();
            for first in (0..blocks).step_by(1024) {
                content.extend_from_slice(
                    &index.read(disk.slot, first, (blocks - first).min(1024)).await.unwrap(),
                );
            }
            content.truncate(usize::try_from(disk.size_bytes).unwrap());
            content
        })
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for program in [&mut self.agent, &mut self.process_server, &mut self.applier] {
            program.end();
        }
        _ = remove_pins(&self.pins);
    }
}

/// The newest record if it is a point.
pub fn point(records: &[v1::Data]) -> Option<&v1::Data> {
    records.last().filter(|record| record.complete && record.kind() == RecordKind::Exact)
}

pub fn now() -> i64 {
    let Micros(now) = Env::system().wall.now();
    now
}

async fn vault(store: &BlobStore, home: &Path) -> (Vault, ServerId) {
    let env = Env::system();
    let keys = Arc::new(DataKeys::generate(&*env.entropy));
    secret(&home.join("keys.json"), &keys.to_json());
    secret(&home.join("account-key"), store.account_key.as_bytes());
    let account = store.endpoint.rsplit('/').next().unwrap().to_owned();
    let open = |container: &str| {
        let credential =
            Credential::AccountKey { account: account.clone(), key: store.account_key.clone().into() };
        let options =
            AzureOptions { endpoint: store.endpoint.clone(), container: container.to_owned(), credential };
        Arc::new(AzureStore::new(&options).unwrap())
    };
    let (store, cache) = (open("vault"), open("cache"));
    let recipients = [age::x25519::Identity::generate().to_public().to_string()];
    vault::bootstrap(store.clone(), cache.clone(), Arc::clone(&keys), &recipients, &env).await.unwrap();
    let vault = vault::open(store, cache, keys).await.unwrap();
    let server = vault.adopt_server("default", "db-1", &env).await.unwrap();
    (vault, server.id)
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
