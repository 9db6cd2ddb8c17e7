//! Acting as somebody else (`kubectl --as`, kubernetes-api §23.3).

use std::collections::BTreeMap;

use coracle_api::status::Status;
use http::{HeaderMap, HeaderValue};

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
        let account = user.strip_prefix("system:serviceaccount:").and_then(|account| account.split_once(':'));
        if let (Some((namespace, _)), true) = (account, groups.is_empty()) {
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
        let caller = Identity::authenticated("me", Vec::new());
        let ask = |name: &'static str, value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert("impersonate-user", HeaderValue::from_static("other"));
            headers.insert(name, HeaderValue::from_bytes(value).unwrap());
            apply(&caller, &headers).map(|identity| identity.user).map_err(|status| status.code())
        };
        for name in ["impersonate-user", "impersonate-uid", "impersonate-group", "impersonate-extra-a"] {
            assert_eq!(ask(name, b"\xff"), Err(400), "{name}");
        }
        assert_eq!(ask("impersonate-user", "zoë".as_bytes()).unwrap(), "zoë");
    }
}
