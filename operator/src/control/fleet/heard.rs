//! What was heard, and how long ago.

use std::time::Duration;

use lifeboat_replication::{env::Micros, wire::v1};
use tokio::time::Instant;

#[cfg(test)]
use super::{Appliance, Identity};
use super::{ApplianceKey, Fleet};

/// A report older than this says nothing any more: process servers report every few seconds.
const REPORT_LIFE: Duration = Duration::from_secs(20);

/// All that is known of one server's replication.
#[derive(Debug, Clone)]
pub struct Figures {
    pub process_server: String,
    /// The process server's time of the report.
    pub time: Micros,
    /// How long ago it arrived.
    pub age: Duration,
    /// How long the process server has reported without a gap, and had the vault.
    pub since: Duration,
    pub report: v1::ServerReport,
}

/// What is known of one server's seed disks and recovery points.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The applier that holds the server.
    pub applier: String,
    pub report: v1::AppliedServer,
}

#[derive(Debug, Clone)]
pub(super) struct Heard<T> {
    message: T,
    at: Instant,
    /// Since when there has been no gap, and it has served.
    since: Instant,
}

impl<T> Heard<T> {
    fn new(message: T, before: Option<&Self>) -> Self {
        let at = Instant::now();
        let since = before.filter(|before| before.fresh().is_some()).map_or(at, |before| before.since);
        Self { message, at, since }
    }

    fn fresh(&self) -> Option<&T> {
        (self.at.elapsed() < REPORT_LIFE).then_some(&self.message)
    }
}

impl Fleet {
    pub(in crate::control) fn heard(&self, key: &ApplianceKey, name: &str, report: v1::Report) {
        if let Some(known) = self.appliances().get_mut(key) {
            known.troubles.remove(name);
            // Without the vault it serves nobody.
            let served = known.reports.get(name).filter(|before| before.message.vault_error.is_empty());
            let heard = Heard::new(report, served);
            known.reports.insert(name.to_owned(), heard);
        }
    }

    pub(in crate::control) fn heard_applier(
        &self,
        key: &ApplianceKey,
        name: &str,
        report: v1::ApplierReport,
    ) {
        if let Some(known) = self.appliances().get_mut(key) {
            known.troubles.remove(name);
            let heard = Heard::new(report, known.applier_reports.get(name));
            known.applier_reports.insert(name.to_owned(), heard);
        }
    }

    pub(in crate::control) fn trouble(&self, key: &ApplianceKey, name: &str, why: String) {
        if let Some(known) = self.appliances().get_mut(key) {
            known.troubles.insert(name.to_owned(), why);
        }
    }

    /// Why nothing is heard of a pod.
    pub fn trouble_of(&self, key: &ApplianceKey, name: &str) -> Option<String> {
        self.appliances().get(key)?.troubles.get(name).cloned()
    }

    /// The last report of a process server, unless it is too old.
    pub fn report(&self, key: &ApplianceKey, process_server: &str) -> Option<v1::Report> {
        self.appliances().get(key)?.reports.get(process_server)?.fresh().cloned()
    }

    /// How long nothing has been heard of a process server, since this operator listens to it. `None`: it does not,
    /// and nothing can be said.
    pub fn silence(&self, key: &ApplianceKey, process_server: &str) -> Option<Duration> {
        let appliances = self.appliances();
        let known = appliances.get(key)?;
        let listening = known.listening.get(process_server)?.elapsed();
        let heard = known.reports.get(process_server).map(|heard| heard.at.elapsed());
        Some(heard.map_or(listening, |heard| heard.min(listening)))
    }

    /// How long a process server has reported without a gap, and had the vault.
    pub fn reporting_for(&self, key: &ApplianceKey, process_server: &str) -> Option<Duration> {
        let appliances = self.appliances();
        let heard = appliances.get(key)?.reports.get(process_server)?;
        heard.fresh().map(|_| heard.since.elapsed())
    }

    /// What the process server that has it reports of a server.
    pub fn figures(&self, key: &ApplianceKey, process_server: &str, server_id: &str) -> Option<Figures> {
        let appliances = self.appliances();
        let heard = appliances.get(key)?.reports.get(process_server)?;
        let report = heard.fresh()?;
        let found = report.servers.iter().find(|server| server.server_id == server_id)?.clone();
        Some(Figures {
            process_server: process_server.to_owned(),
            time: Micros(report.time_micros),
            age: heard.at.elapsed(),
            since: heard.since.elapsed(),
            report: found,
        })
    }

