//! Which requests are told of, and how much of each: a `Policy` of `audit.k8s.io/v1`, as kube-apiserver's `--audit-policy-file`
//! has it. The first rule that a request matches decides; what none matches is not told.

use serde::Deserialize;

use super::Asked;
use crate::identity::Identity;

/// How much of a request is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, serde::Serialize)]
pub(crate) enum Level {
    /// Nothing.
    None,
    /// Who, what, when, and what came of it.
    Metadata,
    /// With the body of the request.
    Request,
    /// With the body of the answer, too.
    RequestResponse,
}

/// A moment of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, serde::Serialize)]
pub(crate) enum Stage {
    /// It is here, and it is known who sent it.
    RequestReceived,
    /// The answer has begun, and goes on for as long as the client likes.
    ResponseStarted,
    /// The answer is whole.
    ResponseComplete,
    /// It failed within the server.
    Panic,
}

/// A policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: bool,
}

/// What a policy says of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub level: Level,
    omitted: Vec<Stage>,
    pub omits_managed_fields: bool,
}

impl Verdict {
    /// Whether this moment is told of.
    pub fn tells(&self, stage: Stage) -> bool {
        self.level > Level::None && !self.omitted.contains(&stage)
    }
}

/// Why a text is no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It cannot be read.
    #[error("it is no Policy of audit.k8s.io/v1: {0}")]
    Unreadable(#[from] serde_yaml_ng::Error),
    /// It can, and means nothing.
    #[error("{field}: {why}")]
    Invalid {
        /// Where.
        field: String,
        /// Why.
        why: &'static str,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    api_version: String,
    kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: serde::de::IgnoredAny,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<GroupResources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GroupResources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

impl Policy {
    /// Reads a policy in YAML or JSON. A field that nobody knows is an error: a rule would tell other things than it seems to.
    pub fn parse(text: &str) -> Result<Policy, PolicyError> {
        let written: Written = serde_yaml_ng::from_str(text)?;
        let invalid = |field: String, why| Err(PolicyError::Invalid { field, why });
        if written.api_version != "audit.k8s.io/v1" || written.kind != "Policy" {
            return invalid("apiVersion, kind".to_owned(), "must be audit.k8s.io/v1 and Policy");
        }
        if written.rules.is_empty() {
            return invalid("rules".to_owned(), "there must be one: without, nothing would be told");
        }
        for (at, rule) in written.rules.iter().enumerate() {
            let is_of_resources = !rule.resources.is_empty() || !rule.namespaces.is_empty();
            if is_of_resources && !rule.non_resource_urls.is_empty() {
                return invalid(
                    format!("rules[{at}].nonResourceURLs"),
                    "rules cannot apply to both regular resources and non-resource URLs",
                );
            }
            for (number, url) in rule.non_resource_urls.iter().enumerate() {
                let field = || format!("rules[{at}].nonResourceURLs[{number}]");
                if url == "*" {
                    continue;
                }
                if !url.starts_with('/') {
                    return invalid(field(), "non-resource URL rules must begin with a '/' character");
                }
                if url[..url.len() - 1].contains('*') {
                    return invalid(field(), "non-resource URL wildcards '*' must be the final character of the rule");
                }
            }
            for (number, of) in rule.resources.iter().enumerate() {
                if of.group.contains('/') {
                    return invalid(format!("rules[{at}].resources[{number}].group"), "a group has no version here");
                }
                if !of.resource_names.is_empty() && of.resources.is_empty() {
                    return invalid(
                        format!("rules[{at}].resources[{number}].resourceNames"),
                        "using resourceNames requires at least one resource",
                    );
                }
            }
        }
        let Written { rules, omit_stages, omit_managed_fields, .. } = written;
        Ok(Policy { rules, omit_stages, omit_managed_fields })
    }

    /// What is told of this request of `user`; nobody is a user whom nothing is known of.
    pub(super) fn judge(&self, user: Option<&Identity>, asked: &Asked) -> Verdict {
        let Some(rule) = self.rules.iter().find(|rule| rule.matches(user, asked)) else {
            return Verdict { level: Level::None, omitted: Vec::new(), omits_managed_fields: false };
        };
        Verdict {
            level: rule.level,
            omitted: self.omit_stages.iter().chain(&rule.omit_stages).copied().collect(),
            omits_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == wanted)
}

impl Rule {
    fn matches(&self, user: Option<&Identity>, asked: &Asked) -> bool {
        if !self.users.is_empty() && !user.is_some_and(|user| has(&self.users, &user.user)) {
            return false;
        }
        let in_group = |user: &Identity| user.groups.iter().any(|group| has(&self.user_groups, group));
        if !self.user_groups.is_empty() && !user.is_some_and(in_group) {
            return false;
        }
        if !self.verbs.is_empty() && !has(&self.verbs, &asked.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return self.matches_resource(asked);
        }
        if !self.non_resource_urls.is_empty() {
            let path = asked.path.as_str();
            return asked.resource.is_none()
                && self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
                    Some(prefix) => path.starts_with(prefix),
                    None => path == url,
                });
        }
        true
    }

    fn matches_resource(&self, asked: &Asked) -> bool {
        let Some(of) = &asked.resource else { return false };
        if !self.namespaces.is_empty() && !has(&self.namespaces, of.namespace.as_deref().unwrap_or_default()) {
            return false;
        }
        let (resource, name) = (of.resource.as_str(), of.name.as_deref().unwrap_or_default());
        let subresource = of.subresource.as_deref().unwrap_or_default();
        let is_meant = |written: &String| match written.as_str() {
            "*" => true,
            written => match written.split_once('/') {
                None => subresource.is_empty() && written == resource,
                Some(("*", sub)) => sub == subresource,
                Some((one, "*")) => one == resource,
                Some((one, sub)) => one == resource && sub == subresource,
            },
        };
        self.resources.is_empty()
            || self.resources.iter().filter(|known| known.group == of.group).any(|known| {
                let is_named = known.resource_names.is_empty() || has(&known.resource_names, name);
                known.resources.is_empty() || is_named && known.resources.iter().any(is_meant)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::path::ResourcePath;

    fn policy(rules: &str) -> Policy {
        Policy::parse(&format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}")).unwrap()
    }

    fn asked(verb: &str, path: ResourcePath) -> Asked {
        Asked { verb: verb.to_owned(), path: String::new(), resource: Some(path) }
    }

    fn of(resource: &str) -> ResourcePath {
        ResourcePath { version: "v1".into(), resource: resource.into(), ..ResourcePath::default() }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = policy(
            "omitStages: [RequestReceived]\nrules:\n\
             - {level: None, users: [\"system:kube-scheduler\"], verbs: [get]}\n\
             - {level: Request, userGroups: [dev], omitStages: [Panic], omitManagedFields: true}\n\
             - {level: RequestResponse, resources: [{group: \"\", resources: [secrets]}], namespaces: [a]}\n\
             - {level: Metadata, nonResourceURLs: [\"/healthz*\", /version]}\n",
        );
        let (scheduler, dev) = (
            Identity::authenticated("system:kube-scheduler", vec![]),
            Identity::authenticated("zoe", vec!["dev".to_owned()]),
        );
        let level = |user: Option<&Identity>, asked: &Asked| policy.judge(user, asked).level;
        assert_eq!(level(Some(&scheduler), &asked("get", of("pods"))), Level::None);
        let verdict = policy.judge(Some(&dev), &asked("get", of("pods")));
        assert_eq!((verdict.level, verdict.omits_managed_fields), (Level::Request, true));
        assert!(!verdict.tells(Stage::RequestReceived) && !verdict.tells(Stage::Panic), "both lists count");
        assert!(verdict.tells(Stage::ResponseComplete));
        let secret = |namespace: Option<&str>| {
            asked("get", ResourcePath { namespace: namespace.map(str::to_owned), ..of("secrets") })
        };
        assert_eq!(level(Some(&scheduler), &secret(Some("a"))), Level::None, "the first that matches");
        assert_eq!(level(None, &secret(Some("a"))), Level::RequestResponse);
        for namespace in [Some("b"), None] {
            assert_eq!(level(None, &secret(namespace)), Level::None, "{namespace:?}");
        }
        for (path, expected) in
            [("/healthz/ping", Level::Metadata), ("/version", Level::Metadata), ("/version/x", Level::None)]
        {
            let asked = Asked { verb: "get".into(), path: path.into(), resource: None };
            assert_eq!(level(None, &asked), expected, "{path}");
        }
    }

    #[test]
    fn resources_are_meant_with_their_subresources_only_when_they_say_so() {
        let with = |sub: Option<&str>, name: &str| ResourcePath {
            subresource: sub.map(str::to_owned),
            name: Some(name.to_owned()),
            ..of("pods")
        };
        let cases: [(&str, ResourcePath, bool); 9] = [
            ("{group: \"\"}", with(Some("log"), "a"), true),
            ("{group: \"\", resources: [pods]}", with(None, "a"), true),
            ("{group: \"\", resources: [pods]}", with(Some("log"), "a"), false),
            ("{group: \"\", resources: [pods/log]}", with(Some("log"), "a"), true),
            ("{group: \"\", resources: [\"pods/*\"]}", with(Some("log"), "a"), true),
            ("{group: \"\", resources: [\"*/log\"]}", with(Some("log"), "a"), true),
            ("{group: \"\", resources: [\"*\"]}", with(Some("log"), "a"), true),
            ("{group: \"\", resources: [pods], resourceNames: [b]}", with(None, "a"), false),
            ("{group: apps, resources: [pods]}", with(None, "a"), false),
        ];
        for (rule, path, expected) in cases {
            let policy = policy(&format!("rules:\n- {{level: Metadata, resources: [{rule}]}}\n"));
            let level = policy.judge(None, &asked("get", path.clone())).level;
            assert_eq!(level > Level::None, expected, "{rule} of {path:?}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused_with_its_place() {
        for (text, expected) in [
            ("rules: []", "rules: there must be one"),
            ("rules:\n- {level: Everything}", "unknown variant"),
            ("rules:\n- {level: None, user: [a]}", "unknown field `user`"),
            ("rules:\n- {level: None, nonResourceURLs: [/a], namespaces: [b]}", "rules[0].nonResourceURLs"),
            (
                "rules:\n- {level: None, nonResourceURLs: [a]}",
                "rules[0].nonResourceURLs[0]: non-resource URL rules must begin",
            ),
            ("rules:\n- {level: None, nonResourceURLs: [\"/a*b\"]}", "final character"),
            ("rules:\n- {level: None, nonResourceURLs: [\"\"]}", "must begin"),
            ("rules:\n- {level: None, resources: [{group: a/v1}]}", "no version"),
            ("rules:\n- {level: None, resources: [{resourceNames: [a]}]}", "at least one resource"),
        ] {
            let refused = Policy::parse(&format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{text}\n")).unwrap_err();
            assert!(refused.to_string().contains(expected), "{text}: {refused}");
        }
        assert!(Policy::parse("apiVersion: v1\nkind: Pod\nrules: [{level: None}]").is_err());
        assert!(Policy::parse("").is_err());
    }
}
