//! Readings of all disks: when, and what each of them finds.
//!
//! In: the disks. Out: blocks whose content is not the known one, into the shared state, and the proof that nothing was
//! written since before the pass. One thread reads, 1 MiB at a time; a pass that is wanted at once (while everything
//! stands still) takes the place of one under way.
//!
//! After a pass the disks are left alone for three times as long as it took: production keeps three quarters of what they
//! can do. While the counters say that nothing was written, no pass is made.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use lifeboat_replication::{
    blocks::{BLOCK_BYTES, BlockRun},
    ids::DiskSlot,
};
use tokio::time::Instant;

use super::{
    Shared,
    activity::Activity,
    lock,
    sums::{self, GRANULE_BLOCKS},
};
use crate::kernel::{disks::Disk, reader::Files};

/// Blocks that are read in one go: 1 MiB.
const STEP_BLOCKS: u32 = 16 * GRANULE_BLOCKS;
const LEAST_REST: Duration = Duration::from_secs(10);
/// How often it is looked whether a pass is due.
const LOOK: Duration = Duration::from_millis(500);

/// How long the disks are left alone after a pass that took `last`.
pub(super) fn rest_after(last: Duration) -> Duration {
    (3 * last).max(LEAST_REST)
}

/// Dropping it ends its thread.
pub(super) struct Passes {
    reading: Arc<Reading>,
    _running: mpsc::Sender<()>,
}

struct Reading {
    state: Shared,
    sysfs: PathBuf,
    disks: Vec<Disk>,
    files: Files,
    /// Held during a pass.
    turn: Mutex<()>,
    /// The pass under way should give way.
    hurry: AtomicBool,
}

impl Passes {
    pub(super) fn start(state: Shared, sysfs: &Path, disks: &[Disk]) -> io::Result<Self> {
        let reading = Arc::new(Reading {
            state,
            sysfs: sysfs.to_owned(),
            disks: disks.to_vec(),
            files: Files::open(disks)?,
            turn: Mutex::new(()),
            hurry: AtomicBool::new(false),
        });
        let (running, ended) = mpsc::channel::<()>();
        let of_thread = Arc::clone(&reading);
        // A thread of its own, since reading a disk blocks.
        std::thread::Builder::new().name("scan".to_owned()).spawn(move || of_thread.run(&ended))?;
        Ok(Self { reading, _running: running })
    }

    /// A pass at once, by this thread, given up after `limit`.
    pub(super) fn now(&self, limit: Duration) {
        let began = Instant::now();
        self.reading.hurry.store(true, SeqCst);
        let turn = self.reading.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.reading.hurry.store(false, SeqCst);
        self.reading.pass(|| began.elapsed() >= limit);
        drop(turn);
    }
}

impl Reading {
    fn run(&self, ended: &mpsc::Receiver<()>) {
        let mut rest_until = Instant::now();
        loop {
            match ended.recv_timeout(LOOK) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() < rest_until || !self.is_due() {
                continue;
            }
            let began = Instant::now();
            let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            let ends = || matches!(ended.try_recv(), Err(mpsc::TryRecvError::Disconnected));
            self.pass(|| self.hurry.load(SeqCst) || ends());
            drop(turn);
            rest_until = Instant::now() + rest_after(began.elapsed());
        }
    }

    /// Something may have been written since the last whole reading, and no copy reads everything anyway.
    fn is_due(&self) -> bool {
        let now = Activity::now(&self.sysfs, &self.disks);
        let state = lock(&self.state);
        state.to_copy.is_empty() && (now.is_none() || state.proof.is_none() || state.proof != now)
    }

    fn pass(&self, give_up: impl Fn() -> bool) {
        let began = Instant::now();
        let before = Activity::now(&self.sysfs, &self.disks);
        let outcome = self.read_all(&give_up);
        let mut state = lock(&self.state);
        match outcome {
            Ok(true) if state.to_copy.is_empty() => {
                state.proof = before;
                state.last_pass = Some(began.elapsed());
                state.failed = None;
            }
            Ok(_) => {}
            Err(error) => state.failed = Some(error.to_string()),
        }
    }

    /// False: given up.
    fn read_all(&self, give_up: &impl Fn() -> bool) -> io::Result<bool> {
        let keys = lock(&self.state).sums.keys();
        for (number, disk) in (1..).zip(&self.disks) {
            let slot = DiskSlot(number);
            let blocks = u32::try_from(disk.size_bytes.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX);
            let mut first = 0;
            while first < blocks {
                if give_up() {
                    return Ok(false);
                }
                let length = STEP_BLOCKS.min(blocks - first);
                let content = self.files.read(BlockRun { disk: slot, first, blocks: length })?;
                let own = sums::of_content(&keys, &content);
                let mut state = lock(&self.state);
                let mut differing = state.sums.differing(slot, first / GRANULE_BLOCKS, &own);
                // These are on their way already, and read again for it.
                differing.subtract(&state.to_copy);
                state.found.union(&differing);
                drop(state);
                first += length;
            }
        }
        Ok(true)
    }
}
