//! Holds the model store to the same promises as a real one.

use std::time::Duration;

use bytes::Bytes;
use lifeboat_replication::store::{
    BlobStore, LeaseId, PutCondition, Refusal,
    conformance::{self, random},
    model::ModelStore,
};

#[tokio::test(start_paused = true)]
async fn the_model_keeps_every_promise() {
    let store = ModelStore::new().list_in_pages_of(2);
    let failures = conformance::run(&store, "conformance").await;
    assert!(failures.is_empty(), "{failures:#?}");
}

#[tokio::test(start_paused = true)]
async fn two_models_answer_alike_and_every_kind_of_answer_is_reached() {
    let mut reached = random::Reached::new();
    for seed in 0..20 {
        let (one, other) = (ModelStore::new(), ModelStore::new().list_in_pages_of(1));
        for (answer, times) in random::compare(&one, &other, "random", seed, 500).await.unwrap() {
            *reached.entry(answer).or_default() += times;
        }
    }
    for expected in [
        "Put done",
        "Put refused: AlreadyExists",
        "Put refused: Condition",
        "Put refused: Lease",
        "Append done",
        "Append refused: Lease",
        "Append refused: Position",
        "Append refused: Sealed",
        "Append refused: Kind",
        "Seal done",
        "WritePages done",
        "WritePages refused: Condition",
        "WritePages refused: Lease",
        "ClearPages done",
        "RaiseSequence done",
        "Snapshot done",
        "Snapshot refused: Condition",
        "Snapshot refused: Lease",
        "Acquire refused: Lease",
        "Renew done",
        "Get done",
        "Get refused: Range",
        "Delete done",
    ] {
        assert!(
            reached.get(expected).copied().unwrap_or(0) > 0,
            "{expected} was never reached: {reached:#?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_difference_between_two_stores_is_found_and_named() {
    let (one, other) = (ModelStore::new(), ModelStore::new());
    other.put("random/block/1", Bytes::from_static(b"x"), &PutCondition::IfAbsent).await.unwrap();
    let found = random::compare(&one, &other, "random", 7, 500).await.unwrap_err();
    assert!(found.to_string().starts_with("seed 7, step "), "{found}");
}

#[tokio::test(start_paused = true)]
async fn without_its_container_everything_is_refused_until_it_is_made() {
    let store = ModelStore::without_container();
    let refused = store.put("x", Bytes::new(), &PutCondition::Always).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(Refusal::NoContainer), "{refused}");
    assert!(store.list("", false, None).await.unwrap_err().is(Refusal::NoContainer));
    store.ensure_container().await.unwrap();
    store.ensure_container().await.unwrap();
    store.put("x", Bytes::new(), &PutCondition::Always).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_fork_is_a_backup() {
    let store = ModelStore::new();
    let lease = LeaseId("00000000-0000-4000-8000-000000000001".to_owned());
    store.create_append("log").await.unwrap();
    store.acquire_lease("log", &lease, Duration::from_secs(60)).await.unwrap();
    let backup = store.fork();
    store.append("log", Bytes::from_static(b"later"), &lease, 0).await.unwrap();
    assert_eq!(backup.get("log", None, None).await.unwrap(), Bytes::new());
    assert_eq!(store.clone().get("log", None, None).await.unwrap(), Bytes::from_static(b"later"));
}
