//! Manifests: read them from files and directories, and apply them to a cluster. YAML means here what it means to the API: `0644` is
//! eight's digits, `yes` is true, `<<` merges, and a key that stands twice is refused.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::discovery::{Scope, pinned_kind};
use kube::{Api, Client};
use serde_json::Value;

use crate::AskError;

/// The field manager of what this module applies.
const FIELD_MANAGER: &str = "coracle";
/// Larger files are no manifests.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// What defines a kind.
const DEFINITION: &str = "CustomResourceDefinition";
/// For so long, and so often, a cluster is asked for a kind whose definition it has just taken: it serves it a moment later.
const SERVED_MAX: Duration = Duration::from_secs(10);
const SERVED_EVERY: Duration = Duration::from_millis(50);

/// One object of a manifest, and where it came from.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// File and document, for messages.
    pub origin: String,
    /// The object.
    pub object: Value,
}

/// Why manifests cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// A file.
    #[error("read {path}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A directory without manifests.
    #[error("no manifest (*.yaml, *.yml, *.json) in {0}")]
    Empty(PathBuf),
    /// A file that is too large.
    #[error("{path} has more than {FILE_BYTES_MAX} bytes, which a manifest has at most")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// No YAML.
    #[error("{origin} is not YAML: {why}")]
    Yaml {
        /// File and document.
        origin: String,
        /// Why.
        why: String,
    },
    /// A document that is no object.
    #[error("{origin} is no Kubernetes object: {missing} is missing")]
    NoObject {
        /// File and document.
        origin: String,
        /// What is missing.
        missing: &'static str,
    },
}

/// Why a manifest could not be applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The cluster does not know the kind.
    #[error("{origin}: the cluster does not know {kind} of {api_version}; `kubectl api-resources` lists what it knows")]
    Kind {
        /// File and document.
        origin: String,
        /// `apiVersion`.
        api_version: String,
        /// `kind`.
        kind: String,
        /// What discovery answered.
        #[source]
        source: AskError,
    },
    /// The cluster could not be asked for the kind.
    #[error("{origin}: ask for the kind {kind}")]
    Ask {
        /// File and document.
        origin: String,
        /// `kind`.
        kind: String,
        /// Why.
        #[source]
        source: AskError,
    },
    /// The object was refused, or the cluster could not be asked.
    #[error("{origin}: apply {what}")]
    Apply {
        /// File and document.
        origin: String,
        /// Kind and name.
        what: String,
        /// Why.
        #[source]
        source: AskError,
    },
}

/// Reads every object of `paths`: files, or directories whose `*.yaml`, `*.yml` and `*.json` are taken in order of
/// name. Lists are taken apart. Namespaces come first, and then the definitions of kinds, so that what is in them, or of them, can be made.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Manifest>, ReadError> {
    let mut all = Vec::new();
    for path in paths {
        for file in files(path)? {
            let io = |source| ReadError::File { path: file.clone(), source };
            let mut text = Vec::new();
            File::open(&file).map_err(io)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(io)?;
            if text.len() as u64 > FILE_BYTES_MAX {
                return Err(ReadError::TooLarge { path: file });
            }
            let text = String::from_utf8(text).map_err(|error| io(std::io::Error::other(error)))?;
            parse(&file.display().to_string(), &text, &mut all)?;
        }
    }
    all.sort_by_key(|manifest| match manifest.object["kind"].as_str() {
        Some("Namespace") => 0,
        Some(DEFINITION) => 1,
        _ => 2,
    });
    Ok(all)
}

fn files(path: &Path) -> Result<Vec<PathBuf>, ReadError> {
    let io = |source| ReadError::File { path: path.into(), source };
    if !std::fs::metadata(path).map_err(io)?.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        let is_manifest = file.extension().is_some_and(|ext| ["yaml", "yml", "json"].iter().any(|known| ext == *known));
        if is_manifest && file.is_file() {
            found.push(file);
        }
    }
    if found.is_empty() {
        return Err(ReadError::Empty(path.into()));
    }
    found.sort();
    Ok(found)
}

fn parse(file: &str, text: &str, into: &mut Vec<Manifest>) -> Result<(), ReadError> {
    for (index, document) in documents(text).into_iter().enumerate() {
        let origin = if index == 0 { file.to_owned() } else { format!("{file} (document {})", index + 1) };
        let values = values(document).map_err(|why| ReadError::Yaml { origin: origin.clone(), why })?;
        for value in values.into_iter().filter(|value| !value.is_null()) {
            flatten(origin.clone(), value, into)?;
        }
    }
    Ok(())
}

