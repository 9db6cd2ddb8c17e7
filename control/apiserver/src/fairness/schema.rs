//! What a FlowSchema says, and which of many a request belongs to.
//!
//! Schemas are looked up by who calls: each user, group and namespace of accounts that they name has the list of its rules, in
//! the order of their precedence. So a request looks at the few rules that are about its caller, however many schemas there are,
//! and allocates nothing.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use crate::identity::Identity;

const ALL: &str = "*";
/// Users of this name are ServiceAccounts, `NAMESPACE:NAME`.
const ACCOUNTS: &str = "system:serviceaccount:";

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    /// Of what is no resource.
    pub path: Option<&'a str>,
}

/// By what the flows of a schema are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Distinguisher {
    /// They are one.
    None,
    User,
    Namespace,
}

impl Distinguisher {
    pub fn of<'a>(self, who: &'a Identity, asked: &Asked<'a>) -> &'a str {
        match self {
            Distinguisher::None => "",
            Distinguisher::User => &who.user,
            Distinguisher::Namespace => asked.namespace,
        }
    }
}

/// A list in which `*` stands alone for everything.
#[derive(Debug)]
enum Names {
    All,
    These(Vec<String>),
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Names, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        Ok(if names.len() == 1 && names[0] == ALL { Names::All } else { Names::These(names) })
    }
}

impl Default for Names {
    fn default() -> Names {
        Names::These(Vec::new())
    }
}

impl Names {
    fn have(&self, name: &str) -> bool {
        match self {
            Names::All => true,
            Names::These(names) => names.iter().any(|known| known == name),
        }
    }

    /// Whether `resource` or `resource/subresource` is among them.
    fn have_resource(&self, resource: &str, subresource: &str) -> bool {
        let Names::These(names) = self else { return true };
        names.iter().any(|known| match known.strip_prefix(resource) {
            Some("") => subresource.is_empty(),
            Some(rest) => !subresource.is_empty() && rest.strip_prefix('/') == Some(subresource),
            None => false,
        })
    }

