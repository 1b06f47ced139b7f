//! A thread that issues one record after the other until it is told to stop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{JoinHandle, sleep, spawn},
    time::Duration,
};

use lifeboat_tests::rig::Random;

use super::Times;

pub struct Writer {
    told_to_stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// `write` makes the record of the number durable; up to `pause` passes between two records.
    pub fn start(
        mut random: Random,
        pause: Duration,
        times: Arc<Times>,
        mut write: impl FnMut(u64) + Send + 'static,
    ) -> Self {
        let told_to_stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&told_to_stop);
        let most = u64::try_from(pause.as_micros()).unwrap();
        let thread = spawn(move || {
            while !told.load(Ordering::SeqCst) {
                let number = times.issue();
                write(number);
                times.acknowledge();
                sleep(Duration::from_micros(random.below(most)));
            }
        });
        Self { told_to_stop, thread: Some(thread) }
    }

    /// The record that is under way is finished; fails if the writer did.
    pub fn stop(&mut self) {
        self.told_to_stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.told_to_stop.store(true, Ordering::SeqCst);
        _ = self.thread.take().map(JoinHandle::join);
    }
}
