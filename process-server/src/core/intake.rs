//! First stage: what the agent sends becomes batches, one for each segment.
//!
//! In: `Up` messages in order. Out: [`Admitted`] batches in order, the last of a record with its end.
//! Bounds: one batch is below 6 MiB; a batch goes on only when the spool has room for it and the memory budget of
//! all servers allows it. Until then nothing more is read from the connection: that is the back-pressure.

use std::{sync::Arc, time::Duration};

use lifeboat_replication::{env::Env, wire::v1};
use prost::Message as _;
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        watch,
    },
    time::timeout,
};

use super::{
    assembler::{Assembler, Batch, Violation},
    assignment::Assigned,
    space::{Room, Space},
    status::StatusSender,
    switchboard::Switchboard,
};

/// A connection that says nothing for this long is dead: agents send a heartbeat each second.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// While the intake waits for room it says so this often, lest the agent take the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// A message beside the data: a heartbeat of a machine with 64 disks and a page of issues has a third of it. A process
/// server's report to the operator holds the last heartbeat of each of its servers.
const MAX_NOTE_BYTES: usize = 64 << 10;
/// A question about every second one of 16384 rows has 64 KiB; one of a session is held at a time.
const MAX_ASK_BYTES: usize = 256 << 10;

/// A batch with everything it needs to go on.
#[derive(Debug)]
pub(super) struct Admitted {
    pub batch: Batch,
    pub room: Room,
    /// Given back when the batch's plain text is gone.
    pub memory: Room,
}

/// What the stage works with.
pub(super) struct Intake {
    pub env: Env,
    pub status: StatusSender,
    pub space: Arc<Space>,
    pub memory: Arc<Space>,
    pub server: String,
    pub assigned: watch::Receiver<Option<Assigned>>,
    pub up: mpsc::Receiver<v1::Up>,
    pub down: mpsc::Sender<v1::Down>,
    pub out: mpsc::Sender<Admitted>,
    /// Questions for checksums.
    pub asks: mpsc::Sender<v1::SumsAsk>,
    pub groups: Switchboard,
}

