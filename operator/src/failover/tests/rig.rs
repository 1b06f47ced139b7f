//! A small cluster for the engine: Jobs that end as told, machines, people who answer, and an operator that can
//! crash between any two of its actions.

use std::collections::BTreeMap;

use lifeboat_crds::{
    FailoverRunSpec, FailoverRunStatus, Time,
    approval::{Decision, FailoverApprovalSpec, RunRef},
    check::{HealthCheck, TcpCheck},
    plan::{Check, FailoverType, Group, GroupServer, OnFailure, OnTimeout, Pause, Retry, Script, Step},
    refs::{LocalRef, User},
    run::{Consistency, RecoveryPointChoice, Resolved, ResolvedPoint, ResolvedServer, RunPhase, StepState},
    server::{Target, VirtualMachinePod},
};

use crate::failover::{Effect, Run, World, effect::Judgement, tick, world::*};

pub(super) const UID: &str = "2a6f0d8e";

/// How the Job of one attempt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Succeeds,
    Fails,
    /// Never by itself.
    Hangs,
    /// Somebody deletes it.
    Deleted,
}

/// Where the operator dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crash {
    Never,
    BeforePersist,
    /// The status write was refused: somebody else has written in between.
    Conflict,
    /// After this many effects.
    AfterEffects(usize),
}

#[derive(Debug, Clone)]
struct SimJob {
    step: String,
    attempt: u32,
    made_at: i64,
    deleting: bool,
    held: bool,
    state: JobState,
}

pub(super) struct Rig {
    pub(super) spec: FailoverRunSpec,
    pub(super) status: FailoverRunStatus,
    pub(super) resolution: Resolution,
    /// By step and attempt; `Succeeds` when nothing is said.
    pub(super) endings: BTreeMap<(String, u32), Ending>,
    /// What people answer when a step waits, by step and attempt.
    pub(super) answers: BTreeMap<(String, u32), Decision>,
    pub(super) broken_machines: Vec<String>,
    /// Machines that read damage so many seconds after they were made.
    pub(super) rotten_machines: BTreeMap<String, i64>,
    pub(super) second: i64,
    /// Job creations that took effect, by step and attempt.
    pub(super) made: BTreeMap<(String, u32), u32>,
    /// In order.
    pub(super) journal: Vec<String>,
    pub(super) machines_made: BTreeMap<String, u32>,
    pub(super) verdicts: BTreeMap<String, Judgement>,
    jobs: BTreeMap<String, SimJob>,
    machines: BTreeMap<String, (String, i64)>,
    approvals: Vec<Approval>,
}

impl Rig {
    pub(super) fn new(groups: Vec<Group>) -> Self {
        let resolved = resolved(groups);
        Self {
            spec: spec(),
            status: FailoverRunStatus::default(),
            resolution: Resolution::Ready(Box::new(resolved)),
            endings: BTreeMap::new(),
            answers: BTreeMap::new(),
            broken_machines: Vec::new(),
            rotten_machines: BTreeMap::new(),
            second: 1_000_000,
            made: BTreeMap::new(),
            journal: Vec::new(),
            machines_made: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            jobs: BTreeMap::new(),
            machines: BTreeMap::new(),
            approvals: Vec::new(),
        }
    }

    pub(super) fn now(&self) -> Time {
        Time::from_second(self.second).unwrap()
    }

    fn world(&self) -> World {
        let job = |job: &SimJob| Job { state: job.state.clone(), deleting: job.deleting, held: job.held };
        let machine = |(server, made_at): &(String, i64)| {
            let up = self.second - made_at >= 2;
            let failed = self
                .broken_machines
                .contains(server)
                .then(|| "the disk server has exited: wrong key".to_owned());
            let rotten =
                self.rotten_machines.get(server).is_some_and(|after| self.second - made_at >= *after);
            let failed = failed.or_else(|| rotten.then(|| "segment s/1 is not what was written".to_owned()));
            (
                server.clone(),
                Machine {
                    disks_ready: up,
                    running: up,
                    address: up.then(|| "10.0.0.7".to_owned()),
                    failed,
                    ..Machine::default()
                },
            )
        };
        World {
            resolution: Some(self.resolution.clone()),
            jobs: self.jobs.iter().map(|(name, known)| (name.clone(), job(known))).collect(),
            machines: self.machines.values().map(machine).collect(),
            approvals: self.approvals.clone(),
        }
    }

