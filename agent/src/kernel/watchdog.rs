//! Thaws what the agent froze when the agent does not: `lifeboat-agent thaw-watchdog`, a process of its own.
//!
//! One connection on a Unix socket for each freeze:
//! ```text
//!   agent → {"limit_millis":5000,"mounts":[{"path":"/var","device":[8,2]},…]}\n
//!                                              directories are opened now, before anything is frozen
//!   watchdog → ARMED\n          or REFUSED <why>\n
//!   agent freezes, flips, thaws
//!   agent → THAWED\n            watchdog → HELD\n, or EXPIRED\n when it had thawed before
//! ```
//! It thaws when the limit has passed or the connection ends (an agent killed while it freezes closes its socket only
//! when the system call under way has returned, so nothing can freeze after that). After the limit it goes on thawing
//! until the agent answers or ends, since a freeze that was under way then may still come to its end.
//!
//! It never touches a file while armed: memory locked, descriptors open, nothing logged.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::{
        fd::AsFd as _,
        unix::{
            fs::{MetadataExt as _, PermissionsExt as _},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::sys;
use crate::files;

/// Default place of the socket: in memory, so that it works while disks are frozen.
pub const SOCKET: &str = "/run/lifeboat/thaw.sock";
/// Longest limit that is accepted: production stands still meanwhile.
pub const LONGEST_LIMIT: Duration = Duration::from_secs(60);
/// An agent that connects says at once what it wants.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How often thawing is repeated after the limit.
const REPEAT: Duration = Duration::from_millis(100);
/// Longest request: some hundred mount points.
const LONGEST_REQUEST: u64 = 1 << 20;

pub(super) const ARMED: &str = "ARMED";
pub(super) const HELD: &str = "HELD";
pub(super) const THAWED: &[u8] = b"THAWED\n";

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Arm {
    pub(super) limit_millis: u64,
    pub(super) mounts: Vec<ArmMount>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ArmMount {
    pub(super) path: PathBuf,
    /// Zero major: the number is made up by the kernel and cannot be compared.
    pub(super) device: (u32, u32),
}

/// Serves until the process ends. Says on standard error what it thawed, after it thawed.
pub fn run(socket: &Path) -> io::Result<()> {
    sys::lock_memory()?;
    if let Some(folder) = socket.parent() {
        fs::create_dir_all(folder)?;
    }
    files::remove(socket)?;
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    loop {
        // One at a time: a second agent must not freeze while a first one has.
        let served = listener.accept().and_then(|(connection, _)| serve(connection));
        match served {
            Ok(0) => {}
            Ok(thawed) => {
                eprintln!("the agent did not thaw in time: {thawed} file systems thawed by the watchdog")
            }
            Err(error) => eprintln!("a connection of the agent failed: {error}"),
        }
    }
}

/// Opens the directory and makes sure that it is the file system meant, not another one mounted over it.
pub(super) fn open(path: &Path, (major, minor): (u32, u32)) -> io::Result<File> {
    let directory = File::open(path)?;
    let found = sys::split_device(directory.metadata()?.dev());
    if major != 0 && found != (major, minor) {
        let found = format!("{}: another file system is mounted over it", path.display());
        return Err(io::Error::other(found));
    }
    Ok(directory)
}

/// Returns how many file systems it thawed.
fn serve(connection: UnixStream) -> io::Result<usize> {
    connection.set_read_timeout(Some(GREETING_TIMEOUT))?;
    connection.set_write_timeout(Some(GREETING_TIMEOUT))?;
    let mut line = String::new();
    BufReader::new(&connection).take(LONGEST_REQUEST).read_line(&mut line)?;
    if line.is_empty() {
        // The agent only asked whether anybody is here.
        return Ok(0);
    }
    let (limit, mounts) = match accept(&line) {
        Ok(accepted) => accepted,
        Err(error) => {
            (&connection).write_all(format!("REFUSED {error}\n").as_bytes())?;
            return Ok(0);
        }
    };
    connection.set_read_timeout(Some(limit))?;
    // Armed from here on, also when the answer cannot be sent: thawing what is not frozen does no harm.
    _ = (&connection).write_all(format!("{ARMED}\n").as_bytes());
    let mut thawed = 0;
    let mut expired = false;
    let mut answer = [0; THAWED.len()];
    loop {
        match (&connection).read(&mut answer) {
            Ok(read) if read > 0 => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                expired = true;
                thawed += thaw_all(&mounts);
                _ = connection.set_read_timeout(Some(REPEAT));
            }
            // The agent is gone.
            _ => return Ok(thawed + thaw_all(&mounts)),
        }
    }
    let answer = if expired { "EXPIRED" } else { HELD };
    _ = (&connection).write_all(format!("{answer}\n").as_bytes());
    Ok(thawed)
}

fn accept(line: &str) -> io::Result<(Duration, Vec<File>)> {
    let arm: Arm = serde_json::from_str(line)?;
    let limit = Duration::from_millis(arm.limit_millis);
    if limit.is_zero() || limit > LONGEST_LIMIT {
        return Err(io::Error::other(format!("the limit must be above zero and at most {LONGEST_LIMIT:?}")));
    }
    let mounts = arm.mounts.iter().map(|mount| open(&mount.path, mount.device)).collect::<io::Result<_>>()?;
    Ok((limit, mounts))
}

/// Root was frozen last and is thawed first.
fn thaw_all(mounts: &[File]) -> usize {
    mounts.iter().rev().filter(|mount| sys::thaw(mount.as_fd()).is_ok()).count()
}
