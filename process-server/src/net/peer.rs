//! Who is at the other end of a TLS connection: what its certificate, verified against the CA, says.

use std::{net::IpAddr, sync::Arc};

use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// URI in the certificate of an agent, followed by the server's id.
pub const SERVER_URI: &str = "lifeboat:server:";
/// URI in the operator's certificate.
pub const OPERATOR_URI: &str = "lifeboat:operator";

/// Given to each request of the connection.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: IpAddr,
    /// `None`: no client certificate was shown.
    pub identity: Option<Arc<Identity>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    uris: Vec<String>,
    /// Of the DER-encoded SubjectPublicKeyInfo.
    pub public_key_sha256: Vec<u8>,
}

impl Identity {
    /// From a certificate that the handshake has verified. One that cannot be read has no name.
    pub fn of(certificate: &[u8]) -> Self {
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
            return Self { uris: Vec::new(), public_key_sha256: Vec::new() };
        };
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
        let uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        });
        let key = ring::digest::digest(&ring::digest::SHA256, parsed.public_key().raw);
        Self { uris: uris.collect(), public_key_sha256: key.as_ref().to_vec() }
    }

    /// The id of the server that it is for; one that names several is for none.
    pub fn server_id(&self) -> Option<&str> {
        let mut ids = self.uris.iter().filter_map(|uri| uri.strip_prefix(SERVER_URI));
        ids.next().filter(|_| ids.next().is_none())
    }

    pub fn is_operator(&self) -> bool {
        self.uris.iter().any(|uri| uri == OPERATOR_URI)
    }
}

impl Peer {
    pub fn server_id(&self) -> Option<&str> {
        self.identity.as_ref()?.server_id()
    }

    /// By what connections are counted.
    pub fn tally_key(&self) -> String {
        match self.identity.as_ref().map(|identity| &identity.uris) {
            Some(uris) if !uris.is_empty() => uris.join(" "),
            _ => self.address.to_string(),
        }
    }
}

/// DNS names of a certificate.
pub fn dns_names(certificate: &[u8]) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let names = parsed.subject_alternative_name().ok().flatten();
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let names = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    names.collect()
}
