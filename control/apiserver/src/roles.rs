//! The roles and bindings that are stored (RBAC, kubernetes-api §19), in the shape in which they are asked. When one of them has
//! changed, that one is decoded and takes its place there, and nothing else is looked at: every request waits for it, and a tenant
//! may change its own as often as it likes.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use coracle_api::meta::selector::LabelSelector;
use coracle_api::meta::text::quote;
use coracle_keyspace::{Record, Records, changes};
use imbl::{OrdMap, OrdSet};
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
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Grant {
    role: String,
    namespace: Option<String>,
}

impl Grant {
    /// Whether it holds in `namespace`, which is empty for the cluster.
    fn is_for(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|place| place == namespace)
    }

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

/// What somebody has, with the names of the records of the bindings that say so. However often it is said that somebody has a role, it
/// is one of these: they are gone through with each request.
type Grants = OrdMap<Grant, OrdSet<Arc<str>>>;

/// Who is bound to which roles, and what these say. Roles go by their record's name, which has a namespace or none. Clones share all
/// that is the same in both.
#[derive(Debug, Default, Clone)]
pub(crate) struct Index {
    roles: imbl::HashMap<Arc<str>, Arc<[Arc<Role>]>>,
    users: imbl::HashMap<String, Grants>,
    groups: imbl::HashMap<String, Grants>,
    /// Bindings by the names of their records: of the cluster, and of namespaces.
    bindings: [imbl::HashMap<Arc<str>, Arc<Binding>>; 2],
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

    fn grants(&self, identity: &Identity) -> impl Iterator<Item = (&Grant, &OrdSet<Arc<str>>)> {
        let groups = identity.groups.iter().filter_map(|group| self.groups.get(group));
        self.users.get(&identity.user).into_iter().chain(groups).flatten()
    }

    /// What holds for `identity` in `namespace`, which is empty for the cluster.
    pub fn rules(&self, identity: &Identity, namespace: &str) -> impl Iterator<Item = &Rule> {
        let grants = self.grants(identity).map(|(grant, _)| grant);
        grants.filter(move |grant| grant.is_for(namespace)).flat_map(|grant| self.of_role(&grant.role))
    }

    /// What a role says, by its record's name.
    pub fn of_role(&self, role: &str) -> impl Iterator<Item = &Rule> {
        self.roles.get(role).into_iter().flat_map(|parts| parts.iter()).flat_map(|role| &role.rules)
    }

    /// The first binding by which `identity` may, those of the cluster before those of a namespace.
    pub fn reason(&self, identity: &Identity, asked: &Attributes<'_>) -> Option<String> {
        let allowing = self.grants(identity).filter(|(grant, _)| {
            grant.is_for(asked.namespace) && self.of_role(&grant.role).any(|rule| rule.allows(asked))
        });
        let firsts = allowing.filter_map(|(grant, bindings)| Some((grant.namespace.is_some(), bindings.get_min()?)));
        let (is_here, record) = firsts.min()?;
        let binding = self.bindings[usize::from(is_here)].get(record)?;
        let namespace = binding.metadata.namespace.as_str();
        let subject = binding.subjects.iter().find(|subject| subject.is(identity, namespace))?;
        let (kind, name) = match record.split_once('/') {
            // The reference has it this way round.
            Some((namespace, name)) if is_here => ("RoleBinding", format!("{name}/{namespace}")),
            _ => ("ClusterRoleBinding", record.to_string()),
        };
        let RoleRef { kind: of, name: role } = &binding.role_ref;
        Some(format!("{kind} {} of {of} {} to {}", quote(&name), quote(role), subject.show(namespace)))
    }

    /// Puts a binding in the place of another, or of none; `at` as in [`Index::bindings`].
    fn bind(&mut self, at: usize, record: &Arc<str>, binding: Option<Arc<Binding>>) {
        let before = match &binding {
            Some(binding) => self.bindings[at].insert(record.clone(), binding.clone()),
            None => self.bindings[at].remove(record),
        };
        for (binding, is_there) in [(before, false), (binding, true)] {
            let Some(binding) = binding else { continue };
            let grant = Grant::of(&binding);
            for subject in &binding.subjects {
                let (map, name) = match subject.kind.as_str() {
                    "User" => (&mut self.users, subject.name.clone()),
                    "Group" => (&mut self.groups, subject.name.clone()),
                    "ServiceAccount" => {
                        let namespace = subject.place(&binding.metadata.namespace);
                        (&mut self.users, format!("system:serviceaccount:{namespace}:{}", subject.name))
                    }
                    _ => continue,
                };
                match is_there {
                    true => drop(map.entry(name).or_default().entry(grant.clone()).or_default().insert(record.clone())),
                    false => take_away(map, &name, &grant, record),
                }
            }
        }
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
    /// ClusterRoles, of which others may be made.
    cluster_roles: HashMap<Arc<str>, Arc<Role>>,
    /// Roles that are made of others.
    aggregated: HashMap<Arc<str>, Arc<Role>>,
    index: Arc<Index>,
}

impl Known {
    fn read(&mut self, stored: [Records; 4]) {
        // Who asks at this moment has the one before.
        let mut index = Index::clone(&self.index);
        let mut is_cluster_role_changed = false;
        let known = std::mem::take(&mut self.stored);
        for (at, (before, now)) in known.iter().zip(&stored).enumerate() {
            for (name, _, record) in changes(before, now) {
                if at >= 2 {
                    index.bind(at - 2, name, record.map(|record| decode(name, record)));
                    continue;
                }
                is_cluster_role_changed |= at == 0;
                self.set_role(&mut index, at == 0, name, record.map(|record| decode(name, record)));
            }
        }
        if is_cluster_role_changed {
            self.aggregate(&mut index);
        }
        self.index = Arc::new(index);
        self.stored = stored;
    }