impl Intake {
    /// Reads until the connection ends; dropping `out` then lets the stages behind it finish what they have.
    pub(super) async fn run(mut self, mut assembler: Assembler) -> Result<(), Violation> {
        while let Some(up) = self.next().await {
            let message = up.message.ok_or(Violation::Empty)?;
            check_length(&message)?;
            let batch = match message {
                v1::up::Message::Hello(_) => return Err(Violation::SecondHello),
                v1::up::Message::Heartbeat(heartbeat) => {
                    self.answer(heartbeat).await;
                    None
                }
                v1::up::Message::SumsAsk(ask) => {
                    // One at a time is asked; a second one finds the place taken. Without an offer nobody listens.
                    if let Err(TrySendError::Full(_)) = self.asks.try_send(ask) {
                        return Err(Violation::SecondQuestion);
                    }
                    None
                }
                v1::up::Message::Group(answer) => {
                    self.groups.answered(&self.server, answer);
                    None
                }
                v1::up::Message::Chunk(chunk) => {
                    self.status.received(chunk.data.len() as u64, self.env.wall.now());
                    assembler.chunk(chunk)?
                }
                v1::up::Message::End(end) => Some(assembler.end(end)?),
            };
            let Some(batch) = batch else { continue };
            let Some(admitted) = self.admit(batch).await else { break };
            if self.pass_on(admitted).await.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// The next message; `None` when the connection is gone or the server is no longer assigned here.
    async fn next(&mut self) -> Option<v1::Up> {
        loop {
            tokio::select! {
                biased;
                changed = self.assigned.changed() => {
                    changed.ok()?;
                    let (settings, points) = (self.settings()?, self.points()?);
                    let _ = self.down.send(settings).await;
                    let _ = self.down.send(points).await;
                }
                up = timeout(SILENCE_LIMIT, self.up.recv()) => return up.ok().flatten(),
            }
        }
    }

    /// `None`: not assigned any more.
    fn settings(&mut self) -> Option<v1::Down> {
        let settings =
            self.assigned.borrow_and_update().as_ref().map(|assigned| assigned.settings.clone())?;
        Some(v1::Down { message: Some(v1::down::Message::Settings(settings)) })
    }

    fn points(&self) -> Option<v1::Down> {
        let requests = self.assigned.borrow().as_ref().map(|assigned| assigned.points.clone())?;
        Some(v1::Down { message: Some(v1::down::Message::Points(v1::PointRequests { requests })) })
    }

    /// An agent that is gone hears nothing; what it has sent before is taken in nevertheless.
    async fn answer(&self, heartbeat: v1::Heartbeat) {
        let now = self.env.wall.now();
        let answer = v1::HeartbeatAnswer {
            agent_time_micros: heartbeat.agent_time_micros,
            process_server_time_micros: now.0,
        };
        self.status.heartbeat(heartbeat, now);
        let message = Some(v1::down::Message::HeartbeatAnswer(answer));
        let _ = self.down.send(v1::Down { message }).await;
    }

    /// Waits for room in the spool and in memory; `None` when the server is not assigned any more.
    async fn admit(&mut self, batch: Batch) -> Option<Admitted> {
        let (space, memory) = (Arc::clone(&self.space), Arc::clone(&self.memory));
        let (server, plain_bytes) = (self.server.clone(), batch.plain_bytes);
        let admission = async move {
            let room = space.reserve(&server, sealed_bound(plain_bytes)).await;
            (room, memory.reserve(&server, plain_bytes as u64).await)
        };
        let (room, memory) = self.alive_until(admission).await?;
        Some(Admitted { batch, room, memory })
    }

    /// Waits for the stages behind; `None` when they have ended, or the server is not assigned any more.
    async fn pass_on(&mut self, admitted: Admitted) -> Option<()> {
        let out = self.out.clone();
        self.alive_until(async move { out.send(admitted).await.ok() }).await?
    }

    /// The agent is given signs of life while something is waited for; `None`: the server is not assigned any more.
    async fn alive_until<T>(&mut self, waited_for: impl Future<Output = T>) -> Option<T> {
        let mut waited_for = std::pin::pin!(waited_for);
        loop {
            match timeout(KEEP_ALIVE, &mut waited_for).await {
                Ok(done) => {
                    self.status.waiting(false);
                    return Some(done);
                }
                Err(_) => {
                    self.status.waiting(true);
                    let sign_of_life = self.settings()?;
                    // The agent may be gone for good: then what came from it is all the more worth keeping.
                    if let Err(TrySendError::Closed(_)) = self.down.try_send(sign_of_life) {
                        self.status.connected(false, self.env.wall.now());
                    }
                }
            }
        }
    }
}

/// What is not data is kept: in reports to the operator, in the coordinator's queue, until a record is committed.
fn check_length(message: &v1::up::Message) -> Result<(), Violation> {
    let (what, bytes, most) = match message {
        // Bounded by the codec, and looked at when the session begins.
        v1::up::Message::Chunk(_) | v1::up::Message::Hello(_) => return Ok(()),
        v1::up::Message::Heartbeat(heartbeat) => ("heartbeat", heartbeat.encoded_len(), MAX_NOTE_BYTES),
        v1::up::Message::SumsAsk(ask) => ("question for checksums", ask.encoded_len(), MAX_ASK_BYTES),
        v1::up::Message::Group(answer) => {
            ("answer about a group's point", answer.encoded_len(), MAX_NOTE_BYTES)
        }
        v1::up::Message::End(end) => ("record's end", end.encoded_len(), MAX_NOTE_BYTES),
    };
    if bytes > most { Err(Violation::Long { what, bytes }) } else { Ok(()) }
}

/// Most bytes that so much plain text can become: zstd's bound, header and authentication tag.
fn sealed_bound(plain_bytes: usize) -> u64 {
    (plain_bytes + plain_bytes / 256 + 1024) as u64
}
