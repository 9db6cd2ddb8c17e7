//! Whether what a webhook or a policy matches is a request (kubernetes-api §22.3): rules, selectors. Pure; match conditions
//! are asked by whoever owns them, about the version that is found here.

use coracle_api::meta::selector::LabelSelector;
use coracle_api::status::Status;
use serde_json::Value;

/// What is done, as rules say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    pub fn name(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// A group, a version and a kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GroupVersionKind {
    pub group: String,
    pub version: String,
    pub kind: String,
}

/// A resource in one version, and the kind of what is written to it, or to its subresource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Versioned {
    pub group: String,
    pub version: String,
    pub resource: String,
    pub kind: GroupVersionKind,
}

/// What is matched.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub operation: Operation,
    /// As it was asked for.
    pub of: &'a Versioned,
    /// The same objects in other groups and versions.
    pub equivalents: &'a [Versioned],
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// That of a namespace is itself; empty for the cluster.
    pub namespace: &'a str,
    /// Empty where there is none yet.
    pub name: &'a str,
    pub object: Option<&'a Value>,
    pub old: Option<&'a Value>,
}

impl Subject<'_> {
    /// Whether it is a namespace, which is in the cluster's scope.
    fn is_namespace(&self, of: &Versioned) -> bool {
        (of.group.as_str(), of.version.as_str(), of.resource.as_str()) == ("", "v1", "namespaces")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    All,
    Cluster,
    Namespaced,
    /// None that there is: it matches nothing.
    Unknown,
}

/// A rule, without what it says again.
#[derive(Debug, Clone)]
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// A resource and a subresource.
    resources: Vec<(String, String)>,
    scope: Scope,
    /// Of the objects; without any it is about all.
    names: Vec<String>,
}

fn texts(list: &Value) -> Vec<String> {
    let mut texts: Vec<String> =
        list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    texts.sort_unstable();
    texts.dedup();
    texts
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    fn read(rule: &Value) -> Rule {
        let resource = |text: String| match text.split_once('/') {
            Some((resource, subresource)) => (resource.to_owned(), subresource.to_owned()),
            None => (text, String::new()),
        };
        Rule {
            operations: texts(&rule["operations"]),
            groups: texts(&rule["apiGroups"]),
            versions: texts(&rule["apiVersions"]),
            resources: texts(&rule["resources"]).into_iter().map(resource).collect(),
            scope: match rule["scope"].as_str() {
                None | Some("*") => Scope::All,
                Some("Cluster") => Scope::Cluster,
                Some("Namespaced") => Scope::Namespaced,
                Some(_) => Scope::Unknown,
            },
            names: texts(&rule["resourceNames"]),
        }
    }

    fn matches(&self, subject: &Subject<'_>, of: &Versioned) -> bool {
        let in_cluster = subject.is_namespace(of) || subject.namespace.is_empty();
        let in_scope = match self.scope {
            Scope::All => true,
            Scope::Cluster => in_cluster,
            Scope::Namespaced => !in_cluster,
            Scope::Unknown => false,
        };
        let names_resource = |(resource, subresource): &(String, String)| {
            (resource == "*" || *resource == of.resource) && (subresource == "*" || subresource == subject.subresource)
        };
        in_scope
            && has(&self.operations, subject.operation.name())
            && has(&self.groups, &of.group)
            && has(&self.versions, &of.version)
            && self.resources.iter().any(names_resource)
            && (self.names.is_empty() || self.names.iter().any(|name| name == subject.name))
    }
}

/// What a webhook or a policy is about.
#[derive(Debug)]
pub(crate) struct MatchResources {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    /// Whether nothing that is said of resources means all of them.
    is_open: bool,
    /// Whether the same object in another version is meant, too.
    equivalent: bool,
    namespaces: Result<LabelSelector, String>,
    objects: Result<LabelSelector, String>,
}