    /// Puts a role in the place of another, or of none. What is made of others waits for [`Known::aggregate`], if it is one of those.
    fn set_role(&mut self, index: &mut Index, is_of_cluster: bool, name: &Arc<str>, role: Option<Arc<Role>>) {
        if is_of_cluster {
            match &role {
                Some(role) => drop(self.cluster_roles.insert(name.clone(), role.clone())),
                None => drop(self.cluster_roles.remove(name)),
            }
        }
        self.aggregated.remove(name);
        match role {
            Some(role) if role.aggregation_rule.cluster_role_selectors.is_empty() => {
                index.roles.insert(name.clone(), Arc::new([role]));
            }
            Some(role) => {
                index.roles.insert(name.clone(), parts(&role, &self.cluster_roles));
                self.aggregated.insert(name.clone(), role);
            }
            None => drop(index.roles.remove(name)),
        }
    }

    /// Makes anew what is made of other roles.
    fn aggregate(&self, index: &mut Index) {
        for (name, role) in &self.aggregated {
            index.roles.insert(name.clone(), parts(role, &self.cluster_roles));
        }
    }
}

/// Takes away what a binding says of somebody, and what is empty then.
fn take_away(map: &mut imbl::HashMap<String, Grants>, name: &str, grant: &Grant, record: &Arc<str>) {
    let Some(grants) = map.get_mut(name) else { return };
    if let Some(bindings) = grants.get_mut(grant) {
        bindings.remove(record);
        if bindings.is_empty() {
            grants.remove(grant);
        }
    }
    if grants.is_empty() {
        map.remove(name);
    }
}

/// The roles whose rules `role` has. One that is made of others has theirs and none of its own, as in the reference, where
/// what it has is written over; and these may be made of others again.
fn parts(role: &Arc<Role>, all: &HashMap<Arc<str>, Arc<Role>>) -> Arc<[Arc<Role>]> {
    let (mut parts, mut seen, mut open) = (Vec::new(), HashSet::from([Arc::as_ptr(role)]), vec![role.clone()]);
    while let Some(role) = open.pop() {
        let selectors = &role.aggregation_rule.cluster_role_selectors;
        for selector in selectors.iter().filter_map(|selector| LabelSelector::from_object(selector).ok()) {
            let selected = all.values().filter(|other| selector.matches(&other.metadata.labels));
            open.extend(selected.filter(|other| seen.insert(Arc::as_ptr(other))).cloned());
        }
        if selectors.is_empty() {
            parts.push(role);
        }
    }
    parts.into()
}

/// Reads a record. What cannot be read allows nothing.
fn decode<T: Default + for<'de> Deserialize<'de>>(name: &str, record: &Record) -> Arc<T> {
    Arc::new(serde_json::from_slice(&record.bytes).unwrap_or_else(|error| {
        tracing::error!(%name, %error, "a role or a binding cannot be read: it allows nothing");
        T::default()
    }))
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

    fn role(labels: Value, selectors: Value, resource: &str) -> Arc<Role> {
        let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": [resource]}]);
        let aggregation = json!({ "clusterRoleSelectors": selectors });
        let role = json!({"metadata": {"labels": labels}, "rules": rules, "aggregationRule": aggregation});
        Arc::new(serde_json::from_value(role).unwrap())
    }

    fn binding(namespace: &str, (kind, role): (&str, &str), subjects: &[(&str, &str)]) -> Arc<Binding> {
        let subjects: Vec<Value> = subjects.iter().map(|(kind, name)| json!({"kind": kind, "name": name})).collect();
        let binding = json!({"metadata": {"namespace": namespace}, "roleRef": {"kind": kind, "name": role}, "subjects": subjects});
        Arc::new(serde_json::from_value(binding).unwrap())
    }

    /// What roles say, in an order.
    fn said(index: &Index) -> Vec<(Arc<str>, Vec<String>)> {
        let rules = |name: &Arc<str>| {
            let mut rules: Vec<String> = index.of_role(name).map(|rule| rule.resources.join(",")).collect();
            rules.sort();
            (name.clone(), rules)
        };
        let mut roles: Vec<_> = index.roles.keys().map(rules).collect();
        roles.sort();
        roles
    }

    #[test]
    fn what_has_changed_many_times_is_as_what_was_read_at_once() {
        use rand::{Rng as _, SeedableRng as _};
        let mut random = rand::rngs::StdRng::seed_from_u64(7);
        let (mut known, mut index) = (Known::default(), Index::default());
        let mut roles: HashMap<(bool, Arc<str>), Arc<Role>> = HashMap::new();
        let mut bindings: HashMap<(usize, Arc<str>), Arc<Binding>> = HashMap::new();
        for step in 0..2000 {
            let stays = random.random_bool(0.7);
            let number = random.random_range(0..6);
            if random.random_bool(0.5) {
                let is_of_cluster = random.random_bool(0.6);
                let name: Arc<str> = if is_of_cluster { format!("r{number}") } else { format!("n/r{number}") }.into();
                let selectors = match random.random_range(0..3) {
                    0 => json!([{"matchLabels": {"in": random.random_range(0..3).to_string()}}]),
                    _ => json!([]),
                };
                let labels = json!({"in": random.random_range(0..3).to_string()});
                let role = stays.then(|| role(labels, selectors, &format!("s{step}")));
                match &role {
                    Some(role) => drop(roles.insert((is_of_cluster, name.clone()), role.clone())),
                    None => drop(roles.remove(&(is_of_cluster, name.clone()))),
                }
                known.set_role(&mut index, is_of_cluster, &name, role);
                if is_of_cluster {
                    known.aggregate(&mut index);
                }
            } else {
                let at = random.random_range(0..2);
                let namespace = ["", "n"][at];
                let name: Arc<str> = if at == 0 { format!("b{number}") } else { format!("n/b{number}") }.into();
                let role = format!("r{}", random.random_range(0..3));
                let of = if at == 1 && random.random_bool(0.5) { "Role" } else { "ClusterRole" };
                let subjects = [("User", "u"), ("Group", "g"), ("ServiceAccount", "a"), ("User", "u")];
                let subjects = &subjects[..random.random_range(0..=4)];
                let binding = stays.then(|| binding(namespace, (of, &role), subjects));
                match &binding {
                    Some(binding) => drop(bindings.insert((at, name.clone()), binding.clone())),
                    None => drop(bindings.remove(&(at, name.clone()))),
                }
                index.bind(at, &name, binding);
            }
        }
        let (mut fresh, mut at_once) = (Known::default(), Index::default());
        roles.into_iter().for_each(|((of, name), role)| fresh.set_role(&mut at_once, of, &name, Some(role)));
        fresh.aggregate(&mut at_once);
        bindings.into_iter().for_each(|((at, name), binding)| at_once.bind(at, &name, Some(binding)));
        assert_eq!(said(&index), said(&at_once));
        assert!(index.users == at_once.users && index.groups == at_once.groups && !index.users.is_empty());
    }

    #[test]
    fn a_binding_that_changes_makes_nothing_else_anew() {
        let (mut known, mut index) = (Known::default(), Index::default());
        known.set_role(&mut index, true, &"all".into(), Some(role(json!({}), json!([{}]), "none")));
        for number in 0..50 {
            known.set_role(&mut index, true, &format!("r{number}").into(), Some(role(json!({}), json!([]), "pods")));
        }
        known.aggregate(&mut index);
        index.bind(0, &"others".into(), Some(binding("", ("ClusterRole", "all"), &[("User", "other")])));
        let before = index.clone();
        index.bind(1, &"n/own".into(), Some(binding("n", ("ClusterRole", "all"), &[("User", "u")])));
        assert!(Arc::ptr_eq(&before.roles["all"], &index.roles["all"]));
        assert!(before.users["other"].ptr_eq(&index.users["other"]));
        assert!(!before.users.contains_key("u"), "who asks at the moment has what was");
    }

    #[test]
    fn the_reason_is_the_first_binding_of_the_cluster_and_then_of_the_namespace() {
        let (mut known, mut index) = (Known::default(), Index::default());
        for (name, resource) in [("pods", "pods"), ("nodes", "nodes")] {
            known.set_role(&mut index, true, &name.into(), Some(role(json!({}), json!([]), resource)));
        }
        let user = [("User", "u")];
        index.bind(1, &"n/a".into(), Some(binding("n", ("ClusterRole", "pods"), &user)));
        index.bind(1, &"m/a".into(), Some(binding("m", ("ClusterRole", "pods"), &user)));
        index.bind(0, &"a".into(), Some(binding("", ("ClusterRole", "nodes"), &user)));
        let identity = Identity::authenticated("u", Vec::new());
        let asked = Attributes { verb: "get", resource: "pods", namespace: "n", ..Attributes::default() };
        let here = "RoleBinding \"a/n\" of ClusterRole \"pods\" to User \"u\"";
        assert_eq!(index.reason(&identity, &asked).as_deref(), Some(here));
        for name in ["z", "b"] {
            index.bind(0, &name.into(), Some(binding("", ("ClusterRole", "pods"), &user)));
        }
        let everywhere = "ClusterRoleBinding \"b\" of ClusterRole \"pods\" to User \"u\"";
        assert_eq!(index.reason(&identity, &asked).as_deref(), Some(everywhere));
        index.bind(0, &"b".into(), None);
        index.bind(0, &"z".into(), None);
        index.bind(1, &"n/a".into(), None);
        assert_eq!(index.reason(&identity, &asked), None);
    }
}
