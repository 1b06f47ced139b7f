//! What happens after a run has ended: on request, after `cleanUpAfter`, or when the run is deleted, everything
//! that it made is removed, each machine as a visible step.

use lifeboat_crds::run::{RunPhase, ServerState, StepKind, StepState, StepStatus};

use super::{Effect, servers::step_name, steps::later, tick::Tick};

pub(super) fn drive(tick: &mut Tick<'_>) {
    match tick.phase() {
        RunPhase::Completed | RunPhase::Failed | RunPhase::Cancelled if due(tick) => {
            begin(tick);
            remove(tick);
        }
        RunPhase::CleaningUp => remove(tick),
        _ => {}
    }
}

fn due(tick: &mut Tick<'_>) -> bool {
    let nothing_made = tick.status.servers.iter().all(|server| server.target.is_none());
    if tick.run.deleting || tick.run.spec.clean_up || nothing_made {
        return true;
    }
    let (Some(after), Some(finished)) = (tick.run.spec.clean_up_after, tick.status.finished_at) else {
        return false;
    };
    let time = later(finished, after.get());
    if tick.now < time {
        tick.wake(time);
    }
    tick.now >= time
}

fn begin(tick: &mut Tick<'_>) {
    tick.status.phase = Some(RunPhase::CleaningUp);
    let machines: Vec<String> = tick
        .status
        .servers
        .iter()
        .filter(|server| server.target.is_some())
        .map(|server| server.name.clone())
        .collect();
    for server in machines {
        tick.status.steps.push(StepStatus {
            name: step_name(&server, StepKind::RemoveMachine),
            kind: StepKind::RemoveMachine,
            group: None,
            server: Some(server),
            state: StepState::Executing,
            attempt: 1,
            started_at: Some(tick.now),
            finished_at: None,
            not_before: None,
            object: None,
            message: None,
            answers: Vec::new(),
        });
    }
}

/// Every machine that was ever intended is removed by name, seen or not; it is gone when the world says so.
fn remove(tick: &mut Tick<'_>) {
    for index in 0..tick.status.servers.len() {
        let Some(server) = tick.status.servers.get(index).cloned() else { continue };
        let name = step_name(&server.name, StepKind::RemoveMachine);
        if tick.step(&name).is_none_or(|step| step.state.has_ended()) {
            continue;
        }
        let machine = tick.world.machines.get(&server.name);
        // An object that was never recorded may still be on its way into the cluster's answers: remove it by name once.
        let asked = tick.step(&name).is_some_and(|step| step.object.is_some());
        let gone = machine.is_none() && asked;
        if gone {
            tick.finish(&name, StepState::Completed, "");
            if let Some(server) = tick.status.servers.get_mut(index) {
                server.state = ServerState::CleanedUp;
                server.addresses.clear();
            }
        } else if let Some(target) = server.target {
            tick.record_object(&name, &target.kind, &target.name);
            tick.effects.push(Effect::RemoveMachine { name: target.name });
            tick.wake(later(tick.now, std::time::Duration::from_secs(2)));
        }
    }
    let jobs_gone = tick.world.jobs.values().all(|job| !job.may_run() && !job.held);
    let machines_gone = tick.status.steps.iter().all(|step| step.state.has_ended());
    if machines_gone && jobs_gone {
        tick.status.phase = Some(RunPhase::CleanedUp);
        tick.status.cleaned_up_at = Some(tick.now);
    } else if machines_gone {
        tick.wake(later(tick.now, std::time::Duration::from_secs(2)));
    }
}
