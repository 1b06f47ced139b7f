//! What the frames of a log add up to. Live writing, takeover and following the log all use this one fold.
//!
//! Legal order within a part:
//! ```text
//!   Header ─► { Data | Disks | Closed | Release }* ─► Rotate (ends the part; the log goes on in another one)
//! ```
//! Data records follow each other without a gap. After `Closed{run}` only `Release{run}` is legal.

use serde::{Deserialize, Serialize};

use super::{
    PartName,
    frame::{CHAIN_START, Chain, ChainKey, FrameError, RawFrame},
};
use crate::{
    env::Micros,
    ids::{DiskSlot, Epoch, RecordNumber},
    keys::{DataKeys, KeyId},
    wire::v1::{self, log_record::Body},
};

/// Version of the vault's format that this build writes, and the only one that it reads.
pub const FORMAT: u32 = 1;

/// A disk as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogDisk {
    pub slot: DiskSlot,
    pub id: String,
    pub size_bytes: u64,
    pub path: String,
    /// It has no part in points.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left_out: bool,
}

impl From<&v1::Disk> for LogDisk {
    fn from(disk: &v1::Disk) -> Self {
        let v1::Disk { slot, id, size_bytes, path, left_out } = disk.clone();
        Self { slot: DiskSlot(slot), id, size_bytes, path, left_out }
    }
}

impl From<&LogDisk> for v1::Disk {
    fn from(disk: &LogDisk) -> Self {
        let LogDisk { slot, id, size_bytes, path, left_out } = disk.clone();
        Self { slot: slot.0, id, size_bytes, path, left_out }
    }
}

/// State of a log at a place in it. Serialized, it is the position from which an applier goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogState {
    pub epoch: Epoch,
    pub part: u32,
    /// Bytes of the part up to here.
    pub offset: u64,
    #[serde(with = "chain_as_hex")]
    pub chain: Chain,
    pub key_id: KeyId,
    pub last_number: RecordNumber,
    /// Of the last exact record; 0: none yet.
    pub last_t0: Micros,
    /// Replay up to here holds every block of every disk.
    pub complete: bool,
    pub disks: Vec<LogDisk>,
    pub closed_run: Option<String>,
    /// The part ended with `Rotate`: the log goes on there.
    pub next_part: Option<u32>,
}

/// A frame that cannot stand where it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(
        "the part is written in format {format}, this program reads format {FORMAT}: use a newer version"
    )]
    Format { format: u32 },
    #[error("the header names server {server}, epoch {epoch}, part {part}: the blob is not where it belongs")]
    Misplaced { server: String, epoch: u32, part: u32 },
    #[error(
        "its chain is made with data key {key}, which is not among the keys given: restore that key's entry"
    )]
    UnknownKey { key: KeyId },
    #[error("record {number} follows on record {last}")]
    Gap { last: RecordNumber, number: u64 },
    #[error("{what} stands where it must not")]
    OutOfPlace { what: &'static str },
    #[error("the log is closed by run {run}")]
    Closed { run: String },
    #[error("the part continues another place than the one before it ends at")]
    Base,
    #[error(
        "it ends here, unsealed, although part {later} continues it: it was cut off or put back to an older version"
    )]
    CutOff { later: PartName },
    #[error(
        "retention lets the log begin here, and of what stands from here to part {last} nothing can be followed: restore \
         the parts from the store's soft-delete or versions"
    )]
    BeginningLost { last: PartName },
}

/// Where a part begins: what its header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    pub state: LogState,
    pub base_part: Option<String>,
    pub base_offset: u64,
    pub base_chain: Chain,
    /// Who opened it, with the run's own id: `<who> <uuid>`.
    pub writer: String,
}

