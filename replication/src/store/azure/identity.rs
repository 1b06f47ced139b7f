//! Access by workload identity: a token of the pod's service account is exchanged at Entra for an access token, which
//! every request carries. No secret is kept anywhere. (The exchange is one POST, made here: the official crate's cannot
//! read what Entra says when it refuses, see docs/adr/0013-who-may-do-what-with-a-vault.md.)
//!
//! In: the file that the kubelet keeps fresh; out: the header of each request. What bounds it: one exchange at a time,
//! each with its own time-out; an answer, good or bad, is not asked for again within moments, however many requests
//! wait. So an Entra that is slow or refuses costs the store's calls little while the token that is held is still good.
//!
//! A store that refuses the token (401: revoked, or this machine's clock is wrong) has done nothing, so the request is
//! sent once more with a new one.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use azure_core::{
    credentials::{AccessToken, TokenCredential, TokenRequestOptions},
    error::ErrorKind,
    http::{
        ClientMethodOptions, ClientOptions, Context, Method, Pipeline, PipelineSendOptions, Request, Url,
        headers::{HeaderName, HeaderValue, Headers},
        policies::auth::{Authorizer, BearerTokenAuthorizationPolicy, OnChallenge},
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use time::OffsetDateTime;
use tokio::{sync::Mutex, time::Instant};
use zeroize::Zeroizing;

use crate::{
    env::{Env, Wall},
    errors::chain,
};

/// What every storage account of every cloud of Azure takes.
const SCOPE: &str = "https://storage.azure.com/.default";
/// Who the token of the service account must be for.
pub const TOKEN_AUDIENCE: &str = "api://AzureADTokenExchange";
const PUBLIC_AUTHORITY: &str = "https://login.microsoftonline.com";
/// RFC 7523.
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// Longer than any access token is good.
const LONGEST_SECONDS: i64 = 7 * 86_400;
/// Of one exchange: well below that of a call to the store, which may be waiting for it.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(4);
/// A token so young is not exchanged for another: a store that refuses it refuses the next one too.
const YOUNG: Duration = Duration::from_secs(30);
/// After a failed exchange Entra is left alone for so long.
const PAUSE: Duration = Duration::from_secs(5);

/// An identity of Entra that trusts the tokens of a service account (a federated credential).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadIdentity {
    pub tenant_id: String,
    pub client_id: String,
    /// With the service account's token for [`TOKEN_AUDIENCE`]. It is read at each exchange.
    pub token_file: PathBuf,
    /// Azure's public cloud when absent.
    pub authority_host: Option<String>,
}

/// Why there is no access token.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum TokenError {
    #[error(
        "the service account's token {} cannot be read ({detail}): the pod needs a projected token for {TOKEN_AUDIENCE} there", path.display()
    )]
    File { path: PathBuf, detail: String },
    #[error("Entra refuses the identity {client_id}: {detail}; {remedy}")]
    Refused { client_id: String, detail: String, remedy: String },
    #[error("no access token from Entra: {0}")]
    Unavailable(String),
}

impl TokenError {
    /// Asking again does not help until somebody has changed something.
    pub(super) fn is_final(&self) -> bool {
        !matches!(self, Self::Unavailable(_))
    }

    /// The one that an error of the pipeline was made of.
    pub(super) fn of(error: &azure_core::Error) -> Option<&Self> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
        while let Some(error) = cause {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found);
            }
            cause = error.source();
        }
        None
    }
}

/// What every request goes through. One for all pipelines of a store: they share its token.
pub(super) fn policy(
    identity: WorkloadIdentity,
    client_options: ClientOptions,
) -> BearerTokenAuthorizationPolicy {
    let pipeline = Pipeline::new(
        option_env!("CARGO_PKG_NAME"),
        option_env!("CARGO_PKG_VERSION"),
        client_options,
        Vec::new(),
        Vec::new(),
        None,
    );
    let exchange = Exchange { identity, pipeline, wall: Env::system().wall, last: Mutex::new(None) };
    BearerTokenAuthorizationPolicy::new(Arc::new(exchange), [SCOPE]).with_on_challenge(Arc::new(Renew))
}

/// Gets access tokens. The policy above keeps the one in use; this keeps the last answer for moments only.
struct Exchange {
    identity: WorkloadIdentity,
    pipeline: Pipeline,
    wall: Arc<dyn Wall>,
    last: Mutex<Option<Answer>>,
}

