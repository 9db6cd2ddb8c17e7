//! TLS of the server's listeners and clients, with certificates that are issued again while it runs.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::authority::{Authority, Pair, Subject};

/// How often it is looked whether a certificate must be issued again, by the clock that says when it ends...
const LOOK_EVERY: Duration = Duration::from_secs(12 * 3600);
/// ... and how often whether that was set: a machine whose clock does not run while it is off starts with one that is wrong by years, and
/// what was issued by it has ended, or not begun, when the time is known.
const LOOK_AT_CLOCK_EVERY: Duration = Duration::from_secs(5);

/// A certificate of this server's, for all that show it: it is replaced while they run.
pub struct Shown {
    subject: Subject,
    current: RwLock<Arc<CertifiedKey>>,
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shown").field("file", &self.subject.file).finish_non_exhaustive()
    }
}

impl Shown {
    /// One for `subject`, found or issued.
    pub fn issue(authority: &Authority, subject: Subject) -> Result<Arc<Shown>, Error> {
        let current = certified(&authority.issue(&subject, SystemTime::now())?)?;
        Ok(Arc::new(Shown { subject, current: RwLock::new(current) }))
    }

    /// Issues another where that is due at `now`.
    fn renew(&self, authority: &Authority, now: SystemTime) -> Result<(), Error> {
        let current = certified(&authority.issue(&self.subject, now)?)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        Ok(())
    }

    fn get(&self) -> Arc<CertifiedKey> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// TLS of a listener that knows its clients by certificates of the cluster's authority, if they show one.
    pub fn server(self: &Arc<Shown>, authority: &Authority) -> Result<ServerConfig, Error> {
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authority)?), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|e| Error::Tls(e.into()))?;
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|e| Error::Tls(e.into()))?.with_client_cert_verifier(clients);
        let mut tls = builder.with_cert_resolver(self.clone());
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(tls)
    }

    /// TLS of a listener for other servers: nobody is heard without a certificate.
    pub fn peers(self: &Arc<Shown>, authority: &Authority) -> Result<ServerConfig, Error> {
        let callers = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authority)?), provider())
            .build()
            .map_err(|e| Error::Tls(e.into()))?;
        let builder =
            ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13]);
        let builder = builder.map_err(|e| Error::Tls(e.into()))?.with_client_cert_verifier(callers);
        Ok(builder.with_cert_resolver(self.clone()))
    }

    /// TLS of a client that shows it and trusts the cluster's authority.
    pub fn client(self: &Arc<Shown>, authority: &Authority) -> Result<Arc<ClientConfig>, Error> {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|e| Error::Tls(e.into()))?.with_root_certificates(roots(authority)?);
        Ok(Arc::new(builder.with_client_cert_resolver(self.clone())))
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The certificates of a server that runs; they are issued again in time.
#[derive(Default)]
pub struct Certificates(RwLock<Vec<Arc<Shown>>>);

impl Certificates {
    /// One for `subject`.
    pub fn issue(&self, authority: &Authority, subject: Subject) -> Result<Arc<Shown>, Error> {
        let shown = Shown::issue(authority, subject)?;
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(shown.clone());
        Ok(shown)
    }

    /// When those that are shown end, and the administrator's and the authority's own (Unix time in seconds).
    pub fn ends(&self, authority: &Authority) -> Vec<(String, i64)> {
        let shown = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let files = shown.iter().map(|shown| shown.subject.file.as_str()).chain(["admin", "ca"]);
        files.filter_map(|file| Some((file.to_owned(), authority.end(file)?))).collect()
    }

    /// Looks now and then, until `stop`.
    pub async fn keep(self: Arc<Certificates>, authority: Arc<Authority>, stop: CancellationToken) {
        let mut looked = SystemTime::now();
        loop {
            // Waiting is all that is cut here.
            tokio::select! {
                () = due(looked) => {}
                () = stop.cancelled() => return,
            }
            looked = SystemTime::now();
            self.renew(&authority, looked);
        }
    }

    fn renew(&self, authority: &Authority, now: SystemTime) {
        for shown in self.0.read().unwrap_or_else(PoisonError::into_inner).iter() {
            if let Err(error) = shown.renew(authority, now) {
                tracing::error!(%error, certificate = shown.subject.file, "it is not issued again; it is tried again");
            }
        }
    }
}

/// Waits until certificates that were `looked` at then are to be looked at again.
pub async fn due(looked: SystemTime) {
    while !is_due(looked, SystemTime::now()) {
        tokio::time::sleep(LOOK_AT_CLOCK_EVERY).await;
    }
}

/// Whether they are `now`: also by a clock that went back.
fn is_due(looked: SystemTime, now: SystemTime) -> bool {
    now.duration_since(looked).map_or(true, |passed| passed >= LOOK_EVERY)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certified(pair: &Pair) -> Result<Arc<CertifiedKey>, Error> {
    let (chain, key): (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) = (pair.chain(), pair.private_key());
    CertifiedKey::from_der(chain, key, &provider()).map(Arc::new).map_err(|e| Error::Tls(e.into()))
}

fn roots(authority: &Authority) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.root()).map_err(|e| Error::Tls(e.into()))?;
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_issued_again_while_it_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path(), false).unwrap();
        let certificates = Certificates::default();
        let subject = Subject {
            file: "member".into(),
            user: "coracle:member:1".into(),
            groups: vec![],
            hosts: vec!["member_1.x".into()],
            addresses: vec![],
        };
        let shown = certificates.issue(&authority, subject).unwrap();
        let before = shown.get();
        let days = |days: u64| SystemTime::now() + Duration::from_secs(days * 86_400);
        certificates.renew(&authority, days(200));
        assert_eq!(before.cert, shown.get().cert);
        certificates.renew(&authority, days(300));
        assert_ne!(before.cert, shown.get().cert);
    }

    #[test]
    fn certificates_are_looked_at_as_soon_as_the_clock_is_set() {
        let looked = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
        let minute = Duration::from_secs(60);
        for (now, expected) in [
            (looked, false),
            (looked + minute, false),
            (looked + LOOK_EVERY, true),
            (looked + LOOK_EVERY * 3_650, true),
            (looked - minute, true),
        ] {
            assert_eq!(is_due(looked, now), expected, "{now:?}");
        }
    }
}
