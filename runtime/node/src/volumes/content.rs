//! Which files a volume has, from the objects it refers to. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use coracle_api::meta::selector::LabelSelector;
use coracle_api::pem;
use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, ConfigMapProjection, DownwardAPIVolumeFile, KeyToPath, Pod, PodCertificateProjection,
    SecretProjection, ServiceAccountTokenProjection, Volume,
};

use super::atomic::{File, Payload};
use crate::downward::{Downward, FieldError};
use crate::env::Contents;
use crate::objects::{Content, Kind, ObjectKey, of_signer};

const MODE_DEFAULT: i32 = 0o644;
/// What a projection may have that nobody knows yet.
const PROJECTED_UNKNOWN: &str = "projected (an unknown source)";
/// Bytes of the files of one volume, names included: 64 of the largest ConfigMaps.
const PAYLOAD_BYTES_MAX: usize = 64 << 20;
/// What a file costs beside them, with its place in a directory.
const FILE_BYTES: usize = 256;
/// Lifetime of a token that says none.
const TOKEN_SECONDS_DEFAULT: i64 = 3600;

/// Why a volume cannot be made; a `FailedMount`.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The object is not there.
    #[error("{0} not found")]
    NotFound(ObjectKey),
    /// It has no such key.
    #[error("references non-existent {kind} key: {key}")]
    NoKey {
        /// `config` or `secret`.
        kind: &'static str,
        /// The key.
        key: String,
    },
    /// A field of the pod cannot be had.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The kind of volume cannot be had here.
    #[error("volume type {0} is not supported by this node")]
    Unsupported(&'static str),
    /// The bundles that a source names cannot be selected.
    #[error("clusterTrustBundle: {0}")]
    Selector(String),
    /// A bundle is no PEM text of certificates.
    #[error("clustertrustbundle {0:?} has something else than certificates in it")]
    NoCertificates(String),
    /// No certificate was given.
    #[error("no certificate for the pod")]
    NoCertificate,
    /// No token was given.
    #[error("no token for the service account")]
    NoToken,
    /// It would have too much in it.
    #[error("its files have more than {PAYLOAD_BYTES_MAX} bytes together; use several volumes, or fewer items")]
    TooLarge,
}

/// A token that a volume wants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TokenRequest {
    /// For whom it is; empty is the API server.
    pub audience: String,
    /// How long it is wanted to live.
    pub expiration_seconds: i64,
}

/// A certificate that a volume wants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CertificateRequest {
    /// Who is to sign it.
    pub signer: String,
    /// As `ECDSAP256`.
    pub key_type: String,
    /// How long it lives at most.
    pub seconds_max: Option<i32>,
    /// What the pod's author tells the signer.
    pub annotations: BTreeMap<String, String>,
}

/// A key and its certificates, as PEM text.
#[derive(Clone)]
pub struct Credential {
    /// The private key.
    pub key: String,
    /// The certificate and those between it and what is trusted.
    pub chain: String,
}

/// What volumes are made from.
pub struct Sources<'a> {
    /// ConfigMaps and Secrets.
    pub contents: &'a Contents,
    /// The pod's fields.
    pub downward: Downward<'a>,
    /// Tokens of the pod's service account.
    pub tokens: &'a dyn Fn(&TokenRequest) -> Option<String>,
    /// Its certificates.
    pub certificates: &'a dyn Fn(&CertificateRequest) -> Option<Credential>,
}

/// The ConfigMaps and Secrets that a volume refers to, and whether it can do without.
pub fn references(volume: &Volume, namespace: &Arc<str>) -> Vec<(ObjectKey, bool)> {
    let key = |kind, name: &str, optional: Option<bool>| {
        (ObjectKey { kind, namespace: namespace.clone(), name: name.into() }, optional == Some(true))
    };
    let mut keys = Vec::new();
    if let Some(source) = &volume.config_map {
        keys.push(key(Kind::ConfigMap, &source.name, source.optional));
    }
    if let Some(source) = &volume.secret {
        keys.push(key(Kind::Secret, source.secret_name.as_deref().unwrap_or(""), source.optional));
    }
    for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
        keys.extend(source.config_map.as_ref().map(|source| key(Kind::ConfigMap, &source.name, source.optional)));
        keys.extend(source.secret.as_ref().map(|source| key(Kind::Secret, &source.name, source.optional)));
        // One that cannot be selected is told of when the files are put together.
        let bundles = source.cluster_trust_bundle.as_ref();
        let named = bundles.and_then(|source| Some((bundles_of(source).ok()??, source.optional == Some(true))));
        keys.extend(named);
    }
    keys
}

