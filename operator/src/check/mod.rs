//! `lifeboat-operator check`: what check Jobs run. Asks a recovered service until it answers as expected or its time is
//! over. A port that accepts proves nothing (QEMU accepts before the guest listens): an answer must be read.

mod http;
mod tcp;

use std::time::Duration;

use lifeboat_crds::check::{HttpCheck, TcpCheck};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

use crate::failover::effect::OwnedProbe;

/// The variable that holds an [`Order`] as JSON.
pub const VARIABLE: &str = "LIFEBOAT_CHECK";
/// A service that is there answers within this time.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The check ends before the step's time-out, so that its last answer is what people read.
const MARGIN: Duration = Duration::from_secs(3);
/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 16 << 10;

/// What to ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    pub address: String,
    pub timeout_seconds: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,
}

#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("{VARIABLE} is not set: this command is for check Jobs, which the operator makes")]
    NoOrder,
    #[error("{VARIABLE} cannot be read")]
    Order(#[source] serde_json::Error),
    #[error("the check names neither http nor tcp")]
    NoProbe,
    #[error("{expect:?} is no regular expression: correct `expect` of the check")]
    Expect {
        expect: String,
        #[source]
        source: Box<regex::Error>,
    },
    #[error("no expected answer within {seconds} s; the last one: {last}")]
    TimedOut { seconds: u64, last: String },
}

/// Why one try did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Miss {
    #[error("{0}")]
    Connect(#[from] std::io::Error),
    #[error("no answer within {} s", TRY_TIMEOUT.as_secs())]
    Silent,
    #[error("closed without an answer")]
    Closed,
    #[error("another answer than expected: {0}")]
    Other(String),
}

impl Order {
    pub fn new(address: &str, probe: &OwnedProbe, timeout_seconds: u64) -> Self {
        let (http, tcp) = match probe {
            OwnedProbe::Http(http) => (Some(http.clone()), None),
            OwnedProbe::Tcp(tcp) => (None, Some(tcp.clone())),
        };
        Self { address: address.to_owned(), timeout_seconds, http, tcp }
    }

    pub fn to_json(&self) -> String {
        // Plain structs cannot fail to become JSON.
        serde_json::to_string(self).unwrap_or_default()
    }

    pub fn from_environment() -> Result<Self, CheckError> {
        let text = std::env::var(VARIABLE).map_err(|_| CheckError::NoOrder)?;
        serde_json::from_str(&text).map_err(CheckError::Order)
    }
}

/// Asks until the answer is right; returns the answer for people.
pub async fn run(order: &Order) -> Result<String, CheckError> {
    let seconds = order.timeout_seconds;
    let deadline = Instant::now() + Duration::from_secs(seconds).saturating_sub(MARGIN).max(TRY_TIMEOUT);
    let expect = match (&order.http, &order.tcp) {
        (Some(_), None) => None,
        (None, Some(tcp)) => {
            let error = |source| CheckError::Expect { expect: tcp.expect.clone(), source: Box::new(source) };
            Some(regex::bytes::RegexBuilder::new(&tcp.expect).unicode(false).build().map_err(error)?)
        }
        _ => return Err(CheckError::NoProbe),
    };
    loop {
        let tried = async {
            match (&order.http, &order.tcp, &expect) {
                (Some(check), _, _) => http::ask(&order.address, check).await,
                (None, Some(check), Some(expect)) => tcp::ask(&order.address, check, expect).await,
                _ => Err(Miss::Closed),
            }
        };
        let missed = match timeout(TRY_TIMEOUT, tried).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(missed)) => missed,
            Err(_) => Miss::Silent,
        };
        if Instant::now() + RETRY_INTERVAL >= deadline {
            return Err(CheckError::TimedOut { seconds, last: missed.to_string() });
        }
        sleep(RETRY_INTERVAL).await;
    }
}

/// The beginning of an answer, as text.
fn shown(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).chars().take(80).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests;
