//! The date and randomness, given at construction so that the simulation controls them.
//! For durations everything uses `tokio::time`, which the simulation pauses.

use std::{fmt, sync::Arc};

/// Microseconds since 1970-01-01 UTC.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Micros(pub i64);

impl Micros {
    pub fn seconds_since(self, earlier: Self) -> f64 {
        (self.0 - earlier.0) as f64 / 1e6
    }
}

/// The date. It may jump; nothing may depend on it for ordering.
pub trait Wall: fmt::Debug + Send + Sync + 'static {
    fn now(&self) -> Micros;
}

/// Randomness for ids, keys and jitter.
pub trait Entropy: fmt::Debug + Send + Sync + 'static {
    fn fill(&self, bytes: &mut [u8]);

    fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn uuid(&self) -> String {
        let mut bytes = [0; 16];
        self.fill(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid().hyphenated().to_string()
    }
}

/// Both, as components take them.
#[derive(Debug, Clone)]
pub struct Env {
    pub wall: Arc<dyn Wall>,
    pub entropy: Arc<dyn Entropy>,
}

impl Env {
    /// The machine's clock and its random generator.
    pub fn system() -> Self {
        Self { wall: Arc::new(SystemWall), entropy: Arc::new(SystemEntropy(ring::rand::SystemRandom::new())) }
    }
}

#[derive(Debug)]
struct SystemWall;

impl Wall for SystemWall {
    #[allow(clippy::disallowed_methods, reason = "the one place where the date enters")]
    fn now(&self) -> Micros {
        let now = std::time::SystemTime::now();
        match now.duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => Micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX)),
            Err(before) => Micros(-i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX)),
        }
    }
}

#[derive(Debug)]
struct SystemEntropy(ring::rand::SystemRandom);

impl Entropy for SystemEntropy {
    #[allow(clippy::expect_used, reason = "a kernel without randomness leaves nothing safe to do")]
    fn fill(&self, bytes: &mut [u8]) {
        use ring::rand::SecureRandom as _;
        self.0.fill(bytes).expect("the kernel gives no random bytes");
    }
}
