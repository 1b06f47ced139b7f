//! Changes found by reading: for kernels in which no program can watch the disks.
//!
//! ```text
//!   disks ──(pass: read all, compare with the sums)──► found ──take──► held ──► read, sent ──► durable
//!                         ▲                                              │
//!                         └── sums of what was read for sending ◄────────┘
//! ```
//! - `sums`: a checksum of each 64 KiB as it was last read for the vault;
//! - `pass`: a reading of all disks, and when the next one is due;
//! - `activity`: the kernel's counters of the disks, which prove that nothing was written meanwhile;
//! - here: the state that they share, as a [`DirtyMap`] and a [`BlockSource`].
//!
//! **Nothing lost.** A sum is kept only of what was read for sending while the block was owed to the vault, so a block
//! with a known sum is in the vault as that content or still owed. Everything else is found by the next pass. Nothing
//! outlives the process: a new one compares all disks with the vault.
//!
//! **One instant.** A round is exact when no disk was written from before the last whole reading until the round was
//! read: a quiet server, or one that stood still (frozen) all the while. Otherwise it is shipped and never called a point.
//!
//! Memory: 256 MiB per TiB of disk.

mod activity;
mod pass;
mod sums;

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use lifeboat_replication::{
    blocks::{BlockRun, BlockSet},
    env::{Env, Micros, Wall},
    ids::DiskSlot,
    resync::Cause,
    wire::v1,
};

use self::{activity::Activity, pass::Passes, sums::Sums};
use super::{
    disks::Disk,
    first_start,
    pins::{Start, kernel},
    reader::DiskReader,
    tracker::TrackerOptions,
};
use crate::edge::{BlockSource, DirtyMap, TrackError};

/// Why changes are found by reading, and what would be better.
#[derive(Debug, Clone)]
pub(super) struct Why {
    pub(super) reason: String,
    pub(super) remedy: String,
}

/// Shared by the map, the source and the passes.
struct State {
    sums: Sums,
    /// Found by a pass and not taken yet.
    found: BlockSet,
    held: BlockSet,
    to_copy: BlockSet,
    /// As it was before the reading of all disks that is under way as a copy.
    begun: Option<Activity>,
    /// As it was before the last whole reading. While it is the same, `sums`, `found` and `held` are all there is.
    proof: Option<Activity>,
    reason: Option<String>,
    request: Option<String>,
    durable_mark: Option<v1::DurableMark>,
    sent: Option<u64>,
    /// How long the last pass took.
    last_pass: Option<Duration>,
    failed: Option<String>,
}

type Shared = Arc<Mutex<State>>;

fn lock(state: &Shared) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// [`DirtyMap`] without the kernel's help. Dropping it ends its passes.
pub(super) struct Scanner {
    state: Shared,
    passes: Passes,
    sysfs: PathBuf,
    disks: Vec<Disk>,
    wall: Arc<dyn Wall>,
    why: Why,
}

/// The disks, and what was read of them.
pub(super) struct ScanSource {
    state: Shared,
    reader: DiskReader,
}

impl Scanner {
    /// Every block awaits its copy or comparison.
    pub(super) fn open(
        options: &TrackerOptions,
        disks: &[Disk],
        why: Why,
    ) -> Result<(Self, ScanSource), TrackError> {
        let known = first_start::reason(options, &Start::Absent);
        let reason = known.map(|_| {
            Cause::TrackingLost
                .because("nothing noted changes while the agent did not run, since it finds them by reading")
        });
        first_start::remember(options).map_err(kernel("write to the state directory"))?;
        let reader = DiskReader::open(disks).map_err(kernel("open the disks"))?;
        let mut secret = [0; 32];
        Env::system().entropy.fill(&mut secret);
        let sums = Sums::new(disks, &secret);
        let state = Arc::new(Mutex::new(State {
            to_copy: sums.all(),
            sums,
            found: BlockSet::default(),
            held: BlockSet::default(),
            begun: Activity::now(&options.sysfs, disks),
            proof: None,
            reason,
            request: None,
            durable_mark: None,
            sent: None,
            last_pass: None,
            failed: None,
        }));
        let passes =
            Passes::start(Arc::clone(&state), &options.sysfs, disks).map_err(kernel("start its passes"))?;
        let source = ScanSource { state: Arc::clone(&state), reader };
        let (sysfs, disks, wall) = (options.sysfs.clone(), disks.to_vec(), Arc::clone(&options.wall));
        Ok((Self { state, passes, sysfs, disks, wall, why }, source))
    }
}

impl DirtyMap for Scanner {
    fn flip(&mut self) -> Result<Micros, TrackError> {
        Ok(self.wall.now())
    }

    fn take(&mut self) -> Result<BlockSet, TrackError> {
        let mut state = lock(&self.state);
        let taken = std::mem::take(&mut state.found);
        state.held.union(&taken);
        Ok(taken)
    }

    /// What is written is not known; [`DirtyMap::stood`] tells at the end.
    fn issued_now(&mut self, _within: &BlockSet) -> Result<BlockSet, TrackError> {
        Ok(BlockSet::default())
    }

    fn held(&mut self) -> Result<BlockSet, TrackError> {
        Ok(lock(&self.state).held.clone())
    }

    fn forget(&mut self, blocks: &BlockSet) -> Result<(), TrackError> {
        lock(&self.state).held.subtract(blocks);
        Ok(())
    }

    fn to_copy(&mut self) -> Result<BlockSet, TrackError> {
        Ok(lock(&self.state).to_copy.clone())
    }

