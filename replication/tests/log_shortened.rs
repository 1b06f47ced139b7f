//! A log whose first parts are gone: what still finds its way, and what says that it does not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::{sync::Arc, time::Duration};

use lifeboat_replication::{
    catalogue::{self, Points},
    env::Env,
    ids::ServerId,
    keys::DataKeys,
    log::{
        Head, LogOptions, LogReader, LogState, LogWriter, Order, PartName, Patience, ReadError,
        TakeOverError, beginning, head, part,
    },
    store::model::ModelStore,
    vault::Vault,
    wire::v1::{self, log_record::Body},
};

struct Site {
    vault: Vault,
    server: ServerId,
    env: Env,
}

impl Site {
    fn new() -> Self {
        let env = Env::system();
        let vault = Vault {
            store: Arc::new(ModelStore::new()),
            cache: Arc::new(ModelStore::new()),
            keys: Arc::new(DataKeys::generate(&*env.entropy)),
            id: "vault".to_owned(),
        };
        Self { vault, server: ServerId::from_random([7; 16]), env }
    }

    fn patience(&self) -> Patience {
        Patience::new(self.env.clone())
    }

    async fn try_take_over(&self) -> Result<LogWriter, TakeOverError> {
        let options = LogOptions { rotate_after_appends: 3, ..Default::default() };
        LogWriter::take_over(&self.vault, &self.server, "ps", &self.env, Order::Forced, options).await
    }

    /// So many records by several writers, and the log's state after each.
    async fn write(&self, records: u64) -> Vec<LogState> {
        let mut states = Vec::new();
        let mut writer = self.try_take_over().await.unwrap();
        for number in 1..=records {
            if number % 10 == 0 {
                writer = self.try_take_over().await.unwrap();
            }
            writer.append(data(number)).await.unwrap();
            states.push(writer.state().clone());
        }
        states
    }

    async fn parts(&self) -> Vec<PartName> {
        part::list(&self.vault, &self.server, &self.patience()).await.unwrap()
    }

    async fn delete(&self, part: PartName) {
        self.vault.store.break_lease(&part.blob(&self.server)).await.unwrap();
        self.vault.store.delete(&part.blob(&self.server), None).await.unwrap();
    }

    async fn first_part(&self, floor: &LogState) -> Option<PartName> {
        beginning::first_part(&self.vault, &self.server, floor, &self.patience()).await.unwrap()
    }

    async fn catalogue_says(&self, log_begins: PartName) {
        let points = Points { log_begins: Some(log_begins), ..Points::none(&self.server) };
        catalogue::write(&self.vault, &self.server, &points, None).await.unwrap();
    }

    async fn read_from(&self, state: &LogState) -> Result<LogState, ReadError> {
        let mut reader = LogReader::resume(&self.vault, &self.server, &self.env, state.clone()).unwrap();
        while reader.next().await?.is_some() {}
        Ok(reader.state().unwrap().clone())
    }
}

fn data(number: u64) -> Body {
    Body::Data(v1::Data { first_number: number, number, ..Default::default() })
}

/// Whatever the floor, and however many of the parts before it are gone: readers go on from the floor to the end, and a
/// takeover finds the end.
#[tokio::test(start_paused = true)]
async fn what_stands_from_the_first_part_on_is_enough_for_readers_and_takeovers() {
    let mut deleted = 0;
    for floor in 0..35 {
        let site = Site::new();
        let states = site.write(35).await;
        let (floor, last) = (&states[floor], states.last().unwrap());
        let first = site.first_part(floor).await.unwrap();
        assert!(first <= floor.part_name());
        for part in site.parts().await.into_iter().filter(|part| *part < first) {
            site.delete(part).await;
            deleted += 1;
            assert_eq!(site.read_from(floor).await.unwrap().chain, last.chain);
        }
        let mut writer = site.try_take_over().await.unwrap();
        assert_eq!(writer.state().last_number, last.last_number, "floor {}", floor.last_number);
        writer.append(data(36)).await.unwrap();
        assert_eq!(site.read_from(floor).await.unwrap().last_number.0, 36);
    }
    assert!(deleted > 100, "{deleted}");
}

