//! Walks a log from its first record (or, once retention has shortened it, from the oldest base) to its end, past what is
//! damaged.
//!
//! After a damaged frame the chain cannot be followed, but every point that is listed knows the chain's value at its
//! place: the walk goes on from the next one that the log agrees with. What lies between is a gap.

use lifeboat_replication::{
    catalogue::Point,
    env::Env,
    errors::chain,
    ids::{Epoch, ServerId},
    log::{LogReader, LogState, PartName, ReadError, state::Illegal},
    store::{Refusal, StoreError},
    vault::Vault,
    wire::v1::{self, log_record::Body},
};

/// Where a record ends: epoch, part, byte.
pub(super) type Place = (u32, u32, u64);

pub(super) fn place(state: &LogState) -> Place {
    (state.epoch.0, state.part, state.offset)
}

#[derive(Debug)]
pub(super) enum Step {
    Data {
        epoch: Epoch,
        record: Box<v1::Data>,
    },
    /// A record that carries no data.
    Other,
    Gap(Gap),
    End,
}

/// A place where the log cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gap {
    pub part: PartName,
    pub offset: u64,
    pub what: String,
    /// A part that must be there and is not.
    pub missing: bool,
    /// The last record before it.
    pub after_record: u64,
    /// The point from which the walk goes on; `None`: nothing after the gap can be read.
    pub resumed: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Walk<'a> {
    vault: &'a Vault,
    server: &'a ServerId,
    env: &'a Env,
    reader: LogReader,
    /// From which to go on, the latest first.
    resumable: Vec<&'a Point>,
    ended: bool,
}

impl<'a> Walk<'a> {
    /// `base`: where to begin; `None`: with the first record.
    ///
    /// # Errors
    /// When the data key is missing that the base was written with.
    pub(super) fn new(
        vault: &'a Vault,
        server: &'a ServerId,
        env: &'a Env,
        points: &'a [Point],
        base: Option<&LogState>,
    ) -> Result<Self, ReadError> {
        let mut resumable: Vec<&Point> = points.iter().collect();
        resumable.sort_by_key(|point| std::cmp::Reverse(place(&point.log)));
        let reader = match base {
            Some(base) => LogReader::resume(vault, server, env, base.clone())?,
            None => LogReader::from_start(vault, server, env),
        };
        Ok(Self { vault, server, env, reader, resumable, ended: false })
    }

    /// Where the walk is; `None`: before the first record.
    pub(super) fn state(&self) -> Option<&LogState> {
        self.reader.state()
    }

    /// # Errors
    /// When the store cannot be read at all; damage is a step.
    pub(super) async fn next(&mut self) -> Result<Step, StoreError> {
        if self.ended {
            return Ok(Step::End);
        }
        let read = match self.reader.next().await {
            Ok(None) => match self.reader.check_end().await {
                Ok(()) => {
                    self.ended = true;
                    return Ok(Step::End);
                }
                Err(error) => Err(error),
            },
            read => read,
        };
        match read {
            Ok(Some(entry)) => Ok(match entry.body {
                Body::Data(record) => Step::Data { epoch: entry.epoch, record: Box::new(record) },
                _ => Step::Other,
            }),
            Ok(None) => Ok(Step::End),
            Err(error) => self.gap(error).await,
        }
    }

    async fn gap(&mut self, error: ReadError) -> Result<Step, StoreError> {
        let here = self.reader.state();
        let after_record = here.map_or(0, |state| state.last_number.0);
        let (part, offset, what, missing) = match error {
            ReadError::Damaged { part, offset, source, server: _ } => match source {
                Illegal::Base => {
                    (part, offset, format!("{source}: one of the two is not what it was"), false)
                }
                source => (part, offset, chain(&source), false),
            },
            ReadError::WentBack { part, offset, server: _ } => {
                let what = match offset {
                    0 => "it is missing although the part before it goes on in it".to_owned(),
                    _ => format!("it ends before byte {offset}, up to which it was read before"),
                };
                (part, offset, what, offset == 0)
            }
            error @ ReadError::Shortened { part, .. } => (part, 0, chain(&error), false),
            ReadError::Store(error) if error.is(Refusal::NotFound) || error.is(Refusal::Range) => {
                let place = here.map(|state| (state.part_name(), state.offset));
                let (part, offset) = place.unwrap_or((PartName { epoch: Epoch(1), part: 0 }, 0));
                (part, offset, "it cannot be read to its end".to_owned(), false)
            }
            ReadError::Store(error) => return Err(error),
        };
        let resumed = self.go_on(here.map(place).max(Some((part.epoch.0, part.part, offset)))).await?;
        self.ended = resumed.is_none();
        Ok(Step::Gap(Gap { part, offset, what, missing, after_record, resumed }))
    }

    /// Goes to the next point after `damage` that the log agrees with.
    async fn go_on(&mut self, damage: Option<Place>) -> Result<Option<u64>, StoreError> {
        while let Some(point) = self.resumable.pop() {
            if Some(place(&point.log)) <= damage {
                continue;
            }
            let Ok(mut reader) = LogReader::resume(self.vault, self.server, self.env, point.log.clone())
            else {
                continue;
            };
            // Only a frame that follows on it shows that the place is right; the reader that is kept reads it again.
            match reader.next().await {
                Err(ReadError::Store(error)) if error.refusal().is_none() => return Err(error),
                Ok(Some(_)) => {}
                _ => continue,
            }
            if let Ok(reader) = LogReader::resume(self.vault, self.server, self.env, point.log.clone()) {
                self.reader = reader;
                return Ok(Some(point.number));
            }
        }
        Ok(None)
    }
}
