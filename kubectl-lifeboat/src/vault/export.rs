//! `vault export`: a disk of a point as a file.

use std::{
    io::IsTerminal as _,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::Args;
use lifeboat_recovery::{
    PointSelector,
    book::{Progress, export, inventory},
    select::time_text,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use super::{VaultError, access::Access};
use crate::text;

/// Lines of progress on a terminal, and in a log.
const ON_TERMINAL: Duration = Duration::from_secs(1);
const IN_LOG: Duration = Duration::from_secs(30);

#[derive(Args)]
pub(crate) struct Export {
    /// Id, name or namespace/name of a server.
    server: String,
    /// `latest`, the number of a point, or a time (RFC 3339): the newest point up to it.
    #[arg(long, default_value = "latest")]
    point: PointSelector,
    /// Slot, id or path of the disk; not needed when there is only one.
    #[arg(long)]
    disk: Option<String>,
    /// The file: *.raw for the bytes of the disk, *.vhd for a fixed VHD. It must not exist yet.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    #[command(flatten)]
    access: Access,
}

impl Export {
    pub(super) async fn run(self) -> Result<ExitCode, VaultError> {
        let opened = self.access.open().await?;
        let servers = inventory::servers(&opened.vault, &opened.patience).await?;
        let held = inventory::choose(servers, &self.server)?;
        let export = export::Export::open(
            &opened.vault,
            &held.id,
            &opened.env,
            self.point,
            self.disk.as_deref(),
            &self.to,
        )
        .await?;
        let (point, disk) = (export.point(), export.disk());
        eprintln!(
            "{}: point {} of {}, disk {} ({}), {}, to {}",
            held.name(),
            point.number,
            time_text(point.t0),
            disk.slot,
            disk.path,
            text::bytes(disk.size_bytes),
            self.to.display()
        );
        if let Some(why) = export.not_held() {
            eprintln!(
                "note: {why}, so retention may delete a point at its end meanwhile; if that happens, take a younger one"
            );
        }
        let pinned = export.not_held().is_none();
        let stopped = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stopped);
        let mut terminate = signal(SignalKind::terminate()).map_err(VaultError::Signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(VaultError::Signals)?;
        let waiting = tokio::spawn(async move {
            tokio::select! {
                biased;
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            told.store(true, Ordering::Relaxed);
        });
        let mut shown = Shown::new();
        let outcome = export.run(|progress| shown.show(progress), || stopped.load(Ordering::Relaxed)).await;
        waiting.abort();
        shown.end();
        match outcome? {
            export::Outcome::Whole => {
                println!("{}", self.to.display());
                Ok(ExitCode::SUCCESS)
            }
            export::Outcome::Stopped => {
                let kept = if pinned { ", its point is kept for another hour" } else { "" };
                eprintln!("stopped: the same command goes on from here{kept}");
                Ok(ExitCode::from(130))
            }
        }
    }
}

/// Done, total, rate and time left, now and then.
struct Shown {
    terminal: bool,
    begun: Instant,
    last: Option<Instant>,
}

impl Shown {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), begun: Instant::now(), last: None }
    }

    fn show(&mut self, progress: Progress) {
        let every = if self.terminal { ON_TERMINAL } else { IN_LOG };
        let whole = progress.done_bytes == progress.total_bytes;
        if !whole && self.last.is_some_and(|last| last.elapsed() < every) {
            return;
        }
        self.last = Some(Instant::now());
        let line = line(progress, self.begun.elapsed());
        if self.terminal {
            eprint!("\r\x1b[K{line}");
        } else {
            eprintln!("{line}");
        }
    }

    fn end(&self) {
        if self.terminal {
            eprintln!();
        }
    }
}

fn line(progress: Progress, elapsed: Duration) -> String {
    let Progress { done_bytes, total_bytes, resumed_bytes } = progress;
    let fresh = done_bytes.saturating_sub(resumed_bytes);
    let rate = fresh as f64 / elapsed.as_secs_f64().max(0.001);
    let left = match rate > 0.0 {
        true => text::seconds(((total_bytes - done_bytes) as f64 / rate).round() as u64),
        false => "unknown".to_owned(),
    };
    format!(
        "{} of {} used ({} %), {}/s, {left} left",
        text::bytes(done_bytes),
        text::bytes(total_bytes),
        (done_bytes * 100).checked_div(total_bytes).unwrap_or(100),
        text::bytes(rate as u64),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_leaves_out_what_an_earlier_try_had_done() {
        let progress = Progress { done_bytes: 60 << 20, total_bytes: 100 << 20, resumed_bytes: 40 << 20 };
        assert_eq!(
            line(progress, Duration::from_secs(10)),
            "60.0 MiB of 100.0 MiB used (60 %), 2.0 MiB/s, 20s left"
        );
    }
}
