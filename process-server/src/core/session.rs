//! One connection of one agent: Hello, Welcome, and the stages that carry its records to the log.

use std::{sync::Arc, time::Duration};

use lifeboat_replication::{
    errors::chain,
    ids::{RecordNumber, ServerId},
    planted::Planted,
    wire::{Accepted, PROTOCOL_VERSION, v1},
};
use prost::Message as _;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::{
    assembler::Assembler,
    assignment::Assigned,
    commit::{Begin, Begun, Opening},
    ingest::Shared,
    intake::Intake,
    kept::{Keeper, Origin, disks_sum},
    offer::{Offer, Unusable},
    sealing::{Sealing, SealingError},
    status::{StatusSender, Trouble},
    upload::{Upload, UploadError},
};

/// An agent says Hello at once.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// 64 disks with their ids and paths have less. What is refused stands in the program's log.
const MAX_HELLO_BYTES: usize = 128 << 10;
/// The append under way has to be settled before a Welcome; a vault that takes longer is away.
const BEGIN_LIMIT: Duration = Duration::from_secs(5);
/// Batches waiting between stages: each stage has its own work in hand, so one is enough to keep it busy.
const BATCHES: usize = 1;
/// Records that wait for the append under way. Their segments are in the vault already (or at most 64 KiB each).
pub(super) const UPLOADED: usize = 64;
/// When an agent should come again after something that mends itself.
pub(super) const SOON: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
enum StageError {
    #[error(transparent)]
    Sealing(#[from] SealingError),
    #[error(transparent)]
    Upload(#[from] UploadError),
}

/// Waits for the Hello of a connection; a message of another kind, or none, ends it.
pub(super) async fn greeting(mut accepted: Accepted) -> Option<(Accepted, v1::Hello)> {
    let up = timeout(HELLO_LIMIT, accepted.up.recv()).await.ok().flatten()?;
    match up.message {
        Some(v1::up::Message::Hello(hello)) if hello.encoded_len() <= MAX_HELLO_BYTES => {
            Some((accepted, hello))
        }
        _ => {
            refuse(
                &accepted.down,
                "the first message was no Hello, or one without measure",
                "update the agent",
                None,
            );
            None
        }
    }
}

/// Says why the connection ends. Best effort: an agent that takes nothing learns nothing.
pub(super) fn refuse(
    down: &mpsc::Sender<v1::Down>,
    reason: &str,
    remedy: &str,
    retry_after: Option<Duration>,
) {
    let retry_after_micros =
        retry_after.map_or(0, |after| u64::try_from(after.as_micros()).unwrap_or(u64::MAX).max(1));
    let refused = v1::Refused { reason: reason.to_owned(), remedy: remedy.to_owned(), retry_after_micros };
    let _ = down.try_send(v1::Down { message: Some(v1::down::Message::Refused(refused)) });
}

pub(super) struct Session {
    pub shared: Shared,
    pub server: ServerId,
    pub status: StatusSender,
    pub assigned: watch::Receiver<Option<Assigned>>,
    pub begins: mpsc::Sender<Begin>,
    pub accepted: Accepted,
    pub hello: v1::Hello,
}

impl Session {
    /// Ends when the connection is gone and all whole records of it are on their way to the log.
    pub(super) async fn run(self) {
        let (pieces, uploaded) = mpsc::channel(UPLOADED);
        let down = self.accepted.down.clone();
        let Some(begun) = self.begin(uploaded).await else { return };
        let asked = self
            .assigned
            .borrow()
            .as_ref()
            .map(|assigned| (assigned.settings.clone(), assigned.points.clone()));
        let Some((settings, requests)) = asked else { return };
        let (offer, sums) = self.offer(&begun).await;
        let last = &begun.tip;
        let welcome = v1::Welcome {
            sums,
            last: Some(v1::DurableMark {
                number: last.last_number.0,
                epoch: last.epoch.0,
                chain: last.chain.to_vec(),
            })
            .filter(|last| last.number > 0),
            protocol: PROTOCOL_VERSION.min(self.hello.protocol),
            epoch: begun.epoch.0,
            last_number: begun.last_number.0,
            disks: begun.judged.disks.clone(),
            settings: Some(settings),
            full_copy_reason: begun.judged.full_copy_reason.clone(),
            process_server_time_micros: self.shared.env.wall.now().0,
            points: Some(v1::PointRequests { requests }),
        };
        if down.send(v1::Down { message: Some(v1::down::Message::Welcome(welcome)) }).await.is_err() {
            return;
        }
        self.status.connected(true, self.shared.env.wall.now());
        tracing::info!(
            server = %self.server, session = self.hello.session, last_number = %begun.last_number,
            full_copy = begun.judged.full_copy_reason, "agent connected"
        );
        self.stages(begun, offer, pieces, down).await;
    }

    /// The vault's checksums for an agent that resynchronizes, looked at before its first record.
    async fn offer(&self, begun: &Begun) -> (Option<Offer>, Option<v1::SumsOffer>) {
        let judged = &begun.judged;
        if !self.hello.resynchronizing && judged.full_copy_reason.is_empty() {
            return (None, None);
        }
        let Shared { vault, env, log_options, .. } = &self.shared;
        let looked = match judged.vault_went_back {
            true => Err(Unusable::OtherLog),
            false => {
                let (disks, tip) = (&judged.disks, begun.tip.clone());
                Offer::look(vault, &self.server, env, disks, tip, log_options.planted).await
            }
        };
        match looked {
            Ok(offer) => {
                let sums = offer.to_wire();
                (Some(offer), Some(sums))
            }
            Err(error) => {
                let unusable = chain(&error);
                tracing::warn!(server = %self.server, unusable, "the vault's checksums cannot be used");
                (None, Some(v1::SumsOffer { disks: Vec::new(), unusable }))
            }
        }
    }

    async fn begin(&self, pieces: mpsc::Receiver<super::upload::Uploaded>) -> Option<Begun> {
        let (answer, answered) = oneshot::channel();
        let down = &self.accepted.down;
        let opening = Opening::Agent { hello: self.hello.clone(), down: down.clone(), answer };
        let begin = Begin { opening, pieces };
        let begun = timeout(BEGIN_LIMIT, async {
            self.begins.send(begin).await.ok()?;
            answered.await.ok()
        });
        match begun.await {
            Ok(Some(Ok(begun))) => Some(begun),
            Ok(Some(Err(refused))) => {
                self.status.violated();
                tracing::warn!(server = %self.server, reason = %refused, "agent refused");
                refuse(down, &refused.to_string(), &refused.remedy(), None);
                None
            }
            Ok(None) => None,
            Err(_) => {
                refuse(
                    down,
                    "the process server waits for the vault",
                    "nothing is lost: what has changed stays marked and is sent when the vault answers",
                    Some(BEGIN_LIMIT),
                );
                None
            }
        }
    }

    async fn stages(
        self,
        begun: Begun,
        offer: Option<Offer>,
        pieces: mpsc::Sender<super::upload::Uploaded>,
        down: mpsc::Sender<v1::Down>,
    ) {
        let Self { shared, server, status, assigned, begins, accepted, hello } = self;
        // Held to the end: the log's writer is not given back before this session is committed.
        let _begins = begins;
        let Accepted { up, down: _, server_id: _ } = accepted;
        let line = shared.groups.connect(server.as_str(), down.clone());
        let (admitted, to_seal) = mpsc::channel(BATCHES);
        let (sealed, to_upload) = mpsc::channel(BATCHES);
        let (asks, asked) = mpsc::channel(1);
        let intake = Intake {
            env: shared.env.clone(),
            status: status.clone(),
            space: Arc::clone(&shared.space),
            memory: Arc::clone(&shared.memory),
            server: server.to_string(),
            assigned: assigned.clone(),
            up,
            down: down.clone(),
            out: admitted,
            asks,
            groups: shared.groups.clone(),
        };
        let origin = Origin {
            session: hello.session,
            base: begun.last_number,
            epoch: begun.epoch,
            disks: disks_sum(&begun.tip.disks),
        };
        let (spool, wall) = (Arc::clone(&shared.spool), Arc::clone(&shared.env.wall));
        let sealing = Sealing {
            server: server.clone(),
            epoch: begun.epoch,
            writer: match shared.log_options.planted {
                Some(Planted::SegmentNameReused) => "0000000000000000".to_owned(),
                _ => format!("{:016x}", shared.env.entropy.next_u64()),
            },
            keys: Arc::clone(&shared.vault.keys),
            sealer: Arc::clone(&shared.sealer),
            spool: Arc::clone(&shared.spool),
            unspooled: Arc::clone(&shared.unspooled),
            keeper: Keeper::new(spool, wall, server.clone(), origin),
            assigned,
            input: to_seal,
            out: sealed,
            down: down.clone(),
        };
        let upload = Upload::new(&shared, server.clone(), status.clone(), to_upload, pieces);
        let intake = take_in(intake, &begun.judged.disks, begun.last_number, &server, &status, &down);
        let stages = futures::future::try_join3(
            async {
                intake.await;
                drop(line);
                status.connected(false, shared.env.wall.now());
                tracing::info!(%server, session = hello.session, "agent's connection ended");
                Ok(())
            },
            async { sealing.run().await.map_err(StageError::from) },
            async { upload.run().await.map_err(StageError::from) },
        );
        // Answers end with the session's records: whoever is gone needs none.
        let answers = async {
            if let Some(offer) = offer {
                offer.serve(asked, down.clone()).await;
            }
            std::future::pending().await
        };
        let staged = tokio::select! {
            biased;
            staged = stages => staged,
            () = answers => Ok(Default::default()),
        };
        if let Err(error) = staged {
            tracing::error!(%server, error = %chain(&error), "session ended: its records are sent again");
            status.connected(false, shared.env.wall.now());
            status.upload_trouble(Some(Trouble::new(v1::Hindrance::Spool, chain(&error))));
            refuse(&down, &chain(&error), "look at the process server's log", Some(SOON));
        }
    }
}

/// What came whole before a violation is still committed; the agent sends the rest again.
async fn take_in(
    intake: Intake,
    disks: &[v1::Disk],
    last_number: RecordNumber,
    server: &ServerId,
    status: &StatusSender,
    down: &mpsc::Sender<v1::Down>,
) {
    if let Err(violation) = intake.run(Assembler::new(disks, last_number)).await {
        status.violated();
        tracing::warn!(%server, %violation, "agent broke the protocol");
        let remedy = "the agent sends it again by itself; if this comes back, check the network path and the agent's version";
        refuse(down, &violation.to_string(), remedy, Some(SOON));
    }
}