    fn copied(&mut self, blocks: &BlockSet) -> Result<(), TrackError> {
        let mut state = lock(&self.state);
        let before = state.to_copy.is_empty();
        state.to_copy.subtract(blocks);
        if !before && state.to_copy.is_empty() {
            state.proof = state.begun.take();
        }
        Ok(())
    }

    fn copy_all(&mut self, reason: &str) -> Result<(), TrackError> {
        let begun = Activity::now(&self.sysfs, &self.disks);
        let mut state = lock(&self.state);
        state.reason = Some(reason.to_owned());
        (state.begun, state.proof) = (begun, None);
        state.to_copy = state.sums.all();
        state.sums.forget_all();
        Ok(())
    }

    fn copy_reason(&self) -> Option<String> {
        let state = lock(&self.state);
        state.reason.clone().filter(|reason| !state.to_copy.is_empty() && !reason.is_empty())
    }

    fn request(&self) -> Option<String> {
        lock(&self.state).request.clone()
    }

    fn set_request(&mut self, request: &str) -> Result<(), TrackError> {
        lock(&self.state).request = Some(request.to_owned());
        Ok(())
    }

    /// Blocks that the kernel's counters say were written since the last whole reading, at most.
    fn dirty_now(&mut self) -> Result<u64, TrackError> {
        let now = Activity::now(&self.sysfs, &self.disks);
        let state = lock(&self.state);
        let since = match (&state.proof, &now) {
            (Some(before), Some(now)) => before.blocks_until(now),
            _ => 1,
        };
        Ok(since + state.found.len())
    }

    fn in_flight(&mut self) -> Option<u64> {
        activity::in_flight(&self.sysfs, &self.disks)
    }

    fn lost(&mut self) -> Option<String> {
        None
    }

    fn durable_mark(&self) -> Option<v1::DurableMark> {
        lock(&self.state).durable_mark.clone()
    }

    fn set_durable_mark(&mut self, mark: &v1::DurableMark) -> Result<(), TrackError> {
        lock(&self.state).durable_mark = Some(mark.clone());
        Ok(())
    }

    fn sent(&self) -> Option<u64> {
        lock(&self.state).sent
    }

    fn set_sent(&mut self, number: u64) -> Result<(), TrackError> {
        lock(&self.state).sent = Some(number);
        Ok(())
    }

    fn tracking(&self) -> String {
        "scan".to_owned()
    }

    fn stood(&mut self) -> bool {
        // In this order: a write that has reached a disk and is not counted yet is still under way.
        let quiet = activity::in_flight(&self.sysfs, &self.disks) == Some(0);
        let now = Activity::now(&self.sysfs, &self.disks);
        let state = lock(&self.state);
        let complete = state.found.is_empty() && state.to_copy.is_empty();
        quiet && complete && now.is_some() && state.proof == now
    }

    fn may_stand(&self, limit: Duration) -> bool {
        let state = lock(&self.state);
        state.to_copy.is_empty() && state.last_pass.is_some_and(|last| last <= limit / 2)
    }

    fn stand(&mut self, limit: Duration) -> Result<(), TrackError> {
        if self.may_stand(limit) {
            self.passes.now(limit / 2);
        }
        Ok(())
    }

    fn issues(&self) -> Vec<v1::AgentIssue> {
        let state = lock(&self.state);
        let reached = match state.last_pass {
            Some(last) => format!(
                "one reading takes {} s, so the RPO is about {} s at best",
                last.as_secs() + 1,
                (pass::rest_after(last) + 2 * last).as_secs() + 1
            ),
            None => "how long one reading takes is not known yet".to_owned(),
        };
        let mut issues = vec![issue(
            "TrackedByScan",
            format!(
                "changes are found by reading all disks again and again ({}); {reached}; a point comes about only when \
                 nothing is written during a reading, or when a freeze is long enough for one",
                self.why.reason
            ),
            &self.why.remedy,
        )];
        issues.extend(state.failed.as_ref().map(|failed| {
            let remedy = "check the disk with smartctl and dmesg; the reading is tried again by itself";
            issue("ScanFailed", format!("the disks could not be read to their end: {failed}"), remedy)
        }));
        issues
    }
}

fn issue(code: &str, message: String, remedy: &str) -> v1::AgentIssue {
    let (code, severity, remedy) = (code.to_owned(), "Warning".to_owned(), remedy.to_owned());
    v1::AgentIssue { code, severity, message, remedy }
}

impl ScanSource {
    fn note(&self, run: BlockRun, content: &Bytes) {
        let mut state = lock(&self.state);
        let State { sums, held, to_copy, .. } = &mut *state;
        let owed = |disk: DiskSlot, blocks: std::ops::Range<u32>| {
            let in_set = |set: &BlockSet, block| set.disk(disk).is_some_and(|set| set.contains(block));
            blocks.into_iter().all(|block| in_set(held, block) || in_set(to_copy, block))
        };
        sums.read(run, content, owed);
    }
}

#[async_trait]
impl BlockSource for ScanSource {
    fn disks(&self) -> Vec<v1::Disk> {
        self.reader.disks()
    }

    async fn read(&self, run: BlockRun) -> io::Result<Bytes> {
        let content = self.reader.read(run).await?;
        self.note(run, &content);
        Ok(content)
    }

    async fn read_each(&self, runs: Vec<BlockRun>) -> Vec<(BlockRun, io::Result<Bytes>)> {
        let answers = self.reader.read_each(runs).await;
        for (run, content) in &answers {
            if let Ok(content) = content {
                self.note(*run, content);
            }
        }
        answers
    }
}
