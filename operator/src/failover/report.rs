//! What a tick tells people: phase, progress, what is waited for, conditions, and the context that Jobs receive.

use lifeboat_crds::{
    Condition,
    conditions::{self, ConditionType, Observation, Reason, met, unmet},
    context::{ContextServer, StepContext},
    run::{RunPhase, ServerState, ServerStatus, StepState},
};

use super::{
    answers,
    tick::{Tick, is_clean_up},
    world::Resolution,
};

/// Longest message kept in a step.
const MAX_MESSAGE_CHARS: usize = 1024;

pub(super) fn bounded(message: &str) -> String {
    message.chars().take(MAX_MESSAGE_CHARS).collect()
}

pub(super) fn update(tick: &mut Tick<'_>) {
    let asking: Vec<String> = tick
        .status
        .steps
        .iter()
        .filter(|step| answers::asks(tick, step))
        .map(|step| step.name.clone())
        .collect();
    match tick.phase() {
        RunPhase::Running | RunPhase::Waiting => {
            tick.status.phase = Some(if asking.is_empty() { RunPhase::Running } else { RunPhase::Waiting });
            tick.status.waiting_for = waiting_for(tick, &asking);
        }
        RunPhase::CleaningUp => tick.status.waiting_for = Some("removal of what the run made".to_owned()),
        RunPhase::Completed | RunPhase::Failed | RunPhase::Cancelled | RunPhase::CleanedUp => {
            tick.status.waiting_for = None
        }
        RunPhase::Pending | RunPhase::Validating => {}
    }
    let steps = || tick.status.steps.iter().filter(|step| !is_clean_up(step.kind));
    tick.status.progress = (steps().count() > 0)
        .then(|| format!("{}/{}", steps().filter(|step| step.state.has_ended()).count(), steps().count()));
    tick.status.rpo_seconds = tick.status.servers.iter().filter_map(|server| server.rpo_seconds).max();
    tick.status.rto_seconds = recovery_time(tick);
    tick.status.observed_generation = tick.run.generation;
    let observed = observations(tick, &asking);
    tick.status.conditions =
        conditions::merge(&tick.status.conditions, observed, tick.run.generation, tick.now);
}

fn waiting_for(tick: &Tick<'_>, asking: &[String]) -> Option<String> {
    if !asking.is_empty() {
        let name = tick.run.name;
        let words: Vec<String> = asking
            .iter()
            .map(|step| {
                let message = tick.step(step).and_then(|step| step.message.clone()).unwrap_or_default();
                format!("an answer to {step}: {message} (kubectl lifeboat approve {name} {step})")
            })
            .collect();
        return Some(bounded(&words.join("; ")));
    }
    let current = tick
        .status
        .steps
        .iter()
        .find(|step| matches!(step.state, StepState::Executing | StepState::Waiting))?;
    Some(match current.not_before {
        Some(time) => format!("{} until {time:.0}", current.name),
        None => current.name.clone(),
    })
}

/// Known once every server was up; kept afterwards.
fn recovery_time(tick: &Tick<'_>) -> Option<u64> {
    let all: Option<Vec<u64>> = tick.status.servers.iter().map(|server| server.rto_seconds).collect();
    all.and_then(|all| all.into_iter().max())
}

fn observations(tick: &Tick<'_>, asking: &[String]) -> Vec<Observation> {
    let waiting = tick.status.waiting_for.clone().unwrap_or_default();
    let not_ready = |reason, message: &str| unmet(ConditionType::Ready, reason, message);
    let going = |reason, message: &str| {
        vec![not_ready(reason, message), met(ConditionType::Reconciling, reason, message)]
    };
    let stalled = |reason, message: &str| {
        vec![not_ready(reason, message), met(ConditionType::Stalled, reason, message)]
    };
    match tick.phase() {
        RunPhase::Pending if waiting.is_empty() => {
            going(Reason::Progressing, "the run has not been looked at yet")
        }
        RunPhase::Pending => going(Reason::WaitingForOtherRun, &waiting),
        RunPhase::Validating => match tick.world.resolution {
            Some(Resolution::Awaiting(_)) => going(Reason::Progressing, &waiting),
            Some(Resolution::NotYet { .. }) => going(Reason::ReferenceNotReady, &waiting),
            _ => stalled(Reason::InvalidPlan, &waiting),
        },
        RunPhase::Running => going(Reason::Progressing, &waiting),
        RunPhase::Waiting if !asking.is_empty() => stalled(Reason::WaitingForApproval, &waiting),
        RunPhase::Waiting => going(Reason::Progressing, &waiting),
        phase => {
            let mut all = vec![result(tick)];
            all.push(match phase {
                RunPhase::CleanedUp => {
                    met(ConditionType::CleanedUp, Reason::CleanedUp, "nothing that the run made is left")
                }
                RunPhase::CleaningUp => {
                    unmet(ConditionType::CleanedUp, Reason::CleaningUp, "what the run made is being removed")
                }
                _ => {
                    let remedy = format!(
                        "machines are still there: kubectl lifeboat failover --clean-up {}",
                        tick.run.name
                    );
                    unmet(ConditionType::CleanedUp, Reason::WaitingForCleanUp, remedy)
                }
            });
            all
        }
    }
}

