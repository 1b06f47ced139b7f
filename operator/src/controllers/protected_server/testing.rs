//! Makers for tests.

use lifeboat_crds::{ProtectedServer, ProtectedServerSpec, ProtectedServerStatus};

/// `prod/<name>` on appliance `berlin`, with an id and a place.
pub(crate) fn server(name: &str) -> ProtectedServer {
    let spec: ProtectedServerSpec = serde_json::from_value(serde_json::json!({
        "applianceRef": {"name": "berlin"},
        "policyRef": {"name": "gold"},
        "target": {"virtualMachinePod": {"ports": [{"name": "sql", "port": 5432}]}},
    }))
    .unwrap();
    let mut server = ProtectedServer::new(name, spec);
    server.metadata.namespace = Some("prod".into());
    server.metadata.uid = Some(format!("uid-{name}"));
    server.status = Some(ProtectedServerStatus {
        id: Some(format!("id-{name}")),
        process_server: Some("berlin-process-server-0".into()),
        ..Default::default()
    });
    server
}
