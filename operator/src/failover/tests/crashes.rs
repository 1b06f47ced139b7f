//! Random plans, random endings, and an operator that dies at random places: the result is the one without crashes.

use std::collections::BTreeMap;

use lifeboat_crds::{
    approval::Decision,
    plan::{Group, GroupServer, OnFailure, Step},
    run::{RunPhase, StepState},
};
use proptest::prelude::*;

use super::rig::{self, Crash, Ending, Rig};

#[derive(Debug, Clone)]
struct Scenario {
    groups: Vec<Group>,
    endings: Vec<Ending>,
    answers: Vec<Decision>,
    broken: Option<usize>,
}

fn any_step(index: usize) -> impl Strategy<Value = Step> {
    (0..4_u8, 0..3_u32, prop::sample::select(vec![OnFailure::Stop, OnFailure::Continue, OnFailure::Ask]))
        .prop_map(move |(kind, retries, on_failure)| {
            let name = format!("step-{index}");
            match kind {
                0 => rig::pause(&name, 1),
                1 => rig::delay(&name, 5),
                _ => rig::on_failure(rig::retried(rig::script(&name), retries), on_failure),
            }
        })
}

fn any_group(number: usize) -> impl Strategy<Value = Group> {
    let steps = move |at: usize, count: usize| {
        (0..count).map(move |i| any_step(number * 10 + at + i)).collect::<Vec<_>>()
    };
    (1..4_usize, 1..4_u32, any::<bool>(), 0..3_usize, 0..3_usize)
        .prop_flat_map(move |(servers, parallelism, chained, before, after)| {
            (Just((servers, parallelism, chained)), steps(0, before), steps(5, after))
        })
        .prop_map(move |((servers, parallelism, chained), before, after)| {
            let name = |i: usize| format!("s{number}-{i}");
            let server = |i: usize| GroupServer {
                name: name(i),
                depends_on: if chained && i > 0 { vec![name(i - 1)] } else { vec![] },
            };
            Group {
                name: format!("g{number}"),
                servers: (0..servers).map(server).collect(),
                parallelism,
                before,
                after,
            }
        })
}

fn any_scenario() -> impl Strategy<Value = Scenario> {
    let groups = (1..3_usize).prop_flat_map(|count| (0..count).map(any_group).collect::<Vec<_>>());
    let ending = prop_oneof![6 => Just(Ending::Succeeds), 2 => Just(Ending::Fails), 1 => Just(Ending::Hangs), 1 => Just(Ending::Deleted)];
    let answer = prop_oneof![Just(Decision::Retry), Just(Decision::Skip), Just(Decision::Reject)];
    (
        groups,
        prop::collection::vec(ending, 40),
        prop::collection::vec(answer, 20),
        prop::option::weighted(0.2, 0..6_usize),
    )
        .prop_map(|(groups, endings, answers, broken)| Scenario { groups, endings, answers, broken })
}

fn any_crash() -> impl Strategy<Value = Crash> {
    prop_oneof![
        3 => Just(Crash::Never),
        1 => Just(Crash::BeforePersist),
        1 => Just(Crash::Conflict),
        3 => (0..4_usize).prop_map(Crash::AfterEffects),
    ]
}

fn rig_of(scenario: &Scenario) -> Rig {
    let mut rig = Rig::new(scenario.groups.clone());
    let names: Vec<String> = scenario
        .groups
        .iter()
        .flat_map(|group| group.servers.iter().map(|server| server.name.clone()))
        .collect();
    rig.broken_machines = scenario.broken.and_then(|index| names.get(index).cloned()).into_iter().collect();
    let steps = scenario.groups.iter().flat_map(|group| group.before.iter().chain(&group.after));
    let mut endings = scenario.endings.iter().cycle();
    let mut answers = scenario.answers.iter().cycle();
    for step in steps {
        for attempt in 1..=20 {
            let decision = if step.pause.is_some() { Decision::Approve } else { *answers.next().unwrap() };
            // Asking for ever would never end.
            let decision = if attempt > 5 && step.pause.is_none() { Decision::Reject } else { decision };
            rig.answers.insert((step.name.clone(), attempt), decision);
            rig.endings.insert((step.name.clone(), attempt), *endings.next().unwrap());
        }
    }
    for name in names {
        rig.endings.insert((format!("{name}/HealthCheck"), 1), *endings.next().unwrap());
    }
    rig
}

