//! Where every server is, as the objects say, put together from their passes: so that servers that are placed one after
//! the other do not all choose the same place, and a move counts before its status is read back.
//!
//! Nothing is kept here that the objects do not have: a new operator puts it together again within one round of passes,
//! and before it has listened for [`SETTLED_AFTER`](super::placement::SETTLED_AFTER) it moves nothing by choice.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lifeboat_crds::{ProtectedServerStatus, ReplicationAppliance, Time, server::Move};
use tokio::time::Instant;

use super::{
    figures::whole,
    placement::{Decision, Place, Seen, Subject, decide},
};
use crate::{
    control::{ApplianceKey, Fleet},
    controllers::appliance::status::process_server_names,
};

/// One server's place, and how it came there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placed {
    pub process_server: Option<String>,
    pub last_move: Option<Move>,
}

impl Placed {
    fn moved_at(&self) -> Option<Time> {
        self.last_move.as_ref().map(|last| last.time)
    }
}

#[derive(Clone, Default)]
pub struct Places(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    /// By appliance and server.
    placed: BTreeMap<ApplianceKey, BTreeMap<String, Placed>>,
    /// Process servers whose pods are not ready, since when this operator sees it.
    unready: BTreeMap<(ApplianceKey, String), Instant>,
    moved: BTreeMap<ApplianceKey, Instant>,
    /// Consistency groups by appliance and server.
    groups: BTreeMap<ApplianceKey, BTreeMap<String, String>>,
}

impl Places {
    /// What the status says, or the move that is on its way into it.
    pub fn of(&self, key: &ApplianceKey, name: &str, status: &ProtectedServerStatus) -> Placed {
        let told =
            Placed { process_server: status.process_server.clone(), last_move: status.last_move.clone() };
        let mut known = self.known();
        let noted = known.placed.entry(key.clone()).or_default().entry(name.to_owned()).or_default();
        // A first place is noted before it is told, too.
        if told.process_server.is_some() && told.moved_at() >= noted.moved_at() {
            *noted = told;
        }
        noted.clone()
    }

    /// Places the server anew if that is due; the move, if there was one. `epoch` is that of its log's newest writer.
    pub fn settle(
        &self,
        appliance: &ReplicationAppliance,
        key: &ApplianceKey,
        server: &Candidate<'_>,
        fleet: &Fleet,
        now: Time,
    ) -> (Placed, Option<Move>) {
        let mut known = self.known();
        known.join(key, server);
        let places = known.places(appliance, key, fleet);
        let (fellows, leads) = known.fellows(key, server);
        let since_last_move = known.moved.get(key).map(Instant::elapsed);
        let mut placed =
            known.placed.get(key).and_then(|servers| servers.get(server.name)).cloned().unwrap_or_default();
        let current = placed.process_server.as_deref();
        let subject = Subject { current, quiet: server.quiet, since_last_move, fellows: &fellows, leads };
        let decision = decide(subject, &places);
        let made = match decision {
            Decision::Stay => return (placed, None),
            Decision::Begin(place) => {
                placed.process_server = Some(place);
                None
            }
            Decision::Move(moving) => {
                let made = Move {
                    from: placed.process_server.take().unwrap_or_default(),
                    to: moving.to.clone(),
                    time: whole(now),
                    reason: moving.reason.as_str().to_owned(),
                    message: moving.message.chars().take(1024).collect(),
                    lost_epoch: server.epoch.filter(|_| moving.gives_up),
                };
                placed = Placed { process_server: Some(moving.to), last_move: Some(made.clone()) };
                known.moved.insert(key.clone(), Instant::now());
                Some(made)
            }
        };
        known.placed.entry(key.clone()).or_default().insert(server.name.to_owned(), placed.clone());
        (placed, made)
    }

