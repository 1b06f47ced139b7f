//! What a server's consistency group looks like: who is in it, and what has become of its points. Pure.

use std::collections::BTreeMap;

use kube::ResourceExt as _;
use lifeboat_crds::{
    ProtectedServer, Time,
    conditions::Reason,
    server::{GroupMember, GroupPoint, MissedGroupPoint, Severity, TakenGroupPoint},
};
use lifeboat_replication::wire::v1;

use super::figures::{time, whole};

/// Members that a status has room for (as the CRD says).
const SHOWN: usize = 256;

/// What a pass has found of the group.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    pub name: String,
    /// Members that name another appliance than this server, with it.
    pub elsewhere: Vec<(String, String)>,
    /// Names of servers by their ids.
    pub names: BTreeMap<String, String>,
    /// What the process server says of it.
    pub report: Option<v1::GroupReport>,
}

/// `all`: the servers of the namespace.
pub(super) fn look(
    server: &ProtectedServer,
    name: &str,
    all: &[ProtectedServer],
    report: Option<v1::GroupReport>,
) -> Found {
    let members: Vec<&ProtectedServer> = all
        .iter()
        .filter(|member| member.metadata.deletion_timestamp.is_none())
        .filter(|member| member.spec.consistency_group.as_deref() == Some(name))
        .collect();
    let elsewhere = members.iter().filter(|member| member.spec.appliance_ref != server.spec.appliance_ref);
    let id = |member: &&ProtectedServer| Some((member.status.as_ref()?.id.clone()?, member.name_any()));
    Found {
        name: name.to_owned(),
        elsewhere: elsewhere
            .map(|member| (member.name_any(), member.spec.appliance_ref.name.clone()))
            .collect(),
        names: members.iter().filter_map(id).collect(),
        report,
    }
}

impl Found {
    /// Why there can be no point of it, for people; `None`: it is as it should be.
    pub(super) fn across(&self) -> Option<(String, String)> {
        if self.elsewhere.is_empty() {
            return None;
        }
        let named = |(server, appliance): &(String, String)| format!("{server} (on {appliance})");
        let others: Vec<String> = self.elsewhere.iter().map(named).collect();
        let message = format!(
            "servers of consistency group {} are on another appliance: {}; there are no points of the group",
            self.name,
            others.join(", ")
        );
        let remedy = "give all servers of the group the same spec.applianceRef, or name another group";
        Some((message, remedy.to_owned()))
    }

    /// What is wrong with it.
    pub(super) fn issue(&self) -> Option<(Reason, Severity, String, String)> {
        if let Some((message, remedy)) = self.across() {
            return Some((Reason::GroupAcrossAppliances, Severity::Warning, message, remedy));
        }
        let missed = self.report.as_ref()?.missed.as_ref()?;
        let message =
            format!("the last point of consistency group {} was missed: {}", self.name, missed.reason);
        Some((Reason::GroupPointMissed, Severity::Warning, message, missed.message.clone()))
    }
}

/// The status: the last point is remembered when the process server that took it is another one now.
pub(super) fn point(
    server: &ProtectedServer,
    found: Option<&Found>,
    before: Option<&GroupPoint>,
) -> Option<GroupPoint> {
    let group = server.spec.consistency_group.clone()?;
    let before = before.filter(|before| before.group == group);
    let Some(found) = found else { return before.cloned() };
    let report = found.report.as_ref();
    let newest = report.and_then(|report| taken(report.taken.as_ref()?, found));
    let missed = report.and_then(|report| missed(report.missed.as_ref()?));
    let known = before.and_then(|before| before.taken.clone());
    Some(GroupPoint {
        group,
        missed: missed.or_else(|| before?.missed.clone().filter(|_| newest.is_none())),
        taken: newest.or(known),
    })
}

