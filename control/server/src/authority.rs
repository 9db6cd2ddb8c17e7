//! The cluster's certificate authority and what it has issued.
//!
//! Everything lives as PEM under `DIR/pki`, keys readable by their owner only. A certificate that is missing, was issued
//! by another authority, names other hosts, is not valid yet or has less than a third of its life left is issued again, at start and
//! while the server runs ([`crate::tls`]).

mod der;
mod request;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coracle_api::pem;
use coracle_apiserver::{FrontProxy, Shown};
use coracle_controllers::{Asked, Signer};
use coracle_keyspace::SecretKey;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};

use self::request::Request;
use crate::founding;

/// How long the authority itself is valid.
const AUTHORITY_DAYS: i64 = 3650;
/// How long what it issues is valid; renewed when a third of that is left.
const LEAF_DAYS: i64 = 365;
/// How long what a node gets is valid; it asks for another when a third of that is left.
const NODE_DAYS: i64 = 90;

/// What went wrong with the cluster's certificates.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the authority could not be read or written.
    #[error("{path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something that cannot be made again is gone.
    #[error(
        "{path} is missing, although there is data of a cluster: a new one would disown everything that was issued. {}",
        coracle_keyspace::LOST_DATA
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A key or certificate could not be made.
    #[error("issue certificate {name}")]
    Issue {
        /// What it was for.
        name: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// What was sent is no request for a certificate that can be signed.
    #[error("the certificate request is not usable: {reason}")]
    Request {
        /// Why.
        reason: String,
    },
    /// A file holds no usable key or certificate.
    #[error("{path} holds no usable PEM: {reason}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The authority's key is not that of its certificate.
    #[error(
        "{key} does not belong to {certificate}: one of them is another cluster's; put back what was there, from another server of \
         the cluster or a backup. Certificates are signed with that key, and Secrets are encrypted under what is made of it"
    )]
    NoPair {
        /// The key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
    },
}

/// A certificate with its key, both as PEM.
#[derive(Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its private key (PKCS #8).
    pub key: String,
}

impl Pair {
    /// The certificate chain for rustls.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.certificate.as_bytes()).filter_map(Result::ok).collect()
    }

    /// The private key for rustls.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("a key that was parsed when it was loaded")
    }
}

/// What every server of a cluster has: its authority with the key, and the key of ServiceAccount tokens, as PEM.
#[derive(Clone)]
pub struct SharedKeys {
    /// The authority's certificate.
    pub authority: String,
    /// The authority's key.
    pub authority_key: String,
    /// The key that signs tokens.
    pub token_key: String,
}

impl SharedKeys {
    /// What the keys are sealed under that Secrets are encrypted under: all servers of a cluster know it, and it is written
    /// nowhere. The same for the same authority. `dir` is where the keys are, or are to be.
    pub fn root_key(&self, dir: &Path) -> Result<SecretKey, Error> {
        root_key(dir, &self.authority, &self.authority_key)
    }

    /// Whether the authority's key is that of its certificate: with others nothing is ever opened that is sealed in the cluster's data.
    pub fn is_pair(&self) -> bool {
        is_pair(&self.authority, &self.authority_key)
    }

    /// They, if that is so; `dir` is where the keys are, or are to be.
    fn check(self, dir: &Path) -> Result<SharedKeys, Error> {
        match self.is_pair() {
            true => Ok(self),
            false => Err(Error::no_pair(dir)),
        }
    }
}

impl Error {
    fn no_pair(dir: &Path) -> Error {
        Error::NoPair { key: dir.join("ca.key"), certificate: dir.join("ca.crt") }
    }
}

fn root_key(dir: &Path, certificate: &str, key: &str) -> Result<SecretKey, Error> {
    if !is_pair(certificate, key) {
        return Err(Error::no_pair(dir));
    }
    let path = dir.join("ca.key");
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes());
    let key = key.map_err(|error| Error::Pem { path, reason: error.to_string() })?;
    Ok(SecretKey::derive(key.secret_der(), "coracle root key 1"))
}