impl MatchResources {
    /// Of a webhook: without a rule it is about nothing.
    pub fn of_webhook(webhook: &Value) -> MatchResources {
        MatchResources { is_open: false, ..MatchResources::read(webhook, "rules") }
    }

    /// Of a policy or a binding (`matchConstraints`, `matchResources`): without a rule it is about everything.
    pub fn of_policy(resources: &Value) -> MatchResources {
        MatchResources { is_open: true, ..MatchResources::read(resources, "resourceRules") }
    }

    fn read(from: &Value, rules: &str) -> MatchResources {
        let read = |list: &Value| list.as_array().into_iter().flatten().map(Rule::read).collect();
        // One that is not there selects all, as it is filled in when it is written.
        let selector = |selector: &Value| match selector {
            Value::Null => Ok(LabelSelector::everything()),
            selector => LabelSelector::from_object(selector).map_err(|error| error.to_string()),
        };
        MatchResources {
            rules: read(&from[rules]),
            excluded: read(&from["excludeResourceRules"]),
            is_open: false,
            equivalent: from["matchPolicy"] != "Exact",
            namespaces: selector(&from["namespaceSelector"]),
            objects: selector(&from["objectSelector"]),
        }
    }

    /// Whether it is about a request; if so, in which version it wants to see the object. `labels` gives those of the
    /// namespace by its name.
    ///
    /// # Errors
    /// What it says cannot be decided: a selector is none, or there is no such namespace.
    pub fn matches<'s>(
        &self,
        subject: &Subject<'s>,
        labels: impl FnOnce(&str) -> Result<Value, Status>,
    ) -> Result<Option<&'s Versioned>, Status> {
        if self.find(&self.excluded, subject).is_some() {
            return Ok(None);
        }
        let found =
            if self.is_open && self.rules.is_empty() { Some(subject.of) } else { self.find(&self.rules, subject) };
        let Some(found) = found else { return Ok(None) };
        let is_meant = self.selects_object(subject)? && self.selects_namespace(subject, labels)?;
        Ok(is_meant.then_some(found))
    }

    /// The version that the first rule names: that which was asked for, before any other.
    fn find<'s>(&self, rules: &[Rule], subject: &Subject<'s>) -> Option<&'s Versioned> {
        if rules.iter().any(|rule| rule.matches(subject, subject.of)) {
            return Some(subject.of);
        }
        if !self.equivalent {
            return None;
        }
        rules.iter().find_map(|rule| subject.equivalents.iter().find(|other| rule.matches(subject, other)))
    }

    fn selects_object(&self, subject: &Subject<'_>) -> Result<bool, Status> {
        let selector = self.objects.as_ref().map_err(Status::internal_error)?;
        let selects =
            |object: Option<&Value>| object.is_some_and(|object| selector.matches(&object["metadata"]["labels"]));
        Ok(selector.is_everything() || selects(subject.object) || selects(subject.old))
    }

    fn selects_namespace(
        &self,
        subject: &Subject<'_>,
        labels: impl FnOnce(&str) -> Result<Value, Status>,
    ) -> Result<bool, Status> {
        let is_namespace = subject.of.resource == "namespaces";
        // What is in no namespace is never left out.
        if subject.namespace.is_empty() && !is_namespace {
            return Ok(true);
        }
        let selector = self.namespaces.as_ref().map_err(Status::internal_error)?;
        if selector.is_everything() {
            return Ok(true);
        }
        let changes = matches!(subject.operation, Operation::Create | Operation::Update);
        match subject.object.filter(|_| is_namespace && changes && subject.subresource.is_empty()) {
            Some(namespace) => Ok(selector.matches(&namespace["metadata"]["labels"])),
            None => Ok(selector.matches(&labels(subject.namespace)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn versioned(group: &str, version: &str, resource: &str) -> Versioned {
        Versioned { group: group.into(), version: version.into(), resource: resource.into(), ..Versioned::default() }
    }

    fn subject<'a>(of: &'a Versioned, equivalents: &'a [Versioned]) -> Subject<'a> {
        Subject {
            operation: Operation::Create,
            of,
            equivalents,
            subresource: "",
            namespace: "ns",
            name: "a",
            object: None,
            old: None,
        }
    }

    fn nobody_asks(_: &str) -> Result<Value, Status> {
        panic!("nobody asks for the namespace")
    }

    fn rule(resources: &[&str]) -> Value {
        json!({"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": resources})
    }

    /// Whether a webhook of one rule is about a subject.
    fn is_about(rule: &Value, subject: &Subject<'_>) -> bool {
        let webhook = MatchResources::of_webhook(&json!({"rules": [rule]}));
        webhook.matches(subject, nobody_asks).expect("decided").is_some()
    }

    #[test]
    fn resources_are_named_with_their_subresources() {
        let pods = versioned("", "v1", "pods");
        for (resources, subresource, expected) in [
            (&["pods"][..], "", true),
            (&["pods"], "status", false),
            (&["pods/*"], "status", true),
            (&["pods/*"], "", true),
            (&["pods/status"], "status", true),
            (&["pods/status"], "", false),
            (&["*"], "", true),
            (&["*"], "status", false),
            (&["*/*"], "status", true),
            (&["*/*"], "", true),
            (&["*/exec"], "exec", true),
            (&["*/exec"], "", false),
            (&["services", "pods/log"], "log", true),
            (&["services"], "", false),
            (&[], "", false),
        ] {
            let subject = Subject { subresource, ..subject(&pods, &[]) };
            assert_eq!(is_about(&rule(resources), &subject), expected, "{resources:?} {subresource:?}");
        }
    }

    #[test]
    fn groups_versions_operations_and_scopes_decide() {
        let (deployments, namespaces) = (versioned("apps", "v1", "deployments"), versioned("", "v1", "namespaces"));
        let here = subject(&deployments, &[]);
        let wide = Subject { namespace: "", ..here };
        let namespace = Subject { namespace: "x", ..subject(&namespaces, &[]) };
        for (field, value, subject, expected) in [
            ("apiGroups", json!(["apps"]), here, true),
            ("apiGroups", json!([""]), here, false),
            ("apiVersions", json!(["v1beta1", "v1"]), here, true),
            ("apiVersions", json!(["v2"]), here, false),
            ("operations", json!(["CREATE"]), here, true),
            ("operations", json!(["UPDATE", "DELETE"]), here, false),
            ("scope", json!("*"), here, true),
            ("scope", json!("Namespaced"), here, true),
            ("scope", json!("Cluster"), here, false),
            ("scope", json!("Cluster"), wide, true),
            ("scope", json!("Namespaced"), wide, false),
            ("scope", json!("Cluster"), namespace, true),
            ("scope", json!("Namespaced"), namespace, false),
            ("resourceNames", json!(["a", "b"]), here, true),
            ("resourceNames", json!(["b"]), here, false),
        ] {
            let mut rule = rule(&["*"]);
            rule[field] = value.clone();
            assert_eq!(is_about(&rule, &subject), expected, "{field} {value}");
        }
    }

    #[test]
    fn an_equivalent_version_matches_where_that_is_meant() {
        let (asked, other) = (versioned("e.com", "v2", "things"), versioned("e.com", "v1", "things"));
        let equivalents = [other.clone()];
        let subject = subject(&asked, &equivalents);
        let of = |policy: &str, versions: Value| {
            let mut rule = rule(&["things"]);
            rule["apiVersions"] = versions;
            let webhook = MatchResources::of_webhook(&json!({"rules": [rule], "matchPolicy": policy}));
            webhook.matches(&subject, nobody_asks).expect("decided").cloned()
        };
        assert_eq!(of("Equivalent", json!(["v1"])), Some(other));
        assert_eq!(of("Exact", json!(["v1"])), None);
        assert_eq!(of("Equivalent", json!(["v1", "v2"])), Some(asked.clone()));
        assert_eq!(of("Equivalent", json!(["v3"])), None);
    }

    #[test]
    fn what_is_excluded_or_not_named_is_left_out() {
        let pods = versioned("", "v1", "pods");
        let subject = subject(&pods, &[]);
        let is_about = |policy: Value| {
            MatchResources::of_policy(&policy).matches(&subject, nobody_asks).expect("decided").is_some()
        };
        assert!(is_about(json!({})));
        assert!(!is_about(json!({"excludeResourceRules": [rule(&["pods"])]})));
        assert!(!is_about(json!({"resourceRules": [rule(&["*"])], "excludeResourceRules": [rule(&["pods"])]})));
        assert!(!is_about(json!({"resourceRules": [rule(&["services"])]})));
        let none = MatchResources::of_webhook(&json!({})).matches(&subject, nobody_asks);
        assert!(none.expect("decided").is_none());
    }

    #[test]
    fn selectors_look_at_the_object_before_and_after_and_at_its_namespace() {
        let (pods, nodes) = (versioned("", "v1", "pods"), versioned("", "v1", "nodes"));
        let namespaces = versioned("", "v1", "namespaces");
        let labelled = json!({"metadata": {"labels": {"a": "b"}}});
        let plain = json!({"metadata": {}});
        let labels = |_: &str| Ok(json!({"team": "x"}));
        let of = |field: &str, selector: Value, subject: &Subject<'_>| {
            let webhook = MatchResources::of_webhook(&json!({"rules": [rule(&["*"])], field: selector}));
            webhook.matches(subject, labels).map(|found| found.is_some())
        };
        let by_object = |object, old| {
            let subject = Subject { object, old, ..subject(&pods, &[]) };
            of("objectSelector", json!({"matchLabels": {"a": "b"}}), &subject).expect("decided")
        };
        assert!(by_object(Some(&labelled), None) && by_object(Some(&plain), Some(&labelled)));
        assert!(!by_object(Some(&plain), None) && !by_object(None, None));
        let x = || json!({"matchLabels": {"team": "x"}});
        let y = || json!({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["x"]}]});
        assert_eq!(of("namespaceSelector", x(), &subject(&pods, &[])).ok(), Some(true));
        assert_eq!(of("namespaceSelector", y(), &subject(&pods, &[])).ok(), Some(false));
        // What is in no namespace is always meant.
        let node = Subject { namespace: "", ..subject(&nodes, &[]) };
        assert_eq!(of("namespaceSelector", y(), &node).ok(), Some(true));
        // A new namespace is selected by what it will be, one that goes by what it is.
        let made = Subject { namespace: "n", object: Some(&labelled), ..subject(&namespaces, &[]) };
        assert_eq!(of("namespaceSelector", json!({"matchLabels": {"a": "b"}}), &made).ok(), Some(true));
        let gone = Subject { operation: Operation::Delete, object: None, old: Some(&labelled), ..made };
        assert_eq!(of("namespaceSelector", x(), &gone).ok(), Some(true));
    }

    #[test]
    fn what_cannot_be_decided_is_no_matter_for_others() {
        let pods = versioned("", "v1", "pods");
        let subject = subject(&pods, &[]);
        let selector = json!({"matchLabels": {"a": "b"}});
        let gone = |name: &str| Err(Status::not_found("", "namespaces", name));
        let asks = |rule: Value| {
            let webhook = MatchResources::of_webhook(&json!({"rules": [rule], "namespaceSelector": selector}));
            webhook.matches(&subject, gone).map(|found| found.is_some())
        };
        assert_eq!(asks(rule(&["services"])).ok(), Some(false));
        assert_eq!(asks(rule(&["pods"])).expect_err("no namespace").code(), 404);
    }
}
