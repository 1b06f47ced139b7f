//! Makers for tests.

use lifeboat_crds::{
    ReplicationAppliance, ReplicationApplianceSpec,
    appliance::{AzureAuthentication, AzureVault, Role, Vault},
    refs::SecretKeyRef,
};

pub(crate) fn appliance() -> ReplicationAppliance {
    let authentication = AzureAuthentication {
        account_key_secret_ref: Some(SecretKeyRef { name: "storage".into(), key: "accountKey".into() }),
        ..AzureAuthentication::default()
    };
    let azure = AzureVault {
        endpoint: "https://contosodr.blob.core.windows.net".into(),
        container: "lifeboat".into(),
        cache: None,
        authentication,
        applier_authentication: None,
    };
    let mut spec = ReplicationApplianceSpec {
        vault: Vault { azure },
        roles: vec![Role::Ingest, Role::Apply],
        encryption_key_secret_ref: None,
        rotate_data_key: None,
        recovery_key_recipients: vec!["age1".to_owned() + &"q".repeat(58)],
        appliers: Default::default(),
        process_servers: Default::default(),
        exposure: Default::default(),
        bandwidth: Vec::new(),
    };
    spec.process_servers.replicas = 2;
    spec.process_servers.spool.size.0 = "1Gi".into();
    let mut appliance = ReplicationAppliance::new("berlin", spec);
    appliance.metadata.namespace = Some("prod".into());
    appliance.metadata.uid = Some("b0b".into());
    appliance
}
