//! To whom the operator may show its tokens. Pure.
//!
//! An appliance's author chooses endpoint and authority, and the operator's own service account is at stake: whoever
//! gets its token, or an access token made from it, can use every storage account that trusts the operator. So they go
//! to Azure alone, and to hosts that whoever runs the operator has named.

use lifeboat_crds::Reason;
use url::Url;

use crate::runtime::Failure;

/// Blob storage in Azure's clouds; private endpoints have these names too.
const STORAGE: [&str; 4] = [
    ".blob.core.windows.net",
    ".blob.storage.azure.net",
    ".blob.core.usgovcloudapi.net",
    ".blob.core.chinacloudapi.cn",
];
/// Authorities of Azure's clouds.
const AUTHORITIES: [&str; 4] = [
    "login.microsoftonline.com",
    "login.microsoftonline.us",
    "login.chinacloudapi.cn",
    "login.partner.microsoftonline.cn",
];

pub(super) fn check(endpoint: &str, authority: Option<&str>, named: &[String]) -> Result<(), Failure> {
    let host = |url: &str| Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_lowercase));
    let refused = |field: &str, url: &str, expected: &str| {
        let message = format!(
            "spec.vault.azure.{field} is {url}, and with workloadIdentity the operator shows tokens to {expected} alone: correct it, or have the host added to operator.trustedHosts of the chart"
        );
        Err(Failure::stalled(Reason::InvalidSpec, message))
    };
    let is_named = |host: &str| named.iter().any(|named| named.trim().eq_ignore_ascii_case(host));
    let storage = |host: &String| STORAGE.iter().any(|suffix| host.ends_with(suffix)) || is_named(host);
    if !host(endpoint).is_some_and(|host| storage(&host)) {
        return refused("endpoint", endpoint, "Azure's storage (https://ACCOUNT.blob.core.windows.net)");
    }
    let Some(authority) = authority else { return Ok(()) };
    if !host(authority).is_some_and(|host| AUTHORITIES.contains(&host.as_str()) || is_named(&host)) {
        return refused(
            "authentication.workloadIdentity.authorityHost",
            authority,
            "Azure's authorities (https://login.microsoftonline.com)",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const STORAGE: &str = "https://contosodr.blob.core.windows.net";

    #[rstest]
    #[case(STORAGE, None)]
    #[case("https://contosodr.privatelink.blob.core.windows.net/", None)]
    #[case("https://contosodr.z1.blob.storage.azure.net", Some("https://login.microsoftonline.com/"))]
    #[case("https://127.0.0.1:10000/acme", Some("https://127.0.0.1:8443"))]
    fn tokens_go_to_azure_and_to_hosts_that_are_named(
        #[case] endpoint: &str,
        #[case] authority: Option<&str>,
    ) {
        assert!(check(endpoint, authority, &["127.0.0.1".to_owned()]).is_ok());
    }

    #[rstest]
    #[case("https://blob.core.windows.net.evil.example", None, "endpoint is https://blob")]
    #[case("https://evil.example/contosodr.blob.core.windows.net", None, "endpoint is https://evil")]
    #[case("https://contosodr.blob.core.windows.net@evil.example", None, "endpoint is")]
    #[case("https://evil-blob.core.windows.net", None, "endpoint is")]
    #[case("https://127.0.0.1/acme", None, "endpoint is")]
    #[case(STORAGE, Some("https://login.microsoftonline.com.evil.example"), "authorityHost is")]
    #[case(STORAGE, Some("https://contosodr.blob.core.windows.net"), "authorityHost is")]
    fn and_to_nobody_else(#[case] endpoint: &str, #[case] authority: Option<&str>, #[case] said: &str) {
        let failure = check(endpoint, authority, &["azurite.example".to_owned()]).unwrap_err();
        assert!(failure.message.contains(said), "{}", failure.message);
    }
}
