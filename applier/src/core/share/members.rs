//! Which appliers count, by what they say of themselves.
//!
//! No two clocks are compared. An applier writes its announcement again and again, each time with another `beat`; one
//! that was seen unchanged for a term of the watcher's own monotonic time is gone. Nothing but the division of work
//! rests on it: an announcement that is lost, late or wrong makes somebody try a lease in vain or leave one free for a
//! while.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use lifeboat_replication::{appliers::Announcement, ids::ServerId};
use tokio::time::Instant;

/// An announcement that did not change for so many terms is removed, so that names do not pile up.
const REMOVE_AFTER_TERMS: u32 = 2;

/// What was seen of the others. Forgetting it only makes them count longer.
#[derive(Debug, Default)]
pub(super) struct Members {
    seen: BTreeMap<String, (Bytes, Instant)>,
}

/// The appliers that count, with what they hold, and the blobs that can be removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Live {
    pub(super) others: BTreeMap<String, BTreeSet<ServerId>>,
    pub(super) over: Vec<String>,
}

impl Members {
    pub(super) fn judge(&mut self, standing: BTreeMap<String, Bytes>, now: Instant, term: Duration) -> Live {
        let mut before = std::mem::take(&mut self.seen);
        let mut live = Live::default();
        for (name, content) in standing {
            let since = match before.remove(&name) {
                Some((seen, since)) if seen == content => since,
                _ => now,
            };
            let unchanged = now.saturating_duration_since(since);
            if unchanged <= term {
                // What cannot be read has no share: it would be left to nobody.
                let said = Announcement::read(&content);
                live.others.extend(said.map(|said| {
                    (said.identity, said.holds.iter().filter_map(|server| server.parse().ok()).collect())
                }));
            } else if unchanged > term * REMOVE_AFTER_TERMS {
                live.over.push(name.clone());
            }
            self.seen.insert(name, (content, since));
        }
        live
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Duration = Duration::from_secs(60);

    fn said(beat: u64) -> BTreeMap<String, Bytes> {
        let holds = BTreeSet::from([ServerId::from_random([1; 16])]);
        let content = Announcement { beat, ..Announcement::new("b", "applier-1", &holds) }.content();
        BTreeMap::from([("appliers/b.json".to_owned(), content)])
    }

    #[tokio::test(start_paused = true)]
    async fn an_applier_counts_until_it_was_seen_unchanged_for_a_term() {
        let (mut members, start) = (Members::default(), Instant::now());
        let mut judge = |beat, seconds| {
            let live = members.judge(said(beat), start + Duration::from_secs(seconds), TERM);
            (live.others.get("b").map_or(0, BTreeSet::len), live.over.len())
        };
        assert_eq!(judge(1, 0), (1, 0));
        assert_eq!(judge(1, 60), (1, 0));
        assert_eq!(judge(2, 61), (1, 0), "it wrote again");
        assert_eq!(judge(2, 122), (0, 0));
        assert_eq!(judge(2, 182), (0, 1));
        assert_eq!(judge(3, 183), (1, 0), "it is back");
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_read_has_no_share_and_is_removed_in_time() {
        let (mut members, start) = (Members::default(), Instant::now());
        let garbage = BTreeMap::from([("appliers/x.json".to_owned(), Bytes::from_static(b"{"))]);
        assert_eq!(members.judge(garbage.clone(), start, TERM), Live::default());
        assert_eq!(members.judge(garbage, start + 3 * TERM, TERM).over.len(), 1);
    }
}