/// Who a certificate is for.
#[derive(Clone, Debug)]
pub struct Subject {
    /// File name under `pki/`, without extension.
    pub file: String,
    /// Common name: the user name of a client.
    pub user: String,
    /// Organizations: the groups of a client.
    pub groups: Vec<String>,
    /// Names a server answers to; none for a client.
    pub hosts: Vec<String>,
    /// Addresses a server answers at.
    pub addresses: Vec<IpAddr>,
}

/// The authority of one cluster.
pub struct Authority {
    dir: PathBuf,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Opens the authority in `dir`; only while a cluster is being `founded` is what is missing made.
    pub fn open(dir: &Path, founded: bool) -> Result<Authority, Error> {
        let (certificate_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        let token_path = dir.join("service-account.key");
        let complete = Authority::check(dir);
        if founded {
            complete?;
        } else if complete.is_err() {
            founding::closed_dir(dir).map_err(|source| Error::File { path: dir.into(), source })?;
            let key = new_key("ca")?;
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "coracle-ca");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages =
                vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
            validity(&mut params, SystemTime::now(), AUTHORITY_DAYS);
            // Whatever it issues when the clock was set back is no older than it.
            params.not_before = (SystemTime::now() - Duration::from_secs(AUTHORITY_DAYS as u64 * 86_400)).into();
            let certificate = params.self_signed(&key).map_err(|source| Error::Issue { name: "ca".into(), source })?;
            write(&token_path, new_key("service-account")?.serialize_pem().as_bytes())?;
            write(&key_path, key.serialize_pem().as_bytes())?;
            write(&certificate_path, certificate.pem().as_bytes())?;
        }
        let certificate = read(&certificate_path)?;
        let key =
            KeyPair::from_pem(&read(&key_path)?).map_err(|e| Error::Pem { path: key_path, reason: e.to_string() })?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)
            .map_err(|e| Error::Pem { path: certificate_path, reason: e.to_string() })?;
        Ok(Authority { dir: dir.into(), certificate, issuer })
    }

    /// Takes over the authority of a cluster that admitted this server. What an interrupted founding may have left there is
    /// nobody's. Keys that are no pair are not written.
    pub fn adopt(dir: &Path, keys: &SharedKeys) -> Result<(), Error> {
        let keys = keys.clone().check(dir)?;
        founding::closed_dir(dir).map_err(|source| Error::File { path: dir.into(), source })?;
        write(&dir.join("service-account.key"), keys.token_key.as_bytes())?;
        write(&dir.join("ca.key"), keys.authority_key.as_bytes())?;
        write(&dir.join("ca.crt"), keys.authority.as_bytes())
    }

    /// What another server of the cluster needs. The certificate is the one that this server runs with, and the keys are those on the
    /// disk, which is where the next start looks: what was replaced meanwhile is given to nobody.
    pub fn shared(&self) -> Result<SharedKeys, Error> {
        let keys = SharedKeys {
            authority: self.certificate.clone(),
            authority_key: read(&self.dir.join("ca.key"))?,
            token_key: self.token_key()?,
        };
        keys.check(&self.dir)
    }

    /// By what other API servers know the servers of this cluster: a certificate that another authority than the cluster's has
    /// signed, which signs nothing else. Who has any certificate of the cluster's is not taken for its front proxy by that.
    ///
    /// That authority's key follows from the cluster's, which all servers have: so they have one, without a file of its own that
    /// would have to be founded, given to servers that join, kept in backups and found missing. It does not lead back.
    pub fn front_proxy(&self) -> Result<FrontProxy, Error> {
        let failed = |source| Error::Issue { name: FrontProxy::NAME.into(), source };
        let seed = Sha256::new_with_prefix("coracle: the authority of front proxies\0")
            .chain_update(self.issuer.key().serialize_der())
            .finalize();
        // A key of Ed25519 is any 32 bytes (RFC 8410, section 7).
        const ED25519: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        let key = [&ED25519[..], &seed].concat();
        let key = KeyPair::try_from(key.as_slice()).map_err(failed)?;
        // As long as the cluster's: what is made here lives as long as the process, at whose start the clock may have been wrong.
        let root = self.root();
        let (_, root) =
            x509_parser::parse_x509_certificate(&root).expect("a certificate that was parsed when it was loaded");
        let life = root.validity();
        let valid = |params: &mut CertificateParams| {
            (params.not_before, params.not_after) = (life.not_before.to_datetime(), life.not_after.to_datetime());
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "coracle-front-proxy-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        valid(&mut params);
        let authority = params.self_signed(&key).map_err(failed)?.pem();
        let issuer = Issuer::new(params, key);
        let own = new_key(FrontProxy::NAME)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, FrontProxy::NAME);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ClientAuth);
        params.use_authority_key_identifier_extension = true;
        // In this process's memory only, and another one for each life of it.
        valid(&mut params);
        let certificate = params.signed_by(&own, &issuer).map_err(failed)?.pem();
        Ok(FrontProxy { authority, shown: Arc::new(Shown { certificate, key: own.serialize_pem() }) })
    }

    /// [`SharedKeys::root_key`] of the authority in `dir`, which is there.
    pub fn root_key(dir: &Path) -> Result<SecretKey, Error> {
        root_key(dir, &read(&dir.join("ca.crt"))?, &read(&dir.join("ca.key"))?)
    }

    /// Whether everything that only founding makes is in `dir`; changes nothing.
    pub fn check(dir: &Path) -> Result<(), Error> {
        match ["ca.crt", "ca.key", "service-account.key"].iter().map(|name| dir.join(name)).find(|path| !path.exists())
        {
            Some(path) => Err(Error::Missing { path }),
            None => Ok(()),
        }
    }

    /// The authority's own certificate, as PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The authority's certificate for rustls.
    pub fn root(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes())
            .expect("a certificate that was parsed when it was loaded")
    }

    /// The certificate for `subject`, issued anew where there is none that will do for some time from `now` on.
    pub fn issue(&self, subject: &Subject, now: SystemTime) -> Result<Pair, Error> {
        let certificate_path = self.dir.join(format!("{}.crt", subject.file));
        let key_path = self.dir.join(format!("{}.key", subject.file));
        if let (Ok(certificate), Ok(key)) = (fs::read_to_string(&certificate_path), fs::read_to_string(&key_path))
            && self.still_good(&certificate, subject, now)
            && is_pair(&certificate, &key)
        {
            return Ok(Pair { certificate, key });
        }
        let failed = |source| Error::Issue { name: subject.file.clone(), source };
        let key = new_key(&subject.file)?;
        let mut params = CertificateParams::new(subject.hosts.clone()).map_err(failed)?;
        params.subject_alt_names.extend(subject.addresses.iter().map(|a| SanType::IpAddress(*a)));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        let serves = !subject.hosts.is_empty() || !subject.addresses.is_empty();
        params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ClientAuth);
        if serves {
            params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, now, LEAF_DAYS);
        let certificate = self.certify(params, &der::name(&subject.user, &subject.groups), &key).map_err(failed)?;
        let pair = Pair { certificate, key: key.serialize_pem() };
        // A full disk is no reason not to start: another one is issued the next time.
        let kept =
            write(&key_path, pair.key.as_bytes()).and_then(|()| write(&certificate_path, pair.certificate.as_bytes()));
        if let Err(error) = kept {
            tracing::error!(error = &error as &dyn std::error::Error, "a certificate that was issued is not kept");
        }
        Ok(pair)
    }

    /// Whether a node agent of this very process has, or had, this name.
    pub fn is_own_node(&self, name: &str) -> bool {
        self.dir.join(format!("node-{name}.crt")).exists()
    }

    /// A certificate for the node agent `name`, for the key that signed `request` (PKCS #10, PEM). Whatever else the request
    /// asks for is not looked at: neither names nor addresses nor uses.
    pub fn sign_node(&self, name: &str, request: &str) -> Result<String, Error> {
        let der = pem::request(request.as_bytes()).map_err(|reason| Error::Request { reason: reason.to_owned() })?;
        let key = Request::read(&der)?.key()?;
        let failed = |source| Error::Issue { name: name.into(), source };
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(failed)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ClientAuth);
        params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, SystemTime::now(), NODE_DAYS);
        let subject = der::name(&format!("system:node:{name}"), &["system:nodes".to_owned()]);
        self.certify(params, &subject, &key).map_err(failed)
    }

    /// A certificate for the subject, names and key of `request` (PKCS #10, DER), for these usages, so long at most. What else it
    /// asks for is not looked at.
    fn sign_request(&self, request: &[u8], usages: &[String], life: Duration) -> Result<String, Error> {
        let request = Request::read(request)?;
        let failed = |source| Error::Issue { name: "a request".into(), source };
        let mut params = CertificateParams::default();
        params.subject_alt_names = request::names(&request.asked()?).map_err(failed)?;
        for usage in usages {
            match usage.as_str() {
                "digital signature" => params.key_usages.push(KeyUsagePurpose::DigitalSignature),
                "key encipherment" => params.key_usages.push(KeyUsagePurpose::KeyEncipherment),
                "client auth" => params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ClientAuth),
                "server auth" => params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth),
                other => return Err(Error::Request { reason: format!("nothing is signed for the usage {other:?}") }),
            }
        }
        params.use_authority_key_identifier_extension = true;
        let now = SystemTime::now();
        // As the reference: five minutes back, for clocks that differ.
        params.not_before = (now - Duration::from_secs(300)).into();
        params.not_after = (now + life).into();
        self.certify(params, request.subject(), &request.key()?).map_err(failed)
    }

    /// Signs a certificate for this subject (DER) and key; PEM.
    fn certify(
        &self,
        mut params: CertificateParams,
        subject: &[u8],
        key: &impl PublicKeyData,
    ) -> Result<String, rcgen::Error> {
        // Of whoever has no subject the names are critical, which is decided by this one.
        if der::is_empty(subject) {
            params.distinguished_name = DistinguishedName::new();
        }
        let made = params.signed_by(key, &self.issuer)?;
        let signed = der::with_subject(made.der(), subject, self.issuer.key());
        Ok(pem::certificate(&signed.expect("what was just made is a certificate")?))
    }

    /// The key that signs ServiceAccount tokens (ECDSA P-256, PKCS #8 PEM).
    pub fn token_key(&self) -> Result<String, Error> {
        let path = self.dir.join("service-account.key");
        let key = read(&path)?;
        KeyPair::from_pem(&key).map_err(|e| Error::Pem { path, reason: e.to_string() })?;
        Ok(key)
    }

    /// When the certificate that is kept in `file` ends (Unix time in seconds).
    pub fn end(&self, file: &str) -> Option<i64> {
        let pem = fs::read(self.dir.join(format!("{file}.crt"))).ok()?;
        let der = CertificateDer::from_pem_slice(&pem).ok()?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
        Some(certificate.validity().not_after.timestamp())
    }

    /// Whether a certificate on disk can be used for `subject` for some time from `now` on.
    fn still_good(&self, pem: &str, subject: &Subject, now: SystemTime) -> bool {
        let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return false };
        let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&der) else { return false };
        let Ok(ca_der) = CertificateDer::from_pem_slice(self.certificate.as_bytes()) else { return false };
        let Ok((_, ca)) = x509_parser::parse_x509_certificate(&ca_der) else { return false };
        let left_days = (certificate.validity().not_after.timestamp() - unix(now)) / 86_400;
        let same_issuer = certificate.issuer().as_raw() == ca.subject().as_raw()
            && certificate.verify_signature(Some(ca.public_key())).is_ok();
        let named: Vec<String> = certificate
            .subject_alternative_name()
            .ok()
            .flatten()
            .map(|names| names.value.general_names.iter().map(general_name).collect())
            .unwrap_or_default();
        let wanted = subject.hosts.iter().cloned().chain(subject.addresses.iter().map(ToString::to_string));
        // One that was issued while the clock was ahead is nobody's proof before that time has come.
        let has_begun = certificate.validity().not_before.timestamp() <= unix(now);
        same_issuer && has_begun && left_days > LEAF_DAYS / 3 && wanted.into_iter().all(|name| named.contains(&name))
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// The authority as it is lent to controllers, which know nothing of keys.
impl Signer for Authority {
    fn read(&self, request: &[u8]) -> Result<Asked, String> {
        Request::read(request).and_then(|request| request.asked()).map_err(|error| error.to_string())
    }

