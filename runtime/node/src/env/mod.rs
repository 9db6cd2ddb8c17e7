//! The environment of a container, in the order and with the precedence of the kubelet: Services, then `envFrom`, then
//! `env`, where `$(NAME)` stands for what came before.

mod expand;
mod services;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, Pod};

pub use self::expand::expand;
pub use self::services::{ServiceLink, service_links};
use crate::downward::{Downward, FieldError};
use crate::objects::{Content, Kind, ObjectKey};

/// Bytes of one variable, or of one argument, as Linux has it (`MAX_ARG_STRLEN`): no container has a longer one.
pub const STRING_BYTES_MAX: usize = 128 << 10;
/// Bytes of variables and arguments together, likewise: a quarter of the usual stack.
pub const BYTES_MAX: usize = 2 << 20;
/// What a string costs beside its bytes: a pointer, and its end.
const STRING_BYTES_MORE: usize = 9;

/// Objects by name, as far as they exist.
pub type Contents = HashMap<ObjectKey, Option<Arc<Content>>>;

/// Why the environment cannot be made; a `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// A ConfigMap or Secret is not there.
    #[error("{0} not found")]
    NotFound(ObjectKey),
    /// It has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
        /// The key.
        key: String,
    },
    /// The value is not text.
    #[error("environment variable {0}: its value is not UTF-8")]
    NotText(String),
    /// A field of the pod cannot be had.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The source is of a kind that this node does not know.
    #[error("environment variable {0}: its source is not supported by this node")]
    Unsupported(String),
    /// A variable or an argument is too long.
    #[error("{0}: it has more than {STRING_BYTES_MAX} bytes when its variables are replaced")]
    TooLong(String),
    /// All of them are.
    #[error(
        "environment and arguments have more than {BYTES_MAX} bytes together: name fewer keys or values \
         (with enableServiceLinks: false there are no variables for Services)"
    )]
    TooMuch,
}

/// What environment and arguments of a container may still have.
pub struct Room {
    left: usize,
}

impl Room {
    /// For the arguments beside this environment.
    pub fn beside(env: &[(String, String)]) -> Room {
        let used = env.iter().map(|(name, value)| variable_bytes(name, value) + STRING_BYTES_MORE).sum();
        Room { left: BYTES_MAX.saturating_sub(used) }
    }

    /// Takes the room of a string, which `what` names.
    pub fn take(&mut self, bytes: usize, what: impl FnOnce() -> String) -> Result<(), EnvError> {
        if bytes > STRING_BYTES_MAX {
            return Err(EnvError::TooLong(what()));
        }
        self.left = self.left.checked_sub(bytes + STRING_BYTES_MORE).ok_or(EnvError::TooMuch)?;
        Ok(())
    }
}

/// `NAME=value`.
fn variable_bytes(name: &str, value: &str) -> usize {
    name.len() + 1 + value.len()
}

/// A variable, for messages: its name is as long as somebody liked.
fn variable_named(name: &str) -> String {
    format!("environment variable {}", &name[..name.floor_char_boundary(100)])
}

/// The objects that a container's environment refers to.
pub fn references(container: &Container, namespace: &Arc<str>) -> Vec<ObjectKey> {
    let key = |kind, name: &str| ObjectKey { kind, namespace: namespace.clone(), name: name.into() };
    let mut keys = Vec::new();
    for source in container.env_from.iter().flatten() {
        keys.extend(source.config_map_ref.as_ref().map(|reference| key(Kind::ConfigMap, &reference.name)));
        keys.extend(source.secret_ref.as_ref().map(|reference| key(Kind::Secret, &reference.name)));
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        keys.extend(source.config_map_key_ref.as_ref().map(|reference| key(Kind::ConfigMap, &reference.name)));
        keys.extend(source.secret_key_ref.as_ref().map(|reference| key(Kind::Secret, &reference.name)));
    }
    keys.sort();
    keys.dedup();
    keys
}

