//! The roles and bindings that are stored (RBAC, kubernetes-api §19), in the shape in which they are asked: decoded
//! again only when one of them has changed, and then only that one.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use coracle_api::meta::selector::LabelSelector;
use coracle_api::meta::text::quote;
use coracle_keyspace::{Record, Records};
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use crate::catalog::Catalog;
use crate::identity::Identity;
use crate::request::call::Call;
use crate::store::Store;

/// Where rules and bindings are.
pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";
/// The kinds that say who may do what.
pub(crate) const KINDS: [&str; 4] = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"];

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attributes<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// Of what is no resource.
    pub path: Option<&'a str>,
}

impl<'a> Attributes<'a> {
    /// What a request for a resource asks for.
    pub fn of(call: &'a Call, verb: &'a str) -> Attributes<'a> {
        Attributes {
            verb,
            group: &call.target.group,
            resource: &call.target.resource,
            subresource: call.subresource(),
            // A namespace is in itself.
            namespace: match call.namespace() {
                None if (call.target.group.as_str(), call.target.resource.as_str()) == ("", "namespaces") => {
                    call.name()
                }
                namespace => namespace.unwrap_or_default(),
            },
            name: call.name(),
            path: None,
        }
    }
}

/// What a role allows. `*` in a list is everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Rule {
    #[serde(deserialize_with = "distinct")]
    verbs: Vec<String>,
    #[serde(deserialize_with = "distinct")]
    api_groups: Vec<String>,
    #[serde(deserialize_with = "distinct")]
    resources: Vec<String>,
    #[serde(deserialize_with = "distinct")]
    resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", deserialize_with = "distinct")]
    pub non_resource_urls: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Metadata {
    namespace: String,
    #[serde(deserialize_with = "nullable")]
    labels: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Role {
    metadata: Metadata,
    #[serde(deserialize_with = "distinct")]
    pub rules: Vec<Rule>,
    #[serde(deserialize_with = "nullable")]
    aggregation_rule: Aggregation,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Aggregation {
    #[serde(deserialize_with = "nullable")]
    cluster_role_selectors: Vec<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Binding {
    metadata: Metadata,
    role_ref: RoleRef,
    #[serde(deserialize_with = "nullable")]
    subjects: Vec<Subject>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RoleRef {
    kind: String,
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(reader: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(reader).map(Option::unwrap_or_default)
}

/// A list without what it says again: whoever goes through it pays for what it means, and not for how often it is said.
fn distinct<'de, D: Deserializer<'de>, T: Clone + Eq + Hash + Deserialize<'de>>(reader: D) -> Result<Vec<T>, D::Error> {
    let mut list: Vec<T> = nullable(reader)?;
    let mut said = HashSet::new();
    list.retain(|item| said.insert(item.clone()));
    Ok(list)
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    /// Everything: of resources, and of paths.
    pub fn all() -> [Rule; 2] {
        let all = || vec!["*".to_owned()];
        [
            Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() },
            Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() },
        ]
    }

    /// Whether it names what is asked for.
    pub fn allows(&self, asked: &Attributes<'_>) -> bool {
        if !has(&self.verbs, asked.verb) {
            return false;
        }
        if let Some(path) = asked.path {
            let covers =
                |url: &String| url == path || url.strip_suffix('*').is_some_and(|start| path.starts_with(start));
            return self.non_resource_urls.iter().any(covers);
        }
        let is_named = |resource: &String| match asked.subresource {
            _ if resource == "*" => true,
            "" => resource == asked.resource,
            subresource => resource
                .split_once('/')
                .is_some_and(|(of, part)| part == subresource && (of == "*" || of == asked.resource)),
        };
        has(&self.api_groups, asked.group)
            && self.resources.iter().any(is_named)
            && (self.resource_names.is_empty()
                || !asked.name.is_empty() && self.resource_names.iter().any(|name| name == asked.name))
    }

    fn lists(&self) -> [&[String]; 5] {
        [&self.api_groups, &self.resources, &self.resource_names, &self.non_resource_urls, &self.verbs]
    }

    /// How many texts it is made of: what looking at it costs at most. Never zero.
    pub fn texts(&self) -> usize {
        1 + self.lists().iter().map(|list| list.len()).sum::<usize>()
    }

    /// How long it is, about.
    pub fn bytes(&self) -> usize {
        let texts = self.lists().into_iter().flatten();
        size_of::<Rule>() + texts.map(|text| size_of::<String>() + text.len()).sum::<usize>()
    }

    /// Each single thing that it allows, asked for in `namespace`. They may be very many.
    pub fn permissions<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = Attributes<'a>> {
        let any_name = self.resource_names.is_empty().then_some("");
        let names = move || self.resource_names.iter().map(String::as_str).chain(any_name);
        self.verbs.iter().flat_map(move |verb| {
            let path = move |url| Attributes { verb, path: Some(url), ..Attributes::default() };
            let of_group = move |group| {
                self.resources.iter().flat_map(move |resource| {
                    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
                    names().map(move |name| Attributes {
                        verb,
                        group,
                        resource,
                        subresource,
                        namespace,
                        name,
                        path: None,
                    })
                })
            };
            let paths = self.non_resource_urls.iter().map(move |url| path(url));
            paths.chain(self.api_groups.iter().flat_map(move |group| of_group(group)))
        })
    }

    /// As reviews say it.
    pub fn json(&self) -> Value {
        let mut rule = json!({"verbs": self.verbs});
        if !self.non_resource_urls.is_empty() {
            rule["nonResourceURLs"] = json!(self.non_resource_urls);
            return rule;
        }
        rule["apiGroups"] = json!(self.api_groups);
        rule["resources"] = json!(self.resources);
        if !self.resource_names.is_empty() {
            rule["resourceNames"] = json!(self.resource_names);
        }
        rule
    }
}

/// A role that is bound: by its record's name, everywhere or in one namespace.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Grant {
    role: String,
    namespace: Option<String>,
}

