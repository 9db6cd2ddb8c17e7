//! What is written down of which requests (`audit.k8s.io/v1` Policy, kubernetes-api §24): the first rule that matches decides.

use serde::Deserialize;

/// How much is written down of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) enum Level {
    /// Nothing.
    None,
    /// Who asked for what, when, and how it ended.
    Metadata,
    /// What was sent, too.
    Request,
    /// And what was answered.
    RequestResponse,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Level::None => "None",
            Level::Metadata => "Metadata",
            Level::Request => "Request",
            Level::RequestResponse => "RequestResponse",
        }
    }
}

/// A moment of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Stage {
    /// It came.
    RequestReceived,
    /// An answer began that goes on, as a watch does.
    ResponseStarted,
    /// The answer was sent.
    ResponseComplete,
    /// The server failed over it.
    Panic,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Stage::RequestReceived => "RequestReceived",
            Stage::ResponseStarted => "ResponseStarted",
            Stage::ResponseComplete => "ResponseComplete",
            Stage::Panic => "Panic",
        }
    }
}

/// Resources of a group.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
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
    paths: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: Option<bool>,
}

/// A policy.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Policy {
    api_version: String,
    kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: serde_json::Value,
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

/// What a request asks for, as rules look at it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Asked<'a> {
    pub user: &'a str,
    pub groups: &'a [String],
    pub verb: &'a str,
    /// Of what is no resource.
    pub path: Option<&'a str>,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
}

/// What is to be written down of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub level: Level,
    pub omitted: Vec<Stage>,
    pub omit_managed_fields: bool,
}

fn covers(pattern: &str, path: &str) -> bool {
    pattern == "*" || pattern == path || pattern.strip_suffix('*').is_some_and(|start| path.starts_with(start))
}

impl GroupResources {
    fn matches(&self, asked: &Asked<'_>) -> bool {
        let whole = match asked.subresource {
            "" => asked.resource.to_owned(),
            part => format!("{}/{part}", asked.resource),
        };
        let names = |resource: &String| {
            resource == "*"
                || *resource == whole
                || resource.strip_suffix("/*").is_some_and(|of| of == asked.resource && !asked.subresource.is_empty())
                || resource.strip_prefix("*/").is_some_and(|part| !part.is_empty() && part == asked.subresource)
        };
        self.group == asked.group
            && (self.resources.is_empty() || self.resources.iter().any(names))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == asked.name))
    }
}

impl Rule {
    fn matches(&self, asked: &Asked<'_>) -> bool {
        let among = |list: &[String], wanted: &str| list.is_empty() || list.iter().any(|one| one == wanted);
        if !among(&self.users, asked.user) || !among(&self.verbs, asked.verb) {
            return false;
        }
        if !self.user_groups.is_empty() && !asked.groups.iter().any(|group| self.user_groups.contains(group)) {
            return false;
        }
        let of_resources = !self.resources.is_empty() || !self.namespaces.is_empty();
        match asked.path {
            Some(path) if !self.paths.is_empty() => self.paths.iter().any(|pattern| covers(pattern, path)),
            Some(_) => !of_resources,
            None if of_resources => {
                among(&self.namespaces, asked.namespace)
                    && (self.resources.is_empty() || self.resources.iter().any(|one| one.matches(asked)))
            }
            None => self.paths.is_empty(),
        }
    }
}

impl Policy {
    /// Reads a policy, YAML or JSON.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(text: &[u8]) -> Result<Policy, String> {
        let value = coracle_api::codec::yaml::to_json(text).map_err(|error| error.to_string())?;
        let policy: Policy = serde_json::from_slice(&value.bytes).map_err(|error| error.to_string())?;
        if (policy.api_version.as_str(), policy.kind.as_str()) != ("audit.k8s.io/v1", "Policy") {
            return Err(format!("it is {} {}, not audit.k8s.io/v1 Policy", policy.api_version, policy.kind));
        }
        if policy.rules.is_empty() {
            return Err("it has no rules".to_owned());
        }
        let mixed = |rule: &Rule| !rule.paths.is_empty() && (!rule.resources.is_empty() || !rule.namespaces.is_empty());
        if let Some(at) = policy.rules.iter().position(mixed) {
            return Err(format!("rules[{at}] is about resources and about other paths at once"));
        }
        Ok(policy)
    }

    /// What is to be written down of a request.
    pub fn plan(&self, asked: &Asked<'_>) -> Plan {
        let Some(rule) = self.rules.iter().find(|rule| rule.matches(asked)) else {
            return Plan { level: Level::None, omitted: Vec::new(), omit_managed_fields: false };
        };
        Plan {
            level: rule.level,
            omitted: [self.omit_stages.as_slice(), &rule.omit_stages].concat(),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- {level: None, users: ["system:kube-proxy"], verbs: [watch]}
- {level: None, userGroups: ["system:nodes"]}
- {level: None, nonResourceURLs: ["/healthz*", /version]}
- {level: Metadata, resources: [{group: "", resources: [secrets, "pods/*", "*/scale"]}], omitStages: [ResponseStarted]}
- {level: Request, namespaces: [kube-system], omitManagedFields: false}
- {level: RequestResponse, resources: [{group: apps}]}
- {level: Metadata}
"#;

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = Policy::read(POLICY.as_bytes()).expect("a policy");
        let level = |asked: Asked<'_>| policy.plan(&asked).level;
        let of = |group, resource, subresource| Asked { verb: "get", group, resource, subresource, ..Asked::default() };
        assert_eq!(level(Asked { user: "system:kube-proxy", verb: "watch", ..of("", "services", "") }), Level::None);
        assert_eq!(level(Asked { user: "system:kube-proxy", ..of("", "services", "") }), Level::Metadata);
        assert_eq!(level(Asked { groups: &["system:nodes".to_owned()], ..of("", "secrets", "") }), Level::None);
        for (path, expected) in [("/healthz/etcd", Level::None), ("/version", Level::None), ("/api", Level::Metadata)] {
            assert_eq!(level(Asked { path: Some(path), ..Asked::default() }), expected, "{path}");
        }
        let secrets = policy.plan(&of("", "secrets", ""));
        assert_eq!((secrets.level, secrets.omit_managed_fields), (Level::Metadata, true));
        assert_eq!(secrets.omitted, [Stage::RequestReceived, Stage::ResponseStarted]);
        assert_eq!(level(of("", "pods", "log")), Level::Metadata);
        let system = policy.plan(&Asked { namespace: "kube-system", ..of("apps", "deployments", "") });
        assert_eq!((system.level, system.omit_managed_fields), (Level::Request, false));
        assert_eq!(level(of("apps", "deployments", "status")), Level::RequestResponse);
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for wrong in [
            "",
            "rules: []",
            "apiVersion: v1\nkind: Policy\nrules: [{level: None}]",
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: []",
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Some}]",
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, nothing: 1}]",
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, namespaces: [a], nonResourceURLs: [/b]}]",
        ] {
            assert!(Policy::read(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
