//! Signs requests with the account key ("Shared Key"), which the official crate does not do.
//!
//! String to sign: <https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key>. It runs for each
//! try, since it signs the date. The store refuses dates that are more than 15 minutes off.

use std::{collections::BTreeMap, fmt, fmt::Write as _, sync::Arc};

use async_trait::async_trait;
use azure_core::http::{
    Context, Request,
    headers::HeaderName,
    policies::{Policy, PolicyResult},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::hmac;
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

use crate::env::{Micros, Wall};

pub(super) struct SharedKey {
    pub(super) account: String,
    pub(super) key: hmac::Key,
    pub(super) wall: Arc<dyn Wall>,
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedKey({})", self.account)
    }
}

#[async_trait]
impl Policy for SharedKey {
    async fn send(&self, context: &Context, request: &mut Request, next: &[Arc<dyn Policy>]) -> PolicyResult {
        request.insert_header(HeaderName::from_static("x-ms-date"), http_date(self.wall.now()));
        let signature =
            STANDARD.encode(hmac::sign(&self.key, string_to_sign(&self.account, request).as_bytes()));
        let authorization = format!("SharedKey {}:{signature}", self.account);
        request.insert_header(HeaderName::from_static("authorization"), authorization);
        match next.split_first() {
            Some((policy, rest)) => policy.send(context, request, rest).await,
            None => Err(azure_core::Error::with_message(
                azure_core::error::ErrorKind::Other,
                "the pipeline has no transport",
            )),
        }
    }
}

/// As in "Fri, 26 Jun 2015 23:39:12 GMT".
fn http_date(now: Micros) -> String {
    let seconds = now.0.div_euclid(1_000_000);
    let date = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    date.format(&Rfc2822).unwrap_or_default().replace("+0000", "GMT")
}

fn string_to_sign(account: &str, request: &Request) -> String {
    let header = |name: &'static str| {
        request.headers().get_optional_str(&HeaderName::from_static(name)).unwrap_or_default().to_owned()
    };
    // An empty body is signed as no length; the date stands in x-ms-date.
    let length = Some(header("content-length")).filter(|length| length != "0").unwrap_or_default();
    let mut signed = format!("{}\n", request.method().as_str());
    for value in [
        header("content-encoding"),
        header("content-language"),
        length,
        header("content-md5"),
        header("content-type"),
        String::new(),
        header("if-modified-since"),
        header("if-match"),
        header("if-none-match"),
        header("if-unmodified-since"),
        header("range"),
    ] {
        signed += &value;
        signed.push('\n');
    }
    let own: BTreeMap<&str, &str> = request
        .headers()
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("x-ms-"))
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    for (name, value) in own {
        let _ = writeln!(signed, "{name}:{}", value.trim());
    }
    let _ = write!(signed, "/{account}{}", request.url().path());
    let mut query: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in request.url().query_pairs() {
        query.entry(name.to_lowercase()).or_default().push(value.into_owned());
    }
    for (name, mut values) in query {
        values.sort();
        let _ = write!(signed, "\n{name}:{}", values.join(","));
    }
    signed
}

#[cfg(test)]
mod tests {
    use azure_core::http::{Method, Url};

    use super::*;

    /// The second example of Microsoft's page.
    #[test]
    fn signs_what_the_documentation_signs() {
        let url =
            Url::parse("https://myaccount.blob.core.windows.net/mycontainer?restype=container&comp=metadata")
                .unwrap();
        let mut request = Request::new(url, Method::Get);
        request.insert_header("x-ms-version", "2015-02-21");
        request.insert_header("x-ms-date", "Fri, 26 Jun 2015 23:39:12 GMT");
        assert_eq!(
            string_to_sign("myaccount", &request),
            "GET\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:Fri, 26 Jun 2015 23:39:12 GMT\nx-ms-version:2015-02-21\n\
             /myaccount/mycontainer\ncomp:metadata\nrestype:container"
        );
    }

    #[test]
    fn dates_are_written_for_http() {
        assert_eq!(http_date(Micros(1_435_361_952_000_000)), "Fri, 26 Jun 2015 23:39:12 GMT");
    }
}
