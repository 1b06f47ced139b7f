//! Any order of answers, losses and time-outs.

use std::collections::{BTreeSet, VecDeque};

use super::*;

const MEMBERS: [&str; 3] = ["a", "b", "c"];

fn begin(now: Instant) -> (Attempt, Vec<Ordered>) {
    Attempt::begin("erp/1".into(), MEMBERS.map(|id| (id.to_owned(), format!("prod/{id}"))), now)
}

fn answer(state: GroupState) -> GroupAnswer {
    GroupAnswer { id: "erp/1".into(), state: state.into(), longest_freeze_micros: 7, ..Default::default() }
}

fn record(server: &str) -> GroupMember {
    GroupMember { server_id: server.into(), epoch: 1, number: 5, t0_micros: 100 }
}

fn steps(orders: &[Ordered]) -> Vec<GroupStep> {
    orders.iter().map(|(_, order)| order.step()).collect()
}

/// All members say it; what was ordered then.
fn all_say(attempt: &mut Attempt, state: GroupState, now: Instant) -> Vec<Ordered> {
    let mut orders = Vec::new();
    for server in MEMBERS {
        assert_eq!(orders, [], "not before the last has said it");
        orders = attempt.handle(Input::Answer { server, answer: &answer(state) }, now, Micros(100));
    }
    orders
}

#[tokio::test(start_paused = true)]
async fn all_stand_still_before_any_flips_and_the_point_counts_when_all_have_it() {
    let now = Instant::now();
    let (mut attempt, orders) = begin(now);
    assert_eq!(steps(&orders), [GroupStep::Prepare; 3]);
    assert_eq!(steps(&all_say(&mut attempt, GroupState::Ready, now)), [GroupStep::Freeze; 3]);
    let flips = all_say(&mut attempt, GroupState::Frozen, now);
    assert_eq!(steps(&flips), [GroupStep::Flip; 3]);
    assert!(flips.iter().all(|(_, order)| order.t0_micros == 100 && order.members == MEMBERS));
    assert_eq!(all_say(&mut attempt, GroupState::Flipped, now), []);
    for server in MEMBERS {
        assert_eq!(attempt.outcome(), None);
        attempt.handle(Input::Durable { member: record(server) }, now, Micros(100));
    }
    let taken = attempt.outcome().cloned().unwrap().unwrap();
    assert_eq!((taken.members.len(), taken.longest_freeze_micros), (3, 7));
}

#[tokio::test(start_paused = true)]
async fn one_refusal_lets_all_go_on_and_is_told_with_the_name() {
    let now = Instant::now();
    let (mut attempt, _) = begin(now);
    all_say(&mut attempt, GroupState::Ready, now);
    let refused = GroupAnswer {
        reason: "TooMuchDirty".into(),
        message: "ask at a calmer time".into(),
        ..answer(GroupState::Refused)
    };
    let orders = attempt.handle(Input::Answer { server: "b", answer: &refused }, now, Micros(1));
    assert_eq!(steps(&orders), [GroupStep::Cancel; 3]);
    let missed = attempt.outcome().cloned().unwrap().unwrap_err();
    assert_eq!(missed, Missed::new("TooMuchDirty", "prod/b: ask at a calmer time"));
    assert_eq!(all_say(&mut attempt, GroupState::Frozen, now), [], "it is over");
}

