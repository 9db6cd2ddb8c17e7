//! What a path means (kubernetes-api §1.2).

use http::Method;

use super::query::{Query, decode, encode};

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/`.
    Root,
    /// `/healthz`, `/livez`, `/readyz` and the checks below them.
    Health(String, Option<String>),
    Version,
    Metrics,
    /// `/api`.
    CoreVersions,
    /// `/apis`.
    Groups,
    /// `/apis/{group}`.
    Group(String),
    /// `/api/v1`, `/apis/{group}/{version}`.
    Resources(String, String),
    OpenApiV2,
    /// `/openapi/v3` and the documents below it.
    OpenApiV3(String),
    IssuerConfiguration,
    IssuerKeys,
    /// The scheduler's batch door.
    Bindings,
    /// What nodes see of requests: `/coracle/v1/tap`, `/coracle/v1/routes`.
    Mesh,
    Resource(ResourcePath),
    Unknown,
}

/// A path of a resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ResourcePath {
    pub group: String,
    pub version: String,
    pub namespace: Option<String>,
    pub resource: String,
    pub name: Option<String>,
    pub subresource: Option<String>,
    /// What follows the subresource, as it was sent, with its leading slash; only proxies have it.
    pub rest: String,
    /// By the old path `/watch/…`.
    pub watch: bool,
}

impl ResourcePath {
    /// Whether what is asked for goes on for as long as the client likes.
    pub fn is_long(&self) -> bool {
        matches!(self.subresource.as_deref(), Some("attach" | "exec" | "portforward" | "log" | "proxy"))
    }

    /// The path below `/apis` for a server that reads it for itself: whoever takes it apart finds this and nothing else.
    ///
    /// `None` where that cannot be promised: of segments that are empty, climb (`.`, `..`) or hold a slash, also where they were
    /// percent-encoded, and of those that only become words of the path (`namespaces`, `watch`) when they are decoded.
    pub fn written(&self) -> Option<String> {
        let place = self.namespace.iter().flat_map(|namespace| ["namespaces", namespace]);
        let named = self.name.iter().chain(&self.subresource).map(String::as_str);
        let rest = self.rest.strip_suffix('/').unwrap_or(&self.rest);
        let rest: Vec<String> = rest.split('/').skip(1).map(|segment| decode(segment, false)).collect();
        let segments = place.chain([self.resource.as_str()]).chain(named).chain(rest.iter().map(String::as_str));
        let mut path = format!("/apis/{}/{}{}", self.group, self.version, if self.watch { "/watch" } else { "" });
        for segment in segments {
            if matches!(segment, "" | "." | "..") || segment.contains('/') {
                return None;
            }
            path.push('/');
            path.push_str(&encode(segment));
        }
        if self.rest.ends_with('/') {
            path.push('/');
        }
        let without_rest = |found: &ResourcePath| ResourcePath { rest: String::new(), ..found.clone() };
        let is_same = |route| matches!(route, Route::Resource(found) if without_rest(&found) == without_rest(self));
        is_same(Route::parse(&path)).then_some(path)
    }
}

/// What a request does with a resource. Methods that mean nothing here have no verb.
pub(crate) fn verb(method: &Method, target: &ResourcePath, query: &Query) -> &'static str {
    let named = target.name.is_some();
    match method.as_str() {
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" if named => "delete",
        "DELETE" => "deletecollection",
        "GET" | "HEAD" if target.watch => "watch",
        "GET" | "HEAD" if named => "get",
        "GET" | "HEAD" if query.flag("watch") == Some(true) => "watch",
        "GET" | "HEAD" => "list",
        _ => "",
    }
}

impl Route {
    pub fn parse(path: &str) -> Route {
        let trimmed = path.strip_suffix('/').unwrap_or(path);
        let segments: Vec<&str> = trimmed.split('/').skip(1).collect();
        match segments.as_slice() {
            [] => Route::Root,
            [which @ ("healthz" | "livez" | "readyz")] => Route::Health((*which).to_owned(), None),
            [which @ ("healthz" | "livez" | "readyz"), check @ ..] => {
                Route::Health((*which).to_owned(), Some(check.join("/")))
            }
            ["version"] => Route::Version,
            ["metrics"] => Route::Metrics,
            ["openapi", "v2"] => Route::OpenApiV2,
            ["openapi", "v3", rest @ ..] => Route::OpenApiV3(rest.join("/")),
            [".well-known", "openid-configuration"] => Route::IssuerConfiguration,
            ["openid", "v1", "jwks"] => Route::IssuerKeys,
            ["coracle", "v1", "bindings"] => Route::Bindings,
            ["coracle", "v1", "tap" | "routes"] => Route::Mesh,
            ["api"] => Route::CoreVersions,
            ["apis"] => Route::Groups,
            ["apis", group] => Route::Group((*group).to_owned()),
            ["api", version] => Route::Resources(String::new(), (*version).to_owned()),
            ["apis", group, version] => Route::Resources((*group).to_owned(), (*version).to_owned()),
            ["api", version, rest @ ..] => resource("", version, rest, path),
            ["apis", group, version, rest @ ..] => resource(group, version, rest, path),
            _ => Route::Unknown,
        }
    }
}

fn resource(group: &str, version: &str, segments: &[&str], path: &str) -> Route {
    let (watch, segments) = match segments {
        ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
        all => (false, all),
    };
    let text = |segment: &&str| decode(segment, false);
    let mut found = ResourcePath { group: group.to_owned(), version: version.to_owned(), watch, ..Default::default() };
    let tail: &[&str] = match segments {
        ["namespaces", name, sub @ ("status" | "finalize")] if group.is_empty() => {
            found.resource = "namespaces".to_owned();
            found.name = Some(text(name));
            found.subresource = Some((*sub).to_owned());
            &[]
        }
        // Of no namespace in particular: so clients ask that were given an empty one.
        ["namespaces", "", resource] => {
            found.resource = text(resource);
            &[]
        }
        ["namespaces", namespace, resource, rest @ ..] => {
            found.namespace = Some(text(namespace));
            found.resource = text(resource);
            rest
        }
        [resource, rest @ ..] => {
            found.resource = text(resource);
            rest
        }
        [] => return Route::Unknown,
    };
    match tail {
        [] => {}
        [name] => found.name = Some(text(name)),
        [name, subresource] => {
            found.name = Some(text(name));
            found.subresource = Some(text(subresource));
            if *subresource == "proxy" && path.ends_with('/') {
                found.rest = "/".to_owned();
            }
        }
        [name, "proxy", rest @ ..] => {
            found.name = Some(text(name));
            found.subresource = Some("proxy".to_owned());
            found.rest = format!("/{}{}", rest.join("/"), if path.ends_with('/') { "/" } else { "" });
        }
        _ => return Route::Unknown,
    }
    if found.resource.is_empty() || found.name.as_deref() == Some("") || found.namespace.as_deref() == Some("") {
        return Route::Unknown;
    }
    Route::Resource(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A resource path as `group|version|namespace|resource|name|subresource|rest|watch`.
    fn show(path: &str) -> String {
        let Route::Resource(r) = Route::parse(path) else { return format!("{:?}", Route::parse(path)) };
        let maybe = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        format!(
            "{}|{}|{}|{}|{}|{}|{}|{}",
            r.group,
            r.version,
            maybe(r.namespace),
            r.resource,
            maybe(r.name),
            maybe(r.subresource),
            r.rest,
            r.watch
        )
    }

    #[test]
    fn paths_mean_what_kubernetes_means() {
        for (path, expected) in [
            ("/api/v1/pods", "|v1|-|pods|-|-||false"),
            ("/api/v1/namespaces/a/pods/b/log", "|v1|a|pods|b|log||false"),
            ("/api/v1/namespaces", "|v1|-|namespaces|-|-||false"),
            ("/api/v1/namespaces//pods", "|v1|-|pods|-|-||false"),
            ("/api/v1/watch/namespaces//pods/", "|v1|-|pods|-|-||true"),
            ("/api/v1/namespaces//pods/a", "Unknown"),
            ("/api/v1/namespaces//", "Unknown"),
            ("/api/v1/namespaces/a", "|v1|-|namespaces|a|-||false"),
            ("/api/v1/namespaces/a/finalize", "|v1|-|namespaces|a|finalize||false"),
            ("/apis/apps/v1/namespaces/a/deployments/b/scale", "apps|v1|a|deployments|b|scale||false"),
            ("/api/v1/watch/namespaces/a/configmaps/b", "|v1|a|configmaps|b|-||true"),
            ("/api/v1/namespaces/a/pods/https:b:8/proxy/x%20y/z/", "|v1|a|pods|https:b:8|proxy|/x%20y/z/|false"),
            ("/api/v1/nodes/n/proxy", "|v1|-|nodes|n|proxy||false"),
            ("/api/v1/nodes/n/proxy/", "|v1|-|nodes|n|proxy|/|false"),
            ("/api/", "CoreVersions"),
            ("/apis/apps/v1/", "Resources(\"apps\", \"v1\")"),
            ("/readyz/etcd", "Health(\"readyz\", Some(\"etcd\"))"),
            ("/api/v1/namespaces/a/pods/b/log/c", "Unknown"),
            ("/foo", "Unknown"),
        ] {
            assert_eq!(show(path), expected, "{path}");
        }
    }

    #[test]
    fn what_is_written_for_others_is_what_was_understood() {
        let written = |path: &str| match Route::parse(&format!("/apis/e.com/v1/{path}")) {
            Route::Resource(found) => found.written(),
            _ => None,
        };
        for (path, expected) in [
            ("things", "things"),
            ("things/", "things"),
            ("namespaces/a/things/b/scale", "namespaces/a/things/b/scale"),
            ("namespaces/a", "namespaces/a"),
            ("watch/namespaces/a/things", "watch/namespaces/a/things"),
            ("things/system:a%20b%3f%25", "things/system:a%20b%3F%25"),
            ("th%69ngs", "things"),
            ("namespaces//things", "things"),
            ("things/b/proxy/", "things/b/proxy/"),
            ("things/b/proxy/x%20y/z/", "things/b/proxy/x%20y/z/"),
        ] {
            assert_eq!(written(path), Some(format!("/apis/e.com/v1/{expected}")), "{path}");
        }
        for path in [
            "/things",
            "namespaces//things/b",
            "things//",
            "things/b//",
            "things/b%2Fscale",
            "things/..",
            "things/%2e%2E/x",
            "things/.",
            "things/b/scale/x",
            "things/b/proxy/../../x",
            "things/b/proxy/%2e%2e/x",
            "things/b/proxy/x%2f..",
            "things/b/proxy//x",
            "%6eamespaces/a/secrets",
            "%77atch/things",
            "a/b/c/d",
        ] {
            assert_eq!(written(path), None, "{path}");
        }
    }
}
