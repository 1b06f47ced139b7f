//! What the operator's part of a test tells the process servers of a site.

use lifeboat_operator::control::{Desired, Endpoint, Identity};
use lifeboat_replication::wire::v1;
use lifeboat_tests::rig::Site;

/// With these assignments.
pub(crate) fn of(site: &Site, servers: Vec<v1::Assignment>) -> Desired {
    let control = &site.control;
    let v1::Configuration { process_servers, management_addresses, .. } = control.configuration.clone();
    let endpoint = |(name, address): &(String, String)| Endpoint {
        name: name.clone(),
        address: address.clone(),
        tls_name: "localhost".to_owned(),
    };
    Desired {
        identity: Identity {
            ca_pem: control.ca_pem.clone(),
            certificate_pem: control.certificate_pem.clone(),
            key_pem: control.key_pem.clone().into(),
        },
        process_servers: control.process_servers.iter().map(endpoint).collect(),
        appliers: Vec::new(),
        servers,
        data_addresses: process_servers,
        management_addresses,
        upload_limit: 0,
    }
}
