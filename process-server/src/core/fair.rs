//! Shares what all servers want among them: uploads, the bandwidth, the cores that seal.
//!
//! In: who asks, and for how many bytes. Out: whose turn it is ([`Queue`]), or a [`Slot`], given back when dropped.
//! Bounds: so many slots and bytes at a time.
//!
//! **Order** is weighted fair queueing with equal weights: each asker's piece of work begins, in virtual time, where its
//! piece before ends (or now, if it had none), ends so many bytes later, and the one that ends first goes first. So among
//! those that always ask for more everybody gets the same number of bytes, whatever the number and size of its pieces;
//! and one that asks for little goes before all that has piled up, behind nothing but what is under way.
//! **Slots** are held for long (an upload over a slow line), so order alone is not enough: an asker that has some may
//! have no more than are left free, and a few stay free for one that comes with little. The same goes for the bytes that
//! are in memory meanwhile; whose turn it is waits for them, and nobody goes before it, or large pieces would starve.
//! **Cancellation.** Dropping a call that waits gives its place up; its work stays counted.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Where it ends in virtual time, and a number that tells equal ones apart in order of arrival.
pub type Ticket = (u64, u64);

#[derive(Debug)]
struct Piece {
    asker: String,
    bytes: u64,
    begins: u64,
}

/// Who waits. Pure.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: BTreeMap<Ticket, Piece>,
    /// Where the last pieces end of askers that are ahead of the virtual time; nothing need be known of others.
    ends: BTreeMap<String, u64>,
    /// The latest beginning of a piece that went.
    virtual_time: u64,
    asked: u64,
}

impl Queue {
    pub fn join(&mut self, asker: &str, bytes: u64) -> Ticket {
        let begins = self.ends.get(asker).copied().unwrap_or(0).max(self.virtual_time);
        // Something empty is work as well.
        let ends = begins.saturating_add(bytes.max(1));
        self.ends.insert(asker.to_owned(), ends);
        self.asked += 1;
        let ticket = (ends, self.asked);
        self.waiting.insert(ticket, Piece { asker: asker.to_owned(), bytes, begins });
        ticket
    }

    /// False: it waited no more.
    pub fn leave(&mut self, ticket: Ticket) -> bool {
        self.waiting.remove(&ticket).is_some()
    }

    /// Whose turn it is, of those that may.
    fn first(&self, may: impl Fn(&Piece) -> bool) -> Option<Ticket> {
        self.waiting.iter().find(|(_, piece)| may(piece)).map(|(ticket, _)| *ticket)
    }

    pub fn is_first(&self, ticket: Ticket) -> bool {
        self.first(|_| true) == Some(ticket)
    }

    /// It goes; who it was, and with how many bytes.
    pub fn serve(&mut self, ticket: Ticket) -> Option<(String, u64)> {
        let Piece { asker, bytes, begins } = self.waiting.remove(&ticket)?;
        self.virtual_time = self.virtual_time.max(begins);
        let now = self.virtual_time;
        self.ends.retain(|_, end| *end > now);
        Some((asker, bytes))
    }
}

#[derive(Debug)]
struct State {
    free: usize,
    free_bytes: u64,
    /// Some stay free.
    reserves: bool,
    /// Slots and bytes of each.
    held: BTreeMap<String, (usize, u64)>,
    queue: Queue,
}

impl State {
    fn next(&self) -> Option<Ticket> {
        let may = |piece: &Piece| {
            let (slots, bytes) = self.held.get(&piece.asker).copied().unwrap_or_default();
            let fair = slots + 2 <= self.free && bytes.saturating_add(piece.bytes) <= self.free_bytes;
            self.free > 0 && (slots == 0 || !self.reserves || fair)
        };
        let first = self.queue.first(may)?;
        // What is larger than all there is goes alone.
        let fits = |piece: &Piece| piece.bytes <= self.free_bytes || self.held.is_empty();
        self.queue.waiting.get(&first).is_some_and(fits).then_some(first)
    }
}

