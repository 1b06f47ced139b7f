//! Which faults a schedule has, and how often: drawn from its seed, each class none, rare or frequent.
//!
//! To add a class: one line in the list below, and a `dice.roll` (or a line in `world::hostile`) where it strikes. That it
//! struck is counted by itself, and a campaign in which it never did fails.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::rng::Rng;

/// The list. The number is the highest chance that a seed may draw, per mille of a request, a message or a piece of bytes, or a tick of
/// the world (about 150 ms).
macro_rules! classes {
    ($($(#[$doc:meta])* $name:ident = $most:literal,)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Class {
            $($(#[$doc])* $name,)*
        }

        impl Class {
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// It strikes bytes: on no other wire.
            pub fn needs_bytes(self) -> bool {
                matches!(self, Self::Silent | Self::Trickle)
            }

            fn most(self) -> u64 {
                match self {
                    $(Self::$name => $most,)*
                }
            }
        }
    };
}

classes! {
    // Of a request to the store.
    /// It never arrives.
    RequestLost = 60,
    /// It is done, and the answer never arrives.
    AnswerLost = 60,
    /// It arrives seconds later, after its caller gave up, tried again or died.
    Late = 60,
    /// It arrives twice.
    Twice = 40,
    Slow = 100,
    /// The store answers with an error that says nothing (429, 500, 503).
    StoreBusy = 60,
    /// The body of a download ends early.
    BodyCut = 40,
    // Of a message between agent and process server.
    /// The connection breaks at it.
    Broken = 20,
    Stalled = 40,
    // Of a piece of bytes between agent and process server, where there are bytes (`wire`).
    /// From here on the pipe carries nothing in this direction, for ever, and nobody is told: a firewall forgot it.
    Silent = 3,
    /// It comes byte by byte.
    Trickle = 40,
    // Of a segment's way into the spool.
    /// The volume is full.
    SpoolFull = 60,
    /// Less is there afterwards than was written.
    SpoolTorn = 60,
    // Of a process server's start.
    /// It finds an empty spool.
    SpoolLost = 600,
    // Of a tick of the world.
    ProcessServerCrash = 12,
    AgentCrash = 8,
    ApplierCrash = 12,
    /// A program stands still for longer than a lease lasts.
    Pause = 8,
    /// A node is cut off from the store, a process server from the agent, one way or both.
    Cut = 16,
    /// The server is assigned to another process server, and perhaps to a third one before that is done.
    Handover = 8,
    /// For a while two process servers believe that the server is theirs.
    TwoTakers = 6,
    /// Somebody breaks the lease of the log.
    BrokenLease = 8,
    /// The round interval changes, or replication is paused for a while.
    PolicyChange = 8,
    /// There is a new data key, and every program restarts with it.
    KeyRotated = 3,
    /// The store is restored from a copy of an earlier moment.
    StoreRestored = 4,
    /// The server reboots: marks are gone.
    Reboot = 2,
    /// The server is restarted in order: marks are carried over.
    OrderlyReboot = 3,
    /// A node's date jumps by hours, either way.
    ClockJump = 6,
    /// A failover fences and closes the log, and is taken back later.
    Failover = 4,
    /// Somebody asks for a point.
    PointRequest = 60,
    // Of a freeze.
    /// It fails, leaves a file system out, or lasts longer than the watchdog allows.
    Freeze = 500,
    // Of the hooks of applications.
    /// One fails, or does not last until the point.
    Hook = 500,
}

/// A schedule's dice: each class has its own, so that switching one off does not change what the others roll.
#[derive(Debug)]
pub struct Dice {
    classes: Vec<Die>,
    stopped: AtomicBool,
}

#[derive(Debug)]
struct Die {
    per_mille: u64,
    rng: Rng,
    struck: AtomicU64,
}

impl Dice {
    /// `off` are switched off whatever the seed says.
    pub fn draw(rng: &Rng, off: &[Class]) -> Self {
        let die = |class: &Class| {
            let rng = rng.named(class.name());
            let most = class.most();
            let per_mille = match rng.below(3) {
                0 => 0,
                1 => 1 + rng.below(most / 4 + 1),
                _ => 1 + rng.below(most),
            };
            Die { per_mille: if off.contains(class) { 0 } else { per_mille }, rng, struck: AtomicU64::new(0) }
        };
        Self { classes: Class::ALL.iter().map(die).collect(), stopped: AtomicBool::new(false) }
    }

    /// Does it strike now?
    pub fn roll(&self, class: Class) -> bool {
        let Some(die) = self.classes.get(class as usize) else { return false };
        let strikes =
            !self.stopped.load(Ordering::Relaxed) && die.per_mille > 0 && die.rng.below(1000) < die.per_mille;
        if strikes {
            die.struck.fetch_add(1, Ordering::Relaxed);
        }
        strikes
    }

    /// Can it strike in this schedule?
    pub fn may(&self, class: Class) -> bool {
        self.classes.get(class as usize).is_some_and(|die| die.per_mille > 0)
    }

    /// How it strikes: 0 to `bound` - 1.
    pub fn below(&self, class: Class, bound: u64) -> u64 {
        self.classes.get(class as usize).map_or(0, |die| die.rng.below(bound))
    }

    /// Nothing strikes from now on.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Per mille of each class that this schedule has.
    pub fn chances(&self) -> Vec<(Class, u64)> {
        let chances = Class::ALL.iter().zip(&self.classes).map(|(class, die)| (*class, die.per_mille));
        chances.filter(|(_, per_mille)| *per_mille > 0).collect()
    }

    /// How often each class struck.
    pub fn struck(&self) -> Vec<u64> {
        self.classes.iter().map(|die| die.struck.load(Ordering::Relaxed)).collect()
    }
}
