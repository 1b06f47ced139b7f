//! Freezes the file systems on the protected disks for the moment of a flip.
//!
//! In: a limit. Out: everything frozen, or nothing. The watchdog (`watchdog.rs`) is armed before the first freeze;
//! without it nothing is frozen. All blocking calls are made by one thread, which thaws when the freezer is dropped.
//! File systems that cannot be frozen (FAT, or those of other mount namespaces) are written back and named: with one
//! of them left out, no point is called consistent. Swap and disks without a file system have nothing that could be
//! frozen; a partition or volume without one that is in use (`bare.rs`) counts as left out.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Write as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::{sync::oneshot, time::Instant};

use super::{
    bare::{self, Bare},
    disks::Disk,
    mounts, sys,
    watchdog::{self, ARMED, Arm, ArmMount, HELD, THAWED},
};
use crate::edge::{FreezeError, Freezer, Frozen, Thawed};

/// The watchdog only opens directories before it answers.
const WATCHDOG_TIMEOUT: Duration = Duration::from_secs(2);
/// Assumed until the disks have been seen at work: a slow hard disk.
const UNMEASURED_BYTES_PER_SECOND: f64 = 32e6;

enum Command {
    Estimate(oneshot::Sender<Option<Duration>>),
    Freeze(Duration, oneshot::Sender<Result<Frozen, FreezeError>>),
    Thaw(oneshot::Sender<Thawed>),
}

/// Dropping it thaws.
pub struct KernelFreezer {
    commands: mpsc::Sender<Command>,
    disks: Vec<Disk>,
    sysfs: PathBuf,
    /// A thread writes back; a second one would only queue behind it.
    writing_back: Arc<AtomicBool>,
    bare: Arc<Mutex<Unfrozen>>,
}

/// What was seen of partitions and volumes without a file system.
#[derive(Default)]
struct Unfrozen {
    watch: bare::Watch,
    /// Written between the last freeze and its thaw.
    moved: Vec<String>,
}

/// Looks anew; those in use, with the reason.
fn in_use(unfrozen: &Mutex<Unfrozen>, sysfs: &Path, disks: &[Disk]) -> Vec<String> {
    let found = mounts::bare(sysfs, disks);
    let written = unfrozen.lock().unwrap_or_else(PoisonError::into_inner).watch.look(&found);
    bare::in_use(sysfs, &found, &written)
}

impl KernelFreezer {
    /// `socket`: where the watchdog listens, [`watchdog::SOCKET`] as a rule.
    pub fn new(disks: &[Disk], sysfs: &Path, socket: &Path) -> io::Result<Self> {
        let (commands, queue) = mpsc::channel();
        let bare = Arc::new(Mutex::new(Unfrozen::default()));
        // What is written from now on is in use.
        in_use(&bare, sysfs, disks);
        let worker = Worker {
            bare: Arc::clone(&bare),
            disks: disks.to_vec(),
            sysfs: sysfs.to_owned(),
            socket: socket.to_owned(),
            frozen: None,
        };
        // A thread of its own: freezing and syncing block for as long as the disks take.
        std::thread::Builder::new().name("freezer".to_owned()).spawn(move || worker.run(&queue))?;
        let writing_back = Arc::new(AtomicBool::new(false));
        Ok(Self { commands, disks: disks.to_vec(), sysfs: sysfs.to_owned(), writing_back, bare })
    }
}

#[async_trait]
impl Freezer for KernelFreezer {
    async fn estimate(&mut self) -> Option<Duration> {
        let (answer, result) = oneshot::channel();
        self.commands.send(Command::Estimate(answer)).ok()?;
        result.await.ok()?
    }

