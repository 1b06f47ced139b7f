//! One tick of a run: which phase it is in, and what happens next.
//!
//! ```text
//! Pending ─► Validating ─► Running ⇄ Waiting ─► Completed ┐
//!    │           │            └─────────┴─────► Failed    ├─► CleaningUp ─► CleanedUp
//!    └───────────┴────────────────────────────► Cancelled ┘
//! ```
//! `cancel` and `cleanUp` are looked at first in every tick, that is before every gate and during every wait.

use std::time::Duration;

use lifeboat_crds::{
    FailoverRunSpec, FailoverRunStatus, Time,
    plan::Group,
    run::{ResolvedServer, RunPhase, ServerState, StepKind, StepState, StepStatus},
};

use super::{
    Effect, World, answers, cleanup, effect, own_points::OWN_POINT_LIMIT, report, resolve, servers,
    steps::Progress, world::Resolution,
};

const LOOK_FOR_POINTS: Duration = Duration::from_secs(1);

/// The parts of a run's object that never change, and its switches.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
    pub generation: Option<i64>,
    pub created: Time,
    pub spec: &'a FailoverRunSpec,
    /// Its deletion was asked for: stop and clean up.
    pub deleting: bool,
}

#[derive(Debug, Clone)]
pub struct Outcome {
    pub status: FailoverRunStatus,
    /// To be performed once `status` is persisted, in this order.
    pub effects: Vec<Effect>,
    /// When time alone changes something.
    pub wake_at: Option<Time>,
}

/// The status and effects that follow.
pub fn tick(run: &Run<'_>, status: &FailoverRunStatus, world: &World, now: Time) -> Outcome {
    let mut tick = Tick { run: *run, status: status.clone(), world, now, effects: Vec::new(), wake_at: None };
    tick.watch_machines();
    answers::collect(&mut tick);
    if run.deleting || run.spec.cancel || run.spec.clean_up {
        tick.cancel();
    }
    match tick.phase() {
        RunPhase::Pending | RunPhase::Validating => tick.start(),
        RunPhase::Running | RunPhase::Waiting => tick.advance(),
        RunPhase::Completed
        | RunPhase::Failed
        | RunPhase::Cancelled
        | RunPhase::CleaningUp
        | RunPhase::CleanedUp => {}
    }
    if status.phase.is_some_and(RunPhase::has_ended) {
        cleanup::drive(&mut tick);
    } else if tick.phase().has_ended() {
        tick.wake(now); // How it ended is persisted before the clean-up changes the phase.
    }
    tick.settle_jobs();
    answers::judge(&mut tick);
    report::update(&mut tick);
    Outcome { status: tick.status, effects: tick.effects, wake_at: tick.wake_at }
}

/// Work in progress on one tick.
pub(super) struct Tick<'a> {
    pub(super) run: Run<'a>,
    pub(super) status: FailoverRunStatus,
    pub(super) world: &'a World,
    pub(super) now: Time,
    pub(super) effects: Vec<Effect>,
    pub(super) wake_at: Option<Time>,
}

