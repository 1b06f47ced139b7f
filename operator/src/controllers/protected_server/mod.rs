//! `ProtectedServer`: identity in the vault, enrolment, placement, and what is heard of its replication.
//!
//! Replication itself goes on without the operator; a pass that cannot reach the vault or lacks a reference still shows
//! what is heard, with the trouble in the Ready condition.

mod budget;
mod enrolment;
pub mod figures;
mod foreign;
mod group;
mod placement;
mod places;
mod request;
mod retention;
pub mod rollback;
#[cfg(test)]
mod rollback_tests;
pub mod shutdown;
pub mod status;
#[cfg(test)]
mod status_tests;
#[cfg(test)]
pub(crate) mod testing;

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    ResourceExt as _,
    api::ListParams,
    runtime::{controller::Controller, watcher},
};
use lifeboat_crds::{
    FailoverRun, ProtectedServer, Reason, ReplicationAppliance, ReplicationPolicy,
    appliance::Role,
    conditions::{self, ConditionType},
    names::enrollment_secret,
    server::{FailoverState, Move, RequestState, ServerPhase},
};
use lifeboat_replication::ids::ServerId;

pub use self::{
    budget::Budget,
    foreign::Foreign,
    places::{Candidate, Placed, Places},
    retention::Written,
};
use self::{
    enrolment::Endpoint,
    rollback::{Next, Seen},
    status::Findings,
};
use super::{
    appliance::secrets,
    failover_run::holds_servers,
    shared::{create, is_abandoned, is_deleting, set_finalizer, write_status},
    vaults,
};
use crate::{
    control::{ApplianceKey, Applied, enrol::Enrolment},
    runtime::{Context, Failure, metrics::ServerLabel},
};

/// Figures are in memory; looking at them costs nothing, writing them is budgeted.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);
/// Somebody waits for a point.
const ASKING_INTERVAL: Duration = Duration::from_millis(500);

pub async fn run(context: Context) {
    let controller = Controller::new(context.watched::<ProtectedServer>(), watcher::Config::default());
    super::drive(controller, "ProtectedServer", context, |server, context| {
        reconcile(server, context).boxed()
    })
    .await;
}

pub async fn reconcile(server: Arc<ProtectedServer>, context: Context) -> Result<Duration, Failure> {
    let (namespace, name) = (server.namespace().unwrap_or_default(), server.name_any());
    let runs = runs_with(&server, &context).await?;
    if is_deleting(&*server) {
        return let_go(&server, &runs, &context).await;
    }
    let api = context.api::<ProtectedServer>(&namespace);
    set_finalizer(&api, &*server, true).await?;
    let before = server.status.clone().unwrap_or_default();
    let key = ApplianceKey { namespace: namespace.clone(), name: server.spec.appliance_ref.name.clone() };
    let mut findings = Findings {
        id: before.id.clone(),
        placed: context.places.of(&key, &name, &before),
        failover: runs.last().map(|run| FailoverState {
            run: run.name_any(),
            state: run.status.as_ref().and_then(|status| status.phase).unwrap_or_default(),
        }),
        ..Findings::default()
    };
    let result = pass(&server, &key, &context, &mut findings).await;
    if let Err(failure) = &result {
        findings.fail(failure);
    }
    let new = status::status(&server, &findings, context.now());
    measure(&namespace, &name, &new, &context);
    let significant = figures::is_significant(server.status.as_ref(), &new);
    if significant || context.budget.allows(&namespace, &name) {
        tell(&server, &new, &context).await;
        tell_of_rollback(&server, &new, &context).await;
        write_status(&api, &name, server.status.as_ref(), &new).await?;
    }
    let asking = new.requested_point.is_some_and(|request| request.state == RequestState::Taking);
    result.map(|()| if asking { ASKING_INTERVAL } else { LOOK_INTERVAL })
}

