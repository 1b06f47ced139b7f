//! Records that a takeover finds in the spool: received whole in the epoch that was taken over, and not in the log yet. They
//! are brought to the log before an agent is served, so that what was received outlives a restart, and the agent too.
//!
//! [`choose`] is pure and decides which ones; [`Leftover`] sends them through the stages that all records go through.
//!
//! **Which ones.** Those that the writer before would have committed next. A spool may hold more than that: an older session's
//! files that could not be removed or came back after a power cut, or what came before another process server had the
//! log. So the log decides: it ends in the epoch and with the record, session and disks that the spooled record came after.
//! What is not chosen is removed, and sent again by the agent, which holds all that it has not heard to be durable.

use std::collections::BTreeMap;

use lifeboat_replication::{
    errors::chain,
    ids::{Epoch, RecordNumber, ServerId},
    log::{Base, LogWriter},
    planted::Planted,
};
use tokio::sync::{mpsc, oneshot};

use super::{
    assembler::RecordEnd,
    commit::{Begin, Opening},
    ingest::Shared,
    kept::{self, Kept, KeptSegment, Resumed},
    sealing::{Piece, Stored},
    session::UPLOADED,
    spool::{Spool, SpoolError},
    status::StatusSender,
    upload::Upload,
};

/// Where the log stands that the records have to fit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tip {
    pub base: Base,
    pub last: RecordNumber,
    pub disks: [u8; 32],
}

/// What a spool holds of a server.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub records: Vec<Kept>,
    pub resumed: Vec<Resumed>,
}

/// Records that continue the log, in order.
pub(super) fn choose(found: Found, tip: &Tip, planted: Option<Planted>) -> Vec<Kept> {
    let Found { records, resumed } = found;
    let any = planted == Some(Planted::AnyLeftover);
    let continued = |epoch: Epoch| any || is_continued(epoch, tip.base.epoch, &resumed);
    // The session's first record follows on what the session found; a later one on a record of the session.
    let follows = |kept: &Kept| {
        let (session, last) = (kept.session, tip.last);
        any || kept.base == last.0
            || tip.base.last_session == Some(session)
            || resumed
                .iter()
                .any(|one| one.to == tip.base.epoch && one.last == last && one.session == session)
    };
    let mut sessions: BTreeMap<u64, BTreeMap<RecordNumber, Kept>> = BTreeMap::new();
    for kept in records {
        if kept.disks == tip.disks && continued(Epoch(kept.epoch)) {
            sessions.entry(kept.session).or_default().insert(kept.number(), kept);
        }
    }
    let next = tip.last.next();
    let begins = sessions.values().filter_map(|records| records.get(&next).filter(|kept| follows(kept)));
    let Some(session) = begins.max_by_key(|kept| kept.received_at_micros).map(|kept| kept.session) else {
        return Vec::new();
    };
    let mut records = sessions.remove(&session).unwrap_or_default();
    let mut chosen = Vec::new();
    let mut number = next;
    while let Some(kept) = records.remove(&number) {
        number = number.next();
        chosen.push(kept);
    }
    chosen
}

/// Is `now` the epoch itself, or one that was opened only to bring to the log what had come in it?
fn is_continued(epoch: Epoch, mut now: Epoch, resumed: &[Resumed]) -> bool {
    while now > epoch {
        // Each step goes back: `from` is below `to`.
        match resumed.iter().find(|resumed| resumed.to == now) {
            Some(resumed) => now = resumed.from,
            None => return false,
        }
    }
    now == epoch
}

/// What the spool holds; what cannot be read is none.
pub(super) async fn find(spool: &dyn Spool, server: &ServerId) -> Result<Found, SpoolError> {
    let mut found = Found::default();
    for name in spool.list(server.as_str()).await? {
        if let Some(resumed) = Resumed::parse(&name) {
            found.resumed.push(resumed);
        } else if kept::is_record(&name) {
            found.records.extend(Kept::from_file(spool.read(&format!("{server}/{name}")).await?));
        }
    }
    Ok(found)
}

