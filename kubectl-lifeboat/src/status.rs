//! `status`: one screen that answers whether all is well, and if not, what is wrong and what to do.

use clap::Args;
use jiff::Timestamp;
use lifeboat_crds::{FailoverRun, ProtectedServer, ReplicationAppliance, run::RunPhase};

use crate::{
    cluster::{Cluster, PluginError},
    text,
};

#[derive(Args)]
pub(crate) struct Status {}

impl Status {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<(), PluginError> {
        let appliances = cluster.list("ReplicationAppliance").await?;
        let servers = cluster.list("ProtectedServer").await?;
        let runs = cluster.list("FailoverRun").await?;
        print!("{}", screen(&cluster.namespace, &appliances, &servers, &runs, Timestamp::now()));
        Ok(())
    }
}

/// Something that is not well, and what to do.
struct Trouble {
    whose: String,
    what: String,
    remedy: String,
}

fn screen(
    namespace: &str,
    appliances: &[ReplicationAppliance],
    servers: &[ProtectedServer],
    runs: &[FailoverRun],
    now: Timestamp,
) -> String {
    let troubles = troubles(appliances, servers);
    let mut screen = match (troubles.len(), servers.len()) {
        (0, 0) => format!("Nothing is protected in namespace {namespace}: apply a ProtectedServer.\n"),
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
    screen
}

fn troubles(appliances: &[ReplicationAppliance], servers: &[ProtectedServer]) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    for appliance in appliances {
        let name = appliance.metadata.name.clone().unwrap_or_default();
        let conditions =
            appliance.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let unmet =
            conditions.iter().filter(|condition| condition.status != "True" && condition.type_ != "Ready");
        let mut unmet: Vec<_> = unmet.filter(|condition| !abnormal(&condition.type_)).collect();
        // What is wrong goes before what cannot be said for that reason, and the vault before those that wait for it.
        if unmet.iter().any(|condition| condition.status == "False") {
            unmet.retain(|condition| condition.status == "False");
        }
        unmet.sort_by_key(|condition| condition.type_ != "VaultReachable");
        if unmet.is_empty() {
            unmet = conditions.iter().filter(|one| one.type_ == "Ready" && one.status != "True").collect();
        }
        troubles.extend(unmet.into_iter().map(|condition| Trouble {
            whose: format!("appliance {name}"),
            what: condition.message.clone(),
            remedy: String::new(),
        }));
        if conditions.is_empty() {
            troubles.push(Trouble {
                whose: format!("appliance {name}"),
                what: "the operator has not seen it".to_owned(),
                remedy: "see whether it runs: `kubectl -n lifeboat-system get pods`".to_owned(),
            });
        }
    }
    for server in servers {
        let name = server.metadata.name.clone().unwrap_or_default();
        let status = server.status.clone().unwrap_or_default();
        troubles.extend(status.issues.iter().map(|issue| Trouble {
            whose: format!("server {name}"),
            what: issue.message.clone(),
            remedy: issue.remedy.clone(),
        }));
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
        if status.issues.is_empty() && ready.is_none_or(|ready| ready.status != "True") {
            let what = ready
                .map_or_else(|| "the operator has not seen it".to_owned(), |ready| ready.message.clone());
            troubles.push(Trouble { whose: format!("server {name}"), what, remedy: String::new() });
        }
    }
    troubles
}

/// Conditions that are only there while something is not normal: false is good.
fn abnormal(kind: &str) -> bool {
    matches!(kind, "Reconciling" | "Stalled" | "ResynchronizationRequired")
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
        status.progress.unwrap_or_else(|| "-".to_owned()),
        status.waiting_for.unwrap_or_else(|| "-".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use lifeboat_crds::server::{Issue, ProtectedServerStatus, Severity};

    use super::*;

    #[test]
    fn an_issue_is_shown_with_its_remedy_before_anything_else() {
        let mut server: ProtectedServer = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "db-1"},
            "spec": {
                "applianceRef": {"name": "berlin"},
                "policyRef": {"name": "gold"},
                "platform": "Physical",
                "target": {"virtualMachinePod": {"cpus": 1, "memory": "1Gi"}},
            },
        }))
        .unwrap();
        let issue = Issue {
            code: "SpoolFull".to_owned(),
            severity: Severity::Warning,
            message: "the spool is full".to_owned(),
            remedy: "raise spec.processServers.spool.size".to_owned(),
            since: Timestamp::UNIX_EPOCH,
        };
        server.status = Some(ProtectedServerStatus { issues: vec![issue], ..Default::default() });
        let screen = screen("dr", &[], &[server], &[], Timestamp::UNIX_EPOCH);
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
}