    /// Whether a path is one of them or below one.
    fn have_path(&self, path: &str) -> bool {
        let Names::These(names) = self else { return true };
        names.iter().any(|known| {
            let above = known.strip_suffix('*').unwrap_or(known);
            let above = above.strip_suffix('/').unwrap_or(above);
            known == path || path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ResourceRule {
    verbs: Names,
    api_groups: Names,
    resources: Names,
    cluster_scope: bool,
    namespaces: Names,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PathRule {
    verbs: Names,
    #[serde(rename = "nonResourceURLs")]
    paths: Names,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Subject {
    kind: String,
    user: Named,
    group: Named,
    #[serde(rename = "serviceAccount")]
    account: Named,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
    namespace: String,
}

/// What some subjects may ask for.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Rule {
    subjects: Vec<Subject>,
    resource_rules: Vec<ResourceRule>,
    non_resource_rules: Vec<PathRule>,
}

impl Rule {
    fn matches(&self, asked: &Asked<'_>) -> bool {
        if let Some(path) = asked.path {
            return self
                .non_resource_rules
                .iter()
                .any(|rule| rule.verbs.have(asked.verb) && rule.paths.have_path(path));
        }
        self.resource_rules.iter().any(|rule| {
            rule.verbs.have(asked.verb)
                && rule.resources.have_resource(asked.resource, asked.subresource)
                && rule.api_groups.have(asked.group)
                && if asked.namespace.is_empty() { rule.cluster_scope } else { rule.namespaces.have(asked.namespace) }
        })
    }
}

/// A FlowSchema.
#[derive(Debug)]
pub(super) struct Schema {
    pub name: String,
    pub uid: String,
    /// The smallest comes first, and of equals the first by name.
    pub precedence: i64,
    /// The name of its level.
    pub level: String,
    pub distinguisher: Distinguisher,
    pub rules: Vec<Rule>,
}

impl Schema {
    /// Of a stored object.
    ///
    /// # Errors
    /// Why it is none.
    pub fn read(object: &Value) -> Result<Schema, String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (metadata, spec) = (&object["metadata"], &object["spec"]);
        let rules = match &spec["rules"] {
            Value::Null => Vec::new(),
            rules => Vec::<Rule>::deserialize(rules).map_err(|error| error.to_string())?,
        };
        Ok(Schema {
            name: text(&metadata["name"]),
            uid: text(&metadata["uid"]),
            precedence: spec["matchingPrecedence"].as_i64().ok_or("it has no precedence")?,
            level: text(&spec["priorityLevelConfiguration"]["name"]),
            distinguisher: match spec["distinguisherMethod"]["type"].as_str() {
                Some("ByUser") => Distinguisher::User,
                Some("ByNamespace") => Distinguisher::Namespace,
                _ => Distinguisher::None,
            },
            rules,
        })
    }
}

/// Places of schemas and of rules in them, in their order.
type Places = Vec<(u32, u32)>;

/// Schemas by who calls.
#[derive(Debug, Default)]
pub(super) struct Index {
    everybody: Places,
    users: HashMap<String, Places>,
    groups: HashMap<String, Places>,
    /// Namespaces all of whose accounts are meant.
    accounts: HashMap<String, Places>,
}

impl Index {
    /// Of schemas in the order of their precedence.
    pub fn new<'a>(schemas: impl Iterator<Item = &'a Schema>) -> Index {
        let mut index = Index::default();
        for (at, schema) in (0..).zip(schemas) {
            for (number, rule) in (0..).zip(&schema.rules) {
                for subject in &rule.subjects {
                    let places = match subject.kind.as_str() {
                        "User" if subject.user.name == ALL => &mut index.everybody,
                        "User" => index.users.entry(subject.user.name.clone()).or_default(),
                        "Group" if subject.group.name == ALL => &mut index.everybody,
                        "Group" => index.groups.entry(subject.group.name.clone()).or_default(),
                        "ServiceAccount" => {
                            let Named { name, namespace } = &subject.account;
                            match name.as_str() {
                                ALL => index.accounts.entry(namespace.clone()).or_default(),
                                _ => index.users.entry(format!("{ACCOUNTS}{namespace}:{name}")).or_default(),
                            }
                        }
                        _ => continue,
                    };
                    places.push((at, number));
                }
            }
        }
        index
    }

    /// The place of the first schema that a request belongs to.
    pub fn find(&self, schemas: &[Arc<Schema>], who: &Identity, asked: &Asked<'_>) -> Option<usize> {
        let mut found = u32::MAX;
        let mut look = |places: &Places| {
            for (schema, rule) in places {
                if *schema >= found {
                    break;
                }
                let rule = schemas.get(*schema as usize).and_then(|schema| schema.rules.get(*rule as usize));
                if rule.is_some_and(|rule| rule.matches(asked)) {
                    found = *schema;
                }
            }
        };
        look(&self.everybody);
        if let Some(places) = self.users.get(&who.user) {
            look(places);
        }
        let namespace = who.user.strip_prefix(ACCOUNTS).and_then(|account| account.split_once(':'));
        if let Some(places) = namespace.and_then(|(namespace, _)| self.accounts.get(namespace)) {
            look(places);
        }
        for group in &who.groups {
            if let Some(places) = self.groups.get(group) {
                look(places);
            }
        }
        (found != u32::MAX).then_some(found as usize)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema(name: &str, precedence: i64, rules: Value) -> Arc<Schema> {
        let spec =
            json!({"matchingPrecedence": precedence, "priorityLevelConfiguration": {"name": "l"}, "rules": rules});
        Arc::new(Schema::read(&json!({"metadata": {"name": name}, "spec": spec})).expect("a schema"))
    }

    fn everything() -> Value {
        json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"]})
    }

    /// `USER[,GROUP…] VERB (PATH | GROUP/RESOURCE[/SUBRESOURCE][@NAMESPACE])`
    fn find(schemas: &[Arc<Schema>], request: &str) -> String {
        let [who, verb, what] = request.split(' ').collect::<Vec<_>>()[..] else { panic!("{request}") };
        let mut names = who.split(',').map(str::to_owned);
        let identity = Identity {
            user: names.next().expect("a user"),
            groups: names.collect(),
            uid: String::new(),
            extra: std::collections::BTreeMap::new(),
        };
        let (thing, namespace) = what.split_once('@').unwrap_or((what, ""));
        let mut parts = thing.split('/');
        let mut next = || parts.next().unwrap_or_default();
        let asked = match thing.starts_with('/') {
            true => Asked { verb, group: "", resource: "", subresource: "", namespace: "", path: Some(thing) },
            false => Asked { verb, group: next(), resource: next(), subresource: next(), namespace, path: None },
        };
        let found = Index::new(schemas.iter().map(|schema| &**schema)).find(schemas, &identity, &asked);
        found.map_or("-".to_owned(), |at| schemas[at].name.clone())
    }

    #[test]
    fn requests_belong_to_the_first_schema_that_is_about_them() {
        let user = |name: &str| json!({"kind": "User", "user": {"name": name}});
        let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
        let account = |namespace: &str, name: &str| json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": namespace, "name": name}});
        let of = |subjects: &[Value], resources: Value, paths: Value| json!([{"subjects": subjects, "resourceRules": resources, "nonResourceRules": paths}]);
        let schemas = [
            schema(
                "exempt",
                1,
                of(&[group("masters")], json!([everything()]), json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}])),
            ),
            schema(
                "probes",
                2,
                of(&[group("*")], json!([]), json!([{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/logs/*"]}])),
            ),
            schema(
                "leases",
                100,
                of(
                    &[user("scheduler"), account("kube-system", "*")],
                    json!([{"verbs": ["get", "update"], "apiGroups": ["coordination"], "resources": ["leases"], "namespaces": ["*"]}]),
                    json!([]),
                ),
            ),
            schema(
                "nodes",
                400,
                of(
                    &[group("nodes")],
                    json!([{"verbs": ["*"], "apiGroups": [""], "resources": ["nodes", "nodes/status"], "clusterScope": true, "namespaces": ["*"]}]),
                    json!([]),
                ),
            ),
            schema(
                "team",
                500,
                of(
                    &[account("team", "bot"), user("team-lead")],
                    json!([{"verbs": ["list"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["team", "other"]}]),
                    json!([]),
                ),
            ),
            schema("all", 9_000, of(&[user("*")], json!([everything()]), json!([]))),
        ];
        for (request, expected) in [
            ("a,masters get apps/deployments@n", "exempt"),
            ("a,x,masters get /anything", "exempt"),
            ("a get /healthz", "probes"),
            ("a get /healthz/ping", "probes"),
            ("a get /healthzz", "-"),
            ("a post /healthz", "-"),
            ("a get /logs/x/y", "probes"),
            ("a get /logs", "-"),
            ("scheduler update coordination/leases@kube-system", "leases"),
            ("scheduler create coordination/leases@kube-system", "all"),
            ("scheduler update coordination/leases", "all"),
            ("system:serviceaccount:kube-system:x get coordination/leases@n", "leases"),
            ("system:serviceaccount:kube-systems:x get coordination/leases@n", "all"),
            ("system:serviceaccount:kube-system get coordination/leases@n", "all"),
            ("n,nodes patch /nodes", "-"),
            ("system:serviceaccount:team:bot list apps/x@team", "team"),
            ("system:serviceaccount:team:bots list apps/x@team", "all"),
            ("team-lead list apps/x@other", "team"),
            ("team-lead list apps/x@third", "all"),
            ("team-lead list apps/x", "all"),
            ("a get apps/deployments/status@n", "all"),
            ("a get /version", "-"),
        ] {
            assert_eq!(find(&schemas, request), expected, "{request}");
        }
        let nodes = |resource: &str| {
            let identity = Identity::authenticated("n", vec!["nodes".to_owned()]);
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let asked = Asked { verb: "patch", group: "", resource, subresource, namespace: "", path: None };
            Index::new(schemas.iter().map(|schema| &**schema))
                .find(&schemas, &identity, &asked)
                .map(|at| schemas[at].name.clone())
        };
        for (resource, expected) in [
            ("nodes", "nodes"),
            ("nodes/status", "nodes"),
            ("nodes/proxy", "all"),
            ("nodestatus", "all"),
            ("node", "all"),
        ] {
            assert_eq!(nodes(resource).as_deref(), Some(expected), "{resource}");
        }
    }

    #[test]
    fn flows_are_told_apart_by_user_or_namespace() {
        let who = Identity::authenticated("u", vec![]);
        let asked = Asked { verb: "get", group: "", resource: "pods", subresource: "", namespace: "n", path: None };
        for (distinguisher, expected) in
            [(Distinguisher::None, ""), (Distinguisher::User, "u"), (Distinguisher::Namespace, "n")]
        {
            assert_eq!(distinguisher.of(&who, &asked), expected);
        }
    }

    #[test]
    fn what_is_no_schema_is_told() {
        assert!(Schema::read(&json!({"metadata": {"name": "x"}, "spec": {}})).is_err());
        assert!(Schema::read(&json!({"spec": {"matchingPrecedence": 1, "rules": "none"}})).is_err());
    }
}
