//! lifeboat-recovery: see `lib.rs` for what it is made of.
//!
//! Exit codes: see `exit.rs`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use lifeboat_recovery::{
    BlockIndex, Hold, IndexOptions, PointSelector,
    credentials::Renewal,
    damage, exit,
    hold::HELD_FOR,
    http, list, scan,
    serve::{self, Server},
};
use lifeboat_replication::{
    env::Env,
    errors::chain,
    ids::ServerId,
    vault::{Vault, config::VaultConfig},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::EnvFilter;

/// `stats.json` is renewed this often.
const STATS_INTERVAL: Duration = Duration::from_secs(5);

/// Reads any point of a vault as a disk, without copying it.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// What is logged to standard error, as tracing's filter directives.
    #[arg(long, env = "LIFEBOAT_LOG", default_value = "info", global = true)]
    log: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows a point's disks as NBD on Unix sockets; what is written to them stays in a local overlay.
    Serve {
        #[command(flatten)]
        which: Which,
        /// `latest`, the number of a record, or a time (RFC 3339): the newest point up to it.
        #[arg(long, default_value = "latest")]
        point: PointSelector,
        /// Name of the pin that keeps the point from being deleted meanwhile; a random one unless given. Give the same
        /// one after a restart.
        #[arg(long)]
        run: Option<String>,
        /// Where `<disk slot>.sock` and `stats.json` are made.
        #[arg(long)]
        socket_dir: PathBuf,
        /// Where the overlays are made: as much space as the machine will write.
        #[arg(long)]
        overlay_dir: PathBuf,
        /// Memory for what was read, in MiB.
        #[arg(long, default_value_t = 256)]
        cache_mib: u64,
        /// Address of /readyz and /stats (HTTP).
        #[arg(long, default_value = "0.0.0.0:8080")]
        listen: SocketAddr,
        /// File that is told why the server has ended, when that is an error: of a container the one that Kubernetes
        /// reads (`terminationMessagePath`).
        #[arg(long)]
        termination_log: Option<PathBuf>,
        /// A vault that refuses what a machine reads (its credential was changed, its container is gone) is asked again for so
        /// many seconds before the disks are given up.
        #[arg(long, default_value_t = damage::REFUSED_FOR.as_secs())]
        refused_for_seconds: u64,
    },
    /// Lists a server's recovery points, oldest first.
    Points {
        #[command(flatten)]
        which: Which,
        /// As JSON, one array.
        #[arg(long)]
        json: bool,
    },
    /// Says what a point is made of, as JSON.
    Info {
        #[command(flatten)]
        which: Which,
        /// `latest`, the number of a record, or a time (RFC 3339).
        #[arg(long, default_value = "latest")]
        point: PointSelector,
    },
}

#[derive(Debug, Args)]
struct Which {
    /// The vault's configuration file.
    #[arg(long, env = "LIFEBOAT_VAULT_CONFIG")]
    vault_config: PathBuf,
    /// Id of the server (ProtectedServer.status.id).
    #[arg(long)]
    server: ServerId,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::new(&arguments.log);
    tracing_subscriber::fmt().json().with_writer(std::io::stderr).with_env_filter(filter).init();
    let last_words = match &arguments.command {
        Command::Serve { termination_log, .. } => termination_log.clone(),
        Command::Points { .. } | Command::Info { .. } => None,
    };
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Error::from)
        .and_then(|runtime| runtime.block_on(run(arguments.command)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = chain(&*error), "stopped");
            eprintln!("lifeboat-recovery: {}", chain(&*error));
            if let Some(file) = last_words {
                damage::say_last_words(&file, &chain(&*error));
            }
            ExitCode::from(exit::code(&*error))
        }
    }
}

