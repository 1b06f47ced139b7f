//! Who is who: the operator's configuration, indexed for the ports.

use std::{collections::BTreeMap, sync::Arc};

use lifeboat_replication::wire::v1;

use crate::net::peer::Identity;

/// One version of the configuration. Everything is looked up in the newest one.
#[derive(Debug, Default)]
pub struct Directory {
    pub generation: u64,
    assignments: BTreeMap<String, v1::Assignment>,
    addresses: BTreeMap<String, Vec<String>>,
    pub management_addresses: Vec<String>,
    /// Of each process server, in bytes a second; 0: no limit.
    pub upload_limit: u64,
}

/// Why a certificate does not speak for a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    #[error(
        "a client certificate of an enrolled server is needed: run the command that `kubectl lifeboat enroll` prints"
    )]
    NoCertificate,
    #[error("server {0} is not protected by this appliance: enrol it with a token of its ProtectedServer")]
    Unknown(String),
    #[error(
        "the certificate of server {0} was replaced by a later enrolment: enrol this machine again if it is the right one"
    )]
    Replaced(String),
}

impl From<v1::Configuration> for Directory {
    fn from(configuration: v1::Configuration) -> Self {
        let v1::Configuration {
            generation,
            servers,
            process_servers,
            management_addresses,
            upload_limit_bytes_per_second,
        } = configuration;
        Self {
            generation,
            assignments: servers.into_iter().map(|server| (server.server_id.clone(), server)).collect(),
            addresses: process_servers
                .into_iter()
                .map(|server| (server.name, server.data_addresses))
                .collect(),
            management_addresses,
            upload_limit: upload_limit_bytes_per_second,
        }
    }
}

impl Directory {
    /// The server that the certificate speaks for.
    pub fn authorize(&self, identity: Option<&Arc<Identity>>) -> Result<&v1::Assignment, NotAllowed> {
        let identity = identity.ok_or(NotAllowed::NoCertificate)?;
        let id = identity.server_id().ok_or(NotAllowed::NoCertificate)?;
        let assignment = self.assignments.get(id).ok_or_else(|| NotAllowed::Unknown(id.to_owned()))?;
        // Empty: not enrolled, so no certificate is right.
        if assignment.public_key_sha256.is_empty()
            || assignment.public_key_sha256 != identity.public_key_sha256
        {
            return Err(NotAllowed::Replaced(id.to_owned()));
        }
        Ok(assignment)
    }

    /// Data addresses of a process server.
    pub fn addresses(&self, process_server: &str) -> &[String] {
        self.addresses.get(process_server).map(Vec::as_slice).unwrap_or_default()
    }

    /// The consistency groups with a member on this process server, each with all its members.
    pub fn groups(&self, process_server: &str) -> BTreeMap<&str, Vec<&v1::Assignment>> {
        let mut groups: BTreeMap<&str, Vec<&v1::Assignment>> = BTreeMap::new();
        for assignment in
            self.assignments.values().filter(|assignment| !assignment.consistency_group.is_empty())
        {
            groups.entry(&assignment.consistency_group).or_default().push(assignment);
        }
        groups.retain(|_, members| members.iter().any(|member| member.process_server == process_server));
        groups
    }

    /// What is assigned to a process server, by server id.
    pub fn assigned_to<'a>(
        &'a self,
        process_server: &'a str,
    ) -> impl Iterator<Item = (&'a String, &'a v1::Assignment)> {
        self.assignments.iter().filter(move |(_, assignment)| assignment.process_server == process_server)
    }
}
