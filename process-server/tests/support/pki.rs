//! Certificates for tests, as the operator makes them.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PublicKeyData as _,
    SanType,
};

pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

pub struct Leaf {
    pub certificate: String,
    pub key: String,
    pub public_key_sha256: Vec<u8>,
}

#[allow(clippy::new_without_default, reason = "making keys is no default")]
impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// For a listener of process server `ps-0` on loopback.
    pub fn listener(&self) -> Leaf {
        self.listener_of(&["ps-0"])
    }

    /// For listeners of these process servers on loopback.
    pub fn listener_of(&self, process_servers: &[&str]) -> Leaf {
        let names = process_servers.iter().map(|name| format!("{name}.main.lifeboat"));
        let names: Vec<String> = names.chain(["localhost".to_owned()]).collect();
        self.leaf(CertificateParams::new(names).unwrap(), ExtendedKeyUsagePurpose::ServerAuth)
    }

    pub fn client(&self, uri: &str) -> Leaf {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        self.leaf(params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn leaf(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Leaf {
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        let sum = ring::digest::digest(&ring::digest::SHA256, &key.subject_public_key_info());
        Leaf { certificate, key: key.serialize_pem(), public_key_sha256: sum.as_ref().to_vec() }
    }
}

impl Leaf {
    /// As a Secret is mounted.
    pub fn write(&self, dir: &Path, ca: &Ca) {
        std::fs::write(dir.join("tls.crt"), &self.certificate).unwrap();
        std::fs::write(dir.join("tls.key"), &self.key).unwrap();
        std::fs::write(dir.join("ca.crt"), &ca.pem).unwrap();
    }
}
