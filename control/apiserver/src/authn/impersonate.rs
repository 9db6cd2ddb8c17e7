//! Acting as somebody else (`kubectl --as`, kubernetes-api §23.3).

use std::collections::BTreeMap;

use coracle_api::meta::names;
use coracle_api::status::Status;
use http::{HeaderMap, HeaderValue};

use crate::authz::{self, Attributes};
use crate::cluster::Cluster;
use crate::identity::{ANONYMOUS, Identity, UNAUTHENTICATED};
use crate::request::query::decode;

const EXTRA: &str = "impersonate-extra-";

/// Whether a request names somebody else to act as.
pub(super) fn is_asked(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("impersonate-"))
}

/// Who the request is for: the caller, or whom the caller's headers name.
pub(super) fn apply(cluster: &Cluster, caller: &Identity, headers: &HeaderMap) -> Result<Identity, Status> {
    let Some(claim) = claim(headers)? else { return Ok(caller.clone()) };
    // Each part of what is claimed is asked for: a group may be worth more than the user.
    let may = |asked: Attributes<'_>| authz::check(cluster, caller, &Attributes { verb: "impersonate", ..asked });
    match account(&claim.user) {
        Some((namespace, name)) => {
            may(Attributes { resource: "serviceaccounts", namespace, name, ..Attributes::default() })?;
        }
        None => may(Attributes { resource: "users", name: &claim.user, ..Attributes::default() })?,
    }
    for group in &claim.groups {
        may(Attributes { resource: "groups", name: group, ..Attributes::default() })?;
    }
    let group = "authentication.k8s.io";
    if !claim.uid.is_empty() {
        may(Attributes { group, resource: "uids", name: &claim.uid, ..Attributes::default() })?;
    }
    for (key, values) in &claim.extra {
        for name in values {
            may(Attributes { group, resource: "userextras", subresource: key, name, ..Attributes::default() })?;
        }
    }
    let mut identity = Identity::named(&claim.user, claim.groups);
    identity.uid = claim.uid;
    identity.extra = claim.extra;
    Ok(identity)
}

/// The namespace and the name of the account whose user this is: what no account can be called is a user like others.
fn account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (names::dns_label(namespace).is_empty() && names::dns_subdomain(name).is_empty()).then_some((namespace, name))
}

/// As whom a request wants to act; the groups are those that it names.
fn claim(headers: &HeaderMap) -> Result<Option<Identity>, Status> {
    let text = |name: &str| headers.get(name).map_or(Ok(String::new()), |value| read(name, value));
    let (user, uid) = (text("impersonate-user")?, text("impersonate-uid")?);
    let groups = headers.get_all("impersonate-group").iter().map(|value| read("impersonate-group", value));
    let groups: Vec<String> = groups.collect::<Result<_, _>>()?;
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            extra.entry(decode(key, false)).or_default().push(read(name.as_str(), value)?);
        }
    }
    if user.is_empty() {
        if groups.is_empty() && uid.is_empty() && extra.is_empty() {
            return Ok(None);
        }
        let list: Vec<String> = groups.iter().map(|group| format!("{group:?}")).collect();
        return Err(Status::bad_request(format!(
            "requested &user.DefaultInfo{{Name:\"\", UID:{uid:?}, Groups:[]string{{{}}}, \
             Extra:map[string][]string(nil)}} without impersonating a user name",
            list.join(", ")
        )));
    }
    Ok(Some(Identity { user, groups, uid, extra }))
}

/// A header as text. One that is no text is a fault: taken for none, the caller would act as itself.
fn read(name: &str, value: &HeaderValue) -> Result<String, Status> {
    let text = std::str::from_utf8(value.as_bytes());
    text.map(str::to_owned).map_err(|_| Status::bad_request(format!("the header {name} is no UTF-8")))
}

impl Identity {
    /// Somebody by name, with the groups that come with the name when none are given.
    pub(crate) fn named(user: &str, mut groups: Vec<String>) -> Identity {
        if user == ANONYMOUS {
            groups.push(UNAUTHENTICATED.to_owned());
            return Identity { groups, ..Identity::anonymous() };
        }
        if let (Some((namespace, _)), true) = (account(user), groups.is_empty()) {
            groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        }
        Identity::authenticated(user, groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_cannot_be_read_is_not_taken_for_none() {
        let ask = |name: &'static str, value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert("impersonate-user", HeaderValue::from_static("other"));
            headers.insert(name, HeaderValue::from_bytes(value).unwrap());
            claim(&headers).map(|claim| claim.unwrap().user).map_err(|status| status.code())
        };
        for name in ["impersonate-user", "impersonate-uid", "impersonate-group", "impersonate-extra-a"] {
            assert_eq!(ask(name, b"\xff"), Err(400), "{name}");
        }
        assert_eq!(ask("impersonate-user", "zoë".as_bytes()).unwrap(), "zoë");
    }

    #[test]
    fn only_a_name_that_an_account_can_have_is_one() {
        assert_eq!(account("system:serviceaccount:a:b.c"), Some(("a", "b.c")));
        for user in ["a:b", "system:serviceaccount:a", "system:serviceaccount:a:", "system:serviceaccount::b"] {
            assert_eq!(account(user), None, "{user}");
        }
        for name in ["x:y", "A B", "../b:default"] {
            assert_eq!(account(&format!("system:serviceaccount:a:{name}")), None, "{name}");
        }
    }
}