impl Grant {
    fn of(binding: &Binding) -> Grant {
        let namespace = &binding.metadata.namespace;
        let name = &binding.role_ref.name;
        let role = match binding.role_ref.kind.as_str() {
            "Role" => format!("{namespace}/{name}"),
            // With a slash it would be the name of a role in a namespace.
            "ClusterRole" if !name.contains('/') => name.clone(),
            // Validation refuses it; one that was stored before there was any is of no role.
            _ => String::new(),
        };
        Grant { role, namespace: (!namespace.is_empty()).then(|| namespace.clone()) }
    }
}

/// Who is bound to which roles, and what these say. Roles go by their record's name, which has a namespace or none.
#[derive(Debug, Default)]
pub(crate) struct Index {
    roles: HashMap<Arc<str>, Vec<Arc<Role>>>,
    /// However often it is said that somebody has a role: it is gone through with each request.
    users: HashMap<String, BTreeSet<Grant>>,
    groups: HashMap<String, BTreeSet<Grant>>,
    /// All bindings by the names of their records: for reviews, which tell by what somebody may.
    bindings: BTreeMap<Arc<str>, Arc<Binding>>,
}

impl Binding {
    /// A binding that is about to be stored in `namespace`.
    pub fn read(object: &Value, namespace: &str) -> Result<Binding, serde_json::Error> {
        let binding = Binding::deserialize(object)?;
        Ok(Binding { metadata: Metadata { namespace: namespace.to_owned(), ..Metadata::default() }, ..binding })
    }

    /// The resource and the name of its role, and the name of that one's record.
    pub fn role(&self) -> (&'static str, &str, String) {
        let of = if self.role_ref.kind == "Role" { "roles" } else { "clusterroles" };
        (of, &self.role_ref.name, Grant::of(self).role)
    }
}

impl Subject {
    /// Whether it is `identity`, in a binding of `namespace`.
    fn is(&self, identity: &Identity, namespace: &str) -> bool {
        match self.kind.as_str() {
            "User" => self.name == identity.user,
            "Group" => identity.is_in(&self.name),
            "ServiceAccount" => {
                let parts = identity.user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
                parts == Some((self.place(namespace), &self.name))
            }
            _ => false,
        }
    }

    /// The namespace of an account, which is that of its binding when it is not said.
    fn place<'a>(&'a self, namespace: &'a str) -> &'a str {
        if self.namespace.is_empty() { namespace } else { &self.namespace }
    }

    /// In the reference's words.
    fn show(&self, namespace: &str) -> String {
        match self.kind.as_str() {
            "ServiceAccount" => format!("{} {}", self.kind, quote(&format!("{}/{}", self.name, self.place(namespace)))),
            kind => format!("{kind} {}", quote(&self.name)),
        }
    }
}

impl Role {
    /// A role that is about to be stored.
    pub fn read(object: &Value) -> Result<Role, serde_json::Error> {
        Role::deserialize(object)
    }
}

impl Index {
    /// Whether there is such a role.
    pub fn knows(&self, role: &str) -> bool {
        self.roles.contains_key(role)
    }

    fn grants(&self, identity: &Identity) -> impl Iterator<Item = &Grant> {
        let groups = identity.groups.iter().filter_map(|group| self.groups.get(group));
        self.users.get(&identity.user).into_iter().chain(groups).flatten()
    }

