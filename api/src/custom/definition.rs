//! A CustomResourceDefinition as it is served: its names, its versions, what is said of each. Reading one is cheap; its
//! schemas, which are large, are read by [`super::Schemas`] when one of its resources is first asked for.

use serde_json::Value;

use crate::meta::{self, condition};

/// The condition that says that a definition is served.
pub const ESTABLISHED: &str = "Established";
/// The condition that says that its names are its own.
pub const NAMES_ACCEPTED: &str = "NamesAccepted";
/// The condition that says that it is on its way out.
pub const TERMINATING: &str = "Terminating";
/// The finalizer that holds a definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Names of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// As `gadgets`.
    pub plural: String,
    /// As `gadget`.
    pub singular: String,
    /// As `Gadget`.
    pub kind: String,
    /// As `GadgetList`.
    pub list_kind: String,
    /// As `gd`.
    pub short_names: Vec<String>,
    /// As `all`.
    pub categories: Vec<String>,
}

impl Names {
    /// Reads `spec.names` or `status.acceptedNames`.
    #[must_use]
    pub fn read(names: &Value) -> Names {
        let text = |field: &str| names[field].as_str().unwrap_or_default().to_owned();
        Names {
            plural: text("plural"),
            singular: text("singular"),
            kind: text("kind"),
            list_kind: text("listKind"),
            short_names: texts(&names["shortNames"]),
            categories: texts(&names["categories"]),
        }
    }

    /// The same as JSON; what is empty is left out, but for the two names that must be there.
    #[must_use]
    pub fn write(&self) -> Value {
        let mut names = serde_json::json!({ "plural": self.plural, "kind": self.kind });
        for (field, text) in [("singular", &self.singular), ("listKind", &self.list_kind)] {
            if !text.is_empty() {
                names[field] = text.as_str().into();
            }
        }
        for (field, list) in [("shortNames", &self.short_names), ("categories", &self.categories)] {
            if !list.is_empty() {
                names[field] = list.as_slice().into();
            }
        }
        names
    }
}

/// A version of a definition.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    /// As `v1`.
    pub name: String,
    /// Whether it is served.
    pub served: bool,
    /// What clients of it are told, when it is deprecated.
    pub deprecation: Option<String>,
    /// Whether there is a `status` subresource.
    pub has_status: bool,
    /// Where a `scale` subresource finds what it shows.
    pub scale: Option<Scale>,
}

/// The paths of a scale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scale {
    /// As `.spec.replicas`.
    pub spec_replicas: String,
    /// As `.status.replicas`.
    pub status_replicas: String,
    /// As `.status.selector`; empty when there is none.
    pub selector: String,
}

/// A definition.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// As `gadgets.example.com`.
    pub name: String,
    /// Which incarnation of it.
    pub uid: String,
    /// As `example.com`.
    pub group: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// The names it asks for.
    pub asked: Names,
    /// The names it has.
    pub names: Names,
    /// In the order of the definition.
    pub versions: Vec<Version>,
    /// The version in which objects are stored.
    pub storage: String,
    /// Whether its resources are served.
    pub established: bool,
    /// Whether its deletion was asked for, or its objects are being removed.
    pub terminating: bool,
    /// Whether its deletion was asked for.
    pub is_deleting: bool,
    /// Whether it has the names it asks for, and its status says all that is to be said.
    pub is_settled: bool,
}

impl Definition {
    /// Reads one.
    #[must_use]
    pub fn read(object: &Value) -> Definition {
        let spec = &object["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let written = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut definition = Definition {
            name: meta::name(object).to_owned(),
            uid: meta::uid(object).to_owned(),
            group: text(&spec["group"]),
            namespaced: spec["scope"] == "Namespaced",
            asked: Names::read(&spec["names"]),
            names: Names::read(&object["status"]["acceptedNames"]),
            versions: Vec::with_capacity(written.len()),
            storage: written
                .iter()
                .find(|version| version["storage"] == true)
                .map(|version| text(&version["name"]))
                .unwrap_or_default(),
            established: condition::is_true(object, ESTABLISHED),
            terminating: meta::is_deleting(object) || condition::is_true(object, TERMINATING),
            is_deleting: meta::is_deleting(object),
            is_settled: false,
        };
        definition.is_settled = definition.established
            && definition.asked == definition.names
            && condition::is_true(object, NAMES_ACCEPTED)
            && super::names::is_approval_told(object, &definition.group);
        definition.versions = written.iter().map(|version| definition.version(version, written)).collect();
        definition
    }