struct Answer {
    at: Instant,
    outcome: Result<AccessToken, TokenError>,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exchange({:?})", self.identity)
    }
}

#[async_trait]
impl TokenCredential for Exchange {
    async fn get_token(
        &self,
        scopes: &[&str],
        _: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        let mut last = self.last.lock().await;
        if let Some(answer) = last.as_ref().filter(|answer| self.stands(answer)) {
            return answer.outcome.clone().map_err(wrapped);
        }
        let outcome = match tokio::time::timeout(EXCHANGE_TIMEOUT, self.exchange(scopes)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(TokenError::Unavailable(format!("no answer within {EXCHANGE_TIMEOUT:?}"))),
        };
        if let Err(error) = &outcome {
            tracing::warn!(%error, "no access token");
        }
        *last = Some(Answer { at: Instant::now(), outcome: outcome.clone() });
        outcome.map_err(wrapped)
    }
}

impl Exchange {
    fn stands(&self, answer: &Answer) -> bool {
        match &answer.outcome {
            Ok(token) => answer.at.elapsed() < YOUNG && token.expires_on.unix_timestamp() > self.now(),
            Err(_) => answer.at.elapsed() < PAUSE,
        }
    }

    async fn exchange(&self, scopes: &[&str]) -> Result<AccessToken, TokenError> {
        let token_file = &self.identity.token_file;
        let read = tokio::fs::read_to_string(token_file).await;
        let token = Zeroizing::new(
            read.map_err(|error| TokenError::File { path: token_file.clone(), detail: error.to_string() })?,
        );
        let presented = Presented::read(token.trim());
        let mut request = self.request(token.trim(), scopes, &presented)?;
        let options = PipelineSendOptions { skip_checks: true, ..Default::default() };
        let answer = self.pipeline.send(&Context::default(), &mut request, Some(options)).await;
        let answer = answer.map_err(|error| TokenError::Unavailable(chain(&error)))?;
        let (status, body) = (u16::from(answer.status()), answer.body().as_ref());
        if status == 200 {
            let given: Given = serde_json::from_slice(body)
                .map_err(|_| TokenError::Unavailable("its answer holds no token".to_owned()))?;
            let expires = self.now() + given.expires_in.clamp(0, LONGEST_SECONDS);
            let expires = OffsetDateTime::from_unix_timestamp(expires).unwrap_or(OffsetDateTime::UNIX_EPOCH);
            return Ok(AccessToken::new(given.access_token, expires));
        }
        let Refused { error_codes, error_description } = serde_json::from_slice(body).unwrap_or_default();
        // The rest is ids and time.
        let said = error_description.split(" Trace ID:").next().unwrap_or_default();
        let said = said.lines().next().unwrap_or_default();
        let detail =
            if said.is_empty() { format!("HTTP {status}") } else { format!("HTTP {status}, {said}") };
        if !(400..500).contains(&status) || matches!(status, 408 | 429) {
            return Err(TokenError::Unavailable(detail));
        }
        Err(self.refused(detail, &error_codes, &presented))
    }

    fn request(&self, token: &str, scopes: &[&str], presented: &Presented) -> Result<Request, TokenError> {
        let WorkloadIdentity { tenant_id, client_id, token_file: _, authority_host } = &self.identity;
        let host = authority_host.as_deref().unwrap_or(PUBLIC_AUTHORITY);
        let url = Url::parse(host).ok().filter(|url| url.scheme() == "https" && url.host().is_some());
        let wrong = || self.refused(format!("{host} is no https URL of an authority"), &[], presented);
        let mut url = url.ok_or_else(wrong)?;
        url.path_segments_mut().map_err(|()| wrong())?.clear().extend([tenant_id, "oauth2", "v2.0", "token"]);
        // The same encoding as a query's.
        let mut form = url.clone();
        form.query_pairs_mut()
            .append_pair("grant_type", "client_credentials")
            .append_pair("client_id", client_id)
            .append_pair("scope", &scopes.join(" "))
            .append_pair("client_assertion_type", ASSERTION_TYPE)
            .append_pair("client_assertion", token);
        let mut request = Request::new(url, Method::Post);
        let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.insert_header(HeaderName::from_static("content-type"), form_type);
        request.set_body(form.query().unwrap_or_default().to_owned());
        Ok(request)
    }

