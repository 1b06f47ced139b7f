//! A log whose store was restored from an older copy: the writer notices, and the log is taken over anew.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::sync::Arc;

use lifeboat_replication::{
    env::Env,
    ids::ServerId,
    keys::DataKeys,
    log::{LogOptions, LogWriter, Order, WriteError},
    store::model::ModelStore,
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
