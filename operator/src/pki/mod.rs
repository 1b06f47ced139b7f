//! The appliance's certificates. The CA's key never leaves the operator and its Secret; everything else is signed
//! here and given out.
//!
//! | certificate | names | key |
//! |---|---|---|
//! | data and control (process servers, applier) | `*.<appliance>.lifeboat`, the addresses of the spec | new at every renewal |
//! | management | the addresses, the Service's names | kept over renewals: enrolment pins it |
//! | agent | CN and URI `lifeboat:server:<id>` | the agent's own, never seen here |
//! | operator | URI `lifeboat:operator` | new at every start |

mod authority;
mod request;

pub use authority::{Authority, Issued, PkiError, days_left, public_key_pin, renewal_due};
pub use request::{AgentRequest, RequestError};

/// Name in the certificate of a process server or the applier, whatever address it is reached at.
pub fn tls_name(pod: &str, appliance: &str) -> String {
    format!("{pod}.{appliance}.lifeboat")
}

/// What agents are known by.
pub fn server_uri(id: &str) -> String {
    format!("lifeboat:server:{id}")
}

/// What the operator is known by.
pub const OPERATOR_URI: &str = "lifeboat:operator";
