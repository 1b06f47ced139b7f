//! What hinders a server at its process server, and what that means for its status. Pure.
//!
//! Most of it mends itself: the server stays what it is, its condition `Ready` says what is waited for, and the RPO
//! says how late the vault is. Only what waits for a person is a failure.

use lifeboat_crds::{conditions::Reason, server::Severity};
use lifeboat_replication::wire::v1;

#[derive(Debug, Clone, Copy)]
pub(super) struct Hindrance<'a> {
    kind: v1::Hindrance,
    words: &'a str,
}

/// The same while it has to wait and while it does not for a moment.
const UPLINK: &str = "more was written than the uplink or the vault takes: the agent waits, nothing is lost, and the RPO is \
    high until it has caught up";

impl<'a> Hindrance<'a> {
    /// A slow uplink makes an agent wait again and again; between two waits the vault is as late as before.
    pub(super) const CATCHES_UP: Hindrance<'static> =
        Hindrance { kind: v1::Hindrance::Uplink, words: UPLINK };

    pub(super) fn of(report: &'a v1::ServerReport) -> Option<Self> {
        (!report.error.is_empty()).then(|| Self { kind: report.hindrance(), words: &report.error })
    }

    /// Nothing goes on before somebody acts.
    pub(super) fn is_failure(self) -> bool {
        match self.kind {
            v1::Hindrance::Store | v1::Hindrance::Uplink | v1::Hindrance::Held | v1::Hindrance::Spool => {
                false
            }
            // Process servers from before kinds were told say so of everything.
            v1::Hindrance::Closed | v1::Hindrance::Damaged | v1::Hindrance::Unspecified => true,
        }
    }

    /// Agents are not served meanwhile, if they are not connected: their silence says nothing of them.
    pub(super) fn refuses_agents(self) -> bool {
        !matches!(self.kind, v1::Hindrance::Uplink | v1::Hindrance::Unspecified)
    }

    pub(super) fn reason(self) -> Reason {
        match self.kind {
            v1::Hindrance::Store => Reason::VaultUnreachable,
            v1::Hindrance::Uplink => Reason::UploadBacklog,
            v1::Hindrance::Held => Reason::LogHeld,
            v1::Hindrance::Spool => Reason::SpoolFailed,
            v1::Hindrance::Damaged => Reason::LogDamaged,
            v1::Hindrance::Closed | v1::Hindrance::Unspecified => Reason::LogClosed,
        }
    }

    /// `late`: the RPO is above the policy's threshold.
    pub(super) fn severity(self, late: bool) -> Severity {
        if late || self.is_failure() { Severity::Critical } else { Severity::Warning }
    }

    /// A copy, or a burst, is faster than any line: worth a word only when the vault gets old.
    pub(super) fn is_worth_a_word(self, late: bool) -> bool {
        late || self.kind != v1::Hindrance::Uplink
    }

    pub(super) fn message(self) -> String {
        match self.kind {
            v1::Hindrance::Store => format!("its process server waits for the vault: {}", self.words),
            v1::Hindrance::Spool => format!("its process server cannot use its volume: {}", self.words),
            v1::Hindrance::Damaged => format!("its log in the vault cannot be continued: {}", self.words),
            v1::Hindrance::Uplink => UPLINK.to_owned(),
            _ => self.words.to_owned(),
        }
    }

    pub(super) fn remedy(self) -> &'static str {
        match self.kind {
            v1::Hindrance::Store => {
                "nothing is lost: what changes stays marked on the server and is sent when the vault answers; if it does not, check spec.vault.azure of the appliance, the network path to it, and the storage account's firewall and health"
            }
            v1::Hindrance::Uplink => {
                "it catches up by itself when less is written; if it does not, a faster uplink, wider spec.bandwidth of the appliance, or a longer roundInterval in the policy"
            }
            v1::Hindrance::Held => "wait: leases run out within a minute",
            v1::Hindrance::Spool => {
                "nothing is lost, the agent sends again: look at the volume of the process server's pod (full, read-only, broken?)"
            }
            v1::Hindrance::Closed => {
                "cancel or clean up that run (`kubectl get frun`), or protect the machine anew when it has been failed over"
            }
            v1::Hindrance::Damaged => {
                "run `kubectl lifeboat vault verify`, and restore what it names from the store's versions or soft delete; or protect the machine anew"
            }
            v1::Hindrance::Unspecified => "do as the message says",
        }
    }
}
