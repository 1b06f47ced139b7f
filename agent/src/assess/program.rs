//! The edge: disks, kernel, signals, standard output.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lifeboat_replication::{blocks::BlockSet, env::Env, wire::v1::AgentIssue};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use super::{
    length,
    measurement::{Churn, Measurement},
    report::{Asked, Report},
    text,
};
use crate::{
    cli::{Assess, Output},
    edge::{DirtyMap, TrackError},
    kernel::{Discovery, DiskReader, Found, Tracker},
    machine,
};

/// Rounds shorter than this would measure the flip; longer ones no policy allows.
const INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);

#[derive(Debug, thiserror::Error)]
pub enum AssessError {
    #[error("--interval is from 1s to 5m, as roundInterval of a ReplicationPolicy")]
    Interval,
    #[error("--for is shorter than one round; give at least --interval")]
    TooShort,
    #[error("the disks of this server cannot be listed; is /sys mounted?")]
    Discovery(#[source] io::Error),
    #[error("there is no disk to measure: {refused}")]
    NoDisk { refused: String },
    #[error("tracking")]
    Track(#[from] TrackError),
    #[error("the disks cannot be opened; run as root")]
    Open(#[source] io::Error),
    #[error("signals cannot be received")]
    Signals(#[source] io::Error),
    #[error("the report cannot be written to standard output")]
    Write(#[source] io::Error),
}

impl Churn for Tracker {
    fn round(&mut self) -> Result<BlockSet, TrackError> {
        self.flip()?;
        let taken = self.take()?;
        self.forget(&taken)?;
        Ok(taken)
    }

    fn again(&mut self, blocks: &BlockSet) -> Result<BlockSet, TrackError> {
        self.issued_now(blocks)
    }

    fn written(&self) -> Vec<u64> {
        self.issued_bytes()
    }

    fn lost(&mut self) -> Option<String> {
        let lost = DirtyMap::lost(self)?;
        // Told once: what is counted from now on is whole again.
        _ = self.copy_all(&lost);
        Some(lost)
    }
}

/// Measures until it is done or a signal comes, then prints the report.
pub async fn run(arguments: Assess) -> Result<(), AssessError> {
    let Assess { disks, length: asked_length, interval, rpo, sample, output, progress } = arguments;
    if !INTERVALS.contains(&interval) {
        return Err(AssessError::Interval);
    }
    if asked_length < interval {
        return Err(AssessError::TooShort);
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(AssessError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AssessError::Signals)?;
    let env = Env::system();
    let discovery = Discovery { include: disks.include, ..Discovery::default() };
    let Found { disks, issues } = discovery.find().map_err(AssessError::Discovery)?;
    if disks.is_empty() {
        return Err(AssessError::NoDisk { refused: refused(&issues) });
    }
    let reader = DiskReader::open(&disks).map_err(AssessError::Open)?;
    let tracker = Tracker::unpinned(PathBuf::from("/sys"), env.wall.clone(), &disks)?;
    let tracking = tracker.tracking();
    let start = env.entropy.next_u64();
    let share = f64::from(sample) / 100.0;
    let mut measurement = Measurement::new(Box::new(tracker), Arc::new(reader), interval, share, start);
    eprintln!(
        "measuring {} disk(s) for {}; Ctrl-C ends it early and prints what is known by then",
        disks.len(),
        length::format(asked_length.as_secs_f64())
    );
    let stopped = {
        let measuring = measure(&mut measurement, asked_length, interval, progress);
        tokio::select! { biased;
            _ = terminate.recv() => true,
            _ = interrupt.recv() => true,
            ended = measuring => {
                ended?;
                false
            }
        }
    };
    // What the last round holds counts too, unless it is too short to say anything about rates.
    if stopped && measurement.in_round() >= interval / 2 {
        measurement.round().await?;
    }
    let asked = Asked { length: asked_length, interval, rpo };
    let machine = machine::describe(Path::new("/"));
    let report = Report::new(measurement.figures(), asked, &machine, &tracking, &issues);
    let mut out = io::stdout().lock();
    match output {
        Output::Text => write!(out, "{report}"),
        Output::Json => serde_json::to_writer_pretty(&mut out, &report)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out)),
    }
    .map_err(AssessError::Write)
}

/// Dropping it leaves the figures up to the last round.
async fn measure(
    measurement: &mut Measurement,
    asked: Duration,
    interval: Duration,
    progress: Duration,
) -> Result<(), TrackError> {
    let began = Instant::now();
    let mut due = began;
    let (mut told, mut since_told) = (began, 0);
    while due - began + interval <= asked {
        // A round that took long moves the others: they stay this long, as the replicator's do.
        due = (due + interval).max(Instant::now());
        measurement.rest(due).await;
        since_told += measurement.round().await?;
        if !progress.is_zero() && told.elapsed() >= progress {
            let rate = since_told as f64 / told.elapsed().as_secs_f64();
            eprintln!(
                "{} of {}: {}/s change now, {} since the beginning",
                length::format(began.elapsed().as_secs_f64()),
                length::format(asked.as_secs_f64()),
                text::bytes(rate as u64),
                text::bytes(measurement.figures().changed.total().bytes)
            );
            (told, since_told) = (Instant::now(), 0);
        }
    }
    Ok(())
}

fn refused(issues: &[AgentIssue]) -> String {
    let all: Vec<_> = issues.iter().map(|issue| format!("{} ({})", issue.message, issue.remedy)).collect();
    if all.is_empty() { "none was found; name one with --include-disk".to_owned() } else { all.join("; ") }
}
