//! Resolves a plan once, when its run starts: order, servers, points and targets, and the steps that follow from
//! them. What is wrong is told all at once, each thing with its remedy.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lifeboat_crds::{
    FailoverRunSpec, Time,
    check::HealthCheck,
    plan::{FailoverType, Group, GroupServer, Step},
    run::{
        Consistency, RecoveryPointChoice, RecoveryPointKind, Resolved, ResolvedPoint, ResolvedServer,
        ServerState, ServerStatus, StepKind, StepState, StepStatus,
    },
    server::Target,
};

use super::{
    own_points::{OwnPoint, OwnPoints},
    servers::{seconds, step_name},
    world::Resolution,
};

/// A server as the resolution needs it.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    pub id: String,
    pub appliance: String,
    pub consistency_group: Option<String>,
    pub target: Target,
    pub health_check: Option<HealthCheck>,
    /// Consistent points that can be recovered, in order of time; an error says why the vault did not tell them.
    pub points: Result<Vec<ResolvedPoint>, String>,
    /// The vault gave no answer, or a refusal.
    pub vault_silent: bool,
    /// T0 of the newest snapshot of the seed disks.
    pub latest_processed: Option<Time>,
    /// The vault was put back to an older moment, and nobody has acknowledged it.
    pub lost: Option<Lost>,
}

impl ServerFacts {
    /// Its points are not known yet, or there is none yet: neither needs anybody.
    pub fn is_to_come(&self) -> bool {
        self.points.as_ref().map_or(true, Vec::is_empty)
    }
}

/// What a vault that was put back does not hold any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The last record that was seen.
    pub record: u64,
    /// The newest point that was seen.
    pub point_time: Time,
}

pub(super) fn choice<'a>(spec: &'a FailoverRunSpec, name: &str) -> &'a RecoveryPointChoice {
    let own = spec.servers.iter().find(|other| other.name == name);
    own.map_or(&spec.recovery_point, |other| &other.recovery_point)
}

/// Whether the run can start, once the vault was asked for the servers' points. `sound`: plan and servers are as they must
/// be, so that what is missing may come by itself.
pub fn conclude(
    plan: Option<&[Group]>,
    sound: bool,
    servers: &BTreeMap<String, ServerFacts>,
    run: &OwnPoints<'_>,
    heard: &BTreeMap<String, OwnPoint>,
    now: Time,
) -> Resolution {
    let vault_silent = servers.values().any(|server| server.vault_silent);
    let resolved = resolve(run.spec, plan, servers);
    let awaited = run.awaited(heard);
    match resolved {
        Ok(_) if !awaited.is_empty() && run.waits(now) => Resolution::Awaiting(awaited),
        Ok(mut resolved) => {
            for server in &mut resolved.servers {
                let own = heard.get(&server.name);
                server.recovery_point_note = run.note(&server.name, own, &server.recovery_point);
                server.complete_until = run.complete_until(&server.name, own, &server.recovery_point);
            }
            Resolution::Ready(Box::new(resolved))
        }
        Err(problems) if sound && servers.values().any(ServerFacts::is_to_come) => {
            Resolution::NotYet { problems, vault_silent }
        }
        Err(problems) => Resolution::Problems(problems),
    }
}

/// Clocks of people and of the API server may differ by this much.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);

/// Refuses instants that lie after the run was made: the newest point at or before them does not exist yet, and taking
/// what is there, or starting by itself when the hour has come, is not what was asked for. Nothing has to be looked up for
/// it.
pub fn refuse(spec: &FailoverRunSpec, created: Time) -> Option<Resolution> {
    let limit = created.checked_add(CLOCKS_DIFFER).unwrap_or(created);
    let of_servers = spec.servers.iter().map(|server| {
        (format!("spec.servers[{}].recoveryPoint.time", server.name), server.recovery_point.time)
    });
    let all = std::iter::once(("spec.recoveryPoint.time".to_owned(), spec.recovery_point.time));
    let told = |(field, time): (String, Option<Time>)| {
        let time = time.filter(|time| *time > limit)?;
        Some(format!("{field} is {time}, after this run was made ({created})"))
    };
    let late: Vec<String> = all.chain(of_servers).filter_map(told).collect();
    (!late.is_empty()).then(|| {
        Resolution::Refused(format!(
            "{}: start another run with an instant that has passed, in UTC (Z) or with its offset (+01:00), or with kind \
             Latest",
            late.join("; ")
        ))
    })
}

