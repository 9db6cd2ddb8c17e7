//! Projected volumes: several sources in one directory.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Ratchet, metadata, security, volume};
use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors, checks, internal, pod_certificates};
use crate::meta::field::{Path, Printed};
use crate::meta::selector::validate_label_selector;
use crate::meta::{names, text, validate_annotations};

const KEY_TYPES: [&str; 6] = ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
const SOURCES: [&str; 6] =
    ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"];

pub(super) fn volume(source: &Value, path: &Path<'_>, ratchet: Ratchet, errors: &mut FieldErrors) {
    volume::mode(&source["defaultMode"], &path.child("defaultMode"), errors);
    security::id(&source["defaultUser"], &path.child("defaultUser"), errors);
    let mut files = Files { taken: BTreeSet::new(), path };
    let list = path.child("sources");
    for (index, source) in source["sources"].items().iter().enumerate() {
        let source_path = list.index(index);
        for kind in SOURCES.into_iter().filter(|kind| source[*kind].is_set()) {
            let (source, path) = (&source[kind], source_path.child(kind));
            match kind {
                "secret" | "configMap" => keyed(source, &path, &mut files, errors),
                "downwardAPI" => {
                    for file in source["items"].items() {
                        volume::downward_file(file, &path, errors);
                        files.take(file["path"].text(), file["path"].text(), errors);
                    }
                }
                "serviceAccountToken" => token(source, &path, &files, ratchet, errors),
                "clusterTrustBundle" => {
                    trust_bundle(source, &path, errors);
                    files.take_even_empty(source["path"].text(), errors);
                }
                _ => certificate(source, &path, &mut files, errors),
            }
        }
        if SOURCES.into_iter().filter(|kind| source[*kind].is_set()).count() > 1 {
            errors.push(FieldError::forbidden(source_path, "may not specify more than 1 volume type per source"));
        }
    }
}

/// The files of a volume, each once.
struct Files<'a> {
    taken: BTreeSet<String>,
    path: &'a Path<'a>,
}

impl Files<'_> {
    fn take(&mut self, file: &str, shown: &str, errors: &mut FieldErrors) {
        if !file.is_empty() && !self.taken.insert(file.to_owned()) {
            errors.push(FieldError::invalid(self.path, shown, "conflicting duplicate paths"));
        }
    }

    fn take_even_empty(&mut self, file: &str, errors: &mut FieldErrors) {
        if !self.taken.insert(file.to_owned()) {
            errors.push(FieldError::invalid(self.path, file, "conflicting duplicate paths"));
        }
    }
}

fn keyed(source: &Value, path: &Path<'_>, files: &mut Files<'_>, errors: &mut FieldErrors) {
    checks::required(&path.child("name"), &source["name"], errors);
    let items = path.child("items");
    for (index, item) in source["items"].items().iter().enumerate() {
        volume::key_to_path(item, &items.index(index), errors);
        files.take(item["path"].text(), source["name"].text(), errors);
    }
}

fn token(source: &Value, path: &Path<'_>, files: &Files<'_>, ratchet: Ratchet, errors: &mut FieldErrors) {
    let seconds_path = path.child("expirationSeconds");
    match source["expirationSeconds"].maybe_int() {
        None => errors.push(FieldError::required(seconds_path, "")),
        Some(seconds) if seconds < 600 => {
            let detail = "may not specify a duration less than 10 minutes";
            errors.push(FieldError::invalid(seconds_path, seconds, detail));
        }
        Some(seconds) if seconds > 1 << 32 => {
            let detail = "may not specify a duration larger than 2^32 seconds";
            errors.push(FieldError::invalid(seconds_path, seconds, detail));
        }
        Some(_) => {}
    }
    // The reference names the volume's path here, not the source's.
    let file_path = files.path.child("path");
    match source["path"].text() {
        "" => errors.push(FieldError::required(file_path, "")),
        file if !ratchet.token_paths => metadata::local_free_path(file, &file_path, errors),
        _ => {}
    }
    security::id(&source["user"], &path.child("user"), errors);
}