/// Runs to the end and cleans up; the operator dies as told, the world goes on regardless.
fn run(mut rig: Rig, crashes: &[Crash]) -> Rig {
    let mut crashes = crashes.iter().copied().chain(std::iter::repeat(Crash::Never));
    for _ in 0..20_000 {
        rig.pass(crashes.next().unwrap());
        if rig.status.phase.is_some_and(RunPhase::has_ended) {
            rig.spec.clean_up = true;
        }
        if rig.status.phase == Some(RunPhase::CleanedUp) {
            return rig;
        }
        rig.second_passes();
    }
    panic!("never ends: {:#?}", rig.status);
}

fn at_most_one_of_each(rig: &Rig) -> Result<(), TestCaseError> {
    prop_assert!(rig.made.values().all(|count| *count == 1), "a Job was made twice: {:?}", rig.made);
    prop_assert!(
        rig.machines_made.values().all(|count| *count == 1),
        "a machine was made twice: {:?}",
        rig.machines_made
    );
    Ok(())
}

fn nothing_is_silent(rig: &Rig) -> Result<(), TestCaseError> {
    for step in &rig.status.steps {
        prop_assert!(step.state.has_ended(), "{} has no end: {:?}", step.name, step.state);
        if matches!(step.state, StepState::Skipped | StepState::Failed | StepState::TimedOut) {
            prop_assert!(step.message.is_some(), "{} does not say why it is {:?}", step.name, step.state);
        }
        if step.state == StepState::Completed && matches!(step.kind, lifeboat_crds::run::StepKind::Script) {
            prop_assert!(
                rig.made.contains_key(&(step.name.clone(), step.attempt)),
                "{} completed without a Job",
                step.name
            );
        }
    }
    Ok(())
}

/// A group's Jobs and machines come after all of the groups before it.
fn groups_keep_their_order(rig: &Rig, scenario: &Scenario) -> Result<(), TestCaseError> {
    let group_of: BTreeMap<String, usize> = scenario
        .groups
        .iter()
        .enumerate()
        .flat_map(|(index, group)| {
            let steps = group.before.iter().chain(&group.after).map(|step| step.name.clone());
            steps.chain(group.servers.iter().map(|server| server.name.clone())).map(move |name| (name, index))
        })
        .collect();
    let index = |line: &String| {
        let name = line.trim_start_matches("job ").trim_start_matches("machine ");
        let name = name.split(['#', '/']).next().unwrap_or_default();
        group_of.get(name).copied().unwrap_or_default()
    };
    let order: Vec<usize> = rig.journal.iter().map(index).collect();
    prop_assert!(order.is_sorted(), "{:?}", rig.journal);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn crashes_anywhere_change_nothing_in_the_result(scenario in any_scenario(), crashes in prop::collection::vec(any_crash(), 0..300)) {
        let undisturbed = run(rig_of(&scenario), &[]);
        let disturbed = run(rig_of(&scenario), &crashes);
        prop_assert_eq!(undisturbed.result(), disturbed.result());
        for rig in [&undisturbed, &disturbed] {
            at_most_one_of_each(rig)?;
            nothing_is_silent(rig)?;
            groups_keep_their_order(rig, &scenario)?;
            prop_assert!(rig.nothing_is_left(), "machines or held Jobs are left");
        }
    }

    #[test]
    fn a_cancel_at_any_moment_stops_everything_and_leaves_nothing_behind(
        scenario in any_scenario(),
        crashes in prop::collection::vec(any_crash(), 0..100),
        moment in 0..60_i64,
    ) {
        let mut rig = rig_of(&scenario);
        let end = rig.second + moment;
        let mut dying = crashes.iter().copied().chain(std::iter::repeat(Crash::Never));
        while rig.second < end {
            rig.pass(dying.next().unwrap());
            rig.second_passes();
        }
        rig.spec.cancel = true;
        let made: u32 = rig.made.values().sum();
        let rig = run(rig, &dying.take(20).collect::<Vec<_>>());
        prop_assert_eq!(made, rig.made.values().sum::<u32>(), "a Job was made after the cancel");
        at_most_one_of_each(&rig)?;
        nothing_is_silent(&rig)?;
        prop_assert!(rig.nothing_is_left(), "machines or held Jobs are left");
    }
}
