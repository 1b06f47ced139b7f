//! The certificate authority of an appliance, and what it signs.

use std::net::IpAddr;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
};
use time::{Duration, OffsetDateTime};
use x509_parser::pem::parse_x509_pem;

use super::{AgentRequest, server_uri};

/// The CA outlives every appliance's hardware; replacing it means enrolling every server again.
const CA_DAYS: i64 = 3650;
/// Servers' and agents' certificates; renewed after two thirds.
const LEAF_DAYS: i64 = 90;
/// Clocks of machines differ; a certificate of this minute must be accepted.
const BACKDATED: Duration = Duration::hours(1);

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error(
        "a certificate could not be made from {what}: delete the Secret it stands in and it is made anew"
    )]
    Certificate {
        what: String,
        #[source]
        source: rcgen::Error,
    },
    #[error("{what} holds no certificate in PEM: delete the Secret it stands in and it is made anew")]
    NotPem { what: String },
    #[error("the date {micros} cannot be expressed: set this machine's clock")]
    Clock { micros: i64 },
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Issued {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// Signs with the CA's key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub certificate_pem: String,
}

impl Authority {
    /// A new CA for an appliance; the second value is its key, for its Secret.
    pub fn generate(
        namespace: &str,
        appliance: &str,
        now: jiff::Timestamp,
    ) -> Result<(Self, Issued), PkiError> {
        let error = |source| PkiError::Certificate { what: "the new CA".to_owned(), source };
        let key = KeyPair::generate().map_err(error)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&format!("Lifeboat {namespace}/{appliance}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid(&mut params, now, CA_DAYS)?;
        let certificate_pem = params.self_signed(&key).map_err(error)?.pem();
        let issued = Issued { certificate_pem: certificate_pem.clone(), key_pem: key.serialize_pem() };
        Ok((Self { issuer: Issuer::new(params, key), certificate_pem }, issued))
    }

    /// The CA of a Secret.
    pub fn open(certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let error = |source| PkiError::Certificate { what: "the CA's Secret".to_owned(), source };
        let key = KeyPair::from_pem(key_pem).map_err(error)?;
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key).map_err(error)?;
        Ok(Self { issuer, certificate_pem: certificate_pem.to_owned() })
    }

    /// For listeners. `key_pem`: the key to keep; a new one when absent.
    pub fn server(
        &self,
        common_name: &str,
        names: &[String],
        key_pem: Option<&str>,
        now: jiff::Timestamp,
    ) -> Result<Issued, PkiError> {
        let error =
            |source| PkiError::Certificate { what: format!("the key and names of {common_name}"), source };
        let key = match key_pem {
            Some(pem) => KeyPair::from_pem(pem),
            None => KeyPair::generate(),
        }
        .map_err(error)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(common_name);
        params.subject_alt_names =
            names.iter().map(|name| alternative(name)).collect::<Result<_, _>>().map_err(error)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        valid(&mut params, now, LEAF_DAYS)?;
        let certificate_pem = params.signed_by(&key, &self.issuer).map_err(error)?.pem();
        Ok(Issued { certificate_pem, key_pem: key.serialize_pem() })
    }

    /// For our own connections.
    pub fn client(&self, uri: &str, now: jiff::Timestamp) -> Result<Issued, PkiError> {
        let error = |source| PkiError::Certificate { what: format!("the client name {uri}"), source };
        let key = KeyPair::generate().map_err(error)?;
        let params = client_params(uri, uri, now).map_err(error)??;
        let certificate_pem = params.signed_by(&key, &self.issuer).map_err(error)?.pem();
        Ok(Issued { certificate_pem, key_pem: key.serialize_pem() })
    }

    /// For an agent, over its own key. Nothing of the request but its key is taken.
    pub fn agent(
        &self,
        server_id: &str,
        request: &AgentRequest,
        now: jiff::Timestamp,
    ) -> Result<String, PkiError> {
        let error = |source| PkiError::Certificate {
            what: format!("the signing request of server {server_id}"),
            source,
        };
        let params = client_params(server_id, &server_uri(server_id), now).map_err(error)??;
        Ok(params.signed_by(request.public_key(), &self.issuer).map_err(error)?.pem())
    }
}

fn client_params(
    common_name: &str,
    uri: &str,
    now: jiff::Timestamp,
) -> Result<Result<CertificateParams, PkiError>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(common_name);
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(valid(&mut params, now, LEAF_DAYS).map(|()| params))
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    // RFC 5280 allows 64 characters; longer ones are refused by some libraries.
    name.push(DnType::CommonName, common_name.chars().take(64).collect::<String>());
    name
}

fn alternative(name: &str) -> Result<SanType, rcgen::Error> {
    Ok(match name.parse::<IpAddr>() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(name.try_into()?),
    })
}

fn valid(params: &mut CertificateParams, now: jiff::Timestamp, days: i64) -> Result<(), PkiError> {
    let clock = || PkiError::Clock { micros: now.as_microsecond() };
    let now = OffsetDateTime::from_unix_timestamp(now.as_second()).map_err(|_| clock())?;
    params.not_before = now.checked_sub(BACKDATED).ok_or_else(clock)?;
    params.not_after = now.checked_add(Duration::days(days)).ok_or_else(clock)?;
    Ok(())
}

