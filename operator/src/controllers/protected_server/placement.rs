//! Which process server has a server, and when it moves to another one. Pure.
//!
//! ```text
//!   none yet ───────────────► the one with the fewest servers
//!   its process server is lost ──► another one at once; the lost one's writer is given up (fenced, if it still lives)
//!   its process server goes ─────► another one at once; the old one commits what it has and releases the log
//!   another one has two fewer ───► that one, if the server has a quiet moment; one move a minute in an appliance
//! ```
//! Servers of a consistency group have one place: the group's first member (by name) is placed like any server, with the
//! weight of them all, and the others follow it, each in a quiet moment.
//!
//! A move costs a takeover of the log and copies nothing again. Without a process server that serves, a server stays
//! where it is: nobody else would be better.

use std::time::Duration;

use lifeboat_crds::Reason;

/// A pod that only restarts is back within seconds; with the takeover and the agent's way back, a server whose
/// process server is lost replicates again within a minute.
pub(super) const LOST_AFTER: Duration = Duration::from_secs(20);
/// Between two moves that only even out. Loss and departure do not wait.
pub(super) const REBALANCE_INTERVAL: Duration = Duration::from_secs(60);
/// Nothing is moved by choice to a process server that has not served for so long: it may go again.
pub(super) const SETTLED_AFTER: Duration = Duration::from_secs(60);
/// Servers that another process server must have fewer: with one, moving would only exchange the two.
const WORTH_MOVING: usize = 2;

/// What is seen of a process server; times are those of the operator's own clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Since when it reports without a gap; `None`: it does not.
    pub(super) reporting_for: Option<Duration>,
    /// Since the last report. `None`: the operator does not listen to it.
    pub(super) silence: Option<Duration>,
    /// Why its stream cannot be opened.
    pub(super) trouble: Option<String>,
    /// What it says about the vault; empty: it answers.
    pub(super) vault_error: String,
    /// Since when its pod is not ready; `None`: it is.
    pub(super) unready_for: Option<Duration>,
}

/// A process server as a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) name: String,
    /// There are to be fewer, and this one goes.
    pub(super) leaving: bool,
    pub(super) servers: usize,
    pub(super) seen: Seen,
}

/// The server that is placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subject<'a> {
    pub(super) current: Option<&'a str>,
    /// Protected and connected; no copy, comparison, point or failover is under way.
    pub(super) quiet: bool,
    /// Of any server of the appliance; `None`: never.
    pub(super) since_last_move: Option<Duration>,
    /// Places of the other servers of its consistency group, the first member's first.
    pub(super) fellows: &'a [String],
    /// It is the first of its group, or alone.
    pub(super) leads: bool,
}

