//! The appliance's Secrets: CA, certificates, data keys. Keys are made once and never overwritten; certificates are
//! renewed after two thirds of their life.

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::ResourceExt as _;
use lifeboat_crds::{ReplicationAppliance, names::APPLIANCE_LABEL};

use super::names;
use crate::{
    controllers::shared::{labels, owned_by},
    pki::{Authority, Issued, PkiError, renewal_due, tls_name},
};

pub const CA_CERTIFICATE: &str = "ca.crt";
pub const CA_KEY: &str = "ca.key";
pub const CERTIFICATE: &str = "tls.crt";
pub const KEY: &str = "tls.key";
pub const DATA_KEYS: &str = "keys.json";

/// As many as the API allows: the certificate need not be renewed to add one.
const MAX_PROCESS_SERVERS: i32 = 32;
const MAX_APPLIERS: i32 = 16;

pub fn ca_name(appliance: &str) -> String {
    format!("{appliance}-ca")
}

/// Data and control ports of all pods.
pub fn tls_name_of(appliance: &str) -> String {
    format!("{appliance}-tls")
}

pub fn management_name(appliance: &str) -> String {
    format!("{appliance}-management-tls")
}

/// The Secret with the data keys: the one that the spec names, or our own.
pub fn data_keys_name(appliance: &ReplicationAppliance) -> String {
    match &appliance.spec.encryption_key_secret_ref {
        Some(reference) => reference.name.clone(),
        None => format!("{}-keys", appliance.name_any()),
    }
}

pub fn text<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    std::str::from_utf8(bytes(secret, key)?).ok()
}

pub fn bytes<'a>(secret: &'a Secret, key: &str) -> Option<&'a [u8]> {
    secret.data.as_ref()?.get(key).map(|value| value.0.as_slice())
}

/// A new CA, when there is none.
pub fn new_ca(appliance: &ReplicationAppliance, now: jiff::Timestamp) -> Result<Secret, PkiError> {
    let namespace = appliance.namespace().unwrap_or_default();
    let (_, Issued { certificate_pem, key_pem }) =
        Authority::generate(&namespace, &appliance.name_any(), now)?;
    Ok(secret(
        appliance,
        &ca_name(&appliance.name_any()),
        [(CA_CERTIFICATE, certificate_pem), (CA_KEY, key_pem)],
    ))
}

/// The data and control certificate, if it has to be made (again).
pub fn renewed_tls(
    appliance: &ReplicationAppliance,
    ca: &Authority,
    current: Option<&Secret>,
    now: jiff::Timestamp,
) -> Result<Option<Secret>, PkiError> {
    let name = appliance.name_any();
    let wanted = data_names(appliance);
    let valid = current
        .and_then(|secret| text(secret, CERTIFICATE))
        .is_some_and(|pem| !renewal_due(pem, &wanted, now));
    let same_ca =
        current.and_then(|secret| text(secret, CA_CERTIFICATE)) == Some(ca.certificate_pem.as_str());
    if valid && same_ca {
        return Ok(None);
    }
    let Issued { certificate_pem, key_pem } = ca.server(&name, &wanted, None, now)?;
    let content =
        [(CERTIFICATE, certificate_pem), (KEY, key_pem), (CA_CERTIFICATE, ca.certificate_pem.clone())];
    Ok(Some(secret(appliance, &tls_name_of(&name), content)))
}

/// The management certificate, if it has to be made (again); its key stays.
pub fn renewed_management(
    appliance: &ReplicationAppliance,
    ca: &Authority,
    current: Option<&Secret>,
    domain: &str,
    now: jiff::Timestamp,
) -> Result<Option<Secret>, PkiError> {
    let name = appliance.name_any();
    let wanted = management_names(appliance, domain);
    let valid = current
        .and_then(|secret| text(secret, CERTIFICATE))
        .is_some_and(|pem| !renewal_due(pem, &wanted, now));
    if valid {
        return Ok(None);
    }
    let key = current.and_then(|secret| text(secret, KEY));
    let Issued { certificate_pem, key_pem } = ca.server(&names::management(&name), &wanted, key, now)?;
    Ok(Some(secret(appliance, &management_name(&name), [(CERTIFICATE, certificate_pem), (KEY, key_pem)])))
}

/// Names by which agents and the operator verify pods, and those by which agents reach them.
fn data_names(appliance: &ReplicationAppliance) -> Vec<String> {
    let name = appliance.name_any();
    let pods = (0..MAX_PROCESS_SERVERS)
        .map(|index| names::process_server(&name, index))
        .chain((0..MAX_APPLIERS).map(|index| names::applier_pod(&name, index)));
    let mut all: Vec<String> = pods.map(|pod| tls_name(&pod, &name)).collect();
    all.extend(appliance.spec.exposure.addresses.iter().cloned());
    all
}

fn management_names(appliance: &ReplicationAppliance, domain: &str) -> Vec<String> {
    let namespace = appliance.namespace().unwrap_or_default();
    let service = names::management(&appliance.name_any());
    let mut all = vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.{domain}"),
        format!("{service}.{namespace}"),
        service,
    ];
    all.extend(appliance.spec.exposure.addresses.iter().cloned());
    all
}

pub(super) fn secret<const N: usize>(
    appliance: &ReplicationAppliance,
    name: &str,
    content: [(&str, String); N],
) -> Secret {
    let data =
        content.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes()))).collect();
    Secret {
        metadata: owned_by(appliance, name, labels([(APPLIANCE_LABEL, &appliance.name_any())])),
        data: Some(data),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::appliance::testing::appliance;

    fn now() -> jiff::Timestamp {
        "2026-03-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn certificates_are_made_once_and_again_when_an_address_is_added() {
        let mut berlin = appliance();
        let ca = new_ca(&berlin, now()).unwrap();
        let ca = Authority::open(text(&ca, CA_CERTIFICATE).unwrap(), text(&ca, CA_KEY).unwrap()).unwrap();
        let tls = renewed_tls(&berlin, &ca, None, now()).unwrap().unwrap();
        let management = renewed_management(&berlin, &ca, None, "cluster.local", now()).unwrap().unwrap();
        assert!(renewed_tls(&berlin, &ca, Some(&tls), now()).unwrap().is_none());
        assert!(
            renewed_management(&berlin, &ca, Some(&management), "cluster.local", now()).unwrap().is_none()
        );
        berlin.spec.exposure.addresses.push("10.9.8.7".into());
        let renewed =
            renewed_management(&berlin, &ca, Some(&management), "cluster.local", now()).unwrap().unwrap();
        assert_eq!(text(&renewed, KEY), text(&management, KEY), "enrolment pins the management key");
        assert!(renewed_tls(&berlin, &ca, Some(&tls), now()).unwrap().is_some());
    }
}
