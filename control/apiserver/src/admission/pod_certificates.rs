//! Certificates for pods: a request is signed with the key that it names, a node asks for its own pods only (NodeRestriction), and who
//! answers may sign for that signer, with a certificate of that key for the time that was asked for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_api::kinds::{CERTIFICATE_SECONDS_MIN, FieldError};
use coracle_api::meta::{self, text, time};
use coracle_api::pem;
use coracle_api::status::Status;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{Attributes, certificates};
use crate::store::Seen;

const KIND: &str = "PodCertificateRequest";
const REQUEST: &str = "spec.stubPKCS10Request";
const CHAIN: &str = "status.certificateChain";
const REFRESH: &str = "status.beginRefreshAt";
/// A certificate begins now, however far clocks differ.
const SKEW: SignedDuration = SignedDuration::from_mins(5);
/// What lies between the beginning or the end of a certificate and the time to ask for the next, at least.
const REFRESH_MARGIN: SignedDuration = SignedDuration::from_mins(10);

/// Checks a new request.
pub(super) fn create(at: &Attributes<'_>, object: &Value) -> Result<(), Status> {
    let name = meta::name(object);
    if let Some(node) = at.caller.node() {
        for_own_pod(at, node, &object["spec"]).map_err(|why| at.resource.forbidden(name, why))?;
    }
    // What is no base64, or nothing, validation says.
    let Some(der) = der(object).filter(|der| !der.is_empty()) else { return Ok(()) };
    check_request(&der).map_err(|why| {
        let error =
            FieldError::invalid(REQUEST, object["spec"]["stubPKCS10Request"].as_str().unwrap_or_default(), &why);
        Status::invalid(certificates::GROUP, KIND, name, vec![error])
    })
}

/// Checks who answers, and what certificate it is.
pub(super) fn update(at: &Attributes<'_>, object: &Value, old: &Value) -> Result<(), Status> {
    if at.subresource != "status" || object["status"] == old["status"] {
        return Ok(());
    }
    let (name, signer) = (meta::name(old), old["spec"]["signerName"].as_str().unwrap_or_default());
    let errors = match certificates::may(at, "sign", signer) {
        false => {
            let (user, signer) = (text::quote(&at.caller.user), text::quote(signer));
            let why = format!("User {user} is not permitted to \"sign\" for signer {signer}");
            vec![FieldError::forbidden("spec.signerName", &why)]
        }
        true if is_issued(object) && !is_issued(old) => {
            check_answer(object, old, Timestamp::now()).err().into_iter().collect()
        }
        true => Vec::new(),
    };
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(certificates::GROUP, KIND, name, errors)) }
}

fn der(request: &Value) -> Option<Vec<u8>> {
    STANDARD.decode(request["spec"]["stubPKCS10Request"].as_str()?).ok()
}

