//! The steps of a plan (script, check, pause, delay), and the attempts of everything that is a Job.
//!
//! ```text
//! NotStarted ─► Executing ─► Completed
//!                 │  ▲
//!                 ▼  │ backoff is over, or people answer Retry
//!               Waiting ─► Skipped (people answer Skip)
//!                 └──────► Failed | TimedOut
//! ```
//! Work has a time-out for each attempt; waiting for people has a clock of its own (`timeout` of a pause).

use std::time::Duration;

use lifeboat_crds::{
    Time,
    approval::Decision,
    check::Probe,
    plan::{Action, OnFailure, OnTimeout, Pause, Retry, Step},
    run::{ObjectName, StepState, StepStatus},
};

use super::{
    Effect,
    effect::{JobOrder, OwnedProbe, Work, job_name},
    report,
    tick::Tick,
    world::{Job, JobState},
};

/// Whether the run may go on past something.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Going,
    Done,
    /// The run must stop, and why.
    Failed(String),
}

/// Work that is done by a Job, as often as its retries allow.
pub(super) struct Attempts {
    pub(super) timeout: Duration,
    pub(super) retry: Option<Retry>,
    pub(super) on_failure: OnFailure,
}

impl Tick<'_> {
    pub(super) fn drive_step(&mut self, step: &Step) -> Progress {
        if let Some(progress) = self.ended(&step.name, step.on_failure, is_lenient_pause(step)) {
            return progress;
        }
        match step.action() {
            Some(Action::Script(script)) => {
                self.drive_work(&step.name, &attempts_of(step), Ok(Work::Script(script.clone())))
            }
            Some(Action::Check(check)) => {
                let work = self.check(&check.server, check.probe());
                self.drive_work(&step.name, &attempts_of(step), work)
            }
            Some(Action::Pause(pause)) => self.drive_pause(step, pause),
            Some(Action::Delay(delay)) => self.drive_delay(&step.name, delay.get()),
            None => self.fail(
                &step.name,
                StepState::Failed,
                "the step has no action: give it one of script, check, pause and delay",
            ),
        }
        self.ended(&step.name, step.on_failure, is_lenient_pause(step)).unwrap_or(Progress::Going)
    }

    /// What the end of a step means for the run; `None` while it has not ended.
    fn ended(&self, name: &str, on_failure: OnFailure, lenient_timeout: bool) -> Option<Progress> {
        let step = self.step(name)?;
        let lenient =
            on_failure == OnFailure::Continue || (lenient_timeout && step.state == StepState::TimedOut);
        match step.state {
            StepState::NotStarted | StepState::Executing | StepState::Waiting => None,
            StepState::Completed | StepState::Skipped => Some(Progress::Done),
            StepState::Failed | StepState::TimedOut if lenient => Some(Progress::Done),
            StepState::Failed | StepState::TimedOut => {
                Some(Progress::Failed(format!("step {name} has failed")))
            }
        }
    }

    /// A check of a recovered server; an error when there is nothing to ask.
    pub(super) fn check(&self, server: &str, probe: Option<Probe<'_>>) -> Result<Work, String> {
        let address = self
            .status
            .servers
            .iter()
            .find(|known| known.name == server)
            .and_then(|known| known.addresses.first());
        let address = address.ok_or_else(|| format!("server {server} has no address: it is not up"))?.clone();
        let probe = match probe {
            Some(Probe::Http(http)) => OwnedProbe::Http(http.clone()),
            Some(Probe::Tcp(tcp)) => OwnedProbe::Tcp(tcp.clone()),
            None => return Err("the check has no probe: give it one of http and tcp".to_owned()),
        };
        Ok(Work::Check { address, probe })
    }

    /// One Job an attempt. `work` is an error when an attempt cannot even begin.
    pub(super) fn drive_work(&mut self, name: &str, attempts: &Attempts, work: Result<Work, String>) {
        let Some(step) = self.step(name).cloned() else { return };
        let next = match step.state {
            StepState::NotStarted => true,
            StepState::Waiting => match step.not_before {
                Some(time) => self.backoff_is_over(&step, time),
                None => self.people_ask_for_retry(&step),
            },
            StepState::Executing
            | StepState::Completed
            | StepState::Failed
            | StepState::TimedOut
            | StepState::Skipped => false,
        };
        if next {
            self.begin(name);
        }
        let Some(step) = self.step(name).cloned() else { return };
        if step.state == StepState::Executing {
            match work {
                Ok(work) => self.attend(&step, attempts, work),
                Err(why) => self.attempt_failed(&step, attempts, StepState::Failed, &why),
            }
        }
    }

    /// The next attempt starts only when nothing of the one before can still be at work.
    fn backoff_is_over(&mut self, step: &StepStatus, not_before: Time) -> bool {
        if self.now < not_before {
            self.wake(not_before);
            return false;
        }
        !self.world.jobs.get(&job_name(self.run.uid, &step.name, step.attempt)).is_some_and(Job::may_run)
    }

    /// A failed step that asks: Retry starts the next attempt, Skip and Reject end the step here.
    fn people_ask_for_retry(&mut self, step: &StepStatus) -> bool {
        let Some(answer) = step.answers.iter().find(|answer| answer.attempt == step.attempt).cloned() else {
            return false;
        };
        match answer.decision {
            Decision::Retry => {
                return !self
                    .world
                    .jobs
                    .get(&job_name(self.run.uid, &step.name, step.attempt))
                    .is_some_and(Job::may_run);
            }
            Decision::Skip => self.finish(
                &step.name,
                StepState::Skipped,
                &format!("{} let the run go on without it", answer.username),
            ),
            Decision::Reject | Decision::Approve => {
                let failure = step.message.clone().unwrap_or_default();
                self.fail(
                    &step.name,
                    StepState::Failed,
                    &format!("{} stopped the run: {failure}", answer.username),
                );
            }
        }
        false
    }

    pub(super) fn begin(&mut self, name: &str) {
        let (uid, now) = (self.run.uid.to_owned(), self.now);
        if let Some(step) = self.step_mut(name) {
            step.attempt += 1;
            step.state = StepState::Executing;
            step.started_at = Some(now);
            step.not_before = None;
            step.object = None;
            step.message = None;
            tracing::debug!(run = uid, step = name, attempt = step.attempt, "begins");
        }
    }

    /// Looks after the Job of the attempt under way.
    fn attend(&mut self, step: &StepStatus, attempts: &Attempts, work: Work) {
        let name = job_name(self.run.uid, &step.name, step.attempt);
        let deadline = later(step.started_at.unwrap_or(self.now), attempts.timeout);
        let late = self.now >= deadline;
        let job = self.world.jobs.get(&name).cloned();
        if job.is_some() {
            self.record_object(&step.name, "Job", &name);
        }
        let timed_out = || {
            format!(
                "no end within {}s: see the log of Job {name}, or give the step a longer timeout",
                attempts.timeout.as_secs()
            )
        };
        match job.map(|job| (job.state, job.deleting)) {
            Some((JobState::Succeeded { message }, _)) => {
                self.finish(&step.name, StepState::Completed, message.as_deref().unwrap_or_default())
            }
            Some((JobState::Failed { message }, _)) => {
                self.attempt_failed(step, attempts, StepState::Failed, &message)
            }
            Some((JobState::Active, true)) => self.attempt_failed(
                step,
                attempts,
                StepState::Failed,
                &format!("Job {name} was deleted by somebody"),
            ),
            Some((JobState::Active, false)) | None if late => {
                self.attempt_failed(step, attempts, StepState::TimedOut, &timed_out())
            }
            Some((JobState::Active, false)) => self.wake(deadline),
            None if step.object.is_some() => {
                self.attempt_failed(step, attempts, StepState::Failed, &format!("Job {name} has vanished"))
            }
            None => {
                let context = report::context(self, &step.name, step.attempt);
                let timeout_seconds = attempts.timeout.as_secs();
                let order = JobOrder {
                    name,
                    step: step.name.clone(),
                    attempt: step.attempt,
                    timeout_seconds,
                    work,
                    context,
                };
                self.effects.push(Effect::CreateJob(Box::new(order)));
                self.wake(deadline);
            }
        }
    }

    fn attempt_failed(&mut self, step: &StepStatus, attempts: &Attempts, state: StepState, why: &str) {
        let message = format!("attempt {}: {why}", step.attempt);
        let retry = attempts.retry.as_ref().filter(|retry| step.attempt <= retry.limit);
        if retry.is_none() && attempts.on_failure != OnFailure::Ask {
            return self.fail(&step.name, state, &message);
        }
        // Doubles with each attempt; the limit of 10 retries keeps the shift small.
        let not_before =
            retry.map(|retry| later(self.now, retry.backoff.get() * (1 << (step.attempt - 1).min(16))));
        if let Some(time) = not_before {
            self.wake(time);
        }
        if let Some(step) = self.step_mut(&step.name) {
            step.state = StepState::Waiting;
            step.not_before = not_before;
            step.message = Some(message);
        }
    }

    fn drive_pause(&mut self, step: &Step, pause: &Pause) {
        if self.step(&step.name).is_some_and(|status| status.state == StepState::NotStarted) {
            self.begin(&step.name);
            if let Some(status) = self.step_mut(&step.name) {
                status.state = StepState::Waiting;
                status.message = Some(pause.message.clone());
            }
            return;
        }
        let Some(status) = self.step(&step.name).cloned() else { return };
        let names = |decision| -> Vec<String> {
            status
                .answers
                .iter()
                .filter(|answer| answer.decision == decision)
                .map(|answer| answer.username.clone())
                .collect()
        };
        let (approved, rejected, skipped) =
            (names(Decision::Approve), names(Decision::Reject), names(Decision::Skip));
        if let Some(who) = rejected.first() {
            self.fail(&step.name, StepState::Failed, &format!("rejected by {who}"));
        } else if let Some(who) = skipped.first() {
            self.finish(&step.name, StepState::Skipped, &format!("{who} let the run go on without it"));
        } else if approved.len() >= usize::try_from(pause.quorum).unwrap_or(usize::MAX) {
            self.finish(&step.name, StepState::Completed, &format!("approved by {}", approved.join(", ")));
        } else if let Some(timeout) = step.timeout {
            let deadline = later(status.started_at.unwrap_or(self.now), timeout.get());
            if self.now >= deadline {
                self.fail(
                    &step.name,
                    StepState::TimedOut,
                    &format!("not enough people have answered within {timeout}"),
                );
            } else {
                self.wake(deadline);
            }
        }
    }

    fn drive_delay(&mut self, name: &str, delay: Duration) {
        if self.step(name).is_some_and(|step| step.state == StepState::NotStarted) {
            self.begin(name);
            let end = later(self.now, delay);
            if let Some(step) = self.step_mut(name) {
                step.not_before = Some(end);
            }
        }
        let Some(end) = self.step(name).and_then(|step| step.not_before) else { return };
        if self.now >= end {
            self.finish(name, StepState::Completed, "");
        } else {
            self.wake(end);
        }
    }

    pub(super) fn record_object(&mut self, name: &str, kind: &str, object: &str) {
        if let Some(step) = self.step_mut(name) {
            step.object = Some(ObjectName { kind: kind.to_owned(), name: object.to_owned() });
        }
    }

    pub(super) fn finish(&mut self, name: &str, state: StepState, message: &str) {
        let now = self.now;
        if let Some(step) = self.step_mut(name) {
            step.state = state;
            step.finished_at = Some(now);
            step.not_before = None;
            step.message = (!message.is_empty()).then(|| report::bounded(message));
        }
    }

    pub(super) fn fail(&mut self, name: &str, state: StepState, message: &str) {
        self.finish(name, state, message);
    }
}

fn attempts_of(step: &Step) -> Attempts {
    Attempts { timeout: step.work_timeout().get(), retry: step.retry.clone(), on_failure: step.on_failure }
}

fn is_lenient_pause(step: &Step) -> bool {
    step.pause.as_ref().is_some_and(|pause| pause.on_timeout == OnTimeout::Continue)
}

/// `time` plus `duration`; the end of all time when that cannot be expressed.
pub(super) fn later(time: Time, duration: Duration) -> Time {
    jiff::SignedDuration::try_from(duration)
        .ok()
        .and_then(|duration| time.checked_add(duration).ok())
        .unwrap_or(Time::MAX)
}
