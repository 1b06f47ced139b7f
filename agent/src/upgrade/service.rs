//! The agent's service as an upgrade uses it, by systemd; and when a service that was started is well.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    process::Command,
    time::{Instant, sleep, timeout},
};

use super::say;
use crate::{digest::Digest, install::AGENT_UNIT};

/// `--version` does nothing; an emulated processor needs its time to load the program.
const TRY_LIMIT: Duration = Duration::from_secs(60);
/// It makes an initramfs for each kernel.
const INSTALL_LIMIT: Duration = Duration::from_secs(30 * 60);
const LOOK_LIMIT: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// An agent that cannot work ends within seconds, and systemd starts it again 2 s later.
const STEADY: Duration = Duration::from_secs(15);
const UP_LIMIT: Duration = Duration::from_secs(90);

/// Errors are words for a person.
#[async_trait]
pub trait Service: Send {
    /// The version that the program says of itself.
    async fn version(&mut self, program: &Path) -> Result<String, String>;
    /// Has the program write its units and files, and (re)start its service.
    async fn install(&mut self, program: &Path) -> Result<(), String>;
    /// The program that the service runs; `None`: it does not run.
    async fn running(&mut self) -> Option<Digest>;
    /// Waits until the service runs this program and goes on doing so.
    async fn stays_up(&mut self, program: &Digest) -> Result<(), String>;
}

/// A look at the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Of its main process; 0: there is none.
    pub pid: u32,
    pub active: bool,
}

/// Whether a service that was started is well: one process for some time.
#[derive(Debug, Default)]
pub struct Watch {
    /// A process, and when it was first seen.
    steady: Option<(u32, Duration)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Wait,
    Up { pid: u32 },
    Down,
}

impl Watch {
    /// `at`: since the start.
    pub fn look(&mut self, at: Duration, look: Look) -> Verdict {
        let now = (look.active && look.pid != 0).then_some(look.pid);
        self.steady = now.map(|pid| match self.steady {
            Some((known, since)) if known == pid => (pid, since),
            _ => (pid, at),
        });
        match self.steady {
            Some((pid, since)) if at.saturating_sub(since) >= STEADY => Verdict::Up { pid },
            _ if at >= UP_LIMIT => Verdict::Down,
            _ => Verdict::Wait,
        }
    }
}

/// From `systemctl show`.
fn parse(shown: &str) -> Look {
    let value = |name: &str| shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    Look {
        pid: value("MainPID").and_then(|pid| pid.parse().ok()).unwrap_or(0),
        active: value("ActiveState") == Some("active"),
    }
}

/// The service of this machine.
#[derive(Debug)]
pub struct Systemd {
    pub units: PathBuf,
}

impl Systemd {
    async fn look(&self) -> Result<Look, String> {
        let mut command = Command::new("systemctl");
        command.args(["show", "--property=MainPID,ActiveState", AGENT_UNIT]);
        let output = run(&mut command, LOOK_LIMIT).await?;
        Ok(parse(&String::from_utf8_lossy(&output.stdout)))
    }
}

#[async_trait]
impl Service for Systemd {
    async fn version(&mut self, program: &Path) -> Result<String, String> {
        let output = run(Command::new(program).arg("--version"), TRY_LIMIT).await?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match text.strip_prefix("lifeboat-agent ") {
            Some(version) => Ok(version.to_owned()),
            None => Err(format!("it says of itself: {text:?}")),
        }
    }

    async fn install(&mut self, program: &Path) -> Result<(), String> {
        let mut command = Command::new(program);
        let output = run(command.arg("install").arg("--unit-dir").arg(&self.units), INSTALL_LIMIT).await?;
        for line in [&output.stdout, &output.stderr].iter().flat_map(|text| text.split(|byte| *byte == b'\n'))
        {
            if !line.is_empty() {
                say(&String::from_utf8_lossy(line));
            }
        }
        Ok(())
    }

    async fn running(&mut self) -> Option<Digest> {
        let look = self.look().await.ok()?;
        Digest::of_file(&program_of(Some(look.pid).filter(|pid| *pid != 0)?)).ok()
    }