impl Start {
    /// From the first frame of a part.
    pub fn read(
        keys: &DataKeys,
        server: &str,
        name: &PartName,
        frame: &RawFrame<'_>,
    ) -> Result<(Self, ChainKey), Illegal> {
        let Body::Header(header) = frame.decode_unverified()? else {
            return Err(Illegal::OutOfPlace { what: "another record than a header" });
        };
        let v1::PartHeader {
            format,
            server_id,
            epoch,
            part,
            base_part,
            base_offset,
            base_chain,
            last_number,
            disks,
            closed_run,
            writer,
            opened_at_micros: _,
            key_id,
            complete,
            last_t0_micros,
        } = header;
        if format != FORMAT {
            return Err(Illegal::Format { format });
        }
        if server_id != server || epoch != name.epoch.0 || part != name.part {
            return Err(Illegal::Misplaced { server: server_id, epoch, part });
        }
        let key_id = KeyId(key_id);
        let key = keys.get(&key_id).ok_or_else(|| Illegal::UnknownKey { key: key_id.clone() })?;
        let chain_key = ChainKey::new(key, server);
        let base_chain: Chain = match base_part.is_empty() {
            true => CHAIN_START,
            false => base_chain.as_slice().try_into().map_err(|_| Illegal::Base)?,
        };
        let (_, chain) = frame.verify(&chain_key, &base_chain)?;
        let state = LogState {
            epoch: name.epoch,
            part,
            offset: frame.len(),
            chain,
            key_id,
            last_number: RecordNumber(last_number),
            last_t0: Micros(last_t0_micros),
            complete,
            disks: disks.iter().map(LogDisk::from).collect(),
            closed_run: Some(closed_run).filter(|run| !run.is_empty()),
            next_part: None,
        };
        Ok((
            Self {
                state,
                base_part: Some(base_part).filter(|base| !base.is_empty()),
                base_offset,
                base_chain,
                writer,
            },
            chain_key,
        ))
    }

    /// Does this part continue the log at `state`, which is the end of what stands before?
    pub fn continues(&self, base: &PartName, state: &LogState) -> bool {
        let at_end = self.base_offset == state.offset && self.base_chain == state.chain;
        // A rotation's header names the place of the Rotate frame, which is the base's last one.
        self.base_part.as_deref() == Some(base.to_string().as_str())
            && (at_end || (state.next_part == Some(self.state.part) && self.base_chain == state.chain))
    }
}

impl LogState {
    pub fn part_name(&self) -> PartName {
        PartName { epoch: self.epoch, part: self.part }
    }

    pub fn disk(&self, slot: DiskSlot) -> Option<&LogDisk> {
        self.disks.iter().find(|disk| disk.slot == slot)
    }

    /// The next frame: verified, legal, and its effect on the state.
    pub fn read(&mut self, key: &ChainKey, frame: &RawFrame<'_>) -> Result<Body, Illegal> {
        let (body, chain) = frame.verify(key, &self.chain)?;
        self.apply(&body)?;
        self.chain = chain;
        self.offset += frame.len();
        Ok(body)
    }

    /// Is `body` legal here, and what does it change? The chain and the offset are the caller's.
    pub fn apply(&mut self, body: &Body) -> Result<(), Illegal> {
        if self.next_part.is_some() {
            return Err(Illegal::OutOfPlace { what: "a record after Rotate" });
        }
        match (body, &self.closed_run) {
            (Body::Header(_), _) => return Err(Illegal::OutOfPlace { what: "a second header" }),
            (Body::Release(release), Some(run)) if release.run == *run => self.closed_run = None,
            (Body::Closed(closed), Some(run)) if closed.run == *run => {}
            (Body::Rotate(rotate), _) => self.next_part = Some(rotate.part),
            (_, Some(run)) => return Err(Illegal::Closed { run: run.clone() }),
            (Body::Release(_), None) => return Err(Illegal::OutOfPlace { what: "Release in an open log" }),
            (Body::Closed(closed), None) => self.closed_run = Some(closed.run.clone()),
            (Body::Disks(disks), None) => self.disks = disks.disks.iter().map(LogDisk::from).collect(),
            (Body::Data(data), None) => {
                if data.first_number != self.last_number.next().0 || data.number < data.first_number {
                    return Err(Illegal::Gap { last: self.last_number, number: data.first_number });
                }
                self.last_number = RecordNumber(data.number);
                self.complete = data.complete;
                if data.kind() == v1::RecordKind::Exact {
                    self.last_t0 = Micros(data.t0_micros);
                }
            }
        }
        Ok(())
    }