impl Default for Subject<'_> {
    fn default() -> Self {
        Self { current: None, quiet: false, since_last_move: None, fellows: &[], leads: true }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Where it is, or nowhere: there is no process server.
    Stay,
    /// Its first place.
    Begin(String),
    Move(Moving),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Moving {
    pub(super) to: String,
    pub(super) reason: Reason,
    /// For people.
    pub(super) message: String,
    /// The old one cannot be asked to release the log: its writer is given up.
    pub(super) gives_up: bool,
}

pub(super) fn decide(subject: Subject<'_>, places: &[Place]) -> Decision {
    let Some(current) = subject.current else {
        let begun = beside_fellows(subject, places).or_else(|| first(places));
        return begun.map_or(Decision::Stay, |place| Decision::Begin(place.name.clone()));
    };
    let here = places.iter().find(|place| place.name == current);
    let lost = here.map_or(Some("it is not there any more".to_owned()), |place| place.seen.lost());
    let goes = here.is_none_or(|place| place.leaving);
    if !goes && lost.is_none() {
        return here
            .and_then(|here| followed(subject, here, places).or_else(|| rebalanced(subject, here, places)))
            .map_or(Decision::Stay, Decision::Move);
    }
    let fewest = || fewest(places.iter().filter(|place| place.serves() && place.name != current));
    let Some(to) = beside_fellows(subject, places).or_else(fewest) else { return Decision::Stay };
    let (reason, message) = match (&lost, goes) {
        (_, true) => (
            Reason::ProcessServerLeaves,
            format!("{current} goes, since spec.processServers.replicas of the appliance asks for fewer"),
        ),
        (lost, false) => (
            Reason::ProcessServerLost,
            format!(
                "{current} is lost: {}. See `kubectl describe pod {current}` and its node; what the vault had \
                 acknowledged is there, the agent sends the rest again",
                lost.as_deref().unwrap_or_default()
            ),
        ),
    };
    Decision::Move(Moving { to: to.name.clone(), reason, message, gives_up: lost.is_some() })
}

/// Before anybody has reported a place is found all the same: the program may still be starting.
fn first(places: &[Place]) -> Option<&Place> {
    fewest(places.iter().filter(|place| place.serves()))
        .or_else(|| fewest(places.iter().filter(|place| !place.leaving)))
}

/// Another place where servers of its group are, the first member's if it serves.
fn beside_fellows<'a>(subject: Subject<'_>, places: &'a [Place]) -> Option<&'a Place> {
    subject.fellows.iter().find_map(|fellow| {
        places.iter().find(|place| {
            place.name == *fellow && place.serves() && Some(place.name.as_str()) != subject.current
        })
    })
}

/// Brings it to the first of its group.
fn followed(subject: Subject<'_>, here: &Place, places: &[Place]) -> Option<Moving> {
    let first = subject.fellows.first().filter(|first| !subject.leads && **first != here.name)?;
    let to = places.iter().find(|place| place.name == *first && place.serves())?;
    (subject.quiet && here.serves()).then(|| Moving {
        to: to.name.clone(),
        reason: Reason::BroughtTogether,
        message: format!(
            "other servers of its consistency group are on {}: their points are taken together",
            to.name
        ),
        gives_up: false,
    })
}

fn rebalanced(subject: Subject<'_>, here: &Place, places: &[Place]) -> Option<Moving> {
    let rested = subject.since_last_move.is_none_or(|since| since >= REBALANCE_INTERVAL);
    // A group moves as one, and only when the last move has brought it together.
    let together = subject.leads && subject.fellows.iter().all(|fellow| *fellow == here.name);
    if !subject.quiet || !rested || !here.serves() || !together {
        return None;
    }
    let to = fewest(places.iter().filter(|place| place.serves() && place.seen.is_settled()))?;
    (here.servers >= to.servers + WORTH_MOVING + subject.fellows.len()).then(|| Moving {
        to: to.name.clone(),
        reason: Reason::Rebalanced,
        message: format!("{} has {} servers and {} has {}", here.name, here.servers, to.name, to.servers),
        gives_up: false,
    })
}

fn fewest<'a>(places: impl Iterator<Item = &'a Place>) -> Option<&'a Place> {
    places.min_by(|a, b| (a.servers, &a.name).cmp(&(b.servers, &b.name)))
}

impl Place {
    /// Servers can be moved to it.
    fn serves(&self) -> bool {
        !self.leaving && self.seen.serves()
    }
}

impl Seen {
    /// Why it is given up; `None`: it is not.
    pub(super) fn lost(&self) -> Option<String> {
        let long = |time: &Duration| *time >= LOST_AFTER;
        if self.silence.as_ref().is_some_and(long) {
            let trouble = self.trouble.as_ref().map(|trouble| format!(" ({trouble})")).unwrap_or_default();
            return Some(format!("nothing was heard of it for {} s{trouble}", LOST_AFTER.as_secs()));
        }
        let unready = || format!("its pod has not been ready for {} s", LOST_AFTER.as_secs());
        self.unready_for.as_ref().is_some_and(long).then(unready)
    }

    fn serves(&self) -> bool {
        self.reporting_for.is_some() && self.vault_error.is_empty() && self.unready_for.is_none()
    }

