//! What pods are to trust: whoever writes a signer's bundle may attest for it (ClusterTrustBundleAttest), and all in a bundle are
//! certificates of authorities.

use std::collections::HashMap;

use coracle_api::kinds::FieldError;
use coracle_api::meta::{self, text};
use coracle_api::pem;
use coracle_api::status::Status;
use serde_json::Value;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use super::{Attributes, certificates};

const PATH: &str = "spec.trustBundle";

/// Checks a new or changed bundle.
pub(super) fn write(at: &Attributes<'_>, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    if old.is_some_and(|old| old["spec"] == object["spec"]) {
        return Ok(());
    }
    let (name, signer) = (meta::name(object), object["spec"]["signerName"].as_str().unwrap_or_default());
    if !signer.is_empty() && !certificates::may(at, "attest", signer) {
        let why = format!("user not permitted to attest for signerName {}", text::quote(signer));
        return Err(at.resource.forbidden(name, why));
    }
    let errors = wrong(object["spec"]["trustBundle"].as_str().unwrap_or_default());
    let errors: Vec<_> = errors.iter().map(|why| FieldError::invalid(PATH, "<value omitted>", why)).collect();
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(certificates::GROUP, "ClusterTrustBundle", name, errors))
}

/// What is wrong with the text of a bundle; that there is nothing in it, validation says.
fn wrong(bundle: &str) -> Vec<String> {
    let Some(certificates) = pem::certificates(bundle.as_bytes()) else {
        return vec!["must consist of CERTIFICATE PEM blocks without headers".to_owned()];
    };
    let mut wrong = Vec::new();
    let mut seen: HashMap<&[u8], usize> = HashMap::new();
    for (index, der) in certificates.iter().enumerate() {
        match X509Certificate::from_der(der) {
            Ok(([], certificate)) => {
                if !certificate.is_ca() {
                    wrong.push(format!("entry {index} does not have the CA bit set"));
                } else if let Some(first) = seen.insert(der, index) {
                    wrong.push(format!("duplicate trust anchor (indices [{first} {index}])"));
                }
            }
            _ => wrong.push(format!("entry {index} does not parse as X.509")),
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;

    #[test]
    fn a_bundle_is_of_authorities_each_once() {
        let made = |is_ca| {
            let mut parameters = CertificateParams::default();
            parameters.is_ca = is_ca;
            parameters.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
        };
        let authority = || made(IsCa::Ca(BasicConstraints::Unconstrained));
        let (one, two, leaf) = (authority(), authority(), made(IsCa::NoCa));
        let block = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
        for (bundle, expected) in [
            (format!("words\n{one}{two}"), vec![]),
            (format!("{one}{leaf}"), vec!["entry 1 does not have the CA bit set"]),
            (block("CERTIFICATE"), vec!["entry 0 does not parse as X.509"]),
            (format!("{one}{two}{one}"), vec!["duplicate trust anchor (indices [0 2])"]),
            (format!("{one}{}", block("PRIVATE KEY")), vec!["must consist of CERTIFICATE PEM blocks without headers"]),
        ] {
            assert_eq!(wrong(&bundle), expected, "{bundle}");
        }
    }
}
