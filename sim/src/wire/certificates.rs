//! A throw-away authority and what it has signed, made once in each process; an agent's certificate for each schedule.
//!
//! Ed25519 and set serial numbers, so that all of it has the same length each time: keys and randomness differ from
//! process to process, what is sent when does not.

use std::sync::{Arc, OnceLock};

use lifeboat_agent::state::{Identity as AgentIdentity, Secret};
use lifeboat_process_server::net::{
    peer::{Identity, SERVER_URI},
    tls::{ClientCertificate, Content, Tls, TlsFiles},
};
use lifeboat_replication::ids::ServerId;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ED25519, SanType, SerialNumber,
    string::Ia5String,
};

use super::management_address;

/// Process servers that a schedule may have.
const MOST_NODES: usize = 4;

struct Authority {
    ca: CertifiedIssuer<'static, KeyPair>,
    agents_key: KeyPair,
    data: Tls,
    management: Tls,
}

static AUTHORITY: OnceLock<Result<Authority, String>> = OnceLock::new();

/// What a schedule's programs show to each other.
#[derive(Debug)]
pub(crate) struct Certificates {
    pub(crate) agent: AgentIdentity,
    /// As a process server sees it.
    pub(crate) peer: Arc<Identity>,
    pub(crate) data: Tls,
    pub(crate) management: Tls,
}

impl Certificates {
    /// For the agent of `server`.
    pub(crate) fn of(server: &ServerId) -> Result<Self, String> {
        let authority = AUTHORITY.get_or_init(Authority::new).as_ref().map_err(Clone::clone)?;
        let text = |error: rcgen::Error| error.to_string();
        let mut params = CertificateParams::new(Vec::new()).map_err(text)?;
        params.serial_number = Some(SerialNumber::from(3_u64));
        let uri = Ia5String::try_from(format!("{SERVER_URI}{server}")).map_err(text)?;
        params.subject_alt_names.push(SanType::URI(uri));
        let certificate = params.signed_by(&authority.agents_key, &authority.ca).map_err(text)?;
        let agent = AgentIdentity {
            server: server.clone(),
            key_pem: Secret::new(authority.agents_key.serialize_pem()),
            certificate_pem: certificate.pem(),
            ca_pem: authority.ca.pem(),
            management: (0..MOST_NODES).map(management_address).collect(),
        };
        Ok(Self {
            agent,
            peer: Arc::new(Identity::of(certificate.der())),
            data: authority.data.clone(),
            management: authority.management.clone(),
        })
    }
}

impl Authority {
    fn new() -> Result<Self, String> {
        let text = |error: rcgen::Error| error.to_string();
        let key = || KeyPair::generate_for(&PKCS_ED25519).map_err(text);
        let mut params = CertificateParams::new(Vec::new()).map_err(text)?;
        params.serial_number = Some(SerialNumber::from(1_u64));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, key()?).map_err(text)?;
        let names =
            (0..MOST_NODES).flat_map(|node| [format!("ps-{node}"), format!("ps-{node}.sim.lifeboat")]);
        let mut params = CertificateParams::new(names.collect::<Vec<_>>()).map_err(text)?;
        params.serial_number = Some(SerialNumber::from(2_u64));
        let servers_key = key()?;
        let certificate = params.signed_by(&servers_key, &ca).map_err(text)?;
        let content = Content {
            certificate: certificate.pem().into(),
            key: servers_key.serialize_pem().into(),
            ca: ca.pem().into(),
        };
        let tls = |clients| {
            let files = TlsFiles { own: "memory".into(), ca: "memory".into(), clients, protocols: &[b"h2"] };
            files.build(&content).map_err(|error| error.to_string())
        };
        Ok(Self {
            data: tls(ClientCertificate::Required)?,
            management: tls(ClientCertificate::Optional)?,
            agents_key: key()?,
            ca,
        })
    }
}
