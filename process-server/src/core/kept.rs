//! What a restart needs to know of a record in the spool: written once all its segments are there, before the agent hears
//! `Received`; removed once the record is in the log.
//!
//! ```text
//!   <server>/<segment>                       sealed, on its way to cache storage
//!   <server>/record-<session>-<number>       a Kept: the record's end, its segments and their checksums
//!   <server>/resumed-<from>-<to>-<last>-<session>   see `Resumed`
//! ```
//! Content of a record's file: CRC-32C of the rest (4 bytes, little endian), then the message. Only the same program reads
//! it, so an unknown or torn one is as good as none.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use lifeboat_replication::{
    env::{Micros, Wall},
    errors::chain,
    ids::{Epoch, RecordNumber, ServerId},
    log::LogDisk,
    wire::v1,
};
use prost::Message as _;

use super::{
    assembler::RecordEnd,
    sealing::{Piece, Stored},
    spool::Spool,
};

/// The session that a record came with, as far as the log has to agree with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    pub session: u64,
    /// Last record in the log when the session began.
    pub base: RecordNumber,
    /// Of the log, all the time of the session.
    pub epoch: Epoch,
    /// [`disks_sum`] of the log, likewise.
    pub disks: [u8; 32],
}

/// A record that is whole in the spool, or partly in cache storage already.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Kept {
    #[prost(uint64, tag = "1")]
    pub session: u64,
    #[prost(uint64, tag = "2")]
    pub base: u64,
    #[prost(uint32, tag = "3")]
    pub epoch: u32,
    #[prost(bytes = "vec", tag = "4")]
    pub disks: Vec<u8>,
    #[prost(int64, tag = "5")]
    pub received_at_micros: i64,
    /// Without a group: nobody waits for that point any more. Its instant is not after it was received.
    #[prost(message, required, tag = "6")]
    pub end: v1::End,
    #[prost(uint64, tag = "7")]
    pub changed_bytes: u64,
    #[prost(uint64, tag = "8")]
    pub received_bytes: u64,
    #[prost(message, repeated, tag = "9")]
    pub segments: Vec<KeptSegment>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct KeptSegment {
    #[prost(message, required, tag = "1")]
    pub segment: v1::SegmentRef,
    /// Of its content as sealed.
    #[prost(uint32, tag = "2")]
    pub crc32c: u32,
    /// The content, when it travels inside the log's record.
    #[prost(bytes = "bytes", tag = "3")]
    pub inline: Bytes,
}

/// A takeover began to bring to the log what came in epoch `from`. What is left of it after another restart is as good as
/// before, since nothing else was written in epoch `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Resumed {
    pub from: Epoch,
    pub to: Epoch,
    /// Last record in the log at that time.
    pub last: RecordNumber,
    pub session: u64,
}

/// Of the disks that slots of records are about.
pub(super) fn disks_sum(disks: &[LogDisk]) -> [u8; 32] {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for disk in disks {
        context.update(&v1::Disk::from(disk).encode_length_delimited_to_vec());
    }
    let mut sum = [0; 32];
    sum.copy_from_slice(context.finish().as_ref());
    sum
}

/// Name of a record's file in the spool.
pub(super) fn record_name(server: &ServerId, session: u64, number: RecordNumber) -> String {
    format!("{server}/record-{session:016x}-{:016x}", number.0)
}

impl Resumed {
    pub(super) fn name(&self, server: &ServerId) -> String {
        let Self { from, to, last, session } = self;
        format!("{server}/resumed-{:08x}-{:08x}-{:016x}-{session:016x}", from.0, to.0, last.0)
    }

    /// From a name without the server's.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let mut fields = name.strip_prefix("resumed-")?.split('-');
        let mut next = || u64::from_str_radix(fields.next()?, 16).ok();
        let resumed = Self {
            from: Epoch(u32::try_from(next()?).ok()?),
            to: Epoch(u32::try_from(next()?).ok()?),
            last: RecordNumber(next()?),
            session: next()?,
        };
        // An epoch continues an earlier one.
        (resumed.from < resumed.to).then_some(resumed)
    }
}

/// Is it a record's file? Without the server's name.
pub(super) fn is_record(name: &str) -> bool {
    name.starts_with("record-")
}

impl Kept {
    pub(super) fn number(&self) -> RecordNumber {
        RecordNumber(self.end.number)
    }

    fn to_file(&self) -> Bytes {
        let body = self.encode_to_vec();
        let mut file = BytesMut::with_capacity(4 + body.len());
        file.put_u32_le(crc32c::crc32c(&body));
        file.put_slice(&body);
        file.freeze()
    }

