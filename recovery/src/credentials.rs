//! A machine may run for longer than the credential that its disk server began with. When the store denies something, the
//! credential is read again from its file, which Kubernetes keeps as the Secret is, and calls go on with that.
//!
//! In: refusals of the vault's two stores, and how to connect anew. Out: stores that are replaced while they are used.
//! Bounds: one look in [`AGAIN_AFTER`], however many calls are denied.

use std::{sync::Arc, time::Duration};

use lifeboat_replication::{
    errors::chain,
    store::{
        Refusal, Result,
        gated::{Call, Gate, Gated},
    },
    vault::{
        Vault,
        config::{ConfigError, Stores},
    },
};
use tokio::{sync::Notify, time::sleep};

const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Tells of calls that are denied.
#[derive(Debug, Clone, Default)]
struct Denials(Arc<Notify>);

impl Gate for Denials {
    async fn pass<T: Send>(
        &self,
        _call: Call<'_>,
        request: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let answer = request.await;
        if answer.as_ref().is_err_and(|error| error.is(Refusal::Denied)) {
            self.0.notify_one();
        }
        answer
    }
}

/// Replaces the stores of a vault.
#[derive(Debug)]
pub struct Renewal {
    denials: Denials,
    store: Arc<Gated<Denials>>,
    cache: Arc<Gated<Denials>>,
}

impl Renewal {
    /// The vault whose stores can be replaced.
    pub fn of(vault: Vault) -> (Vault, Self) {
        let denials = Denials::default();
        let store = Gated::new(vault.store.clone(), denials.clone());
        let cache = Gated::new(vault.cache.clone(), denials.clone());
        let renewed = Vault { store: store.clone(), cache: cache.clone(), ..vault };
        (renewed, Self { denials, store, cache })
    }

    /// For ever. `connect` makes the stores with the credential as it is now; it sends nothing.
    pub async fn run(self, connect: impl Fn() -> Result<Stores, ConfigError>) {
        loop {
            self.denials.0.notified().await;
            match connect() {
                Ok((store, cache)) => {
                    tracing::warn!("the vault denies what is read: the credential was read again");
                    self.store.replace(store);
                    self.cache.replace(cache);
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the vault denies what is read, and the credential cannot be read again");
                }
            }
            sleep(AGAIN_AFTER).await;
        }
    }
}
