//! `lifeboat-agent upgrade`: takes the agent that the appliance serves, started by root on the server and by nobody else
//! (docs/adr/0018).
//!
//! ```text
//!   download beside ─► does it run here? ─► note ─► keep the former ─► rename ─► its own `install` ─► does it stay up?
//!                                                                                          no │            │ yes
//!        failed ◄─ forget the note ◄─ stays up? ◄─ its `install` ◄─ the former back ◄─ note ◄─┘            └─► forget
//! ```
//! At every moment there is a whole program in its place that runs here. Until the rename nothing has changed; after it,
//! the note (files) says what is to be finished, and running the command again finishes it. What a program needs of the
//! machine only itself knows: so each, also the former one that is put back, installs itself.
//!
//! [`files`] and [`service`] are the edges, `net::download` is the line.

pub mod files;
pub mod service;

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use lifeboat_replication::errors::chain;

use crate::{
    digest::Digest,
    net::{
        connect::Connector,
        download::{DownloadError, Limits},
        management::Management,
        tls::{self, TlsError},
    },
    state::{Identity, StateError},
};
use files::{Files, Note, Step};
use service::Service;

/// Exit code of `upgrade --check` when the appliance has another agent, or an upgrade is to be finished.
pub const OTHER_SERVED: u8 = 10;

#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the agent was not downloaded, and nothing was changed")]
    Download(#[from] DownloadError),
    #[error("no unit file says which agent is installed; run `lifeboat-agent install` first")]
    NotInstalled,
    #[error(
        "this program is {}, and the installed agent is {}: nothing was changed; run `{} upgrade`",
        this.display(),
        installed.display(),
        installed.display()
    )]
    NotThis { this: PathBuf, installed: PathBuf },
    #[error("another upgrade runs on this machine; wait for its end")]
    Busy,
    #[error("{} cannot be read: remove it and run the upgrade again", path.display())]
    Note { path: PathBuf },
    #[error("cannot {operation} {}; run as root, and check that the file system is writable and not full", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "the agent that the appliance serves does not run on this machine ({why}); nothing was changed: protect machines of this kind with an appliance of the former version, and report this"
    )]
    DoesNotRun { why: String },
    #[error(
        "the service could not be started with the installed agent: {why}; mend that and run `lifeboat-agent install`"
    )]
    NotStarted { why: String },
    #[error("the new agent does not work here, and the former one is back and runs: {why}")]
    PutBack { why: String },
    #[error(
        "the new agent does not work here ({why}), and the former one could not be brought back: {then}; mend that and run `lifeboat-agent upgrade` or `lifeboat-agent install` again"
    )]
    NotPutBack { why: String, then: String },
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    UpToDate,
    /// The installed agent was the right one, the service had not been started with it.
    Restarted,
    Upgraded,
}

/// The answer of `--check`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    UpToDate,
    Other(Digest),
    /// An upgrade was interrupted, or the service runs another program than the installed one.
    Unfinished,
}

/// Where the agent's program comes from.
#[async_trait]
pub trait Origin: Send {
    /// As [`Management::download_agent`].
    async fn download(&mut self, have: &Digest, into: Option<&Path>)
    -> Result<Option<Digest>, DownloadError>;
}

#[async_trait]
impl Origin for Management {
    async fn download(
        &mut self,
        have: &Digest,
        into: Option<&Path>,
    ) -> Result<Option<Digest>, DownloadError> {
        self.download_agent(have, into, Limits::default()).await
    }
}

/// The management port, as the agent's other calls use it.
pub fn origin(identity: &Identity) -> Result<Management, TlsError> {
    Ok(Management {
        addresses: identity.management.clone(),
        tls: tls::mutual(identity)?,
        pinned: None,
        connector: Connector::default(),
    })
}

/// Refuses when another program than the installed one is to be replaced.
pub fn installed_here(unit: &Path, this: &Path) -> Result<(), UpgradeError> {
    let unit = fs::read_to_string(unit).map_err(|_| UpgradeError::NotInstalled)?;
    let started = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")?.strip_suffix(" run"));
    let installed = PathBuf::from(started.ok_or(UpgradeError::NotInstalled)?);
    let same = |one: &Path| fs::canonicalize(one).ok();
    match same(this).is_some_and(|this| Some(this) == same(&installed)) {
        true => Ok(()),
        false => Err(UpgradeError::NotThis { this: this.to_owned(), installed }),
    }
}

