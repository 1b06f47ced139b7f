//! Which pins count: those whose blob has changed within the time that they ask for, by this program's own clock.
//!
//! A look at the pins takes time, and may take very long: the program is stopped, the store is slow. What it showed was
//! there at some moment between its beginning and its end, so a pin was unchanged at least from the end of the first look
//! that showed it to the beginning of the last one.

use std::{collections::BTreeMap, ops::Range};

use lifeboat_replication::{
    pins::{Pin, Standing},
    store::ETag,
};
use tokio::time::Instant;

/// A pin that nobody has renewed for this many times its own term is taken away, so that names do not pile up.
const REMOVE_AFTER_TERMS: u32 = 2;

/// What was seen of the pins. Forgetting it only makes them count longer.
#[derive(Debug, Default)]
pub(in crate::core) struct PinWatch {
    seen: BTreeMap<String, (ETag, Instant)>,
}

impl PinWatch {
    /// The pins that count now, and those that can be taken away. `look`: when it was begun, and when it had ended.
    pub(in crate::core) fn judge(
        &mut self,
        standing: Vec<Standing>,
        look: Range<Instant>,
    ) -> (Vec<Pin>, Vec<Standing>) {
        let mut before = std::mem::take(&mut self.seen);
        let (mut live, mut over) = (Vec::new(), Vec::new());
        for pin in standing {
            let since = match before.remove(&pin.name) {
                Some((seen, since)) if seen == pin.etag => since,
                _ => look.end,
            };
            let unchanged = look.start.saturating_duration_since(since);
            self.seen.insert(pin.name.clone(), (pin.etag.clone(), since));
            let term = pin.pin.held_for();
            if unchanged <= term {
                live.push(pin.pin);
            } else if unchanged > term * REMOVE_AFTER_TERMS {
                over.push(pin);
            }
        }
        (live, over)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn standing(etag: &str) -> Standing {
        let pin = Pin {
            format: 1,
            server: "s".into(),
            run: "run".into(),
            base: None,
            records: None,
            held_for_seconds: 60,
            renewed_at_micros: 0,
            confirmed: true,
        };
        Standing { name: "pins/run.json".into(), etag: ETag(etag.into()), pin }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pin_counts_until_it_was_seen_unchanged_for_its_term() {
        let mut watch = PinWatch::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut judge = |etag, seconds| {
            let (live, over) = watch.judge(vec![standing(etag)], at(seconds)..at(seconds));
            (live.len(), over.len())
        };
        assert_eq!(judge("a", 0), (1, 0));
        assert_eq!(judge("a", 60), (1, 0));
        assert_eq!(judge("b", 61), (1, 0), "it was renewed");
        assert_eq!(judge("b", 122), (0, 0));
        assert_eq!(judge("b", 181), (0, 0));
        assert_eq!(judge("b", 182), (0, 1));
        assert_eq!(judge("c", 183), (1, 0), "its reader is back");
    }

    /// An applier that was stopped in the middle of a look has seen the pin as it was before, not as it is now.
    #[tokio::test(start_paused = true)]
    async fn time_that_a_look_took_does_not_count_against_a_pin() {
        let mut watch = PinWatch::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut judge =
            |look: Range<u64>| watch.judge(vec![standing("a")], at(look.start)..at(look.end)).0.len();
        assert_eq!(judge(0..30), 1, "written at some time until 30");
        assert_eq!(judge(40..500), 1, "unchanged from 30 to 40");
        assert_eq!(judge(90..90), 1);
        assert_eq!(judge(91..91), 0);
    }

    /// The date of the reader, which the pin carries for people, plays no part.
    #[tokio::test(start_paused = true)]
    async fn a_new_applier_waits_the_whole_term_again() {
        let now = Instant::now() + Duration::from_secs(1_000_000);
        let (live, over) = PinWatch::default().judge(vec![standing("a")], now..now);
        assert_eq!((live.len(), over.len()), (1, 0));
    }
}