    /// What the process server reports of a consistency group.
    pub fn group(&self, key: &ApplianceKey, process_server: &str, group: &str) -> Option<v1::GroupReport> {
        let report = self.report(key, process_server)?;
        report.groups.into_iter().find(|known| known.name == group)
    }

    /// What became of a request for the point of a group: this server's part of it, or why there is none.
    pub(super) fn group_answer(
        &self,
        key: &ApplianceKey,
        process_server: &str,
        server_id: &str,
        id: &str,
    ) -> Option<v1::PointAnswer> {
        let report = self.report(key, process_server)?;
        let mut answered = report.groups.into_iter().flat_map(|group| group.answered);
        let outcome = answered.find(|answer| answer.request == id)?.outcome?;
        let answer = v1::PointAnswer {
            id: id.to_owned(),
            reason: outcome.reason,
            message: outcome.message,
            ..Default::default()
        };
        let Some(part) = outcome.members.into_iter().find(|member| member.server_id == server_id) else {
            return Some(answer);
        };
        Some(v1::PointAnswer {
            number: part.number,
            epoch: part.epoch,
            t0_micros: part.t0_micros,
            consistency: v1::Consistency::FilesystemConsistent.into(),
            longest_freeze_micros: outcome.longest_freeze_micros,
            ..answer
        })
    }

    /// The last report of an applier, unless it is too old.
    pub fn applier_report(&self, key: &ApplianceKey, applier: &str) -> Option<v1::ApplierReport> {
        self.appliances().get(key)?.applier_reports.get(applier)?.fresh().cloned()
    }

    /// Whether any applier of the appliance has been heard.
    pub fn hears_appliers(&self, key: &ApplianceKey) -> bool {
        let appliances = self.appliances();
        let known = appliances.get(key);
        known.is_some_and(|known| known.applier_reports.values().any(|heard| heard.fresh().is_some()))
    }

    /// What the applier that holds a server reports of it. While a lease changes hands two may say so: then the one
    /// that has come further.
    pub fn applied(&self, key: &ApplianceKey, server_id: &str) -> Option<Applied> {
        let appliances = self.appliances();
        let reports = appliances.get(key)?.applier_reports.iter();
        let found = reports.filter_map(|(name, heard)| {
            let report = heard.fresh()?.servers.iter().find(|server| server.server_id == server_id)?;
            Some(Applied { applier: name.clone(), report: report.clone() })
        });
        found.max_by_key(|applied| (applied.report.epoch, applied.report.applied_number))
    }

    /// For tests without appliers: they have reported these servers' last applied records.
    #[cfg(test)]
    pub fn pretend_applied(&self, key: &ApplianceKey, applier: &str, servers: &[(&str, u64)]) {
        let servers = servers.iter().map(|(id, applied_number)| v1::AppliedServer {
            server_id: (*id).to_owned(),
            applied_number: *applied_number,
            ..v1::AppliedServer::default()
        });
        let report = v1::ApplierReport {
            name: applier.to_owned(),
            servers: servers.collect(),
            ..v1::ApplierReport::default()
        };
        self.heard_applier(key, applier, report);
    }

    /// For tests without process servers: listens to these from now on.
    #[cfg(test)]
    pub fn pretend_to_listen(&self, key: &ApplianceKey, process_servers: &[&str]) {
        let identity = Identity { ca_pem: String::new(), certificate_pem: String::new(), key_pem: "".into() };
        let mut known = Appliance::new(identity);
        known.listening = process_servers.iter().map(|name| ((*name).to_owned(), Instant::now())).collect();
        self.appliances().insert(key.clone(), known);
    }

    /// For tests without process servers.
    #[cfg(test)]
    pub fn pretend(&self, key: &ApplianceKey, name: &str, report: v1::Report) {
        self.heard(key, name, report);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_holder_of_a_server_is_whoever_reports_it() {
        let (fleet, key) =
            (Fleet::default(), ApplianceKey { namespace: "prod".into(), name: "berlin".into() });
        fleet.pretend_to_listen(&key, &[]);
        assert!(!fleet.hears_appliers(&key));
        fleet.pretend_applied(&key, "applier-0", &[("one", 7), ("two", 3)]);
        fleet.pretend_applied(&key, "applier-1", &[("three", 1), ("two", 4)]);
        let holder = |server| fleet.applied(&key, server).map(|applied| applied.applier);
        assert_eq!(holder("one").as_deref(), Some("applier-0"));
        assert_eq!(holder("two").as_deref(), Some("applier-1"), "its lease changes hands");
        assert_eq!(holder("four"), None);
        tokio::time::sleep(REPORT_LIFE).await;
        assert!(holder("one").is_none() && !fleet.hears_appliers(&key));
    }
}