    fn sign(&self, request: &[u8], usages: &[String], life: Duration) -> Result<String, String> {
        self.sign_request(request, usages, life).map_err(|error| error.to_string())
    }

    fn ends(&self, certificate: &[u8]) -> Option<i64> {
        let der = CertificateDer::from_pem_slice(certificate).ok()?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
        Some(certificate.validity().not_after.timestamp())
    }
}

/// Whether the key is the certificate's: between the two writes of an issue a process may end.
fn is_pair(certificate: &str, key: &str) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(certificate.as_bytes()) else { return false };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&der) else { return false };
    KeyPair::from_pem(key).is_ok_and(|key| key.subject_public_key_info() == certificate.public_key().raw)
}

fn general_name(name: &x509_parser::extensions::GeneralName<'_>) -> String {
    use x509_parser::extensions::GeneralName;
    match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::IPAddress(bytes) => request::address(bytes).map(|it| it.to_string()).unwrap_or_default(),
        _ => String::new(),
    }
}

fn new_key(name: &str) -> Result<KeyPair, Error> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|source| Error::Issue { name: name.into(), source })
}

/// Valid for `days` from `now` on, and from a day before, for clocks that differ: one that runs in another time zone is ahead by hours until
/// it is set, and what was issued meanwhile would be good for nothing for as long.
fn validity(params: &mut CertificateParams, now: SystemTime, days: i64) {
    params.not_before = (now - Duration::from_secs(86_400)).into();
    params.not_after = (now + Duration::from_secs(days as u64 * 86_400)).into();
}