/// How the run ended; from the condition once the phase no longer says it.
fn result(tick: &Tick<'_>) -> Observation {
    let failed = || {
        let step = tick
            .status
            .steps
            .iter()
            .find(|step| matches!(step.state, StepState::Failed | StepState::TimedOut));
        let up: Vec<&str> = tick
            .status
            .servers
            .iter()
            .filter(|server| server.state == ServerState::Up)
            .map(|server| server.name.as_str())
            .collect();
        let up = if up.is_empty() { "no server is up".to_owned() } else { format!("up: {}", up.join(", ")) };
        let step = step
            .map(|step| format!("{}: {}", step.name, step.message.clone().unwrap_or_default()))
            .unwrap_or_default();
        format!("{step}; {up}")
    };
    match outcome(tick.phase(), &tick.status.conditions) {
        RunPhase::Completed => {
            met(ConditionType::Ready, Reason::Completed, "every step has ended well or was allowed to fail")
        }
        RunPhase::Cancelled => unmet(ConditionType::Ready, Reason::Cancelled, "the run was cancelled"),
        _ => match conditions::find(&tick.status.conditions, ConditionType::Ready) {
            _ if let Some(Resolution::Refused(why)) = tick.world.resolution.as_ref() => {
                unmet(ConditionType::Ready, Reason::PointInFuture, why.clone())
            }
            Some(known) if known.reason == Reason::PointInFuture.as_str() => {
                unmet(ConditionType::Ready, Reason::PointInFuture, known.message.clone())
            }
            // Machines are removed later; who was up at the end stays on record.
            Some(known) if known.reason == Reason::StepFailed.as_str() => {
                unmet(ConditionType::Ready, Reason::StepFailed, known.message.clone())
            }
            _ => unmet(ConditionType::Ready, Reason::StepFailed, failed()),
        },
    }
}

/// Reasons of runs that have failed.
const FAILED: [Option<&str>; 2] = [Some(Reason::StepFailed.as_str()), Some(Reason::PointInFuture.as_str())];

/// Completed, Failed or Cancelled, also when the clean-up has changed the phase since.
pub fn outcome(phase: RunPhase, known: &[Condition]) -> RunPhase {
    let reason = conditions::find(known, ConditionType::Ready).map(|ready| ready.reason.as_str());
    match phase {
        RunPhase::CleaningUp | RunPhase::CleanedUp if reason == Some(Reason::Completed.as_str()) => {
            RunPhase::Completed
        }
        RunPhase::CleaningUp | RunPhase::CleanedUp if FAILED.contains(&reason) => RunPhase::Failed,
        RunPhase::CleaningUp | RunPhase::CleanedUp => RunPhase::Cancelled,
        phase => phase,
    }
}

/// What Jobs learn of the run.
pub(super) fn context(tick: &Tick<'_>, step: &str, attempt: u32) -> String {
    let group_of = |server: &str| {
        let groups = tick.status.resolved.iter().flat_map(|resolved| &resolved.groups);
        groups
            .into_iter()
            .find(|group| group.servers.iter().any(|known| known.name == server))
            .map(|group| group.name.clone())
    };
    let server = |status: &ServerStatus| {
        Some(ContextServer {
            name: status.name.clone(),
            group: group_of(&status.name).unwrap_or_default(),
            state: status.state,
            recovery_point: status.recovery_point.clone()?,
            addresses: status.addresses.clone(),
        })
    };
    let context = StepContext {
        run: tick.run.name.to_owned(),
        plan: tick.run.spec.plan_ref.as_ref().map(|plan| plan.name.clone()),
        kind: tick.run.spec.kind,
        group: tick.step(step).and_then(|step| step.group.clone()).unwrap_or_default(),
        step: step.to_owned(),
        attempt,
        key: format!("{}/{step}/{attempt}", tick.run.uid),
        servers: tick.status.servers.iter().filter_map(server).collect(),
    };
    // Plain structs cannot fail to become JSON.
    serde_json::to_string(&context).unwrap_or_default()
}
