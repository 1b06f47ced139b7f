//! The server is taken out of service by order, so that what is in the vault is all that it ever wrote: the first part of
//! a planned failover.
//!
//! ```text
//!   asked ─► STOPPING services stop, file systems become read-only ─► REPLICATING rounds as always, at once
//!      └──► REFUSED (and why)                                            ▲ │ nothing is dirty, in flight or unacknowledged
//!                                                    something was written │ ▼
//!                                          goes off ◄─ heard often enough ─ OFF said in each heartbeat
//! ```
//! - **Point of no return**: STOPPING. From then on the server serves nobody; whoever wants it back restarts it.
//! - **What writes all the same** (swap, the kernel's own lists of a file system) is replicated too: OFF is taken back, and
//!   the last look is in the moment before the machine goes off.
//! - **Break of the connection** changes nothing: this outlives sessions, and the answer is repeated.
//! - **Restart of the agent**: the same order begins again; each of its steps may be done twice.
//! - **Restart of the server**: an order that was begun in an earlier run of the machine is refused, so that a server that
//!   somebody has switched on again is not switched off once more.

use std::sync::Arc;

use futures::{FutureExt as _, future::BoxFuture};
use lifeboat_replication::{env::Micros, errors::chain, wire::v1};

use crate::edge::{Begun, Power, PowerError};

/// Heartbeats that have to be answered after OFF was said, one a second: the process server reports to the operator
/// every few seconds.
const SAID: u32 = 8;

