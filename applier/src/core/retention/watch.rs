//! Which pins count: those whose blob has changed within the time that they ask for, by this program's own clock.

use std::collections::BTreeMap;

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
    /// The pins that count now, and the runs whose pin can be taken away.
    pub(in crate::core) fn judge(
        &mut self,
        standing: Vec<Standing>,
        now: Instant,
    ) -> (Vec<Pin>, Vec<String>) {
        let mut before = std::mem::take(&mut self.seen);
        let (mut live, mut over) = (Vec::new(), Vec::new());
        for Standing { name, etag, pin } in standing {
            let since = match before.remove(&name) {
                Some((seen, since)) if seen == etag => since,
                _ => now,
            };
            let unchanged = now.saturating_duration_since(since);
            self.seen.insert(name, (etag, since));
            if unchanged <= pin.held_for() {
                live.push(pin);
            } else if unchanged > pin.held_for() * REMOVE_AFTER_TERMS {
                over.push(pin.run);
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
            let (live, over) = watch.judge(vec![standing(etag)], at(seconds));
            (live.len(), over.len())
        };
        assert_eq!(judge("a", 0), (1, 0));
        assert_eq!(judge("a", 60), (1, 0));
        assert_eq!(judge("b", 61), (1, 0), "it was renewed");
        assert_eq!(judge("b", 122), (0, 0));
        assert_eq!(judge("b", 182), (0, 1));
        assert_eq!(judge("c", 183), (1, 0), "its reader is back");
    }

    /// The date of the reader, which the pin carries for people, plays no part.
    #[tokio::test(start_paused = true)]
    async fn a_new_applier_waits_the_whole_term_again() {
        let now = Instant::now() + Duration::from_secs(1_000_000);
        let (live, over) = PinWatch::default().judge(vec![standing("a")], now);
        assert_eq!((live.len(), over.len()), (1, 0));
    }
}
