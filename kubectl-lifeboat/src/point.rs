//! `point`: asks a server for a point of this moment, and waits until it is in the vault.

use std::time::Duration;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use kube::{
    ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use lifeboat_crds::{
    ProtectedServer,
    run::Consistency,
    server::{GroupMember, RequestState, RequestedPoint, TakenGroupPoint},
};
use serde_json::json;

use crate::cluster::{Cluster, PluginError, api};

/// The server is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Most points are there before so many looks; then somebody should know what is waited for.
const LOOKS_BEFORE_WONDERING: u32 = 30;

#[derive(Args)]
pub(crate) struct Point {
    /// The ProtectedServer. One of a consistency group asks for the point of its group.
    #[arg(required_unless_present = "group")]
    server: Option<String>,
    /// The consistency group, instead of one of its servers.
    #[arg(long, conflicts_with = "server")]
    group: Option<String>,
    /// What the point should be.
    #[arg(long, value_enum, default_value_t)]
    consistency: Wanted,
    /// Names the request; made from the time when absent. The same id asks for nothing new.
    #[arg(long)]
    id: Option<String>,
    /// Asks and comes back.
    #[arg(long)]
    no_wait: bool,
    /// Fails when less than asked for was reached.
    #[arg(long)]
    strict: bool,
}

#[derive(Clone, Copy, Default, ValueEnum)]
#[value(rename_all = "PascalCase")]
#[allow(clippy::enum_variant_names, reason = "the names of the API")]
enum Wanted {
    #[default]
    CrashConsistent,
    FilesystemConsistent,
    AppConsistent,
}

impl From<Wanted> for Consistency {
    fn from(wanted: Wanted) -> Self {
        match wanted {
            Wanted::CrashConsistent => Self::CrashConsistent,
            Wanted::FilesystemConsistent => Self::FilesystemConsistent,
            Wanted::AppConsistent => Self::AppConsistent,
        }
    }
}

impl Point {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<(), PluginError> {
        let Self { server, group, consistency, id, no_wait, strict } = self;
        let id = id.unwrap_or_else(|| format!("at-{}", Timestamp::now().as_millisecond()));
        let server = match (server, group) {
            (Some(server), _) => server,
            (None, group) => first_of(&group.unwrap_or_default(), cluster).await?,
        };
        let found: ProtectedServer = cluster.get("ProtectedServer", &server).await?;
        let whose = match &found.spec.consistency_group {
            Some(group) => format!("consistency group {group} (asked through server {server})"),
            None => format!("server {server}"),
        };
        let wanted = Consistency::from(consistency);
        let patch = Patch::Merge(json!({"spec": {"requestPoint": {"id": id, "consistency": wanted}}}));
        let patched = cluster.api::<ProtectedServer>().patch(&server, &PatchParams::default(), &patch).await;
        patched.map_err(|source| api(&format!("asking server {server} for a point"), source))?;
        println!("point {id} of {whose} is asked for");
        if no_wait {
            return Ok(());
        }
        for look in 1_u32.. {
            tokio::time::sleep(LOOK_EVERY).await;
            let found: ProtectedServer = cluster.get("ProtectedServer", &server).await?;
            if found.spec.request_point.as_ref().is_none_or(|request| request.id != id) {
                return Err(PluginError::refused(
                    "another point was asked for meanwhile",
                    format!("see `kubectl get pserver {server} -o yaml`"),
                ));
            }
            let status = found.status.unwrap_or_default();
            if look == LOOKS_BEFORE_WONDERING {
                println!("{}", waiting(&id, &server, status.requested_point.as_ref()));
            }
            let Some(state) =
                status.requested_point.filter(|state| state.id == id && state.state != RequestState::Taking)
            else {
                continue;
            };
            let text = said(&state, strict)?;
            println!("{text}");
            if let Some(taken) = status.group_point.and_then(|point| point.taken) {
                println!("{}", members(&taken));
            }
            return Ok(());
        }
        Ok(())
    }
}

/// What a request waits for that takes long.
fn waiting(id: &str, server: &str, state: Option<&RequestedPoint>) -> String {
    if state.is_some_and(|state| state.id == id) {
        return format!(
            "still waiting for the agent of {server} and the vault: see `kubectl lifeboat status`"
        );
    }
    "the operator has not seen the request: see whether it runs (`kubectl -n lifeboat-system get pods`)"
        .to_owned()
}

/// The server that is asked for its group.
async fn first_of(group: &str, cluster: &Cluster) -> Result<String, PluginError> {
    let all = cluster.api::<ProtectedServer>().list(&ListParams::default()).await;
    let all = all.map_err(|source| api("listing servers", source))?;
    let members = all.items.iter().filter(|server| server.spec.consistency_group.as_deref() == Some(group));
    members.map(|server| server.name_any()).min().ok_or_else(|| {
        PluginError::refused(
            format!("no server is in consistency group {group}"),
            "set spec.consistencyGroup of its ProtectedServers",
        )
    })
}

/// The group's newest point.
fn members(point: &TakenGroupPoint) -> String {
    let named = |member: &GroupMember| format!("{} (record {})", member.name, member.record);
    let members: Vec<String> = point.members.iter().map(named).collect();
    format!("newest point of the group: {}, of {}", point.time, members.join(", "))
}

/// What became of it.
fn said(state: &RequestedPoint, strict: bool) -> Result<String, PluginError> {
    let reason = state.reason.clone().unwrap_or_default();
    let message = state.message.clone().unwrap_or_default();
    let (Some(time), Some(reached)) = (state.time, state.consistency) else {
        return Err(PluginError::refused(format!("no point was taken ({reason})"), message));
    };
    let frozen = state.longest_freeze_millis.map(|millis| format!(", file systems frozen for {millis} ms"));
    let taken = format!("{reached:?} point of {time}{}", frozen.unwrap_or_default());
    if reason.is_empty() {
        return Ok(taken);
    }
    let less = format!("{taken}: less than asked for ({reason})");
    if strict { Err(PluginError::refused(less, message)) } else { Ok(format!("{less}: {message}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> RequestedPoint {
        RequestedPoint {
            id: "a".to_owned(),
            asked: Consistency::FilesystemConsistent,
            requested_at: Timestamp::UNIX_EPOCH,
            state: RequestState::Taken,
            time: Some(Timestamp::UNIX_EPOCH),
            consistency: Some(Consistency::FilesystemConsistent),
            epoch: Some(1),
            record: Some(7),
            longest_freeze_millis: Some(31),
            reason: None,
            message: None,
        }
    }

    #[test]
    fn a_point_is_told_with_what_it_cost_and_with_why_it_is_less() {
        let said_of = |state: &RequestedPoint, strict| said(state, strict).map_err(|error| error.to_string());
        let taken = said_of(&state(), true).unwrap();
        assert_eq!(
            taken,
            "FilesystemConsistent point of 1970-01-01T00:00:00Z, file systems frozen for 31 ms"
        );
        let less = RequestedPoint {
            consistency: Some(Consistency::CrashConsistent),
            reason: Some("NotAllFrozen".to_owned()),
            message: Some("/boot/efi cannot be frozen".to_owned()),
            ..state()
        };
        assert!(said_of(&less, false).unwrap().contains("less than asked for (NotAllFrozen): /boot/efi"));
        assert!(said_of(&less, true).unwrap_err().contains("NotAllFrozen"));
    }

    #[test]
    fn a_wait_says_for_whom() {
        let seen = state();
        assert!(waiting("a", "db-1", Some(&seen)).contains("agent of db-1"));
        assert!(
            waiting("b", "db-1", Some(&seen)).contains("operator has not seen"),
            "that is an older request"
        );
        assert!(waiting("a", "db-1", None).contains("operator has not seen"));
    }

    #[test]
    fn a_groups_point_is_told_with_the_records_of_its_members() {
        let member = |name: &str| GroupMember { name: name.to_owned(), epoch: 1, record: 7 };
        let point = TakenGroupPoint {
            id: "erp/5-ab".to_owned(),
            time: Timestamp::UNIX_EPOCH,
            members: vec![member("db-1"), member("web-1")],
            longest_freeze_millis: 31,
        };
        assert_eq!(
            members(&point),
            "newest point of the group: 1970-01-01T00:00:00Z, of db-1 (record 7), web-1 (record 7)"
        );
    }

    #[test]
    fn a_refused_point_is_an_error_with_the_remedy() {
        let refused = RequestedPoint {
            state: RequestState::Refused,
            time: None,
            consistency: None,
            reason: Some("Paused".to_owned()),
            message: Some("set spec.replication to Enabled".to_owned()),
            ..state()
        };
        let error = said(&refused, false).unwrap_err().to_string();
        assert_eq!(error, "no point was taken (Paused): set spec.replication to Enabled");
    }
}
