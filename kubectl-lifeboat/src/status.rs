//! `status`: one screen that answers whether all is well, and if not, what is wrong and what to do.

use clap::Args;
use jiff::Timestamp;
use kube::ResourceExt as _;
use lifeboat_crds::{
    Condition, FailoverRun, ProtectedServer, RecoveryPlan, ReplicationAppliance, ReplicationPolicy,
    appliance::{Health, Role},
    run::RunPhase,
};

use crate::{
    cluster::{Cluster, PluginError},
    text,
};

/// The operator writes each server's figures every few seconds: it does not run, or not here, when they are older.
const OLD_SECONDS: i64 = 300;
/// Servers that a hint names; there may be hundreds.
const HINT_NAMES: usize = 5;

#[derive(Args)]
pub(crate) struct Status {}

impl Status {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<(), PluginError> {
        let all = All {
            appliances: cluster.list("ReplicationAppliance").await?,
            policies: cluster.list("ReplicationPolicy").await?,
            servers: cluster.list("ProtectedServer").await?,
            plans: cluster.list("RecoveryPlan").await?,
            runs: cluster.list("FailoverRun").await?,
        };
        print!("{}", screen(&cluster.namespace, &all, Timestamp::now()));
        Ok(())
    }
}

/// What there is in the namespace.
#[derive(Default)]
struct All {
    appliances: Vec<ReplicationAppliance>,
    policies: Vec<ReplicationPolicy>,
    servers: Vec<ProtectedServer>,
    plans: Vec<RecoveryPlan>,
    runs: Vec<FailoverRun>,
}

/// Something that is not well, and what to do.
struct Trouble {
    whose: String,
    what: String,
    remedy: String,
}

/// Of a namespace without servers.
fn nothing(namespace: &str, appliances: &[ReplicationAppliance]) -> String {
    let applies = |appliance: &&ReplicationAppliance| appliance.spec.roles == [Role::Apply];
    match appliances.iter().find(applies) {
        Some(appliance) => format!(
            "All is well: {} applies what another cluster takes in. The servers are shown by the cluster that protects them, with \
             the applier that has each.\n",
            appliance.name_any()
        ),
        None => format!("Nothing is protected in namespace {namespace}: apply a ProtectedServer.\n"),
    }
}

fn screen(namespace: &str, all: &All, now: Timestamp) -> String {
    let All { servers, runs, .. } = all;
    let troubles = troubles(all, now);
    let mut screen = match (troubles.len(), servers.len()) {
        (0, 0) => nothing(namespace, &all.appliances),
        (0, 1) => "All is well: the one server is protected.\n".to_owned(),
        (0, count) => format!("All is well: {count} servers are protected.\n"),
        (count, _) => {
            format!("{count} {} attention:\n", if count == 1 { "thing needs" } else { "things need" })
        }
    };
    for Trouble { whose, what, remedy } in &troubles {
        screen += &format!("  {whose}: {what}\n");
        if !remedy.is_empty() {
            screen += &format!("      → {remedy}\n");
        }
    }
    if !servers.is_empty() {
        let rows: Vec<_> = servers.iter().map(|server| server_row(server, now)).collect();
        let headings = [
            "SERVER",
            "PHASE",
            "HEALTH",
            "RPO",
            "PROGRESS",
            "LAST POINT",
            "POINTS",
            "STORED",
            "PROCESS SERVER",
        ];
        screen += &format!("\n{}", text::table(&headings, &rows));
    }
    let open: Vec<_> = runs.iter().filter(|run| phase(run) != RunPhase::CleanedUp).map(run_row).collect();
    if !open.is_empty() {
        screen += &format!("\n{}", text::table(&["RUN", "PHASE", "STEPS", "WAITING FOR"], &open));
    }
    screen + &upgrades(servers)
}

