//! Runs the hooks of applications: `hooks.d/<name>/pre` before a point, `hooks.d/<name>/post` after it.
//!
//! ```text
//!   hold ──► pre of a, b, c (stops at the first that fails) ── point is taken ── release ──► post of c, b, a
//!                                                └── nobody releases in time ──► post of c, b, a by itself
//! ```
//!
//! - Every `post` runs whose `pre` was begun: after success and failure, after the hold's limit, and after a crash of the
//!   agent (`lifeboat-agent release-hooks`, which its unit calls, or the next start). A folder in memory says which
//!   were begun; it is also the scripts' place for what `post` has to know.
//! - Scripts run as root, so they and all folders above them must be root's and writable for nobody else.
//! - Bounds: each script has a time-out, after which its process group is killed; of its output the end is kept.

use std::{
    collections::VecDeque,
    fs,
    io::{self, Read as _},
    os::unix::{
        fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{sync::oneshot, time::Instant};

use super::sys;
use crate::edge::{HookError, HookLimits, Hooks};

/// Default place of the hooks.
pub const HOOKS: &str = "/etc/lifeboat/hooks.d";
/// Default place of what is begun: in memory, so that it works while disks are frozen and is gone after a restart.
pub const STATE: &str = "/run/lifeboat/hooks";

/// Bytes of output that are kept, from its end.
const OUTPUT: usize = 600;
/// How often a running script is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// What a script has written arrives within this time after its end; a process that it left behind may hold the pipe.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// `post` after a crash, when nobody says how long it may take.
const POST_TIMEOUT: Duration = Duration::from_secs(60);
/// Touched when a hold begins.
const LAST: &str = "last";
/// A line is left out from the first of these on: output may be shown to whoever sees the server's status.
const SECRETS: [&str; 6] = ["password", "passwd", "secret", "token", "identified by", "private key"];

enum Order {
    Hold(HookLimits, oneshot::Sender<Result<(), HookError>>),
    Release(oneshot::Sender<Result<(), HookError>>),
}

/// Dropping it releases.
pub struct KernelHooks {
    places: Places,
    orders: mpsc::Sender<Order>,
}

#[derive(Debug, Clone)]
struct Places {
    hooks: PathBuf,
    state: PathBuf,
}

impl KernelHooks {
    /// Begins by releasing what an agent that was killed has left.
    pub fn new(hooks: &Path, state: &Path) -> io::Result<Self> {
        let places = Places { hooks: hooks.to_owned(), state: state.to_owned() };
        let (orders, queue) = mpsc::channel();
        let worker = Worker { places: places.clone(), held: None, expired: None, timeout: POST_TIMEOUT };
        // A thread of its own: scripts take as long as they take, and are released in time whatever else goes on.
        std::thread::Builder::new().name("hooks".to_owned()).spawn(move || worker.run(&queue))?;
        Ok(Self { places, orders })
    }

    fn send(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<(), HookError>>) -> Order,
    ) -> BoxFuture<'static, Result<(), HookError>> {
        let ended =
            || HookError { hook: String::new(), reason: "the thread that runs hooks has ended".to_owned() };
        let (answer, result) = oneshot::channel();
        let sent = self.orders.send(order(answer));
        Box::pin(async move {
            sent.map_err(|_| ended())?;
            result.await.map_err(|_| ended())?
        })
    }
}

impl Hooks for KernelHooks {
    fn installed(&self) -> Result<Vec<String>, HookError> {
        self.places.installed()
    }

    fn hold(&mut self, limits: HookLimits) -> BoxFuture<'static, Result<(), HookError>> {
        self.send(|answer| Order::Hold(limits, answer))
    }

    fn release(&mut self) -> BoxFuture<'static, Result<(), HookError>> {
        self.send(Order::Release)
    }

    fn since_last(&self) -> Option<Duration> {
        fs::metadata(self.places.state.join(LAST)).ok()?.modified().ok()?.elapsed().ok()
    }
}

/// Runs `post` of everything that was begun and not released: after the agent has ended, however it did.
pub fn release_left(hooks: &Path, state: &Path) -> Result<(), HookError> {
    Places { hooks: hooks.to_owned(), state: state.to_owned() }.release(POST_TIMEOUT)
}