fn unix(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::File { path: path.into(), source })
}

fn write(path: &Path, content: &[u8]) -> Result<(), Error> {
    founding::write(path, content).map_err(|source| Error::File { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(hosts: &[&str]) -> Subject {
        Subject {
            file: "apiserver".into(),
            user: "kube-apiserver".into(),
            groups: vec![],
            hosts: hosts.iter().map(ToString::to_string).collect(),
            addresses: vec!["127.0.0.1".parse().unwrap()],
        }
    }

    #[test]
    fn a_second_start_finds_the_same_authority_and_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::open(dir.path(), false).unwrap();
        let issued = first.issue(&server(&["localhost"]), SystemTime::now()).unwrap();
        let second = Authority::open(dir.path(), true).unwrap();
        assert_eq!(first.certificate(), second.certificate());
        assert_eq!(issued.certificate, second.issue(&server(&["localhost"]), SystemTime::now()).unwrap().certificate);
        assert_eq!(first.token_key().unwrap(), second.token_key().unwrap());
    }

    #[test]
    fn a_certificate_that_lacks_a_host_is_issued_again() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path(), false).unwrap();
        let before = authority.issue(&server(&["localhost"]), SystemTime::now()).unwrap();
        let after = authority.issue(&server(&["localhost", "boat"]), SystemTime::now()).unwrap();
        assert_ne!(before.certificate, after.certificate);
    }

    #[test]
    fn a_certificate_of_a_clock_that_was_ahead_is_issued_again() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path(), false).unwrap();
        let ahead = SystemTime::now() + Duration::from_secs(400 * 86_400);
        let before = authority.issue(&server(&["localhost"]), ahead).unwrap();
        let after = authority.issue(&server(&["localhost"]), SystemTime::now()).unwrap();
        assert_ne!(before.certificate, after.certificate);
        // The authority itself may have been founded by such a clock.
        let root = authority.root();
        let (_, root) = x509_parser::parse_x509_certificate(&root).unwrap();
        let years_ago = unix(SystemTime::now()) - 5 * 365 * 86_400;
        assert!(root.validity().not_before.timestamp() < years_ago);
    }

    #[test]
    fn a_key_of_another_issue_than_the_certificate_is_no_pair_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path(), false).unwrap();
        let before = authority.issue(&server(&["localhost"]), SystemTime::now()).unwrap();
        // As after a stop between the two writes, and a start with the names of before.
        fs::write(dir.path().join("apiserver.key"), new_key("apiserver").unwrap().serialize_pem()).unwrap();
        let after = authority.issue(&server(&["localhost"]), SystemTime::now()).unwrap();
        assert_ne!(before.certificate, after.certificate);
        assert!(is_pair(&after.certificate, &after.key));
    }

    #[test]
    fn keys_that_were_replaced_meanwhile_are_given_to_nobody_and_taken_from_nobody() {
        let (dir, other, to) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let authority = Authority::open(dir.path(), false).unwrap();
        let mut keys = authority.shared().unwrap();
        Authority::open(other.path(), false).unwrap();
        fs::copy(other.path().join("ca.key"), dir.path().join("ca.key")).unwrap();
        assert!(matches!(authority.shared(), Err(Error::NoPair { key, .. }) if key == dir.path().join("ca.key")));
        keys.authority_key = fs::read_to_string(other.path().join("ca.key")).unwrap();
        assert!(matches!(Authority::adopt(to.path(), &keys), Err(Error::NoPair { .. })));
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0, "nothing is written");
    }

    #[test]
    fn a_certificate_that_cannot_be_kept_is_good_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path(), false).unwrap();
        // Where the file is written before it has its name there is something that cannot be replaced.
        fs::create_dir_all(dir.path().join("apiserver.key.part/full")).unwrap();
        let issued = authority.issue(&server(&["localhost"]), SystemTime::now()).unwrap();
        assert!(authority.still_good(&issued.certificate, &server(&["localhost"]), SystemTime::now()));
        assert!(!dir.path().join("apiserver.crt").exists());
    }

    #[test]
    fn a_server_that_joins_has_the_authority_of_its_cluster_whatever_was_left_there() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let authority = Authority::open(first.path(), false).unwrap();
        Authority::open(second.path(), false).unwrap();
        Authority::adopt(second.path(), &authority.shared().unwrap()).unwrap();
        let joined = Authority::open(second.path(), true).unwrap();
        assert_eq!(
            (joined.certificate(), joined.token_key().unwrap()),
            (authority.certificate(), authority.token_key().unwrap())
        );
    }

    #[test]
    fn a_node_gets_its_own_name_and_nothing_else_that_it_asks_for() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path(), false).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut asked =
            CertificateParams::new(vec!["kubernetes.default.svc".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        asked.distinguished_name.push(DnType::CommonName, "coracle-admin");
        asked.distinguished_name.push(DnType::OrganizationName, "system:masters");
        let request = asked.serialize_request(&key).unwrap().pem().unwrap();
        let signed = authority.sign_node("worker", &request).unwrap();
        let der = CertificateDer::from_pem_slice(signed.as_bytes()).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert_eq!(certificate.subject().to_string(), "CN=system:node:worker, O=system:nodes");
        let names = certificate.subject_alternative_name().unwrap().unwrap().value;
        assert_eq!(names.general_names.iter().map(general_name).collect::<Vec<_>>(), ["worker"]);
        assert!(!certificate.is_ca());
        assert_eq!(certificate.public_key().raw, key.subject_public_key_info());
        // Somebody else's key cannot be asked for: the request is signed with it.
        let mut forged = request.clone().into_bytes();
        let middle = forged.len() / 2;
        forged[middle] = if forged[middle] == b'x' { b'y' } else { b'x' };
        let forged = String::from_utf8(forged).unwrap();
        assert!(matches!(authority.sign_node("worker", &forged), Err(Error::Request { .. })));
        assert!(matches!(authority.sign_node("worker", "rubbish"), Err(Error::Request { .. })));
    }

    #[test]
    fn a_request_is_read_and_signed_as_it_was_approved() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path(), false).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut asked = CertificateParams::new(vec!["boat".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        asked.distinguished_name.push(DnType::CommonName, "anna");
        asked.distinguished_name.push(DnType::OrganizationName, "crew");
        asked.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let request = asked.serialize_request(&key).unwrap().der().to_vec();
        let read = authority.read(&request).unwrap();
        assert_eq!(
            (read.common_name.as_str(), read.organizations, read.dns_names),
            ("anna", vec!["crew".to_owned()], vec!["boat".to_owned()])
        );
        assert_eq!(read.addresses, ["127.0.0.1".parse::<IpAddr>().unwrap()]);
        let usages = ["digital signature", "client auth"].map(str::to_owned);
        let pem = authority.sign(&request, &usages, Duration::from_secs(600)).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(!certificate.is_ca(), "whatever it asks for");
        assert_eq!(certificate.subject().to_string(), "CN=anna, O=crew");
        assert_eq!(certificate.public_key().raw, key.subject_public_key_info());
        let uses = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(uses.client_auth && !uses.server_auth);
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.iter().map(general_name).collect::<Vec<_>>(), ["boat", "127.0.0.1"]);
        assert!(!names.critical);
        let root = authority.root();
        let (_, root) = x509_parser::parse_x509_certificate(&root).unwrap();
        certificate.verify_signature(Some(root.public_key())).unwrap();
        let ends = Signer::ends(&authority, pem.as_bytes()).unwrap();
        assert!((unix(SystemTime::now()) + 590..=unix(SystemTime::now()) + 600).contains(&ends));
        assert!(authority.sign(&request, &["cert sign".to_owned()], Duration::from_secs(600)).is_err());
        let longer = [&request[..], &[0]].concat();
        for other in [&b"rubbish"[..], &request[..request.len() - 1], &longer] {
            assert!(
                authority.read(other).is_err() && authority.sign(other, &usages, Duration::from_secs(600)).is_err()
            );
        }
    }

    /// A request (DER) of this key with this subject (DER).
    fn request_of(params: &CertificateParams, subject: &[u8], key: &KeyPair) -> Vec<u8> {
        der::request_with_subject(params.serialize_request(key).unwrap().der(), subject, key).unwrap()
    }

    #[test]
    fn a_subject_keeps_all_its_organizations() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path(), false).unwrap();
        let groups = ["crew", "cooks", "guests"].map(str::to_owned);
        let subject_of = |pem: &str| {
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            x509_parser::parse_x509_certificate(&der).unwrap().1.subject().to_string()
        };
        let expected = "CN=anna, O=crew, O=cooks, O=guests";
        let key = KeyPair::generate().unwrap();
        let request = request_of(&CertificateParams::default(), &der::name("anna", &groups), &key);
        assert_eq!(authority.read(&request).unwrap().organizations, groups);
        let usages = ["client auth".to_owned()];
        assert_eq!(subject_of(&authority.sign(&request, &usages, Duration::from_secs(600)).unwrap()), expected);
        let subject = Subject { user: "anna".into(), groups: groups.to_vec(), ..server(&["localhost"]) };
        assert_eq!(subject_of(&authority.issue(&subject, SystemTime::now()).unwrap().certificate), expected);
        // One that has none, and one that is longer than lengths of one byte say.
        for groups in [vec![], vec!["x".repeat(60); 1200]] {
            let subject = der::name("", &groups);
            let request = request_of(&CertificateParams::default(), &subject, &key);
            let pem = authority.sign(&request, &usages, Duration::from_secs(600)).unwrap();
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
            assert_eq!(certificate.subject().as_raw(), subject);
        }
    }

    #[test]
    fn what_a_request_asks_for_beside_names_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path(), false).unwrap();
        let mut asked = CertificateParams::new(vec!["boat".to_owned()]).unwrap();
        asked.subject_alt_names.push(SanType::URI("spiffe://x/y".try_into().unwrap()));
        asked.subject_alt_names.push(SanType::Rfc822Name("anna@boat".try_into().unwrap()));
        // A subject key identifier, as openssl asks for one, and a usage that nobody knows.
        asked.custom_extensions =
            vec![rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 14], [&[4, 20][..], &[7; 20]].concat())];
        asked.insert_extended_key_usage(ExtendedKeyUsagePurpose::Other(vec![1, 2, 3]));
        let request = asked.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
        let read = authority.read(&request).unwrap();
        assert_eq!((read.uris, read.emails), (vec!["spiffe://x/y".to_owned()], vec!["anna@boat".to_owned()]));
        let pem = authority.sign(&request, &["client auth".to_owned()], Duration::from_secs(600)).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
        let uses = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(uses.client_auth && uses.other.is_empty());
        let names = certificate.subject_alternative_name().unwrap().unwrap().value;
        assert_eq!(names.general_names.len(), 3);
        assert!(
            certificate
                .extensions()
                .iter()
                .all(|it| it.oid != x509_parser::oid_registry::OID_X509_EXT_SUBJECT_KEY_IDENTIFIER)
        );
    }

    #[test]
    fn a_certificate_of_another_authority_is_issued_again() {
        let dir = tempfile::tempdir().unwrap();
        let before =
            Authority::open(dir.path(), false).unwrap().issue(&server(&["localhost"]), SystemTime::now()).unwrap();
        fs::remove_file(dir.path().join("ca.crt")).unwrap();
        let after =
            Authority::open(dir.path(), false).unwrap().issue(&server(&["localhost"]), SystemTime::now()).unwrap();
        assert_ne!(before.certificate, after.certificate);
    }

    #[test]
    fn every_server_has_the_same_front_proxy_and_the_cluster_s_authority_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path(), false).unwrap();
        let joined = tempfile::tempdir().unwrap();
        Authority::adopt(&joined.path().join("pki"), &authority.shared().unwrap()).unwrap();
        let joined = Authority::open(&joined.path().join("pki"), true).unwrap();
        let (here, there) = (authority.front_proxy().unwrap(), joined.front_proxy().unwrap());
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let is_signed = |leaf: &str, by: &str| {
            let (leaf, by) = (der(leaf), der(by));
            let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
            let (_, by) = x509_parser::parse_x509_certificate(&by).unwrap();
            leaf.issuer() == by.subject() && leaf.verify_signature(Some(by.public_key())).is_ok()
        };
        assert!(
            is_signed(&here.shown.certificate, &there.authority)
                && is_signed(&there.shown.certificate, &here.authority)
        );
        assert!(!is_signed(&here.shown.certificate, authority.certificate()));
        let other = tempfile::tempdir().unwrap();
        let other = Authority::open(other.path(), false).unwrap().front_proxy().unwrap();
        assert!(!is_signed(&other.shown.certificate, &here.authority), "another cluster's is another");
        assert_ne!(here.shown.key, there.shown.key, "each server has a key of its own");
        let life = |pem: &str| {
            let der = der(pem);
            let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
            (certificate.validity().not_before, certificate.validity().not_after)
        };
        let whole = life(authority.certificate());
        assert_eq!([life(&here.authority), life(&here.shown.certificate)], [whole; 2], "whatever the clock says now");
    }

    #[test]
    fn what_is_missing_from_a_founded_cluster_is_named_and_nothing_is_made() {
        for name in ["ca.crt", "ca.key", "service-account.key"] {
            let dir = tempfile::tempdir().unwrap();
            Authority::open(dir.path(), false).unwrap();
            fs::remove_file(dir.path().join(name)).unwrap();
            let files = || {
                let mut files: Vec<_> = fs::read_dir(dir.path())
                    .unwrap()
                    .map(|entry| entry.unwrap().path())
                    .map(|path| (path.clone(), fs::read(path).unwrap()))
                    .collect();
                files.sort();
                files
            };
            let before = files();
            let error = Authority::open(dir.path(), true).err().unwrap();
            assert!(matches!(&error, Error::Missing { path } if path.ends_with(name)), "{error}");
            assert_eq!(files(), before);
        }
    }
}