    fn write_back(&mut self) -> BoxFuture<'static, ()> {
        if self.writing_back.swap(true, Ordering::AcqRel) {
            // One that was left is still at it, so the disks are too slow already.
            return Box::pin(std::future::pending());
        }
        let (answer, done) = oneshot::channel();
        let (disks, sysfs, busy) = (self.disks.clone(), self.sysfs.clone(), Arc::clone(&self.writing_back));
        // Blocks for as long as the disks take, and must not hold up a thaw.
        let started = std::thread::Builder::new().name("write-back".to_owned()).spawn(move || {
            for mount in mounts::here(&sysfs, &disks).unwrap_or_default() {
                // What cannot be synced cannot be frozen either, which says why.
                let opened = watchdog::open(&mount.point, mount.device);
                _ = opened.and_then(|directory| sys::sync_file_system(directory.as_fd()));
            }
            busy.store(false, Ordering::Release);
            _ = answer.send(());
        });
        if started.is_err() {
            self.writing_back.store(false, Ordering::Release);
        }
        Box::pin(async move { _ = done.await })
    }

    async fn freeze(&mut self, limit: Duration) -> Result<Frozen, FreezeError> {
        let (answer, result) = oneshot::channel();
        let ended = || FreezeError::NothingToFreeze { reason: "the freezing thread has ended".to_owned() };
        self.commands.send(Command::Freeze(limit, answer)).map_err(|_| ended())?;
        result.await.map_err(|_| ended())?
    }

    fn not_freezable(&self) -> Vec<String> {
        let mut all = mounts::without_file_system(&self.sysfs, &self.disks);
        all.extend(in_use(&self.bare, &self.sysfs, &self.disks));
        all
    }

    fn moved(&mut self) -> Vec<String> {
        std::mem::take(&mut self.bare.lock().unwrap_or_else(PoisonError::into_inner).moved)
    }

    async fn thaw(&mut self) -> Thawed {
        let nothing = Thawed { longest: Duration::ZERO, held_until_now: false };
        let (answer, result) = oneshot::channel();
        match self.commands.send(Command::Thaw(answer)) {
            Ok(()) => result.await.unwrap_or(nothing),
            Err(_) => nothing,
        }
    }
}

struct Worker {
    disks: Vec<Disk>,
    sysfs: PathBuf,
    socket: PathBuf,
    frozen: Option<Standing>,
    bare: Arc<Mutex<Unfrozen>>,
}

/// File systems frozen, in the order of freezing, with the moment each began to stand still.
struct Standing {
    mounts: Vec<(File, Instant)>,
    watchdog: UnixStream,
    /// What has no file system, and how much was written to it when everything else stood still.
    bare: Vec<Bare>,
    watch: bare::Watch,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.thaw();
    }
}

impl Worker {
    fn run(mut self, queue: &mpsc::Receiver<Command>) {
        while let Ok(command) = queue.recv() {
            // Nobody waiting for an answer is no error; a freeze that nobody waits for is undone.
            match command {
                Command::Estimate(answer) => _ = answer.send(self.estimate()),
                Command::Freeze(limit, answer) => {
                    let result = self.freeze(limit);
                    if answer.send(result).is_err() {
                        self.thaw();
                    }
                }
                Command::Thaw(answer) => _ = answer.send(self.thaw()),
            }
        }
    }

    fn mounts(&self) -> io::Result<Vec<mounts::Mount>> {
        mounts::here(&self.sysfs, &self.disks)
    }

    fn estimate(&self) -> Option<Duration> {
        if self.mounts().ok()?.is_empty() || UnixStream::connect(&self.socket).is_err() {
            return None;
        }
        let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
        let dirty: u64 = ["Dirty:", "Writeback:"].iter().filter_map(|name| kibibytes(&meminfo, name)).sum();
        Some(Duration::from_secs_f64((dirty * 1024) as f64 / self.write_rate()))
    }

    /// Bytes a second that the slowest protected disk has written while it was at work, since the machine started.
    fn write_rate(&self) -> f64 {
        let rate = |disk: &Disk| {
            let stat = fs::read_to_string(self.sysfs.join("block").join(&disk.name).join("stat")).ok()?;
            let fields: Vec<u64> = stat.split_whitespace().filter_map(|field| field.parse().ok()).collect();
            // Documentation/block/stat.rst: sectors written, and milliseconds with requests under way.
            let (sectors, busy) = (*fields.get(6)?, *fields.get(9)?);
            // Below a second at work a rate says nothing.
            (busy >= 1000).then(|| (sectors * 512) as f64 / (busy as f64 / 1000.0))
        };
        self.disks
            .iter()
            .filter_map(rate)
            .filter(|rate| *rate > 0.0)
            .reduce(f64::min)
            .unwrap_or(UNMEASURED_BYTES_PER_SECOND)
    }

