//! Discovery: which groups, versions and resources there are, in the plain and in the aggregated form
//! (kubernetes-api §2). All documents are made once for what is served, and again when a definition changes that.

mod documents;
mod model;
mod priorities;

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use axum::response::Response;
use bytes::Bytes;
use coracle_api::status::Status;
use http::{HeaderValue, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::aggregation::{Configured, Heard};
use crate::answer::respond;
use crate::catalog::Served;
use crate::request::call::Call;
use crate::request::negotiate::{self, Form, Offer};
pub(crate) use model::{Entry, Group, Version};
pub(crate) use priorities::{OF_DEFINITIONS, SERVED};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A document and its hash.
struct Document {
    bytes: Bytes,
    etag: HeaderValue,
}

impl Document {
    fn new(value: &Value) -> Document {
        let bytes = Bytes::from(value.to_string());
        let mut etag = String::from("\"");
        for byte in Sha256::digest(&bytes) {
            etag.push_str(&format!("{byte:02X}"));
        }
        etag.push('"');
        let etag = HeaderValue::from_str(&etag).expect("hexadecimal digits and quotes are a header value");
        Document { bytes, etag }
    }
}

/// What is served, and the documents that say so.
pub(crate) struct Discovery {
    pub groups: Vec<Group>,
    aggregated_core: Document,
    aggregated_groups: Document,
}

/// The documents of what is served, made when it is first asked for.
#[derive(Default)]
pub(crate) struct DiscoveryOf(ArcSwapOption<Made>);

/// What was made, and of what.
struct Made {
    served: Arc<Served>,
    backends: Arc<Configured>,
    heard: Arc<Heard>,
    discovery: Arc<Discovery>,
}

impl DiscoveryOf {
    /// What is said of what is served here, and by other servers, of which this was heard.
    pub fn of(&self, served: &Arc<Served>, backends: &Arc<Configured>, heard: &Arc<Heard>) -> Arc<Discovery> {
        let is_same = |made: &Arc<Made>| {
            Arc::ptr_eq(&made.served, served)
                && Arc::ptr_eq(&made.backends, backends)
                && Arc::ptr_eq(&made.heard, heard)
        };
        if let Some(known) = self.0.load_full().filter(is_same) {
            return known.discovery.clone();
        }
        let discovery = Arc::new(Discovery::new(served, backends, heard));
        let (served, backends, heard) = (served.clone(), backends.clone(), heard.clone());
        self.0.store(Some(Arc::new(Made { served, backends, heard, discovery: discovery.clone() })));
        discovery
    }
}

impl Discovery {
    pub fn new(served: &Served, backends: &Configured, heard: &Heard) -> Discovery {
        let groups = model::groups_of(served, backends, heard);
        let aggregate = |chosen: &dyn Fn(&&Group) -> bool| {
            Document::new(&documents::aggregated(groups.iter().filter(|group| chosen(group))))
        };
        let (aggregated_core, aggregated_groups) =
            (aggregate(&|group| group.name.is_empty()), aggregate(&|group| !group.name.is_empty()));
        Discovery { groups, aggregated_core, aggregated_groups }
    }

    /// Whether there is a group of this name.
    pub fn has_group(&self, name: &str) -> bool {
        self.group(name).is_some()
    }

    /// The group of this name.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| *group.name == *name)
    }

    /// A version of a group.
    pub fn version(&self, group: &str, version: &str) -> Option<(&Group, &Version)> {
        let group = self.group(group)?;
        Some((group, group.versions.iter().find(|found| *found.version == *version)?))
    }
}

/// `/api`.
pub(crate) fn core(discovery: &Discovery, external_url: &str, call: &Call) -> Result<Response, Status> {
    let plain = || {
        let address = external_url.trim_start_matches("https://");
        json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
        })
    };
    answer(call, &discovery.aggregated_core, plain)
}

/// `/apis`.
pub(crate) fn groups(discovery: &Discovery, call: &Call) -> Result<Response, Status> {
    let groups = discovery.groups.iter().filter(|group| !group.name.is_empty());
    answer(call, &discovery.aggregated_groups, || {
        let groups: Vec<Value> = groups.map(|group| documents::group(group, false)).collect();
        json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
    })
}