/// So many slots for all.
#[derive(Debug)]
pub struct FairSlots {
    state: Mutex<State>,
    changed: Notify,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<FairSlots>,
    asker: String,
    bytes: u64,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.slots.state();
        state.free += 1;
        state.free_bytes = state.free_bytes.saturating_add(self.bytes);
        if let Some((slots, bytes)) = state.held.get_mut(&self.asker) {
            *slots -= 1;
            *bytes = bytes.saturating_sub(self.bytes);
            if *slots == 0 {
                state.held.remove(&self.asker);
            }
        }
        drop(state);
        self.slots.changed.notify_waiters();
    }
}

/// A place in the queue, given up when it is dropped.
struct Waiting<'a> {
    slots: &'a FairSlots,
    ticket: Ticket,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.slots.state().queue.leave(self.ticket) {
            self.slots.changed.notify_waiters();
        }
    }
}

impl FairSlots {
    /// For work that is soon done: one asker alone may have all of them.
    pub fn brief(slots: usize) -> Arc<Self> {
        Self::new(slots, u64::MAX, false)
    }

    /// For work that takes long and has its bytes in memory meanwhile: some stay free for others.
    pub fn long(slots: usize, bytes: u64) -> Arc<Self> {
        Self::new(slots, bytes, true)
    }