    async fn stays_up(&mut self, program: &Digest) -> Result<(), String> {
        let started = Instant::now();
        let mut watch = Watch::default();
        loop {
            // A look that fails once is no reason to give up a good agent.
            let look = self.look().await.unwrap_or(Look { pid: 0, active: false });
            match watch.look(started.elapsed(), look) {
                Verdict::Wait => sleep(LOOK_EVERY).await,
                Verdict::Down => {
                    return Err(format!(
                        "{AGENT_UNIT} does not stay up (`journalctl -u {AGENT_UNIT}` says why)"
                    ));
                }
                Verdict::Up { pid } => {
                    let runs = Digest::of_file(&program_of(pid));
                    return match runs {
                        Ok(runs) if runs == *program => Ok(()),
                        _ => Err(format!(
                            "{AGENT_UNIT} runs another program: does a drop-in (`systemctl cat {AGENT_UNIT}`) name one?"
                        )),
                    };
                }
            }
        }
    }
}

fn program_of(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/exe"))
}

/// To its end, or it is killed at the limit.
async fn run(command: &mut Command, limit: Duration) -> Result<Output, String> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let ended = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(limit, ended)
        .await
        .map_err(|_| format!("{name} did not end within {limit:?}"))?
        .map_err(|error: io::Error| format!("{name} cannot be started ({error})"))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name} failed ({}): {}", output.status, said.trim()))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    /// What becomes of a service that has these processes, each for so many seconds, 2 s apart.
    fn verdict(processes: &[(u32, u64)]) -> Verdict {
        let mut looks = Vec::new();
        for (pid, seconds) in processes {
            looks.extend(vec![Look { pid: *pid, active: true }; *seconds as usize]);
            looks.extend([Look { pid: 0, active: false }; 2]);
        }
        let mut watch = Watch::default();
        let all = looks.into_iter().chain(std::iter::repeat(Look { pid: 0, active: false }));
        for (at, look) in all.enumerate() {
            match watch.look(Duration::from_secs(at as u64), look) {
                Verdict::Wait => {}
                verdict => return verdict,
            }
        }
        unreachable!("looks go on for ever")
    }

    #[test]
    fn a_service_is_up_when_one_process_lives_and_down_when_it_is_started_again_and_again() {
        assert_eq!(verdict(&[(7, 60)]), Verdict::Up { pid: 7 });
        assert_eq!(verdict(&[(7, 3), (8, 60)]), Verdict::Up { pid: 8 });
        assert_eq!(verdict(&[(7, 3), (8, 12), (9, 14)]), Verdict::Down);
        let loops: Vec<_> = (1..40).map(|pid| (pid, 10)).collect();
        assert_eq!(verdict(&loops), Verdict::Down);
        assert_eq!(verdict(&[]), Verdict::Down);
    }

    #[test]
    fn a_look_reads_what_systemctl_shows() {
        assert_eq!(parse("MainPID=812\nActiveState=active\n"), Look { pid: 812, active: true });
        assert_eq!(parse("ActiveState=activating\nMainPID=0\n"), Look { pid: 0, active: false });
        assert_eq!(parse(""), Look { pid: 0, active: false });
    }

    #[tokio::test]
    async fn what_is_no_agent_or_does_not_run_here_is_refused_with_the_reason() {
        let root = tempfile::tempdir().unwrap();
        let mut systemd = Systemd { units: root.path().to_owned() };
        let mut version = async |content: &[u8]| {
            let path = root.path().join("program");
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            systemd.version(&path).await
        };
        assert_eq!(version(b"#!/bin/sh\necho lifeboat-agent 0.2.0\n").await, Ok("0.2.0".to_owned()));
        assert!(version(b"#!/bin/sh\necho lifeboat-applier 0.2.0\n").await.is_err());
        let failed = version(b"#!/bin/sh\necho no such instruction >&2; exit 3\n").await.unwrap_err();
        assert!(failed.contains("no such instruction"), "{failed}");
        // The beginning of a program for another machine (ELF, 64 bits, AArch64).
        let mut foreign = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0".to_vec();
        foreign.resize(4096, 0);
        let refused = version(&foreign).await.unwrap_err();
        assert!(refused.contains("cannot be started"), "{refused}");
    }
}
