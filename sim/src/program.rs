//! A program of a node: a task that can be crashed and started again.

use std::time::Duration;

use tokio::{task::JoinHandle, time::Instant};

/// Aborting the task is the crash: nothing survives but what was handed to a trait.
#[derive(Debug)]
pub(crate) struct Program {
    task: JoinHandle<()>,
    /// Down until then.
    down_until: Option<Instant>,
}

impl Program {
    pub(crate) fn up(task: JoinHandle<()>) -> Self {
        Self { task, down_until: None }
    }

    /// False when it is down already.
    pub(crate) fn crash(&mut self, down: Duration) -> bool {
        if self.down_until.is_some() {
            return false;
        }
        self.task.abort();
        self.down_until = Some(Instant::now() + down);
        true
    }

    /// Time to start it again.
    pub(crate) fn due(&self) -> bool {
        self.down_until.is_some_and(|until| until <= Instant::now())
    }

    /// It ended without a crash.
    pub(crate) fn ended(&self) -> bool {
        self.down_until.is_none() && self.task.is_finished()
    }
}