async fn pass(
    server: &ProtectedServer,
    key: &ApplianceKey,
    context: &Context,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let (namespace, name) = (server.namespace().unwrap_or_default(), server.name_any());
    let secrets_api = context.api::<Secret>(&namespace);
    let secret = secrets_api.get_opt(&enrollment_secret(&name)).await?;
    findings.enrolment = secret.as_ref().map(Enrolment::read);
    let enrolled = findings.enrolment.clone().unwrap_or_default().public_key_sha256;
    if context.fleet.enrolled_key(&namespace, &name).is_some_and(|known| known != enrolled) {
        // The Secret was deleted or restored: what it says counts from now on.
        context.fleet.set_enrolled(key, &name, findings.id.as_deref().unwrap_or_default(), &enrolled);
    }
    if let Some(id) = &findings.id {
        findings.applied = applied(key, id, context).await;
        findings.appliers_heard = context.fleet.hears_appliers(key);
    }
    if let (Some(id), Some(process_server)) = (&findings.id, &findings.placed.process_server) {
        findings.figures = context.fleet.figures(key, process_server, id);
        let report = context.fleet.report(key, process_server);
        findings.upload_limit = report.map_or(0, |report| report.upload_limit_bytes_per_second);
        findings.answer = request::ask(server, key, process_server, id, context);
        findings.seen = seen(server, findings, key, id, context).await;
    }
    if let Some(name) = &server.spec.consistency_group {
        let all = context.api::<ProtectedServer>(&namespace).list(&ListParams::default()).await?.items;
        let report = findings.placed.process_server.as_ref();
        let report = report.and_then(|process_server| context.fleet.group(key, process_server, name));
        findings.group = Some(group::look(server, name, &all, report));
    }
    let policy = context.api::<ReplicationPolicy>(&namespace).get_opt(&server.spec.policy_ref.name).await?;
    findings.policy = policy.map(|policy| policy.spec);

    let appliance = context.api::<ReplicationAppliance>(&namespace).get_opt(&key.name).await?;
    let appliance = appliance.ok_or_else(|| missing("ReplicationAppliance", &key.name))?;
    if findings.policy.is_none() {
        return Err(missing("ReplicationPolicy", &server.spec.policy_ref.name));
    }
    if findings.id.is_none() {
        let vault = vaults::of(&namespace, &key.name, context).await?;
        let adopted = vault
            .adopt_server(&namespace, &name, &context.env)
            .await
            .map_err(|error| vaults::failure(&error))?;
        findings.id = Some(adopted.id.to_string());
    }
    // Agents enrol where their data goes.
    if findings.enrolment.is_none() && appliance.spec.has_role(Role::Ingest) {
        findings.enrolment = Some(make_token(server, &appliance, findings, context).await?);
    }
    settle(server, &appliance, key, context, findings).await?;
    keep(findings, key, context).await
}

/// What its applier reports; one of another cluster does so by what it writes into the vault.
async fn applied(key: &ApplianceKey, id: &str, context: &Context) -> Option<Applied> {
    if let Some(own) = context.fleet.applied(key, id) {
        return Some(own);
    }
    let (vault, id) = (vaults::of(&key.namespace, &key.name, context).await.ok()?, id.parse().ok()?);
    context.foreign.look(key, &vault, &id).await
}

/// What is known of the log's end after the last report; `None`: as before.
async fn seen(
    server: &ProtectedServer,
    findings: &Findings,
    key: &ApplianceKey,
    id: &str,
    context: &Context,
) -> Option<Seen> {
    let reported = findings.figures.as_ref()?.report.head.as_ref()?;
    let status = server.status.clone().unwrap_or_default();
    let before = Seen { head: status.last_seen_head, rollback: status.rollback };
    let holds = match (rollback::judge(before.head.as_ref(), reported), &before.head) {
        (Next::Keep, _) => return None,
        (Next::Ask, Some(head)) => {
            let id: ServerId = id.parse().ok()?;
            // A vault that gives no answer is told of by the appliance, and asked again by the next pass.
            let vault = vaults::of(&key.namespace, &key.name, context).await.ok()?;
            rollback::holds(&vault, &id, head, &context.env).await.ok()?
        }
        (Next::Follow | Next::Ask, _) => true,
    };
    Some(rollback::follow(before, reported, holds, context.now()))
}

/// Tells the vault how long to keep things.
async fn keep(findings: &Findings, key: &ApplianceKey, context: &Context) -> Result<(), Failure> {
    let id = findings.id.as_deref().and_then(|id| id.parse::<ServerId>().ok());
    let (Some(id), Some(policy)) = (id, &findings.policy) else { return Ok(()) };
    // A vault that is not open is told of by the appliance; the last word stands in it.
    let Ok(vault) = vaults::of(&key.namespace, &key.name, context).await else { return Ok(()) };
    context.kept.settle(&vault, &id, policy).await.map_err(|error| vaults::failure(&error))
}

fn missing(kind: &str, name: &str) -> Failure {
    Failure::waiting(
        Reason::ReferenceNotFound,
        format!("{kind} {name} does not exist in this namespace: create it, or correct the reference"),
    )
}

