//! Which streams there are and what was sent.

mod heard;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lifeboat_replication::wire::v1;
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tonic::transport::{Certificate, ClientTlsConfig};

use self::heard::Heard;
pub use self::heard::{Applied, Figures};
use super::{applier, enrol::Registrar, process_server};
use crate::pki::{Authority, OPERATOR_URI, PkiError, renewal_due};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApplianceKey {
    pub namespace: String,
    pub name: String,
}

/// Our side of mutual TLS with one appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub ca_pem: String,
    pub certificate_pem: String,
    pub key_pem: Arc<str>,
}

impl Identity {
    pub(super) fn tls(&self, name: &str) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca_pem))
            .identity(tonic::transport::Identity::from_pem(&self.certificate_pem, self.key_pem.as_bytes()))
            .domain_name(name)
    }
}

/// Where a pod's control port is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Name of the process server or applier.
    pub name: String,
    /// host:port.
    pub address: String,
    pub tls_name: String,
}

/// What an appliance should be connected to, and what its process servers should know.
#[derive(Debug, Clone)]
pub struct Desired {
    pub identity: Identity,
    pub process_servers: Vec<Endpoint>,
    pub appliers: Vec<Endpoint>,
    pub servers: Vec<v1::Assignment>,
    pub data_addresses: Vec<v1::ProcessServerAddress>,
    pub management_addresses: Vec<String>,
    /// Of each process server, in bytes a second; 0: no limit.
    pub upload_limit: u64,
}

struct Appliance {
    configuration: watch::Sender<v1::Configuration>,
    streams: BTreeMap<Endpoint, JoinHandle<()>>,
    /// Since when a process server is listened to, by name.
    listening: BTreeMap<String, Instant>,
    applier_streams: BTreeMap<Endpoint, JoinHandle<()>>,
    applier_servers: watch::Sender<Vec<String>>,
    identity: Identity,
    reports: BTreeMap<String, Heard<v1::Report>>,
    applier_reports: BTreeMap<String, Heard<v1::ApplierReport>>,
    /// Why a stream cannot be opened, by name of the pod.
    troubles: BTreeMap<String, String>,
}

impl Appliance {
    fn new(identity: Identity) -> Self {
        Self {
            configuration: watch::channel(v1::Configuration::default()).0,
            streams: BTreeMap::new(),
            listening: BTreeMap::new(),
            applier_streams: BTreeMap::new(),
            applier_servers: watch::channel(Vec::new()).0,
            identity,
            reports: BTreeMap::new(),
            applier_reports: BTreeMap::new(),
            troubles: BTreeMap::new(),
        }
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        self.streams.values().chain(self.applier_streams.values()).for_each(JoinHandle::abort);
    }
}

/// Ends the streams to others than `wanted`; those that have ended by themselves are opened anew.
fn keep(streams: &mut BTreeMap<Endpoint, JoinHandle<()>>, wanted: &[Endpoint]) {
    streams.retain(|endpoint, stream| {
        let keep = wanted.contains(endpoint) && !stream.is_finished();
        if !keep {
            stream.abort();
        }
        keep
    });
}

/// A request that nobody has repeated for this long is dropped: whoever asked is gone.
const REQUEST_LIFE: Duration = Duration::from_secs(60);

/// Points that are asked for, by the server's id and the request's.
type AskedPoints = BTreeMap<(ApplianceKey, String), BTreeMap<String, (Asked, Instant)>>;

/// What a point should be, and whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    pub consistency: v1::Consistency,
    /// Of the whole consistency group.
    pub group: bool,
}

/// SHA-256 of the public key by namespace and server.
type EnrolledKeys = BTreeMap<(String, String), Vec<u8>>;

#[derive(Clone, Default)]
pub struct Fleet {
    appliances: Arc<Mutex<BTreeMap<ApplianceKey, Appliance>>>,
    /// Hash of the enrolled key, by namespace and server: what its Secret says.
    enrolled: Arc<Mutex<EnrolledKeys>>,
    asked: Arc<Mutex<AskedPoints>>,
    /// Set once at start.
    registrar: Arc<Mutex<Option<Registrar>>>,
}

impl Fleet {
    /// Our certificate for an appliance: made at the first need and again when it is due or the CA is another one.
    pub fn identity(
        &self,
        key: &ApplianceKey,
        authority: &Authority,
        now: jiff::Timestamp,
    ) -> Result<Identity, PkiError> {
        let known = self.appliances().get(key).map(|known| known.identity.clone());
        if let Some(known) = known.filter(|known| {
            known.ca_pem == authority.certificate_pem && !renewal_due(&known.certificate_pem, &[], now)
        }) {
            return Ok(known);
        }
        let issued = authority.client(OPERATOR_URI, now)?;
        Ok(Identity {
            ca_pem: authority.certificate_pem.clone(),
            certificate_pem: issued.certificate_pem,
            key_pem: issued.key_pem.into(),
        })
    }

    /// Remembers the key that a server's agent has enrolled with, and sends it on at once.
    pub fn set_enrolled(&self, key: &ApplianceKey, server: &str, server_id: &str, public_key_sha256: &[u8]) {
        self.enrolled().insert((key.namespace.clone(), server.to_owned()), public_key_sha256.to_vec());
        let appliances = self.appliances();
        let Some(known) = appliances.get(key) else { return };
        known.configuration.send_if_modified(|current| {
            let Some(server) = current.servers.iter_mut().find(|server| server.server_id == server_id) else {
                return false;
            };
            let changed = server.public_key_sha256 != public_key_sha256;
            server.public_key_sha256 = public_key_sha256.to_vec();
            current.generation += u64::from(changed);
            changed
        });
    }