/// What the run will execute, or everything that stands in its way.
pub fn resolve(
    spec: &FailoverRunSpec,
    plan: Option<&[Group]>,
    servers: &BTreeMap<String, ServerFacts>,
) -> Result<Resolved, Vec<String>> {
    let groups = match (plan, &spec.server_ref) {
        (Some(groups), _) => groups.to_vec(),
        (None, Some(server)) => vec![single(&server.name)],
        (None, None) => return Err(vec!["the run names neither a plan nor a server".to_owned()]),
    };
    let mut problems = check_plan(&groups);
    let mut resolved = Vec::new();
    let names: Vec<&String> =
        groups.iter().flat_map(|group| &group.servers).map(|server| &server.name).collect();
    let common = CommonPoints::find(spec, &names, servers);
    problems.extend(common.problems.iter().cloned());
    for name in names {
        if common.without.contains(name) {
            continue;
        }
        match resolve_server(spec, name, servers.get(name), common.points.get(name)) {
            Ok(server) => resolved.push(server),
            Err(problem) => problems.push(problem),
        }
    }
    for other in &spec.servers {
        if !resolved.iter().any(|server| server.name == other.name) && servers.contains_key(&other.name) {
            problems
                .push(format!("spec.servers names {}, which is not in the plan: leave it out", other.name));
        }
    }
    if problems.is_empty() { Ok(Resolved { groups, servers: resolved }) } else { Err(problems) }
}

/// A server and its points.
type Member<'a> = (&'a String, &'a Vec<ResolvedPoint>);

/// Points that the members of consistency groups have in common, as far as they are wanted.
#[derive(Debug, Default)]
struct CommonPoints {
    /// By server.
    points: BTreeMap<String, ResolvedPoint>,
    /// Members that have none in common with the others, and what to do.
    without: BTreeSet<String>,
    problems: Vec<String>,
}

impl CommonPoints {
    fn find(spec: &FailoverRunSpec, names: &[&String], servers: &BTreeMap<String, ServerFacts>) -> Self {
        // By appliance and group: each appliance takes the points of its own servers.
        let mut members: BTreeMap<(&str, &str), Vec<Member<'_>>> = BTreeMap::new();
        let mut unknown = BTreeSet::new();
        let wanting = names.iter().filter(|name| choice(spec, name).kind == RecoveryPointKind::LatestGroup);
        for (name, facts) in wanting.filter_map(|name| Some((*name, servers.get(*name)?))) {
            let Some(group) = facts.consistency_group.as_deref() else { continue };
            let key = (facts.appliance.as_str(), group);
            match &facts.points {
                Ok(points) => members.entry(key).or_default().push((name, points)),
                // Told for that server; about the others nothing can be said.
                Err(_) => _ = unknown.insert(key),
            }
        }
        let mut found = Self::default();
        for ((appliance, group), members) in members {
            if unknown.contains(&(appliance, group)) {
                found.without.extend(members.iter().map(|(name, _)| (*name).clone()));
                continue;
            }
            match newest_common(&members) {
                Some(points) => found.points.extend(points),
                None => {
                    let names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
                    found.without.extend(names.iter().map(|name| (*name).to_owned()));
                    found.problems.push(format!(
                        "servers {} of consistency group {group} have no point in common: ask for one with `kubectl \
                         lifeboat point {}`, or choose Latest, which gives each of them its own newest point",
                        names.join(", "),
                        names.first().unwrap_or(&"SERVER")
                    ));
                }
            }
        }
        found
    }
}