    /// A move by choice whose old process server was lost before it released the log: its writer is given up now.
    pub(super) fn give_up(
        &self,
        key: &ApplianceKey,
        server: &Candidate<'_>,
        placed: &mut Placed,
        from: &Seen,
    ) {
        let Some(last) = placed.last_move.as_mut() else { return };
        if last.lost_epoch.is_some() || from.lost().is_none() {
            return;
        }
        last.lost_epoch = server.epoch;
        self.known().placed.entry(key.clone()).or_default().insert(server.name.to_owned(), placed.clone());
    }

    pub(super) fn seen(&self, key: &ApplianceKey, process_server: &str, fleet: &Fleet) -> Seen {
        self.known().seen(key, process_server, fleet)
    }

    pub(super) fn forget(&self, key: &ApplianceKey, name: &str) {
        let mut known = self.known();
        if let Some(servers) = known.placed.get_mut(key) {
            servers.remove(name);
        }
        if let Some(servers) = known.groups.get_mut(key) {
            servers.remove(name);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a placement has to know of a server.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub name: &'a str,
    /// It may be moved by choice.
    pub quiet: bool,
    /// Of its log's writer, as it was last reported.
    pub epoch: Option<u64>,
    /// Its consistency group.
    pub group: Option<&'a str>,
}

impl Known {
    /// All process servers of the appliance: those that it asks for, and those that are still there.
    fn places(&mut self, appliance: &ReplicationAppliance, key: &ApplianceKey, fleet: &Fleet) -> Vec<Place> {
        let wanted = process_server_names(&key.name, appliance.spec.process_server_replicas());
        let told = appliance.status.as_ref().map(|status| status.process_servers.as_slice());
        let told = told.unwrap_or_default();
        for process_server in told {
            let of = (key.clone(), process_server.name.clone());
            if process_server.ready {
                self.unready.remove(&of);
            } else {
                self.unready.entry(of).or_insert_with(Instant::now);
            }
        }
        self.unready.retain(|(of, name), _| of != key || told.iter().any(|known| known.name == *name));
        let still_there = told.iter().map(|known| &known.name).filter(|name| !wanted.contains(name));
        let leaving = still_there.map(|name| (name.clone(), true)).collect::<Vec<_>>();
        let all = wanted.iter().map(|name| (name.clone(), false)).chain(leaving);
        all.map(|(name, leaving)| Place {
            leaving,
            servers: self.count(key, &name),
            seen: self.seen(key, &name, fleet),
            name,
        })
        .collect()
    }

    /// Notes its group as it is now.
    fn join(&mut self, key: &ApplianceKey, server: &Candidate<'_>) {
        let groups = self.groups.entry(key.clone()).or_default();
        match server.group {
            Some(group) => _ = groups.insert(server.name.to_owned(), group.to_owned()),
            None => _ = groups.remove(server.name),
        }
    }

    /// Where the others of its group are, in the order of their names; and whether it is the first of them.
    fn fellows(&self, key: &ApplianceKey, server: &Candidate<'_>) -> (Vec<String>, bool) {
        let (Some(groups), Some(placed)) = (self.groups.get(key), self.placed.get(key)) else {
            return (Vec::new(), true);
        };
        let others = groups
            .iter()
            .filter(|(name, group)| server.group == Some(group.as_str()) && name.as_str() != server.name);
        let others: Vec<(&String, &String)> =
            others.filter_map(|(name, _)| Some((name, placed.get(name)?.process_server.as_ref()?))).collect();
        let leads = others.first().is_none_or(|(name, _)| server.name < name.as_str());
        (others.into_iter().map(|(_, place)| place.clone()).collect(), leads)
    }

    fn count(&self, key: &ApplianceKey, process_server: &str) -> usize {
        let servers = self.placed.get(key).into_iter().flat_map(BTreeMap::values);
        servers.filter(|placed| placed.process_server.as_deref() == Some(process_server)).count()
    }

    fn seen(&self, key: &ApplianceKey, name: &str, fleet: &Fleet) -> Seen {
        let unready = self.unready.get(&(key.clone(), name.to_owned()));
        Seen {
            reporting_for: fleet.reporting_for(key, name),
            silence: fleet.silence(key, name),
            trouble: fleet.trouble_of(key, name),
            vault_error: fleet.report(key, name).map(|report| report.vault_error).unwrap_or_default(),
            unready_for: unready.map(Instant::elapsed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lifeboat_crds::appliance::{Health, ProcessServerStatus};
    use lifeboat_replication::wire::v1;

    use super::*;
    use crate::controllers::{appliance::testing::appliance, protected_server::testing::server};

    const SETTLED: Duration = Duration::from_secs(61);

    /// Two process servers, and what the operator remembers.
    struct Site {
        places: Places,
        fleet: Fleet,
        key: ApplianceKey,
        appliance: ReplicationAppliance,
    }

    fn name(index: usize) -> String {
        format!("berlin-process-server-{index}")
    }

    impl Site {
        fn new() -> Self {
            let key = ApplianceKey { namespace: "prod".into(), name: "berlin".into() };
            let fleet = Fleet::default();
            fleet.pretend_to_listen(&key, &[&name(0), &name(1)]);
            let mut site = Self { places: Places::default(), fleet, key, appliance: appliance() };
            site.ready(&[0, 1], 2);
            site
        }

        /// What the appliance's status says.
        fn ready(&mut self, ready: &[usize], count: usize) {
            let told = |index: usize| ProcessServerStatus {
                name: name(index),
                ready: ready.contains(&index),
                health: Health::Healthy,
                address: None,
                servers: 0,
                spool_used_bytes: None,
                upload_backlog_seconds: None,
                ingest_bytes_per_second: None,
                upload_limit_bytes_per_second: None,
            };
            let status = self.appliance.status.get_or_insert_default();
            status.process_servers = (0..count).map(told).collect();
        }

        /// For so long, these report every few seconds.
        async fn report(&self, reporting: &[usize], time: Duration) {
            for _ in 0..time.as_secs() {
                for index in reporting {
                    self.fleet.pretend(&self.key, &name(*index), v1::Report::default());
                }
                tokio::time::advance(Duration::from_secs(1)).await;
            }
        }

        /// A pass over a server on the process server; where it is then, and the move.
        fn pass(&self, server_name: &str, on: usize) -> (String, Option<Move>) {
            self.pass_in(server_name, on, None)
        }

        fn pass_in(&self, server_name: &str, on: usize, group: Option<&str>) -> (String, Option<Move>) {
            let mut status = server(server_name).status.unwrap();
            status.process_server = Some(name(on));
            self.places.of(&self.key, server_name, &status);
            let candidate = Candidate { name: server_name, quiet: true, epoch: Some(7), group };
            let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
            let (placed, made) = self.places.settle(&self.appliance, &self.key, &candidate, &self.fleet, now);
            (placed.process_server.unwrap(), made)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn servers_of_a_silent_process_server_are_shared_out_and_its_writer_is_given_up() {
        let site = Site::new();
        site.report(&[0, 1], SETTLED).await;
        assert_eq!(site.pass("db-1", 0), (name(0), None));
        // The other one was heard last a second before the end of that.
        site.report(&[1], Duration::from_secs(18)).await;
        assert_eq!(site.pass("db-1", 0), (name(0), None));
        site.report(&[1], Duration::from_secs(2)).await;
        let (place, made) = site.pass("db-1", 0);
        let made = made.unwrap();
        assert_eq!((place, made.from, made.lost_epoch), (name(1), name(0), Some(7)));
        // The status that says so has not been read back yet.
        assert_eq!(site.pass("db-1", 0), (name(1), None));
    }

    #[tokio::test(start_paused = true)]
    async fn an_operator_that_has_just_started_gives_everybody_time_to_be_heard() {
        let site = Site::new();
        site.report(&[1], Duration::from_secs(18)).await;
        assert_eq!(site.pass("db-1", 0), (name(0), None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_not_ready_is_left_after_the_same_time_though_it_reports() {
        let mut site = Site::new();
        site.report(&[0, 1], SETTLED).await;
        site.ready(&[1], 2);
        assert_eq!(site.pass("db-1", 0).1, None);
        site.report(&[0, 1], Duration::from_secs(10)).await;
        site.ready(&[0, 1], 2);
        assert_eq!(site.pass("db-1", 0).1, None);
        site.ready(&[1], 2);
        assert_eq!(site.pass("db-1", 0).1, None);
        site.report(&[0, 1], Duration::from_secs(19)).await;
        assert_eq!(site.pass("db-1", 0).1, None);
        site.report(&[0, 1], Duration::from_secs(1)).await;
        assert_eq!(site.pass("db-1", 0).1.unwrap().reason, "ProcessServerLost");
    }

    #[tokio::test(start_paused = true)]
    async fn servers_even_out_one_a_minute() {
        let site = Site::new();
        site.report(&[0, 1], SETTLED).await;
        let servers = ["db-1", "db-2", "db-3", "db-4"];
        let mut on = [0; 4];
        let mut moves = Vec::new();
        for second in 0..200 {
            for (server, on) in servers.iter().zip(&mut on) {
                let (place, made) = site.pass(server, *on);
                if let Some(made) = made {
                    moves.push(second);
                    assert_eq!(made.lost_epoch, None);
                }
                // The status is read back as it was written, without the move: `of` knows better.
                *on = usize::from(place == name(1));
            }
            site.report(&[0, 1], Duration::from_secs(1)).await;
        }
        assert_eq!(moves, [0, 60]);
        assert_eq!(on.iter().sum::<usize>(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn servers_of_a_group_come_together_and_go_apart_when_they_leave_it() {
        let site = Site::new();
        site.report(&[0, 1], SETTLED).await;
        assert_eq!(site.pass_in("db-1", 0, Some("erp")).1, None);
        let (place, made) = site.pass_in("db-2", 1, Some("erp"));
        assert_eq!((place, made.unwrap().reason.as_str()), (name(0), "BroughtTogether"));
        site.report(&[0, 1], SETTLED).await;
        // Two more here than there, but they would go together.
        assert_eq!(site.pass_in("db-1", 0, Some("erp")).1, None);
        assert_eq!(site.pass_in("db-2", 0, Some("erp")).1, None);
        assert_eq!(site.pass_in("db-2", 0, None).1.unwrap().reason, "Rebalanced");
    }

    #[tokio::test(start_paused = true)]
    async fn the_highest_ordinal_is_left_when_fewer_are_asked_for() {
        let mut site = Site::new();
        site.report(&[0, 1], SETTLED).await;
        site.appliance.spec.process_servers.replicas = 1;
        let (place, made) = site.pass("db-1", 1);
        let made = made.unwrap();
        assert_eq!((place, made.reason.as_str(), made.lost_epoch), (name(0), "ProcessServerLeaves", None));
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_process_server_that_dies_while_it_hands_over_is_not_waited_for() {
        let site = Site::new();
        site.report(&[0, 1], SETTLED).await;
        site.pass("db-1", 0);
        let (place, made) = site.pass("db-2", 0);
        assert_eq!(made.as_ref().unwrap().lost_epoch, None);
        let mut placed = Placed { process_server: Some(place), last_move: made };
        let candidate = Candidate { name: "db-2", quiet: false, epoch: Some(7), group: None };
        let give_up = |placed: &mut Placed| {
            let seen = site.places.seen(&site.key, &name(0), &site.fleet);
            site.places.give_up(&site.key, &candidate, placed, &seen);
            placed.last_move.as_ref().unwrap().lost_epoch
        };
        assert_eq!(give_up(&mut placed), None);
        site.report(&[1], Duration::from_secs(21)).await;
        assert_eq!(give_up(&mut placed), Some(7));
    }
}
