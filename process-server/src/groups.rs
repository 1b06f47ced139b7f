//! Takes the points of the consistency groups that this process server has.
//!
//! In: the newest [`Directory`] (who is in which group, which points are asked for, what the policies want), and what
//! members say through the [`Switchboard`]. Out: orders to members, and a report of each group for the operator.
//!
//! The operator keeps a group's servers on one process server, so there is one coordinator, which has the sessions of all.
//! While they are apart, or one of them is not connected, there is no group point, and the reason is told at once.
//! Nothing is kept here over a restart: an attempt under way ends with it (members thaw by themselves), a request is
//! heard again from the operator, and the policy's next point is due soon after.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use lifeboat_replication::{
    env::Env,
    wire::v1::{self, Consistency, GroupAnswered, GroupOutcome, GroupPoint, GroupReport, GroupStep},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use crate::{
    core::{
        group::{Attempt, Input, Missed, Ordered, Taken},
        switchboard::{Event, Switchboard},
    },
    directory::Directory,
};

/// Until the policy's first point: time for the agents to come.
const FIRST_AFTER: Duration = Duration::from_secs(60);
/// After a policy's point that was missed; sooner if the interval is shorter.
const AGAIN_AFTER: Duration = Duration::from_secs(600);
/// Sooner, too, when what stood in the way is gone: members that had not come, or whose connection broke. So long must
/// have passed, or a connection that comes and goes would freeze the others again and again.
const AGAIN_WHEN_CLEAR: Duration = Duration::from_secs(60);
/// Whether it is gone is looked at this often.
const LOOK: Duration = Duration::from_secs(5);
/// Answers to requests that are remembered: an operator that starts anew asks again for what it had asked.
const ANSWERED: usize = 16;
/// Without a deadline it is looked again after this time.
const IDLE: Duration = Duration::from_secs(3600);

/// Why a point is missed though its members may be well a moment later.
const MAY_CLEAR: [&str; 5] = ["NotConnected", "MembersApart", "MembersMissing", "Paused", "ConnectionLost"];

/// What the operator is told.
pub type Reports = Vec<GroupReport>;

pub struct Coordinator {
    /// This process server.
    name: String,
    env: Env,
    directory: watch::Receiver<Option<Arc<Directory>>>,
    board: Switchboard,
    events: mpsc::Receiver<Event>,
    groups: BTreeMap<String, Group>,
    reports: watch::Sender<Reports>,
}

#[derive(Default)]
struct Group {
    /// Requests without an answer.
    asked: BTreeMap<String, Consistency>,
    attempt: Option<Attempt>,
    /// Requests that the attempt serves: those that were heard before it.
    serves: BTreeMap<String, Consistency>,
    /// Oldest first.
    answered: VecDeque<(String, GroupOutcome)>,
    taken: Option<GroupOutcome>,
    missed: Option<GroupOutcome>,
    /// By policy.
    interval: Duration,
    due: Option<Instant>,
    /// The last point was missed by what may go away by itself; from then on it can be tried again.
    blocked: Option<Instant>,
}

impl Group {
    fn knows(&self, request: &str) -> bool {
        self.serves.contains_key(request) || self.answered.iter().any(|(answered, _)| answered == request)
    }
}

impl Coordinator {
    pub fn new(
        name: String,
        env: Env,
        directory: watch::Receiver<Option<Arc<Directory>>>,
        board: Switchboard,
        reports: watch::Sender<Reports>,
    ) -> Self {
        let events = board.listen();
        Self { name, env, directory, board, events, groups: BTreeMap::new(), reports }
    }

    /// Runs until there are no more configurations.
    pub async fn run(mut self) {
        loop {
            self.configure();
            self.begin_what_is_due();
            self.tell();
            let wake = self.wake();
            tokio::select! {
                biased;
                Some(event) = self.events.recv() => self.hear(event),
                changed = self.directory.changed() => if changed.is_err() {
                    return;
                },
                () = sleep_until(wake) => {
                    let names: Vec<String> = self.groups.keys().cloned().collect();
                    names.iter().for_each(|group| self.drive(group, Input::Tick));
                }
            }
        }
    }