/// The bundles that a source names; none where it selects none.
fn bundles_of(source: &ClusterTrustBundleProjection) -> Result<Option<ObjectKey>, VolumeError> {
    let namespace: Arc<str> = "".into();
    if let Some(name) = &source.name {
        return Ok(Some(ObjectKey { kind: Kind::TrustBundle, namespace, name: name.as_str().into() }));
    }
    // No selector selects none, and an empty one all.
    let Some(selector) = &source.label_selector else { return Ok(None) };
    let wrong = |error: &dyn std::fmt::Display| VolumeError::Selector(error.to_string());
    let selector = serde_json::to_value(selector).map_err(|error| wrong(&error))?;
    let selector = LabelSelector::from_object(&selector).map_err(|error| wrong(&error))?;
    let name = of_signer(source.signer_name.as_deref().unwrap_or_default(), &selector.to_string());
    Ok(Some(ObjectKey { kind: Kind::TrustBundlesOf, namespace, name }))
}

/// The certificates that a volume wants.
pub fn certificates(volume: &Volume) -> Vec<CertificateRequest> {
    let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    sources.filter_map(|source| source.pod_certificate.as_ref()).map(certificate_request).collect()
}

fn certificate_request(source: &PodCertificateProjection) -> CertificateRequest {
    CertificateRequest {
        signer: source.signer_name.clone(),
        key_type: source.key_type.clone(),
        seconds_max: source.max_expiration_seconds,
        annotations: source.user_annotations.clone().unwrap_or_default(),
    }
}

/// The tokens that a volume wants.
pub fn tokens(volume: &Volume) -> Vec<TokenRequest> {
    let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    sources.filter_map(|source| source.service_account_token.as_ref()).map(token_request).collect()
}

fn token_request(source: &ServiceAccountTokenProjection) -> TokenRequest {
    TokenRequest {
        audience: source.audience.clone().unwrap_or_default(),
        expiration_seconds: source.expiration_seconds.unwrap_or(TOKEN_SECONDS_DEFAULT),
    }
}

/// Refuses a volume of a kind that this node cannot offer, before anything is made for the pod.
pub fn check(volume: &Volume) -> Result<(), VolumeError> {
    let files = volume.config_map.is_some() || volume.secret.is_some() || volume.downward_api.is_some();
    if volume.empty_dir.is_some() || files || super::kept::is_kept(volume) {
        return Ok(());
    }
    match &volume.projected {
        Some(projected) => {
            let unknown = projected.sources.iter().flatten().any(|source| {
                source.config_map.is_none()
                    && source.secret.is_none()
                    && source.downward_api.is_none()
                    && source.service_account_token.is_none()
                    && source.cluster_trust_bundle.is_none()
                    && source.pod_certificate.is_none()
            });
            if unknown { Err(VolumeError::Unsupported(PROJECTED_UNKNOWN)) } else { Ok(()) }
        }
        None => Err(VolumeError::Unsupported(kind_of(volume))),
    }
}

/// Whether the objects that a volume refers to have the keys it names.
pub fn check_keys(volume: &Volume, namespace: &Arc<str>, contents: &Contents) -> Result<(), VolumeError> {
    let check = |kind, name: &str, items: &Option<Vec<KeyToPath>>, optional: Option<bool>| {
        let key = ObjectKey { kind, namespace: namespace.clone(), name: name.into() };
        // An object that is not there is told about before its keys.
        let Some(content) = contents.get(&key).and_then(Option::as_deref) else { return Ok(()) };
        let missing =
            |item: &&KeyToPath| !content.data.contains_key(&item.key) && !content.binary.contains_key(&item.key);
        match items.iter().flatten().find(missing) {
            Some(item) if optional != Some(true) => {
                let kind = if kind == Kind::Secret { "secret" } else { "config" };
                Err(VolumeError::NoKey { kind, key: item.key.clone() })
            }
            _ => Ok(()),
        }
    };
    if let Some(source) = &volume.config_map {
        check(Kind::ConfigMap, &source.name, &source.items, source.optional)?;
    }
    if let Some(source) = &volume.secret {
        check(Kind::Secret, source.secret_name.as_deref().unwrap_or(""), &source.items, source.optional)?;
    }
    for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
        if let Some(source) = &source.config_map {
            check(Kind::ConfigMap, &source.name, &source.items, source.optional)?;
        }
        if let Some(source) = &source.secret {
            check(Kind::Secret, &source.name, &source.items, source.optional)?;
        }
    }
    Ok(())
}

