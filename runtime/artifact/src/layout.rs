//! Which layer of an OCI manifest is the component.
//!
//! Layouts seen in the wild (shared/guests.md, and the tools' own sources):
//!
//! | writer | config | layer |
//! |---|---|---|
//! | CNCF Wasm, wkg, `coracle push` | `application/vnd.wasm.config.v0+json` | `application/wasm` |
//! | oras | `application/vnd.unknown.config.v1+json` (or empty) | `application/wasm` |
//! | wasm-to-oci, Spin | `application/vnd.wasm.config.v1+json`, `application/vnd.fermyon.spin.application.v1+config` | `application/vnd.wasm.content.layer.v1+wasm` |
//! | wasmCloud | `application/vnd.wasmcloud.actor.archive.config` | `application/vnd.module.wasm.content.layer.v1+wasm` |
//! | runwasi | `application/vnd.oci.image.config.v1+json` | `application/vnd.bytecodealliance.wasm.component.layer.v0+wasm` |
//! | docker build of a `FROM scratch` image | `application/vnd.oci.image.config.v1+json` | tar, the entry point is the component |

use serde::Deserialize;

/// A descriptor of a manifest, as much of it as is used.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    #[serde(default)]
    pub media_type: String,
    /// `algorithm:hex` of its bytes.
    pub digest: String,
    /// Its length in bytes. It has to be said (OCI image, "Descriptors"): the disk's room is promised by it.
    pub size: u64,
    /// Annotations, where some writers leave the file's name.
    #[serde(default)]
    pub annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    schema_version: u32,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    /// Present in an index instead of layers.
    manifests: Option<Vec<IndexEntry>>,
}

#[derive(Debug, Deserialize)]
struct IndexEntry {
    #[serde(flatten)]
    descriptor: Descriptor,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

/// What to fetch next for a manifest.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// This blob is the component (or core module).
    Layer(Descriptor),
    /// An image index: fetch this manifest instead.
    Index(Descriptor),
    /// A container image: the component is a file in its layers, named by the config's entry point.
    Archive {
        /// The image config, for its entry point.
        config: Descriptor,
        /// The layers, lowest first.
        layers: Vec<Descriptor>,
    },
}

/// Layers of a container image that are searched for its program.
const LAYERS_MAX: usize = 128;

/// Bytes of a manifest; registries, our own among them, take no larger ones.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;

/// Reads a manifest and says what to fetch; the error says what the image is instead.
pub fn plan(manifest: &[u8]) -> Result<Plan, String> {
    if manifest.len() > MANIFEST_BYTES_MAX {
        return Err(format!("its manifest has {} bytes, more than {MANIFEST_BYTES_MAX}", manifest.len()));
    }
    let manifest: Manifest =
        serde_json::from_slice(manifest).map_err(|error| format!("its manifest cannot be read: {error}"))?;
    if manifest.schema_version != 2 {
        return Err(format!("its manifest has schema version {}", manifest.schema_version));
    }
    if let Some(entries) = manifest.manifests {
        return choose_platform(entries).map(Plan::Index);
    }
    let mut wasm = manifest.layers.iter().filter(|layer| is_wasm(layer));
    match (wasm.next(), wasm.next()) {
        (Some(layer), None) => return Ok(Plan::Layer(layer.clone())),
        (Some(_), Some(_)) => {
            let count = manifest.layers.iter().filter(|layer| is_wasm(layer)).count();
            return Err(format!("it holds {count} WebAssembly layers, a container runs exactly one"));
        }
        (None, _) => {}
    }
    if manifest.layers.len() > LAYERS_MAX {
        return Err(format!("it has {} layers, more than {LAYERS_MAX}", manifest.layers.len()));
    }
    match manifest.config {
        Some(config) if !manifest.layers.is_empty() && manifest.layers.iter().all(is_tar) => {
            Ok(Plan::Archive { config, layers: manifest.layers })
        }
        _ => {
            let found: Vec<&str> = manifest.layers.iter().map(|layer| layer.media_type.as_str()).collect();
            Err(match found.is_empty() {
                true => "it has no layers".to_owned(),
                false => format!("its layers are {}", found.join(", ")),
            })
        }
    }
}