    /// What the enrolment Secret said when it was last read.
    pub fn enrolled_key(&self, namespace: &str, server: &str) -> Option<Vec<u8>> {
        self.enrolled().get(&(namespace.to_owned(), server.to_owned())).cloned()
    }

    pub fn remember_enrolled(&self, namespace: &str, server: &str, public_key_sha256: Vec<u8>) {
        self.enrolled().insert((namespace.to_owned(), server.to_owned()), public_key_sha256);
    }

    pub fn forget_enrolled(&self, namespace: &str, server: &str) {
        self.enrolled().remove(&(namespace.to_owned(), server.to_owned()));
    }

    fn enrolled(&self) -> MutexGuard<'_, EnrolledKeys> {
        self.enrolled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks a server's agent for a point, at once and as long as this is repeated; the answer, when it is there. One
    /// point is taken for an id, however often it is asked for.
    pub fn ask_point(
        &self,
        key: &ApplianceKey,
        process_server: &str,
        server_id: &str,
        id: &str,
        wanted: Asked,
    ) -> Option<v1::PointAnswer> {
        let of = (key.clone(), server_id.to_owned());
        self.asked().entry(of).or_default().insert(id.to_owned(), (wanted, Instant::now()));
        self.send_points(key);
        if wanted.group {
            return self.group_answer(key, process_server, server_id, id);
        }
        let heartbeat = self.figures(key, process_server, server_id)?.report.heartbeat?;
        heartbeat.points.into_iter().find(|answer| answer.id == id)
    }

    /// Its answer has been taken down.
    pub fn settle_point(&self, key: &ApplianceKey, server_id: &str, id: &str) {
        if let Some(asked) = self.asked().get_mut(&(key.clone(), server_id.to_owned())) {
            asked.remove(id);
        }
        self.send_points(key);
    }

    fn asked(&self) -> MutexGuard<'_, AskedPoints> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is asked of a server now.
    fn points(&self, key: &ApplianceKey, server_id: &str) -> Vec<v1::PointRequest> {
        let mut all = self.asked();
        let Some(asked) = all.get_mut(&(key.clone(), server_id.to_owned())) else { return Vec::new() };
        asked.retain(|_, (_, at)| at.elapsed() < REQUEST_LIFE);
        let request = |(id, (asked, _)): (&String, &(Asked, Instant))| v1::PointRequest {
            id: id.clone(),
            consistency: asked.consistency.into(),
            group: asked.group,
        };
        asked.iter().map(request).collect()
    }

    fn send_points(&self, key: &ApplianceKey) {
        let appliances = self.appliances();
        let Some(known) = appliances.get(key) else { return };
        known.configuration.send_if_modified(|current| {
            let mut changed = false;
            for server in &mut current.servers {
                let points = self.points(key, &server.server_id);
                changed |= server.points != points;
                server.points = points;
            }
            current.generation += u64::from(changed);
            changed
        });
    }

    pub fn set_registrar(&self, registrar: Registrar) {
        *self.registrar.lock().unwrap_or_else(PoisonError::into_inner) = Some(registrar);
    }

    pub(super) fn registrar(&self) -> Option<Registrar> {
        self.registrar.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn appliances(&self) -> MutexGuard<'_, BTreeMap<ApplianceKey, Appliance>> {
        self.appliances.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens, keeps and closes streams so that they are as desired, and sends what has changed. Safe to repeat.
    pub fn sync(&self, key: &ApplianceKey, desired: Desired) {
        let Desired {
            identity,
            process_servers,
            appliers,
            mut servers,
            data_addresses,
            management_addresses,
            upload_limit,
        } = desired;
        for server in &mut servers {
            server.points = self.points(key, &server.server_id);
        }
        let mut appliances = self.appliances();
        if appliances.get(key).is_some_and(|known| known.identity != identity) {
            appliances.remove(key);
        }
        let known = appliances.entry(key.clone()).or_insert_with(|| Appliance::new(identity.clone()));
        known.applier_servers.send_if_modified(|ids| {
            let wanted: Vec<String> = servers.iter().map(|server| server.server_id.clone()).collect();
            let changed = *ids != wanted;
            *ids = wanted;
            changed
        });
        known.configuration.send_if_modified(|current| {
            let wanted = v1::Configuration {
                generation: current.generation,
                servers,
                process_servers: data_addresses,
                management_addresses,
                upload_limit_bytes_per_second: upload_limit,
            };
            let changed = *current != wanted || current.generation == 0;
            if changed {
                *current = v1::Configuration { generation: current.generation + 1, ..wanted };
            }
            changed
        });
        keep(&mut known.streams, &process_servers);
        known.listening.retain(|name, _| process_servers.iter().any(|endpoint| endpoint.name == *name));
        for endpoint in process_servers {
            known.listening.entry(endpoint.name.clone()).or_insert_with(Instant::now);
            if !known.streams.contains_key(&endpoint) {
                let stream = process_server::run(
                    self.clone(),
                    key.clone(),
                    endpoint.clone(),
                    identity.clone(),
                    known.configuration.subscribe(),
                );
                known.streams.insert(endpoint, tokio::spawn(stream));
            }
        }
        keep(&mut known.applier_streams, &appliers);
        known.applier_reports.retain(|name, _| appliers.iter().any(|endpoint| endpoint.name == *name));
        for endpoint in appliers {
            if !known.applier_streams.contains_key(&endpoint) {
                let stream = applier::run(
                    self.clone(),
                    key.clone(),
                    endpoint.clone(),
                    identity.clone(),
                    known.applier_servers.subscribe(),
                );
                known.applier_streams.insert(endpoint, tokio::spawn(stream));
            }
        }
    }

    /// Closes every stream of an appliance that is gone.
    pub fn forget(&self, key: &ApplianceKey) {
        self.appliances().remove(key);
    }
}