async fn make_token(
    server: &ProtectedServer,
    appliance: &ReplicationAppliance,
    findings: &Findings,
    context: &Context,
) -> Result<Enrolment, Failure> {
    let api = context.api::<Secret>(&server.namespace().unwrap_or_default());
    let ca = api.get_opt(&secrets::ca_name(&appliance.name_any())).await?;
    let endpoint = Endpoint::of(
        appliance,
        ca.as_ref().and_then(|secret| secrets::text(secret, secrets::CA_CERTIFICATE)),
    );
    let endpoint = endpoint.ok_or_else(|| {
        let message = format!(
            "ReplicationAppliance {} has no management endpoint yet: see its conditions",
            appliance.name_any()
        );
        Failure::waiting(Reason::ReferenceNotReady, message)
    })?;
    let id = findings.id.as_deref().unwrap_or_default();
    let secret = enrolment::build(server, id, &endpoint, &*context.env.entropy, context.now());
    if !create(&api, &secret).await? {
        return Err(Failure::waiting(
            Reason::Progressing,
            "the token was made by somebody else at the same moment",
        ));
    }
    Ok(Enrolment::read(&secret))
}

/// Finds its process server, or another one when that is due.
async fn settle(
    server: &ProtectedServer,
    appliance: &ReplicationAppliance,
    key: &ApplianceKey,
    context: &Context,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let name = server.name_any();
    let before = server.status.as_ref();
    let candidate = Candidate {
        name: &name,
        quiet: status::is_quiet(server, findings),
        epoch: before.and_then(|status| status.epoch),
        group: server.spec.consistency_group.as_deref(),
    };
    let (placed, made) = context.places.settle(appliance, key, &candidate, &context.fleet, context.now());
    findings.placed = placed;
    if let Some(made) = made {
        // The new one has not reported it yet.
        findings.figures = None;
        tell_move(server, &made, context).await;
    } else if let Some(last) = &findings.placed.last_move
        && findings.figures.as_ref().is_some_and(|figures| figures.report.epoch == 0)
    {
        // The new one waits for the log.
        let from = context.places.seen(key, &last.from, &context.fleet);
        context.places.give_up(key, &candidate, &mut findings.placed, &from);
    }
    if findings.placed.process_server.is_some() && appliance.spec.process_server_replicas() > 0 {
        return Ok(());
    }
    let remedy = if appliance.spec.has_role(Role::Ingest) {
        "raise spec.processServers.replicas"
    } else {
        "it has the role Apply alone. Points that another cluster takes of this server can be recovered here; servers send to an appliance with the role Ingest, which this one takes when the other cluster is lost"
    };
    let message = format!("ReplicationAppliance {} has no process server: {remedy}", key.name);
    Err(Failure::waiting(Reason::ReferenceNotReady, message))
}

/// Beside the status, for whoever asks why.
async fn tell_move(server: &ProtectedServer, made: &Move, context: &Context) {
    let note = format!("{} → {}: {}", made.from, made.to, made.message);
    let events = &context.events;
    match made.reason.as_str() {
        lost if lost == Reason::ProcessServerLost.as_str() => {
            events.warning(server, Reason::ProcessServerLost, "Move", &note).await;
        }
        together if together == Reason::BroughtTogether.as_str() => {
            events.normal(server, Reason::BroughtTogether, "Move", &note).await;
        }
        leaves if leaves == Reason::ProcessServerLeaves.as_str() => {
            events.normal(server, Reason::ProcessServerLeaves, "Move", &note).await;
        }
        _ => events.normal(server, Reason::Rebalanced, "Move", &note).await,
    }
}

/// Hash of the key that a server's agent has enrolled with; empty when none has.
pub async fn enrolled_key(namespace: &str, name: &str, context: &Context) -> Result<Vec<u8>, Failure> {
    if let Some(known) = context.fleet.enrolled_key(namespace, name) {
        return Ok(known);
    }
    let secret = context.api::<Secret>(namespace).get_opt(&enrollment_secret(name)).await?;
    let key = secret.as_ref().map(Enrolment::read).unwrap_or_default().public_key_sha256;
    context.fleet.remember_enrolled(namespace, name, key.clone());
    Ok(key)
}

/// Runs that hold this server, oldest first.
async fn runs_with(server: &ProtectedServer, context: &Context) -> Result<Vec<FailoverRun>, Failure> {
    let name = server.name_any();
    let runs = context
        .api::<FailoverRun>(&server.namespace().unwrap_or_default())
        .list(&ListParams::default())
        .await?;
    let has = |run: &FailoverRun| {
        let status = run.status.as_ref();
        status.is_some_and(|status| {
            holds_servers(status) && status.servers.iter().any(|known| known.name == name)
        })
    };
    let mut runs: Vec<FailoverRun> = runs.items.into_iter().filter(has).collect();
    runs.sort_by_key(|run| run.creation_timestamp().map(|time| time.0));
    Ok(runs)
}

