//! What is kept in the control words beside the marks: the durable mark, why everything is copied again, and the last
//! request for a resynchronization.
//!
//! In pinned memory and not in a file: a file on a protected disk would make that disk dirty with each record that
//! becomes durable, and an idle server would never become clean. It lives and dies with the held marks.
//!
//! Durable mark, 16 words: sequence, number, epoch | chain length << 32, chain (8 words), checksum (CRC-32C of the
//! eleven words before). The two places are written in turn, so that a torn write leaves the older one.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use lifeboat_replication::wire::v1;

use super::layout::{CONTROL_DURABLE, CONTROL_REASON, CONTROL_REQUEST, CONTROL_SENT};

const CHAIN_WORDS: usize = 8;
const RECORD_WORDS: usize = 3 + CHAIN_WORDS;

fn load(control: &[AtomicU64], range: Range<usize>) -> Vec<u64> {
    control.get(range).unwrap_or_default().iter().map(|word| word.load(SeqCst)).collect()
}

fn store(control: &[AtomicU64], start: usize, words: &[u64]) {
    for (place, word) in control.iter().skip(start).zip(words) {
        place.store(*word, SeqCst);
    }
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn words_from(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks(8)
        .map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        })
        .collect()
}

/// The valid record with the highest sequence, and the place it is in.
fn newest(control: &[AtomicU64]) -> Option<(usize, u64, v1::DurableMark)> {
    let valid = CONTROL_DURABLE.into_iter().enumerate().filter_map(|(place, range)| {
        let words = load(control, range);
        let (record, checksum) = (words.get(..RECORD_WORDS)?, *words.get(RECORD_WORDS)?);
        let (sequence, number, packed) = (record[0], record[1], record[2]);
        if sequence == 0 || checksum != u64::from(crc32c::crc32c(&bytes_of(record))) {
            return None;
        }
        let chain = bytes_of(&record[3..]).get(..(packed >> 32) as usize)?.to_vec();
        Some((place, sequence, v1::DurableMark { number, epoch: packed as u32, chain }))
    });
    valid.max_by_key(|(_, sequence, _)| *sequence)
}

pub(super) fn durable_mark(control: &[AtomicU64]) -> Option<v1::DurableMark> {
    newest(control).map(|(_, _, mark)| mark)
}

/// False when the chain value is longer than the place for it: nothing was changed.
#[must_use]
pub(super) fn set_durable_mark(control: &[AtomicU64], mark: &v1::DurableMark) -> bool {
    if mark.chain.len() > CHAIN_WORDS * 8 {
        return false;
    }
    let (place, sequence) = newest(control).map_or((0, 1), |(place, sequence, _)| (1 - place, sequence + 1));
    let mut record = vec![sequence, mark.number, u64::from(mark.epoch) | (mark.chain.len() as u64) << 32];
    record.extend(words_from(&mark.chain));
    record.resize(RECORD_WORDS, 0);
    record.push(crc32c::crc32c(&bytes_of(&record)).into());
    store(control, CONTROL_DURABLE[place].start, &record);
    true
}

/// The highest record that was begun.
pub(super) fn sent(control: &[AtomicU64]) -> Option<u64> {
    control.get(CONTROL_SENT)?.load(SeqCst).checked_sub(1)
}

pub(super) fn set_sent(control: &[AtomicU64], number: u64) {
    if let Some(word) = control.get(CONTROL_SENT) {
        word.store(number.saturating_add(1), SeqCst);
    }
}

/// Empty for the first copy.
pub(super) fn reason(control: &[AtomicU64]) -> Option<String> {
    text(control, CONTROL_REASON).filter(|reason| !reason.is_empty())
}

/// Cuts a text that is longer than the place for it.
pub(super) fn set_reason(control: &[AtomicU64], reason: &str) {
    set_text(control, CONTROL_REASON, reason);
}

/// `None`: none was ever heard.
pub(super) fn request(control: &[AtomicU64]) -> Option<String> {
    text(control, CONTROL_REQUEST)
}

pub(super) fn set_request(control: &[AtomicU64], request: &str) {
    set_text(control, CONTROL_REQUEST, request);
}

/// The first word is the length and one more, so that an empty text is told from none.
fn text(control: &[AtomicU64], place: Range<usize>) -> Option<String> {
    let words = load(control, place);
    let (length, text) = words.split_first()?;
    let text = bytes_of(text);
    let text = text.get(..usize::try_from(length.checked_sub(1)?).ok()?)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

fn set_text(control: &[AtomicU64], place: Range<usize>, text: &str) {
    let mut end = text.len().min((place.len() - 1) * 8);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = text.as_bytes().split_at(end).0;
    store(control, place.start, &[0]);
    store(control, place.start + 1, &words_from(text));
    store(control, place.start, &[text.len() as u64 + 1]);
}

#[cfg(test)]
mod tests {
    use super::{super::layout::CONTROL_WORDS, *};

    fn control() -> Vec<AtomicU64> {
        (0..CONTROL_WORDS).map(|_| AtomicU64::new(0)).collect()
    }

    fn mark(number: u64) -> v1::DurableMark {
        v1::DurableMark { number, epoch: 3, chain: vec![number as u8; 32] }
    }

    #[test]
    fn the_last_durable_mark_is_found_again() {
        let control = control();
        assert_eq!(durable_mark(&control), None);
        for number in 1..5 {
            assert!(set_durable_mark(&control, &mark(number)));
            assert_eq!(durable_mark(&control), Some(mark(number)));
        }
    }

    #[test]
    fn a_torn_write_leaves_the_mark_before() {
        let control = control();
        assert!(set_durable_mark(&control, &mark(1)) && set_durable_mark(&control, &mark(2)));
        control[CONTROL_DURABLE[1].start + 5].fetch_xor(1, SeqCst);
        assert_eq!(durable_mark(&control), Some(mark(1)));
    }

    #[test]
    fn an_empty_request_is_told_from_none() {
        let control = control();
        assert_eq!(request(&control), None);
        set_request(&control, "");
        assert_eq!(request(&control), Some(String::new()));
        set_request(&control, "1");
        assert_eq!(request(&control).as_deref(), Some("1"));
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let control = control();
        set_reason(&control, &"ü".repeat(400));
        assert_eq!(reason(&control), Some("ü".repeat(252)));
        set_reason(&control, "");
        assert_eq!(reason(&control), None);
    }
}