/// What is to be brought to the log that was just taken over; nothing when the spool has a fault, which is logged.
pub(super) async fn of(shared: &Shared, server: &ServerId, log: &LogWriter) -> Vec<Kept> {
    let (spool, state) = (&*shared.spool, log.state());
    let tip = Tip { base: log.base(), last: state.last_number, disks: kept::disks_sum(&state.disks) };
    let chosen = match find(spool, server).await {
        Ok(found) => choose(found, &tip, shared.log_options.planted),
        Err(error) => {
            tracing::error!(%server, error = %chain(&error), "what was received before is not looked at");
            return Vec::new();
        }
    };
    if let Some(first) = chosen.first() {
        let resumed =
            Resumed { from: Epoch(first.epoch), to: state.epoch, last: tip.last, session: first.session };
        // Without it another restart before the first of them is in the log has them sent again.
        if let Err(error) = spool.write(&resumed.name(server), bytes::Bytes::new()).await {
            tracing::warn!(%server, error = %chain(&error), "resumption not noted");
        }
    }
    chosen
}

/// Brings records to the log.
pub(super) struct Leftover {
    pub shared: Shared,
    pub server: ServerId,
    pub status: StatusSender,
    pub begins: mpsc::Sender<Begin>,
    pub records: Vec<Kept>,
}

impl Leftover {
    /// Ends when they are in the log, or when one turns out not to be whole; then the spool of the server is empty.
    pub(super) async fn run(self) {
        let Self { shared, server, status, begins, records } = self;
        let Some(session) = records.first().map(|kept| kept.session) else { return };
        let count = records.len();
        tracing::info!(%server, records = count, "records received before a restart are brought to the log");
        let (out, pieces) = mpsc::channel(UPLOADED);
        let (done, committed) = oneshot::channel();
        let begin = Begin { opening: Opening::Leftover { session, done }, pieces };
        if begins.send(begin).await.is_err() {
            return;
        }
        let (feed, input) = mpsc::channel(1);
        let upload = Upload::new(&shared, server.clone(), status, input, out);
        let fed = async {
            for kept in records {
                if !feed_record(&shared, &server, &feed, kept).await {
                    break;
                }
            }
            drop(feed);
        };
        let (uploaded, ()) = futures::future::join(upload.run(), fed).await;
        let _ = committed.await;
        match uploaded {
            Ok(()) => {
                tracing::info!(%server, records = count, "records received before a restart are in the log")
            }
            Err(error) => tracing::warn!(
                %server, error = %chain(&error), "not all that was received before a restart is whole: the agent sends it again"
            ),
        }
        if let Err(error) = shared.spool.clear(server.as_str()).await {
            tracing::error!(%server, error = %chain(&error), "spool not cleared");
        }
    }
}

/// The record's segments, then its end; false when nobody takes them any more.
async fn feed_record(shared: &Shared, server: &ServerId, feed: &mpsc::Sender<Piece>, kept: Kept) -> bool {
    let number = kept.number();
    let Kept { end, changed_bytes, received_bytes, segments, .. } = kept;
    let mut end = Some(RecordEnd { end, changed_bytes, received_bytes });
    let last = segments.len().saturating_sub(1);
    if segments.is_empty() {
        return feed.send(Piece { number, stored: None, end }).await.is_ok();
    }
    for (part, segment) in segments.into_iter().enumerate() {
        let stored = Some(stored(shared, server, segment).await);
        let end = if part == last { end.take() } else { None };
        if feed.send(Piece { number, stored, end }).await.is_err() {
            return false;
        }
    }
    true
}

async fn stored(shared: &Shared, server: &ServerId, kept: KeptSegment) -> Stored {
    let KeptSegment { segment, crc32c, inline } = kept;
    if !inline.is_empty() {
        return Stored::Inline { segment, content: inline };
    }
    let room = shared.space.reserve(server.as_str(), segment.length).await;
    Stored::Segment { segment, room, crc32c, held: None, in_spool: true }
}