/// The documents of a file: a line that begins with `---` begins one, and what follows `...` is another.
fn documents(text: &str) -> Vec<&str> {
    let is_mark = |line: &str, mark: &str| {
        line.strip_prefix(mark).is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
    };
    let (mut found, mut begin, mut at, mut is_directives) = (Vec::new(), 0, 0, true);
    for line in text.split_inclusive('\n') {
        let end = at + line.len();
        // What stands before the first mark and says how to read is of the document behind it.
        if is_mark(line, "---") && !std::mem::replace(&mut is_directives, false) && at > begin {
            found.push(&text[begin..at]);
            begin = at;
        } else if is_mark(line, "...") {
            found.push(&text[begin..end]);
            (begin, is_directives) = (end, true);
        } else if !(line.starts_with('%') || line.starts_with('#') || line.trim().is_empty()) {
            is_directives = false;
        }
        at = end;
    }
    found.push(&text[begin..]);
    found
}

/// What a document says: one value, or, in JSON, one behind the other.
fn values(document: &str) -> Result<Vec<Value>, String> {
    // JSON may be indented with tabs, which YAML takes for an error; and of what is behind a value YAML's reader sees nothing.
    if document.trim_start().starts_with('{') {
        let mut stream = serde_json::Deserializer::from_str(document).into_iter();
        let found: Vec<Value> = stream.by_ref().map_while(Result::ok).collect();
        let rest = document[stream.byte_offset()..].trim_start();
        if !found.is_empty() && !rest.starts_with('#') {
            let behind = || format!("{:?} is behind an object", rest.chars().take(20).collect::<String>());
            return if rest.is_empty() { Ok(found) } else { Err(behind()) };
        }
    }
    let json = coracle_server::yaml::to_json(document.as_bytes()).map_err(|error| error.to_string())?;
    match json.problems.first() {
        Some(problem) => Err(problem.clone()),
        None => serde_json::from_slice(&json.bytes).map(|value| vec![value]).map_err(|error| error.to_string()),
    }
}

fn flatten(origin: String, value: Value, into: &mut Vec<Manifest>) -> Result<(), ReadError> {
    let missing = |missing| ReadError::NoObject { origin: origin.clone(), missing };
    if !value["apiVersion"].is_string() {
        return Err(missing("apiVersion"));
    }
    let Some(kind) = value["kind"].as_str() else { return Err(missing("kind")) };
    match value.get("items").and_then(Value::as_array) {
        Some(items) if kind.ends_with("List") => {
            for (index, item) in items.iter().enumerate() {
                flatten(format!("{origin} (item {})", index + 1), item.clone(), into)?;
            }
        }
        _ if !value["metadata"]["name"].is_string() => return Err(missing("metadata.name")),
        _ => into.push(Manifest { origin, object: value }),
    }
    Ok(())
}

/// Whether the cluster says that there is no such kind.
fn is_unknown(error: &kube::Error) -> bool {
    match error {
        kube::Error::Discovery(_) => true,
        kube::Error::Api(status) => status.code == 404,
        _ => false,
    }
}

/// Whether `object` defines the kind.
fn defines(object: &Value, of: &GroupVersionKind) -> bool {
    let spec = &object["spec"];
    object["kind"] == DEFINITION && spec["group"] == *of.group && spec["names"]["kind"] == *of.kind
}

