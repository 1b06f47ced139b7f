//! The program's life: starts the ports, opens the vault, applies until it is told to stop. Stopping is a crash that
//! was announced, and gives the leases free: another applier goes on from the position in the vault at once.

use std::{sync::Arc, time::Duration};

use lifeboat_replication::{
    env::Env,
    errors::chain,
    vault::{self, Vault, config::VaultConfig},
};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{board::Board, config::Config, control::ControlPort, fleet::Fleet, http, tls};

/// The vault may be created by the operator only now, or be away.
const VAULT_PAUSE: Duration = Duration::from_secs(5);
/// Giving the leases free takes so long at most: well below what a pod is given to stop. The rest runs out by itself.
const LEAVE_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error(
        "cannot listen on {address}: another program has the port, or it needs a right that the pod lacks"
    )]
    Listen {
        address: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("the control port has no usable certificate")]
    Tls(#[source] std::io::Error),
    #[error("the {0} ended by itself")]
    Ended(&'static str),
}

/// Runs until `stop` ends.
///
/// # Errors
/// When a port cannot be opened or ends.
pub async fn run(config: Config, env: Env, stop: impl Future<Output = ()>) -> Result<(), ProgramError> {
    // Read once now: a wrong certificate should be said at the start, not at the first connection.
    tls::settings(&config.tls_dir).map_err(ProgramError::Tls)?;
    let board = Board::default();
    let mut ports: JoinSet<&'static str> = JoinSet::new();
    let listener = listen(config.metrics_listen).await?;
    let probes = http::serve(listener, board.clone());
    ports.spawn(async move {
        let served = probes.await;
        tracing::error!(?served, "probes ended");
        "metrics port"
    });
    let (incoming, accepting) = tls::accept(listen(config.control_listen).await?, &config.tls_dir);
    ports.spawn(async move {
        accepting.await;
        "control listener"
    });
    let control = ControlPort { name: config.name().to_owned(), env: env.clone(), board: board.clone() };
    ports.spawn(async move {
        let served = control.serve(incoming).await;
        tracing::error!(?served, "control port ended");
        "control port"
    });
    tracing::info!(name = config.name(), control = %config.control_listen, "listening");

    let mut fleet = None;
    let servers = async {
        let vault = open_vault(&config, &board).await;
        let share = config.share(&env);
        fleet.insert(Fleet::new(vault, env, config.options(), share, board.clone())).run().await;
    };
    let result = tokio::select! {
        biased;
        () = stop => Ok(()),
        ended = ports.join_next() => Err(ProgramError::Ended(ended.and_then(Result::ok).unwrap_or("port"))),
        () = servers => Err(ProgramError::Ended("servers")),
    };
    tracing::info!("stopping: the position in the vault is where the next one goes on");
    if let Some(mut fleet) = fleet
        && timeout(LEAVE_LIMIT, fleet.leave()).await.is_err()
    {
        tracing::warn!("not all leases were given free: they run out by themselves");
    }
    result
}

/// Tries until it is open; why it is not is reported and keeps the program from being ready.
async fn open_vault(config: &Config, board: &Board) -> Vault {
    loop {
        match try_open(config).await {
            Ok(vault) => {
                tracing::info!(vault = vault.id, "vault open");
                board.set_vault_error(String::new());
                return vault;
            }
            Err(error) => {
                let error = chain(&*error);
                tracing::warn!(error, "vault not open");
                board.set_vault_error(error);
                sleep(VAULT_PAUSE).await;
            }
        }
    }
}

/// The files are read anew each time: a mended Secret needs no restart.
async fn try_open(config: &Config) -> Result<Vault, Box<dyn std::error::Error + Send + Sync>> {
    let vault_config = VaultConfig::read(&config.vault_config)?;
    let (store, cache) = vault_config.connect()?;
    let keys = Arc::new(vault_config.keys()?);
    Ok(vault::open(store, cache, keys).await?)
}

async fn listen(address: std::net::SocketAddr) -> Result<TcpListener, ProgramError> {
    TcpListener::bind(address).await.map_err(|source| ProgramError::Listen { address, source })
}