/// The environment; each name once, the last value wins. What is put there and replaced later counts as well: it is work.
pub fn build(
    pod: &Pod,
    container: &Container,
    contents: &Contents,
    services: BTreeMap<String, String>,
    downward: &Downward<'_>,
) -> Result<Vec<(String, String)>, EnvError> {
    let namespace: Arc<str> = pod.metadata.namespace.as_deref().unwrap_or("default").into();
    let mut room = Room { left: BYTES_MAX };
    let mut take = |name: &str, value: &str| room.take(variable_bytes(name, value), || variable_named(name));
    let mut result: indexmap::IndexMap<String, String> = indexmap::IndexMap::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or("");
        let (kind, name, optional) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(reference), _) => (Kind::ConfigMap, &reference.name, reference.optional),
            (None, Some(reference)) => (Kind::Secret, &reference.name, reference.optional),
            (None, None) => continue,
        };
        let key = ObjectKey { kind, namespace: namespace.clone(), name: name.as_str().into() };
        let Some(content) = find(contents, &key, optional)? else { continue };
        for (name, value) in &content.data {
            let value = text(name, value)?;
            let name = format!("{prefix}{name}");
            take(&name, &value)?;
            result.insert(name, value);
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value(variable, &namespace, contents, &result, &services, container, downward)? {
            take(&variable.name, &value)?;
            result.insert(variable.name.clone(), value);
        }
    }
    for (name, value) in services {
        if let indexmap::map::Entry::Vacant(entry) = result.entry(name) {
            take(entry.key(), &value)?;
            entry.insert(value);
        }
    }
    Ok(result.into_iter().collect())
}

fn value(
    variable: &EnvVar,
    namespace: &Arc<str>,
    contents: &Contents,
    before: &indexmap::IndexMap<String, String>,
    services: &BTreeMap<String, String>,
    container: &Container,
    downward: &Downward<'_>,
) -> Result<Option<String>, EnvError> {
    let lookup = |name: &str| before.get(name).or_else(|| services.get(name)).map(String::as_str);
    let Some(source) = &variable.value_from else {
        let expanded = expand(variable.value.as_deref().unwrap_or(""), lookup, STRING_BYTES_MAX);
        return expanded.map(Some).ok_or_else(|| EnvError::TooLong(variable_named(&variable.name)));
    };
    let EnvVarSource { config_map_key_ref, secret_key_ref, field_ref, resource_field_ref, .. } = source;
    if let Some(field) = field_ref {
        return Ok(Some(downward.field(&field.field_path)?));
    }
    if let Some(resource) = resource_field_ref {
        return Ok(Some(downward.resource(resource, Some(&container.name))?));
    }
    let (kind, title, name, key, optional) = match (config_map_key_ref, secret_key_ref) {
        (Some(r), _) => (Kind::ConfigMap, "ConfigMap", &r.name, &r.key, r.optional),
        (None, Some(r)) => (Kind::Secret, "Secret", &r.name, &r.key, r.optional),
        (None, None) => return Err(EnvError::Unsupported(variable.name.clone())),
    };
    let object = ObjectKey { kind, namespace: namespace.clone(), name: name.as_str().into() };
    let Some(content) = find(contents, &object, optional)? else { return Ok(None) };
    match content.data.get(key) {
        Some(value) => text(&variable.name, value).map(Some),
        None if optional == Some(true) => Ok(None),
        None => Err(EnvError::NoKey {
            kind: title,
            namespace: namespace.clone(),
            name: object.name.clone(),
            key: key.clone(),
        }),
    }
}

fn find<'a>(contents: &'a Contents, key: &ObjectKey, optional: Option<bool>) -> Result<Option<&'a Content>, EnvError> {
    match contents.get(key).and_then(Option::as_deref) {
        Some(content) => Ok(Some(content)),
        None if optional == Some(true) => Ok(None),
        None => Err(EnvError::NotFound(key.clone())),
    }
}