    fn new(slots: usize, free_bytes: u64, reserves: bool) -> Arc<Self> {
        let (held, queue) = (BTreeMap::new(), Queue::default());
        let state = State { free: slots.max(1), free_bytes, reserves, held, queue };
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new() })
    }

    /// Waits for the asker's turn with so many bytes.
    pub async fn acquire(self: &Arc<Self>, asker: &str, bytes: u64) -> Slot {
        let ticket = self.state().queue.join(asker, bytes);
        let waiting = Waiting { slots: self, ticket };
        loop {
            let mut changed = pin!(self.changed.notified());
            // Listen before looking, so that a slot given back in between is not missed.
            changed.as_mut().enable();
            if let Some((asker, bytes)) = self.take(waiting.ticket) {
                return Slot { slots: Arc::clone(self), asker, bytes };
            }
            changed.await;
        }
    }

    fn take(&self, ticket: Ticket) -> Option<(String, u64)> {
        let mut state = self.state();
        if state.next() != Some(ticket) {
            return None;
        }
        let (asker, bytes) = state.queue.serve(ticket)?;
        // What goes alone may be larger than all there is; so much less is given back.
        let bytes = bytes.min(state.free_bytes);
        state.free -= 1;
        state.free_bytes -= bytes;
        let held = state.held.entry(asker.clone()).or_default();
        *held = (held.0 + 1, held.1.saturating_add(bytes));
        // There may be a slot for the next one as well.
        self.changed.notify_waiters();
        Some((asker, bytes))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::{task::yield_now, time::timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn so_many_are_under_way_and_the_next_one_waits_for_one_to_end() {
        let slots = FairSlots::brief(2);
        let first = slots.acquire("a", 1).await;
        let _second = slots.acquire("a", 1).await;
        assert!(timeout(LIMIT, slots.acquire("b", 1)).await.is_err());
        drop(first);
        assert!(timeout(LIMIT, slots.acquire("b", 1)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_given_up_holds_nobody_back() {
        let slots = FairSlots::brief(1);
        let held = slots.acquire("a", 1).await;
        let mut given_up = Box::pin(slots.acquire("a", 1));
        assert!(futures::poll!(&mut given_up).is_pending());
        let waiting = tokio::spawn({
            let slots = Arc::clone(&slots);
            async move { slots.acquire("a", 1).await }
        });
        yield_now().await;
        drop(held);
        drop(given_up);
        assert!(timeout(LIMIT, waiting).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn many_that_take_all_they_can_leave_a_slot_for_one_that_comes_later() {
        let slots = FairSlots::long(16, u64::MAX);
        let mut held = Vec::new();
        for _ in 0..16 {
            for greedy in ["a", "b", "c", "d", "e", "f"] {
                held.extend(timeout(LIMIT, slots.acquire(greedy, 1)).await);
            }
        }
        assert!(held.len() >= 12, "{}", held.len());
        assert!(timeout(LIMIT, slots.acquire("late", 1)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_bytes_are_under_way_than_there_are_and_nobody_passes_one_that_waits_for_them() {
        let slots = FairSlots::long(16, 100);
        let one = slots.acquire("one", 40).await;
        assert!(timeout(LIMIT, slots.acquire("one", 40)).await.is_err(), "no more than is left free");
        let two = timeout(LIMIT, slots.acquire("two", 50)).await.unwrap();
        let mut large = Box::pin(slots.acquire("three", 60));
        assert!(timeout(LIMIT, &mut large).await.is_err());
        // It begins in the virtual time of those before, and has more bytes: it comes after the large one.
        let mut after = Box::pin(slots.acquire("four", 70));
        assert!(timeout(LIMIT, &mut after).await.is_err());
        drop(two);
        let large = timeout(LIMIT, large).await.unwrap();
        assert!(timeout(LIMIT, &mut after).await.is_err());
        drop((one, large));
        assert!(timeout(LIMIT, after).await.is_ok());
        assert!(timeout(LIMIT, slots.acquire("five", 500)).await.is_ok(), "what is too large goes alone");
        assert_eq!(slots.state().free_bytes, 100);
    }

    #[test]
    fn who_asks_for_little_goes_before_all_that_has_piled_up() {
        let mut queue = Queue::default();
        let greedy: Vec<Ticket> = (0..10).map(|_| queue.join("greedy", 1000)).collect();
        queue.serve(greedy[0]);
        // Another one whose piece begins now, too, and that has come earlier.
        let other = queue.join("other", 1000);
        let modest = queue.join("modest", 10);
        assert!(queue.is_first(modest));
        queue.serve(modest);
        assert!(queue.is_first(other));
        queue.serve(other);
        assert!(queue.is_first(greedy[1]));
    }

    proptest! {
        /// Whoever always has something waiting is never behind another one of that kind by more than a piece of each.
        #[test]
        fn all_that_always_ask_get_the_same_bytes(
            sizes in prop::collection::vec((1_u64..5000, 1_usize..5), 2..6), turns in 10_usize..300,
        ) {
            let mut queue = Queue::default();
            let ask = |queue: &mut Queue, asker: usize| queue.join(&asker.to_string(), sizes[asker].0);
            for (asker, (_, at_once)) in sizes.iter().enumerate() {
                for _ in 0..*at_once {
                    ask(&mut queue, asker);
                }
            }
            let mut got = vec![0; sizes.len()];
            for _ in 0..turns {
                let next = queue.first(|_| true).unwrap();
                let asker: usize = queue.serve(next).unwrap().0.parse().unwrap();
                got[asker] += sizes[asker].0;
                ask(&mut queue, asker);
            }
            let largest = sizes.iter().map(|(bytes, _)| *bytes).max().unwrap();
            let (most, least) = (got.iter().max().unwrap(), got.iter().min().unwrap());
            prop_assert!(most - least <= 2 * largest, "{got:?}");
        }

        /// Nothing is kept of askers that are gone.
        #[test]
        fn it_remembers_only_who_is_ahead(askers in 1_usize..50) {
            let mut queue = Queue::default();
            for asker in 0..askers {
                for (asker, bytes) in [(asker.to_string(), 7), ("other".to_owned(), 100)] {
                    let ticket = queue.join(&asker, bytes);
                    queue.serve(ticket);
                }
            }
            prop_assert!(queue.ends.len() <= 3, "{:?}", queue.ends);
        }
    }
}