    /// Header of a part that goes on from here.
    pub fn header(&self, server: &str, base: HeaderBase, writer: &str, now: Micros) -> v1::PartHeader {
        let HeaderBase { epoch, part, base_part, base_offset, key_id } = base;
        v1::PartHeader {
            format: FORMAT,
            server_id: server.to_owned(),
            epoch: epoch.0,
            part,
            base_part: base_part.map_or_else(String::new, |base| base.to_string()),
            base_offset,
            base_chain: self.chain.to_vec(),
            last_number: self.last_number.0,
            disks: self.disks.iter().map(v1::Disk::from).collect(),
            closed_run: self.closed_run.clone().unwrap_or_default(),
            writer: writer.to_owned(),
            opened_at_micros: now.0,
            key_id: key_id.to_string(),
            complete: self.complete,
            last_t0_micros: self.last_t0.0,
        }
    }

    /// A log with nothing in it.
    pub fn empty(key_id: KeyId) -> Self {
        Self {
            epoch: Epoch(0),
            part: 0,
            offset: 0,
            chain: CHAIN_START,
            key_id,
            last_number: RecordNumber(0),
            last_t0: Micros(0),
            complete: false,
            disks: Vec::new(),
            closed_run: None,
            next_part: None,
        }
    }
}

/// Where a new part stands and what it continues.
#[derive(Debug, Clone)]
pub struct HeaderBase {
    pub epoch: Epoch,
    pub part: u32,
    pub base_part: Option<PartName>,
    pub base_offset: u64,
    pub key_id: KeyId,
}

mod chain_as_hex {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::Chain;