fn text(name: &str, value: &[u8]) -> Result<String, EnvError> {
    if value.len() > STRING_BYTES_MAX {
        return Err(EnvError::TooLong(variable_named(name)));
    }
    std::str::from_utf8(value).map(str::to_owned).map_err(|_| EnvError::NotText(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "x"}},
            "spec": {"nodeName": "node-1", "serviceAccountName": "sa", "containers": [{
                "name": "c", "image": "i",
                "resources": {"limits": {"cpu": "250m", "memory": "64Mi"}},
                "envFrom": [
                    {"configMapRef": {"name": "cm"}, "prefix": "P_"},
                    {"secretRef": {"name": "none", "optional": true}}
                ],
                "env": [
                    {"name": "A", "value": "a"},
                    {"name": "B", "value": "$(A)-$(P_K)-$$(A)-$(NOPE)-$(DB_SERVICE_HOST)"},
                    {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                    {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
                    {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory"}}},
                    {"name": "S", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "k"}}},
                    {"name": "O", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "zz", "optional": true}}}
                ]
            }]}
        }))
        .unwrap()
    }

    fn content(pairs: &[(&str, &str)]) -> Option<Arc<Content>> {
        let data = pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec().into())).collect();
        Some(Arc::new(Content { data, ..Content::default() }))
    }

    fn key(kind: Kind, name: &str) -> ObjectKey {
        ObjectKey { kind, namespace: "n".into(), name: name.into() }
    }

    #[test]
    fn sources_and_precedence() {
        let pod = pod();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let keys = references(container, &"n".into());
        assert_eq!(keys, [key(Kind::ConfigMap, "cm"), key(Kind::Secret, "none"), key(Kind::Secret, "sec")]);
        let mut contents = Contents::from([
            (key(Kind::ConfigMap, "cm"), content(&[("K", "cm-k")])),
            (key(Kind::Secret, "sec"), content(&[("k", "s3cret")])),
        ]);
        let services =
            BTreeMap::from([("DB_SERVICE_HOST".to_owned(), "10.96.0.7".to_owned()), ("A".into(), "svc".into())]);
        let downward = Downward {
            pod: &pod,
            pod_ip: "10.244.0.2".parse().unwrap(),
            host_ip: "192.168.0.1".parse().unwrap(),
            allocatable: &BTreeMap::from([("memory", 1000), ("cpu", 2000)]),
        };
        let env: BTreeMap<_, _> =
            build(&pod, container, &contents, services.clone(), &downward).unwrap().into_iter().collect();
        for (name, value) in [
            ("P_K", "cm-k"),
            ("A", "a"),
            ("B", "a-cm-k-$(A)-$(NOPE)-10.96.0.7"),
            ("POD", "p"),
            ("IP", "10.244.0.2"),
            ("LABEL", "x"),
            ("CPU", "250"),
            ("MEM", "0"),
            ("S", "s3cret"),
            ("DB_SERVICE_HOST", "10.96.0.7"),
        ] {
            assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!env.contains_key("O"));

        contents.insert(key(Kind::Secret, "sec"), content(&[]));
        let error = build(&pod, container, &contents, services.clone(), &downward).unwrap_err();
        assert_eq!(error.to_string(), "couldn't find key k in Secret n/sec");
        contents.remove(&key(Kind::ConfigMap, "cm"));
        let error = build(&pod, container, &contents, services, &downward).unwrap_err();
        assert_eq!(error.to_string(), "configmap \"cm\" not found");
    }

    /// What a few hundred bytes of a pod would become, and a ConfigMap that is named often.
    #[test]
    fn no_pod_has_more_of_an_environment_than_a_process_may_have() {
        let contents = Contents::from([(key(Kind::ConfigMap, "cm"), content(&[("K", &"x".repeat(100 << 10))]))]);
        let services: BTreeMap<String, String> =
            (0..30_000).map(|number| (format!("S{number}_SERVICE_HOST"), "x".repeat(60))).collect();
        let doubled = |count: usize| -> serde_json::Value {
            let mut all = vec![json!({"name": "A0", "value": "xxxxxxxxxxxxxxxx"})];
            all.extend((1..count).map(|n| json!({"name": format!("A{n}"), "value": format!("$(A{0})$(A{0})", n - 1)})));
            json!({"env": all})
        };
        let many = |count: usize| -> serde_json::Value {
            let source = |n| json!({"configMapRef": {"name": "cm"}, "prefix": format!("P{n}_")});
            json!({"envFrom": (0..count).map(source).collect::<Vec<_>>()})
        };
        let one = json!({"env": [{"name": "A", "value": "x".repeat(STRING_BYTES_MAX - 2)}]});
        let long = json!({"env": [{"name": "A", "value": "x".repeat(STRING_BYTES_MAX - 1)}]});
        let none = BTreeMap::new();
        let too_long = |name: &str| Some(EnvError::TooLong(variable_named(name)).to_string());
        let too_much = || Some(EnvError::TooMuch.to_string());
        for (what, spec, services, expected) in [
            ("doubled", doubled(36), &none, too_long("A13")),
            ("doubled, short enough", doubled(13), &none, None),
            ("named often", many(1_000), &none, too_much()),
            ("named 20 times", many(20), &none, None),
            ("the longest", one, &none, None),
            ("one byte more", long, &none, too_long("A")),
            ("Services", json!({}), &services, too_much()),
        ] {
            let mut spec = spec;
            spec["name"] = json!("c");
            let container: Container = serde_json::from_value(spec).unwrap();
            let pod = Pod { metadata: pod().metadata, ..Pod::default() };
            let ip = "10.0.0.1".parse().unwrap();
            let allocatable = BTreeMap::new();
            let downward = Downward { pod: &pod, pod_ip: ip, host_ip: ip, allocatable: &allocatable };
            let built = build(&pod, &container, &contents, services.clone(), &downward);
            assert_eq!(built.err().map(|error| error.to_string()), expected, "{what}");
        }
    }
}