    /// What holds for `identity` in `namespace`, which is empty for the cluster.
    pub fn rules(&self, identity: &Identity, namespace: &str) -> impl Iterator<Item = &Rule> {
        let here = move |grant: &&Grant| grant.namespace.as_deref().is_none_or(|place| place == namespace);
        self.grants(identity).filter(here).flat_map(|grant| self.of_role(&grant.role))
    }

    /// What a role says, by its record's name.
    pub fn of_role(&self, role: &str) -> impl Iterator<Item = &Rule> {
        self.roles.get(role).into_iter().flatten().flat_map(|role| &role.rules)
    }

    /// The first binding by which `identity` may, those of the cluster before those of a namespace.
    pub fn reason(&self, identity: &Identity, asked: &Attributes<'_>) -> Option<String> {
        let (cluster, here): (Vec<_>, Vec<_>) =
            self.bindings.iter().partition(|(_, binding)| binding.metadata.namespace.is_empty());
        let here = here.into_iter().filter(|(_, binding)| binding.metadata.namespace == asked.namespace);
        cluster.into_iter().chain(here).find_map(|(record, binding)| {
            let namespace = binding.metadata.namespace.as_str();
            let subject = binding.subjects.iter().find(|subject| subject.is(identity, namespace))?;
            let role = Grant::of(binding).role;
            self.of_role(&role).any(|rule| rule.allows(asked)).then(|| {
                let (kind, name) = match record.split_once('/') {
                    // The reference has it this way round.
                    Some((namespace, name)) if !binding.metadata.namespace.is_empty() => {
                        ("RoleBinding", format!("{name}/{namespace}"))
                    }
                    _ => ("ClusterRoleBinding", record.to_string()),
                };
                let RoleRef { kind: of, name: role } = &binding.role_ref;
                format!("{kind} {} of {of} {} to {}", quote(&name), quote(role), subject.show(namespace))
            })
        })
    }

    /// Whether a role that is bound to `identity` says that it may.
    pub fn allows(&self, identity: &Identity, asked: &Attributes<'_>) -> bool {
        self.rules(identity, asked.namespace).any(|rule| rule.allows(asked))
    }
}

/// The roles as they are stored, read.
#[derive(Default)]
pub(crate) struct Roles(Mutex<Known>);

#[derive(Default)]
struct Known {
    stored: [Records; 4],
    roles: HashMap<Arc<str>, (Arc<Record>, Arc<Role>)>,
    bindings: HashMap<Arc<str>, (Arc<Record>, Arc<Binding>)>,
    index: Arc<Index>,
}

impl Known {
    fn read(&mut self, stored: [Records; 4]) {
        let [cluster_roles, roles, cluster_bindings, bindings] = &stored;
        self.roles = read_again(&self.roles, cluster_roles.iter().chain(roles.iter()));
        self.bindings = read_again(&self.bindings, cluster_bindings.iter().chain(bindings.iter()));
        let mut index = Index::default();
        let all: Vec<Arc<Role>> =
            cluster_roles.keys().filter_map(|name| self.roles.get(name)).map(|(_, role)| role.clone()).collect();
        for (name, (_, role)) in &self.roles {
            index.roles.insert(name.clone(), parts(role, &all));
        }
        index.bindings = self.bindings.iter().map(|(name, (_, binding))| (name.clone(), binding.clone())).collect();
        for (_, binding) in self.bindings.values() {
            for subject in &binding.subjects {
                let (map, name) = match subject.kind.as_str() {
                    "User" => (&mut index.users, subject.name.clone()),
                    "Group" => (&mut index.groups, subject.name.clone()),
                    "ServiceAccount" => {
                        let namespace = subject.place(&binding.metadata.namespace);
                        (&mut index.users, format!("system:serviceaccount:{namespace}:{}", subject.name))
                    }
                    _ => continue,
                };
                map.entry(name).or_default().insert(Grant::of(binding));
            }
        }
        self.index = Arc::new(index);
        self.stored = stored;
    }
}

/// The roles whose rules `role` has. One that is made of others has theirs and none of its own, as in the reference, where
/// what it has is written over; and these may be made of others again.
fn parts(role: &Arc<Role>, all: &[Arc<Role>]) -> Vec<Arc<Role>> {
    let (mut parts, mut seen, mut open) = (Vec::new(), HashSet::from([Arc::as_ptr(role)]), vec![role.clone()]);
    while let Some(role) = open.pop() {
        let selectors = &role.aggregation_rule.cluster_role_selectors;
        for selector in selectors.iter().filter_map(|selector| LabelSelector::from_object(selector).ok()) {
            let selected = all.iter().filter(|other| selector.matches(&other.metadata.labels));
            open.extend(selected.filter(|other| seen.insert(Arc::as_ptr(other))).cloned());
        }
        if selectors.is_empty() {
            parts.push(role);
        }
    }
    parts
}