/// The files of a volume; `None` for one that is an ordinary directory (`emptyDir`).
pub fn payload(pod: &Pod, volume: &Volume, sources: &Sources<'_>) -> Result<Option<Payload>, VolumeError> {
    if volume.empty_dir.is_some() {
        return Ok(None);
    }
    let namespace: Arc<str> = pod.metadata.namespace.as_deref().unwrap_or("default").into();
    let mut files = Payload::new();
    let mut into = Files { namespace: &namespace, sources, files: &mut files, left: PAYLOAD_BYTES_MAX };
    if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(MODE_DEFAULT);
        into.object(Kind::ConfigMap, &source.name, source.items.as_deref(), source.optional, mode)?;
    } else if let Some(source) = &volume.secret {
        let mode = source.default_mode.unwrap_or(MODE_DEFAULT);
        let name = source.secret_name.as_deref().unwrap_or("");
        into.object(Kind::Secret, name, source.items.as_deref(), source.optional, mode)?;
    } else if let Some(source) = &volume.downward_api {
        into.fields(source.items.as_deref(), source.default_mode.unwrap_or(MODE_DEFAULT))?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(MODE_DEFAULT);
        for source in projected.sources.iter().flatten() {
            if let Some(ConfigMapProjection { items, name, optional }) = &source.config_map {
                into.object(Kind::ConfigMap, name, items.as_deref(), *optional, mode)?;
            } else if let Some(SecretProjection { items, name, optional }) = &source.secret {
                into.object(Kind::Secret, name, items.as_deref(), *optional, mode)?;
            } else if let Some(fields) = &source.downward_api {
                into.fields(fields.items.as_deref(), mode)?;
            } else if let Some(token) = &source.service_account_token {
                let content = (sources.tokens)(&token_request(token)).ok_or(VolumeError::NoToken)?;
                // Whoever may write the mode, a token is for its owner alone (kubelet: 0600).
                into.put(&token.path, content, 0o600)?;
            } else if let Some(source) = &source.cluster_trust_bundle {
                into.bundles(source, mode)?;
            } else if let Some(source) = &source.pod_certificate {
                let request = certificate_request(source);
                let Credential { key, chain } = (sources.certificates)(&request).ok_or(VolumeError::NoCertificate)?;
                for (path, content) in [
                    (&source.credential_bundle_path, format!("{key}{chain}")),
                    (&source.key_path, key),
                    (&source.certificate_chain_path, chain),
                ] {
                    if let Some(path) = path.as_deref().filter(|path| !path.is_empty()) {
                        into.put(path, content, mode)?;
                    }
                }
            } else {
                return Err(VolumeError::Unsupported(PROJECTED_UNKNOWN));
            }
        }
    } else {
        return Err(VolumeError::Unsupported(kind_of(volume)));
    }
    Ok(Some(files))
}

struct Files<'a> {
    namespace: &'a Arc<str>,
    sources: &'a Sources<'a>,
    files: &'a mut Payload,
    /// Bytes that may still come; what is put twice counts twice.
    left: usize,
}