fn is_wasm(layer: &Descriptor) -> bool {
    let media_type = layer.media_type.as_str();
    media_type == "application/wasm"
        || media_type.ends_with("+wasm")
        || (media_type == "application/octet-stream"
            && layer.annotations.get("org.opencontainers.image.title").is_some_and(|title| title.ends_with(".wasm")))
}

/// Whether a layer is a tar archive of a container image.
fn is_tar(layer: &Descriptor) -> bool {
    let base = layer.media_type.strip_suffix("+gzip").or(layer.media_type.strip_suffix(".gzip"));
    matches!(
        base.unwrap_or(&layer.media_type),
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar"
    )
}

impl IndexEntry {
    fn is_index(&self) -> bool {
        matches!(
            self.descriptor.media_type.as_str(),
            "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json"
        )
    }

    /// Platform and media type, for people.
    fn describe(&self) -> String {
        let platform = match &self.platform {
            Some(platform) => format!("{}/{}", platform.os, platform.architecture),
            None => "no platform".to_owned(),
        };
        format!("{platform} ({})", self.descriptor.media_type)
    }
}

/// Entries of an index that an error names.
const ENTRIES_TOLD_MAX: usize = 8;

/// Picks the entry made for WebAssembly; an index of one entry without a platform is that entry.
fn choose_platform(entries: Vec<IndexEntry>) -> Result<Descriptor, String> {
    let is_wasm = |platform: &Platform| {
        platform.architecture.starts_with("wasm") || platform.os.starts_with("wasi") || platform.os.starts_with("wasip")
    };
    let mut others: Vec<String> = entries.iter().take(ENTRIES_TOLD_MAX).map(IndexEntry::describe).collect();
    if entries.len() > ENTRIES_TOLD_MAX {
        others.push(format!("{} more", entries.len() - ENTRIES_TOLD_MAX));
    }
    let only = entries.len() == 1;
    let is_told = |entry: &&IndexEntry| entry.platform.as_ref().is_some_and(is_wasm);
    let chosen = entries
        .iter()
        .find(is_told)
        .or_else(|| entries.first().filter(|entry| only && entry.platform.is_none()))
        // An index of indexes: nothing says which of them, the first may be the one.
        .or_else(|| entries.iter().find(|entry| entry.platform.is_none() && entry.is_index()));
    match chosen {
        Some(entry) => Ok(entry.descriptor.clone()),
        None if others.is_empty() => Err("it is an index without entries".to_owned()),
        None => Err(format!("its index has no entry for wasi/wasm, only {}", others.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn image(config: &str, layers: &[&str]) -> Vec<u8> {
        let layers: Vec<_> = layers
            .iter()
            .enumerate()
            .map(|(i, m)| json!({"mediaType": m, "digest": format!("sha256:{i}"), "size": 3}))
            .collect();
        json!({"schemaVersion": 2, "config": {"mediaType": config, "digest": "sha256:c", "size": 2}, "layers": layers})
            .to_string()
            .into_bytes()
    }

    #[test]
    fn finds_the_component_in_every_known_layout() {
        for (config, layers, index) in [
            ("application/vnd.wasm.config.v0+json", vec!["application/wasm"], 0),
            ("application/vnd.unknown.config.v1+json", vec!["application/wasm"], 0),
            ("application/vnd.wasm.config.v1+json", vec!["application/vnd.wasm.content.layer.v1+wasm"], 0),
            (
                "application/vnd.fermyon.spin.application.v1+config",
                vec!["application/vnd.fermyon.spin.asset", "application/vnd.wasm.content.layer.v1+wasm"],
                1,
            ),
            (
                "application/vnd.wasmcloud.actor.archive.config",
                vec!["application/vnd.module.wasm.content.layer.v1+wasm"],
                0,
            ),
            (
                "application/vnd.oci.image.config.v1+json",
                vec!["application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"],
                0,
            ),
        ] {
            match plan(&image(config, &layers)).unwrap() {
                Plan::Layer(layer) => assert_eq!(layer.digest, format!("sha256:{index}"), "{config}"),
                other => panic!("{config}: {other:?}"),
            }
        }
    }

    #[test]
    fn tells_what_an_image_is_instead() {
        let docker = "application/vnd.oci.image.config.v1+json";
        assert!(matches!(
            plan(&image(docker, &["application/vnd.oci.image.layer.v1.tar+gzip"])).unwrap(),
            Plan::Archive { layers, .. } if layers.len() == 1
        ));
        for (bytes, message) in [
            (image(docker, &["application/vnd.cncf.helm.chart.content.v1.tar+gzip"]), "its layers are"),
            (image(docker, &["application/wasm", "application/wasm"]), "2 WebAssembly layers"),
            (image(docker, &[]), "no layers"),
            (b"{".to_vec(), "cannot be read"),
            (br#"{"schemaVersion":1}"#.to_vec(), "schema version 1"),
            (
                br#"{"schemaVersion":2,"layers":[{"mediaType":"application/wasm","digest":"sha256:a"}]}"#.to_vec(),
                "missing field `size`",
            ),
        ] {
            let error = plan(&bytes).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }

    /// Mutations of real manifests, the same with every run: an answer or an error that says something, never a panic.
    #[test]
    fn damaged_manifests_are_errors() {
        let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": "m", "digest": "sha256:a", "size": 1,
            "platform": {"os": "wasi", "architecture": "wasm"}, "annotations": {"a": "b"}}]});
        let corpus = [
            image("application/vnd.wasm.config.v0+json", &["application/wasm"]),
            image("application/vnd.oci.image.config.v1+json", &["application/vnd.oci.image.layer.v1.tar+gzip"]),
            index.to_string().into_bytes(),
        ];
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % below as u64) as usize
        };
        let tokens: [&[u8]; 8] = [b"null", b"-1", b"1e999", b"[]", b"{}", b"\"\"", b"99999999999999999999", b"\xff"];
        let mut readable = 0;
        for round in 0..20_000 {
            let mut bytes = corpus[round % corpus.len()].clone();
            for _ in 0..=next(3) {
                let at = next(bytes.len());
                match next(4) {
                    0 => bytes[at] ^= 1 << next(8),
                    1 => bytes.truncate(at + 1),
                    2 => drop(bytes.splice(at..at, tokens[next(tokens.len())].iter().copied())),
                    _ => {
                        let end = (at + next(40)).min(bytes.len());
                        let part = bytes[at..end].to_vec();
                        drop(bytes.splice(at..at, part));
                    }
                }
            }
            match plan(&bytes) {
                Ok(_) => readable += 1,
                Err(message) => assert!(!message.is_empty()),
            }
        }
        assert!(readable > 100, "the mutations reach what is behind the reader: {readable}");
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        assert!(plan(&deep).is_err());
        assert!(plan(&vec![b' '; MANIFEST_BYTES_MAX + 1]).unwrap_err().contains("bytes"));
    }

    #[test]
    fn chooses_the_wasm_entry_of_an_index() {
        let entry = |digest: &str, os: &str, arch: &str| json!({"mediaType": "m", "digest": digest, "size": 1, "platform": {"os": os, "architecture": arch}});
        let index = |entries| json!({"schemaVersion": 2, "manifests": entries}).to_string();
        let both = index(json!([entry("a", "linux", "amd64"), entry("b", "wasi", "wasm")]));
        assert!(matches!(plan(both.as_bytes()).unwrap(), Plan::Index(d) if d.digest == "b"));
        let native = index(json!([entry("a", "linux", "amd64"), entry("b", "linux", "arm64")]));
        assert_eq!(
            plan(native.as_bytes()).unwrap_err(),
            "its index has no entry for wasi/wasm, only linux/amd64 (m), linux/arm64 (m)"
        );
        assert_eq!(plan(index(json!([])).as_bytes()).unwrap_err(), "it is an index without entries");
    }
}
