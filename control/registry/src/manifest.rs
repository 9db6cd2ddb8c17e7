//! What the registry reads in a manifest: its type, what it needs, and what it refers to. The rest is the author's.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use crate::name::Digest;

/// Of an image or artifact (image specification).
pub const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Types whose parts are known here; others are kept as they are.
const IMAGES: [&str; 2] = [IMAGE, "application/vnd.docker.distribution.manifest.v2+json"];
const INDEXES: [&str; 2] = [INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"];
/// Longest media type that is taken.
const MEDIA_TYPE_BYTES_MAX: usize = 255;

/// A manifest that is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What it is.
    pub media_type: String,
    /// Blobs that have to be there.
    pub blobs: Vec<Digest>,
    /// Manifests that have to be there.
    pub manifests: Vec<Digest>,
    /// What it refers to, there or not.
    pub subject: Option<Digest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(default, deserialize_with = "list")]
    layers: Vec<Descriptor>,
    #[serde(default, deserialize_with = "list")]
    manifests: Vec<Descriptor>,
    subject: Option<Descriptor>,
    annotations: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default, deserialize_with = "list")]
    urls: Vec<String>,
}

/// A list. Go writes one that nothing was put into as `null`.
fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// Reads and checks a manifest that was sent as `content_type`.
pub fn check(content_type: Option<&str>, bytes: &[u8]) -> Result<Checked, String> {
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| format!("not a manifest: {error}"))?;
    if manifest.schema_version != 2 {
        return Err(format!("schemaVersion {} is not supported; 2 is", manifest.schema_version));
    }
    let content_type = content_type.map(|value| value.split(';').next().unwrap_or_default().trim());
    let media_type = match (content_type, &manifest.media_type) {
        (Some(sent), Some(said)) if sent != said => {
            return Err(format!("it was sent as {sent:?} and says that it is {said:?}"));
        }
        (Some(sent), _) => sent.to_owned(),
        (None, Some(said)) => said.clone(),
        (None, None) if manifest.manifests.is_empty() => IMAGE.into(),
        (None, None) => INDEX.into(),
    };
    if media_type.is_empty()
        || media_type.len() > MEDIA_TYPE_BYTES_MAX
        || !media_type.bytes().all(|b| b.is_ascii_graphic())
    {
        return Err("its media type is none".into());
    }
    if IMAGES.contains(&&*media_type) && manifest.config.is_none() {
        return Err("an image manifest has a config".into());
    }
    let digests = |descriptors: Vec<&Descriptor>| -> Result<Vec<Digest>, String> {
        // What has URLs of its own is kept elsewhere.
        let here = descriptors.into_iter().filter(|descriptor| descriptor.urls.is_empty());
        here.map(|d| d.digest.parse().map_err(|error| format!("{:?}: {error}", d.digest))).collect()
    };
    let subject = manifest.subject.as_ref().map(|d| d.digest.parse().map_err(|error| format!("subject: {error}")));
    Ok(Checked {
        blobs: digests(manifest.config.iter().chain(&manifest.layers).collect())?,
        manifests: if INDEXES.contains(&&*media_type) {
            digests(manifest.manifests.iter().collect())?
        } else {
            Vec::new()
        },
        subject: subject.transpose()?,
        media_type,
    })
}

/// The descriptor of a stored manifest in a list of referrers (distribution specification, "Listing referrers").
pub fn describe(digest: &Digest, media_type: &str, bytes: &[u8]) -> Option<Value> {
    let manifest: Manifest = serde_json::from_slice(bytes).ok()?;
    let artifact_type = manifest.artifact_type.or_else(|| manifest.config.map(|config| config.media_type));
    let mut descriptor = json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()});
    let fields = descriptor.as_object_mut()?;
    if let Some(artifact_type) = artifact_type.filter(|artifact_type| !artifact_type.is_empty()) {
        fields.insert("artifactType".into(), artifact_type.into());
    }
    if let Some(annotations) = manifest.annotations {
        fields.insert("annotations".into(), annotations.into());
    }
    Some(descriptor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(of: u8) -> Digest {
        Digest::of(&[of; 32])
    }

    #[test]
    fn a_manifest_says_what_it_needs() {
        let image = json!({"schemaVersion": 2, "mediaType": IMAGE,
            "config": {"mediaType": "c", "digest": digest(1).to_string(), "size": 2},
            "layers": [{"digest": digest(2).to_string()}, {"digest": digest(3).to_string(), "urls": ["https://x"]}],
            "subject": {"digest": digest(4).to_string()}});
        let checked =
            check(Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"), image.to_string().as_bytes());
        let expected = Checked {
            media_type: IMAGE.into(),
            blobs: vec![digest(1), digest(2)],
            manifests: vec![],
            subject: Some(digest(4)),
        };
        assert_eq!(checked.unwrap(), expected);
        let index = json!({"schemaVersion": 2, "manifests": [{"digest": digest(5).to_string()}]});
        let checked = check(None, index.to_string().as_bytes()).unwrap();
        assert_eq!((&*checked.media_type, &checked.manifests[..]), (INDEX, &[digest(5)][..]));
        let empty = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": null, "layers": null});
        let checked = check(Some(INDEX), empty.to_string().as_bytes()).unwrap();
        assert!(checked.manifests.is_empty() && checked.blobs.is_empty());
    }

    #[test]
    fn what_is_no_manifest_is_refused_with_why() {
        for (content_type, manifest, why) in [
            (None, json!([]), "not a manifest"),
            (None, json!({"schemaVersion": 1}), "schemaVersion 1"),
            (Some(INDEX), json!({"schemaVersion": 2, "mediaType": IMAGE}), "sent as"),
            (Some(IMAGE), json!({"schemaVersion": 2}), "has a config"),
            (Some(IMAGE), json!({"schemaVersion": 2, "config": {"digest": "md5:1"}}), "digest is"),
            (Some("a b"), json!({"schemaVersion": 2}), "media type"),
        ] {
            let error = check(content_type, manifest.to_string().as_bytes()).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