/// Servers with another agent than their appliance's: worth knowing, and nothing that needs attention.
fn upgrades(servers: &[ProtectedServer]) -> String {
    let available = |server: &&ProtectedServer| {
        let agent = server.status.as_ref().and_then(|status| status.agent.as_ref());
        agent.and_then(|agent| agent.upgrade_available) == Some(true)
    };
    let names: Vec<_> =
        servers.iter().filter(available).filter_map(|server| server.metadata.name.as_deref()).collect();
    let (named, more) = names.split_at(names.len().min(HINT_NAMES));
    let whose = match more.len() {
        0 if named.is_empty() => return String::new(),
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    };
    format!(
        "\nThe appliance has another agent than runs on {whose}: replication goes on.\n      → to take it, run `lifeboat-agent upgrade` there as root\n"
    )
}

fn troubles(all: &All, now: Timestamp) -> Vec<Trouble> {
    let mut troubles: Vec<Trouble> = all.appliances.iter().flat_map(of_appliance).collect();
    for policy in &all.policies {
        let name = policy.metadata.name.clone().unwrap_or_default();
        let conditions = policy.status.as_ref().map(|status| status.conditions.as_slice());
        troubles.extend(stalled(format!("policy {name}"), conditions.unwrap_or_default()));
    }
    troubles.extend(all.servers.iter().flat_map(|server| of_server(server, now)));
    for plan in &all.plans {
        let name = plan.metadata.name.clone().unwrap_or_default();
        let conditions = plan.status.as_ref().map(|status| status.conditions.as_slice());
        troubles.extend(stalled(format!("plan {name}"), conditions.unwrap_or_default()));
    }
    troubles
}

fn is_true(condition: &Condition, kind: &str) -> bool {
    condition.type_ == kind && condition.status == "True"
}

/// What waits for a person.
fn stalled(whose: String, conditions: &[Condition]) -> Option<Trouble> {
    let found = conditions.iter().find(|condition| is_true(condition, "Stalled"))?;
    Some(Trouble { whose, what: found.message.clone(), remedy: String::new() })
}

fn of_appliance(appliance: &ReplicationAppliance) -> Vec<Trouble> {
    let name = appliance.metadata.name.clone().unwrap_or_default();
    let whose = format!("appliance {name}");
    let status = appliance.status.clone().unwrap_or_default();
    let conditions = status.conditions.as_slice();
    if conditions.is_empty() {
        return vec![Trouble {
            whose,
            what: "the operator has not seen it".to_owned(),
            remedy: "see whether it runs: `kubectl -n lifeboat-system get pods`".to_owned(),
        }];
    }
    let unmet =
        conditions.iter().filter(|condition| condition.status != "True" && condition.type_ != "Ready");
    let mut unmet: Vec<_> = unmet.filter(|condition| !abnormal(&condition.type_)).collect();
    // What is wrong goes before what cannot be said for that reason, and the vault before those that wait for it.
    if unmet.iter().any(|condition| condition.status == "False") {
        unmet.retain(|condition| condition.status == "False");
    } else {
        // Nothing could be looked at: Ready says why.
        unmet.retain(|_| false);
    }
    unmet.sort_by_key(|condition| condition.type_ != "VaultReachable");
    if unmet.is_empty() {
        unmet = conditions.iter().filter(|one| one.type_ == "Ready" && one.status != "True").collect();
    }
    if !unmet.is_empty() {
        let told = |condition: &Condition| Trouble {
            whose: whose.clone(),
            what: condition.message.clone(),
            remedy: String::new(),
        };
        return unmet.into_iter().map(told).collect();
    }
    // It serves; what may keep it from doing so tomorrow.
    let unwell = status.components.into_iter().filter(|component| {
        matches!(component.health, Health::Warning | Health::Critical) && !component.message.is_empty()
    });
    let told = |component: lifeboat_crds::appliance::Component| Trouble {
        whose: format!("{whose}, {}", component.name),
        what: component.message,
        remedy: String::new(),
    };
    unwell.map(told).collect()
}