    fn version(&self, version: &Value, all: &[Value]) -> Version {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let parts = &version["subresources"];
        let scale = &parts["scale"];
        let name = text(&version["name"]);
        let deprecation = (version["deprecated"] == true).then(|| match version["deprecationWarning"].as_str() {
            Some(words) => words.to_owned(),
            None => self.deprecation(&name, all),
        });
        Version {
            served: version["served"] == true,
            deprecation,
            has_status: parts["status"].is_object(),
            scale: scale.is_object().then(|| Scale {
                spec_replicas: text(&scale["specReplicasPath"]),
                status_replicas: text(&scale["statusReplicasPath"]),
                selector: text(&scale["labelSelectorPath"]),
            }),
            name,
        }
    }

    /// What is said of a deprecated version when the definition says nothing: which newer one to use.
    fn deprecation(&self, name: &str, all: &[Value]) -> String {
        let kind = &self.asked.kind;
        let newer = all
            .iter()
            .filter(|other| other["served"] == true && other["deprecated"] != true)
            .filter_map(|other| other["name"].as_str())
            .filter(|other| order(name, other).is_lt())
            .max_by(|a, b| order(a, b));
        let words = format!("{}/{name} {kind} is deprecated", self.group);
        match newer {
            Some(newer) => format!("{words}; use {}/{newer} {kind}", self.group),
            None => words,
        }
    }

    /// Versions that are served, the preferred one first.
    #[must_use]
    pub fn served(&self) -> Vec<&Version> {
        let mut served: Vec<&Version> = self.versions.iter().filter(|version| version.served).collect();
        served.sort_by(|a, b| order(&b.name, &a.name));
        served
    }
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The order of versions, the preferred last: general availability before beta before alpha, then by number; anything else
/// before these, by name.
#[must_use]
pub fn order(a: &str, b: &str) -> std::cmp::Ordering {
    match (rank(a), rank(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(_), None) => std::cmp::Ordering::Greater,
        (None, Some(_)) => std::cmp::Ordering::Less,
        // Names sort the other way round: `a` is preferred to `b`.
        (None, None) => b.cmp(a),
    }
}

/// Stability, major and minor number of `v1`, `v2beta3`.
fn rank(version: &str) -> Option<(u8, u64, u64)> {
    let rest = version.strip_prefix('v')?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (major, rest) = rest.split_at(end);
    let number = |text: &str| text.parse::<u64>().ok().filter(|_| !text.starts_with('0'));
    let major = number(major)?;
    if rest.is_empty() {
        return Some((2, major, 0));
    }
    for (stability, word) in [(1, "beta"), (0, "alpha")] {
        if let Some(minor) = rest.strip_prefix(word) {
            return Some((stability, major, number(minor)?));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_kubernetes_prefers_them() {
        let mut versions = [
            "foo10",
            "v1alpha1",
            "v2",
            "v1",
            "v11beta2",
            "v10beta3",
            "v3beta1",
            "foo1",
            "v12alpha1",
            "v10",
            "v11alpha2",
        ];
        versions.sort_by(|a, b| order(b, a));
        let expected = [
            "v10",
            "v2",
            "v1",
            "v11beta2",
            "v10beta3",
            "v3beta1",
            "v12alpha1",
            "v11alpha2",
            "v1alpha1",
            "foo1",
            "foo10",
        ];
        assert_eq!(versions, expected);
    }
}