impl Tick<'_> {
    pub(super) fn phase(&self) -> RunPhase {
        self.status.phase.unwrap_or_default()
    }

    /// Look again at `time` at the latest.
    pub(super) fn wake(&mut self, time: Time) {
        self.wake_at = Some(self.wake_at.map_or(time, |other| other.min(time)));
    }

    pub(super) fn groups(&self) -> Vec<Group> {
        self.status.resolved.as_ref().map(|resolved| resolved.groups.clone()).unwrap_or_default()
    }

    pub(super) fn resolved_server(&self, name: &str) -> Option<&ResolvedServer> {
        self.status.resolved.as_ref()?.servers.iter().find(|server| server.name == name)
    }

    pub(super) fn step(&self, name: &str) -> Option<&StepStatus> {
        self.status.steps.iter().find(|step| step.name == name)
    }

    pub(super) fn step_mut(&mut self, name: &str) -> Option<&mut StepStatus> {
        self.status.steps.iter_mut().find(|step| step.name == name)
    }

    /// Resolve once, and start. Until then nothing is made and no server is held.
    fn start(&mut self) {
        match &self.world.resolution {
            None => {}
            Some(Resolution::Taken { run, server, state }) => {
                self.status.phase = Some(RunPhase::Pending);
                self.status.waiting_for = Some(format!("run {run} has server {server} and is {state}"));
            }
            // Why stands in the conditions.
            Some(Resolution::Refused(_)) => self.end(RunPhase::Failed, "the run was refused"),
            Some(Resolution::Problems(problems)) => self.validating(problems),
            Some(Resolution::NotYet { problems, vault_silent }) => {
                self.status.vault_was_silent |= *vault_silent;
                self.validating(problems);
            }
            Some(Resolution::Awaiting(servers)) => {
                // Once: a vault that comes and goes must not keep a run from its start for ever.
                if self.status.vault_was_silent && self.status.vault_back_at.is_none() {
                    self.status.vault_back_at = Some(self.now);
                }
                // Nothing that is watched changes when the point comes.
                self.wake(self.now.checked_add(LOOK_FOR_POINTS).unwrap_or(self.now));
                self.status.phase = Some(RunPhase::Validating);
                self.status.waiting_for = Some(format!(
                    "a point of {} that is not older than this run ({} s at most, then the newest is taken)",
                    servers.join(", "),
                    OWN_POINT_LIMIT.as_secs()
                ));
            }
            Some(Resolution::Ready(resolved)) => {
                self.status.plan_hash = Some(resolve::hash(resolved));
                self.status.steps = resolve::steps(resolved, self.run.spec.kind);
                self.status.servers = resolve::server_statuses(resolved, self.now);
                self.status.resolved = Some((**resolved).clone());
                self.status.started_at = Some(self.now);
                self.status.phase = Some(RunPhase::Running);
                self.status.waiting_for = None;
                self.wake(self.now);
            }
        }
    }

    fn validating(&mut self, problems: &[String]) {
        self.status.phase = Some(RunPhase::Validating);
        self.status.waiting_for = Some(super::report::bounded(&problems.join("; ")));
    }

    /// As far through the groups as their steps allow.
    fn advance(&mut self) {
        for group in self.groups() {
            match self.drive_group(&group) {
                Progress::Done => {}
                Progress::Going => return,
                Progress::Failed(why) => return self.end(RunPhase::Failed, &why),
            }
        }
        self.end(RunPhase::Completed, "the run has ended before this step");
    }

    fn drive_group(&mut self, group: &Group) -> Progress {
        for step in &group.before {
            match self.drive_step(step) {
                Progress::Done => {}
                other => return other,
            }
        }
        match servers::drive(self, group) {
            Progress::Done => {}
            other => return other,
        }
        for step in &group.after {
            match self.drive_step(step) {
                Progress::Done => {}
                other => return other,
            }
        }
        Progress::Done
    }

    /// No step starts from here on. Running Jobs are stopped by [`Self::settle_jobs`].
    fn end(&mut self, phase: RunPhase, why: &str) {
        let now = self.now;
        for step in self.status.steps.iter_mut().filter(|step| !step.state.has_ended()) {
            let started = step.state != StepState::NotStarted;
            step.state = if started { StepState::Failed } else { StepState::Skipped };
            step.finished_at = started.then_some(now);
            step.not_before = None;
            step.message =
                Some(if started { format!("stopped: {why}") } else { format!("not started: {why}") });
        }
        for server in self.status.servers.iter_mut() {
            if server.state == ServerState::Recovering {
                server.state = ServerState::Failed;
            }
        }
        self.status.phase = Some(phase);
        self.status.finished_at = Some(now);
        self.status.waiting_for = None;
    }

    fn cancel(&mut self) {
        if !self.phase().has_ended() {
            let why = if self.run.deleting { "the run is being deleted" } else { "the run was cancelled" };
            self.end(RunPhase::Cancelled, why);
        }
    }

    /// A machine that has died is not reported as up.
    fn watch_machines(&mut self) {
        if matches!(self.phase(), RunPhase::CleaningUp | RunPhase::CleanedUp) {
            return;
        }
        let up = self.status.servers.iter().filter(|server| server.state == ServerState::Up);
        let up: Vec<String> = up.map(|server| server.name.clone()).collect();
        for server in up {
            if let Some(why) = servers::machine_failure(self, &server) {
                servers::lose_server(self, &server, &why);
            }
        }
    }

    /// Jobs that are no current attempt: stopped if they run, let go once their end is on record.
    fn settle_jobs(&mut self) {
        let current = |step: &StepStatus| {
            (step.state == StepState::Executing)
                .then(|| effect::job_name(self.run.uid, &step.name, step.attempt))
        };
        let current: Vec<String> = self.status.steps.iter().filter_map(current).collect();
        for (name, job) in &self.world.jobs {
            if current.contains(name) {
                continue;
            }
            if job.may_run() && !job.deleting {
                self.effects.push(Effect::StopJob { name: name.clone() });
            }
            if job.held {
                self.effects.push(Effect::ReleaseJob { name: name.clone() });
            }
        }
    }
}

/// Kinds of steps that are the clean-up's and do not count as progress of the run.
pub(super) fn is_clean_up(kind: StepKind) -> bool {
    kind == StepKind::RemoveMachine
}