    /// Follows the directory: which groups there are, and what is asked of them.
    fn configure(&mut self) {
        let Some(directory) = self.directory.borrow_and_update().clone() else { return };
        let wanted = directory.groups(&self.name);
        self.groups.retain(|name, group| wanted.contains_key(name.as_str()) || group.attempt.is_some());
        for (name, assignments) in wanted {
            let group = self.groups.entry(name.to_owned()).or_default();
            group.asked = assignments
                .iter()
                .filter(|assignment| assignment.process_server == self.name)
                .flat_map(|assignment| &assignment.points)
                .filter(|request| request.group)
                .filter(|request| !group.knows(&request.id))
                .map(|request| (request.id.clone(), request.consistency()))
                .collect();
            let settings = assignments.iter().filter_map(|assignment| assignment.settings.as_ref());
            let intervals = settings.map(|settings| settings.app_consistent_interval_micros);
            let interval = intervals.filter(|interval| *interval > 0).min().unwrap_or_default();
            group.interval = Duration::from_micros(interval);
            group.due = match group.due {
                _ if interval == 0 => None,
                due => due.or_else(|| Some(Instant::now() + FIRST_AFTER.min(group.interval))),
            };
        }
    }

    fn begin_what_is_due(&mut self) {
        let now = Instant::now();
        let directory = self.directory.borrow().clone();
        let clear = |name: &str| {
            let members = directory.as_ref().and_then(|directory| directory.groups(&self.name).remove(name));
            self.obstacle(&members.unwrap_or_default()).is_none()
        };
        let due = |name: &str, group: &Group| {
            let by_policy = group.due.is_some_and(|due| now >= due);
            let again = group.due.is_some() && group.blocked.is_some_and(|from| now >= from && clear(name));
            group.attempt.is_none() && (by_policy || again || !group.asked.is_empty())
        };
        let names = self.groups.iter().filter(|(name, group)| due(name, group)).map(|(name, _)| name.clone());
        for name in names.collect::<Vec<_>>() {
            self.begin(&name, now);
        }
    }

    fn begin(&mut self, name: &str, now: Instant) {
        let Some(directory) = self.directory.borrow().clone() else { return };
        let Some(group) = self.groups.get_mut(name) else { return };
        group.serves = std::mem::take(&mut group.asked);
        let members = directory.groups(&self.name).remove(name).unwrap_or_default();
        // Never the same again: the records of two attempts must not be taken for one point.
        let random = self.env.entropy.next_u64();
        let id = format!("{name}/{}-{random:016x}", self.env.wall.now().0);
        if let Some(why) = self.obstacle(&members) {
            return self.conclude(name, &id, Err(why));
        }
        let named = members.iter().map(|member| (member.server_id.clone(), member.display_name.clone()));
        let (attempt, orders) = Attempt::begin(id, named, now);
        tracing::info!(group = name, id = attempt.id(), "point of a consistency group begins");
        let Some(group) = self.groups.get_mut(name) else { return };
        group.attempt = Some(attempt);
        self.dispatch(name, orders);
    }

    /// Why there can be no point of the group at the moment.
    fn obstacle(&self, members: &[&v1::Assignment]) -> Option<Missed> {
        let those = |is: &dyn Fn(&v1::Assignment) -> bool| {
            let names: Vec<&str> = members
                .iter()
                .filter(|member| is(member))
                .map(|member| member.display_name.as_str())
                .collect();
            (!names.is_empty()).then(|| names.join(", "))
        };
        let expected = members.iter().map(|member| member.group_members).max().unwrap_or_default() as usize;
        if expected > members.len() {
            let message = format!(
                "{expected} servers name this group, and {} of them are served by this appliance: give all the same \
                 spec.applianceRef, or wait until the new ones are enrolled",
                members.len()
            );
            return Some(Missed::new("MembersMissing", message));
        }
        if let Some(names) = those(&|member| member.process_server != self.name) {
            let message = format!(
                "{names}: still on another process server than the others of the group: the operator brings them \
                 together as soon as they are protected and connected, ask again then"
            );
            return Some(Missed::new("MembersApart", message));
        }
        if let Some(names) = those(&|member| member.settings.as_ref().is_some_and(|settings| settings.paused))
        {
            return Some(Missed::new(
                "Paused",
                format!("{names}: replication is paused: set spec.replication to Enabled"),
            ));
        }
        let names = those(&|member| !self.board.is_connected(&member.server_id))?;
        Some(Missed::new("NotConnected", format!("{names}: not connected: see the condition AgentConnected")))
    }

    fn hear(&mut self, event: Event) {
        let server = match &event {
            Event::Answer { server, .. } | Event::Gone { server } => server.clone(),
            Event::Durable { member, .. } => member.server_id.clone(),
        };
        let under_way = |group: &Group| group.attempt.as_ref().is_some_and(|attempt| attempt.has(&server));
        let found = self.groups.iter().find(|(_, group)| under_way(group));
        let Some((name, attempt)) =
            found.and_then(|(name, group)| Some((name.clone(), group.attempt.as_ref()?.id().to_owned())))
        else {
            return;
        };
        match event {
            Event::Answer { answer, .. } => {
                self.drive(&name, Input::Answer { server: &server, answer: &answer });
            }
            Event::Gone { .. } => self.drive(&name, Input::Gone { server: &server }),
            Event::Durable { id, member } if id == attempt => self.drive(&name, Input::Durable { member }),
            Event::Durable { .. } => {}
        }
    }