#[tokio::test(start_paused = true)]
async fn whoever_is_late_is_named_with_what_it_did_not_do() {
    let now = Instant::now();
    for (said, code) in [
        (vec![], "NotReady"),
        (vec![GroupState::Ready], "NotFrozen"),
        (vec![GroupState::Ready, GroupState::Frozen], "NotFlipped"),
        (vec![GroupState::Ready, GroupState::Frozen, GroupState::Flipped], "NotDurable"),
    ] {
        let (mut attempt, _) = begin(now);
        said.iter().for_each(|state| _ = all_say(&mut attempt, *state, now));
        let just_before = attempt.deadline() - Duration::from_millis(1);
        assert_eq!(attempt.handle(Input::Tick, just_before, Micros(1)), []);
        let orders = attempt.handle(Input::Tick, attempt.deadline(), Micros(1));
        assert_eq!(steps(&orders), [GroupStep::Cancel; 3]);
        let missed = attempt.outcome().cloned().unwrap().unwrap_err();
        assert_eq!(missed.code, code);
        assert!(missed.message.contains("prod/a, prod/b, prod/c"), "{missed:?}");
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn one_in(&mut self, limit: u64) -> bool {
        self.below(limit) == 0
    }

    fn pick<T>(&mut self, queue: &mut VecDeque<T>) -> Option<T> {
        let length = queue.len() as u64;
        if length == 0 { None } else { queue.remove(self.below(length) as usize) }
    }
}

/// What a member does: obeys, refuses, thaws by itself, says nothing.
#[derive(Default)]
struct Model {
    /// Since when by the order of events; it flips only while it stands still.
    frozen_since: Option<u64>,
    thawed_at: Option<u64>,
    flipped_at: Option<u64>,
}

/// Messages come in any order, some twice, some never; members refuse, break, and thaw by themselves. Then never is a
/// flip ordered before all stand still; whoever was told to freeze is told to flip or to go on; there is a point only
/// if all have recorded it, and then all stood still from before the instant to their flip.
#[test]
fn no_schedule_flips_early_leaves_anybody_frozen_or_invents_a_point() {
    let (mut taken, mut missed) = (0, 0);
    for seed in 0..4000 {
        let mut random = Random(seed);
        let trouble = 4 + seed % 200;
        let mut now = Instant::now();
        let (mut attempt, orders) = begin(now);
        let mut orders: VecDeque<Ordered> = orders.into();
        let mut said: VecDeque<(String, GroupAnswer)> = VecDeque::new();
        let mut durable: VecDeque<String> = VecDeque::new();
        let mut models: BTreeMap<&str, Model> = MEMBERS.iter().map(|id| (*id, Model::default())).collect();
        let (mut heard_frozen, mut told_to_go_on, mut told_to_freeze) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut instant = None;
        let mut recorded = BTreeSet::new();
        for event in 0..400u64 {
            // Somebody thaws by itself now and then.
            for model in models.values_mut() {
                if model.frozen_since.is_some() && random.one_in(trouble * 4) {
                    model.frozen_since = None;
                }
            }
            let made = match random.below(10) {
                0..4 => {
                    let Some((server, order)) = random.pick(&mut orders) else { continue };
                    let model = models.get_mut(server.as_str()).unwrap();
                    let mut say = |state| said.push_back((server.clone(), answer(state)));
                    match order.step() {
                        _ if random.one_in(trouble) => say(GroupState::Refused),
                        _ if random.one_in(trouble) => {}
                        GroupStep::Prepare => say(GroupState::Ready),
                        GroupStep::Freeze => {
                            model.frozen_since = Some(event);
                            say(GroupState::Frozen);
                        }
                        GroupStep::Flip if model.frozen_since.is_some() => {
                            (model.flipped_at, model.thawed_at) = (Some(event), model.frozen_since.take());
                            say(GroupState::Flipped);
                            durable.push_back(server.clone());
                        }
                        GroupStep::Flip => say(GroupState::Refused),
                        _ => model.frozen_since = None,
                    }
                    continue;
                }
                4..7 => {
                    let Some((server, heard)) = random.pick(&mut said) else { continue };
                    if random.one_in(trouble) {
                        said.push_back((server.clone(), heard.clone()));
                    }
                    if heard.state() == GroupState::Frozen {
                        heard_frozen.insert(server.clone());
                    }
                    attempt.handle(
                        Input::Answer { server: &server, answer: &heard },
                        now,
                        Micros(event as i64),
                    )
                }
                7 => {
                    let Some(server) = random.pick(&mut durable) else { continue };
                    recorded.insert(server.clone());
                    attempt.handle(Input::Durable { member: record(&server) }, now, Micros(event as i64))
                }
                8 if random.one_in(trouble) => {
                    let server = MEMBERS[random.below(3) as usize];
                    attempt.handle(Input::Gone { server }, now, Micros(event as i64))
                }
                _ => {
                    now += Duration::from_secs(random.below(3));
                    attempt.handle(Input::Tick, now, Micros(event as i64))
                }
            };
            for (server, order) in made {
                match order.step() {
                    GroupStep::Freeze => _ = told_to_freeze.insert(server.clone()),
                    GroupStep::Flip => {
                        assert_eq!(heard_frozen.len(), 3, "seed {seed}: flip before all stand still");
                        assert!(
                            instant.is_none_or(|known| known == order.t0_micros),
                            "seed {seed}: two instants"
                        );
                        instant = Some(order.t0_micros);
                        assert!(told_to_go_on.insert(server.clone()), "seed {seed}: told twice to flip");
                    }
                    GroupStep::Cancel => _ = told_to_go_on.insert(server.clone()),
                    _ => {}
                }
                orders.push_back((server, order));
            }
        }
        // Everything is said that will be.
        for _ in 0..8 {
            now += RECORD_LIMIT;
            for (server, order) in attempt.handle(Input::Tick, now, Micros(1000)) {
                assert_ne!(order.step(), GroupStep::Flip, "seed {seed}");
                told_to_go_on.insert(server);
            }
        }
        assert!(told_to_freeze.is_subset(&told_to_go_on), "seed {seed}: somebody was left");
        match attempt.outcome().unwrap_or_else(|| panic!("seed {seed}: no end")) {
            Err(_) => missed += 1,
            Ok(point) => {
                taken += 1;
                assert_eq!((point.members.len(), recorded.len()), (3, 3), "seed {seed}");
                let instant = instant.unwrap() as u64;
                for (server, model) in &models {
                    let (from, to) = (model.thawed_at.unwrap(), model.flipped_at.unwrap());
                    assert!(
                        from < instant && instant < to,
                        "seed {seed}: {server} {from}..{to} at {instant}"
                    );
                }
            }
        }
    }
    assert!(taken > 200 && missed > 200, "{taken} {missed}");
}