#[tokio::test(start_paused = true)]
async fn a_place_that_the_log_does_not_hold_shortens_nothing() {
    let site = Site::new();
    let states = site.write(20).await;
    let other = LogState { chain: [1; 32], ..states[15].clone() };
    assert_eq!(site.first_part(&other).await, None);
    let gone = LogState { part: 77, ..states[15].clone() };
    assert_eq!(site.first_part(&gone).await, None);
    assert!(site.first_part(&states[15]).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn an_end_that_was_seen_in_a_deleted_part_is_held_if_the_catalogue_says_that_the_log_begins_later() {
    let site = Site::new();
    let states = site.write(20).await;
    let first = site.first_part(&states[15]).await.unwrap();
    for part in site.parts().await.into_iter().filter(|part| *part < first) {
        site.delete(part).await;
    }
    let holds = async |state: &LogState| {
        head::holds(&site.vault, &site.server, &Head::of(state), &site.patience()).await.unwrap()
    };
    assert!(!holds(&states[0]).await, "nothing says that it may be gone");
    site.catalogue_says(first).await;
    assert!(holds(&states[0]).await);
    assert!(holds(&states[19]).await);
    let never = LogState { chain: [1; 32], ..states[19].clone() };
    assert!(!holds(&never).await, "a part that must be there does not hold it");
}

/// Parts that must be there are not: no epoch is opened that continues nothing, and a reader does not say "empty".
#[tokio::test(start_paused = true)]
async fn a_log_without_the_part_it_begins_with_is_not_taken_for_an_empty_one() {
    let site = Site::new();
    let mut writer = site.try_take_over().await.unwrap();
    for number in 1..=9 {
        writer.append(data(number)).await.unwrap();
    }
    drop(writer);
    let parts = site.parts().await;
    let (last, before) = parts.split_last().unwrap();
    site.catalogue_says(*before.last().unwrap()).await;
    for part in before {
        site.delete(*part).await;
    }
    let error = site.try_take_over().await.unwrap_err();
    assert!(matches!(error, TakeOverError::Damaged { .. }), "{error}");
    assert_eq!(site.parts().await, [*last]);
    let error = LogReader::from_start(&site.vault, &site.server, &site.env).next().await.unwrap_err();
    assert!(matches!(error, ReadError::Shortened { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_part_ends_by_its_appends_its_bytes_or_its_age_if_it_is_worth_it() {
    let part_after = async |options: LogOptions, records: u64, pause: Duration| {
        let site = Site::new();
        let taken =
            LogWriter::take_over(&site.vault, &site.server, "ps", &site.env, Order::Forced, options).await;
        let mut writer = taken.unwrap();
        for number in 1..=records {
            writer.append(data(number)).await.unwrap();
            tokio::time::sleep(pause).await;
        }
        writer.state().part
    };
    let never = LogOptions {
        rotate_after_appends: u32::MAX,
        rotate_after_bytes: u64::MAX,
        rotate_after: Duration::MAX,
        worth_bytes: 0,
        lease_term: Duration::from_secs(30),
        planted: None,
    };
    let (hour, second) = (Duration::from_secs(3600), Duration::from_secs(1));
    assert_eq!(part_after(never.clone(), 20, hour).await, 0);
    assert!(part_after(LogOptions { rotate_after_appends: 5, ..never.clone() }, 20, second).await > 0);
    assert!(part_after(LogOptions { rotate_after_bytes: 500, ..never.clone() }, 20, second).await > 0);
    let by_age = LogOptions { rotate_after: hour * 6, ..never };
    assert_eq!(part_after(by_age.clone(), 20, second).await, 0);
    assert!(part_after(by_age.clone(), 20, hour).await > 0);
    assert_eq!(part_after(LogOptions { worth_bytes: 1 << 20, ..by_age }, 20, hour).await, 0);
}