    pub(super) fn serialize<S: Serializer>(chain: &Chain, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(chain))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Chain, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut chain = [0; 32];
        hex::decode_to_slice(&text, &mut chain).map_err(D::Error::custom)?;
        Ok(chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> LogState {
        LogState::empty(KeyId("k1".into()))
    }

    fn data(number: u64) -> Body {
        Body::Data(v1::Data { first_number: number, number, ..Default::default() })
    }

    fn merged(first_number: u64, number: u64) -> Body {
        Body::Data(v1::Data { first_number, number, ..Default::default() })
    }

    fn closed(run: &str) -> Body {
        Body::Closed(v1::Closed { run: run.into() })
    }

    fn disk(slot: u32) -> LogDisk {
        let (id, path) = (format!("disk-{slot}"), format!("/dev/sd{slot}"));
        LogDisk { slot: DiskSlot(slot), id, size_bytes: 1 << 30, path, left_out: slot == 2 }
    }

    #[test]
    fn refuses_a_gap_in_the_numbers() {
        let mut state = state();
        state.apply(&data(1)).unwrap();
        assert_eq!(state.apply(&data(3)), Err(Illegal::Gap { last: RecordNumber(1), number: 3 }));
        assert_eq!(state.apply(&data(1)), Err(Illegal::Gap { last: RecordNumber(1), number: 1 }));
        state.apply(&merged(2, 5)).unwrap();
        assert_eq!(state.apply(&merged(6, 5)), Err(Illegal::Gap { last: RecordNumber(5), number: 6 }));
        state.apply(&data(6)).unwrap();
        assert_eq!(state.last_number, RecordNumber(6));
    }

    #[test]
    fn only_exact_records_move_the_time_of_the_newest_point() {
        let mut state = state();
        let mut apply = |number, kind: v1::RecordKind, t0_micros, complete| {
            let kind = kind.into();
            let record =
                v1::Data { first_number: number, number, kind, t0_micros, complete, ..Default::default() };
            state.apply(&Body::Data(record)).unwrap();
            (state.last_t0.0, state.complete)
        };
        assert_eq!(apply(1, v1::RecordKind::Copy, 10, false), (0, false));
        assert_eq!(apply(2, v1::RecordKind::Exact, 20, true), (20, true));
        assert_eq!(apply(3, v1::RecordKind::Inexact, 30, true), (20, true));
        assert_eq!(apply(4, v1::RecordKind::Exact, 40, false), (40, false));
    }

    #[test]
    fn the_run_that_closed_the_log_may_close_it_again_and_no_other() {
        let mut state = state();
        state.apply(&closed("a")).unwrap();
        state.apply(&closed("a")).unwrap();
        assert_eq!(state.apply(&closed("b")), Err(Illegal::Closed { run: "a".into() }));
        assert_eq!(state.closed_run.as_deref(), Some("a"));
    }

    #[test]
    fn what_is_not_closed_is_not_released_and_a_part_has_one_header() {
        let release = Body::Release(v1::Release { run: "a".into() });
        assert!(matches!(state().apply(&release), Err(Illegal::OutOfPlace { .. })));
        let header = Body::Header(v1::PartHeader::default());
        assert!(matches!(state().apply(&header), Err(Illegal::OutOfPlace { .. })));
    }

    #[test]
    fn disks_are_those_of_the_last_record_that_names_them() {
        let mut state = state();
        for slots in [vec![1, 2], vec![2, 3]] {
            let disks = slots.iter().map(|slot| v1::Disk::from(&disk(*slot))).collect();
            state.apply(&Body::Disks(v1::Disks { disks })).unwrap();
        }
        assert_eq!(state.disks, [disk(2), disk(3)]);
        assert_eq!(state.disk(DiskSlot(3)), Some(&disk(3)));
        assert_eq!(state.disk(DiskSlot(1)), None);
    }

    /// A part's header carries all that its first record stands on, and an applier's position all that it goes on from.
    #[test]
    fn a_state_is_the_same_after_a_header_and_after_a_kept_position() {
        let keys = DataKeys::generate(&*crate::env::Env::system().entropy);
        let (key_id, key) = keys.current();
        let state = LogState {
            epoch: Epoch(3),
            part: 7,
            offset: 1234,
            chain: std::array::from_fn(|index| index as u8),
            key_id: key_id.clone(),
            last_number: RecordNumber(99),
            last_t0: Micros(55),
            complete: true,
            disks: vec![disk(1), disk(2)],
            closed_run: Some("run".into()),
            next_part: None,
        };
        let kept = serde_json::to_string(&state).unwrap();
        assert!(kept.contains(r#""chain":"000102030405"#), "{kept}");
        assert_eq!(serde_json::from_str::<LogState>(&kept).unwrap(), state);
        assert!(serde_json::from_str::<LogState>(&kept.replace("000102", "")).is_err());

        let name = PartName { epoch: Epoch(4), part: 0 };
        let read = |change: &dyn Fn(&mut v1::PartHeader)| {
            let base = HeaderBase {
                epoch: name.epoch,
                part: name.part,
                base_part: Some(state.part_name()),
                base_offset: state.offset,
                key_id: key_id.clone(),
            };
            let mut header = state.header("server", base, "ps uuid", Micros(66));
            change(&mut header);
            let chain_key = ChainKey::new(key, "server");
            let frame = super::super::frame::encode(&chain_key, &state.chain, Body::Header(header)).unwrap();
            let raw = RawFrame::split(&frame.bytes).unwrap().unwrap();
            Start::read(&keys, "server", &name, &raw).map(|(start, _)| (start, frame))
        };
        let (start, frame) = read(&|_| {}).unwrap();
        let place = (name.epoch, name.part, frame.bytes.len() as u64, frame.chain);
        let LogState { epoch, part, offset, chain, .. } = start.state;
        assert_eq!((epoch, part, offset, chain), place);
        assert_eq!(
            LogState { epoch: state.epoch, part: 7, offset: 1234, chain: state.chain, ..start.state.clone() },
            state
        );
        assert!(start.continues(&state.part_name(), &state));
        assert_eq!(start.writer, "ps uuid");

        let refused = |change: &dyn Fn(&mut v1::PartHeader)| read(change).map(|_| ()).unwrap_err();
        assert_eq!(refused(&|header| header.format = 2), Illegal::Format { format: 2 });
        let misplaced = |server: &str, epoch, part| Illegal::Misplaced { server: server.into(), epoch, part };
        assert_eq!(refused(&|header| header.server_id = "other".into()), misplaced("other", 4, 0));
        assert_eq!(refused(&|header| header.epoch = 5), misplaced("server", 5, 0));
        assert_eq!(refused(&|header| header.part = 1), misplaced("server", 4, 1));
        let unknown = Illegal::UnknownKey { key: KeyId("gone".into()) };
        assert_eq!(refused(&|header| header.key_id = "gone".into()), unknown);
        assert_eq!(refused(&|header| header.base_chain = vec![1; 31]), Illegal::Base);
    }

    /// Else a part of another history, or an older one, would be read on.
    #[test]
    fn a_part_continues_exactly_the_place_that_its_header_names() {
        let base = PartName { epoch: Epoch(1), part: 2 };
        let at = LogState { epoch: Epoch(1), part: 2, offset: 100, chain: [5; 32], ..state() };
        let start = |base_part: Option<PartName>, base_offset, base_chain| Start {
            state: LogState { epoch: Epoch(1), part: 3, ..state() },
            base_part: base_part.map(|base| base.to_string()),
            base_offset,
            base_chain,
            writer: String::new(),
        };
        assert!(start(Some(base), 100, [5; 32]).continues(&base, &at));
        assert!(!start(Some(base), 100, [6; 32]).continues(&base, &at));
        assert!(!start(Some(base), 99, [5; 32]).continues(&base, &at));
        assert!(!start(None, 100, [5; 32]).continues(&base, &at));
        assert!(!start(Some(PartName { part: 1, ..base }), 100, [5; 32]).continues(&base, &at));

        // The frame of Rotate, which names the part, stands between the named place and the end.
        let rotated = |next_part| LogState { next_part: Some(next_part), offset: 140, ..at.clone() };
        assert!(start(Some(base), 100, [5; 32]).continues(&base, &rotated(3)));
        assert!(!start(Some(base), 100, [5; 32]).continues(&base, &rotated(4)));
        assert!(!start(Some(base), 100, [6; 32]).continues(&base, &rotated(3)));
        assert!(!start(Some(PartName { part: 1, ..base }), 100, [5; 32]).continues(&base, &rotated(3)));
    }

    #[test]
    fn takes_nothing_but_its_own_release_once_closed() {
        let mut state = state();
        state.apply(&Body::Closed(v1::Closed { run: "a".into() })).unwrap();
        assert_eq!(state.apply(&data(1)), Err(Illegal::Closed { run: "a".into() }));
        let release = |run: &str| Body::Release(v1::Release { run: run.into() });
        assert_eq!(state.apply(&release("b")), Err(Illegal::Closed { run: "a".into() }));
        state.apply(&release("a")).unwrap();
        state.apply(&data(1)).unwrap();
    }

    #[test]
    fn ends_with_rotate() {
        let mut state = state();
        state.apply(&Body::Rotate(v1::Rotate { part: 4 })).unwrap();
        assert!(matches!(state.apply(&data(1)), Err(Illegal::OutOfPlace { .. })));
    }
}