    fn freeze(&mut self, limit: Duration) -> Result<Frozen, FreezeError> {
        if self.frozen.is_some() {
            self.thaw();
        }
        let nothing = |reason: String| FreezeError::NothingToFreeze { reason };
        let (mounts, mut left_out) =
            mounts::find(&self.sysfs, &self.disks).map_err(|error| nothing(error.to_string()))?;
        left_out.extend(in_use(&self.bare, &self.sysfs, &self.disks));
        let bare = mounts::bare(&self.sysfs, &self.disks);
        let mut opened = Vec::new();
        for mount in &mounts {
            let path = mount.point.display().to_string();
            let directory = watchdog::open(&mount.point, mount.device)
                .map_err(|source| FreezeError::Freeze { path: path.clone(), source })?;
            // Most of the work is done before anything stands still.
            sys::sync_file_system(directory.as_fd())
                .map_err(|source| FreezeError::Freeze { path: path.clone(), source })?;
            opened.push((path, directory));
        }
        if opened.is_empty() {
            return Err(nothing("none is mounted for writing".to_owned()));
        }
        let watchdog =
            self.arm(limit, &mounts).map_err(|error| FreezeError::Watchdog { reason: error.to_string() })?;
        let armed = Instant::now();
        // From here until the thaw nothing may be logged, and every way out thaws.
        let watch = bare::Watch::default();
        let frozen = self.frozen.insert(Standing { mounts: Vec::new(), watchdog, bare, watch });
        let mut failure = None;
        for (path, directory) in opened {
            let since = Instant::now();
            match sys::freeze(directory.as_fd()) {
                Ok(()) => frozen.mounts.push((directory, since)),
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => left_out.push(path),
                Err(source) => {
                    failure = Some(FreezeError::Freeze { path, source });
                    break;
                }
            }
            if armed.elapsed() >= limit {
                failure = Some(FreezeError::TooSlow { limit });
                break;
            }
        }
        if failure.is_none() && frozen.mounts.is_empty() {
            failure = Some(nothing("none of those mounted can be frozen".to_owned()));
        }
        frozen.watch.look(&frozen.bare);
        // Whatever was mounted since the list was made is not frozen.
        let now = self.mounts().unwrap_or_default();
        let new = now.iter().filter(|mount| !mounts.iter().any(|known| known.device == mount.device));
        left_out.extend(new.map(|mount| mount.point.display().to_string()));
        match failure {
            None => Ok(Frozen { left_out }),
            Some(failure) => {
                self.thaw();
                Err(failure)
            }
        }
    }

    fn arm(&self, limit: Duration, mounts: &[mounts::Mount]) -> io::Result<UnixStream> {
        let mounts =
            mounts.iter().map(|mount| ArmMount { path: mount.point.clone(), device: mount.device }).collect();
        let limit_millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let mut request = serde_json::to_vec(&Arm { limit_millis, mounts })?;
        request.push(b'\n');
        let watchdog = UnixStream::connect(&self.socket)?;
        watchdog.set_read_timeout(Some(WATCHDOG_TIMEOUT))?;
        watchdog.set_write_timeout(Some(WATCHDOG_TIMEOUT))?;
        (&watchdog).write_all(&request)?;
        let answer = line(&watchdog)?;
        if answer == ARMED { Ok(watchdog) } else { Err(io::Error::other(answer)) }
    }

    fn thaw(&mut self) -> Thawed {
        let Some(Standing { mounts, watchdog, bare, mut watch }) = self.frozen.take() else {
            return Thawed { longest: Duration::ZERO, held_until_now: false };
        };
        let written = watch.look(&bare);
        let mut thawed = Thawed { longest: Duration::ZERO, held_until_now: !mounts.is_empty() };
        for (directory, since) in mounts.iter().rev() {
            thawed.held_until_now &= sys::thaw(directory.as_fd()).is_ok();
            thawed.longest = thawed.longest.max(since.elapsed());
        }
        let held = (&watchdog).write_all(THAWED).and_then(|()| line(&watchdog));
        thawed.held_until_now &= held.is_ok_and(|answer| answer == HELD);
        let moved = bare.iter().filter(|bare| written.contains(&bare.device));
        let moved = moved.map(|bare| format!("{} (written meanwhile)", bare.name())).collect();
        self.bare.lock().unwrap_or_else(PoisonError::into_inner).moved = moved;
        thawed
    }
}

fn line(stream: &UnixStream) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// A line of `/proc/meminfo`: `Dirty:   123 kB`.
fn kibibytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
