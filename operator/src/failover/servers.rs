//! The servers of a group: in parallel, as far as `parallelism` and `dependsOn` allow.
//!
//! The recovery of a server is four steps in this order, each visible in the status:
//! `CreateMachine` (the target has made it) → `PrepareDisks` (its point is shown as disks) → `StartMachine` (it is
//! switched on and has an address) → `HealthCheck` (its service has answered).
//! A server that fails does not stop the others of its group; those that depend on it are skipped, and the run stops
//! when the group has ended.

use std::time::Duration;

use lifeboat_crds::{
    plan::{Group, GroupServer, OnFailure},
    run::{ObjectName, ServerState, StepKind, StepState},
};

use super::{
    Effect,
    effect::machine_name,
    steps::{Attempts, Progress, later},
    tick::Tick,
    world::Machine,
};

/// The cluster accepts a pod at once; a node for it may have to be made by an autoscaler.
const CREATE_TIMEOUT: Duration = Duration::from_mins(10);
/// Opening a point reads the journal's index; a long journal over a slow line takes minutes.
const PREPARE_TIMEOUT: Duration = Duration::from_mins(10);
/// Only a process starts and an address is given.
const START_TIMEOUT: Duration = Duration::from_mins(5);
/// A whole server boots, perhaps emulated on a loaded node, and its database recovers.
const HEALTH_TIMEOUT: Duration = Duration::from_mins(15);

/// Name of a step in the recovery of a server.
pub(super) fn step_name(server: &str, kind: StepKind) -> String {
    format!("{server}/{kind:?}")
}

pub(super) fn drive(tick: &mut Tick<'_>, group: &Group) -> Progress {
    for server in &group.servers {
        if state(tick, &server.name) == ServerState::NotStarted && may_start(tick, group, server) {
            set_state(tick, &server.name, ServerState::Recovering);
        }
        if state(tick, &server.name) == ServerState::Recovering {
            drive_server(tick, &server.name);
        }
    }
    let failed: Vec<&str> = group
        .servers
        .iter()
        .filter(|server| state(tick, &server.name) == ServerState::Failed)
        .map(|server| server.name.as_str())
        .collect();
    let going = group
        .servers
        .iter()
        .any(|server| matches!(state(tick, &server.name), ServerState::NotStarted | ServerState::Recovering));
    match (going, failed.is_empty()) {
        (true, _) => Progress::Going,
        (false, true) => Progress::Done,
        (false, false) => Progress::Failed(format!("of group {}, not up: {}", group.name, failed.join(", "))),
    }
}

/// Skips a server whose dependencies have failed: it would wait for ever.
fn may_start(tick: &mut Tick<'_>, group: &Group, server: &GroupServer) -> bool {
    let failed = server.depends_on.iter().find(|name| state(tick, name) == ServerState::Failed).cloned();
    if let Some(name) = failed {
        fail_server(tick, &server.name, &format!("not started: it depends on {name}, which has failed"));
        return false;
    }
    let under_way =
        group.servers.iter().filter(|other| state(tick, &other.name) == ServerState::Recovering).count();
    under_way < usize::try_from(group.parallelism).unwrap_or(usize::MAX)
        && server.depends_on.iter().all(|name| state(tick, name) == ServerState::Up)
}

/// Each step begins in the tick that ends the one before it.
fn drive_server(tick: &mut Tick<'_>, server: &str) {
    for kind in
        [StepKind::CreateMachine, StepKind::PrepareDisks, StepKind::StartMachine, StepKind::HealthCheck]
    {
        let name = step_name(server, kind);
        if tick.step(&name).is_none() {
            continue; // A server without a health check has no such step.
        }
        drive_server_step(tick, server, &name, kind);
        match tick.step(&name).map(|step| step.state) {
            Some(StepState::Completed | StepState::Skipped) => {}
            Some(StepState::Failed | StepState::TimedOut) => {
                return fail_server(tick, server, "not started: an earlier step of this server has failed");
            }
            _ => return,
        }
    }
    let rto = tick.status.started_at.map(|start| seconds(tick.now.duration_since(start)));
    set_state(tick, server, ServerState::Up);
    if let Some(server) = tick.status.servers.iter_mut().find(|known| known.name == server) {
        server.rto_seconds = rto;
    }
}

fn drive_server_step(tick: &mut Tick<'_>, server: &str, name: &str, kind: StepKind) {
    if kind == StepKind::HealthCheck {
        if tick.step(name).is_some_and(|step| !step.state.has_ended()) {
            if let Some(why) = machine_failure(tick, server) {
                return tick.fail(name, StepState::Failed, &why);
            }
            let probe = tick.resolved_server(server).and_then(|server| server.health_check.clone());
            let work = tick.check(server, probe.as_ref().and_then(|check| check.probe()));
            tick.drive_work(
                name,
                &Attempts { timeout: HEALTH_TIMEOUT, retry: None, on_failure: OnFailure::Stop },
                work,
            );
        }
        return;
    }
    match tick.step(name).map(|step| step.state) {
        Some(StepState::NotStarted) => {
            tick.begin(name);
            if kind == StepKind::CreateMachine {
                // Recorded before it is made, so that the clean-up knows of it whatever happens in between.
                let target = ObjectName { kind: "Pod".to_owned(), name: machine_name(tick.run.uid, server) };
                if let Some(server) = tick.status.servers.iter_mut().find(|known| known.name == server) {
                    server.target = Some(target);
                }
            }
        }
        Some(StepState::Executing) => {}
        _ => return,
    }
    attend_machine(tick, server, name, kind);
}

