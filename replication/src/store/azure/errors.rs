//! What came of a request: done, refused (the store says that nothing happened, and why), or unknown.
//!
//! Only an answer of the store itself with a status of 4xx is a refusal. A broken or refused connection, a time-out,
//! 408, 429, 5xx and unreadable answers are unknown: a request may have arrived although its answer did not.

use std::{error::Error as _, fmt::Write as _, future::Future, time::Duration};

use azure_core::error::ErrorKind;

use super::{SLOWEST_TRANSFER, identity::TokenError};
use crate::store::{Refusal, Result, StoreError};

/// One request, for its time-out and its errors.
pub(super) struct Call<'a> {
    pub(super) operation: &'static str,
    pub(super) name: &'a str,
    /// URL without query.
    pub(super) container: &'a str,
    pub(super) limit: Duration,
}

impl Call<'_> {
    /// Gives it the time that `bytes` take on the slowest line.
    pub(super) fn with_transfer(mut self, bytes: u64) -> Self {
        self.limit += Duration::from_secs(bytes / SLOWEST_TRANSFER);
        self
    }

    pub(super) async fn run<T>(&self, request: impl Future<Output = azure_core::Result<T>>) -> Result<T> {
        match tokio::time::timeout(self.limit, request).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(self.sort(&error)),
            Err(_) => Err(self.unknown(format!("{} gave no answer within {:?}", self.container, self.limit))),
        }
    }

    pub(super) fn refused(&self, why: Refusal, detail: String) -> StoreError {
        StoreError::Refused { operation: self.operation, name: self.named(), why, detail }
    }

    pub(super) fn unknown(&self, detail: String) -> StoreError {
        StoreError::Unknown { operation: self.operation, name: self.named(), detail }
    }

    fn named(&self) -> String {
        if self.name.is_empty() { self.container.to_owned() } else { self.name.to_owned() }
    }

    fn sort(&self, error: &azure_core::Error) -> StoreError {
        // Nothing was sent to the store.
        if let Some(token) = TokenError::of(error) {
            let detail = token.to_string();
            return if token.is_final() {
                self.refused(Refusal::Denied, detail)
            } else {
                self.unknown(detail)
            };
        }
        let ErrorKind::HttpResponse { status, error_code, raw_response } = error.kind() else {
            return self.unknown(self.connection(error));
        };
        let code = error_code.as_deref().unwrap_or("");
        let message = raw_response.as_ref().and_then(|response| message(response.body().as_ref()));
        let mut detail = format!("HTTP {}", u16::from(*status));
        for part in [Some(code.to_owned()).filter(|code| !code.is_empty()), message].into_iter().flatten() {
            let _ = write!(detail, ", {part}");
        }
        match refusal(u16::from(*status), code) {
            Some(why) => {
                if let Some(remedy) = remedy(code) {
                    let _ = write!(detail, "; {remedy}");
                }
                self.refused(why, detail)
            }
            None => self.unknown(detail),
        }
    }

    /// The chain of causes, which ends with the system's own words, e.g. "Connection refused".
    fn connection(&self, error: &azure_core::Error) -> String {
        let mut causes = vec![error.to_string()];
        let mut cause = error.source();
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        let detail =
            format!("{} cannot be reached or gave no proper answer: {}", self.container, told(&causes));
        without_signature(&detail)
    }
}

/// Causes as people read them: none twice, and without what only says that a request was made, and where to.
fn told(causes: &[String]) -> String {
    const HOW: [&str; 2] = ["failed to execute `reqwest` request", "error sending request for url"];
    let says = |cause: &&String| !HOW.iter().any(|how| cause.starts_with(how));
    let mut text = String::new();
    let last = causes.last().into_iter().filter(|_| !causes.iter().any(|cause| says(&cause)));
    for cause in causes.iter().filter(says).chain(last) {
        if !text.contains(cause.as_str()) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(cause);
        }
    }
    text
}

/// An answer that says "done" and lacks what it must hold.
pub(super) fn unreadable(call: &Call<'_>, what: &str) -> StoreError {
    call.unknown(format!("{} answered, but {what} is missing or cannot be read", call.container))
}

/// For calls whose only condition is that the name is free.
pub(super) fn taken(error: StoreError) -> StoreError {
    match error {
        StoreError::Refused { operation, name, why: Refusal::Condition, detail } => {
            StoreError::Refused { operation, name, why: Refusal::AlreadyExists, detail }
        }
        other => other,
    }
}

