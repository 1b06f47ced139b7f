//! Points of a consistency group, with a coordinator that orders, is late, or breaks.

use lifeboat_replication::wire::v1::{GroupAnswer, GroupOrder, GroupState, GroupStep, RecordKind};

use super::*;

/// What the coordinator does when this member stands still.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Then {
    #[default]
    Flip,
    FlipAfter(Duration),
    Cancel,
    Nothing,
}

#[derive(Debug, Default)]
pub(super) struct Script {
    prepare: Option<String>,
    then: Then,
    answers: Vec<GroupAnswer>,
    /// The instants that came with Flip, and whether the machine stood still.
    flips: Vec<(i64, bool)>,
}

impl Server {
    pub(super) fn prepare_group(&self) -> Option<GroupOrder> {
        let id = self.group.lock().unwrap().prepare.take()?;
        Some(order(&id, GroupStep::Prepare))
    }

    pub(super) async fn order_group(&self, answer: GroupAnswer) -> Option<GroupOrder> {
        let (id, state) = (answer.id.clone(), answer.state());
        let then = {
            let mut script = self.group.lock().unwrap();
            script.answers.push(answer);
            script.then
        };
        match (state, then) {
            (GroupState::Ready, _) => Some(order(&id, GroupStep::Freeze)),
            (GroupState::Frozen, Then::Flip | Then::FlipAfter(_)) => {
                if let Then::FlipAfter(wait) = then {
                    sleep(wait).await;
                }
                let t0_micros = self.now();
                self.group.lock().unwrap().flips.push((t0_micros, self.machine.is_frozen()));
                let members = vec!["a".to_owned(), "b".to_owned()];
                Some(GroupOrder { t0_micros, members, ..order(&id, GroupStep::Flip) })
            }
            (GroupState::Frozen, Then::Cancel) => Some(order(&id, GroupStep::Cancel)),
            _ => None,
        }
    }

    fn states(&self) -> Vec<GroupState> {
        self.group.lock().unwrap().answers.iter().map(GroupAnswer::state).collect()
    }

    fn reason(&self) -> String {
        self.group.lock().unwrap().answers.last().map(|answer| answer.reason.clone()).unwrap_or_default()
    }

    /// Records that bear a group's id.
    fn of_group(&self) -> Vec<v1::End> {
        let vault = self.vault.lock().unwrap();
        vault.ends.iter().filter(|end| end.group.is_some()).cloned().collect()
    }
}

fn order(id: &str, step: GroupStep) -> GroupOrder {
    GroupOrder { id: id.to_owned(), step: step.into(), ..GroupOrder::default() }
}

/// A server whose disks are copied, asked for the point `erp/1`.
async fn asked(then: Then) -> (World, tokio::task::JoinHandle<crate::edge::TrackError>) {
    let mut world = World::new(3, 0);
    world.server.freezes_per_hour = 10;
    let agent = world.start();
    sleep(Duration::from_secs(20)).await;
    ask(&world, "erp/1", then);
    (world, agent)
}

fn ask(world: &World, id: &str, then: Then) {
    let mut script = world.server.group.lock().unwrap();
    (script.prepare, script.then) = (Some(id.to_owned()), then);
}

