//! What the programs themselves log, with the virtual time.

use std::{cell::Cell, fmt, io};

use tokio::time::Instant;
use tracing_subscriber::fmt::{format::Writer, time::FormatTime};

thread_local! {
    /// When the schedule of this thread began.
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

pub(crate) fn begins(at: Instant) {
    BEGAN.set(Some(at));
}

struct VirtualTime;

impl FormatTime for VirtualTime {
    fn format_time(&self, to: &mut Writer<'_>) -> fmt::Result {
        let now = BEGAN.get().map(|began| began.elapsed().as_secs_f64()).unwrap_or_default();
        write!(to, "{now:>9.3}")
    }
}

/// Prints what the programs log.
pub fn print() {
    tracing_subscriber::fmt().with_timer(VirtualTime).with_ansi(false).with_target(false).init();
}

/// Has everything logged, down to the finest level, and throws it away: to show that logging changes nothing.
pub fn discard() {
    let all = tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::TRACE);
    all.with_timer(VirtualTime).with_writer(io::sink).init();
}
