//! Pauses between tries: doubling, bounded, with jitter.

use std::time::Duration;

use lifeboat_replication::env::Env;
use tokio::time::sleep;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);

/// Before try `tried + 1`.
pub(super) async fn pause(env: &Env, tried: u32) {
    jittered(env, FIRST.saturating_mul(1 << tried.min(10)).min(LONGEST)).await;
}

/// Between once and twice as long.
pub(super) async fn jittered(env: &Env, pause: Duration) {
    let spread = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX).max(1);
    sleep(pause + Duration::from_micros(env.entropy.next_u64() % spread)).await;
}