/// Whole days until the certificate runs out; negative when it has.
pub fn days_left(certificate_pem: &str, now: jiff::Timestamp) -> Option<i64> {
    let (_, pem) = parse_x509_pem(certificate_pem.as_bytes()).ok()?;
    let certificate = pem.parse_x509().ok()?;
    Some((certificate.validity().not_after.timestamp() - now.as_second()) / 86_400)
}

/// After two thirds of its life, or when it cannot be read, or when it is not for these names.
pub fn renewal_due(certificate_pem: &str, names: &[String], now: jiff::Timestamp) -> bool {
    let Ok((_, pem)) = parse_x509_pem(certificate_pem.as_bytes()) else { return true };
    let Ok(certificate) = pem.parse_x509() else { return true };
    let validity = certificate.validity();
    let life = validity.not_after.timestamp() - validity.not_before.timestamp();
    if now.as_second() > validity.not_before.timestamp() + life / 3 * 2
        || now.as_second() < validity.not_before.timestamp()
    {
        return true;
    }
    let Ok(Some(found)) = certificate.subject_alternative_name() else { return !names.is_empty() };
    let found: Vec<String> = found
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            x509_parser::extensions::GeneralName::DNSName(name) => Some((*name).to_owned()),
            x509_parser::extensions::GeneralName::IPAddress(bytes) => {
                address(bytes).map(|address| address.to_string())
            }
            _ => None,
        })
        .collect();
    let wanted: Vec<String> = names
        .iter()
        .map(|name| name.parse::<IpAddr>().map_or_else(|_| name.clone(), |address| address.to_string()))
        .collect();
    wanted.iter().any(|name| !found.contains(name))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// `sha256//<base64>` of the public key, as `curl --pinnedpubkey` takes it.
pub fn public_key_pin(key_pem: &str) -> Result<String, PkiError> {
    let key = KeyPair::from_pem(key_pem)
        .map_err(|source| PkiError::Certificate { what: "the management key".to_owned(), source })?;
    let digest = ring::digest::digest(&ring::digest::SHA256, &key.subject_public_key_info());
    Ok(format!("sha256//{}", STANDARD.encode(digest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> jiff::Timestamp {
        "2026-03-01T00:00:00Z".parse().unwrap()
    }

    fn later(days: i64) -> jiff::Timestamp {
        now() + jiff::SignedDuration::from_hours(24 * days)
    }

    fn names() -> Vec<String> {
        vec!["*.berlin.lifeboat".to_owned(), "10.0.0.1".to_owned(), "dr.contoso.local".to_owned()]
    }

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_its_life_or_for_new_names() {
        let (ca, _) = Authority::generate("prod", "berlin", now()).unwrap();
        let issued = ca.server("berlin", &names(), None, now()).unwrap();
        assert_eq!(days_left(&issued.certificate_pem, now()), Some(90));
        assert!(!renewal_due(&issued.certificate_pem, &names(), later(59)));
        assert!(renewal_due(&issued.certificate_pem, &names(), later(61)));
        let mut more = names();
        more.push("new.contoso.local".into());
        assert!(renewal_due(&issued.certificate_pem, &more, now()));
        assert!(renewal_due("rubbish", &names(), now()));
    }

    #[test]
    fn the_management_key_stays_the_same_over_renewals() {
        let (ca, ca_pem) = Authority::generate("prod", "berlin", now()).unwrap();
        let first = ca.server("management", &names(), None, now()).unwrap();
        let reopened = Authority::open(&ca_pem.certificate_pem, &ca_pem.key_pem).unwrap();
        let second = reopened.server("management", &names(), Some(&first.key_pem), later(61)).unwrap();
        assert_ne!(first.certificate_pem, second.certificate_pem);
        assert_eq!(public_key_pin(&first.key_pem).unwrap(), public_key_pin(&second.key_pem).unwrap());
    }

    #[test]
    fn an_agent_gets_its_servers_name_whatever_its_request_says() {
        let (ca, _) = Authority::generate("prod", "berlin", now()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut greedy = CertificateParams::default();
        greedy.distinguished_name = name("lifeboat:operator");
        greedy.subject_alt_names = vec![SanType::URI("lifeboat:operator".try_into().unwrap())];
        let pem = greedy.serialize_request(&key).unwrap().pem().unwrap();
        let request = AgentRequest::parse(&pem).unwrap();
        let signed = ca.agent("4f5e0a52-9f1c-4e1c-8f57-0d7f8a0f9b10", &request, now()).unwrap();
        let (_, pem) = parse_x509_pem(signed.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        let text =
            format!("{:?} {:?}", certificate.subject().to_string(), certificate.subject_alternative_name());
        assert!(text.contains("lifeboat:server:4f5e0a52") && !text.contains("lifeboat:operator"), "{text}");
    }
}