    /// `None`: torn.
    pub(super) fn from_file(mut file: Bytes) -> Option<Self> {
        if file.len() < 4 {
            return None;
        }
        let body = file.split_off(4);
        (file.as_ref() == crc32c::crc32c(&body).to_le_bytes()).then(|| Self::decode(body).ok())?
    }
}

/// Writes down the records of one session as they become whole.
#[derive(Debug)]
pub(super) struct Keeper {
    spool: Arc<dyn Spool>,
    wall: Arc<dyn Wall>,
    server: ServerId,
    origin: Origin,
    /// Of the record under way; `None`: one of its segments is not in the spool.
    segments: Option<Vec<KeptSegment>>,
}

impl Keeper {
    pub(super) fn new(spool: Arc<dyn Spool>, wall: Arc<dyn Wall>, server: ServerId, origin: Origin) -> Self {
        Self { spool, wall, server, origin, segments: Some(Vec::new()) }
    }

    /// Takes note of the next piece. A record that cannot be written down is sent again after a restart, and no more.
    pub(super) async fn note(&mut self, piece: &Piece) {
        match &piece.stored {
            None => {}
            Some(Stored::Inline { segment, content }) => {
                self.add(KeptSegment { segment: segment.clone(), crc32c: 0, inline: content.clone() });
            }
            Some(Stored::Segment { segment, crc32c, in_spool: true, .. }) => {
                self.add(KeptSegment { segment: segment.clone(), crc32c: *crc32c, inline: Bytes::new() });
            }
            Some(Stored::Segment { in_spool: false, .. }) => self.segments = None,
        }
        let Some(end) = &piece.end else { return };
        let Some(segments) = self.segments.replace(Vec::new()) else { return };
        let kept = self.kept(end, segments);
        let name = record_name(&self.server, kept.session, kept.number());
        if let Err(error) = self.spool.write(&name, kept.to_file()).await {
            tracing::warn!(server = %self.server, number = kept.end.number, error = %chain(&error), "record not kept for a restart");
        }
    }

    fn add(&mut self, segment: KeptSegment) {
        if let Some(segments) = &mut self.segments {
            segments.push(segment);
        }
    }

    fn kept(&self, end: &RecordEnd, segments: Vec<KeptSegment>) -> Kept {
        let now = self.wall.now();
        let RecordEnd { end, changed_bytes, received_bytes } = end;
        let told = Micros(end.t0_micros);
        let t0 = told.min(now);
        Kept {
            session: self.origin.session,
            base: self.origin.base.0,
            epoch: self.origin.epoch.0,
            disks: self.origin.disks.to_vec(),
            received_at_micros: now.0,
            end: v1::End {
                group: None,
                t0_micros: t0.0,
                clock_offset_micros: end.clock_offset_micros.saturating_add(t0.0.saturating_sub(told.0)),
                ..end.clone()
            },
            changed_bytes: *changed_bytes,
            received_bytes: *received_bytes,
            segments,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_torn_or_changed_is_none() {
        let kept = Kept {
            session: 7,
            base: 3,
            epoch: 2,
            disks: vec![1; 32],
            end: v1::End { number: 4, ..Default::default() },
            segments: vec![KeptSegment {
                segment: v1::SegmentRef { name: "x".into(), length: 9, ..Default::default() },
                crc32c: 5,
                inline: Bytes::from_static(b"abc"),
            }],
            ..Default::default()
        };
        let file = kept.to_file();
        assert_eq!(Kept::from_file(file.clone()), Some(kept));
        for length in 0..file.len() {
            assert_eq!(Kept::from_file(file.slice(..length)), None, "{length}");
        }
        for at in 0..file.len() {
            let mut changed = file.to_vec();
            changed[at] ^= 4;
            assert_eq!(Kept::from_file(changed.into()), None, "{at}");
        }
    }

    #[test]
    fn a_note_of_a_resumption_is_read_as_it_was_written() {
        let server = ServerId::from_random([7; 16]);
        let resumed =
            Resumed { from: Epoch(2), to: Epoch(9), last: RecordNumber(1 << 40), session: u64::MAX };
        let name = resumed.name(&server);
        assert_eq!(Resumed::parse(name.split_once('/').unwrap().1), Some(resumed));
        for wrong in ["resumed-2-2-1-1", "resumed-2", "record-2-9-1-1", "resumed-2-9-1-x"] {
            assert_eq!(Resumed::parse(wrong), None, "{wrong}");
        }
    }
}
