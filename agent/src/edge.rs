//! What the replicator needs from the machine: marks of changed blocks, their content, and freezing file systems.
//!
//! The kernel side implements these traits with eBPF maps, O_DIRECT reads and FIFREEZE; the simulation in memory.
//! Disks are named by the tracker's own numbers (`v1::Disk::slot` of [`BlockSource::disks`], counted from 1, the
//! same in the map and in the source, kept as long as the pinned maps live). The replicator translates them to the
//! slots of the vault, which the process server gives.
//!
//! ```text
//!   write issued ──► mark, generation g ─┐
//!   write completed ► mark, generation g ┤ flip: g+1        take: held |= g; g = 0        forget, once durable
//!                                        └──────────► old ───────────────────────► held ─────────────────────► clean
//! ```

use std::{fmt, io, path::PathBuf, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use lifeboat_replication::{
    blocks::{BlockRun, BlockSet},
    env::Micros,
    wire::v1,
};

/// Tracking cannot go on. The replicator ends with it, and the service manager starts the agent again.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    #[error(
        "the kernel's tracker failed to {operation}; the agent starts again, and if it keeps failing, send the output of `lifeboat-agent disks`"
    )]
    Kernel { operation: &'static str, source: io::Error },
    #[error("tracking cannot work on this server: {reason}; {remedy}")]
    Unsupported { reason: String, remedy: String },
}

/// Marks of changed blocks of all disks of this server. What a method changes is kept (pinned) before it returns:
/// a crash of the agent between any two calls loses no mark.
///
/// Nothing here may write to a disk that is tracked: an idle server would never become clean.
pub trait DirtyMap: Send {
    /// Starts a new generation for all disks at one instant: every write issued before has its mark in the old one.
    /// Returns the date of the flip.
    fn flip(&mut self) -> Result<Micros, TrackError>;

    /// Moves the old generation's marks (of issue and of completion) to the held ones and returns them.
    /// In this order for each word: held |= old; old = 0. Without a flip before it, it takes what an agent left that
    /// stopped between the two; the replicator does so at the beginning of each session.
    fn take(&mut self) -> Result<BlockSet, TrackError>;

    /// Which of `within` have been *issued* for writing in the current generation (completions of older writes do
    /// not count, naming more than these is safe). Clears nothing. Called after each read, so it must be quick for
    /// a small set.
    fn issued_now(&mut self, within: &BlockSet) -> Result<BlockSet, TrackError>;

    /// Everything taken and not forgotten, also by an earlier run of the agent.
    fn held(&mut self) -> Result<BlockSet, TrackError>;

    /// These blocks are durable as they were when last taken.
    fn forget(&mut self, blocks: &BlockSet) -> Result<(), TrackError>;

    /// What the initial or a full copy still has to make durable. A new map begins with every block of every disk.
    fn to_copy(&mut self) -> Result<BlockSet, TrackError>;

    /// These blocks of the copy are durable.
    fn copied(&mut self, blocks: &BlockSet) -> Result<(), TrackError>;

    /// Every block has to be copied again. Ends [`DirtyMap::lost`].
    fn copy_all(&mut self, reason: &str) -> Result<(), TrackError>;

    /// Why everything is copied again, as long as blocks are left; `None` for the first copy.
    fn copy_reason(&self) -> Option<String>;

    /// The last request for a resynchronization that was heard of; `None`: these marks have heard of none yet.
    fn request(&self) -> Option<String>;

    fn set_request(&mut self, request: &str) -> Result<(), TrackError>;

    /// Number of blocks marked in the current generation, by issue or completion.
    fn dirty_now(&mut self) -> Result<u64, TrackError>;

    /// Writes issued and not completed; `None` where that cannot be known (issue-only tracking). A write's mark of
    /// completion is made before it leaves this count.
    fn in_flight(&mut self) -> Option<u64>;

    /// Why marks may be missing (overflow, detached program, restart of the machine). Stays until
    /// [`DirtyMap::copy_all`].
    fn lost(&mut self) -> Option<String>;

    /// The last record known to be durable. Lives and dies with the held marks.
    fn durable_mark(&self) -> Option<v1::DurableMark>;