/// For a person. A line that nobody reads any more stops nothing.
pub(crate) fn say(line: &str) {
    _ = writeln!(io::stdout(), "{line}");
}

pub struct Upgrade<O, S> {
    pub files: Files,
    pub origin: O,
    pub service: S,
}

impl<O: Origin, S: Service> Upgrade<O, S> {
    /// Changes nothing.
    pub async fn check(&mut self) -> Result<Found, UpgradeError> {
        let installed = self.files.installed()?;
        if self.files.note()?.is_some() {
            return Ok(Found::Unfinished);
        }
        match self.origin.download(&installed, None).await? {
            Some(other) => Ok(Found::Other(other)),
            None if self.service.running().await.is_some_and(|running| running != installed) => {
                Ok(Found::Unfinished)
            }
            None => Ok(Found::UpToDate),
        }
    }

    pub async fn run(&mut self) -> Result<Outcome, UpgradeError> {
        let _alone = self.files.lock()?;
        let installed = self.files.installed()?;
        match self.files.note()? {
            Some(Note { step: Step::PutBack, to }) => {
                let why = "an upgrade that was interrupted had come to that".to_owned();
                return Err(self.put_back(to, why).await);
            }
            Some(note) if note.to == installed => {
                say("going on with an upgrade that was interrupted");
                return self.settle(note.to).await;
            }
            // That one had replaced nothing yet.
            Some(_) => self.files.forget()?,
            None => {}
        }
        let partial = self.files.partial();
        let Some(to) = self.origin.download(&installed, Some(&partial)).await? else {
            self.files.discard()?;
            return match self.service.running().await {
                Some(running) if running != installed => self.restart(installed).await,
                _ => Ok(Outcome::UpToDate),
            };
        };
        let version = match self.service.version(&partial).await {
            Ok(version) => version,
            Err(why) => {
                self.files.discard()?;
                return Err(UpgradeError::DoesNotRun { why });
            }
        };
        say(&format!("upgrading to lifeboat-agent {version} ({to})"));
        self.files.write_note(&Note { to, step: Step::Replace })?;
        self.files.keep()?;
        self.files.replace()?;
        self.settle(to).await
    }

    /// The program is in its place; it has to run well there.
    async fn settle(&mut self, to: Digest) -> Result<Outcome, UpgradeError> {
        match self.start(&to).await {
            Ok(()) => {
                self.files.forget()?;
                Ok(Outcome::Upgraded)
            }
            Err(why) => Err(self.put_back(to, why).await),
        }
    }

    async fn start(&mut self, program: &Digest) -> Result<(), String> {
        self.service.install(&self.files.program).await?;
        self.service.stays_up(program).await
    }

    async fn restart(&mut self, installed: Digest) -> Result<Outcome, UpgradeError> {
        say("the service runs another program than the installed one: it is started anew");
        let started = self.start(&installed).await;
        started.map(|()| Outcome::Restarted).map_err(|why| UpgradeError::NotStarted { why })
    }

    /// `why` the new one could not stay.
    async fn put_back(&mut self, to: Digest, why: String) -> UpgradeError {
        say(&format!("the new agent does not work here, the former one is put back: {why}"));
        match self.bring_back(to).await {
            Ok(()) => UpgradeError::PutBack { why },
            Err(then) => UpgradeError::NotPutBack { why, then },
        }
    }

    async fn bring_back(&mut self, to: Digest) -> Result<(), String> {
        let told = |error: UpgradeError| chain(&error);
        self.files.write_note(&Note { to, step: Step::PutBack }).map_err(told)?;
        if self.files.installed().map_err(told)? == to && !self.files.put_back().map_err(told)? {
            self.files.forget().map_err(told)?;
            return Err(format!("{} is gone", self.files.previous().display()));
        }
        let former = self.files.installed().map_err(told)?;
        let started = self.start(&former).await;
        // The former program is in its place: whether it runs or not, the next upgrade begins anew.
        self.files.forget().map_err(told)?;
        started
    }
}

#[cfg(test)]
mod tests;
