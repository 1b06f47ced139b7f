//! `shutdown`: takes a server out of service with all that it ever wrote in the vault, and waits until it is off.

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use lifeboat_crds::{
    ProtectedServer,
    server::{Shutdown as Known, ShutdownState},
};
use serde_json::json;

use crate::cluster::{Cluster, PluginError, api};

/// The server is looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So many looks without news are told.
const LOOKS_PER_REMINDER: u32 = 120;

#[derive(Args)]
pub(crate) struct Shutdown {
    /// The ProtectedServer.
    server: String,
    /// Do it: without this only what would happen is said.
    #[arg(long)]
    yes: bool,
    /// Asks and comes back.
    #[arg(long)]
    no_wait: bool,
}

impl Shutdown {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<(), PluginError> {
        let Self { server, yes, no_wait } = self;
        // That it exists is said before anything is asked.
        let _: ProtectedServer = cluster.get("ProtectedServer", &server).await?;
        if !yes {
            println!(
                "This stops all services of server {server}, makes its file systems read-only, replicates what is left, and \
                 switches it off.\nIt then has to be switched on by hand. To do it: add --yes"
            );
            return Ok(());
        }
        // As it comes back from the API server.
        let now = Timestamp::now();
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let patch = Patch::Merge(json!({"spec": {"requestShutdown": now}}));
        let patched = cluster.api::<ProtectedServer>().patch(&server, &PatchParams::default(), &patch).await;
        patched.map_err(|source| api(&format!("asking server {server} to shut down"), source))?;
        println!("server {server} is asked to shut down ({now})");
        if no_wait {
            return Ok(());
        }
        let mut told = ShutdownState::Requested;
        let mut without_news = 0;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            without_news += 1;
            if without_news % LOOKS_PER_REMINDER == 0 {
                eprintln!(
                    "no news for {} minutes; what hinders it: `kubectl lifeboat status`, `kubectl describe pserver {server}`",
                    without_news / 60
                );
            }
            let found: ProtectedServer = cluster.get("ProtectedServer", &server).await?;
            if found.spec.request_shutdown != Some(now) {
                return Err(PluginError::refused(
                    "another shutdown was asked for meanwhile, or this one was taken back",
                    format!("see `kubectl get pserver {server} -o yaml`"),
                ));
            }
            let known = found.status.and_then(|status| status.shutdown);
            let Some(known) = known.filter(|known| known.requested_at == now) else { continue };
            if known.state != told {
                told = known.state;
                without_news = 0;
                println!("{}", said(&known)?);
            }
            if told == ShutdownState::PoweredOff {
                return Ok(());
            }
        }
    }
}

fn said(known: &Known) -> Result<String, PluginError> {
    let complete = || {
        known.complete_at.map_or_else(String::new, |at| format!("; the vault holds all it wrote, as of {at}"))
    };
    Ok(match known.state {
        ShutdownState::Requested => "the agent has not answered yet".to_owned(),
        ShutdownState::Stopping => "its services are being stopped".to_owned(),
        ShutdownState::Replicating => "nothing writes any more; what is left is replicated".to_owned(),
        ShutdownState::PoweredOff => format!("it is off{}", complete()),
        ShutdownState::Refused => {
            return Err(PluginError::refused(
                format!("the server is not shut down ({})", known.reason.clone().unwrap_or_default()),
                known.message.clone().unwrap_or_default(),
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_is_told_and_a_refusal_is_an_error_with_its_remedy() {
        let mut known = Known {
            requested_at: Timestamp::UNIX_EPOCH,
            state: ShutdownState::PoweredOff,
            complete_at: Some(Timestamp::UNIX_EPOCH),
            reason: None,
            message: None,
        };
        let off = said(&known).map_err(|error| error.to_string());
        assert_eq!(off.unwrap(), "it is off; the vault holds all it wrote, as of 1970-01-01T00:00:00Z");
        known.state = ShutdownState::Refused;
        known.reason = Some("CopyUnderWay".to_owned());
        known.message = Some("ask again when the copy is complete".to_owned());
        let refused = said(&known).unwrap_err().to_string();
        assert_eq!(
            refused,
            "the server is not shut down (CopyUnderWay): ask again when the copy is complete"
        );
    }
}
