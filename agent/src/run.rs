//! `lifeboat-agent run`: puts the parts together and runs them until a signal comes or tracking fails.
//!
//! Stopping is dropping: the tracker stays in the kernel and goes on marking, and the next start continues.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use lifeboat_replication::env::Env;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    cli::Run,
    core::{Options, Parts, Replicator},
    edge::TrackError,
    kernel::{Discovery, DiskReader, KernelFreezer, KernelHooks, Tracker, TrackerOptions},
    machine,
    net::{dialler::Dialler, renewal},
    state::{StateDir, StateError},
};

const SYSFS: &str = "/sys";

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the disks of this server cannot be listed; is /sys mounted?")]
    Discovery(#[source] io::Error),
    #[error("there is no disk to protect: {refused}")]
    NoDisk { refused: String },
    #[error("tracking")]
    Track(#[from] TrackError),
    #[error("the disks cannot be opened; run as root")]
    Open(#[source] io::Error),
    #[error("the mounted file systems cannot be listed; is /proc mounted?")]
    Mounts(#[source] io::Error),
    #[error("no thread for the hooks of applications could be started")]
    Hooks(#[source] io::Error),
    #[error("signals cannot be received")]
    Signals(#[source] io::Error),
}

pub async fn run(state: StateDir, arguments: Run) -> Result<(), RunError> {
    let env = Env::system();
    let identity = state.load()?;
    let found = Discovery { sysfs: PathBuf::from(SYSFS), include: arguments.disks.include }
        .find()
        .map_err(RunError::Discovery)?;
    for issue in &found.issues {
        tracing::warn!(code = issue.code, remedy = issue.remedy, "{}", issue.message);
    }
    if found.disks.is_empty() {
        let messages: Vec<_> =
            found.issues.iter().map(|issue| format!("{} ({})", issue.message, issue.remedy)).collect();
        let refused = if messages.is_empty() { "none was found".to_owned() } else { messages.join("; ") };
        return Err(RunError::NoDisk { refused });
    }
    let tracker = Tracker::open(
        &TrackerOptions {
            server: identity.server.clone(),
            pins: arguments.pins.pin_dir,
            state: state.path().to_owned(),
            sysfs: PathBuf::from(SYSFS),
            wall: env.wall.clone(),
        },
        &found.disks,
    )?;
    let freezer = KernelFreezer::new(&found.disks, Path::new(SYSFS), &arguments.socket.thaw_socket)
        .map_err(RunError::Mounts)?;
    let hooks = KernelHooks::new(&arguments.hooks.hooks_dir, &arguments.hooks.hooks_state)
        .map_err(RunError::Hooks)?;
    let source = DiskReader::open(&found.disks).map_err(RunError::Open)?;
    let server = identity.server.clone();
    let (renewed, identity) = watch::channel(identity);
    let parts = Parts {
        server: server.clone(),
        dial: Arc::new(Dialler { identity }),
        map: Box::new(tracker),
        source: Arc::new(source),
        freezer: Box::new(freezer),
        hooks: Box::new(hooks),
        env: env.clone(),
    };
    let options =
        Options { machine: machine::describe(Path::new("/")), issues: found.issues, ..Options::default() };
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    tracing::info!(server = %server, disks = found.disks.len(), version = options.machine.agent_version, "agent starts");
    tokio::select! { biased;
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        error = Replicator::new(parts, options).run() => return Err(error.into()),
        () = renewal::run(state, renewed, env) => {}
    }
    tracing::info!("agent stops; the tracker stays in the kernel");
    Ok(())
}