    fn drive(&mut self, name: &str, input: Input<'_>) {
        let date = self.env.wall.now();
        let Some(attempt) = self.groups.get_mut(name).and_then(|group| group.attempt.as_mut()) else {
            return;
        };
        let orders = attempt.handle(input, Instant::now(), date);
        self.dispatch(name, orders);
    }

    /// Sends orders in their order, and ends the attempt when it is over.
    fn dispatch(&mut self, name: &str, orders: Vec<Ordered>) {
        let date = self.env.wall.now();
        let Some(attempt) = self.groups.get_mut(name).and_then(|group| group.attempt.as_mut()) else {
            return;
        };
        let mut orders = VecDeque::from(orders);
        while let Some((server, order)) = orders.pop_front() {
            let step = order.step();
            if step == GroupStep::Flip {
                let point = GroupPoint { id: order.id.clone(), members: order.members.clone() };
                self.board.bear(&server, point);
            }
            if !self.board.order(&server, order) && step != GroupStep::Cancel {
                orders.extend(attempt.handle(Input::Gone { server: &server }, Instant::now(), date));
            }
        }
        if let Some(outcome) = attempt.outcome().cloned() {
            let id = attempt.id().to_owned();
            self.conclude(name, &id, outcome);
        }
    }

    fn conclude(&mut self, name: &str, id: &str, outcome: Result<Taken, Missed>) {
        let Some(group) = self.groups.get_mut(name) else { return };
        group.attempt = None;
        self.board.bear_no_more(id);
        let (id, at_micros) = (id.to_owned(), self.env.wall.now().0);
        let taken = outcome.is_ok();
        let outcome = match outcome {
            Ok(Taken { members, longest_freeze_micros }) => {
                tracing::info!(
                    group = name,
                    id,
                    longest_freeze_micros,
                    "point of a consistency group is taken"
                );
                GroupOutcome { id, at_micros, members, longest_freeze_micros, ..GroupOutcome::default() }
            }
            Err(Missed { code, message }) => {
                tracing::warn!(group = name, id, code, message, "no point of a consistency group");
                GroupOutcome { id, at_micros, reason: code, message, ..GroupOutcome::default() }
            }
        };
        for (request, asked) in std::mem::take(&mut group.serves) {
            group.answered.push_back((request, less_than_asked(outcome.clone(), asked)));
        }
        while group.answered.len() > ANSWERED {
            group.answered.pop_front();
        }
        let again = if taken { group.interval } else { group.interval.min(AGAIN_AFTER) };
        group.due = (!group.interval.is_zero()).then(|| Instant::now() + again);
        let may_clear = MAY_CLEAR.contains(&outcome.reason.as_str());
        group.blocked = may_clear.then(|| Instant::now() + AGAIN_WHEN_CLEAR);
        match taken {
            true => (group.taken, group.missed) = (Some(outcome), None),
            false => group.missed = Some(outcome),
        }
    }

    fn wake(&self) -> Instant {
        let idle = Instant::now() + IDLE;
        let times = self.groups.values().filter_map(|group| match &group.attempt {
            Some(attempt) => Some(attempt.deadline()),
            // While something stands in the way nobody says when it is gone.
            None => group
                .due
                .map(|due| group.blocked.map_or(due, |from| due.min(from.max(Instant::now() + LOOK)))),
        });
        times.min().unwrap_or(idle).min(idle)
    }

    fn tell(&self) {
        let report = |(name, group): (&String, &Group)| GroupReport {
            name: name.clone(),
            taken: group.taken.clone(),
            missed: group.missed.clone(),
            answered: group
                .answered
                .iter()
                .map(|(request, outcome)| GroupAnswered {
                    request: request.clone(),
                    outcome: Some(outcome.clone()),
                })
                .collect(),
        };
        let now: Reports = self.groups.iter().map(report).collect();
        self.reports.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}

fn less_than_asked(outcome: GroupOutcome, asked: Consistency) -> GroupOutcome {
    if outcome.members.is_empty() || asked != Consistency::AppConsistent {
        return outcome;
    }
    let message = "points of a consistency group freeze file systems and run no hooks: databases recover from them as \
                   from a power cut";
    GroupOutcome { reason: "HooksMissing".into(), message: message.into(), ..outcome }
}