/// Writes now and then, unless the machine stands still.
async fn write_for(world: &World, time: Duration) {
    let end = Instant::now() + time;
    let mut tag = 1000;
    while Instant::now() < end {
        sleep(world.random.millis(20)).await;
        if !world.machine.is_frozen() {
            tag += 1;
            let block = u32::try_from(world.random.below(16)).unwrap();
            let write = world.machine.issue((DiskSlot(1), block), tag);
            world.machine.complete(write);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_stands_still_at_the_instant_that_its_record_bears() {
    let (world, agent) = asked(Then::Flip).await;
    write_for(&world, Duration::from_secs(6)).await;
    sleep(Duration::from_secs(3)).await;
    agent.abort();
    assert_eq!(world.server.states(), [GroupState::Ready, GroupState::Frozen, GroupState::Flipped]);
    let [end] = &world.server.of_group()[..] else { panic!("{:?}", world.server.of_group()) };
    let (t0, frozen) = world.server.group.lock().unwrap().flips[0];
    assert!(frozen);
    assert_eq!((end.t0_micros, end.kind()), (t0, RecordKind::Exact));
    assert_eq!(end.consistency(), v1::Consistency::FilesystemConsistent);
    let group = end.group.clone().unwrap();
    assert_eq!((group.id.as_str(), group.members.len()), ("erp/1", 2));
    assert!(!world.machine.is_frozen());
    assert_eq!(world.check(), None);
}

#[tokio::test(start_paused = true)]
async fn whoever_is_not_told_to_flip_thaws_by_itself_and_refuses_a_late_flip() {
    for (then, states) in [
        (Then::Nothing, vec![GroupState::Ready, GroupState::Frozen, GroupState::Refused]),
        (
            Then::FlipAfter(Duration::from_secs(7)),
            vec![GroupState::Ready, GroupState::Frozen, GroupState::Refused, GroupState::Refused],
        ),
    ] {
        let (world, agent) = asked(then).await;
        let mut longest = (Duration::ZERO, None);
        for _ in 0..2000 {
            sleep(Duration::from_millis(5)).await;
            let since = world.machine.is_frozen().then(|| longest.1.unwrap_or_else(Instant::now));
            longest.1 = since;
            longest.0 = longest.0.max(since.map_or(Duration::ZERO, |since| since.elapsed()));
        }
        sleep(Duration::from_secs(10)).await;
        agent.abort();
        assert!(longest.0 < Duration::from_secs(4), "{longest:?}");
        assert_eq!((world.server.states(), world.server.reason().as_str()), (states, "FreezeExpired"));
        assert!(world.server.of_group().is_empty());
        assert_eq!(world.check(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_member_thaws_at_once_and_takes_part_in_the_next_point() {
    let (world, agent) = asked(Then::Cancel).await;
    sleep(Duration::from_secs(5)).await;
    assert!(!world.machine.is_frozen());
    assert_eq!(world.server.states(), [GroupState::Ready, GroupState::Frozen]);
    ask(&world, "erp/2", Then::Flip);
    sleep(Duration::from_secs(10)).await;
    agent.abort();
    let ids: Vec<String> =
        world.server.of_group().into_iter().filter_map(|end| end.group).map(|group| group.id).collect();
    assert_eq!(ids, ["erp/2"]);
}

#[tokio::test(start_paused = true)]
async fn a_point_of_its_own_that_is_asked_for_meanwhile_is_taken_too() {
    let (world, agent) = asked(Then::Flip).await;
    world.server.ask("own", v1::Consistency::FilesystemConsistent);
    write_for(&world, Duration::from_secs(12)).await;
    agent.abort();
    assert_eq!(world.server.of_group().len(), 1);
    let own = world.server.answer("own");
    assert_eq!((own.number > 0, own.reason.as_str()), (true, ""));
}

#[tokio::test(start_paused = true)]
async fn what_makes_a_point_impossible_is_said_before_anything_stands_still() {
    let mut world = World::new(3, 0);
    world.server.freezes_per_hour = 1;
    let agent = world.start();
    ask(&world, "erp/0", Then::Flip);
    sleep(Duration::from_secs(2)).await;
    let early = world.server.reason();
    sleep(Duration::from_secs(20)).await;
    *world.server.paused.lock().unwrap() = true;
    sleep(Duration::from_secs(3)).await;
    ask(&world, "erp/1", Then::Flip);
    sleep(Duration::from_secs(3)).await;
    let paused = world.server.reason();
    *world.server.paused.lock().unwrap() = false;
    for id in ["erp/2", "erp/3"] {
        sleep(Duration::from_secs(3)).await;
        ask(&world, id, Then::Flip);
        sleep(Duration::from_secs(10)).await;
    }
    agent.abort();
    assert_eq!(
        [early.as_str(), &paused, &world.server.reason()],
        ["CopyNotComplete", "Paused", "FreezesSpent"]
    );
    assert_eq!(world.server.of_group().len(), 1);
}

/// Freezes that fail, expire or leave something out; breaks and crashes. A record with the id was frozen at its instant
/// (checked with every record), and nothing is ever left frozen.
#[tokio::test(start_paused = true)]
async fn whatever_breaks_no_record_bears_the_id_wrongly() {
    let mut taken = 0;
    for seed in 0..40 {
        let mut world = World::new(seed, if seed % 2 == 0 { 0 } else { 60 });
        world.server.freezes_per_hour = 1000;
        world.hostile = seed % 4 > 1;
        let server = world.server.clone();
        let asking = tokio::spawn(async move {
            for number in 0..20 {
                sleep(Duration::from_secs(1)).await;
                let mut script = server.group.lock().unwrap();
                script.prepare = Some(format!("erp/{number}"));
                script.then = match number % 5 {
                    0 => Then::Cancel,
                    1 => Then::FlipAfter(Duration::from_millis(700)),
                    _ => Then::Flip,
                };
            }
        });
        let wrong = world.live(400).await;
        asking.abort();
        assert_eq!(wrong, None, "seed {seed}");
        assert!(!world.machine.is_frozen());
        let flips = world.server.group.lock().unwrap().flips.clone();
        for end in world.server.of_group() {
            assert!(flips.contains(&(end.t0_micros, true)), "seed {seed}: {end:?}");
            assert_eq!(end.consistency(), v1::Consistency::FilesystemConsistent, "seed {seed}");
            taken += 1;
        }
    }
    assert!(taken > 20, "{taken}");
}