fn attend_machine(tick: &mut Tick<'_>, server: &str, name: &str, kind: StepKind) {
    let (timeout, done): (_, fn(&Machine) -> bool) = match kind {
        StepKind::CreateMachine => (CREATE_TIMEOUT, |_| true),
        StepKind::PrepareDisks => (PREPARE_TIMEOUT, |machine| machine.disks_ready),
        _ => (START_TIMEOUT, |machine| machine.running && machine.address.is_some()),
    };
    let started = tick.step(name).and_then(|step| step.started_at).unwrap_or(tick.now);
    let deadline = later(started, timeout);
    let object = machine_name(tick.run.uid, server);
    let machine = tick.world.machines.get(server).cloned();
    if let Some(why) = machine_failure(tick, server) {
        return tick.fail(name, StepState::Failed, &why);
    }
    if let Some(machine) = &machine {
        tick.record_object(name, "Pod", &object);
        if done(machine) {
            if let Some(address) = &machine.address {
                record_address(tick, server, address);
            }
            return tick.finish(name, StepState::Completed, "");
        }
    }
    if tick.now >= deadline {
        let detail = machine.map(|machine| machine.detail).unwrap_or_default();
        return tick.fail(
            name,
            StepState::TimedOut,
            &format!("not done within {}s: {detail}", timeout.as_secs()),
        );
    }
    match &machine {
        Some(machine) => {
            let detail = (!machine.detail.is_empty()).then(|| super::report::bounded(&machine.detail));
            if let Some(step) = tick.step_mut(name) {
                step.message = detail;
            }
        }
        None => {
            if let Some(resolved) = tick.resolved_server(server).cloned() {
                tick.effects.push(Effect::CreateMachine { name: object, server: Box::new(resolved) });
            }
        }
    }
    tick.wake(deadline);
}

/// Why the machine will not come up. One that was seen and is gone counts as failed: it is never made again under
/// the same name, since what was written to its overlay is gone with it.
pub(super) fn machine_failure(tick: &Tick<'_>, server: &str) -> Option<String> {
    let seen = [StepKind::CreateMachine, StepKind::PrepareDisks, StepKind::StartMachine]
        .iter()
        .any(|kind| tick.step(&step_name(server, *kind)).is_some_and(|step| step.object.is_some()));
    match tick.world.machines.get(server) {
        Some(machine) if machine.deleting => Some("the machine was deleted by somebody".to_owned()),
        Some(machine) => machine.failed.clone(),
        None => seen.then(|| "the machine has vanished".to_owned()),
    }
}

fn record_address(tick: &mut Tick<'_>, server: &str, address: &str) {
    if let Some(server) = tick.status.servers.iter_mut().find(|known| known.name == server) {
        server.addresses = vec![address.to_owned()];
    }
}

/// A server that was up and is not any more; the last step of its recovery says why, since no step is under way.
pub(super) fn lose_server(tick: &mut Tick<'_>, server: &str, why: &str) {
    set_state(tick, server, ServerState::Failed);
    let last = [StepKind::HealthCheck, StepKind::StartMachine]
        .map(|kind| step_name(server, kind))
        .into_iter()
        .find(|name| tick.step(name).is_some());
    if let Some(step) = last.and_then(|name| tick.step_mut(&name)) {
        step.message = Some(super::report::bounded(&format!("was up, but later {why}")));
    }
}

/// Ends the recovery of a server: what has not started is skipped and says why.
fn fail_server(tick: &mut Tick<'_>, server: &str, why: &str) {
    set_state(tick, server, ServerState::Failed);
    for step in tick.status.steps.iter_mut() {
        let in_recovery = matches!(
            step.kind,
            StepKind::CreateMachine | StepKind::PrepareDisks | StepKind::StartMachine | StepKind::HealthCheck
        );
        if in_recovery && step.server.as_deref() == Some(server) && step.state == StepState::NotStarted {
            step.state = StepState::Skipped;
            step.message = Some(why.to_owned());
        }
    }
}

fn state(tick: &Tick<'_>, server: &str) -> ServerState {
    tick.status.servers.iter().find(|known| known.name == server).map(|known| known.state).unwrap_or_default()
}

fn set_state(tick: &mut Tick<'_>, server: &str, state: ServerState) {
    if let Some(server) = tick.status.servers.iter_mut().find(|known| known.name == server) {
        server.state = state;
    }
}

pub(super) fn seconds(duration: jiff::SignedDuration) -> u64 {
    u64::try_from(duration.as_secs()).unwrap_or(0)
}