/// A refusal: a code, and words with the remedy.
pub(super) type Obstacle = (&'static str, String);

#[derive(Default)]
pub(super) struct Shutdown {
    order: Option<Order>,
}

struct Order {
    id: String,
    stage: Stage,
}

enum Stage {
    Stopping(BoxFuture<'static, Result<(), PowerError>>),
    Replicating,
    Off { complete_at: Micros, said: u32 },
    Refused(Obstacle),
}

impl Shutdown {
    /// What the settings say; empty: nothing. An order that is under way is not stopped by another one, or by none.
    pub(super) fn asked(&mut self, id: &str, power: Option<&Arc<dyn Power>>, obstacle: Option<Obstacle>) {
        match &self.order {
            Some(order) if order.id == id => return,
            Some(Order { stage: Stage::Refused(_), .. }) | None => {}
            Some(_) => return,
        }
        self.order = (!id.is_empty()).then(|| Order { id: id.to_owned(), stage: begin(id, power, obstacle) });
    }

    /// Comes back when the server is quiet, or when that failed; never when nothing is being stopped.
    pub(super) async fn stopped(&mut self) -> Result<(), PowerError> {
        match &mut self.order {
            Some(Order { stage: Stage::Stopping(stopping), .. }) => stopping.as_mut().await,
            _ => std::future::pending().await,
        }
    }

    /// What [`Self::stopped`] came back with.
    pub(super) fn has_stopped(&mut self, done: Result<(), PowerError>) {
        let Some(order) = &mut self.order else { return };
        order.stage = match done {
            Ok(()) => {
                tracing::warn!(
                    id = order.id,
                    "nothing writes any more: what is left is replicated, then the server goes off"
                );
                Stage::Replicating
            }
            Err(error) => refused("NotStopped", &error),
        };
    }

    /// Rounds should follow each other at once.
    pub(super) fn is_in_a_hurry(&self) -> bool {
        matches!(self.order, Some(Order { stage: Stage::Replicating, .. }))
    }

    /// At this instant nothing was dirty, in flight or unacknowledged; 0: it is not so.
    pub(super) fn clean(&mut self, at: Micros) {
        let Some(order) = &mut self.order else { return };
        match &mut order.stage {
            Stage::Replicating if at.0 > 0 => order.stage = Stage::Off { complete_at: at, said: 0 },
            Stage::Off { complete_at, said: _ } if at.0 > 0 => *complete_at = at,
            Stage::Off { .. } => {
                tracing::warn!(id = order.id, "something was written all the same: it is replicated too");
                order.stage = Stage::Replicating;
            }
            _ => {}
        }
    }

    /// A heartbeat was answered. True: it is time to go off.
    pub(super) fn answered(&mut self) -> bool {
        match &mut self.order {
            Some(Order { stage: Stage::Off { said, .. }, .. }) => {
                *said += 1;
                *said >= SAID
            }
            _ => false,
        }
    }

    pub(super) fn answer(&self) -> Option<v1::ShutdownAnswer> {
        let Order { id, stage } = self.order.as_ref()?;
        let mut answer = v1::ShutdownAnswer { id: id.clone(), ..Default::default() };
        match stage {
            Stage::Stopping(_) => answer.set_state(v1::ShutdownState::Stopping),
            Stage::Replicating => answer.set_state(v1::ShutdownState::Replicating),
            Stage::Off { complete_at, said: _ } => {
                answer.set_state(v1::ShutdownState::Off);
                answer.complete_at_micros = complete_at.0;
            }
            Stage::Refused((reason, message)) => {
                answer.set_state(v1::ShutdownState::Refused);
                (answer.reason, answer.message) = ((*reason).to_owned(), message.clone());
            }
        }
        Some(answer)
    }
}

fn begin(id: &str, power: Option<&Arc<dyn Power>>, obstacle: Option<Obstacle>) -> Stage {
    if let Some(obstacle) = obstacle {
        return Stage::Refused(obstacle);
    }
    let Some(power) = power else {
        let message = "the agent was started with --no-shutdown: take it off its unit (`systemctl edit lifeboat-agent`), or \
            shut the server down by hand";
        return Stage::Refused(("NotAllowed", message.to_owned()));
    };
    match power.begin(id) {
        Ok(Begun::Now) => {
            tracing::warn!(id, "the server is taken out of service by order of the appliance");
            Stage::Stopping(power.quiet().boxed())
        }
        Ok(Begun::Earlier) => {
            let message = "the server was started again since: ask anew if it is to be shut down";
            Stage::Refused(("StartedAgain", message.to_owned()))
        }
        Err(error) => refused("NotStopped", &error),
    }
}

fn refused(reason: &'static str, error: &PowerError) -> Stage {
    tracing::error!(error = %chain(error), "the server is not shut down");
    Stage::Refused((reason, chain(error)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Debug, Default)]
    struct Switch {
        earlier: bool,
        fails: bool,
        quieted: AtomicU32,
    }

    impl Power for Switch {
        fn begin(&self, _id: &str) -> Result<Begun, PowerError> {
            Ok(if self.earlier { Begun::Earlier } else { Begun::Now })
        }

        fn quiet(&self) -> BoxFuture<'static, Result<(), PowerError>> {
            self.quieted.fetch_add(1, Ordering::Relaxed);
            let result = if self.fails {
                Err(PowerError::StillWritable { mounts: "/srv".to_owned() })
            } else {
                Ok(())
            };
            async move { result }.boxed()
        }

        fn off(&self) {}
    }

    fn state(shutdown: &Shutdown) -> v1::ShutdownState {
        shutdown.answer().map_or(v1::ShutdownState::Unspecified, |answer| answer.state())
    }

    #[tokio::test]
    async fn it_goes_off_only_when_all_is_in_the_vault_and_that_was_heard() {
        let switch = Arc::new(Switch::default());
        let power: Arc<dyn Power> = switch.clone();
        let mut shutdown = Shutdown::default();
        shutdown.asked("", Some(&power), None);
        assert!(shutdown.answer().is_none());
        shutdown.asked("1", Some(&power), None);
        shutdown.clean(Micros(5));
        assert_eq!(state(&shutdown), v1::ShutdownState::Stopping, "what was clean before counts for nothing");
        let done = shutdown.stopped().await;
        shutdown.has_stopped(done);
        assert!(shutdown.is_in_a_hurry());
        // Nobody can stop it, or begin it once more.
        for id in ["1", "", "2"] {
            shutdown.asked(id, Some(&power), None);
        }
        shutdown.clean(Micros(0));
        assert!(!shutdown.answered());
        assert_eq!(state(&shutdown), v1::ShutdownState::Replicating);
        shutdown.clean(Micros(7));
        assert!(!shutdown.answered());
        // Swap was written to.
        shutdown.clean(Micros(0));
        assert_eq!(state(&shutdown), v1::ShutdownState::Replicating);
        shutdown.clean(Micros(8));
        shutdown.clean(Micros(9));
        assert_eq!(shutdown.answer().unwrap().complete_at_micros, 9);
        let heard = (1..100).find(|_| shutdown.answered());
        assert_eq!((heard, switch.quieted.load(Ordering::Relaxed)), (Some(SAID), 1));
    }

    #[tokio::test]
    async fn what_cannot_be_is_refused_and_may_be_asked_for_again() {
        let power = |switch: Switch| -> Arc<dyn Power> { Arc::new(switch) };
        let mut shutdown = Shutdown::default();
        let reason = |shutdown: &Shutdown| shutdown.answer().unwrap().reason;
        shutdown.asked("1", None, None);
        assert_eq!(reason(&shutdown), "NotAllowed");
        shutdown.asked("2", Some(&power(Switch::default())), Some(("Copying", "wait".to_owned())));
        assert_eq!(reason(&shutdown), "Copying");
        shutdown.asked("3", Some(&power(Switch { earlier: true, ..Switch::default() })), None);
        assert_eq!(reason(&shutdown), "StartedAgain");
        shutdown.asked("4", Some(&power(Switch { fails: true, ..Switch::default() })), None);
        let done = shutdown.stopped().await;
        shutdown.has_stopped(done);
        assert_eq!(reason(&shutdown), "NotStopped");
        assert!(shutdown.answer().unwrap().message.contains("/srv"));
        shutdown.asked("", None, None);
        assert!(shutdown.answer().is_none());
    }
}
