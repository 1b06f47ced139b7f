//! lifeboat-applier: see `lib.rs` for what it is made of.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use lifeboat_applier::edge::{config::Config, program};
use lifeboat_replication::{env::Env, errors::chain, heap};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Replays the logs of a vault onto seed disks and cuts recovery points.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file (JSON).
    #[arg(long, env = "LIFEBOAT_CONFIG")]
    config: PathBuf,
    /// The applier's name in reports; in a pod the pod's.
    #[arg(long, env = "LIFEBOAT_NAME")]
    name: Option<String>,
    /// UUID that nobody else has; in a pod its uid.
    #[arg(long, env = "LIFEBOAT_IDENTITY")]
    identity: Option<String>,
    /// What is logged, as tracing's filter directives.
    #[arg(long, env = "LIFEBOAT_LOG", default_value = "info")]
    log: String,
}

fn main() -> ExitCode {
    heap::keep_small();
    let arguments = Arguments::parse();
    tracing_subscriber::fmt().json().with_env_filter(EnvFilter::new(&arguments.log)).init();
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = chain(&*error), "stopped");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::read(&arguments.config, arguments.name.clone(), arguments.identity.clone())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = async move {
            tokio::select! {
                biased;
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        program::run(config, Env::system(), stop).await?;
        Ok(())
    })
}