fn measure(namespace: &str, name: &str, new: &lifeboat_crds::ProtectedServerStatus, context: &Context) {
    let label = ServerLabel { namespace: namespace.to_owned(), server: name.to_owned() };
    if let Some(rpo) = &new.rpo {
        context.metrics.rpo_seconds.get_or_create(&label).set(i64::try_from(rpo.seconds).unwrap_or(i64::MAX));
    }
    let connected = conditions::is_true(&new.conditions, ConditionType::AgentConnected);
    context.metrics.agent_connected.get_or_create(&label).set(i64::from(connected));
}

/// An event for every change of the phase, and when it becomes ready or stops being so.
async fn tell(server: &ProtectedServer, new: &lifeboat_crds::ProtectedServerStatus, context: &Context) {
    let before = server.status.clone().unwrap_or_default();
    let Some(ready) = conditions::find(&new.conditions, ConditionType::Ready) else { return };
    let was = conditions::is_true(&before.conditions, ConditionType::Ready);
    if before.phase != new.phase {
        let (from, to) = (before.phase.unwrap_or_default(), new.phase.unwrap_or_default());
        let note = format!("{from:?} → {to:?}: {}", ready.message);
        match new.phase {
            Some(ServerPhase::Failed | ServerPhase::Resynchronizing) => {
                context.events.condition(server, ready, "ChangePhase", &note).await
            }
            _ => context.events.normal(server, Reason::Progressing, "ChangePhase", &note).await,
        }
    } else if was != (ready.status == "True") {
        context.events.condition(server, ready, "Protect", &ready.message).await;
    }
}

/// Events last when the condition is gone.
async fn tell_of_rollback(
    server: &ProtectedServer,
    new: &lifeboat_crds::ProtectedServerStatus,
    context: &Context,
) {
    let before = server.status.as_ref().and_then(|status| status.rollback.as_ref());
    match (before, &new.rollback) {
        (before, Some(rollback)) if before.map(|before| &before.id) != Some(&rollback.id) => {
            let (message, remedy) = rollback::words(server, rollback, false);
            let note = format!("{message}; {remedy}");
            context.events.warning(server, Reason::VaultRolledBack, "NoticeRollback", &note).await;
        }
        (Some(before), None) => {
            let how = if rollback::is_acknowledged(server, before) { "acknowledged" } else { "over" };
            let note = format!("the rollback {} of the vault is {how}", before.id);
            context.events.normal(server, Reason::VaultRolledBack, "EndRollback", &note).await;
        }
        _ => {}
    }
}

/// Its agent is refused from now on; the data stays in the vault, and a ProtectedServer of the same name finds it
/// again. Waits for recovered machines of it to be cleaned up, unless it is abandoned.
async fn let_go(
    server: &ProtectedServer,
    runs: &[FailoverRun],
    context: &Context,
) -> Result<Duration, Failure> {
    let (namespace, name) = (server.namespace().unwrap_or_default(), server.name_any());
    let api = context.api::<ProtectedServer>(&namespace);
    if !runs.is_empty() && !is_abandoned(server) {
        let names: Vec<String> = runs.iter().map(|run| run.name_any()).collect();
        let message = format!(
            "machines of run {} are still there: clean it up, or set the annotation lifeboat.dev/abandon: \"true\"",
            names.join(", ")
        );
        let mut new = server.status.clone().unwrap_or_default();
        let observed = vec![
            conditions::unmet(ConditionType::Ready, Reason::WaitingForCleanUp, &message),
            conditions::met(ConditionType::Deleting, Reason::WaitingForCleanUp, &message),
        ];
        new.conditions =
            conditions::merge(&new.conditions, observed, server.metadata.generation, context.now());
        write_status(&api, &name, server.status.as_ref(), &new).await?;
        return Ok(LOOK_INTERVAL);
    }
    if !runs.is_empty() {
        context
            .events
            .warning(server, Reason::Abandoned, "Delete", "let go while machines of it are still there")
            .await;
    }
    context.metrics.forget(&namespace, &name);
    context.budget.forget(&namespace, &name);
    let key = ApplianceKey { namespace: namespace.clone(), name: server.spec.appliance_ref.name.clone() };
    context.places.forget(&key, &name);
    context.fleet.forget_enrolled(&namespace, &name);
    set_finalizer(&api, server, false).await?;
    Ok(LOOK_INTERVAL)
}
