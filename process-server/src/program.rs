//! The program's life: starts the ports, opens the vault, runs the servers, and stops in order.

use std::{sync::Arc, time::Duration};

use lifeboat_replication::{
    env::Env,
    errors::chain,
    log::LogOptions,
    store::gated::Gated,
    vault::{self, Vault, config::VaultConfig},
};
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    config::Config,
    core::{Shared, agent_program::Served, fair::FairSlots, space::Space, switchboard::Switchboard},
    directory::Directory,
    edge::{
        metered::StoreFigures,
        persisted::{self, PersistedConfiguration},
        seal_pool::SealPool,
        spool_dir::DirSpool,
        throttled::{Throttle, Throttled},
    },
    figures,
    groups::Coordinator,
    net::{
        control::{self, ControlPort},
        data::{self, DataPort},
        downloads::Downloads,
        listener,
        management::{self, ManagementPort},
        probes::Probes,
        signing::SignDesk,
        tls::{ClientCertificate, TlsError, TlsFiles},
    },
    report::Sources,
    servers::{Members, Servers},
};

/// Plain text of all servers between connections and spool: with what each connection holds, memory stays below
/// 64 MiB and 4 MiB a server.
const MEMORY_BYTES: u64 = 32 << 20;
/// Enough to fill a line of 1 Gbit/s at 100 ms with segments of 1 MiB.
const UPLOADS: usize = 16;
/// Their segments are in memory meanwhile: data that cannot be compressed makes some of 6 MiB.
const UPLOAD_BYTES: u64 = 24 << 20;
/// Segments that go to their upload without the spool: enough while uploads begin at once, and little memory when they
/// do not.
const UNSPOOLED: usize = 2;
/// The vault may be created by the operator only now, or be away.
const VAULT_PAUSE: Duration = Duration::from_secs(5);
/// More than an ingest takes to finish, less than a pod is given.
const STOP_LIMIT: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(
        "cannot listen on {address}: another program has the port, or it needs a right that the pod lacks"
    )]
    Listen {
        address: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("{} cannot be written: check the volume of the spool", dir.display())]
    Instance {
        dir: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the spool cannot be opened")]
    Spool(#[from] crate::core::spool::SpoolError),
    #[error("the {0} ended by itself")]
    Ended(&'static str),
}

/// Runs until `stop` ends.
pub async fn run(config: Config, env: Env, stop: impl Future<Output = ()>) -> Result<(), ProgramError> {
    let tls_files = |clients, own: &std::path::Path, protocols| TlsFiles {
        own: own.to_owned(),
        ca: config.tls_dir.join("ca.crt"),
        clients,
        protocols,
    };
    let http2: &'static [&'static [u8]] = &[b"h2"];
    let (inner_tls, inner_reload) =
        tls_files(ClientCertificate::Required, &config.tls_dir, http2).load().await?;
    let both: &'static [&'static [u8]] = &[b"h2", b"http/1.1"];
    let (outer_tls, outer_reload) =
        tls_files(ClientCertificate::Optional, &config.management_tls_dir, both).load().await?;

    let spool = Arc::new(DirSpool::open(&config.spool.dir).await?);
    let persisted = PersistedConfiguration::new(&config.spool.dir);
    let instance = persisted::instance(&config.spool.dir, &*env.entropy).await;
    let instance =
        instance.map_err(|source| ProgramError::Instance { dir: config.spool.dir.clone(), source })?;
    let kept = persisted.load().await.map(|configuration| Arc::new(Directory::from(configuration)));
    let (directory, directories) = watch::channel(kept);
    let (members, member_lists) = watch::channel(Arc::new(Members::new()));
    let (vault_closed, vault_closed_now) = watch::channel("the vault is being opened".to_owned());
    let mut registry = Registry::with_prefix(figures::PREFIX);
    let store_figures = StoreFigures::register(&mut registry);
    let space = Space::spool(config.spool.size_bytes);
    let (groups, group_reports) = watch::channel(Vec::new());
    let downloads = Downloads::load(&config.install_script, &config.agent_binary).await;
    let sources = Sources {
        name: config.name.clone(),
        env: env.clone(),
        directory: directories.clone(),
        members: member_lists.clone(),
        space: Arc::clone(&space),
        vault_closed: vault_closed_now,
        store_trouble: store_figures.trouble(),
        groups: group_reports,
        served_agent: Served { sha256: downloads.agent_sha256(), version: env!("CARGO_PKG_VERSION") },
    };
    figures::register(&mut registry, sources.clone());
    let desk = Arc::new(SignDesk::default());

    let mut ports: JoinSet<&'static str> = JoinSet::new();
    let probes = Probes { registry: Arc::new(registry), sources: sources.clone() };
    let listener = listen(config.metrics_listen).await?;
    ports.spawn(async move {
        let served = probes.serve(listener).await;
        tracing::error!(?served, "probes ended");
        "metrics port"
    });
    let (incoming, accepting) =
        listener::accept(listen(config.data_listen).await?, inner_tls.clone(), data::LIMITS, None);
    ports.spawn(ended("data listener", accepting));
    let port = DataPort::new(config.name.clone(), directories.clone(), member_lists);
    ports.spawn(ended("data port", port.serve(incoming)));

    let (incoming, accepting) =
        listener::accept(listen(config.control_listen).await?, inner_tls.clone(), control::LIMITS, None);
    ports.spawn(ended("control listener", accepting));
    let port = ControlPort { desk: Arc::clone(&desk), sources, directory: Arc::new(directory), persisted };
    ports.spawn(ended("control port", port.serve(incoming)));

    let (incoming, accepting) =
        listener::accept(listen(config.management_listen).await?, outer_tls, management::LIMITS, None);
    ports.spawn(ended("management listener", accepting));
    let port = ManagementPort {
        name: config.name.clone(),
        directory: directories.clone(),
        desk,
        data_tls: inner_tls,
    };
    ports.spawn(ended("management port", port.serve(incoming, downloads.routes())));
    ports.spawn(ended("certificate watch", inner_reload.run()));
    ports.spawn(ended("certificate watch", outer_reload.run()));
    tracing::info!(name = config.name, data = %config.data_listen, "listening");

    let board = Switchboard::default();
    let coordinator =
        Coordinator::new(config.name.clone(), env.clone(), directories.clone(), board.clone(), groups);
    ports.spawn(ended("coordinator of consistency groups", coordinator.run()));

    let throttle = Arc::new(Throttle::default());
    ports.spawn(ended("bandwidth", obey(Arc::clone(&throttle), directories.clone())));

    let (stopping, stopped) = watch::channel(false);
    let servers = async {
        let vault = open_vault(&config, &store_figures, &throttle, &vault_closed).await;
        let shared = Shared {
            vault,
            env,
            name: config.name.clone(),
            writer: format!("{} {instance}", config.name),
            spool,
            space,
            memory: Space::memory(MEMORY_BYTES),
            sealer: Arc::new(SealPool::default()),
            uploads: FairSlots::long(UPLOADS, UPLOAD_BYTES),
            unspooled: Arc::new(Semaphore::new(UNSPOOLED)),
            log_options: LogOptions::default(),
            groups: board,
        };
        Servers::new(shared, directories, members).run(until_set(stopped)).await;
    };
    let mut servers = std::pin::pin!(servers);
    tokio::select! {
        biased;
        () = stop => {}
        ended = ports.join_next() => return Err(ProgramError::Ended(ended.and_then(Result::ok).unwrap_or("listener"))),
        () = &mut servers => return Err(ProgramError::Ended("servers")),
    }
    tracing::info!("stopping: what is under way is committed, logs are released");
    stopping.send_replace(true);
    // Ports stay: acknowledgements of what is committed now still reach their agents.
    if vault_closed.borrow().is_empty() && timeout(STOP_LIMIT, servers).await.is_err() {
        tracing::warn!("stopped before all logs were released: their leases run out by themselves");
    }
    Ok(())
}

