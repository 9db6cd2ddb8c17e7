//! Acting as somebody else (`kubectl --as`, kubernetes-api §23.3).

use std::collections::BTreeMap;

use coracle_api::status::Status;
use http::HeaderMap;

use crate::authz::{self, Attributes};
use crate::identity::{ANONYMOUS, Identity, UNAUTHENTICATED};
use crate::request::query::decode;

const EXTRA: &str = "impersonate-extra-";

/// Whether a request names somebody else to act as.
pub(super) fn is_asked(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("impersonate-"))
}

/// Who the request is for: the caller, or whom the caller's headers name.
pub(super) fn apply(caller: &Identity, headers: &HeaderMap) -> Result<Identity, Status> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let (user, uid) = (text("impersonate-user"), text("impersonate-uid"));
    let groups: Vec<String> = headers
        .get_all("impersonate-group")
        .iter()
        .filter_map(|value| value.to_str().ok().map(str::to_owned))
        .collect();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix(EXTRA), value.to_str()) {
            extra.entry(decode(key, false)).or_default().push(value.to_owned());
        }
    }
    if user.is_empty() {
        if groups.is_empty() && uid.is_empty() && extra.is_empty() {
            return Ok(caller.clone());
        }
        let list: Vec<String> = groups.iter().map(|group| format!("{group:?}")).collect();
        return Err(Status::bad_request(format!(
            "requested &user.DefaultInfo{{Name:\"\", UID:{uid:?}, Groups:[]string{{{}}}, \
             Extra:map[string][]string(nil)}} without impersonating a user name",
            list.join(", ")
        )));
    }
    let asked = Attributes { verb: "impersonate", resource: "users", name: &user, ..Attributes::default() };
    if !authz::allows(caller, &asked) {
        return Err(authz::refusal(caller, &asked));
    }
    let mut identity = Identity::named(&user, groups);
    identity.uid = uid;
    identity.extra = extra;
    Ok(identity)
}

impl Identity {
    /// Somebody by name, with the groups that come with the name when none are given.
    pub(crate) fn named(user: &str, mut groups: Vec<String>) -> Identity {
        if user == ANONYMOUS {
            groups.push(UNAUTHENTICATED.to_owned());
            return Identity { groups, ..Identity::anonymous() };
        }
        let account = user.strip_prefix("system:serviceaccount:").and_then(|account| account.split_once(':'));
        if let (Some((namespace, _)), true) = (account, groups.is_empty()) {
            groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        }
        Identity::authenticated(user, groups)
    }
}
