//! Holds a point: finds it, pins what it is made of, and keeps the pin until it is released.
//!
//! The pin is written before anything is read for long; then the catalogue is read once more. If retention took the
//! point away in between, another base is looked for; else the pin is confirmed. See `lifeboat_replication::pins` for
//! the order on both sides.
//! **Crash**: the pin stays and expires by itself. A restart with the same run's name takes a confirmed one over, and
//! reads on under it what the catalogue does not list any more.

use std::time::Duration;

use lifeboat_replication::{
    env::Env,
    errors::chain,
    ids::ServerId,
    log::Patience,
    pins::{self, FORMAT, Pin, PinError},
    vault::Vault,
};
use tokio::time::sleep;

use crate::{
    scan::{self, Found, ScanError},
    select::PointSelector,
};

/// A pin counts for so long after it was last written: more than a store is usually away.
pub const HELD_FOR: Duration = Duration::from_secs(3600);
/// It is written this many times in that time.
const RENEWALS: u32 = 12;
/// Points that retention took away before the pin stood.
const TRIES: u32 = 5;

#[derive(Debug)]
pub struct Hold {
    vault: Vault,
    server: ServerId,
    env: Env,
    pin: Pin,
    held_for: Duration,
}

impl Hold {
    /// Finds the point that `selector` wants and pins it as `run` for `held_for` at a time.
    ///
    /// # Errors
    /// When there is no such point, or the pin cannot be written.
    pub async fn take(
        vault: &Vault,
        server: &ServerId,
        env: &Env,
        selector: PointSelector,
        run: &str,
        held_for: Duration,
    ) -> Result<(Found, Self), ScanError> {
        // Read before it is replaced. An unconfirmed one may have come too late.
        let own = pins::of(&*vault.store, server, run).await?.map(|standing| standing.pin);
        let mut own = own.filter(|pin| pin.confirmed);
        for _ in 0..TRIES {
            let found = scan::find_under(vault, server, env, selector, own.as_ref()).await?;
            // It is about to be replaced.
            own = own.filter(|_| found.under_pin);
            let (base, records) = found.needs();
            let pin = Pin {
                format: FORMAT,
                server: server.to_string(),
                run: run.to_owned(),
                base,
                records,
                held_for_seconds: held_for.as_secs(),
                renewed_at_micros: 0,
                confirmed: found.under_pin,
            };
            let mut hold =
                Self { vault: vault.clone(), server: server.clone(), env: env.clone(), pin, held_for };
            hold.renew().await?;
            if found.is_promised(&scan::listed(vault, server).await?) {
                if !hold.pin.confirmed {
                    hold.pin.confirmed = true;
                    hold.renew().await?;
                }
                return Ok((found, hold));
            }
            tracing::warn!(%server, point = found.number, "retention took what the point is made of, looking again");
        }
        Err(ScanError::Restless)
    }

    /// Writes the pin again. It counts from now on, if it had not expired before.
    ///
    /// # Errors
    /// When it is not certain that it stands.
    pub async fn renew(&self) -> Result<(), PinError> {
        let pin = Pin { renewed_at_micros: self.env.wall.now().0, ..self.pin.clone() };
        let patience = Patience::new(self.env.clone());
        pins::write(&*self.vault.store, &self.server, &pin, &patience).await
    }

    /// Renews for ever.
    pub async fn keep(&self) {
        loop {
            sleep(self.held_for / RENEWALS).await;
            if let Err(error) = self.renew().await {
                let (server, run) = (&self.server, &self.pin.run);
                tracing::warn!(%server, run, error = %chain(&error), "the pin is not renewed, trying again; the point may be deleted when that stays so");
            }
        }
    }

    /// Lets go. Best effort: the pin expires by itself.
    pub async fn release(&self) {
        if let Err(error) = pins::remove(&*self.vault.store, &self.server, &self.pin.run).await {
            tracing::debug!(server = %self.server, %error, "pin not removed; it expires by itself");
        }
    }
}