struct Worker {
    places: Places,
    held: Option<Instant>,
    /// The hold's limit had passed before anybody released.
    expired: Option<HookError>,
    timeout: Duration,
}

impl Drop for Worker {
    fn drop(&mut self) {
        _ = self.places.release(self.timeout);
    }
}

impl Worker {
    fn run(mut self, queue: &mpsc::Receiver<Order>) {
        _ = self.places.release(self.timeout);
        loop {
            let order = match self.held {
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(until) => queue.recv_timeout(until.saturating_duration_since(Instant::now())),
            };
            match order {
                Ok(Order::Hold(limits, answer)) => {
                    let held = self.hold(&limits);
                    // A hold that nobody waits for is undone.
                    if answer.send(held).is_err() {
                        _ = self.release();
                    }
                }
                Ok(Order::Release(answer)) => {
                    let released = self.release();
                    _ = answer.send(self.expired.take().map_or(released, Err));
                }
                Err(RecvTimeoutError::Timeout) => {
                    let reason =
                        "the applications were held for as long as is allowed before the point was taken";
                    let late = HookError { hook: String::new(), reason: reason.to_owned() };
                    self.expired = Some(self.release().err().unwrap_or(late));
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn hold(&mut self, limits: &HookLimits) -> Result<(), HookError> {
        self.release()?;
        (self.expired, self.timeout) = (None, limits.timeout);
        _ = make_folder(&self.places.state).and_then(|()| fs::write(self.places.state.join(LAST), b""));
        // Counted from here, so that slow hooks do not add up to more.
        self.held = Some(Instant::now() + limits.hold);
        for hook in self.places.installed()? {
            self.places.begin(&hook)?;
            self.places.script(&hook, "pre", limits)?;
        }
        Ok(())
    }

    fn release(&mut self) -> Result<(), HookError> {
        self.held = None;
        self.places.release(self.timeout)
    }
}

impl Places {
    /// Hooks by name, in the order of their `pre`.
    fn installed(&self) -> Result<Vec<String>, HookError> {
        let entries = match fs::read_dir(&self.hooks) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| failure("", &error.to_string()))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| failure("", &error.to_string()))?;
            // Editors and package managers leave files beside the folders.
            if entry.path().is_dir() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        for name in &names {
            for script in ["pre", "post"] {
                self.vet(name, script)?;
            }
        }
        Ok(names)
    }

    /// Nobody but root may have had a hand in it.
    fn vet(&self, name: &str, script: &str) -> Result<PathBuf, HookError> {
        let path = self.hooks.join(name).join(script);
        let found = fs::canonicalize(&path).map_err(|error| {
            failure(name, &format!("{}: {error}; a hook has both pre and post", path.display()))
        })?;
        // The agent runs as root; tests may not.
        let own = fs::metadata("/proc/self").map_or(0, |own| own.uid());
        for part in found.ancestors() {
            let about =
                fs::metadata(part).map_err(|error| failure(name, &format!("{}: {error}", part.display())))?;
            let mode = about.permissions().mode();
            // In a folder like /tmp nobody else may replace what is root's.
            let sticky = about.is_dir() && mode & 0o1000 != 0;
            if ![0, own].contains(&about.uid()) || (mode & 0o022 != 0 && !sticky) {
                let remedy = "it must be root's and writable for nobody else (chown root, chmod go-w)";
                return Err(failure(name, &format!("{} is not run: {remedy}", part.display())));
            }
        }
        let about = fs::metadata(&found).map_err(|error| failure(name, &error.to_string()))?;
        if !about.is_file() || about.permissions().mode() & 0o100 == 0 {
            return Err(failure(name, &format!("{} is no program: chmod +x", found.display())));
        }
        Ok(found)
    }

    fn begin(&self, name: &str) -> Result<(), HookError> {
        let folder = self.state.join(name);
        make_folder(&folder).map_err(|error| failure(name, &format!("{}: {error}", folder.display())))
    }

    /// Every `post` of what was begun, in reverse; the first failure is returned, the others run nevertheless.
    fn release(&self, timeout: Duration) -> Result<(), HookError> {
        let entries = fs::read_dir(&self.state).into_iter().flatten().filter_map(Result::ok);
        let begun = entries.filter(|entry| entry.path().is_dir());
        let mut names: Vec<String> =
            begun.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        let mut failed = None;
        for name in names.iter().rev() {
            let limits = HookLimits { timeout, hold: Duration::ZERO };
            if let Err(error) = self.script(name, "post", &limits) {
                failed.get_or_insert(error);
            }
            _ = fs::remove_dir_all(self.state.join(name));
        }
        failed.map_or(Ok(()), Err)
    }

    fn script(&self, name: &str, script: &str, limits: &HookLimits) -> Result<(), HookError> {
        let program = self.vet(name, script)?;
        let state = self.state.join(name);
        let said = |what: &str, output: String| match output.is_empty() {
            true => failure(name, &format!("{script} {what}")),
            false => failure(name, &format!("{script} {what}: {output}")),
        };
        let seconds = |duration: Duration| duration.as_secs().max(1).to_string();
        let (reader, writer) = io::pipe().map_err(|error| said(&error.to_string(), String::new()))?;
        let both = writer.try_clone().map_err(|error| said(&error.to_string(), String::new()))?;
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LANG", "C")
            .env("LIFEBOAT_HOOK", name)
            .env("LIFEBOAT_STATE_DIR", &state)
            .env("LIFEBOAT_TIMEOUT_SECONDS", seconds(limits.timeout))
            .env("LIFEBOAT_HOLD_SECONDS", seconds(limits.hold))
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(both);
        let child = command.spawn().map_err(|error| said(&format!("does not start: {error}"), String::new()));
        // Its ends of the pipe are the script's alone from here on.
        drop(command);
        let output = Output::of(reader);
        match wait(child?, limits.timeout) {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(said(&format!("failed ({status})"), output.end())),
            Ok(None) => {
                Err(said(&format!("took longer than {:?} and was killed", limits.timeout), output.end()))
            }
            Err(error) => Err(said(&error.to_string(), output.end())),
        }
    }
}

fn failure(hook: &str, reason: &str) -> HookError {
    HookError { hook: hook.to_owned(), reason: reason.to_owned() }
}

fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// How it ended; `None`: it did not in time, and was killed with everything in its process group.
#[allow(clippy::disallowed_methods, reason = "on the thread of the hooks, which does nothing else meanwhile")]
fn wait(mut child: Child, limit: Duration) -> io::Result<Option<std::process::ExitStatus>> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if began.elapsed() >= limit {
            sys::kill_group(child.id())?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

/// The end of what a script writes.
struct Output {
    tail: Arc<Mutex<VecDeque<u8>>>,
    done: mpsc::Receiver<()>,
}

impl Output {
    fn of(mut reader: io::PipeReader) -> Self {
        let tail: Arc<Mutex<VecDeque<u8>>> = Arc::default();
        let (over, done) = mpsc::channel();
        let kept = Arc::clone(&tail);
        // Ends with the last process that holds the pipe, which may be one that `pre` leaves behind until `post`.
        _ = std::thread::Builder::new().name("hook-output".to_owned()).spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(buffer.get(..read).unwrap_or_default());
                let over = kept.len().saturating_sub(OUTPUT);
                kept.drain(..over);
            }
            _ = over.send(());
        });
        Self { tail, done }
    }

    fn end(&self) -> String {
        _ = self.done.recv_timeout(LAST_WORDS);
        let tail: Vec<u8> =
            self.tail.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        presentable(&String::from_utf8_lossy(&tail))
    }
}

/// One line, without control characters and without what looks like a secret.
fn presentable(output: &str) -> String {
    let lines = output.lines().map(|line| {
        let lower = line.to_ascii_lowercase();
        let secret = SECRETS.iter().filter_map(|word| lower.find(word)).min();
        match secret.and_then(|at| line.get(..at)) {
            Some(harmless) => format!("{harmless}…"),
            None => line.to_owned(),
        }
    });
    let text = lines.filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("; ");
    text.chars().filter(|character| !character.is_control()).collect()
}

#[cfg(test)]
#[path = "hooks_tests.rs"]
mod tests;