    fn set_durable_mark(&mut self, mark: &v1::DurableMark) -> Result<(), TrackError>;

    /// The highest record that was ever begun with these marks; `None`: not known. Lives and dies with them.
    fn sent(&self) -> Option<u64>;

    /// Before anything of the record leaves.
    fn set_sent(&mut self, number: u64) -> Result<(), TrackError>;

    /// How changes are tracked, for status: `ebpf-tp_btf`, `ebpf-bio`, `ebpf-issue-only`, `ebpf-32k` or `scan`.
    fn tracking(&self) -> String;

    /// False: [`DirtyMap::issued_now`] does not tell of every write, and nothing else proves that the disks are now as
    /// they were taken and read. The round is no point then.
    fn stood(&mut self) -> bool {
        true
    }

    /// Changes are known only of disks that stand still, and can be found while they do so for this long.
    fn may_stand(&self, _limit: Duration) -> bool {
        false
    }

    /// Everything stands still from now on, for `limit` at most. Called before the flip of a frozen round: a map that
    /// learns of changes by looking looks now.
    fn stand(&mut self, _limit: Duration) -> Result<(), TrackError> {
        Ok(())
    }

    /// What should be known about how changes are tracked, for status.
    fn issues(&self) -> Vec<v1::AgentIssue> {
        Vec::new()
    }
}

/// Content of the disks.
#[async_trait]
pub trait BlockSource: Send + Sync {
    /// The protected disks; `slot` is the tracker's number. The same for the life of the agent.
    fn disks(&self) -> Vec<v1::Disk>;

    /// Reads past every cache. The answer has `run.blocks` × 4096 bytes: a disk that ends within its last block is
    /// padded with zeros. Several reads may be under way at once.
    async fn read(&self, run: BlockRun) -> io::Result<Bytes>;

    /// Reads short runs one after the other; an answer for each. Cheaper than asking for each alone.
    async fn read_each(&self, runs: Vec<BlockRun>) -> Vec<(BlockRun, io::Result<Bytes>)> {
        let mut answers = Vec::with_capacity(runs.len());
        for run in runs {
            answers.push((run, self.read(run).await));
        }
        answers
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    #[error("no file system of the protected disks can be frozen: {reason}")]
    NothingToFreeze { reason: String },
    #[error("{path} did not freeze: {source}; everything frozen before it was thawed")]
    Freeze { path: String, source: io::Error },
    #[error("the watchdog does not answer: {reason}; start lifeboat-thaw.service")]
    Watchdog { reason: String },
    #[error("freezing took longer than {limit:?} and was given up; everything is thawed")]
    TooSlow { limit: Duration },
}

/// What [`Freezer::freeze`] has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frozen {
    /// File systems that are mounted from the disks for writing and could not be frozen, and partitions and volumes that
    /// are in use without one: with one of them the freeze proves nothing about the whole.
    pub left_out: Vec<String>,
}

/// What [`Freezer::thaw`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thawed {
    /// How long the longest-frozen file system stood still.
    pub longest: Duration,
    /// False when the watchdog thawed first: nothing may be concluded from the freeze.
    pub held_until_now: bool,
}

/// Freezes the file systems on the protected disks. A watchdog of its own thaws them after the limit, whatever
/// happens to the agent. Between freeze and thaw nobody here may log or touch a file.
#[async_trait]
pub trait Freezer: Send {
    /// How long writing back what is dirty in memory would take at the measured rate; `None` when freezing is not
    /// possible here (nothing mounted, no watchdog).
    async fn estimate(&mut self) -> Option<Duration>;

    /// Starts writing back what is dirty in memory (syncfs), without freezing: a freeze after it is short. The answer
    /// comes when it is done, and may be left.
    fn write_back(&mut self) -> BoxFuture<'static, ()>;

    /// Writes back (syncfs), then freezes all, root last; on an error everything is thawed again.
    async fn freeze(&mut self, limit: Duration) -> Result<Frozen, FreezeError>;

    async fn thaw(&mut self) -> Thawed;

