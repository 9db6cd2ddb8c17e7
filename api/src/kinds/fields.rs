//! What this version does with every field of a pod's and a Service's spec, read from `data/fields.txt`: what is accepted
//! is never ignored in silence.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

use super::Kind;
use super::value::Read;

const TEXT: &str = include_str!("../../data/fields.txt");

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::read(TEXT));

/// What is done with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Works,
    Warns(&'static str),
}

/// A field, and the fields below it.
#[derive(Debug, Default, Clone)]
struct Node {
    verdict: Option<Verdict>,
    /// Verdicts about one value.
    values: HashMap<&'static str, Verdict>,
    below: HashMap<&'static str, Node>,
}

struct Table {
    pod: Node,
    service: Node,
}

impl Table {
    fn read(text: &'static str) -> Table {
        let mut table = Table { pod: Node::default(), service: Node::default() };
        let mut root = &mut table.pod;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some(row) = line.strip_prefix(' ') else {
                root = if line == "PodSpec" { &mut table.pod } else { &mut table.service };
                continue;
            };
            let mut words = row.splitn(3, ' ');
            let (field, verdict) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let verdict = match (verdict, words.next().unwrap_or_default()) {
                ("warns", words) => Verdict::Warns(words),
                _ => Verdict::Works,
            };
            let (path, value) = match field.split_once('=') {
                Some((path, value)) => (path, Some(value)),
                None => (field, None),
            };
            let node = path.split('.').fold(&mut *root, |node, step| node.below.entry(step).or_default());
            match value {
                Some(value) => drop(node.values.insert(value, verdict)),
                None => node.verdict = Some(verdict),
            }
        }
        // These are containers that have a field more.
        let containers = table.pod.below.get("containers").map(|node| node.below.clone()).unwrap_or_default();
        let ephemeral = table.pod.below.entry("ephemeralContainers").or_default();
        ephemeral.below.extend(containers);
        table
    }
}

impl Node {
    /// The node of a field. Init containers are containers.
    fn child(&self, name: &str) -> Option<&Node> {
        self.below.get(if name == "initContainers" { "containers" } else { name })
    }
}

/// Where a pod's spec is in the objects of a kind; the Service's own for Services.
fn spec<'a>(row: &Kind, object: &'a Value) -> Option<(&'static Node, &'a Value, &'static str)> {
    let (node, path) = match (row.group, row.resource) {
        ("", "pods") => (&TABLE.pod, "spec"),
        ("", "services") => (&TABLE.service, "spec"),
        ("", "podtemplates") => (&TABLE.pod, "template.spec"),
        ("batch", "cronjobs") => (&TABLE.pod, "spec.jobTemplate.spec.template.spec"),
        ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
        | ("batch", "jobs")
        | ("", "replicationcontrollers") => (&TABLE.pod, "spec.template.spec"),
        _ => return None,
    };
    let value = path.split('.').fold(object, |value, step| &value[step]);
    value.is_object().then_some((node, value, path))
}

/// Warnings about fields that have no effect; none of a change that leaves the spec as it was.
pub(super) fn warnings(row: &Kind, object: &Value, old: Option<&Value>) -> Vec<String> {
    let Some((node, value, path)) = spec(row, object) else { return Vec::new() };
    if old.and_then(|old| spec(row, old)).is_some_and(|(_, before, _)| before == value) {
        return Vec::new();
    }
    let mut found = Found { words: HashMap::new(), told: Vec::new() };
    found.walk(node, value, &mut path.to_owned());
    let warning = |(path, verdict)| match verdict {
        Verdict::Warns(words) => Some(format!("{path}: this version of Coracle stores the field, but {words}")),
        _ => None,
    };
    found.told.into_iter().filter_map(warning).collect()
}

/// What was found: of each row the first place, however often it is there.
struct Found {
    words: HashMap<*const Node, ()>,
    told: Vec<(String, Verdict)>,
}