    fn is_settled(&self) -> bool {
        self.reporting_for.is_some_and(|time| time >= SETTLED_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn serving(name: &str, servers: usize) -> Place {
        let seen =
            Seen { reporting_for: Some(LONG), silence: Some(Duration::from_secs(1)), ..Seen::default() };
        Place { name: name.into(), leaving: false, servers, seen }
    }

    fn seen(name: &str, servers: usize, change: impl FnOnce(&mut Seen)) -> Place {
        let mut place = serving(name, servers);
        change(&mut place.seen);
        place
    }

    fn silent(name: &str, servers: usize, seconds: u64) -> Place {
        seen(name, servers, |seen| {
            seen.silence = Some(Duration::from_secs(seconds));
            seen.trouble = Some("connection refused".into());
            seen.reporting_for = None;
        })
    }

    fn leaving(place: Place) -> Place {
        Place { leaving: true, ..place }
    }

    fn on(current: &str) -> Subject<'_> {
        Subject { current: Some(current), quiet: true, ..Subject::default() }
    }

    #[track_caller]
    fn moved(subject: Subject<'_>, places: &[Place]) -> Moving {
        match decide(subject, places) {
            Decision::Move(moving) => moving,
            other => panic!("{other:?}"),
        }
    }

    #[rstest]
    #[case::fewest(vec![serving("a", 2), serving("b", 1)], Some("b"))]
    #[case::one_that_serves(vec![silent("a", 0, 5), serving("b", 7)], Some("b"))]
    #[case::not_one_that_goes(vec![leaving(serving("a", 0)), serving("b", 7)], Some("b"))]
    #[case::before_anybody_has_reported(vec![silent("a", 1, 5), silent("b", 0, 5)], Some("b"))]
    #[case::nowhere(vec![], None)]
    fn a_new_server_gets(#[case] places: Vec<Place>, #[case] place: Option<&str>) {
        let expected = place.map_or(Decision::Stay, |place| Decision::Begin(place.to_owned()));
        assert_eq!(decide(Subject::default(), &places), expected);
    }

    fn names(fellows: &[&str]) -> Vec<String> {
        fellows.iter().map(|fellow| (*fellow).to_owned()).collect()
    }

    #[test]
    fn a_new_member_begins_where_its_group_is() {
        let fellows = names(&["b"]);
        let subject = Subject { fellows: &fellows, ..Subject::default() };
        assert_eq!(
            decide(subject, &[serving("a", 0), serving("b", 9)]),
            Decision::Begin("b".into()),
            "though the other one has fewer"
        );
        assert_eq!(
            decide(subject, &[serving("a", 0), leaving(serving("b", 9))]),
            Decision::Begin("a".into())
        );
    }

    #[test]
    fn members_follow_the_first_one_in_a_quiet_moment() {
        let fellows = names(&["b", "a"]);
        let apart = Subject { fellows: &fellows, leads: false, ..on("a") };
        let places = [serving("a", 1), serving("b", 9)];
        let moving = moved(apart, &places);
        assert_eq!(
            (moving.to.as_str(), moving.reason, moving.gives_up),
            ("b", Reason::BroughtTogether, false)
        );
        assert_eq!(decide(Subject { quiet: false, ..apart }, &places), Decision::Stay);
        assert_eq!(decide(apart, &[serving("a", 1), silent("b", 9, 5)]), Decision::Stay);
        assert_eq!(decide(Subject { leads: true, ..apart }, &places), Decision::Stay, "others come to it");
    }

    /// With three servers in the group, four more have to be here than there, or moving it would only turn the balance.
    #[test]
    fn a_group_is_moved_as_a_whole_when_that_evens_out() {
        let here = names(&["a", "a"]);
        let whole = Subject { fellows: &here, ..on("a") };
        assert_eq!(decide(whole, &[serving("a", 3), serving("b", 0)]), Decision::Stay);
        assert_eq!(moved(whole, &[serving("a", 4), serving("b", 0)]).reason, Reason::Rebalanced);
        let split = names(&["a", "b"]);
        let split = Subject { fellows: &split, ..on("a") };
        assert_eq!(decide(split, &[serving("a", 9), serving("b", 0)]), Decision::Stay);
        let follower = Subject { leads: false, ..whole };
        assert_eq!(decide(follower, &[serving("a", 9), serving("b", 0)]), Decision::Stay);
    }

    #[test]
    fn members_of_a_lost_process_server_go_to_the_same_one() {
        let places = [silent("a", 3, 20), serving("b", 5), serving("c", 1)];
        for (fellows, to) in [(["a", "a"], "c"), (["b", "a"], "b"), (["a", "b"], "b")] {
            let fellows = names(&fellows);
            for leads in [true, false] {
                let moving = moved(Subject { fellows: &fellows, leads, ..on("a") }, &places);
                assert_eq!(
                    (moving.to.as_str(), moving.reason),
                    (to, Reason::ProcessServerLost),
                    "{fellows:?}"
                );
            }
        }
    }

    #[rstest]
    #[case::restarts(silent("a", 3, 19))]
    #[case::has_not_been_ready_for_a_moment(seen("a", 3, |seen| seen.unready_for = Some(Duration::from_secs(19))))]
    #[case::is_not_listened_to_yet(seen("a", 3, |seen| (seen.silence, seen.reporting_for) = (None, None)))]
    #[case::cannot_reach_the_vault(seen("a", 3, |seen| seen.vault_error = "no route".into()))]
    fn a_server_stays_while_its_process_server(#[case] here: Place) {
        assert_eq!(decide(on("a"), &[here, serving("b", 0)]), Decision::Stay);
    }

    #[rstest]
    #[case(silent("a", 3, 20), "nothing was heard of it for 20 s (connection refused)")]
    #[case(seen("a", 3, |seen| seen.unready_for = Some(LONG)), "its pod has not been ready for 20 s")]
    fn a_lost_process_servers_writer_is_given_up_and_the_reason_said(#[case] here: Place, #[case] why: &str) {
        // A restless server too, and right after another move.
        let subject = Subject { quiet: false, since_last_move: Some(Duration::from_secs(1)), ..on("a") };
        let moving = moved(subject, &[here, serving("b", 9), serving("c", 8)]);
        assert_eq!(
            (moving.to.as_str(), moving.reason, moving.gives_up),
            ("c", Reason::ProcessServerLost, true)
        );
        assert!(
            moving.message.contains(why) && moving.message.contains("describe pod a"),
            "{}",
            moving.message
        );
    }

    /// Above all when the operator itself is cut off and hears nobody.
    #[rstest]
    #[case::everybody_is_silent(silent("b", 0, 60))]
    #[case::its_vault_is_away(seen("b", 0, |seen| seen.vault_error = "no route".into()))]
    #[case::its_pod_is_not_ready(seen("b", 0, |seen| seen.unready_for = Some(Duration::ZERO)))]
    #[case::it_goes(leaving(serving("b", 0)))]
    fn nobody_moves_from_a_lost_process_server_to_one_that_is_no_better(#[case] other: Place) {
        assert_eq!(decide(on("a"), &[silent("a", 3, 60), other]), Decision::Stay);
    }

    #[test]
    fn a_process_server_that_goes_is_left_at_once_and_hands_the_log_over_itself() {
        let subject = Subject { quiet: false, ..on("c") };
        let moving = moved(subject, &[serving("a", 5), serving("b", 4), leaving(serving("c", 1))]);
        assert_eq!(
            (moving.to.as_str(), moving.reason, moving.gives_up),
            ("b", Reason::ProcessServerLeaves, false)
        );
        assert!(moving.message.contains("spec.processServers.replicas"), "{}", moving.message);
        // Lost as well: nobody waits for it.
        assert!(moved(on("c"), &[serving("a", 5), leaving(silent("c", 1, 30))]).gives_up);
        // Not there at all.
        assert!(moved(on("gone"), &[serving("a", 5)]).gives_up);
    }

    #[test]
    fn a_process_server_that_came_gets_its_share() {
        let moving = moved(on("a"), &[serving("a", 3), serving("b", 1), serving("c", 2)]);
        assert_eq!((moving.to.as_str(), moving.reason, moving.gives_up), ("b", Reason::Rebalanced, false));
        assert!(moving.message.contains("a has 3 servers and b has 1"), "{}", moving.message);
    }

    #[rstest]
    #[case::the_difference_is_one(on("a"), serving("b", 2))]
    #[case::the_server_is_busy(Subject { quiet: false, ..on("a") }, serving("b", 0))]
    #[case::another_one_has_just_moved(Subject { since_last_move: Some(Duration::from_secs(59)), ..on("a") }, serving("b", 0))]
    #[case::the_other_has_just_come(on("a"), seen("b", 0, |seen| seen.reporting_for = Some(Duration::from_secs(59))))]
    #[case::the_other_goes(on("a"), leaving(serving("b", 0)))]
    #[case::the_others_pod_is_not_ready(on("a"), seen("b", 0, |seen| seen.unready_for = Some(Duration::ZERO)))]
    fn nothing_is_moved_by_choice_when(#[case] subject: Subject<'_>, #[case] other: Place) {
        assert_eq!(decide(subject, &[serving("a", 3), other]), Decision::Stay);
    }

    /// Moving by choice comes to an end: from any start, one after the other.
    #[test]
    fn rebalancing_ends_when_no_two_differ_by_more_than_one() {
        let mut counts = [9_usize, 0, 4];
        let mut moves = 0;
        loop {
            let names = ["a", "b", "c"];
            let places: Vec<Place> =
                names.iter().zip(counts).map(|(name, count)| serving(name, count)).collect();
            let next = names.iter().zip(0..).find_map(|(name, from)| match decide(on(name), &places) {
                Decision::Move(moving) => Some((from, names.iter().position(|name| *name == moving.to)?)),
                _ => None,
            });
            let Some((from, to)): Option<(usize, usize)> = next else { break };
            counts[from] -= 1;
            counts[to] += 1;
            moves += 1;
            assert!(moves < 20, "{counts:?}");
        }
        counts.sort_unstable();
        assert_eq!((counts, moves), ([4, 4, 5], 4));
    }
}
