//! Calls to the appliance's management port. The addresses are tried in order, each once.

use std::{future::Future, sync::Arc, time::Duration};

use lifeboat_replication::{
    errors::chain,
    wire::v1::{
        EnrolRequest, EnrolResponse, LocateRequest, LocateResponse, RenewRequest,
        management_client::ManagementClient,
    },
};
use rustls::ClientConfig;
use tokio::time::timeout;
use tonic::{Code, Response, Status, transport::Channel};

use super::connect::{ConnectError, Connector, host};

/// The operator signs requests; it may have to be reached first.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum ManagementError {
    #[error(
        "no management address is known; enrol again with the command that `kubectl lifeboat enroll` prints"
    )]
    NoAddress,
    #[error("management cannot be reached")]
    Connect(#[from] ConnectError),
    #[error("{address} did not answer {call} within {limit:?}; look at the appliance's status")]
    TimeOut { address: String, call: &'static str, limit: Duration },
    /// Each for a reason of its own, and it is not always the last one that matters.
    #[error("no address of the management port can be used: {told}")]
    Several { told: String },
    /// The appliance said no, in its own words (they name the remedy).
    #[error("{address} refused {call}: {message}")]
    Refused { address: String, call: &'static str, code: Code, message: String },
}

impl ManagementError {
    /// Another address or a later attempt may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Refused { code, .. } => {
                matches!(
                    code,
                    Code::Unavailable
                        | Code::DeadlineExceeded
                        | Code::Unknown
                        | Code::Internal
                        | Code::Cancelled
                        | Code::ResourceExhausted
                )
            }
            Self::NoAddress => false,
            Self::Connect(ConnectError::Pin { .. } | ConnectError::Address { .. }) => false,
            Self::Connect(_) | Self::TimeOut { .. } | Self::Several { .. } => true,
        }
    }
}

/// What each address said.
fn all_of(mut failed: Vec<ManagementError>) -> ManagementError {
    match failed.len() {
        0 => ManagementError::NoAddress,
        1 => failed.remove(0),
        _ => {
            let told: Vec<String> = failed.iter().map(|error| chain(error)).collect();
            ManagementError::Several { told: told.join("; ") }
        }
    }
}

#[derive(Debug, Clone)]
pub struct Management {
    pub addresses: Vec<String>,
    pub tls: Arc<ClientConfig>,
    /// `sha256//…` of the management key, where it is known (enrolment).
    pub pinned: Option<String>,
    pub connector: Connector,
}

impl Management {
    pub async fn enrol(&self, request: &EnrolRequest) -> Result<EnrolResponse, ManagementError> {
        self.call("Enrol", |mut client| async move { client.enrol(request.clone()).await }).await
    }

    pub async fn renew(&self, certificate_request_pem: &str) -> Result<EnrolResponse, ManagementError> {
        let request = RenewRequest { certificate_request_pem: certificate_request_pem.to_owned() };
        self.call("Renew", |mut client| {
            let request = request.clone();
            async move { client.renew(request).await }
        })
        .await
    }

    pub async fn locate(&self) -> Result<LocateResponse, ManagementError> {
        self.call("Locate", |mut client| async move { client.locate(LocateRequest {}).await }).await
    }

    async fn call<T, F, R>(&self, call: &'static str, make: F) -> Result<T, ManagementError>
    where
        F: Fn(ManagementClient<Channel>) -> R,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        let mut failed = Vec::new();
        for address in &self.addresses {
            match self.call_one(call, address, &make).await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_passing() => failed.push(error),
                Err(error) => return Err(error),
            }
        }
        Err(all_of(failed))
    }

    async fn call_one<T, F, R>(
        &self,
        call: &'static str,
        address: &str,
        make: &F,
    ) -> Result<T, ManagementError>
    where
        F: Fn(ManagementClient<Channel>) -> R,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        let name = host(address)?;
        let channel = self.connector.connect(address, name, self.tls.clone(), self.pinned.as_deref()).await?;
        let answer = timeout(CALL_TIMEOUT, make(ManagementClient::new(channel))).await.map_err(|_| {
            ManagementError::TimeOut { address: address.to_owned(), call, limit: CALL_TIMEOUT }
        })?;
        answer.map(Response::into_inner).map_err(|status| ManagementError::Refused {
            address: address.to_owned(),
            call,
            code: status.code(),
            message: status.message().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn what_is_wrong_with_every_address_is_told() {
        let clock = ConnectError::Handshake {
            address: "10.0.0.1:443".to_owned(),
            source: io::Error::other("invalid peer certificate: certificate not valid yet"),
        };
        let name = ConnectError::Resolve {
            address: "berlin.svc:443".to_owned(),
            source: io::Error::from(io::ErrorKind::NotFound),
        };
        assert!(matches!(all_of(vec![]), ManagementError::NoAddress));
        let alone = all_of(vec![ManagementError::NoAddress]);
        assert!(matches!(alone, ManagementError::NoAddress));
        let all = all_of(vec![clock.into(), name.into()]);
        assert!(all.is_passing());
        let told = all.to_string();
        assert!(
            told.contains("clock") && told.contains("not valid yet") && told.contains("berlin.svc"),
            "{told}"
        );
    }
}
