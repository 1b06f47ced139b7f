//! What the engine is told about the world: plain data, read after the status that goes with it.

use std::collections::BTreeMap;

use lifeboat_crds::{Time, approval::FailoverApprovalSpec, run::Resolved};

/// Everything outside of the run's own object that a tick may depend on.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Needed until the run is `Running`.
    pub resolution: Option<Resolution>,
    /// Jobs of this run by name.
    pub jobs: BTreeMap<String, Job>,
    /// Machines of this run by server.
    pub machines: BTreeMap<String, Machine>,
    /// Approvals that name this run.
    pub approvals: Vec<Approval>,
}

/// What looking up plan, servers, points and targets gave.
#[derive(Debug, Clone)]
pub enum Resolution {
    Ready(Box<Resolved>),
    /// Servers of which a point of the run's own moment is on its way: worth a short wait.
    Awaiting(Vec<String>),
    /// What is missing, each with its remedy: somebody has to act. The run goes on by itself when it is mended.
    Problems(Vec<String>),
    /// The same, but some of it ends without anybody: a vault that gives no answer, a first copy that is under way.
    NotYet {
        problems: Vec<String>,
        /// The vault of a server gave no answer, or a refusal.
        vault_silent: bool,
    },
    /// What the run asks for can never be had, since a run is not changed: why, and what to do instead.
    Refused(String),
    /// Another run has one of the servers: its name, the server, and what ends the wait.
    Taken {
        run: String,
        server: String,
        state: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub state: JobState,
    /// Somebody has asked for its deletion.
    pub deleting: bool,
    /// It still carries our finalizer.
    pub held: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    Active,
    Succeeded {
        message: Option<String>,
    },
    /// With what the pod said last.
    Failed {
        message: String,
    },
}

impl Job {
    /// A pod of it may still be at work.
    pub fn may_run(&self) -> bool {
        self.state == JobState::Active
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// The point is shown as a disk.
    pub disks_ready: bool,
    /// The machine has been switched on.
    pub running: bool,
    pub address: Option<String>,
    /// It will not come up (any more), and why.
    pub failed: Option<String>,
    pub deleting: bool,
    /// What it waits for at the moment, for people.
    pub detail: String,
}

#[derive(Debug, Clone)]
pub struct Approval {
    /// Name of the FailoverApproval.
    pub name: String,
    pub spec: FailoverApprovalSpec,
    pub created: Time,
    /// It has its verdict already.
    pub judged: bool,
}