#[cfg(test)]
mod tests {
    use lifeboat_replication::wire::v1;

    use super::*;

    const DISKS: [u8; 32] = [4; 32];

    fn kept(session: u64, base: u64, epoch: u32, number: u64) -> Kept {
        Kept {
            session,
            base,
            epoch,
            disks: DISKS.to_vec(),
            received_at_micros: session as i64,
            end: v1::End { number, ..Default::default() },
            ..Default::default()
        }
    }

    fn chosen(records: Vec<Kept>, resumed: Vec<Resumed>, tip: &Tip) -> Vec<(u64, u64)> {
        let chosen = choose(Found { records, resumed }, tip, None);
        chosen.iter().map(|kept| (kept.session, kept.end.number)).collect()
    }

    fn tip(epoch: u32, last_session: Option<u64>, last: u64) -> Tip {
        Tip { base: Base { epoch: Epoch(epoch), last_session }, last: RecordNumber(last), disks: DISKS }
    }

    #[test]
    fn records_that_the_log_lacks_are_chosen_up_to_the_first_gap() {
        let records = || [9, 5, 6, 4, 8].map(|number| kept(1, 3, 7, number)).to_vec();
        assert_eq!(chosen(records(), vec![], &tip(7, Some(1), 4)), [(1, 5), (1, 6)]);
        assert_eq!(chosen(records(), vec![], &tip(7, Some(1), 6)), []);
        assert_eq!(chosen(records(), vec![], &tip(7, None, 3)), [(1, 4), (1, 5), (1, 6)]);
    }

    /// Another session, of this process server or another one, has committed records since: these are older than those.
    #[test]
    fn records_of_a_session_that_is_not_the_logs_last_are_left() {
        let records = || (4..9).map(|number| kept(1, 3, 7, number)).collect::<Vec<_>>();
        assert_eq!(chosen(records(), vec![], &tip(7, Some(2), 5)), []);
        assert_eq!(chosen(records(), vec![], &tip(7, None, 5)), []);
        assert_eq!(chosen(records(), vec![], &tip(8, Some(1), 5)), []);
        assert_eq!(chosen(records(), vec![], &tip(6, Some(1), 5)), []);
    }

    #[test]
    fn records_about_other_disks_are_left() {
        let other = Tip { disks: [5; 32], ..tip(7, Some(1), 4) };
        assert_eq!(chosen(vec![kept(1, 3, 7, 5)], vec![], &other), []);
    }

    #[test]
    fn of_two_sessions_that_committed_nothing_the_later_one_is_chosen() {
        let records = vec![kept(5, 3, 7, 4), kept(2, 3, 7, 4), kept(2, 3, 7, 5)];
        assert_eq!(chosen(records, vec![], &tip(7, Some(9), 3)), [(5, 4)]);
    }

    #[test]
    fn a_restart_while_they_are_brought_to_the_log_goes_on_with_the_rest() {
        let records = || (5..9).map(|number| kept(1, 3, 7, number)).collect::<Vec<_>>();
        let resumed = |from, to, last| Resumed {
            from: Epoch(from),
            to: Epoch(to),
            last: RecordNumber(last),
            session: 1,
        };
        // Before the first of them was in the log: the part that was taken over has no record.
        assert_eq!(chosen(records(), vec![resumed(7, 8, 4)], &tip(8, None, 4)).len(), 4);
        // After it.
        assert_eq!(chosen(records(), vec![resumed(7, 8, 4)], &tip(8, Some(1), 5)).len(), 3);
        // And once more.
        let twice = || vec![resumed(7, 8, 4), resumed(8, 9, 5)];
        assert_eq!(chosen(records(), twice(), &tip(9, None, 5)).len(), 3);
        // Somebody opened an epoch in between.
        assert_eq!(chosen(records(), twice(), &tip(10, None, 5)), []);
        assert_eq!(chosen(records(), vec![resumed(8, 9, 5)], &tip(9, None, 5)), []);
    }
}