fn of_server(server: &ProtectedServer, now: Timestamp) -> Vec<Trouble> {
    let whose = format!("server {}", server.metadata.name.clone().unwrap_or_default());
    let status = server.status.clone().unwrap_or_default();
    let mut troubles = Vec::new();
    let age = status.rpo.as_ref().map(|rpo| now.as_second() - rpo.observed_at.as_second());
    if let Some(age) = age.filter(|age| *age > OLD_SECONDS) {
        let age = text::seconds(u64::try_from(age).unwrap_or(0));
        troubles.push(Trouble {
            whose: whose.clone(),
            what: format!("what is shown of it is {age} old: the operator has written nothing since"),
            remedy:
                "see whether it runs: `kubectl -n lifeboat-system get pods`; replication goes on without it"
                    .to_owned(),
        });
    }
    troubles.extend(status.issues.iter().map(|issue| Trouble {
        whose: whose.clone(),
        what: issue.message.clone(),
        remedy: issue.remedy.clone(),
    }));
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    if status.issues.is_empty() && ready.is_none_or(|ready| ready.status != "True") {
        let what =
            ready.map_or_else(|| "the operator has not seen it".to_owned(), |ready| ready.message.clone());
        troubles.push(Trouble { whose, what, remedy: String::new() });
    }
    troubles
}

/// Conditions that are only there while something is not normal: false is good.
fn abnormal(kind: &str) -> bool {
    matches!(kind, "Reconciling" | "Stalled" | "Deleting")
}

fn server_row(server: &ProtectedServer, now: Timestamp) -> Vec<String> {
    let status = server.status.clone().unwrap_or_default();
    let dash = || "-".to_owned();
    vec![
        server.metadata.name.clone().unwrap_or_default(),
        status.phase.map_or_else(dash, |phase| format!("{phase:?}")),
        status.replication_health.map_or_else(dash, |health| format!("{health:?}")),
        status.rpo.as_ref().map_or_else(dash, |rpo| text::seconds(rpo.seconds)),
        progress(&status.disks).or(status.progress).unwrap_or_else(dash),
        status.last_point_time.map_or_else(dash, |time| format!("{} ago", text::between(time, now))),
        status.recovery_points.map_or_else(dash, |points| points.count.to_string()),
        status.storage.as_ref().map_or_else(dash, stored),
        status.process_server.unwrap_or_else(dash),
    ]
}

/// All of it, and its growth.
fn stored(storage: &lifeboat_crds::server::StorageStatus) -> String {
    let all = storage.journal_bytes + storage.log_bytes + storage.seed_disk_bytes;
    let growth = storage.growth_bytes_per_day.map(|growth| {
        let sign = if growth < 0 { "-" } else { "+" };
        format!(" ({sign}{}/d)", text::bytes(growth.unsigned_abs()))
    });
    text::bytes(all) + &growth.unwrap_or_default()
}

/// Done of total, rate and time left of a copy that is under way.
fn progress(disks: &[lifeboat_crds::server::DiskStatus]) -> Option<String> {
    let sum =
        |of: fn(&lifeboat_crds::server::DiskStatus) -> Option<u64>| disks.iter().filter_map(of).sum::<u64>();
    let (done, total) = (sum(|disk| disk.replicated_bytes), sum(|disk| disk.total_bytes));
    let rate = sum(|disk| disk.bytes_per_second);
    if total == 0 || done >= total {
        return None;
    }
    let left = (total - done).checked_div(rate);
    let left = left.map(|left| format!(", {} left", text::seconds(left))).unwrap_or_default();
    Some(format!("{} of {}, {}/s{left}", text::bytes(done), text::bytes(total), text::bytes(rate)))
}

fn phase(run: &FailoverRun) -> RunPhase {
    run.status.as_ref().and_then(|status| status.phase).unwrap_or_default()
}