impl Files<'_> {
    fn put(&mut self, path: &str, content: impl Into<Bytes>, mode: i32) -> Result<(), VolumeError> {
        let (content, mode) = (content.into(), u32::try_from(mode).unwrap_or(0o644));
        let bytes = path.len() + content.len() + FILE_BYTES;
        self.left = self.left.checked_sub(bytes).ok_or(VolumeError::TooLarge)?;
        self.files.insert(path.to_owned(), File { content, mode });
        Ok(())
    }

    fn object(
        &mut self,
        kind: Kind,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
        mode: i32,
    ) -> Result<(), VolumeError> {
        let optional = optional == Some(true);
        let key = ObjectKey { kind, namespace: self.namespace.clone(), name: name.into() };
        let empty = Content::default();
        let content = match self.sources.contents.get(&key).and_then(Option::as_deref) {
            Some(content) => content,
            None if optional => &empty,
            None => return Err(VolumeError::NotFound(key)),
        };
        match items {
            None | Some([]) => {
                for (name, bytes) in content.data.iter().chain(&content.binary) {
                    self.put(name, bytes.clone(), mode)?;
                }
            }
            Some(items) => {
                for item in items {
                    match content.data.get(&item.key).or_else(|| content.binary.get(&item.key)) {
                        Some(bytes) => self.put(&item.path, bytes.clone(), item.mode.unwrap_or(mode))?,
                        None if optional => {}
                        None => {
                            let kind = if kind == Kind::Secret { "secret" } else { "config" };
                            return Err(VolumeError::NoKey { kind, key: item.key.clone() });
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The certificates of bundles, each once, in an order that says nothing.
    fn bundles(&mut self, source: &ClusterTrustBundleProjection, mode: i32) -> Result<(), VolumeError> {
        let key = bundles_of(source)?;
        let content = key.as_ref().and_then(|key| self.sources.contents.get(key)).and_then(Option::as_deref);
        let mut certificates = BTreeSet::new();
        match (content, key) {
            (Some(content), _) => {
                for (name, text) in &content.data {
                    let found = pem::certificates(text).ok_or_else(|| VolumeError::NoCertificates(name.clone()))?;
                    certificates.extend(found);
                }
            }
            (None, _) if source.optional == Some(true) => {}
            (None, Some(key)) => return Err(VolumeError::NotFound(key)),
            (None, None) => return Err(VolumeError::Selector("no label selector selects no bundle".to_owned())),
        }
        let text: String = certificates.iter().map(|der| pem::certificate(der)).collect();
        self.put(&source.path, text, mode)
    }

    fn fields(&mut self, items: Option<&[DownwardAPIVolumeFile]>, mode: i32) -> Result<(), VolumeError> {
        for item in items.unwrap_or_default() {
            let downward = &self.sources.downward;
            let value = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => downward.field(&field.field_path)?,
                (None, Some(resource)) => downward.resource(resource, None)?,
                (None, None) => continue,
            };
            self.put(&item.path, value, item.mode.unwrap_or(mode))?;
        }
        Ok(())
    }
}

fn kind_of(volume: &Volume) -> &'static str {
    let value = serde_json::to_value(volume).unwrap_or_default();
    const KINDS: &[&str] = &[
        "hostPath",
        "persistentVolumeClaim",
        "csi",
        "nfs",
        "ephemeral",
        "image",
        "iscsi",
        "glusterfs",
        "rbd",
        "cephfs",
        "fc",
        "gitRepo",
        "awsElasticBlockStore",
        "gcePersistentDisk",
        "azureDisk",
        "azureFile",
        "cinder",
        "flexVolume",
        "flocker",
        "photonPersistentDisk",
        "portworxVolume",
        "quobyte",
        "scaleIO",
        "storageos",
        "vsphereVolume",
    ];
    KINDS.iter().find(|kind| value.get(**kind).is_some()).copied().unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    fn files(volume: Value) -> Result<Vec<String>, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"b": "2", "a": "x\ny\u{1b}"}},
            "spec": {"containers": []}
        }))
        .unwrap();
        let content = |pairs: &[(&str, &str)]| {
            let data = pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec().into())).collect();
            Some(Arc::new(Content { data, ..Content::default() }))
        };
        let key = |kind, name: &str| ObjectKey { kind, namespace: "n".into(), name: name.into() };
        let bundle = |kind, name: &str| ObjectKey { kind, namespace: "".into(), name: name.into() };
        let contents = Contents::from([
            (key(Kind::ConfigMap, "cm"), content(&[("k1", "v1"), ("k2", "v2")])),
            (key(Kind::ConfigMap, "large"), content(&[("k", &"x".repeat(1 << 20))])),
            (key(Kind::Secret, "sec"), content(&[("pw", "x")])),
            (bundle(Kind::TrustBundle, "b"), content(&[("b", &pem::certificate(b"one"))])),
            (
                bundle(Kind::TrustBundlesOf, "a.b/c x=y"),
                content(&[
                    ("b", &pem::certificate(b"one")),
                    ("c", &format!("{}{}", pem::certificate(b"two"), pem::certificate(b"one"))),
                ]),
            ),
            (bundle(Kind::TrustBundle, "bad"), content(&[("bad", "-----BEGIN X-----\nAAAA\n-----END X-----\n")])),
        ]);
        let allocatable = BTreeMap::new();
        let ip = "10.0.0.1".parse().unwrap();
        let sources = Sources {
            contents: &contents,
            downward: Downward { pod: &pod, pod_ip: ip, host_ip: ip, allocatable: &allocatable },
            tokens: &|request| Some(format!("token-{}-{}", request.audience, request.expiration_seconds)),
            certificates: &|request| {
                (request.signer != "nobody").then(|| Credential { key: "K".to_owned(), chain: "C".to_owned() })
            },
        };
        let mut volume = volume;
        volume["name"] = json!("v");
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let payload = payload(&pod, &volume, &sources).map_err(|error| error.to_string())?.unwrap_or_default();
        let show =
            |(path, file): (String, File)| format!("{path} {:o} {}", file.mode, String::from_utf8_lossy(&file.content));
        Ok(payload.into_iter().map(show).collect())
    }

    #[test]
    fn volumes_as_tables() {
        let cases: [(Value, Result<&[&str], &str>); 9] = [
            (json!({"configMap": {"name": "cm", "defaultMode": 256}}), Ok(&["k1 400 v1", "k2 400 v2"])),
            (
                json!({"configMap": {"name": "cm", "items": [{"key": "k2", "path": "d/x", "mode": 384}]}}),
                Ok(&["d/x 600 v2"]),
            ),
            (
                json!({"configMap": {"name": "cm", "items": [{"key": "zz", "path": "x"}]}}),
                Err("references non-existent config key: zz"),
            ),
            (json!({"configMap": {"name": "none"}}), Err("configmap \"none\" not found")),
            (json!({"secret": {"secretName": "none", "optional": true}}), Ok(&[])),
            (json!({"secret": {"secretName": "sec"}}), Ok(&["pw 644 x"])),
            (
                json!({"downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}}),
                Ok(&["l 644 a=\"x\\ny\\x1b\"\nb=\"2\""]),
            ),
            (
                json!({"projected": {"sources": [
                    {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                    {"configMap": {"name": "cm", "items": [{"key": "k1", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}
                ]}}),
                Ok(&["ca.crt 644 v1", "namespace 644 n", "token 600 token--3607"]),
            ),
            (json!({"nfs": {"server": "s", "path": "/"}}), Err("volume type nfs is not supported by this node")),
        ];
        for (volume, expected) in cases {
            let shown = volume.to_string();
            let expected = expected.map(|lines| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>());
            assert_eq!(files(volume), expected.map_err(str::to_owned), "{shown}");
        }
    }

    #[test]
    fn certificates_and_what_trusts_them() {
        let (one, two) = (pem::certificate(b"one"), pem::certificate(b"two"));
        let bundle = |source: Value| json!({"projected": {"sources": [{"clusterTrustBundle": source}]}});
        let issued = |source: Value| json!({"projected": {"sources": [{"podCertificate": source}]}});
        let labels = json!({"matchLabels": {"x": "y"}});
        for (volume, expected) in [
            (bundle(json!({"name": "b", "path": "ca"})), Ok(vec![format!("ca 644 {one}")])),
            (
                bundle(json!({"signerName": "a.b/c", "labelSelector": labels, "path": "ca"})),
                Ok(vec![format!("ca 644 {one}{two}")]),
            ),
            (bundle(json!({"name": "none", "path": "ca"})), Err("clustertrustbundle \"none\" not found".to_owned())),
            (bundle(json!({"name": "none", "path": "ca", "optional": true})), Ok(vec!["ca 644 ".to_owned()])),
            (
                bundle(json!({"signerName": "a.b/c", "path": "ca"})),
                Err("clusterTrustBundle: no label selector selects no bundle".to_owned()),
            ),
            (
                bundle(json!({"name": "bad", "path": "ca"})),
                Err("clustertrustbundle \"bad\" has something else than certificates in it".to_owned()),
            ),
            (
                issued(
                    json!({"signerName": "a.b/c", "keyType": "ED25519", "credentialBundlePath": "all", "keyPath": "key",
                    "certificateChainPath": "chain"}),
                ),
                Ok(vec!["all 644 KC".to_owned(), "chain 644 C".to_owned(), "key 644 K".to_owned()]),
            ),
            (
                issued(json!({"signerName": "nobody", "keyType": "ED25519", "keyPath": "key"})),
                Err("no certificate for the pod".to_owned()),
            ),
        ] {
            let shown = volume.to_string();
            assert_eq!(files(volume), expected, "{shown}");
        }
    }

    /// A key that has a hundred names, and an object that is projected as often.
    #[test]
    fn a_volume_has_a_bound_of_bytes_whatever_it_repeats() {
        let items = |count: usize| (0..count).map(|n| json!({"key": "k", "path": format!("{n}")})).collect::<Vec<_>>();
        let named = |count| json!({"configMap": {"name": "large", "items": items(count)}});
        let projected = |count| json!({"projected": {"sources": vec![json!({"configMap": {"name": "large"}}); count]}});
        let too_large = || Err(VolumeError::TooLarge.to_string());
        for (volume, expected) in
            [(named(63), Ok(63)), (named(64), too_large()), (projected(63), Ok(1)), (projected(64), too_large())]
        {
            assert_eq!(files(volume).map(|lines| lines.len()), expected);
        }
    }
}
