//! Authorization by roles (RBAC, kubernetes-api §19): a caller may do what a role says that is bound to it, and nothing else.

use std::collections::HashMap;

use coracle_api::meta;
use coracle_api::status::Status;
use serde_json::Value;

use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::identity::Identity;
use crate::roles::{Attributes, Binding, GROUP, KINDS, Role, Rule};

/// Whether a role that is bound to `identity` says that it may.
pub(super) fn allows(cluster: &Cluster, identity: &Identity, asked: &Attributes<'_>) -> bool {
    cluster.roles().allows(identity, asked)
}

/// Which binding has it that `identity` may, in the reference's words; `None` for who may everything without one.
pub(crate) fn reason(cluster: &Cluster, identity: &Identity, asked: &Attributes<'_>) -> Option<String> {
    if super::is_master(identity) { None } else { cluster.roles().reason(identity, asked) }
}

/// Most bytes of rules that a review tells, about: more than anybody reads, and little to make.
const TOLD_BYTES_MAX: usize = 1 << 20;

/// What holds for `identity` in `namespace`.
pub(crate) struct Told {
    pub resources: Vec<Value>,
    pub paths: Vec<Value>,
    /// More holds than is told.
    pub incomplete: bool,
}

/// What holds for `identity` in `namespace`, as rules about resources and rules about paths.
pub(crate) fn rules(cluster: &Cluster, identity: &Identity, namespace: &str) -> Told {
    let index = cluster.roles();
    let mut told = Told { resources: Vec::new(), paths: Vec::new(), incomplete: false };
    let mut left = TOLD_BYTES_MAX;
    for rule in index.rules(identity, namespace) {
        let Some(rest) = left.checked_sub(rule.bytes()) else {
            told.incomplete = true;
            break;
        };
        left = rest;
        let list = if rule.non_resource_urls.is_empty() { &mut told.resources } else { &mut told.paths };
        list.push(rule.json());
    }
    told
}

/// What of a role or binding others may rely on: its labels, too, by which roles are made parts of others. The rest is for
/// those who collect garbage.
fn meaning(object: &Value) -> Value {
    let mut meaning = object.clone();
    let metadata = meta::metadata_mut(&mut meaning);
    for field in ["finalizers", "ownerReferences", "managedFields", "resourceVersion"] {
        metadata.remove(field);
    }
    meaning
}

fn is_aggregated(role: &Value) -> bool {
    role["aggregationRule"]["clusterRoleSelectors"].as_array().is_some_and(|selectors| !selectors.is_empty())
}

/// Most texts that are looked at to find out whether somebody has what a role grants, all its rules together: some tenths of a
/// second, and ten times what the largest roles of a usual cluster need.
const COMPARED_MAX: usize = 10_000_000;
/// Most bytes of rules that a refusal shows.
const SHOWN_BYTES_MAX: usize = 4 << 10;

/// Nobody gives more than it has: a role whose rules the caller does not have itself is written by who may `escalate`, and
/// bound by who may `bind` it.
pub(crate) fn grants(
    cluster: &Cluster,
    caller: &Identity,
    at: (&Resource, Option<&str>),
    object: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let (resource, namespace) = (at.0, at.1.unwrap_or_default());
    let kind = resource.row.resource();
    if resource.row.group() != GROUP || !KINDS.contains(&kind) || super::is_master(caller) {
        return Ok(());
    }
    let is_binding = kind.ends_with("bindings");
    if old.is_some_and(|old| meaning(old) == meaning(object)) {
        return Ok(());
    }
    let unread = |error: serde_json::Error| Status::bad_request(format!("what it grants cannot be read: {error}"));
    let index = cluster.roles();
    let own_name = object["metadata"]["name"].as_str().unwrap_or_default();
    let own = |asked: &Attributes<'_>| index.allows(caller, asked);
    let may = |verb, resource, name| {
        own(&Attributes { verb, group: GROUP, resource, namespace, name, ..Attributes::default() })
    };
    let given: Vec<Rule> = if is_binding {
        let binding = Binding::read(object, namespace).map_err(unread)?;
        let (of, name, role) = binding.role();
        if may("bind", of, name) {
            return Ok(());
        }
        if !index.knows(&role) {
            return Err(Status::not_found(GROUP, kind, name));
        }
        index.of_role(&role).cloned().collect()
    } else {
        if may("escalate", kind, own_name) {
            return Ok(());
        }
        let mut rules = Role::read(object).map_err(unread)?.rules;
        // What an aggregated role will say is not known yet, nor is what one said that is one no more: it counts as everything.
        if [Some(object), old].into_iter().flatten().any(is_aggregated) {
            rules.extend(Rule::all());
        }
        rules
    };
    let held: Vec<&Rule> = index.rules(caller, namespace).collect();
    let mut left = COMPARED_MAX;
    let mut is_held = |asked: &Attributes<'_>| {
        left > 0
            && held.iter().any(|rule| {
                left = left.saturating_sub(rule.texts());
                rule.allows(asked)
            })
    };
    // What is missing: of each resource what may not be done with it, of each path each verb alone.
    let mut things: HashMap<(String, &str), Vec<&str>> = HashMap::new();
    let mut bytes = 0;
    for asked in given.iter().flat_map(|rule| rule.permissions(namespace)) {
        if bytes >= SHOWN_BYTES_MAX {
            break;
        }
        if is_held(&asked) {
            continue;
        }
        let alone = if asked.path.is_some() { asked.verb } else { "" };
        let verbs = things.entry((thing(&asked), alone)).or_default();
        if !verbs.contains(&asked.verb) {
            bytes += asked.verb.len() + asked.resource.len() + asked.path.unwrap_or_default().len();
            verbs.push(asked.verb);
        }
        // What is said again ends, too.
        bytes += 1;
    }
    if things.is_empty() {
        return Ok(());
    }
    let mut told: Vec<String> =
        things.iter().map(|((thing, _), verbs)| format!("\n{{{thing}, Verbs:{}}}", list(verbs))).collect();
    told.sort_unstable();
    let mut missing = told.concat();
    if missing.len() > SHOWN_BYTES_MAX {
        missing.truncate(missing.floor_char_boundary(SHOWN_BYTES_MAX));
        missing.push('…');
    }
    if left == 0 {
        let verb = if is_binding { "bind" } else { "escalate" };
        missing
            .push_str("\nit is too much to be compared with what is held: make it of smaller roles, or have somebody ");
        missing.push_str(&format!("do it who may `{verb}`"));
    }
    let message = format!(
        "user {} (groups={}) is attempting to grant RBAC permissions not currently held:{missing}",
        meta::text::quote(&caller.user),
        list(&caller.groups),
    );
    Err(resource.forbidden(own_name, message))
}

/// Texts as Go prints them: `["a" "b"]`.
fn list<T: AsRef<str>>(texts: &[T]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| meta::text::quote(text.as_ref()).to_string()).collect();
    format!("[{}]", texts.join(" "))
}

/// What is asked for, but for the verb, in the reference's words (`CompactString`).
fn thing(asked: &Attributes<'_>) -> String {
    if let Some(path) = asked.path {
        return format!("NonResourceURLs:{}", list(&[path]));
    }
    let resource = match asked.subresource {
        "" => asked.resource.to_owned(),
        part => format!("{}/{part}", asked.resource),
    };
    let names = if asked.name.is_empty() { String::new() } else { format!(", ResourceNames:{}", list(&[asked.name])) };
    format!("APIGroups:{}, Resources:{}{names}", list(&[asked.group]), list(&[resource]))
}