/// Reads the records that are not the same as before. What cannot be read allows nothing.
fn read_again<'a, T: Default + for<'de> Deserialize<'de>>(
    before: &HashMap<Arc<str>, (Arc<Record>, Arc<T>)>,
    records: impl Iterator<Item = (&'a Arc<str>, &'a Arc<Record>)>,
) -> HashMap<Arc<str>, (Arc<Record>, Arc<T>)> {
    let read = |(name, record): (&Arc<str>, &Arc<Record>)| {
        let same = before.get(name).filter(|(old, _)| Arc::ptr_eq(old, record));
        let read_now = || {
            serde_json::from_slice(&record.bytes).unwrap_or_else(|error| {
                tracing::error!(%name, %error, "a role or a binding cannot be read: it allows nothing");
                T::default()
            })
        };
        let read = same.map_or_else(|| Arc::new(read_now()), |(_, read)| read.clone());
        (name.clone(), (record.clone(), read))
    };
    records.map(read).collect()
}

impl Roles {
    /// As they are now.
    pub fn index(&self, catalog: &Catalog, store: &Store) -> Arc<Index> {
        // The snapshots are taken under the lock, so that nobody puts an older index in the place of a newer one.
        let mut known = self.0.lock();
        let stored = KINDS.map(|kind| {
            let resource = catalog.named(GROUP, kind);
            let collection = resource.map(|resource| resource.row.collection()).unwrap_or_default();
            store.keyspace.snapshot(collection).records
        });
        if !known.stored.iter().zip(&stored).all(|(before, now)| before.ptr_eq(now)) {
            known.read(stored);
        }
        known.index.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(rule: Value) -> Rule {
        serde_json::from_value(rule).unwrap()
    }

    #[test]
    fn a_rule_allows_what_it_names() {
        let pods = rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "*/scale"]}));
        let named = rule(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["secrets"], "resourceNames": ["a"]}));
        let paths = rule(json!({"verbs": ["get"], "nonResourceURLs": ["/api/*", "/version"], "rules": null}));
        let asked = |verb, resource, subresource, name| Attributes {
            verb,
            resource,
            subresource,
            name,
            ..Attributes::default()
        };
        assert!(pods.allows(&asked("get", "pods", "", "x")) && pods.allows(&asked("get", "deployments", "scale", "x")));
        for refused in [("list", "pods", "", ""), ("get", "pods", "log", "x"), ("get", "nodes", "", "x")] {
            assert!(!pods.allows(&asked(refused.0, refused.1, refused.2, refused.3)), "{refused:?}");
        }
        assert!(named.allows(&asked("get", "secrets", "", "a")));
        assert!(!named.allows(&asked("list", "secrets", "", "")) && !named.allows(&asked("get", "secrets", "", "b")));
        let path = |verb, path| Attributes { verb, path: Some(path), ..Attributes::default() };
        assert!(paths.allows(&path("get", "/api/v1")) && paths.allows(&path("get", "/version")));
        assert!(!paths.allows(&path("get", "/metrics")) && !paths.allows(&path("post", "/version")));
        assert!(!paths.allows(&asked("get", "pods", "", "x")));
    }

    #[test]
    fn what_is_said_again_means_nothing_more() {
        let again = |text: &str| vec![text.to_owned(); 100];
        let doubled = json!({"verbs": again("get"), "apiGroups": again(""), "resources": again("pods")});
        let role: Role = serde_json::from_value(json!({"rules": vec![doubled; 100]})).unwrap();
        assert_eq!(role.rules, [rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}))]);
    }

    #[test]
    fn a_rule_is_each_of_its_permissions() {
        let rule =
            rule(json!({"verbs": ["get", "list"], "apiGroups": ["", "apps"], "resources": ["pods/log", "nodes"],
            "resourceNames": ["a", "b"], "nonResourceURLs": ["/x"]}));
        let all: Vec<Attributes<'_>> = rule.permissions("ns").collect();
        assert_eq!(all.len(), 2 * (2 * 2 * 2 + 1));
        let last = all.last().unwrap();
        let shown = (last.verb, last.group, last.resource, last.subresource, last.namespace, last.name, last.path);
        assert_eq!(shown, ("list", "apps", "nodes", "", "ns", "b", None));
        assert!(all.iter().any(|asked| (asked.resource, asked.subresource) == ("pods", "log")));
        assert!(all.iter().all(|asked| rule.allows(asked)));
    }
}
