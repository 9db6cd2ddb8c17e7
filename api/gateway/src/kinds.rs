//! The objects as they were written. Their definitions have checked them, so that what is odd here is an unknown value, or a definition
//! that is not Gateway API's own.

use std::sync::{Arc, OnceLock};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
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

    /// Which route is asked first where two are for the same requests, as the description of `HTTPRoute`'s `rules[].matches` demands:
    /// the older one, then by name.
    pub fn precedence(&self) -> (i64, &str, &str) {
        (self.created, &self.namespace, &self.name)
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

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Namespaces {
    pub from: Option<String>,
    pub selector: Value,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct GroupKind {
    pub group: Option<String>,
    pub kind: String,
}

/// An HTTPRoute, or what is the same of a GRPCRoute: whom it refers to.
#[derive(Debug, Clone)]
pub struct HttpRoute {
    /// Its metadata.
    pub meta: Meta,
    pub(crate) spec: RouteSpec,
    /// Of its rules, read when they are served: their expressions are dear.
    matches: Arc<OnceLock<Vec<Matches>>>,
}

impl PartialEq for HttpRoute {
    fn eq(&self, other: &HttpRoute) -> bool {
        (&self.meta, &self.spec) == (&other.meta, &other.spec)
    }
}

impl HttpRoute {
    /// Reads one.
    pub fn read(meta: Meta, spec: &Value) -> Result<HttpRoute, serde_json::Error> {
        Ok(HttpRoute { meta, spec: RouteSpec::deserialize(spec)?, matches: Arc::default() })
    }

    /// Keeps what was read of the same object before, if it says the same.
    pub(crate) fn after(mut self, before: Option<&HttpRoute>) -> HttpRoute {
        if let Some(before) = before.filter(|before| before.spec.rules == self.spec.rules) {
            self.matches = before.matches.clone();
        }
        self
    }

    /// What its rules are for, in their order.
    pub(crate) fn matches(&self) -> &[Matches] {
        self.matches.get_or_init(|| self.spec.rules.iter().map(rule::matches).collect())
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
