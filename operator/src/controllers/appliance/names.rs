//! Names of what an appliance consists of.

pub const DATA_PORT: i32 = 9443;
pub const MANAGEMENT_PORT: i32 = 8443;
pub const CONTROL_PORT: i32 = 9444;
pub const METRICS_PORT: i32 = 8080;

pub fn process_servers(appliance: &str) -> String {
    format!("{appliance}-process-server")
}

/// Pod, Service and certificate of one process server.
pub fn process_server(appliance: &str, index: i32) -> String {
    format!("{}-{index}", process_servers(appliance))
}

/// Headless: gives every pod a name in DNS.
pub fn process_server_pods(appliance: &str) -> String {
    format!("{appliance}-process-servers")
}

pub fn management(appliance: &str) -> String {
    format!("{appliance}-management")
}

/// StatefulSet and headless Service of the appliers.
pub fn applier(appliance: &str) -> String {
    format!("{appliance}-applier")
}

/// Pod of one applier.
pub fn applier_pod(appliance: &str, index: i32) -> String {
    format!("{}-{index}", applier(appliance))
}

/// ConfigMap with the programs' configuration files.
pub fn configuration(appliance: &str) -> String {
    format!("{appliance}-configuration")
}