/// The kind as the cluster knows it, and whether it is in namespaces. One that is `new` may not be served yet.
async fn find(client: &Client, kind: &GroupVersionKind, is_new: bool) -> Result<(ApiResource, bool), kube::Error> {
    let begun = Instant::now();
    loop {
        match pinned_kind(client, kind).await {
            Ok((resource, capabilities)) => return Ok((resource, capabilities.scope == Scope::Namespaced)),
            Err(error) if is_new && is_unknown(&error) && begun.elapsed() < SERVED_MAX => {
                tokio::time::sleep(SERVED_EVERY).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Applies `manifests` in order, server-side, and calls `applied` with kind and name after each. What a definition before it defines is
/// waited for.
///
/// Stops at the first that is refused; those before it stay applied.
pub async fn apply(client: &Client, manifests: &[Manifest], mut applied: impl FnMut(&str)) -> Result<(), ApplyError> {
    let mut kinds: HashMap<(String, String), (ApiResource, bool)> = HashMap::new();
    for (at, Manifest { origin, object }) in manifests.iter().enumerate() {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (api_version, kind, name) =
            (text(&object["apiVersion"]), text(&object["kind"]), text(&object["metadata"]["name"]));
        let (resource, namespaced) = match kinds.get(&(api_version.clone(), kind.clone())) {
            Some(known) => known.clone(),
            None => {
                let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
                let of = GroupVersionKind::gvk(group, version, &kind);
                let is_new = manifests[..at].iter().any(|before| defines(&before.object, &of));
                let found = find(client, &of, is_new).await.map_err(|error| {
                    let (origin, api_version, kind) = (origin.clone(), api_version.clone(), kind.clone());
                    let is_said = is_unknown(&error);
                    let source = AskError::from(error);
                    match is_said {
                        true => ApplyError::Kind { origin, api_version, kind, source },
                        false => ApplyError::Ask { origin, kind, source },
                    }
                })?;
                kinds.insert((api_version, kind.clone()), found.clone());
                found
            }
        };
        let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
            Some(namespace) if namespaced => Api::namespaced_with(client.clone(), namespace, &resource),
            _ if namespaced => Api::default_namespaced_with(client.clone(), &resource),
            _ => Api::all_with(client.clone(), &resource),
        };
        let what = format!("{}/{name}", kind.to_lowercase());
        api.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(object)).await.map_err(
            |source| ApplyError::Apply { origin: origin.clone(), what: what.clone(), source: source.into() },
        )?;
        applied(&what);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_read_in_order_with_namespaces_first() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("b.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n# nothing\n");
        write(
            "a.yml",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one}\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: two}}\n",
        );
        write(
            "d.yaml",
            "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: kinds}\n",
        );
        write("notes.txt", "not a manifest");
        let names: Vec<String> = read(&[dir.path().into()])
            .unwrap()
            .iter()
            .map(|m| m.object["metadata"]["name"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["shop", "kinds", "one", "two"]);
    }

    #[test]
    fn yaml_means_what_it_means_to_the_api() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: &l {app: web}}\nspec:\n  mode: 0644\n  tty: yes\n  selector:\n    \
                    <<: *l\n    tier: front\n  text: |\n    # no comment\n     ---\n";
        let mut all = Vec::new();
        parse("x.yaml", text, &mut all).unwrap();
        let expected = serde_json::json!({
            "mode": 420, "tty": true, "selector": {"app": "web", "tier": "front"}, "text": "# no comment\n ---\n",
        });
        assert_eq!((all.len(), &all[0].object["spec"]), (1, &expected));
    }

    #[test]
    fn documents_are_told_apart_as_yaml_tells_them() {
        let object = |name: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n");
        let (one, two) = (object("one"), object("two"));
        let flow = "{apiVersion: v1, kind: Pod, metadata: {name: two}}";
        for text in [
            format!("{one}---\n{two}"),
            format!("---\n{one}--- # the second\n{two}---\n"),
            format!("# a word\n\n---\r\n{one}---\n---\n# nothing\n---\t\n{two}..."),
            format!("%YAML 1.1\n# a word\n---\n{one}...\n%YAML 1.1\n---\n{two}...\n"),
            format!("{one}--- {flow}\n"),
            format!("{one}...\n{two}"),
            r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}}
               {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "two"}}"#
                .to_owned(),
            format!(
                "{{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {{\"name\": \"one\"}}}} # a word\n--- {flow}\n"
            ),
            format!(
                "{one}---\n{{\n\t\"apiVersion\": \"v1\", \"kind\": \"Pod\",\n\t\"metadata\": {{\"name\": \"two\"}}\n}}\n"
            ),
        ] {
            let mut all = Vec::new();
            parse("x.yaml", &text, &mut all).unwrap_or_else(|error| panic!("{error}: {text}"));
            let names: Vec<&str> = all.iter().filter_map(|found| found.object["metadata"]["name"].as_str()).collect();
            assert_eq!(names, ["one", "two"], "{text}");
        }
        // No two documents, and no mark.
        assert_eq!(documents("a: |\n  x\n  ---\n---x: 1\n").len(), 1);
        assert_eq!(documents("").len(), 1);
    }

    #[test]
    fn errors_name_file_and_document() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.yaml");
        for (text, expected) in [
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n---\nkind: Pod\n",
                "(document 2) is no Kubernetes object: apiVersion is missing",
            ),
            ("apiVersion: v1\nkind: Pod\n", "metadata.name is missing"),
            ("a: [", "is not YAML"),
            (
                "{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"name\": \"p\"}} and more",
                "\"and more\" is behind",
            ),
            ("a: 1\na: 2\n", "key \"a\" already set in map"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = read(std::slice::from_ref(&file)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        // It has no bytes, as it says, and no end.
        let endless = read(&["/dev/zero".into()]).unwrap_err();
        assert!(matches!(endless, ReadError::TooLarge { .. }), "{endless}");
        let missing = read(&[dir.path().join("none.yaml")]).unwrap_err().to_string();
        assert!(missing.contains("none.yaml"), "{missing}");
    }
}