fn run_row(run: &FailoverRun) -> Vec<String> {
    let status = run.status.clone().unwrap_or_default();
    vec![
        run.metadata.name.clone().unwrap_or_default(),
        format!("{:?}", phase(run)),
        status.progress.clone().unwrap_or_else(|| "-".to_owned()),
        status.waiting_for.clone().unwrap_or_else(|| outcome(&status)),
    ]
}

/// Of a run that has ended: why it has failed, and that it waits to be cleaned up.
fn outcome(status: &lifeboat_crds::FailoverRunStatus) -> String {
    let unmet = |kind: &str| {
        status
            .conditions
            .iter()
            .find(|one| one.type_ == kind && one.status == "False")
            .map(|one| &*one.message)
    };
    let failed = unmet("Ready").filter(|_| status.phase == Some(RunPhase::Failed));
    let told: Vec<&str> = failed.into_iter().chain(unmet("CleanedUp")).collect();
    if told.is_empty() { "-".to_owned() } else { told.join("; ") }
}

#[cfg(test)]
mod tests {
    use lifeboat_crds::server::{Issue, ProtectedServerStatus, Severity};

    use super::*;

    fn server() -> ProtectedServer {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "db-1"},
            "spec": {
                "applianceRef": {"name": "berlin"},
                "policyRef": {"name": "gold"},
                "platform": "Physical",
                "target": {"virtualMachinePod": {"cpus": 1, "memory": "1Gi"}},
            },
        }))
        .unwrap()
    }

    fn appliance(status: serde_json::Value) -> ReplicationAppliance {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "berlin"},
            "spec": {
                "vault": {"azure": {
                    "endpoint": "https://a.blob.core.windows.net",
                    "container": "lifeboat",
                    "authentication": {"accountKeySecretRef": {"name": "vault", "key": "key"}},
                }},
            },
            "status": status,
        }))
        .unwrap()
    }

    fn condition(kind: &str, status: &str, message: &str) -> serde_json::Value {
        serde_json::json!({
            "type": kind,
            "status": status,
            "reason": "Any",
            "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    }

    #[test]
    fn a_cluster_that_applies_for_another_one_is_not_told_to_protect_a_server() {
        let ready = serde_json::json!({"conditions": [condition("Ready", "True", "the appliance serves")]});
        let mut applies = appliance(ready);
        let mut all = All { appliances: vec![applies.clone()], ..Default::default() };
        let told = |all: &All| screen("dr", all, Timestamp::UNIX_EPOCH);
        assert!(told(&all).contains("apply a ProtectedServer"), "{}", told(&all));
        applies.spec.roles = vec![Role::Apply];
        all.appliances = vec![applies];
        assert!(told(&all).starts_with("All is well: berlin applies"), "{}", told(&all));
    }

    #[test]
    fn an_issue_is_shown_with_its_remedy_before_anything_else() {
        let mut server = server();
        let issue = Issue {
            code: "SpoolFull".to_owned(),
            severity: Severity::Warning,
            message: "the spool is full".to_owned(),
            remedy: "raise spec.processServers.spool.size".to_owned(),
            since: Timestamp::UNIX_EPOCH,
        };
        server.status = Some(ProtectedServerStatus { issues: vec![issue], ..Default::default() });
        let all = All { servers: vec![server], ..Default::default() };
        let screen = screen("dr", &all, Timestamp::UNIX_EPOCH);
        let first: Vec<_> = screen.lines().take(3).collect();
        assert_eq!(
            first,
            [
                "1 thing needs attention:",
                "  server db-1: the spool is full",
                "      → raise spec.processServers.spool.size"
            ]
        );
    }

    #[test]
    fn another_agent_is_a_hint_with_its_remedy_and_needs_no_attention() {
        let of = |name: &str, available: Option<bool>| {
            let mut server = server();
            server.metadata.name = Some(name.to_owned());
            server.status = serde_json::from_value(serde_json::json!({
                "agent": {"version": "0.1.0", "upgradeAvailable": available},
                "conditions": [condition("Ready", "True", "protected")],
            }))
            .unwrap();
            server
        };
        let screen = |servers| {
            let all = All { servers, ..Default::default() };
            super::screen("dr", &all, Timestamp::UNIX_EPOCH)
        };
        let same = screen(vec![of("a", Some(false)), of("b", None)]);
        assert!(!same.contains("another agent"), "{same}");
        let one = screen(vec![of("a", Some(true)), of("b", None)]);
        assert!(one.starts_with("All is well: 2 servers are protected.\n"), "{one}");
        assert!(
            one.ends_with(
                "\nThe appliance has another agent than runs on a: replication goes on.\n      → to take it, run `lifeboat-agent upgrade` there as root\n"
            ),
            "{one}"
        );
        let many = screen((0..7).map(|number| of(&format!("s{number}"), Some(true))).collect());
        assert!(many.contains("runs on s0, s1, s2, s3, s4 and 2 more:"), "{many}");
    }

    #[test]
    fn an_appliance_whose_spec_cannot_be_used_says_why_and_not_what_it_could_not_look_at() {
        let broken = appliance(serde_json::json!({"conditions": [
            condition("ProcessServersReady", "Unknown", "not looked at in this pass: see Ready"),
            condition("Ready", "False", "spec.bandwidth[0].timeZone: no such time zone"),
        ]}));
        let all = All { appliances: vec![broken], ..Default::default() };
        let told: Vec<_> = troubles(&all, Timestamp::UNIX_EPOCH).into_iter().map(|one| one.what).collect();
        assert_eq!(told, ["spec.bandwidth[0].timeZone: no such time zone"]);
    }

    #[test]
    fn a_component_that_is_not_well_is_shown_while_the_appliance_serves() {
        let serving = appliance(serde_json::json!({
            "conditions": [condition("Ready", "True", "the appliance serves")],
            "components": [
                {"name": "vault", "health": "Warning", "reason": "DeletionNotGuarded", "message": "soft delete is off", "since": "2026-01-01T00:00:00Z"},
                {"name": "berlin-applier-0", "health": "Healthy", "reason": "AsExpected", "message": "", "since": "2026-01-01T00:00:00Z"},
            ],
        }));
        let all = All { appliances: vec![serving], ..Default::default() };
        let told: Vec<_> =
            troubles(&all, Timestamp::UNIX_EPOCH).into_iter().map(|one| (one.whose, one.what)).collect();
        assert_eq!(told, [("appliance berlin, vault".to_owned(), "soft delete is off".to_owned())]);
    }

    #[test]
    fn a_run_that_has_failed_says_why_and_what_it_has_left() {
        let status = serde_json::from_value(serde_json::json!({
            "phase": "Failed",
            "conditions": [
                condition("Ready", "False", "db-1/HealthCheck: no answer; no server is up"),
                condition("CleanedUp", "False", "machines are still there: kubectl lifeboat failover --clean-up erp-1"),
            ],
        }))
        .unwrap();
        assert_eq!(
            outcome(&status),
            "db-1/HealthCheck: no answer; no server is up; machines are still there: kubectl lifeboat failover --clean-up erp-1"
        );
        assert_eq!(outcome(&lifeboat_crds::FailoverRunStatus::default()), "-");
    }

    #[test]
    fn figures_that_nobody_writes_any_more_are_not_shown_as_if_all_were_well() {
        let mut server = server();
        let observed_at: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        server.status = serde_json::from_value(serde_json::json!({
            "rpo": {"seconds": 2, "observedAt": observed_at},
            "conditions": [condition("Ready", "True", "protected")],
        }))
        .unwrap();
        let all = All { servers: vec![server], ..Default::default() };
        let at = |seconds: i64| observed_at + jiff::SignedDuration::from_secs(seconds);
        assert!(troubles(&all, at(OLD_SECONDS)).is_empty());
        let told = troubles(&all, at(OLD_SECONDS + 1));
        assert!(told[0].what.contains("5m1s old"), "{}", told[0].what);
    }
}
