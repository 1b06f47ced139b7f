//! `lifeboat-agent run`: puts the parts together and runs them until a signal comes or tracking fails.
//!
//! Stopping is dropping: the tracker stays in the kernel and goes on marking, and the next start continues. When other
//! disks are to be protected, everything is put together anew: the marks are of those disks.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lifeboat_replication::{
    env::Env,
    wire::v1::{AgentIssue, DiskSelector},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::timeout,
};

use crate::{
    cli::Run,
    core::{Machine, Options, Parts, Replicator},
    edge::{Power, TrackError},
    kernel::{
        self, Discovery, Disk, Found, KernelFreezer, KernelHooks, KernelPower, PINS, RebootPlaces, Tracked,
        TrackerOptions,
    },
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
    #[error("the mounted file systems cannot be listed; is /proc mounted?")]
    Mounts(#[source] io::Error),
    #[error("no thread for the hooks of applications could be started")]
    Hooks(#[source] io::Error),
    #[error("signals cannot be received")]
    Signals(#[source] io::Error),
}

/// How often the disks are looked for again: one that has grown, came or went.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Why the disks are not replicated any more.
enum Ended {
    Stopped,
    /// Other disks are to be protected, or some have another size.
    OtherDisks,
}

pub async fn run(state: StateDir, arguments: Run) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let stopped = async {
        tokio::select! { biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let mut stopped = std::pin::pin!(stopped);
    let machine = machine::describe_running(Path::new("/"));
    loop {
        match protect(&state, &arguments, &machine, stopped.as_mut()).await? {
            Ended::Stopped => break,
            Ended::OtherDisks => tracing::info!("the disks to protect have changed: tracking starts anew"),
        }
    }
    tracing::info!("agent stops; the tracker stays in the kernel");
    Ok(())
}

/// Disks to protect. What the appliance wants left out is left out, unless that would be all: an agent without disks
/// could not hear that it is wanted otherwise.
fn find(arguments: &Run, excluded: &[DiskSelector]) -> Result<Found, RunError> {
    let include = arguments.disks.include.clone();
    let discovery = Discovery { sysfs: PathBuf::from(SYSFS), include, exclude: excluded.to_vec() };
    let found = discovery.find().map_err(RunError::Discovery)?;
    if !found.disks.is_empty() || excluded.is_empty() {
        return Ok(found);
    }
    let mut all = Discovery { exclude: Vec::new(), ..discovery }.find().map_err(RunError::Discovery)?;
    all.issues.push(AgentIssue {
        code: "EveryDiskExcluded".to_owned(),
        severity: "Error".to_owned(),
        message: "spec.disks.exclude names every disk of the server, so none is left out".to_owned(),
        remedy: "leave at least one disk to protect, or delete the ProtectedServer".to_owned(),
    });
    Ok(all)
}

async fn protect(
    state: &StateDir,
    arguments: &Run,
    machine: &Machine,
    stopped: impl Future<Output = ()>,
) -> Result<Ended, RunError> {
    let env = Env::system();
    let identity = state.load()?;
    let excluded = state.excluded();
    let found = find(arguments, &excluded)?;
    for issue in &found.issues {
        tracing::warn!(code = issue.code, remedy = issue.remedy, "{}", issue.message);
    }
    if found.disks.is_empty() {
        let messages: Vec<_> =
            found.issues.iter().map(|issue| format!("{} ({})", issue.message, issue.remedy)).collect();
        let refused = if messages.is_empty() { "none was found".to_owned() } else { messages.join("; ") };
        return Err(RunError::NoDisk { refused });
    }
    let Tracked { map, source } = kernel::open(
        arguments.tracking,
        &TrackerOptions {
            server: identity.server.clone(),
            pins: arguments.pins.pin_dir.clone(),
            state: state.path().to_owned(),
            sysfs: PathBuf::from(SYSFS),
            wall: env.wall.clone(),
            // What `install` has written for restarts knows of no other directory.
            reboot: (arguments.pins.pin_dir == Path::new(PINS)).then(RebootPlaces::default),
        },
        &found.disks,
    )?;
    let freezer = KernelFreezer::new(&found.disks, Path::new(SYSFS), &arguments.socket.thaw_socket)
        .map_err(RunError::Mounts)?;
    let hooks = KernelHooks::new(&arguments.hooks.hooks_dir, &arguments.hooks.hooks_state)
        .map_err(RunError::Hooks)?;
    let server = identity.server.clone();
    let (renewed, identity) = watch::channel(identity);
    let parts = Parts {
        server: server.clone(),
        dial: Arc::new(Dialler::new(identity)),
        map,
        source,
        freezer: Box::new(freezer),
        hooks: Box::new(hooks),
        env: env.clone(),
    };
    let wanted = watch::Sender::new(excluded.clone());
    let others = other_disks(state, arguments, &found.disks, excluded, wanted.subscribe());
    let options = Options {
        machine: machine.clone(),
        issues: found.issues,
        excluded: wanted,
        power: (!arguments.no_shutdown).then(|| {
            Arc::new(KernelPower::new(state.path(), arguments.shutdown_keeps.clone())) as Arc<dyn Power>
        }),
        ..Options::default()
    };
    tracing::info!(server = %server, disks = found.disks.len(), version = options.machine.agent_version, "agent starts");
    tokio::select! { biased;
        () = stopped => Ok(Ended::Stopped),
        error = Replicator::new(parts, options).run() => Err(error.into()),
        () = renewal::run(state.clone(), renewed, env) => Ok(Ended::Stopped),
        changed = others => changed.map(|()| Ended::OtherDisks),
    }
}

/// Comes back when other disks are to be protected: the appliance wants others left out, or the machine's have changed.
async fn other_disks(
    state: &StateDir,
    arguments: &Run,
    disks: &[Disk],
    mut excluded: Vec<DiskSelector>,
    mut wanted: watch::Receiver<Vec<DiskSelector>>,
) -> Result<(), RunError> {
    loop {
        match timeout(LOOK_AGAIN, wanted.changed()).await {
            Ok(Ok(())) => {
                excluded.clone_from(&wanted.borrow_and_update());
                // Before anything starts without them: the next start has to find the same.
                state.set_excluded(&excluded)?;
            }
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => {}
        }
        if find(arguments, &excluded)?.disks != disks {
            return Ok(());
        }
    }
}
