//! The limit over a model store, on a clock that does not wait.

use bytes::Bytes;
use lifeboat_replication::store::{BlobStore as _, LeaseId, PutCondition, gated::Gated, model::ModelStore};
use tokio::task::JoinSet;

use super::*;

const MIB: u64 = 1 << 20;
/// A segment of 2 MiB and its limits, 64 times smaller: the model store keeps everything.
const SEGMENT: u64 = 32 << 10;

fn throttled(limit: u64) -> (Arc<Throttle>, Arc<Gated<Throttled>>) {
    let throttle = Arc::new(Throttle::default());
    throttle.set_limit(limit);
    (Arc::clone(&throttle), Gated::new(Arc::new(ModelStore::new()), Throttled(throttle)))
}

async fn put(store: &Gated<Throttled>, name: &str, bytes: u64) {
    let content = Bytes::from(vec![7; bytes as usize]);
    store.put(name, content, &PutCondition::IfAbsent).await.unwrap();
}

/// When which server's segment of how many bytes was put.
type Done = Arc<Mutex<Vec<(Instant, String, u64)>>>;

/// Puts one segment after the other, like each of a server's upload slots; when each was put.
fn sender(
    senders: &mut JoinSet<()>,
    store: &Arc<Gated<Throttled>>,
    done: &Done,
    server: &str,
    slot: usize,
    bytes: u64,
) {
    let (store, done, server) = (Arc::clone(store), Arc::clone(done), server.to_owned());
    senders.spawn(async move {
        for number in 0.. {
            put(&store, &format!("journal/{server}/{slot}/{number}"), bytes).await;
            done.lock().unwrap().push((Instant::now(), server.clone(), bytes));
        }
    });
}

#[tokio::test(start_paused = true)]
async fn any_minute_holds_the_limit_within_five_percent_over_all_servers() {
    let limit = 2 * SEGMENT;
    let (_, store) = throttled(limit);
    let done = Done::default();
    let mut senders = JoinSet::new();
    let start = Instant::now();
    for (server, bytes) in [("a", SEGMENT), ("b", SEGMENT * 3 / 2), ("c", SEGMENT / 6)] {
        (0..4).for_each(|slot| sender(&mut senders, &store, &done, server, slot, bytes));
    }
    sleep(Duration::from_secs(300)).await;
    let done = done.lock().unwrap();
    for second in 0..240 {
        let from = start + Duration::from_secs(second);
        let minute = from..from + Duration::from_secs(60);
        let sum: u64 = done.iter().filter(|(at, ..)| minute.contains(at)).map(|(.., bytes)| bytes).sum();
        let share = sum as f64 / (60 * limit) as f64;
        assert!((0.95..=1.05).contains(&share), "the minute from second {second} holds {share}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_greedy_server_does_not_keep_others_from_their_turn() {
    let (_, store) = throttled(SEGMENT / 2);
    let done = Done::default();
    let mut senders = JoinSet::new();
    (0..4).for_each(|slot| sender(&mut senders, &store, &done, "greedy", slot, SEGMENT));
    sender(&mut senders, &store, &done, "modest", 0, SEGMENT);
    sleep(Duration::from_secs(200)).await;
    let done = done.lock().unwrap();
    let modest = done.iter().filter(|(_, server, _)| server == "modest").count();
    assert!(modest * 5 >= done.len() * 2, "{modest} of {} puts, with one slot beside four", done.len());
}

#[tokio::test(start_paused = true)]
async fn an_append_passes_the_segments_that_wait_and_counts() {
    let (throttle, store) = throttled(MIB);
    let lease = LeaseId("l".into());
    store.create_append("log").await.unwrap();
    store.acquire_lease("log", &lease, Duration::from_secs(60)).await.unwrap();
    let mut senders = JoinSet::new();
    let done = Done::default();
    (0..4).for_each(|slot| sender(&mut senders, &store, &done, "a", slot, 2 * MIB));
    sleep(Duration::from_millis(100)).await;
    let began = Instant::now();
    store.append("log", Bytes::from_static(&[1; 100]), &lease, 0).await.unwrap();
    assert!(
        began.elapsed() <= Duration::from_secs(2),
        "one segment at most goes before: {:?}",
        began.elapsed()
    );
    // The next segment begins, and is not paid for in an hour: the append goes all the same, and is owed.
    sleep(Duration::from_millis(1)).await;
    throttle.set_limit(100);
    let began = Instant::now();
    store.append("log", Bytes::from(vec![1; 1000]), &lease, 100).await.unwrap();
    assert_eq!(began.elapsed(), LONGEST_APPEND);
}

#[tokio::test(start_paused = true)]
async fn who_waits_hears_of_a_new_limit_at_once() {
    let (throttle, store) = throttled(1024);
    put(&store, "a", MIB).await;
    let waiting = tokio::spawn(async move {
        put(&store, "b", MIB).await;
        Instant::now()
    });
    sleep(Duration::from_secs(10)).await;
    assert!(!waiting.is_finished(), "a MiB takes 17 minutes");
    let opened = Instant::now();
    throttle.set_limit(0);
    assert_eq!(waiting.await.unwrap(), opened);
}

#[tokio::test(start_paused = true)]
async fn a_put_that_is_given_up_leaves_its_turn_to_the_next() {
    let (_, store) = throttled(MIB);
    put(&store, "a", 10 * MIB).await;
    let given_up = tokio::time::timeout(Duration::from_secs(1), put(&store, "b", MIB)).await;
    assert!(given_up.is_err());
    let began = Instant::now();
    put(&store, "c", MIB).await;
    assert!(began.elapsed() < Duration::from_secs(10), "nothing was paid for b: {:?}", began.elapsed());
}
