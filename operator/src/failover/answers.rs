//! People's answers: which of them count for which step, and the verdict on each.
//!
//! An answer that counts is recorded in its step first; the verdict is written once that is persisted. After a crash
//! in between, the recorded answer gets the same verdict.

use lifeboat_crds::{
    approval::{Decision, VerdictReason, VerdictResult},
    plan::{Action, OnFailure, Pause, Step},
    run::{Answer, StepState, StepStatus},
};

use super::{Effect, effect::Judgement, tick::Tick, world::Approval};

/// What a step that waits for people offers.
enum Question<'a> {
    Pause(&'a Pause),
    /// A step that has failed and asks what to do.
    Ask,
}

/// Records the answers that count, before anything acts on them.
pub(super) fn collect(tick: &mut Tick<'_>) {
    if tick.phase().has_ended() || tick.run.spec.cancel || tick.run.spec.clean_up || tick.run.deleting {
        return;
    }
    let mut approvals: Vec<&Approval> =
        tick.world.approvals.iter().filter(|approval| !approval.judged).collect();
    approvals.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    for approval in approvals {
        if refusal(tick, approval).is_some() {
            continue;
        }
        let answer = Answer {
            approval: approval.name.clone(),
            attempt: approval.spec.attempt,
            username: approval.spec.by.username.clone(),
            decision: approval.spec.decision,
            comment: approval.spec.comment.clone(),
            time: approval.created,
        };
        if let Some(step) = tick.step_mut(&approval.spec.step) {
            step.answers.push(answer);
        }
    }
}

/// Gives every answer its verdict, after the tick has acted on those that count.
pub(super) fn judge(tick: &mut Tick<'_>) {
    for approval in tick.world.approvals.iter().filter(|approval| !approval.judged) {
        let verdict = match refusal(tick, approval) {
            None => continue, // It will be collected in the next tick.
            Some((VerdictReason::Counted, message)) => {
                Judgement { result: VerdictResult::Counted, reason: VerdictReason::Counted, message }
            }
            Some((reason, message)) => Judgement { result: VerdictResult::Refused, reason, message },
        };
        tick.effects.push(Effect::Judge { approval: approval.name.clone(), verdict });
    }
}

/// Why the answer is not to be recorded (any more); `None`: it counts and is not recorded yet.
fn refusal(tick: &Tick<'_>, approval: &Approval) -> Option<(VerdictReason, String)> {
    let spec = &approval.spec;
    if spec.run_ref.uid != tick.run.uid {
        return Some((
            VerdictReason::RunNotFound,
            format!("run {} is another one of this name: answer the present one", spec.run_ref.name),
        ));
    }
    let Some(step) = tick.step(&spec.step) else {
        let message = format!("the run has no step {}: see status.steps of the run", spec.step);
        return Some((VerdictReason::StepNotFound, message));
    };
    if step.answers.iter().any(|answer| answer.approval == approval.name) {
        return Some((
            VerdictReason::Counted,
            format!("recorded as the answer of {} to {}", spec.by.username, step.name),
        ));
    }
    let Some(question) = question(tick, step) else {
        return Some((
            VerdictReason::NotWaiting,
            format!("step {} does not wait for people, it is {:?}", step.name, step.state),
        ));
    };
    if step.attempt != spec.attempt {
        let message = format!("step {} is at attempt {}: answer that one", step.name, step.attempt);
        return Some((VerdictReason::WrongAttempt, message));
    }
    if step.answers.iter().any(|answer| answer.attempt == spec.attempt && answer.username == spec.by.username)
    {
        return Some((VerdictReason::AlreadyAnswered, format!("{} has answered already", spec.by.username)));
    }
    let offered = match question {
        Question::Pause(_) => [Decision::Approve, Decision::Reject].as_slice(),
        Question::Ask => &[Decision::Retry, Decision::Skip, Decision::Reject],
    };
    if !offered.contains(&spec.decision) {
        let words: Vec<String> = offered.iter().map(|decision| format!("{decision:?}")).collect();
        return Some((
            VerdictReason::DecisionNotOffered,
            format!("step {} takes {}", step.name, words.join(", ")),
        ));
    }
    if let Question::Pause(pause) = question
        && !may_approve(pause, approval)
    {
        return Some((
            VerdictReason::NotAnApprover,
            format!("{} is not among the approvers of step {}", spec.by.username, step.name),
        ));
    }
    None
}

fn may_approve(pause: &Pause, approval: &Approval) -> bool {
    pause.approvers.as_ref().is_none_or(|approvers| {
        approvers.users.contains(&approval.spec.by.username)
            || approvers.groups.iter().any(|group| approval.spec.by.groups.contains(group))
    })
}

fn question<'a>(tick: &'a Tick<'_>, step: &StepStatus) -> Option<Question<'a>> {
    if step.state != StepState::Waiting || step.not_before.is_some() {
        return None;
    }
    let planned = planned(tick, &step.name)?;
    match planned.action()? {
        Action::Pause(pause) => Some(Question::Pause(pause)),
        Action::Script(_) | Action::Check(_) => {
            (planned.on_failure == OnFailure::Ask).then_some(Question::Ask)
        }
        Action::Delay(_) => None,
    }
}

/// The step as the frozen plan has it.
fn planned<'a>(tick: &'a Tick<'_>, name: &str) -> Option<&'a Step> {
    let groups = &tick.status.resolved.as_ref()?.groups;
    groups.iter().flat_map(|group| group.before.iter().chain(&group.after)).find(|step| step.name == name)
}

/// Whether the step waits for people.
pub(super) fn asks(tick: &Tick<'_>, step: &StepStatus) -> bool {
    question(tick, step).is_some()
}