/// The newest point of which every one of these has its part.
fn newest_common(members: &[Member<'_>]) -> Option<Vec<(String, ResolvedPoint)>> {
    let part = |points: &Vec<ResolvedPoint>, id: &str| {
        points.iter().find(|point| point.group_point.as_deref() == Some(id)).cloned()
    };
    let (_, first) = members.first()?;
    let newest_first = {
        let mut own: Vec<&ResolvedPoint> = first.iter().filter(|point| point.group_point.is_some()).collect();
        own.sort_by_key(|point| std::cmp::Reverse(point.time));
        own
    };
    newest_first.into_iter().filter_map(|point| point.group_point.as_deref()).find_map(|id| {
        members.iter().map(|(name, points)| Some(((*name).clone(), part(points, id)?))).collect()
    })
}

fn single(server: &str) -> Group {
    let server = GroupServer { name: server.to_owned(), depends_on: Vec::new() };
    Group {
        name: "server".to_owned(),
        servers: vec![server],
        parallelism: 1,
        before: Vec::new(),
        after: Vec::new(),
    }
}

fn resolve_server(
    spec: &FailoverRunSpec,
    name: &str,
    facts: Option<&ServerFacts>,
    common: Option<&ResolvedPoint>,
) -> Result<ResolvedServer, String> {
    let facts = facts.ok_or_else(|| {
        format!("server {name} does not exist: create ProtectedServer {name}, or take it out of the plan")
    })?;
    let points = facts.points.as_ref().map_err(|why| format!("server {name}: {why}"))?;
    let choice = choice(spec, name);
    let point = common.or_else(|| choose(choice, points, facts.latest_processed));
    if let Some(lost) = &facts.lost
        && let Some(refused) = silently_older(name, choice, point, points, lost)
    {
        return Err(refused);
    }
    let point = point.ok_or_else(|| no_point(name, choice, points))?;
    Ok(ResolvedServer {
        name: name.to_owned(),
        id: facts.id.clone(),
        appliance: facts.appliance.clone(),
        recovery_point: point.clone(),
        recovery_point_note: None,
        complete_until: None,
        target: facts.target.clone(),
        health_check: facts.health_check.clone(),
    })
}

/// The newest point that the choice allows.
fn choose<'a>(
    choice: &RecoveryPointChoice,
    points: &'a [ResolvedPoint],
    processed: Option<Time>,
) -> Option<&'a ResolvedPoint> {
    let latest_until =
        |limit: Time| points.iter().filter(|point| point.time <= limit).max_by_key(|point| point.time);
    let latest_of = |enough: &[Consistency]| {
        points.iter().filter(|point| enough.contains(&point.consistency)).max_by_key(|point| point.time)
    };
    match choice.kind {
        // Every point is at least crash-consistent; which one is newest decides, not how it was reached.
        RecoveryPointKind::Latest
        | RecoveryPointKind::LatestCrashConsistent
        // Of a server that is in no group.
        | RecoveryPointKind::LatestGroup => latest_until(Time::MAX),
        RecoveryPointKind::LatestFilesystemConsistent => {
            latest_of(&[Consistency::FilesystemConsistent, Consistency::AppConsistent])
        }
        RecoveryPointKind::LatestAppConsistent => latest_of(&[Consistency::AppConsistent]),
        RecoveryPointKind::LatestProcessed => latest_until(processed?),
        RecoveryPointKind::At => latest_until(choice.time?),
    }
}