fn trust_bundle(source: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (name, signer) = (&source["name"], &source["signerName"]);
    match (name.is_set(), signer.is_set()) {
        (true, true) => {
            let shown = internal::text("ClusterTrustBundleProjection", source);
            errors.push(FieldError::invalid(path, Printed(&shown), "only one of name and signerName may be used"));
        }
        (true, false) => {
            if name.is_empty() {
                errors.push(FieldError::required(path.child("name"), "must be a valid object name"));
            }
            for words in bundle_name(name.text()) {
                let detail = format!("not a valid clustertrustbundlename: {words}");
                errors.push(FieldError::invalid(path.child("name"), name, &detail));
            }
            if source["labelSelector"].is_set() {
                let shown = checks::selector_text(&source["labelSelector"]);
                let detail = "labelSelector must be unset if name is specified";
                errors.push(FieldError::invalid(path.child("labelSelector"), Printed(&shown), detail));
            }
        }
        (false, true) => {
            if signer.is_empty() {
                errors.push(FieldError::required(path.child("signerName"), "must be a valid signer name"));
            }
            signer_name(signer.text(), &path.child("signerName"), errors);
            validate_label_selector(&source["labelSelector"], &path.child("labelSelector"), errors);
        }
        (false, false) => errors.push(FieldError::required(path, "either name or signerName must be specified")),
    }
    checks::required(&path.child("path"), &source["path"], errors);
    security::id(&source["user"], &path.child("user"), errors);
    metadata::local_free_path(source["path"].text(), &path.child("path"), errors);
}

/// The name of a bundle: its signer's with colons for slashes comes before the last colon.
fn bundle_name(name: &str) -> Vec<String> {
    match name.rsplit_once(':') {
        None => names::dns_subdomain(name),
        Some(("", _)) => vec!["ClusterTrustBundle without signer name must not have \":\" in its name".to_owned()],
        Some((_, rest)) => names::dns_subdomain(rest),
    }
}

/// `domain/path` of a signer.
pub(in crate::kinds) fn signer_name(name: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let segments: Vec<&str> = name.split('/').collect();
    let [domain, rest] = segments.as_slice() else {
        let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.push(FieldError::invalid(path, name, detail));
        return;
    };
    if domain.len() > 253 {
        errors.push(FieldError::too_long(path, 253));
    }
    labels(domain, names::dns_label, path, errors);
    if !domain.contains('.') {
        let detail = "should be a domain with at least two segments separated by dots";
        errors.push(FieldError::invalid(path, *domain, detail));
    }
    labels(rest, names::dns_subdomain, path, errors);
    let most = 253 + (253 + 63 + 1) + 1;
    if name.len() > most {
        errors.push(FieldError::too_long(path, most));
    }
}

/// Checks each label of a segment, up to the first that is wrong.
fn labels(segment: &str, check: fn(&str) -> Vec<String>, path: &Path<'_>, errors: &mut FieldErrors) {
    let wrong = segment.split('.').map(|label| (label, check(label))).find(|(_, wrong)| !wrong.is_empty());
    if let Some((label, wrong)) = wrong {
        for words in wrong {
            let detail = format!("validating label {}: {words}", text::quote(label));
            errors.push(FieldError::invalid(path, segment, &detail));
        }
    }
}

/// What a pod's author tells a signer: each key begins with a domain.
pub(in crate::kinds) fn user_annotations(annotations: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let annotations = annotations.as_object();
    validate_annotations(annotations, path, errors);
    for key in annotations.into_iter().flatten().map(|(key, _)| key) {
        if key.split_once('/').is_none_or(|(domain, _)| domain.is_empty()) {
            let detail = "must be a domain-prefixed key (such as \"acme.io/foo\")";
            errors.push(FieldError::invalid(path, key, detail));
        }
    }
}

fn certificate(source: &Value, path: &Path<'_>, files: &mut Files<'_>, errors: &mut FieldErrors) {
    let signer = source["signerName"].text();
    signer_name(signer, &path.child("signerName"), errors);
    security::id(&source["user"], &path.child("user"), errors);
    user_annotations(&source["userAnnotations"], &path.child("userAnnotations"), errors);
    checks::supported(&path.child("keyType"), &source["keyType"], &KEY_TYPES, errors);
    if let Some(seconds) = source["maxExpirationSeconds"].maybe_int() {
        let path = path.child("maxExpirationSeconds");
        let life = pod_certificates::life(signer);
        let wrong = match seconds {
            seconds if seconds < *life.start() => Some(format!(">= {}", life.start())),
            seconds if seconds > *life.end() => Some(format!("<= {}", life.end())),
            _ => None,
        };
        if let Some(wrong) = wrong {
            let detail = format!("if provided, maxExpirationSeconds must be {wrong}");
            errors.push(FieldError::invalid(path, seconds, &detail));
        }
    }
    let mut has_file = false;
    for field in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
        let file = source[field].text();
        if !file.is_empty() {
            has_file = true;
            metadata::local_free_path(file, &path.child(field), errors);
            files.take(file, file, errors);
        }
    }
    if !has_file {
        let detail = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        errors.push(FieldError::required(path, detail));
    }
}