fn is_issued(request: &Value) -> bool {
    let mut conditions = request["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|condition| condition["type"] == "Issued" && condition["status"] == "True")
}

/// Whether a node asks for a pod that runs there, as its account, and for a signer that the pod names.
fn for_own_pod(at: &Attributes<'_>, node: &str, asked: &Value) -> Result<(), String> {
    let asked_for = |field: &str| asked[field].as_str().unwrap_or_default();
    let (pod, account) = (asked_for("podName"), asked_for("serviceAccountName"));
    if asked_for("nodeName") != node {
        return Err(format!(
            "PodCertificateRequest.Spec.NodeName={}, which is not the requesting node {}",
            text::quote(asked_for("nodeName")),
            text::quote(node)
        ));
    }
    let namespace = at.namespace.unwrap_or_default();
    let read = |resource: &str, namespace: Option<&str>, name: &str, uid: &str| -> Result<Value, String> {
        let what = || format!("{} {}", resource.trim_end_matches('s'), text::quote(name));
        let resource_of = at.cluster.catalog.named("", resource);
        let record = resource_of.and_then(|of| Some((of, at.cluster.store.get(of, &of.record_name(namespace, name))?)));
        let object = record.and_then(|(of, record)| Seen::new(of, &record).stored().ok());
        let object = object.ok_or_else(|| format!("{} named in the PodCertificateRequest is not there", what()))?;
        match meta::uid(&object) == asked_for(uid) {
            true => Ok(object),
            false => Err(format!("{} has not the uid that the PodCertificateRequest names", what())),
        }
    };
    read("nodes", None, node, "nodeUID")?;
    let found = read("pods", Some(namespace), pod, "podUID")?;
    let spec = &found["spec"];
    if spec["nodeName"] != node {
        return Err(format!("pod {} is not running on node {}", text::quote(pod), text::quote(node)));
    }
    if spec["serviceAccountName"] != account {
        return Err(format!("pod {} does not run as service account {}", text::quote(pod), text::quote(account)));
    }
    read("serviceaccounts", Some(namespace), account, "serviceAccountUID")?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let signer = &asked["signerName"];
    let names = |volume: &Value| {
        list(&volume["projected"]["sources"]).iter().any(|source| source["podCertificate"]["signerName"] == *signer)
    };
    match list(&spec["volumes"]).iter().any(names) {
        true => Ok(()),
        false => Err(format!(
            "pod {} does not mount a podCertificate projected volume for signer {}",
            text::quote(pod),
            text::quote(signer.as_str().unwrap_or_default())
        )),
    }
}

fn check_request(der: &[u8]) -> Result<(), String> {
    let parsed = X509CertificationRequest::from_der(der).ok().filter(|(rest, _)| rest.is_empty());
    let (_, request) = parsed.ok_or("must be a valid PKCS#10 CSR")?;
    check_key(&request.certification_request_info.subject_pki)?;
    request.verify_signature().map_err(|_| "invalid signature".to_owned())
}

/// Whether a key is of a kind that may be asked for.
fn check_key(key: &SubjectPublicKeyInfo<'_>) -> Result<(), String> {
    const ED25519: &str = "1.3.101.112";
    const CURVES: [&str; 2] = ["1.2.840.10045.3.1.7", "1.3.132.0.34"];
    const P521: &str = "1.3.132.0.35";
    let unknown = "unknown public key type; supported types are Ed25519, ECDSA, and RSA";
    if key.algorithm.algorithm.to_id_string() == ED25519 {
        return Ok(());
    }
    match key.parsed() {
        Ok(PublicKey::EC(_)) => {
            let curve = key.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
            match curve.map(|curve| curve.to_id_string()) {
                Some(curve) if CURVES.contains(&curve.as_str()) => Ok(()),
                Some(curve) if curve == P521 => {
                    Err("this version of Coracle cannot check signatures on curve P521".to_owned())
                }
                _ => Err("elliptic public keys must use curve P256, P384, or P521".to_owned()),
            }
        }
        Ok(PublicKey::RSA(key)) if [3072, 4096].contains(&key.key_size()) => Ok(()),
        Ok(PublicKey::RSA(_)) => Err("RSA keys must have modulus size 3072 or 4096".to_owned()),
        _ => Err(unknown.to_owned()),
    }
}

/// Checks a certificate that was issued, against the request and against what is said of it.
fn check_answer(object: &Value, old: &Value, now: Timestamp) -> Result<(), FieldError> {
    let status = &object["status"];
    let chain = status["certificateChain"].as_str().unwrap_or_default();
    let wrong = |why: &str| FieldError::invalid(CHAIN, chain, why);
    let blocks = pem::certificates(chain.as_bytes());
    let blocks =
        blocks.ok_or_else(|| wrong("issued certificate chain must consist entirely of CERTIFICATE PEM blocks"))?;
    let parse = |der: &[u8]| X509Certificate::from_der(der).is_ok_and(|(rest, _)| rest.is_empty());
    let [leaf, others @ ..] = blocks.as_slice() else {
        return Err(wrong("issued certificate chain must contain at least one certificate"));
    };
    if others.iter().any(|der| !parse(der)) {
        return Err(wrong("intermediate certificate does not parse as valid X.509"));
    }
    let parsed = X509Certificate::from_der(leaf).ok().filter(|(rest, _)| rest.is_empty());
    let (_, leaf) = parsed.ok_or_else(|| wrong("leaf certificate does not parse as valid X.509"))?;
    check_names(&leaf).map_err(|(name, why)| FieldError::invalid(CHAIN, name.as_str(), why))?;
    let request = der(old).unwrap_or_default();
    let (_, request) = X509CertificationRequest::from_der(&request)
        .map_err(|_| FieldError::invalid(REQUEST, "", "must be a valid PKCS#10 CSR"))?;
    if leaf.public_key().raw != request.certification_request_info.subject_pki.raw {
        return Err(wrong("leaf certificate was not issued to the requested public key"));
    }
    let said = |field: &str| {
        let value = status[field].as_str().unwrap_or_default();
        let path = format!("status.{field}");
        time::parse(value)
            .ok_or_else(|| FieldError::required(&path, "must be present and consistent with the issued certificate"))
    };
    let (begin, end, refresh) = (said("notBefore")?, said("notAfter")?, said("beginRefreshAt")?);
    let differs = |field: &str, word: &str| {
        let why = format!("must be set to the {word} time encoded in the leaf certificate");
        FieldError::invalid(format_args!("status.{field}"), status[field].as_str().unwrap_or_default(), &why)
    };
    let validity = leaf.validity();
    if begin.as_second() != validity.not_before.timestamp() {
        return Err(differs("notBefore", "NotBefore"));
    }
    if begin.duration_since(now).abs() >= SKEW {
        let why = "must be set to within 5 minutes of kube-apiserver's current time";
        return Err(FieldError::invalid("status.notBefore", status["notBefore"].as_str().unwrap_or_default(), why));
    }
    if end.as_second() != validity.not_after.timestamp() {
        return Err(differs("notAfter", "NotAfter"));
    }
    let life = end.duration_since(begin);
    if life < SignedDuration::from_secs(CERTIFICATE_SECONDS_MIN) {
        return Err(wrong("leaf certificate lifetime must be >= 1 hour"));
    }
    let seconds = old["spec"]["maxExpirationSeconds"].as_i64().unwrap_or_default();
    if life > SignedDuration::from_secs(seconds) {
        return Err(wrong(&format!("leaf certificate lifetime must be <= spec.maxExpirationSeconds ({seconds})")));
    }
    let told = status["beginRefreshAt"].as_str().unwrap_or_default();
    if refresh.duration_since(begin) < REFRESH_MARGIN {
        return Err(FieldError::invalid(REFRESH, told, "must be at least 10 minutes after status.notBefore"));
    }
    if end.duration_since(refresh) < REFRESH_MARGIN {
        return Err(FieldError::invalid(REFRESH, told, "must be at least 10 minutes before status.notAfter"));
    }
    Ok(())
}

/// The first name of a certificate that is none, and what is wrong with it.
fn check_names(leaf: &X509Certificate<'_>) -> Result<(), (String, &'static str)> {
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return Ok(()) };
    for name in &names.value.general_names {
        let wrong = match name {
            GeneralName::DNSName("") => "leaf certificate should not contain empty DNSName",
            GeneralName::DNSName(name) if name.contains("..") => "leaf certificate's DNSName should not contain '..'",
            GeneralName::DNSName(name) if name.starts_with('.') || name.ends_with('.') => {
                "leaf certificate's DNSName should not start or end with '.'"
            }
            GeneralName::RFC822Name(address) if !is_address(address) => {
                "leaf certificate should not contain invalid EmailAddress"
            }
            _ => continue,
        };
        let (GeneralName::DNSName(name) | GeneralName::RFC822Name(name)) = name else { continue };
        return Err(((*name).to_owned(), wrong));
    }
    Ok(())
}

fn is_address(text: &str) -> bool {
    let parts = text.rsplit_once('@');
    parts.is_some_and(|(user, host)| !user.is_empty() && !host.is_empty())
        && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}
