//! Where a log ends, and what is no end but damage, a store that went back, or one that does not answer.

use super::{
    super::{ReadError, state::Illegal},
    scripted::Fault,
    *,
};
use crate::{keys::DataKeys, store::Refusal};

/// Reads to the end that there is now.
async fn to_end(reader: &mut LogReader) -> u64 {
    let mut last = 0;
    while let Some(entry) = reader.next().await.unwrap() {
        if let Body::Data(data) = entry.body {
            last = data.number;
        }
    }
    last
}

#[tokio::test(start_paused = true)]
async fn a_log_larger_than_one_read_is_read_in_order_and_whole() {
    let site = Site::new();
    let options = LogOptions { rotate_after_bytes: 10 << 20, ..LogOptions::default() };
    let mut writer = site.take_with("ps", Order::Forced, options).await.unwrap();
    for number in 1..=7 {
        writer.append(large(number)).await.unwrap();
    }
    assert_eq!(site.numbers().await, [1, 2, 3, 4, 5, 6, 7]);
    let taken = site.take("ps", Order::Forced).await.unwrap();
    assert_eq!(taken.state().last_number.0, 7);
}

/// The place of an entry is one from which reading can begin.
#[tokio::test(start_paused = true)]
async fn each_entry_says_where_it_stands() {
    let site = Site::new();
    site.written(5).await;
    let mut reader = site.reader();
    let mut numbers = Vec::new();
    while let Some(entry) = reader.next().await.unwrap() {
        let part = name(entry.epoch.0, entry.part);
        let bytes = part::read(&site.vault, &site.server, part, entry.offset, &site.patience()).await;
        let bytes = bytes.unwrap().unwrap();
        let frame = super::super::frame::RawFrame::split(&bytes).unwrap().unwrap();
        assert_eq!(frame.decode_unverified().unwrap(), entry.body);
        assert_eq!(reader.state().unwrap().offset, entry.offset + frame.len());
        numbers.push(reader.state().unwrap().last_number.0);
    }
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_reader_at_the_end_finds_what_comes_later_in_later_parts_and_epochs() {
    let site = Site::new();
    let mut reader = site.reader();
    assert_eq!(to_end(&mut reader).await, 0, "before the first part");
    reader.check_end().await.unwrap();
    let mut number = 0;
    for records in [1, 0, 4, 1, 2] {
        let mut writer = site.written(0).await;
        for _ in 0..records {
            number += 1;
            writer.append(data(number)).await.unwrap();
            assert_eq!(to_end(&mut reader).await, number);
            reader.check_end().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_without_the_key_of_its_place_names_the_key() {
    let site = Site::new();
    let state = site.written(1).await.state().clone();
    let vault = Vault { keys: Arc::new(DataKeys::generate(&*site.env.entropy)), ..site.vault.clone() };
    let error = LogReader::resume(&vault, &site.server, &site.env, state.clone()).unwrap_err();
    assert!(
        matches!(&error, ReadError::Damaged { source: Illegal::UnknownKey { key }, .. } if *key == state.key_id)
    );
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_is_cut_off_is_damage_and_not_the_end() {
    let site = Site::new();
    site.written(1).await;
    let mut reader = site.reader();
    assert_eq!(to_end(&mut reader).await, 1);
    let offset = reader.state().unwrap().offset;
    site.append_foreign(name(1, 0), b"\x20\0\0\0cut").await;
    for mut reader in [reader, site.reader()] {
        let error = loop {
            match reader.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("this is not the end"),
                Err(error) => break error,
            }
        };
        assert!(
            matches!(&error, ReadError::Damaged { part, offset: at, source: Illegal::Frame(_), .. }
                if *part == name(1, 0) && *at == offset),
            "{error}"
        );
    }
}

/// The first part of an epoch that has three bytes is not one that its maker has not begun yet.
#[tokio::test(start_paused = true)]
async fn a_header_that_is_cut_off_is_damage_and_one_that_is_missing_is_waited_for() {
    let site = Site::new();
    site.store.create_append(&site.blob(name(1, 0))).await.unwrap();
    assert_eq!(site.reader().next().await.unwrap(), None);
    site.append_foreign(name(1, 0), b"cut").await;
    let error = site.reader().next().await.unwrap_err();
    assert!(matches!(error, ReadError::Damaged { offset: 0, source: Illegal::Frame(_), .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_part_that_is_gone_or_shorter_than_what_was_read_went_back() {
    let site = Site::new();
    let mut writer = site.take("ps", Order::Forced).await.unwrap();
    writer.append(data(1)).await.unwrap();
    let backup = site.store.model.fork();
    writer.append(data(2)).await.unwrap();
    let mut reader = site.reader();
    assert_eq!(to_end(&mut reader).await, 2);
    site.store.fails("properties", Fault::Refused(Refusal::Denied));
    let refused = reader.next().await.unwrap_err();
    assert!(matches!(&refused, ReadError::Store(error) if error.is(Refusal::Denied)), "{refused}");
    assert_eq!(reader.next().await.unwrap(), None, "it can be asked again");

    site.store.model.restore(&backup);
    let error = reader.next().await.unwrap_err();
    assert!(matches!(error, ReadError::WentBack { part, .. } if part == name(1, 0)), "{error}");
    site.store.delete(&site.blob(name(1, 0)), None).await.unwrap();
    let error = reader.next().await.unwrap_err();
    assert!(matches!(error, ReadError::WentBack { part, .. } if part == name(1, 0)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_part_that_is_named_and_not_there_went_back_unless_the_store_only_refuses() {
    let site = Site::new();
    site.written(3).await;
    let second = site.blob(name(1, 1));
    let mut reader = site.reader();
    assert!(reader.next().await.unwrap().is_some());
    site.store.fails_on("get", &second, Fault::Refused(Refusal::Denied));
    let refused = reader.next().await.unwrap_err();
    assert!(matches!(&refused, ReadError::Store(error) if error.is(Refusal::Denied)), "{refused}");
    site.store.break_lease(&second).await.unwrap();
    site.store.delete(&second, None).await.unwrap();
    let error = reader.next().await.unwrap_err();
    assert!(matches!(error, ReadError::WentBack { part, offset: 0, .. } if part == name(1, 1)), "{error}");
}

/// One blob is put back to an older version of itself, of which the store knows nothing: it is not sealed, and a later
/// epoch continues what it does not hold any more.
#[tokio::test(start_paused = true)]
async fn a_part_that_was_put_back_below_a_later_epoch_is_no_end() {
    for (records, next_part) in [(1, 0), (5, 3)] {
        let site = Site::new();
        let mut writer = site.take("ps", Order::Forced).await.unwrap();
        writer.append(data(1)).await.unwrap();
        // As it was before the later epoch: the same bytes, not sealed.
        let older = site.store.model.fork();
        drop(writer);
        let mut later = site.written(0).await;
        for number in 2..=records {
            later.append(data(number)).await.unwrap();
        }
        assert_eq!(later.state().part_name(), name(2, next_part));
        put_back(&site.store.model, &site.blob(name(1, 0)), &older).await;
        let mut reader = site.reader();
        assert_eq!(to_end(&mut reader).await, 1);
        let error = reader.check_end().await.unwrap_err();
        assert!(
            matches!(&error, ReadError::Damaged { part, source: Illegal::CutOff { later }, .. }
                if *part == name(1, 0) && *later == name(2, 0)),
            "{error}"
        );
    }
}

/// A later epoch that nobody has begun, a part that was sealed meanwhile, and records that were written meanwhile.
#[tokio::test(start_paused = true)]
async fn an_end_that_has_moved_on_while_it_was_looked_at_is_no_damage() {
    let site = Site::new();
    let mut writer = site.take("ps", Order::Forced).await.unwrap();
    writer.append(data(1)).await.unwrap();
    writer.append(data(2)).await.unwrap();
    let mut reader = site.reader();
    to_end(&mut reader).await;
    site.store.create_append(&site.blob(name(2, 0))).await.unwrap();
    reader.check_end().await.expect("its maker has died, or will begin it");

    let older = site.store.model.fork();
    let next = site.take("ps", Order::Forced).await.unwrap();
    reader.check_end().await.expect("it is sealed, and continued");
    drop(next);
    assert_eq!(reader.next().await.unwrap(), None);

    // A reader that has not read all yet: what is left to read says the rest.
    put_back(&site.store.model, &site.blob(name(1, 0)), &older).await;
    let mut reader = site.reader();
    reader.next().await.unwrap();
    reader.check_end().await.expect("there is more");
    to_end(&mut reader).await;
    assert!(reader.check_end().await.is_err());
}