/// Why the chosen point must not be taken without asking: it is from before what the vault has lost, and a better one may
/// have been lost. Whoever names the instant itself knows what he gets.
fn silently_older(
    name: &str,
    choice: &RecoveryPointChoice,
    point: Option<&ResolvedPoint>,
    points: &[ResolvedPoint],
    lost: &Lost,
) -> Option<String> {
    let Lost { record, point_time } = lost;
    let had = format!(
        "server {name}: the vault was put back to an older moment: it had a point of {point_time} (up to record {record})"
    );
    let before = points.iter().filter(|point| point.time <= *point_time).max_by_key(|point| point.time);
    let wait = "wait until replication has made a newer point, or have the store's newer state restored";
    let Some(before) = before else {
        // What there is, if anything, was made since.
        return point.is_none().then(|| format!("{had}, and holds none of that time any more: {wait}"));
    };
    let limit = match choice.kind {
        RecoveryPointKind::At => choice.time.unwrap_or(Time::MAX),
        _ => Time::MAX,
    };
    // Without one the run is refused anyway.
    let taken = point?;
    if before.time == *point_time || taken.time > before.time || limit <= before.time {
        return None;
    }
    Some(format!(
        "{had}, and the newest of that time that it holds now is {} (record {}). This run would take {} (record {}): {wait}; \
         to accept it, start another run with recoveryPoint {{kind: At, time: \"{}\"}}",
        before.time, before.record, taken.time, taken.record, taken.time
    ))
}

fn no_point(name: &str, choice: &RecoveryPointChoice, points: &[ResolvedPoint]) -> String {
    match points.first() {
        None => {
            format!("server {name} has no recovery point yet: wait until its initial replication is complete")
        }
        Some(first) if choice.kind == RecoveryPointKind::At => {
            format!(
                "server {name} has no recovery point at or before that time: its oldest is {}",
                first.time
            )
        }
        Some(_) if choice.kind == RecoveryPointKind::LatestAppConsistent => format!(
            "server {name} has no application-consistent point: set appConsistent in its ReplicationPolicy and hooks on \
             the server, ask for one with `kubectl lifeboat point {name} --consistency AppConsistent`, or choose Latest"
        ),
        Some(_) if choice.kind == RecoveryPointKind::LatestFilesystemConsistent => format!(
            "server {name} has no point of frozen file systems: ask for one with `kubectl lifeboat point {name} \
             --consistency FilesystemConsistent`, or choose Latest"
        ),
        Some(_) => format!(
            "server {name} has no snapshot of its seed disks yet: choose Latest, or wait for the applier"
        ),
    }
}

/// Rules over a whole plan that the API server cannot check.
pub fn check_plan(groups: &[Group]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut servers = BTreeSet::new();
    let mut steps = BTreeSet::new();
    for group in groups {
        for server in &group.servers {
            if !servers.insert(server.name.as_str()) {
                problems.push(format!(
                    "server {} is named twice: a server is in one group of a plan",
                    server.name
                ));
            }
        }
        problems.extend(check_dependencies(group));
        for step in group.before.iter().chain(&group.after) {
            if !steps.insert(step.name.as_str()) {
                problems.push(format!(
                    "step {} is named twice: names of steps are unique in the plan",
                    step.name
                ));
            }
        }
        problems.extend(group.before.iter().filter_map(|step| check_target(step, &servers, group, true)));
        problems.extend(group.after.iter().filter_map(|step| check_target(step, &servers, group, false)));
    }
    problems
}

/// A check can only ask a server that is up by then.
fn check_target(step: &Step, so_far: &BTreeSet<&str>, group: &Group, before: bool) -> Option<String> {
    let server = &step.check.as_ref()?.server;
    let own_group = group.servers.iter().any(|known| &known.name == server);
    if so_far.contains(server.as_str()) && !(before && own_group) {
        return None;
    }
    Some(format!(
        "step {} checks server {server}, which is not up by then: name a server of this or an earlier group, and put the step after it",
        step.name
    ))
}