    /// One pass of the operator.
    pub(super) fn pass(&mut self, crash: Crash) {
        let world = self.world();
        let now = self.now();
        let run = Run {
            namespace: "drills",
            name: "erp-1",
            uid: UID,
            generation: Some(1),
            created: Time::from_second(1_000_000).unwrap(),
            spec: &self.spec,
            deleting: false,
        };
        let outcome = tick(&run, &self.status, &world, now);
        if matches!(crash, Crash::BeforePersist | Crash::Conflict) {
            return;
        }
        self.status = outcome.status;
        let effects = match crash {
            Crash::AfterEffects(count) => count,
            _ => usize::MAX,
        };
        for effect in outcome.effects.into_iter().take(effects) {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::CreateJob(order) => {
                if self.jobs.contains_key(&order.name) {
                    return;
                }
                *self.made.entry((order.step.clone(), order.attempt)).or_default() += 1;
                self.journal.push(format!("job {}#{}", order.step, order.attempt));
                let job = SimJob {
                    step: order.step,
                    attempt: order.attempt,
                    made_at: self.second,
                    deleting: false,
                    held: true,
                    state: JobState::Active,
                };
                self.jobs.insert(order.name, job);
            }
            Effect::StopJob { name } => self.delete_job(&name),
            Effect::ReleaseJob { name } => {
                if let Some(job) = self.jobs.get_mut(&name) {
                    job.held = false;
                    if job.deleting {
                        self.jobs.remove(&name);
                    }
                }
            }
            Effect::CreateMachine { name, server } => {
                if !self.machines.contains_key(&name) {
                    *self.machines_made.entry(server.name.clone()).or_default() += 1;
                    self.journal.push(format!("machine {}", server.name));
                    self.machines.insert(name, (server.name, self.second));
                }
            }
            Effect::RemoveMachine { name } => {
                self.machines.remove(&name);
            }
            Effect::Judge { approval, verdict } => {
                if let Some(known) =
                    self.approvals.iter_mut().find(|known| known.name == approval && !known.judged)
                {
                    known.judged = true;
                    assert!(self.verdicts.insert(approval, verdict).is_none(), "judged twice");
                }
            }
        }
    }

    fn delete_job(&mut self, name: &str) {
        if let Some(job) = self.jobs.get_mut(name) {
            job.deleting = true;
            if !job.held {
                self.jobs.remove(name);
            }
        }
    }

    /// A second goes by: Jobs end, people answer.
    pub(super) fn second_passes(&mut self) {
        self.second += 1;
        let mut deleted = Vec::new();
        for (name, job) in
            self.jobs.iter_mut().filter(|(_, job)| job.state == JobState::Active && !job.deleting)
        {
            let ending =
                self.endings.get(&(job.step.clone(), job.attempt)).copied().unwrap_or(Ending::Succeeds);
            match ending {
                // Before anybody may have looked at it.
                Ending::Deleted => deleted.push(name.clone()),
                _ if self.second - job.made_at < 3 => {}
                Ending::Succeeds => job.state = JobState::Succeeded { message: None },
                Ending::Fails => job.state = JobState::Failed { message: "exit code 1".to_owned() },
                Ending::Hangs => {}
            }
        }
        for name in deleted {
            self.delete_job(&name);
        }
        let waiting: Vec<(String, u32)> = self
            .status
            .steps
            .iter()
            .filter(|step| step.state == StepState::Waiting && step.not_before.is_none())
            .map(|step| (step.name.clone(), step.attempt))
            .collect();
        for (step, attempt) in waiting {
            if let Some(decision) = self.answers.get(&(step.clone(), attempt)).copied() {
                self.answer(&format!("{step}-{attempt}"), &step, attempt, decision, "alice");
            }
        }
    }

    pub(super) fn answer(&mut self, name: &str, step: &str, attempt: u32, decision: Decision, who: &str) {
        if self.approvals.iter().any(|known| known.name == name) {
            return;
        }
        let spec = FailoverApprovalSpec {
            run_ref: RunRef { name: "erp-1".to_owned(), uid: UID.to_owned() },
            step: step.to_owned(),
            attempt,
            decision,
            comment: None,
            by: User { username: who.to_owned(), groups: vec![] },
        };
        self.approvals.push(Approval { name: name.to_owned(), spec, created: self.now(), judged: false });
    }

