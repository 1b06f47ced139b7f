//! Who should have how many servers, and which. Pure: the same view gives the same plan.
//!
//! Every applier has a target, `servers / appliers`, and those that have most already get what is left over, so that
//! nobody gives a server away for a difference of one. The targets add up to the number of servers: when all see the
//! same, everything is taken, and nothing moves any more.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use lifeboat_replication::ids::ServerId;

/// What an applier knows when it decides.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Its own identity.
    pub own: &'a str,
    /// Servers that the vault names.
    pub wanted: &'a BTreeSet<ServerId>,
    /// Servers whose lease it holds.
    pub held: &'a BTreeSet<ServerId>,
    /// The other live appliers by identity, and what they say that they hold.
    pub others: &'a BTreeMap<String, BTreeSet<ServerId>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// To be given up.
    pub give: Vec<ServerId>,
    /// Servers that nobody says to have, in the order in which they are tried.
    pub take: Vec<ServerId>,
    /// So many of them are taken at most.
    pub room: usize,
}

pub fn plan(view: View<'_>) -> Plan {
    let View { own, wanted, held, others } = view;
    let target = target(view);
    let mut kept: Vec<&ServerId> = held.intersection(wanted).collect();
    kept.sort_by_key(|server| rank(own, server));
    let excess = kept.split_off(target.min(kept.len()));
    let give = held.difference(wanted).chain(excess).cloned().collect();
    let claimed: BTreeSet<&ServerId> = others.values().flatten().collect();
    let mut take: Vec<&ServerId> =
        wanted.iter().filter(|server| !held.contains(*server) && !claimed.contains(server)).collect();
    take.sort_by_key(|server| rank(own, server));
    let room = target - kept.len();
    Plan { give, take: if room > 0 { take.into_iter().cloned().collect() } else { Vec::new() }, room }
}

/// How many servers it should have.
fn target(view: View<'_>) -> usize {
    let count = |servers: &BTreeSet<ServerId>| servers.intersection(view.wanted).count();
    let own = (Reverse(count(view.held)), view.own);
    let before =
        view.others.iter().filter(|(id, claims)| (Reverse(count(claims)), id.as_str()) < own).count();
    let appliers = view.others.len() + 1;
    view.wanted.len() / appliers + usize::from(before < view.wanted.len() % appliers)
}

/// Each applier tries servers in an order of its own, so that two rarely try the same one. FNV-1a.
fn rank(own: &str, server: &ServerId) -> (u64, String) {
    let bytes = own.bytes().chain(server.as_str().bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash, server.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn server(number: u8) -> ServerId {
        ServerId::from_random([number; 16])
    }

    fn set(numbers: impl IntoIterator<Item = u8>) -> BTreeSet<ServerId> {
        numbers.into_iter().map(server).collect()
    }

    #[test]
    fn a_single_one_takes_everything_and_gives_nothing() {
        let (wanted, held) = (set(0..5), set([0, 1]));
        let plan = plan(View { own: "a", wanted: &wanted, held: &held, others: &BTreeMap::new() });
        assert_eq!((plan.give.len(), plan.take.len(), plan.room), (0, 3, 3));
    }

    #[test]
    fn what_the_vault_does_not_name_any_more_is_given_up() {
        let plan = plan(View { own: "a", wanted: &set([1]), held: &set([1, 2]), others: &BTreeMap::new() });
        assert_eq!(plan.give, [server(2)]);
    }

    #[test]
    fn nobody_gives_a_server_away_for_a_difference_of_one() {
        let others = BTreeMap::from([("a".to_owned(), set([3, 4]))]);
        let view = View { own: "b", wanted: &set(0..5), held: &set(0..3), others: &others };
        assert_eq!(plan(view), Plan::default());
    }

    #[test]
    fn a_newcomer_gets_its_share_and_waits_until_it_is_free() {
        let (wanted, all) = (set(0..4), set(0..4));
        let told = BTreeMap::from([("a".to_owned(), all.clone())]);
        let newcomer = plan(View { own: "b", wanted: &wanted, held: &set([]), others: &told });
        assert_eq!((newcomer.take.len(), newcomer.room), (0, 2));
        let told = BTreeMap::from([("b".to_owned(), set([]))]);
        assert_eq!(plan(View { own: "a", wanted: &wanted, held: &all, others: &told }).give.len(), 2);
    }

    /// Appliers that plan one after another, each by what the others said last; one that dies is forgotten, and its
    /// servers are free, some time later.
    struct World {
        wanted: BTreeSet<ServerId>,
        held: BTreeMap<String, BTreeSet<ServerId>>,
        said: BTreeMap<String, BTreeSet<ServerId>>,
        moves: usize,
    }

    impl World {
        fn round(&mut self, own: &str) {
            let mut others = self.said.clone();
            others.remove(own);
            let held = self.held[own].clone();
            let plan = plan(View { own, wanted: &self.wanted, held: &held, others: &others });
            let taken: BTreeSet<ServerId> = self.held.values().flatten().cloned().collect();
            let mine = self.held.get_mut(own).unwrap();
            plan.give.iter().for_each(|server| assert!(mine.remove(server)));
            let free = plan.take.iter().filter(|server| !taken.contains(server)).take(plan.room);
            let before = mine.len();
            mine.extend(free.cloned());
            self.moves += plan.give.len() + mine.len() - before;
            self.said.insert(own.to_owned(), mine.clone());
        }
    }

    proptest! {
        /// From any division, with whatever was said last, in any order: within a few rounds each server is held, by
        /// one, the numbers differ by one at most, and then nothing moves.
        #[test]
        fn comes_to_an_even_rest(
            servers in 0_u8..24,
            owners in prop::collection::vec(0_usize..6, 24),
            lies in prop::collection::vec(0_usize..6, 24),
            appliers in 1_usize..6,
            order in prop::collection::vec(0_usize..6, 60),
        ) {
            let names: Vec<String> = (0..appliers).map(|number| format!("applier-{number}")).collect();
            let divided = |owners: &[usize]| -> BTreeMap<String, BTreeSet<ServerId>> {
                let of = |number: usize| (0..servers).filter(move |server| owners[usize::from(*server)] == number);
                names.iter().cloned().enumerate().map(|(number, name)| (name, set(of(number)))).collect()
            };
            let mut world =
                World { wanted: set(0..servers), held: divided(&owners), said: divided(&lies), moves: 0 };
            for number in &order {
                world.round(&names[number % appliers]);
            }
            for _ in 0..4 {
                names.iter().for_each(|name| world.round(name));
            }
            let settled = std::mem::take(&mut world.moves);
            names.iter().for_each(|name| world.round(name));
            prop_assert_eq!(world.moves, 0, "{} moves before", settled);
            let counts: Vec<usize> = names.iter().map(|name| world.held[name].len()).collect();
            prop_assert_eq!(counts.iter().sum::<usize>(), usize::from(servers));
            prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{:?}", counts);
        }
    }
}