    /// What no freeze covers, for status: swap, disks from which nothing is mounted, and partitions and volumes that are
    /// in use without a file system.
    fn not_freezable(&self) -> Vec<String> {
        Vec::new()
    }

    /// What was written between the last freeze and its thaw although no freeze covers it. Told once.
    fn moved(&mut self) -> Vec<String> {
        Vec::new()
    }
}

/// What a hook of an application did not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("hook {hook}: {reason}")]
pub struct HookError {
    pub hook: String,
    pub reason: String,
}

#[derive(Debug, Clone, Copy)]
pub struct HookLimits {
    /// Of each script.
    pub timeout: Duration,
    /// From the first `pre` until everything is released by itself.
    pub hold: Duration,
}

/// Prepares applications for a point, and lets them go on after it. Whatever was begun is released: at the latest when
/// the limit has passed, or after the agent has ended.
pub trait Hooks: Send {
    /// Names of the hooks; an error says why one must not be run.
    fn installed(&self) -> Result<Vec<String>, HookError>;

    /// Runs every `pre`; stops at the first that fails. [`Hooks::release`] belongs to it also then.
    fn hold(&mut self, limits: HookLimits) -> BoxFuture<'static, Result<(), HookError>>;

    /// Runs every `post` whose `pre` was begun. An error: one of them failed, or the hold was over before this call, so
    /// that nothing may be concluded from it.
    fn release(&mut self) -> BoxFuture<'static, Result<(), HookError>>;

    /// How long ago the last hold began, also by an earlier run of the agent; `None`: not since the machine started.
    fn since_last(&self) -> Option<Duration>;
}

/// For machines (and simulations) without applications.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHooks;

impl Hooks for NoHooks {
    fn installed(&self) -> Result<Vec<String>, HookError> {
        Ok(Vec::new())
    }

    fn hold(&mut self, _limits: HookLimits) -> BoxFuture<'static, Result<(), HookError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn release(&mut self) -> BoxFuture<'static, Result<(), HookError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn since_last(&self) -> Option<Duration> {
        None
    }
}

/// For machines (and simulations) without anything to freeze.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFreezer;

#[async_trait]
impl Freezer for NoFreezer {
    async fn estimate(&mut self) -> Option<Duration> {
        None
    }

    fn write_back(&mut self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }

    async fn freeze(&mut self, _limit: Duration) -> Result<Frozen, FreezeError> {
        Err(FreezeError::NothingToFreeze { reason: "freezing is switched off".to_owned() })
    }

    async fn thaw(&mut self) -> Thawed {
        Thawed { longest: Duration::ZERO, held_until_now: false }
    }
}

/// Why the server cannot be taken out of service.
#[derive(Debug, thiserror::Error)]
pub enum PowerError {
    #[error("the order cannot be noted in {}: check the volume", path.display())]
    Note {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("this machine is not run by systemd: stop its services and shut it down by hand")]
    NoSystemd,
    #[error("services cannot be stopped by `systemctl`: shut the server down by hand")]
    Systemctl {
        #[source]
        source: io::Error,
    },
    #[error("file systems cannot be made read-only: restart the server to bring it back into service")]
    Remount {
        #[source]
        source: io::Error,
    },
    #[error(
        "{mounts} can still be written to: see what holds it and ask again, or restart the server to bring it back into service"
    )]
    StillWritable { mounts: String },
    #[error("the thread that stops services is gone: restart the server to bring it back into service")]
    Gone,
}

/// When an order was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// In this run of the machine; noted for the next one.
    Now,
    /// Before the machine was started last.
    Earlier,
}

/// Takes the machine out of service.
pub trait Power: fmt::Debug + Send + Sync {
    /// Notes that the order is carried out.
    ///
    /// # Errors
    /// Nothing has been stopped.
    fn begin(&self, id: &str) -> Result<Begun, PowerError>;

    /// Stops what runs and makes file systems read-only; may be repeated. It goes on when the future is dropped.
    fn quiet(&self) -> BoxFuture<'static, Result<(), PowerError>>;

    /// Switches the machine off. Comes back only if that fails.
    fn off(&self);
}