    fn now(&self) -> i64 {
        self.wall.now().0.div_euclid(1_000_000)
    }

    fn refused(&self, detail: String, codes: &[i64], presented: &Presented) -> TokenError {
        let client_id = self.identity.client_id.clone();
        TokenError::Refused { remedy: remedy(codes, presented), client_id, detail }
    }
}

/// By Entra's numbers (AADSTS…), several of which may be given.
fn remedy(codes: &[i64], presented: &Presented) -> String {
    let Presented { iss, sub, aud } = presented;
    let audience = aud.first().map_or(TOKEN_AUDIENCE, String::as_str);
    for code in codes {
        return match code {
            70_021 | 700_211 | 700_213 => format!(
                "it has no federated credential for this service account: az identity federated-credential create --issuer {iss} --subject {sub} --audiences {audience} (with --name, --identity-name and --resource-group); a new one takes some minutes"
            ),
            700_212 => format!(
                "its federated credential is for another audience than the token's, {audience}: az identity federated-credential update --audiences {TOKEN_AUDIENCE}"
            ),
            700_024 => "the service account's token is not valid now: check the clocks of this node and of the cluster's API server".to_owned(),
            700_016 | 7_000_229 => "the tenant does not know it: check clientId and tenantId of workloadIdentity".to_owned(),
            90_002 | 900_021 | 900_023 => "there is no such tenant: check tenantId of workloadIdentity".to_owned(),
            50_166 | 90_061 | 7_000_272 => format!("Entra cannot read the cluster's keys: {iss}/.well-known/openid-configuration must be public"),
            _ => continue,
        };
    }
    "check spec.vault.azure.authentication.workloadIdentity and the identity's federated credentials"
        .to_owned()
}

fn wrapped(error: TokenError) -> azure_core::Error {
    let said = error.to_string();
    azure_core::Error::with_error(ErrorKind::Credential, error, said)
}

/// Entra's good answer.
#[derive(Deserialize)]
struct Given {
    access_token: String,
    expires_in: i64,
}

/// Its bad one.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refused {
    error_codes: Vec<i64>,
    error_description: String,
}

/// Who the token says it is for and from; no secret.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Presented {
    iss: String,
    sub: String,
    #[serde(deserialize_with = "one_or_many")]
    aud: Vec<String>,
}

impl Presented {
    /// Nothing when it cannot be read: that is Entra's to judge.
    fn read(token: &str) -> Self {
        let payload = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
        payload.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
    }
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::One(one) => vec![one],
        Either::Many(many) => many,
    })
}

/// After a 401: the policy has forgotten its token, and sends the request once more with what is set here.
#[derive(Debug)]
struct Renew;

#[async_trait]
impl OnChallenge for Renew {
    async fn on_challenge(
        &self,
        context: &Context,
        request: &mut Request,
        authorizer: &dyn Authorizer,
        _: &Headers,
    ) -> azure_core::Result<()> {
        let method_options = ClientMethodOptions { context: context.to_borrowed() };
        authorizer.authorize(request, &[SCOPE], TokenRequestOptions { method_options }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(payload: &str) -> String {
        format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(payload))
    }

    #[test]
    fn every_number_that_entra_gives_has_its_remedy() {
        let presented = Presented::read(&token(
            r#"{"iss": "https://oidc.contoso.com", "sub": "system:serviceaccount:dr:default", "aud": ["api://AzureADTokenExchange"]}"#,
        ));
        for (codes, expected) in [
            (&[700_213][..], "--issuer https://oidc.contoso.com --subject system:serviceaccount:dr:default"),
            (&[700_212], "another audience"),
            (&[700_024], "clocks"),
            (&[700_016], "clientId"),
            (&[90_002], "tenantId"),
            (&[1, 90_061], "https://oidc.contoso.com/.well-known/openid-configuration"),
            (&[], "federated credentials"),
        ] {
            let said = remedy(codes, &presented);
            assert!(said.contains(expected), "{codes:?}: {said}");
        }
    }

    #[test]
    fn a_token_that_is_none_has_nothing_to_tell() {
        for bad in ["", "a.b.c", &token("[]"), &token(r#"{"aud": 7}"#)] {
            assert_eq!(Presented::read(bad).sub, "");
        }
        assert_eq!(Presented::read(&token(r#"{"aud": "one"}"#)).aud, ["one"]);
    }
}