impl Found {
    fn walk(&mut self, node: &'static Node, value: &Value, path: &mut String) {
        let verdict = match (node.verdict, value) {
            (verdict, Value::String(text)) => node.values.get(text.as_str()).copied().or(verdict),
            (verdict, _) => verdict,
        };
        match verdict {
            Some(Verdict::Works) => return,
            Some(verdict) if is_given(value) => {
                if self.words.insert(std::ptr::from_ref(node), ()).is_none() {
                    self.told.push((path.clone(), verdict));
                }
                return;
            }
            Some(_) => return,
            None => {}
        }
        let length = path.len();
        match value {
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    path.push_str(&format!("[{index}]"));
                    self.walk(node, item, path);
                    path.truncate(length);
                }
            }
            Value::Object(fields) => {
                for (name, value) in fields {
                    if let Some(below) = node.child(name) {
                        path.push('.');
                        path.push_str(name);
                        self.walk(below, value, path);
                        path.truncate(length);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Whether a field asks for anything: false, 0 and nothing do not.
fn is_given(value: &Value) -> bool {
    match value {
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_i64() != Some(0),
        Value::Object(_) => true,
        other => !other.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::by_resource;
    use crate::schema::{self, Object, Type};

    /// Every path of a type that ends in a value, lists and maps without a mark.
    fn leaves(object: &Object, path: &str, within: &mut Vec<String>, found: &mut Vec<String>) {
        for (name, field) in &object.fields {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let mut ty = &field.ty;
            loop {
                ty = match ty {
                    Type::List(list) => &list.items,
                    Type::Map(map) => &map.values,
                    _ => break,
                };
            }
            match ty.object() {
                Some(object) if !within.contains(&object.name) => {
                    within.push(object.name.clone());
                    leaves(object, &path, within, found);
                    within.pop();
                }
                _ => found.push(path),
            }
        }
    }

    fn schema_leaves(name: &str) -> Vec<String> {
        let object = schema::named(name).expect("built in");
        let mut found = Vec::new();
        leaves(&object, "", &mut Vec::new(), &mut found);
        found.sort_unstable();
        found
    }

    fn rows(node: &Node, path: &str, found: &mut Vec<(String, Verdict)>) {
        found.extend(node.verdict.map(|verdict| (path.to_owned(), verdict)));
        for (name, below) in &node.below {
            rows(below, &if path.is_empty() { (*name).to_owned() } else { format!("{path}.{name}") }, found);
        }
    }

    #[test]
    fn every_field_of_the_schema_has_its_row_and_every_row_its_field() {
        for (root, name, least) in
            [(&TABLE.pod, "io.k8s.api.core.v1.PodSpec", 800), (&TABLE.service, "io.k8s.api.core.v1.ServiceSpec", 25)]
        {
            let leaves = schema_leaves(name);
            assert!(leaves.len() >= least, "{name}: {}", leaves.len());
            for leaf in &leaves {
                let (mut node, mut covered) = (root, false);
                for step in leaf.split('.') {
                    let Some(below) = node.child(step) else { break };
                    node = below;
                    covered |= matches!(node.verdict, Some(Verdict::Warns(_)));
                }
                let is_row = node.below.is_empty() && node.verdict == Some(Verdict::Works);
                assert!(covered || is_row, "{name}: data/fields.txt says nothing about {leaf}");
            }
            let mut found = Vec::new();
            rows(root, "", &mut found);
            for (path, verdict) in found {
                let below = format!("{path}.");
                let is_there = |leaf: &String| *leaf == path || verdict != Verdict::Works && leaf.starts_with(&below);
                assert!(leaves.iter().any(is_there), "{name}: data/fields.txt has {path}, the schema has not");
            }
        }
    }

    #[test]
    fn what_has_no_effect_is_said_once_and_where() {
        let pods = by_resource("", "pods").expect("a kind");
        let container = |more: Value| {
            let mut container = json!({"name": "c", "image": "i", "stdin": false});
            container.as_object_mut().expect("an object").append(&mut more.as_object().expect("an object").clone());
            container
        };
        let pod = json!({"spec": {
            "hostPID": false, "dnsPolicy": "ClusterFirst",
            "initContainers": [container(json!({"tty": true}))],
            "containers": [container(json!({})), container(json!({"tty": true, "securityContext": {"privileged": true}})), container(json!({"tty": true}))],
            "volumes": [{"name": "v", "hostPath": {"path": "/"}}],
        }});
        let told = warnings(pods, &pod, None);
        assert_eq!(
            told,
            [
                "spec.containers[1].securityContext.privileged: this version of Coracle stores the field, but a component has \
                 no rights on the node that could be widened",
                "spec.containers[1].tty: this version of Coracle stores the field, but a component has no terminal",
                "spec.volumes[0].hostPath: this version of Coracle stores the field, but the node does not start the pod; \
                 volumes are configMap, secret, downwardAPI, projected, emptyDir, persistentVolumeClaim and ephemeral",
            ]
        );
        assert_eq!(warnings(pods, &pod, Some(&pod)), Vec::<String>::new());
        let look = json!({"spec": {"ephemeralContainers": [{"name": "d", "stdin": true, "targetContainerName": "c"}]}});
        let told = warnings(pods, &look, Some(&json!({"spec": {}})));
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("spec.ephemeralContainers[0].targetContainerName: "), "{told:?}");
        let template = json!({"spec": {"template": {"spec": {"hostNetwork": true}}}});
        let deployments = by_resource("apps", "deployments").expect("a kind");
        assert!(warnings(deployments, &template, None)[0].starts_with("spec.template.spec.hostNetwork: this version"));
        let services = by_resource("", "services").expect("a kind");
        let sctp = json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 80, "protocol": "SCTP"}]}});
        assert!(warnings(services, &sctp, None)[0].starts_with("spec.ports[0].protocol: this version of Coracle"));
        let local = json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": ["10.0.0.0/8"], "healthCheckNodePort": 30_000}});
        assert_eq!(warnings(services, &local, None), Vec::<String>::new());
        assert!(warnings(services, &json!({"spec": {"type": "NodePort"}}), None).is_empty());
    }
}