/// Tries until it is open; why it is not is reported and keeps the program from being ready.
async fn open_vault(
    config: &Config,
    figures: &StoreFigures,
    throttle: &Arc<Throttle>,
    closed: &watch::Sender<String>,
) -> Vault {
    loop {
        match try_open(config, figures, throttle).await {
            Ok(vault) => {
                tracing::info!(vault = vault.id, "vault open");
                closed.send_replace(String::new());
                return vault;
            }
            Err(error) => {
                let error = chain(&*error);
                tracing::warn!(error, "vault not open");
                closed.send_replace(error);
                sleep(VAULT_PAUSE).await;
            }
        }
    }
}

/// The files are read anew each time: a mended Secret needs no restart.
async fn try_open(
    config: &Config,
    figures: &StoreFigures,
    throttle: &Arc<Throttle>,
) -> Result<Vault, Box<dyn std::error::Error + Send + Sync>> {
    let vault_config = VaultConfig::read(&config.vault_config)?;
    let (store, cache) = vault_config.connect()?;
    let keys = Arc::new(vault_config.keys()?);
    // Outside of the meter: a call that waits for its turn is not a slow store.
    let limited = |store| Gated::new(Gated::new(store, figures.clone()), Throttled(Arc::clone(throttle)));
    let (store, cache) = (limited(store), limited(cache));
    Ok(vault::open(store, cache, keys).await?)
}

/// Follows the limit of the newest configuration. The last one stays while no operator is attached, and over a restart.
async fn obey(throttle: Arc<Throttle>, mut directories: watch::Receiver<Option<Arc<Directory>>>) {
    loop {
        let limit = directories.borrow_and_update().as_ref().map_or(0, |directory| directory.upload_limit);
        if limit != throttle.limit() {
            tracing::info!(bytes_per_second = limit, "uploads are limited (0: not)");
            throttle.set_limit(limit);
        }
        if directories.changed().await.is_err() {
            // The control port has ended, and the program ends with it.
            return;
        }
    }
}

async fn listen(address: std::net::SocketAddr) -> Result<TcpListener, ProgramError> {
    TcpListener::bind(address).await.map_err(|source| ProgramError::Listen { address, source })
}

async fn ended<T: std::fmt::Debug>(what: &'static str, task: impl Future<Output = T>) -> &'static str {
    let result = task.await;
    tracing::error!(what, ?result, "ended by itself");
    what
}

async fn until_set(mut flag: watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = flag.wait_for(|set| *set).await;
}
