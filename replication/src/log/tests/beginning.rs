//! What is read of a part, and where a log begins, when the store does not answer as it should.

use super::{
    super::{
        Head,
        beginning::{begins_at, first_part},
        frame,
        state::HeaderBase,
    },
    scripted::Fault,
    *,
};
use crate::{
    catalogue::{self, Points},
    env::Micros,
    log::frame::ChainKey,
    store::Refusal,
    vault::layout,
};

#[tokio::test(start_paused = true)]
async fn a_part_is_empty_at_its_end_and_not_there_behind_it() {
    let site = Site::new();
    site.written(1).await;
    let length = site.store.properties(&site.blob(name(1, 0)), None).await.unwrap().length;
    let read = async |offset| {
        part::read(&site.vault, &site.server, name(1, 0), offset, &site.patience()).await.unwrap()
    };
    assert_eq!(read(length - 1).await.map(|bytes| bytes.len()), Some(1));
    assert_eq!(read(length).await.map(|bytes| bytes.len()), Some(0));
    assert_eq!(read(length + 1).await, None);
    site.store.fails("get", Fault::Refused(Refusal::Denied));
    let refused = part::read(&site.vault, &site.server, name(1, 0), 0, &site.patience()).await.unwrap_err();
    assert!(refused.is(Refusal::Denied), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn parts_are_listed_with_their_lengths_over_all_pages() {
    let site = Site::new();
    site.written(5).await;
    let model = site.store.model.clone().list_in_pages_of(2);
    let vault = Vault { store: Arc::new(model), ..site.vault.clone() };
    let lengths = part::lengths(&vault, &site.server, &site.patience()).await.unwrap();
    assert_eq!(lengths.len(), 5);
    for (part, length) in lengths {
        assert_eq!(site.store.properties(&site.blob(part), None).await.unwrap().length, length);
    }
}

/// Another applier has deleted the part since the place in it was looked at.
#[tokio::test(start_paused = true)]
async fn a_part_that_is_deleted_meanwhile_shortens_nothing_and_a_refusal_is_told() {
    let site = Site::new();
    let floor = site.written(3).await.state().clone();
    let patience = site.patience();
    let first = first_part(&site.vault, &site.server, &floor, &patience).await.unwrap();
    assert_eq!(first, Some(name(1, 1)), "the part that the newest one continues");
    for (why, told) in [(Refusal::NotFound, false), (Refusal::Denied, true)] {
        site.store.fails("get", Fault::Passes);
        site.store.fails("get", Fault::Refused(why));
        let first = first_part(&site.vault, &site.server, &floor, &patience).await;
        match first {
            Ok(first) => assert!(first.is_none() && !told, "{why}: {first:?}"),
            Err(error) => assert!(error.is(why) && told, "{error}"),
        }
    }
}

/// Only a defect could write such a header; deleting by it would delete the part itself.
#[tokio::test(start_paused = true)]
async fn a_part_that_says_it_continues_itself_or_a_later_one_shortens_nothing() {
    for base in [name(1, 0), name(1, 1), name(2, 0)] {
        let site = Site::new();
        let (key_id, key) = site.vault.keys.current();
        let mut state = LogState { epoch: Epoch(1), ..LogState::empty(key_id.clone()) };
        let place = HeaderBase {
            epoch: Epoch(1),
            part: 0,
            base_part: Some(base),
            base_offset: 0,
            key_id: key_id.clone(),
        };
        let header = Body::Header(state.header(site.server.as_str(), place, "ps", Micros(0)));
        let chain_key = ChainKey::new(key, site.server.as_str());
        let frame = frame::encode(&chain_key, &state.chain, header).unwrap();
        let blob = site.blob(name(1, 0));
        let lease = LeaseId("maker".into());
        site.store.create_append(&blob).await.unwrap();
        site.store.acquire_lease(&blob, &lease, LogOptions::default().lease_term).await.unwrap();
        (state.offset, state.chain) = (frame.bytes.len() as u64, frame.chain);
        site.store.append(&blob, frame.bytes.into(), &lease, 0).await.unwrap();
        let patience = site.patience();
        assert!(
            super::super::head::stands(&site.vault, &site.server, &Head::of(&state), &patience)
                .await
                .unwrap()
        );
        assert_eq!(first_part(&site.vault, &site.server, &state, &patience).await.unwrap(), None, "{base}");
    }
}

/// Retention may have deleted what lies before the beginning, and nothing of the part that the log begins with.
#[tokio::test(start_paused = true)]
async fn an_end_in_the_part_that_the_log_begins_with_is_held_only_if_it_stands() {
    let site = Site::new();
    let state = site.written(3).await.state().clone();
    let points = Points { log_begins: Some(state.part_name()), ..Points::none(&site.server) };
    catalogue::write(&site.vault, &site.server, &points, None).await.unwrap();
    let holds = async |part| {
        let seen = Head { part, chain: [1; 32], ..Head::of(&state) };
        super::super::head::holds(&site.vault, &site.server, &seen, &site.patience()).await
    };
    assert!(holds(name(1, 1)).await.unwrap());
    assert!(!holds(state.part_name()).await.unwrap());
    // The catalogue is read all the same: it must not be asked when the log gave no answer.
    site.store.fails("get", Fault::Refused(Refusal::Denied));
    assert!(holds(state.part_name()).await.is_err_and(|error| error.is(Refusal::Denied)));
}

/// A takeover must not take a lost answer for a log that was never shortened.
#[tokio::test(start_paused = true)]
async fn where_the_log_begins_is_asked_again_and_then_told_as_unknown() {
    let site = Site::new();
    let patience = Patience { tries: 3, ..site.patience() };
    let begins = async || begins_at(&site.vault, &site.server, &patience).await;
    assert_eq!(begins().await.unwrap(), None);
    let points = Points { log_begins: Some(name(4, 2)), ..Points::none(&site.server) };
    catalogue::write(&site.vault, &site.server, &points, None).await.unwrap();
    let document = layout::catalogue(&site.server, "points.json");
    for lost in 0..=3 {
        for _ in 0..lost {
            site.store.fails_on("get", &document, Fault::RequestLost);
        }
        let begins = begins().await;
        assert!(site.store.all_struck(), "{lost} lost: it was asked too seldom");
        assert_eq!(begins.ok(), (lost < 3).then_some(Some(name(4, 2))), "{lost} lost");
    }
    site.store.fails_on("get", &document, Fault::Refused(Refusal::Denied));
    assert!(begins().await.is_err_and(|error| error.is(Refusal::Denied)));
}