/// `/apis/{group}`.
pub(crate) fn group(discovery: &Discovery, call: &Call, name: &str) -> Result<Response, Status> {
    let form = call.form(Offer::Plain)?;
    let found = discovery.group(name).filter(|_| !name.is_empty());
    match found {
        Some(group) => Ok(document(form, &documents::group(group, true))),
        None => Ok(respond::text(404, "404 page not found\n")),
    }
}

/// `/api/v1`, `/apis/{group}/{version}`.
pub(crate) fn resources(discovery: &Discovery, call: &Call, group: &str, version: &str) -> Result<Response, Status> {
    let form = call.form(Offer::Plain)?;
    match discovery.version(group, version) {
        Some((group, version)) => Ok(document(form, &documents::resources(group, version))),
        None if discovery.has_group(group) => Err(Status::path_not_found()),
        None => Ok(respond::text(404, "404 page not found\n")),
    }
}

/// A document of discovery, which is no object: it has no metadata.
fn document(form: Form, document: &Value) -> Response {
    match form.format {
        negotiate::Format::Protobuf => respond::value(form, 200, document),
        _ => respond::json_text(form, 200, document.to_string()),
    }
}

/// The aggregated document or the plain one, by the first clause of Accept that either can serve.
fn answer(call: &Call, aggregated: &Document, plain: impl FnOnce() -> Value) -> Result<Response, Status> {
    let accept = call.accept().unwrap_or_default();
    if !wants_aggregated(&accept) {
        let form = negotiate::choose(Some(&accept), Offer::Plain, false)?;
        let mut response = document(form, &plain());
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
        return Ok(response);
    }
    let same = call.header(header::IF_NONE_MATCH).is_some_and(|tag| tag.as_bytes() == aggregated.etag.as_bytes());
    let body = if same { Bytes::new() } else { aggregated.bytes.clone() };
    let mut response = respond::bytes(if same { 304 } else { 200 }, AGGREGATED, body);
    response.headers_mut().insert(header::ETAG, aggregated.etag.clone());
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

fn wants_aggregated(accept: &str) -> bool {
    for clause in accept.split(',') {
        let mut parts = clause.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let parameters: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
        let get = |key: &str| parameters.iter().find(|(k, _)| *k == key).map_or("", |(_, value)| *value);
        let json = matches!(kind, negotiate::JSON | "*/*" | "application/*");
        match (get("g"), get("v"), get("as")) {
            ("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList") if json => return true,
            ("", "", "") if json => return false,
            _ => {}
        }
    }
    false
}

/// `/`.
pub(crate) fn root(discovery: &Discovery, call: &Call) -> Response {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/apis/",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openapi/v3/",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .to_vec();
    for group in discovery.groups.iter().filter(|group| !group.name.is_empty()) {
        paths.push(format!("/apis/{}", group.name));
        paths.extend(group.versions.iter().map(|version| format!("/apis/{}/{}", group.name, version.version)));
    }
    paths.sort();
    respond::json_text(form(call), 200, json!({ "paths": paths }).to_string())
}

/// `/version`.
pub(crate) fn version(call: &Call) -> Response {
    let version = json!({
        "major": "1", "minor": "37", "emulationMajor": "1", "emulationMinor": "37",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "36",
        "gitVersion": concat!("v1.37.0+coracle.", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "2026-11-01T00:00:00Z",
        "goVersion": "none", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, architecture()),
    });
    respond::json_text(form(call), 200, version.to_string())
}

/// These documents are JSON for whoever asks.
fn form(call: &Call) -> Form {
    call.form(Offer::Plain).map_or(Form::JSON, |form| Form { format: negotiate::Format::Json, ..form })
}

/// The machine's architecture as Go calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_clause_decides_the_form() {
        for (accept, expected) in [
            ("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json", true),
            ("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList;profile=nopeer", true),
            ("application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json", false),
            ("application/json,application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", false),
            ("*/*", false),
            ("", false),
        ] {
            assert_eq!(wants_aggregated(accept), expected, "{accept}");
        }
    }
}