async fn run(command: Command) -> Result<(), Error> {
    let env = Env::system();
    match command {
        Command::Serve {
            which,
            point,
            run,
            socket_dir,
            overlay_dir,
            cache_mib,
            listen,
            termination_log: _,
            refused_for_seconds,
        } => {
            damage::check_mark(&overlay_dir, &socket_dir)?;
            // First, so that a port in use is said at once.
            let listener = TcpListener::bind(listen).await.map_err(|error| {
                format!("cannot listen on {listen} ({error}): give another address with --listen")
            })?;
            // Only the secrets are read again: what is read of a point stays where it is.
            let config = VaultConfig::read(&which.vault_config)?;
            let (vault, renewal) = Renewal::of(config.open().await?);
            let renewing = tokio::spawn(renewal.run(move || config.connect()));
            let options = IndexOptions { cache_bytes: cache_mib << 20 };
            let run = run.unwrap_or_else(|| format!("recovery-{}", env.entropy.uuid()));
            let (found, hold) = Hold::take(&vault, &which.server, &env, point, &run, HELD_FOR).await?;
            let hold = Arc::new(hold);
            let keeping = tokio::spawn({
                let hold = Arc::clone(&hold);
                async move { hold.keep().await }
            });
            let index = BlockIndex::of(&vault, &which.server, &env, found, &options).await?;
            let refused_for = Duration::from_secs(refused_for_seconds);
            let started = serve::start(&index, &which.server, &socket_dir, &overlay_dir, refused_for)?;
            let server = Arc::new(started);
            let probes = tokio::spawn(http::serve(listener, Arc::clone(&server)));
            println!("{}", serde_json::to_string(&server.ready())?);
            // After an end by damage or refusal the sessions end with the program, and the pin by itself: who restores the blob in the next
            // hour still has the point.
            until_told(&server, &socket_dir, &overlay_dir).await?;
            probes.abort();
            println!("{}", serde_json::to_string(&server.stats())?);
            server.stop().await?;
            keeping.abort();
            hold.release().await;
            renewing.abort();
        }
        Command::Points { which, json } => {
            let vault = open(&which.vault_config).await?;
            let points = list::points(&vault, &which.server, &env).await?;
            if json {
                println!("{}", serde_json::to_string(&points)?);
            } else {
                println!("{:>10}  {:>5}  {:<30}  {:<20}  SNAPSHOT", "RECORD", "EPOCH", "TIME", "CONSISTENCY");
                for point in points {
                    let consistency = format!("{:?}", point.consistency);
                    let snapshot = if point.snapshot { "yes" } else { "" };
                    println!(
                        "{:>10}  {:>5}  {:<30}  {consistency:<20}  {snapshot}",
                        point.number, point.epoch, point.t0
                    );
                }
            }
        }
        Command::Info { which, point } => {
            let vault = open(&which.vault_config).await?;
            let found = scan::find(&vault, &which.server, &env, point).await?;
            let segments: u64 =
                found.records.iter().flat_map(|record| &record.segments).map(|segment| segment.length).sum();
            let disks = found.disks.iter().map(|disk| {
                serde_json::json!({"slot": disk.slot.0, "id": disk.id, "path": disk.path, "sizeBytes": disk.size_bytes})
            });
            let info = serde_json::json!({
                "vault": vault.id,
                "server": which.server.as_str(),
                "point": found.number,
                "epoch": found.epoch.0,
                "t0": lifeboat_recovery::select::time_text(found.t0),
                "t0Micros": found.t0.0,
                "consistency": found.consistency,
                "base": found.base.as_ref().map(|base| base.number),
                "journalRecords": found.records.len(),
                "journalBytes": segments,
                "disks": disks.collect::<Vec<_>>(),
            });
            println!("{}", serde_json::to_string_pretty(&info)?);
        }
    }
    Ok(())
}

async fn open(config: &Path) -> Result<Vault, Error> {
    Ok(VaultConfig::read(config)?.open().await?)
}

/// Until SIGTERM or SIGINT, or the vault cannot be read any more; meanwhile the figures are kept in a file.
async fn until_told(server: &Server, dir: &Path, overlays: &Path) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut last = None;
    loop {
        let stats = server.stats();
        if last.as_ref() != Some(&stats) {
            write_stats(&stats, dir);
            last = Some(stats);
        }
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            lost = server.lost() => {
                if let Err(error) = damage::leave_mark(overlays, dir, &lost) {
                    tracing::warn!(%error, "the machine cannot be told that its disks are lost");
                }
                return Err(lost.into());
            }
            () = tokio::time::sleep(STATS_INTERVAL) => {}
        }
    }
    write_stats(&server.stats(), dir);
    Ok(())
}

/// Whole or not at all: it is read while we run.
fn write_stats(stats: &serve::Stats, dir: &Path) {
    let partial = dir.join("stats.json.partial");
    let written = serde_json::to_vec(stats)
        .map_err(std::io::Error::other)
        .and_then(|text| std::fs::write(&partial, text))
        .and_then(|()| std::fs::rename(&partial, dir.join("stats.json")));
    if let Err(error) = written {
        tracing::warn!(%error, "stats.json cannot be written");
    }
}
