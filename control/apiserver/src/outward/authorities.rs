//! The authorities of one webhook (`caBundle`), and what they prove.
//!
//! As in Go: what is no certificate in a bundle is skipped, as long as one is left; and a certificate that is in the bundle
//! itself needs nobody's signature, whether it says of itself that it is an authority or not. `openssl req -x509` makes such.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// A bundle, read.
#[derive(Debug)]
pub(super) struct Bundle {
    certificates: Vec<CertificateDer<'static>>,
    chains: Arc<WebPkiServerVerifier>,
}

impl Bundle {
    /// Of PEM.
    ///
    /// # Errors
    /// There is no certificate in it.
    pub fn read(pem: &[u8], provider: Arc<CryptoProvider>) -> Result<Bundle, String> {
        let (mut certificates, mut roots, mut skipped) = (Vec::new(), RootCertStore::empty(), None);
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let read =
                certificate.map_err(|error| error.to_string()).and_then(|certificate: CertificateDer<'static>| {
                    let added = roots.add(certificate.clone());
                    added.map(|()| certificate).map_err(|error| format!("failed to parse certificate: {error}"))
                });
            match read {
                Ok(certificate) => certificates.push(certificate),
                Err(why) => drop(skipped.get_or_insert(why)),
            }
        }
        if certificates.is_empty() {
            let why = skipped.unwrap_or_else(|| "unable to parse bytes as PEM block".to_owned());
            return Err(format!("unable to load root certificates: {why}"));
        }
        let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(Bundle { certificates, chains: chains.map_err(|error| error.to_string())? })
    }
}

impl ServerCertVerifier for Bundle {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.certificates.contains(end_entity) {
            return self.chains.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        }
        check(end_entity, now)?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Believes whatever is shown, as long as whoever shows it has the key.
#[derive(Debug)]
pub(super) struct Anybody(pub Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// That a trusted certificate is one of a server, and now.
fn check(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), CertificateError> {
    let bad = |_| CertificateError::BadEncoding;
    let (_, certificate) =
        x509_parser::parse_x509_certificate(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < certificate.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet);
    }
    if now > certificate.validity().not_after.timestamp() {
        return Err(CertificateError::Expired);
    }
    match certificate.extended_key_usage().map_err(bad)? {
        Some(uses) if !uses.value.server_auth && !uses.value.any => Err(CertificateError::InvalidPurpose),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};

    use super::*;

    const NAME: &str = "hook.default.svc";

    fn params(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
        let mut params = CertificateParams::new(vec![NAME.to_owned()]).expect("names");
        change(&mut params);
        params
    }

    /// A certificate that signs itself.
    fn signed_by_itself(change: impl FnOnce(&mut CertificateParams)) -> rcgen::Certificate {
        params(change).self_signed(&KeyPair::generate().expect("a key")).expect("a certificate")
    }

    fn authority(params: &mut CertificateParams) {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }

    fn read(pem: &str) -> Result<Bundle, String> {
        Bundle::read(pem.as_bytes(), Arc::new(rustls::crypto::ring::default_provider()))
    }

    fn verify(bundle: &Bundle, shown: &rcgen::Certificate, name: &str) -> Result<(), Error> {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        bundle.verify_server_cert(shown.der(), &[], &name, &[], UnixTime::now()).map(drop)
    }

    #[test]
    fn a_certificate_of_the_bundle_proves_itself_also_as_an_authority() {
        let (own, other) = (signed_by_itself(authority), signed_by_itself(authority));
        let bundle = read(&own.pem()).expect("a bundle");
        assert_eq!(verify(&bundle, &own, NAME), Ok(()));
        assert!(matches!(
            verify(&bundle, &own, "other"),
            Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. }))
        ));
        assert!(verify(&bundle, &other, NAME).is_err());
        // One whose authority is not there is trusted as what it is; and an authority of the bundle signs for others.
        let issuer = CertifiedIssuer::self_signed(params(authority), KeyPair::generate().unwrap()).unwrap();
        let leaf = params(|_| ()).signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        for pem in [leaf.pem(), issuer.pem()] {
            assert_eq!(verify(&read(&pem).unwrap(), &leaf, NAME), Ok(()));
        }
    }

    #[test]
    fn a_certificate_of_the_bundle_is_one_of_a_server_and_of_now() {
        let old = |params: &mut CertificateParams| {
            authority(params);
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        };
        let future = |params: &mut CertificateParams| {
            authority(params);
            params.not_before = rcgen::date_time_ymd(4000, 1, 1);
        };
        let client = |params: &mut CertificateParams| {
            authority(params);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        };
        for (shown, expected) in [
            (signed_by_itself(old), CertificateError::Expired),
            (signed_by_itself(future), CertificateError::NotValidYet),
            (signed_by_itself(client), CertificateError::InvalidPurpose),
        ] {
            let bundle = read(&shown.pem()).expect("a bundle");
            assert_eq!(verify(&bundle, &shown, NAME), Err(Error::InvalidCertificate(expected)));
        }
    }

    #[test]
    fn what_is_no_certificate_is_skipped_while_one_is_left() {
        let good = signed_by_itself(authority);
        let bad = "-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n";
        let torn = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
        for pem in
            [format!("{bad}{}", good.pem()), format!("{torn}words\n{}", good.pem()), format!("{}{bad}", good.pem())]
        {
            assert_eq!(verify(&read(&pem).expect("a bundle"), &good, NAME), Ok(()), "{pem}");
        }
        for (pem, words) in
            [(bad, "failed to parse certificate"), (torn, ""), ("words", "unable to parse bytes as PEM block")]
        {
            let why = read(pem).expect_err("no bundle");
            assert!(why.starts_with("unable to load root certificates: ") && why.contains(words), "{why}");
        }
    }
}