    /// Without crashes, until `done` or for at most this many seconds.
    pub(super) fn run_until(&mut self, seconds: usize, done: impl Fn(&FailoverRunStatus) -> bool) {
        for _ in 0..seconds {
            self.pass(Crash::Never);
            if done(&self.status) {
                return;
            }
            self.second_passes();
        }
        panic!("not done after {seconds} s: {:#?}", self.status);
    }

    pub(super) fn run_to_end(&mut self) {
        self.run_until(5000, |status| status.phase.is_some_and(RunPhase::has_ended));
    }

    pub(super) fn state(&self, step: &str) -> StepState {
        self.status
            .steps
            .iter()
            .find(|known| known.name == step)
            .unwrap_or_else(|| panic!("no step {step}: {:?}", self.status.steps))
            .state
    }

    pub(super) fn message(&self, step: &str) -> String {
        self.status
            .steps
            .iter()
            .find(|known| known.name == step)
            .and_then(|known| known.message.clone())
            .unwrap_or_default()
    }

    pub(super) fn nothing_is_left(&self) -> bool {
        self.machines.is_empty() && self.jobs.values().all(|job| !job.held && (job.state != JobState::Active))
    }

    /// What must not depend on crashes: how every step ended and at which attempt, and how the run did.
    pub(super) fn result(&self) -> Vec<(String, StepState, u32)> {
        self.status.steps.iter().map(|step| (step.name.clone(), step.state, step.attempt)).collect()
    }
}

fn spec() -> FailoverRunSpec {
    FailoverRunSpec {
        plan_ref: Some(LocalRef::new("erp")),
        server_ref: None,
        requested_by: User { username: "alice".to_owned(), groups: vec![] },
        kind: FailoverType::Test,
        recovery_point: RecoveryPointChoice::default(),
        servers: vec![],
        clean_up_after: None,
        cancel: false,
        clean_up: false,
    }
}

pub(super) fn resolved(groups: Vec<Group>) -> Resolved {
    let server = |server: &GroupServer| ResolvedServer {
        name: server.name.clone(),
        id: "id".to_owned(),
        appliance: "berlin".to_owned(),
        recovery_point: point(999_990),
        recovery_point_note: None,
        complete_until: None,
        target: Target {
            virtual_machine_pod: serde_json::from_value::<VirtualMachinePod>(serde_json::json!({})).unwrap(),
        },
        health_check: Some(HealthCheck {
            tcp: Some(TcpCheck { port: 5432, expect: "^S".to_owned(), ..TcpCheck::default() }),
            http: None,
        }),
    };
    let servers = groups.iter().flat_map(|group| &group.servers).map(server).collect();
    Resolved { groups, servers }
}

pub(super) fn point(second: i64) -> ResolvedPoint {
    ResolvedPoint {
        time: Time::from_second(second).unwrap(),
        epoch: 1,
        record: u64::try_from(second).unwrap(),
        consistency: Consistency::CrashConsistent,
        group_point: None,
    }
}

pub(super) fn group(name: &str, servers: &[&str]) -> Group {
    let servers =
        servers.iter().map(|name| GroupServer { name: (*name).to_owned(), depends_on: vec![] }).collect();
    Group { name: name.to_owned(), servers, parallelism: 10, before: vec![], after: vec![] }
}

pub(super) fn script(name: &str) -> Step {
    Step {
        name: name.to_owned(),
        script: Some(Script { image: "tools".to_owned(), ..Script::default() }),
        ..Step::default()
    }
}

pub(super) fn retried(mut step: Step, limit: u32) -> Step {
    step.retry = Some(Retry { limit, backoff: lifeboat_crds::Duration::from_secs(10) });
    step
}

pub(super) fn on_failure(mut step: Step, what: OnFailure) -> Step {
    step.on_failure = what;
    step
}

pub(super) fn check(name: &str, server: &str) -> Step {
    let tcp = TcpCheck { port: 5432, expect: "^S".to_owned(), ..TcpCheck::default() };
    Step {
        name: name.to_owned(),
        check: Some(Check { server: server.to_owned(), tcp: Some(tcp), http: None }),
        ..Step::default()
    }
}

pub(super) fn pause(name: &str, quorum: u32) -> Step {
    let pause =
        Pause { message: "look at it".to_owned(), approvers: None, quorum, on_timeout: OnTimeout::Stop };
    Step { name: name.to_owned(), pause: Some(pause), ..Step::default() }
}

pub(super) fn delay(name: &str, seconds: u64) -> Step {
    Step {
        name: name.to_owned(),
        delay: Some(lifeboat_crds::Duration::from_secs(seconds)),
        ..Step::default()
    }
}
