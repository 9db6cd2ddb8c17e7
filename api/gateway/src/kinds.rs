//! The objects as they were written. Their definitions have checked them, so that what is odd here is an unknown value, or a definition
//! that is not Gateway API's own.

use std::cmp::Ordering;
use std::sync::{Arc, OnceLock};

use coracle_api::meta::selector::LabelSelector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::rule::{self, Matches};
use crate::{CONTROLLER, Key};

/// What is needed of an object's metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// Its namespace; a class has none.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its uid.
    pub uid: Arc<str>,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Its generation, which a condition says that it is about.
    pub generation: i64,
}

impl Meta {
    /// Of an object.
    pub fn of(metadata: &ObjectMeta) -> Meta {
        let text = |value: &Option<String>| Arc::<str>::from(value.as_deref().unwrap_or_default());
        Meta {
            namespace: text(&metadata.namespace),
            name: text(&metadata.name),
            uid: text(&metadata.uid),
            created: metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second()),
            generation: metadata.generation.unwrap_or_default(),
        }
    }

    /// Namespace and name.
    pub fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }

    /// Who goes first where two want the same: the older one, then by uid, which nobody chooses, and for those without one by name.
    pub(crate) fn age(&self) -> (i64, &str, &str, &str) {
        (self.created, &self.uid, &self.namespace, &self.name)
    }

    /// Which route goes first where two are for the same requests, as the descriptions of `HTTPRoute`'s `rules[].matches` and
    /// `GRPCRoute`'s `hostnames` demand: the older one, then by `NAMESPACE/NAME`, which is one text (`a-b/x` comes before `a/x`).
    pub fn precedence(&self, other: &Meta) -> Ordering {
        fn text(meta: &Meta) -> impl Iterator<Item = u8> {
            meta.namespace.bytes().chain([b'/']).chain(meta.name.bytes())
        }
        self.created.cmp(&other.created).then_with(|| text(self).cmp(text(other)))
    }
}

/// A GatewayClass.
#[derive(Debug, Clone, PartialEq)]
pub struct Class {
    /// Its metadata.
    pub meta: Meta,
    /// Whether nodes serve its Gateways.
    pub is_ours: bool,
    pub(crate) has_parameters: bool,
}

impl Class {
    /// Reads one.
    pub fn read(meta: Meta, spec: &Value) -> Class {
        let has_parameters = !spec["parametersRef"].is_null();
        Class { meta, is_ours: spec["controllerName"] == CONTROLLER, has_parameters }
    }
}

/// A Gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct Gateway {
    /// Its metadata.
    pub meta: Meta,
    pub(crate) spec: GatewaySpec,
}

impl Gateway {
    /// Reads one.
    pub fn read(meta: Meta, spec: &Value) -> Result<Gateway, serde_json::Error> {
        Ok(Gateway { meta, spec: GatewaySpec::deserialize(spec)? })
    }

    /// Whether labels of namespaces say whose routes it has.
    pub(crate) fn looks_at_labels(&self) -> bool {
        self.spec
            .listeners
            .iter()
            .any(|listener| listener.allowed_routes.namespaces.from.as_deref() == Some("Selector"))
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct GatewaySpec {
    pub gateway_class_name: String,
    pub listeners: Vec<Listener>,
    pub addresses: Vec<Address>,
    pub infrastructure: Infrastructure,
    /// What else is there, as certificates of clients (`tls`).
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// Fields that say something, of those that are not known.
pub(crate) fn first(others: &Map<String, Value>) -> Option<&str> {
    others.iter().find(|(_, value)| !value.is_null()).map(|(name, _)| name.as_str())
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Infrastructure {
    pub parameters_ref: Value,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Address {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub value: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Listener {
    pub name: String,
    pub hostname: Option<String>,
    pub port: u16,
    pub protocol: String,
    pub tls: Tls,
    pub allowed_routes: AllowedRoutes,
    /// What else is there, as later definitions have it.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Tls {
    pub mode: Option<String>,
    pub certificate_refs: Vec<Reference>,
    pub options: Map<String, Value>,
    /// What else is there, as certificates of clients (`frontendValidation` of older definitions).
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// A reference to an object, of another namespace perhaps.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Reference {
    pub group: Option<String>,
    pub kind: Option<String>,
    pub namespace: Option<String>,
    pub name: String,
    pub port: Option<u16>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct AllowedRoutes {
    pub namespaces: Namespaces,
    pub kinds: Vec<GroupKind>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Namespaces {
    pub from: Option<String>,
    /// What cannot be read selects nothing.
    #[serde(deserialize_with = "selector")]
    pub selector: LabelSelector,
}

impl Default for Namespaces {
    fn default() -> Namespaces {
        Namespaces { from: None, selector: LabelSelector::nothing() }
    }
}

/// Read once, and not for each route that may be attached by it.
fn selector<'de, D: Deserializer<'de>>(from: D) -> Result<LabelSelector, D::Error> {
    let object = Value::deserialize(from)?;
    Ok(LabelSelector::from_object(&object).unwrap_or_else(|_| LabelSelector::nothing()))
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct GroupKind {
    pub group: Option<String>,
    pub kind: String,
}

/// Kinds of routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteKind {
    /// HTTPRoute.
    Http,
    /// GRPCRoute.
    Grpc,
}

impl RouteKind {
    /// All that are served.
    pub const ALL: [RouteKind; 2] = [RouteKind::Http, RouteKind::Grpc];

    /// As the API has it.
    pub fn name(self) -> &'static str {
        match self {
            RouteKind::Http => "HTTPRoute",
            RouteKind::Grpc => "GRPCRoute",
        }
    }
}

/// A route.
#[derive(Debug, Clone)]
pub struct Route {
    /// Of which kind it is.
    pub kind: RouteKind,
    /// Its metadata.
    pub meta: Meta,
    pub(crate) spec: RouteSpec,
    /// Of its rules, read when they are served: their expressions are dear.
    matches: Arc<OnceLock<Vec<Matches>>>,
}

impl PartialEq for Route {
    fn eq(&self, other: &Route) -> bool {
        (self.kind, &self.meta, &self.spec) == (other.kind, &other.meta, &other.spec)
    }
}

impl Route {
    /// Reads one.
    pub fn read(kind: RouteKind, meta: Meta, spec: &Value) -> Result<Route, serde_json::Error> {
        Ok(Route { kind, meta, spec: RouteSpec::deserialize(spec)?, matches: Arc::default() })
    }

    /// Keeps what was read of the same object before, if it says the same.
    pub(crate) fn after(mut self, before: Option<&Route>) -> Route {
        if let Some(before) = before.filter(|before| before.spec.rules == self.spec.rules) {
            self.matches = before.matches.clone();
        }
        self
    }

    /// What its rules are for, in their order.
    pub(crate) fn matches(&self) -> &[Matches] {
        let read = |rule| rule::matches(self.kind, rule);
        self.matches.get_or_init(|| self.spec.rules.iter().map(read).collect())
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RouteSpec {
    /// As they were written: a status repeats them.
    pub parent_refs: Vec<Value>,
    pub hostnames: Vec<String>,
    /// Each is read by itself: one that is odd is no reason to lose the others.
    pub rules: Vec<Value>,
}

/// `spec.parentRefs[]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ParentRef {
    pub group: Option<String>,
    pub kind: Option<String>,
    pub namespace: Option<String>,
    pub name: String,
    pub section_name: Option<String>,
    pub port: Option<u16>,
}
