//! A log whose store was restored from an older copy: the writer notices, and the log is taken over anew.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::sync::Arc;

use lifeboat_replication::{
    env::Env,
    ids::ServerId,
    keys::DataKeys,
    log::{Head, LogOptions, LogWriter, Order, Patience, WriteError, head},
    store::{Refusal, model::ModelStore},
    vault::Vault,
    wire::v1::{self, log_record::Body},
};

async fn take_over(vault: &Vault, server: &ServerId) -> LogWriter {
    let options = LogOptions { rotate_after_appends: 3, ..Default::default() };
    LogWriter::take_over(vault, server, "ps", &Env::system(), Order::Forced, options).await.unwrap()
}

fn data(number: u64) -> Body {
    Body::Data(v1::Data { first_number: number, number, ..Default::default() })
}

/// The writer goes on in another part just when the store has come back without the epoch's first one. What it makes
/// then belongs to nothing, and must not keep the next writer from the log for ever.
#[tokio::test(start_paused = true)]
async fn a_part_whose_epoch_the_store_has_lost_does_not_keep_the_log_from_being_taken_over() {
    let store = ModelStore::new();
    let env = Env::system();
    let vault = Vault {
        store: Arc::new(store.clone()),
        cache: Arc::new(ModelStore::new()),
        keys: Arc::new(DataKeys::generate(&*env.entropy)),
        id: "vault".to_owned(),
    };
    let server = ServerId::from_random([7; 16]);
    take_over(&vault, &server).await.append(data(1)).await.unwrap();
    let backup = store.fork();
    let mut writer = take_over(&vault, &server).await;
    writer.append(data(2)).await.unwrap();
    writer.append(data(3)).await.unwrap();

    store.restore(&backup);
    let lost = writer.append(data(4)).await.unwrap_err();
    assert!(matches!(lost, WriteError::WentBack { .. }), "{lost}");

    let mut next = take_over(&vault, &server).await;
    assert_eq!(next.state().last_number.0, 1);
    next.append(data(2)).await.unwrap();
}

/// Random histories of appends, takeovers, rotations, copies of the store and restores of any of them: of every end of the
/// log that was ever seen, the log says truly whether it holds it.
#[tokio::test(start_paused = true)]
async fn every_end_that_was_ever_seen_is_held_exactly_as_long_as_it_is_a_part_of_the_history() {
    let (mut lost, mut held, mut restored) = (0, 0, 0);
    for seed in 1..60 {
        let mut random = Random(seed);
        let (store, env) = (ModelStore::new(), Env::system());
        let vault = Vault {
            store: Arc::new(store.clone()),
            cache: Arc::new(ModelStore::new()),
            keys: Arc::new(DataKeys::generate(&*env.entropy)),
            id: "vault".to_owned(),
        };
        let server = ServerId::from_random([7; 16]);
        let mut writer = take_over(&vault, &server).await;
        let mut history = vec![Head::of(writer.state())];
        let mut seen = history.clone();
        let mut backups = vec![(store.fork(), history.clone())];
        for _ in 0..40 {
            match random.below(10) {
                0 => backups.push((store.fork(), history.clone())),
                1 => {
                    let (backup, of_it) = &backups[random.below(backups.len() as u64) as usize];
                    store.restore(backup);
                    history.clone_from(of_it);
                    writer = take_over(&vault, &server).await;
                    restored += 1;
                }
                2 | 3 => writer = take_over(&vault, &server).await,
                _ => _ = writer.append(data(writer.state().last_number.0 + 1)).await.unwrap(),
            }
            history.push(Head::of(writer.state()));
            seen.push(Head::of(writer.state()));
            for head in &seen {
                let holds = head::holds(&vault, &server, head, &Patience::new(env.clone())).await.unwrap();
                assert_eq!(holds, history.contains(head), "seed {seed}: {head:?} of {history:#?}");
                if holds { held += 1 } else { lost += 1 }
            }
        }
    }
    assert!(lost > 1000 && held > 1000 && restored > 100, "{lost} lost, {held} held, {restored} restored");
}

/// A store that refuses for another reason says nothing about the log: else a lost container, or a lost right, would be
/// told as a vault that was put back.
#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_be_asked_is_not_taken_for_one_that_lost_the_log() {
    let env = Env::system();
    let vault = |store: ModelStore| Vault {
        store: Arc::new(store),
        cache: Arc::new(ModelStore::new()),
        keys: Arc::new(DataKeys::generate(&*env.entropy)),
        id: "vault".to_owned(),
    };
    let server = ServerId::from_random([7; 16]);
    let end = Head::of(take_over(&vault(ModelStore::new()), &server).await.state());
    let patience = Patience::new(env.clone());
    let asked = head::holds(&vault(ModelStore::without_container()), &server, &end, &patience).await;
    assert!(asked.is_err_and(|error| error.is(Refusal::NoContainer)));
    assert!(!head::holds(&vault(ModelStore::new()), &server, &end, &patience).await.unwrap());
}

/// splitmix64: a seed gives the same history in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}