/// `None`: the store does not say that nothing happened.
fn refusal(status: u16, code: &str) -> Option<Refusal> {
    Some(match (status, code) {
        // Damaged on its way: to be sent again.
        (400, "Md5Mismatch" | "Crc64Mismatch" | "InvalidMd5") => return None,
        (400, "InvalidAuthenticationInfo") | (401 | 403, _) => Refusal::Denied,
        (404, "ContainerNotFound") => Refusal::NoContainer,
        (404, _) => Refusal::NotFound,
        (409, "ContainerBeingDeleted" | "ContainerDisabled") => Refusal::NoContainer,
        (409, "BlobAlreadyExists" | "ContainerAlreadyExists" | "ResourceAlreadyExists") => {
            Refusal::AlreadyExists
        }
        (409, "SnapshotsPresent") => Refusal::HasSnapshots,
        (409, "InvalidBlobType") => Refusal::Kind,
        (409, "BlockCountExceedsLimit" | "MaxBlobSizeConditionNotMet") => Refusal::Range,
        (409, "BlobImmutableDueToPolicy") => Refusal::Denied,
        (409 | 412, code) if code.contains("Sealed") => Refusal::Sealed,
        (409 | 412, code) if code.starts_with("Lease") => Refusal::Lease,
        (412, "AppendPositionConditionNotMet") => Refusal::Position,
        (412, "MaxBlobSizeConditionNotMet") => Refusal::Range,
        (412, _) => Refusal::Condition,
        (400 | 411 | 413 | 416, _) => Refusal::Range,
        _ => return None,
    })
}

/// What to do about a refusal of the caller.
fn remedy(code: &str) -> Option<&'static str> {
    Some(match code {
        "AuthorizationPermissionMismatch" => {
            "the identity or SAS lacks this right: give the identity the role Storage Blob Data Contributor on the account (a new assignment takes up to ten minutes), or the SAS the permissions that the installation page lists"
        }
        "AuthorizationFailure" => {
            "the account's firewall, or the addresses that the SAS allows, keep this machine out: allow it, or use a private endpoint"
        }
        "KeyBasedAuthenticationNotPermitted" => {
            "the account takes no keys and no SAS made with them: use workloadIdentity"
        }
        "InvalidAuthenticationInfo" => {
            "the access token or signature is not valid (any more): check the clock of this node, and the tenant of the identity"
        }
        _ => return None,
    })
}

/// First line of `<Message>`: the rest is request id and time. Other elements may quote what was signed.
fn message(body: &[u8]) -> Option<String> {
    let body = std::str::from_utf8(body).ok()?;
    let (_, rest) = body.split_once("<Message>")?;
    let (message, _) = rest.split_once("</Message>")?;
    message.lines().next().map(without_signature).filter(|line| !line.is_empty())
}

/// Errors of the HTTP client quote the URL, and a SAS stands in it.
fn without_signature(text: &str) -> String {
    let mut clean = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("sig=") {
        let (before, secret) = rest.split_at(at);
        clean.push_str(before);
        clean.push_str("sig=…");
        let end = secret
            .find(|c: char| c == '&' || c == '"' || c == ')' || c.is_whitespace())
            .unwrap_or(secret.len());
        rest = secret.split_at(end).1;
    }
    clean + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_failed_is_told_by_its_cause_and_not_by_the_libraries_that_noticed() {
        let causes = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let how = ["failed to execute `reqwest` request", "error sending request for url (http://h/c/blob)"];
        let timed_out = causes(&[how[0], how[1], "operation timed out"]);
        assert_eq!(told(&timed_out), "operation timed out");
        let refused = causes(&[how[0], how[1], "tcp connect error", "Connection refused (os error 111)"]);
        assert_eq!(told(&refused), "tcp connect error: Connection refused (os error 111)");
        assert_eq!(told(&causes(&how)), how[1], "something is said in any case");
    }

    #[test]
    fn only_answers_that_say_nothing_happened_are_refusals() {
        for (status, code) in [
            (500, "InternalError"),
            (503, "ServerBusy"),
            (408, ""),
            (429, ""),
            (301, ""),
            (400, "Md5Mismatch"),
        ] {
            assert_eq!(refusal(status, code), None, "{status} {code}");
        }
        for (status, code, why) in [
            (403, "AuthenticationFailed", Refusal::Denied),
            (404, "ContainerNotFound", Refusal::NoContainer),
            (404, "BlobNotFound", Refusal::NotFound),
            (404, "", Refusal::NotFound),
            (409, "BlobIsSealed", Refusal::Sealed),
            (409, "LeaseAlreadyPresent", Refusal::Lease),
            (412, "LeaseLost", Refusal::Lease),
            (412, "SequenceNumberConditionNotMet", Refusal::Condition),
            (412, "AppendPositionConditionNotMet", Refusal::Position),
            (416, "InvalidRange", Refusal::Range),
        ] {
            assert_eq!(refusal(status, code), Some(why), "{status} {code}");
        }
    }

    #[test]
    fn no_signature_survives_in_a_message() {
        let shown =
            without_signature("error for url (http://h/c?sv=1&sig=abc%2B&se=2) and \"?sig=def\" and sig=ghi");
        assert_eq!(shown, "error for url (http://h/c?sv=1&sig=…&se=2) and \"?sig=…\" and sig=…");
    }

    #[test]
    fn the_message_is_the_first_line() {
        let body =
            b"<?xml?><Error><Code>X</Code><Message>Server failed.\nRequestId:1\nTime:2</Message></Error>";
        assert_eq!(message(body).as_deref(), Some("Server failed."));
        assert_eq!(message(b"not xml"), None);
    }
}
