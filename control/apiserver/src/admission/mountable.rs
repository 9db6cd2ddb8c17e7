//! An account that says so keeps its pods to the secrets that it names (`enforce-mountable-secrets`, of the reference's plugin
//! `ServiceAccount`).

use coracle_api::meta;
use coracle_api::status::Status;
use serde_json::Value;

use super::{Attributes, is, pod};
use crate::store::Seen;

const ENFORCES: &str = "kubernetes.io/enforce-mountable-secrets";
/// What Go reads as true.
const TRUE: [&str; 6] = ["1", "t", "T", "true", "TRUE", "True"];
/// Lists of containers, and what one of each is called.
const MADE_WITH_PODS: &[(&str, &str)] = &[("initContainers", "init container"), ("containers", "container")];
const ADDED_TO_PODS: &[(&str, &str)] = &[("ephemeralContainers", "ephemeral container")];

/// What containers are given, nobody changes any more: a new pod's, and those that are added to one.
pub(super) async fn validate(at: &Attributes<'_>, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    let is_new = at.subresource.is_empty() && old.is_none();
    if !is(at.resource, "", "pods") || !is_new && at.subresource != "ephemeralcontainers" {
        return Ok(());
    }
    let name = text(&object["spec"]["serviceAccountName"]);
    let Some(accounts) = at.cluster.catalog.named("", "serviceaccounts").filter(|_| !name.is_empty()) else {
        return Ok(());
    };
    let Some(record) = at.cluster.store.find(accounts, &accounts.record_name(at.namespace, name)).await? else {
        return Err(pod::no_account(at, object, name));
    };
    // Most pods name no secret: their account is not read a second time.
    if beyond(&Value::Null, &object["spec"], is_new).is_none() {
        return Ok(());
    }
    let account = Seen::new(accounts, &record).stored()?;
    if !TRUE.contains(&text(&account["metadata"]["annotations"][ENFORCES])) {
        return Ok(());
    }
    match beyond(&account, &object["spec"], is_new) {
        Some(why) => Err(at.resource.forbidden(meta::name(object), why)),
        None => Ok(()),
    }
}

/// The first secret of a pod that its account does not name.
fn beyond(account: &Value, spec: &Value, is_new: bool) -> Option<String> {
    let volumes = items(&spec["volumes"]).iter().map(|volume| &volume["secret"]).filter(|secret| secret.is_object());
    let volumes = volumes.map(|secret| ("volume with ".to_owned(), text(&secret["secretName"])));
    let containers = if is_new { MADE_WITH_PODS } else { ADDED_TO_PODS }
        .iter()
        .flat_map(|(list, what)| items(&spec[*list]).iter().flat_map(move |container| environment(container, what)));
    let names = |list: &str, name: &str| items(&account[list]).iter().any(|named| text(&named["name"]) == name);
    let account = meta::name(account);
    let mut secrets = volumes.filter(|_| is_new).chain(containers).filter(|(_, name)| !names("secrets", name));
    if let Some((what, name)) = secrets.next() {
        return Some(format!(
            "{what}secret.secretName=\"{name}\" is not allowed because service account {account} does not reference that secret"
        ));
    }
    let pulled = items(&spec["imagePullSecrets"]).iter().map(|secret| text(&secret["name"])).enumerate();
    let (index, name) = pulled.filter(|_| is_new).find(|(_, name)| !names("imagePullSecrets", name))?;
    Some(format!(
        "imagePullSecrets[{index}].name=\"{name}\" is not allowed because service account {account} does not reference \
         that imagePullSecret"
    ))
}

/// The secrets in the environment of a container, and where each is.
fn environment<'a>(container: &'a Value, what: &'a str) -> impl Iterator<Item = (String, &'a str)> {
    let of = text(&container["name"]);
    let each = items(&container["env"]).iter().filter_map(move |variable| {
        let secret = variable["valueFrom"]["secretKeyRef"].as_object()?;
        let named = text(&variable["name"]);
        Some((format!("{what} {of} with envVar {named} referencing "), secret.get("name").map_or("", text)))
    });
    let whole = items(&container["envFrom"]).iter().filter_map(move |from| {
        let secret = from["secretRef"].as_object()?;
        Some((format!("{what} {of} with envFrom referencing "), secret.get("name").map_or("", text)))
    });
    each.chain(whole)
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_secret_that_is_not_named_is_told() {
        let account = json!({
            "metadata": {"name": "sa"}, "secrets": [{"name": "a"}], "imagePullSecrets": [{"name": "p"}],
        });
        let from = |key: &str, name: &str| json!([{"name": "E", "valueFrom": {key: {"name": name, "key": "k"}}}]);
        let not = "is not allowed because service account sa does not reference that";
        let volume = |name: &str| json!([{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": name}}]);
        for (spec, is_new, expected) in [
            (json!({"volumes": volume("a"), "imagePullSecrets": [{"name": "p"}]}), true, None),
            (
                json!({"volumes": volume("b"), "containers": [{"name": "c", "env": from("secretKeyRef", "b")}]}),
                true,
                Some(format!("volume with secret.secretName=\"b\" {not} secret")),
            ),
            (
                json!({"containers": [
                    {"name": "c", "env": from("configMapKeyRef", "b")},
                    {"name": "d", "env": from("secretKeyRef", "a"), "envFrom": [{"configMapRef": {"name": "b"}}, {"secretRef": {"name": "b"}}]},
                ]}),
                true,
                Some(format!("container d with envFrom referencing secret.secretName=\"b\" {not} secret")),
            ),
            (
                json!({"initContainers": [{"name": "i", "env": from("secretKeyRef", "b")}], "containers": [{"name": "c", "env": from("secretKeyRef", "b")}]}),
                true,
                Some(format!("init container i with envVar E referencing secret.secretName=\"b\" {not} secret")),
            ),
            (
                json!({"imagePullSecrets": [{"name": "p"}, {"name": "a"}]}),
                true,
                Some(format!("imagePullSecrets[1].name=\"a\" {not} imagePullSecret")),
            ),
            // Of a pod that is there, what is added to it.
            (
                json!({
                    "volumes": volume("b"),
                    "imagePullSecrets": [{"name": "b"}],
                    "ephemeralContainers": [{"name": "e", "env": from("secretKeyRef", "b")}],
                }),
                false,
                Some(format!("ephemeral container e with envVar E referencing secret.secretName=\"b\" {not} secret")),
            ),
            (json!({"volumes": volume("b"), "ephemeralContainers": [{"name": "e"}]}), false, None),
        ] {
            assert_eq!(beyond(&account, &spec, is_new), expected, "{spec}");
        }
    }
}