fn check_dependencies(group: &Group) -> Vec<String> {
    let members: BTreeSet<&str> = group.servers.iter().map(|server| server.name.as_str()).collect();
    let unknown = group.servers.iter().flat_map(|server| {
        let members = &members;
        server
            .depends_on
            .iter()
            .filter(move |name| !members.contains(name.as_str()))
            .map(move |name| (server, name))
    });
    let mut problems: Vec<String> = unknown
        .map(|(server, name)| format!("server {} depends on {name}, which is not in group {}: groups run in order, so put it there or leave it out", server.name, group.name))
        .collect();
    // Take away whoever waits for nobody; what is left stands in a circle.
    let mut left: Vec<&GroupServer> = group.servers.iter().collect();
    loop {
        let waiting: BTreeSet<&str> = left.iter().map(|server| server.name.as_str()).collect();
        let next: Vec<&GroupServer> = left
            .iter()
            .copied()
            .filter(|server| server.depends_on.iter().any(|name| waiting.contains(name.as_str())))
            .collect();
        if next.len() == left.len() {
            break;
        }
        left = next;
    }
    if !left.is_empty() {
        let names: Vec<&str> = left.iter().map(|server| server.name.as_str()).collect();
        problems.push(format!("servers {} depend on each other in a circle: break it", names.join(", ")));
    }
    problems
}

/// SHA-256 of what is executed.
pub fn hash(resolved: &Resolved) -> String {
    // A struct of maps with string keys cannot fail to become JSON; an empty text would only make the hash useless.
    let text = serde_json::to_vec(resolved).unwrap_or_default();
    hex::encode(ring::digest::digest(&ring::digest::SHA256, &text))
}

/// Every step that the run will go through, in order.
pub fn steps(resolved: &Resolved, kind: FailoverType) -> Vec<StepStatus> {
    let mut steps = Vec::new();
    for group in &resolved.groups {
        steps.extend(group.before.iter().map(|step| plan_step(group, step, kind)));
        for server in &group.servers {
            let checked = resolved
                .servers
                .iter()
                .any(|known| known.name == server.name && known.health_check.is_some());
            let kinds = [
                StepKind::CreateMachine,
                StepKind::PrepareDisks,
                StepKind::StartMachine,
                StepKind::HealthCheck,
            ];
            for kind in kinds.into_iter().filter(|kind| checked || *kind != StepKind::HealthCheck) {
                steps.push(new_step(step_name(&server.name, kind), kind, group, Some(&server.name)));
            }
        }
        steps.extend(group.after.iter().map(|step| plan_step(group, step, kind)));
    }
    steps
}

fn plan_step(group: &Group, step: &Step, run: FailoverType) -> StepStatus {
    let kind = match (&step.script, &step.check, &step.pause) {
        (Some(_), _, _) => StepKind::Script,
        (_, Some(_), _) => StepKind::Check,
        (_, _, Some(_)) => StepKind::Pause,
        (None, None, None) => StepKind::Delay,
    };
    let mut status = new_step(step.name.clone(), kind, group, step.check.as_ref().map(|check| &check.server));
    if !step.applies_to(run) {
        status.state = StepState::Skipped;
        status.message = Some(format!("not done in runs of type {run:?}"));
    }
    status
}

fn new_step(name: String, kind: StepKind, group: &Group, server: Option<&String>) -> StepStatus {
    StepStatus {
        name,
        kind,
        group: Some(group.name.clone()),
        server: server.cloned(),
        state: StepState::NotStarted,
        attempt: 0,
        started_at: None,
        finished_at: None,
        not_before: None,
        object: None,
        message: None,
        answers: Vec::new(),
    }
}

pub(super) fn server_statuses(resolved: &Resolved, now: Time) -> Vec<ServerStatus> {
    let status = |server: &ResolvedServer| ServerStatus {
        name: server.name.clone(),
        state: ServerState::NotStarted,
        recovery_point: Some(server.recovery_point.clone()),
        recovery_point_note: server.recovery_point_note.as_deref().map(super::report::bounded),
        rpo_seconds: Some(seconds(
            now.duration_since(server.complete_until.unwrap_or(server.recovery_point.time)),
        )),
        rto_seconds: None,
        target: None,
        addresses: Vec::new(),
    };
    resolved.servers.iter().map(status).collect()
}