fn taken(outcome: &v1::GroupOutcome, found: &Found) -> Option<TakenGroupPoint> {
    let name = |id: &String| found.names.get(id).unwrap_or(id).clone();
    let mut members: Vec<GroupMember> = outcome
        .members
        .iter()
        .map(|member| GroupMember {
            name: name(&member.server_id),
            epoch: u64::from(member.epoch),
            record: member.number,
        })
        .collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    members.truncate(SHOWN);
    Some(TakenGroupPoint {
        id: outcome.id.clone(),
        // A record bears a later time than the others if its log had one as late already, by what clocks differ. Rounds
        // are further apart than that.
        time: outcome.members.iter().filter_map(|member| time(member.t0_micros)).max()?,
        members,
        longest_freeze_millis: outcome.longest_freeze_micros.div_ceil(1000),
    })
}

fn missed(outcome: &v1::GroupOutcome) -> Option<MissedGroupPoint> {
    let at: Time = time(outcome.at_micros)?;
    Some(MissedGroupPoint {
        time: whole(at),
        reason: outcome.reason.clone(),
        message: outcome.message.chars().take(1024).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::protected_server::testing::server;

    fn member(name: &str, appliance: &str) -> ProtectedServer {
        let mut member = server(name);
        member.spec.consistency_group = Some("erp".into());
        member.spec.appliance_ref.name = appliance.into();
        member
    }

    fn part(server: &str, t0_micros: i64) -> v1::GroupMember {
        v1::GroupMember { server_id: format!("id-{server}"), epoch: 2, number: 7, t0_micros }
    }

    fn report(taken: bool, missed: bool) -> v1::GroupReport {
        let taken = taken.then(|| v1::GroupOutcome {
            id: "erp/5-ab".into(),
            at_micros: 9_000_000,
            members: vec![part("db-2", 5_000_001), part("db-1", 5_000_000)],
            longest_freeze_micros: 30_400,
            ..Default::default()
        });
        let missed = missed.then(|| v1::GroupOutcome {
            id: "erp/6-ab".into(),
            at_micros: 9_500_000,
            reason: "NotConnected".into(),
            message: "prod/db-2: not connected".into(),
            ..Default::default()
        });
        v1::GroupReport { name: "erp".into(), taken, missed, answered: vec![] }
    }

    fn found(report: v1::GroupReport) -> Found {
        let all = [member("db-1", "berlin"), member("db-2", "berlin"), server("web")];
        look(&all[0], "erp", &all, Some(report))
    }

    #[test]
    fn a_groups_point_is_told_by_the_names_of_its_members_and_a_time_that_finds_it() {
        let db = member("db-1", "berlin");
        let shown = point(&db, Some(&found(report(true, false))), None).unwrap();
        let taken = shown.taken.clone().unwrap();
        assert_eq!(taken.time, Time::from_microsecond(5_000_001).unwrap());
        assert_eq!(
            taken.members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>(),
            ["db-1", "db-2"]
        );
        assert_eq!((taken.longest_freeze_millis, shown.missed.clone()), (31, None));
        // The process server was restarted: it knows of none.
        let later = point(&db, Some(&found(report(false, false))), Some(&shown));
        assert_eq!(later.as_ref(), Some(&shown));
        let missed = point(&db, Some(&found(report(false, true))), Some(&shown)).unwrap();
        assert_eq!(
            (missed.taken, missed.missed.map(|missed| missed.reason)),
            (shown.taken.clone(), Some("NotConnected".into()))
        );
        let mut other = db;
        other.spec.consistency_group = Some("crm".into());
        assert_eq!(point(&other, None, Some(&shown)), None, "another group's says nothing");
        other.spec.consistency_group = None;
        assert_eq!(point(&other, None, Some(&shown)), None);
    }

    #[test]
    fn members_on_another_appliance_are_named_with_the_remedy() {
        let all = [member("db-1", "berlin"), member("db-2", "paris")];
        let (reason, _, message, remedy) = look(&all[0], "erp", &all, None).issue().unwrap();
        assert_eq!(reason, Reason::GroupAcrossAppliances);
        assert!(
            message.contains("db-2 (on paris)") && remedy.contains("spec.applianceRef"),
            "{message} {remedy}"
        );
        assert_eq!(found(report(true, false)).issue(), None);
        let (reason, _, message, remedy) = found(report(true, true)).issue().unwrap();
        assert_eq!(reason, Reason::GroupPointMissed);
        assert!(message.contains("NotConnected") && remedy.contains("prod/db-2"), "{message} {remedy}");
    }
}
