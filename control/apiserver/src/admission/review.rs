//! A request as webhooks and policies are told of it: an AdmissionRequest (kubernetes-api §22.3), and its objects in the version
//! that is wanted.

use std::sync::Arc;

use coracle_api::custom::Definition;
use coracle_api::kinds;
use coracle_api::meta;
use coracle_api::schema::{self, Object};
use coracle_api::status::Status;
use serde_json::{Map, Value, json};

use super::matching::{GroupVersionKind, Operation, Subject, Versioned};
use super::scale::{Paths, scale_of, set};
use super::{Attributes, is};
use crate::catalog::Resource;
use crate::conversion;
use crate::hooks;
use crate::request::body::Expected;
use crate::request::call::Call;
use crate::request::codec;
use crate::request::options::{DeleteOptions, Propagation};
use crate::store::Seen;

/// Resources that are answers and no objects: whoever admitted them could lock everybody out.
const VIRTUAL: [&str; 2] = ["authentication.k8s.io", "authorization.k8s.io"];

/// What the objects of a request are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Objects of the resource.
    Whole,
    /// Scales of such.
    Scale,
    /// Something of the subresource's own (a Binding, options of a connection), in one version only.
    Own,
}

/// A request.
pub(crate) struct Review<'a> {
    pub at: &'a Attributes<'a>,
    pub operation: Operation,
    pub of: Versioned,
    pub name: String,
    pub dry_run: bool,
    options: Value,
    form: Form,
    /// The same objects in other groups and versions.
    equivalents: Vec<Versioned>,
    /// What is there of them, in the same order.
    resources: Vec<Arc<Resource>>,
}

/// The options of a create or an update, from the query.
fn write_options(call: &Call, kind: &str) -> Value {
    let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    for field in ["fieldManager", "fieldValidation"] {
        if let Some(text) = call.query.text(field) {
            options[field] = text.into();
        }
    }
    let dry_run: Vec<&str> = call.query.all("dryRun").collect();
    if !dry_run.is_empty() {
        options["dryRun"] = dry_run.into();
    }
    options
}

fn delete_options(options: &DeleteOptions) -> Value {
    let mut out = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
    if let Some(seconds) = options.grace {
        out["gracePeriodSeconds"] = seconds.into();
    }
    for (field, value) in [("uid", &options.uid), ("resourceVersion", &options.resource_version)] {
        if let Some(value) = value {
            out["preconditions"][field] = value.as_str().into();
        }
    }
    if let Some(orphan) = options.orphan_dependents {
        out["orphanDependents"] = orphan.into();
    }
    if let Some(policy) = options.propagation.map(Propagation::name) {
        out["propagationPolicy"] = policy.into();
    }
    if options.dry_run {
        out["dryRun"] = json!(["All"]);
    }
    out
}

/// Whether a request is admitted by webhooks and policies at all: they do not admit what configures them, nor what the server
/// does by its own hand.
pub(crate) fn is_reviewed(resource: &Resource) -> bool {
    let group = resource.row.group();
    group != hooks::GROUP && !VIRTUAL.contains(&group)
}

impl<'a> Review<'a> {
    /// Of a create or an update of what the attributes say.
    pub async fn of_write(at: &'a Attributes<'a>, operation: Operation, name: &str, dry_run: bool) -> Review<'a> {
        let kind = if operation == Operation::Create { "CreateOptions" } else { "UpdateOptions" };
        Review::new(at, operation, name, dry_run, write_options(at.call, kind)).await
    }

    pub async fn of_delete(at: &'a Attributes<'a>, name: &str, options: &DeleteOptions) -> Review<'a> {
        Review::new(at, Operation::Delete, name, options.dry_run, delete_options(options)).await
    }

    pub async fn of_connect(at: &'a Attributes<'a>, name: &str) -> Review<'a> {
        Review::new(at, Operation::Connect, name, false, Value::Null).await
    }

    async fn new(
        at: &'a Attributes<'a>,
        operation: Operation,
        name: &str,
        dry_run: bool,
        options: Value,
    ) -> Review<'a> {
        let row = &at.resource.row;
        let part = row.subresources().iter().find(|part| part.name == at.subresource);
        let form = match at.subresource {
            "" | "status" => Form::Whole,
            "scale" => Form::Scale,
            _ if part.is_some_and(|part| part.kind == row.kind()) => Form::Whole,
            _ => Form::Own,
        };
        let kind = |resource: &Resource| {
            let row = &resource.row;
            let (group, version, kind) = match (form, part) {
                (Form::Scale, _) => ("autoscaling", "v1", "Scale"),
                (Form::Own, Some(part)) if part.group.is_empty() => ("", "v1", part.kind),
                (Form::Own, Some(part)) => (part.group, part.version, part.kind),
                _ => (row.group(), row.version(), row.kind()),
            };
            GroupVersionKind { group: group.to_owned(), version: version.to_owned(), kind: kind.to_owned() }
        };
        let versioned = |resource: &Resource| Versioned {
            group: resource.row.group().to_owned(),
            version: resource.row.version().to_owned(),
            resource: resource.row.resource().to_owned(),
            kind: kind(resource),
        };
        let resources = if form == Form::Own { Vec::new() } else { equivalents(at).await };
        Review {
            of: versioned(at.resource),
            equivalents: resources.iter().map(|resource| versioned(resource)).collect(),
            name: name.to_owned(),
            at,
            operation,
            dry_run,
            options,
            form,
            resources,
        }
    }

    /// The namespace; that of a namespace is itself.
    pub fn namespace(&self) -> &str {
        if is(self.at.resource, "", "namespaces") { &self.name } else { self.at.namespace.unwrap_or_default() }
    }

    /// What rules and selectors are asked about. The objects may be of any version: their labels are the same in all.
    pub fn subject<'s>(&'s self, object: Option<&'s Value>, old: Option<&'s Value>) -> Subject<'s> {
        Subject {
            operation: self.operation,
            of: &self.of,
            equivalents: &self.equivalents,
            subresource: self.at.subresource,
            namespace: self.namespace(),
            name: &self.name,
            object,
            old,
        }
    }

    /// The labels of its namespace, as new as what was answered.
    pub async fn labels(&self) -> Result<Value, Status> {
        let name = self.namespace();
        if name.is_empty() {
            return Ok(Value::Null);
        }
        let cluster = self.at.cluster;
        let namespaces = cluster.catalog.named("", "namespaces").ok_or_else(Status::path_not_found)?;
        let found = cluster.store.find(namespaces, name).await?;
        let record = found.ok_or_else(|| Status::not_found("", "namespaces", name))?;
        let seen = Seen::new(namespaces, &record);
        let labels = seen.known_facts()?.labels().iter();
        Ok(labels.map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect::<Map<_, _>>().into())
    }

    /// What is known of the fields of its objects, as they are in a version.
    pub fn schema(&self, to: &Versioned) -> Option<Arc<Object>> {
        match self.form {
            Form::Whole => Some(self.resource(to).map_or(&self.at.resource.schema, |other| &other.schema).clone()),
            Form::Scale => schema::named("io.k8s.api.autoscaling.v1.Scale"),
            Form::Own => schema::of_kind(&to.kind.group, &to.kind.version, &to.kind.kind),
        }
    }

    fn resource(&self, to: &Versioned) -> Option<&Arc<Resource>> {
        let at = self.equivalents.iter().position(|known| known == to)?;
        self.resources.get(at)
    }

    /// An object of the write, as it is in a version.
    pub async fn shown(&self, object: &Value, to: &Versioned) -> Result<Value, Status> {
        match (self.form, self.resource(to)) {
            (Form::Own, _) => return Ok(object.clone()),
            (Form::Scale, _) => return Ok(scale_of(self.at.resource, object)),
            (Form::Whole, Some(other)) if other.custom.is_some() => {
                return conversion::to_version(self.at.cluster, other, object.clone()).await;
            }
            (Form::Whole, _) => {}
        }
        let resource: &Resource = self.resource(to).map_or(self.at.resource, |other| other);
        let mut object = object.clone();
        if resource.is_view {
            resource.row.strategy().from_storage(&mut object);
        }
        object["kind"] = resource.row.kind().into();
        object["apiVersion"] = resource.api_version.as_str().into();
        Ok(object)
    }

    /// Takes over what somebody made of what was shown: read as a body is. `into` is the object of the write.
    ///
    /// # Errors
    /// It is no such object.
    pub async fn take(&self, shown: Value, from: &Versioned, into: &mut Value) -> Result<(), Status> {
        let other = self.resource(from).cloned();
        let resource: &Resource = other.as_deref().unwrap_or(self.at.resource);
        let text = |field: &str| into[field].as_str().unwrap_or_default();
        let (api_version, kind) = match self.form {
            Form::Own => (text("apiVersion"), text("kind")),
            Form::Scale => ("autoscaling/v1", "Scale"),
            Form::Whole => (resource.api_version.as_str(), resource.row.kind()),
        };
        let Some(schema) = self.schema(from) else {
            // Of options of connections nothing is known, and nothing can be changed.
            let unknown = || Status::internal_error(format_args!("no object of kind {kind:?} can be changed"));
            return if shown == *into { Ok(()) } else { Err(unknown()) };
        };
        let mut object = codec::remade(&shown, &Expected { api_version, kind, schema: &schema })?;
        match self.form {
            Form::Own => *into = object,
            Form::Scale => {
                let replicas = object["spec"]["replicas"].as_i64().unwrap_or(0);
                set(into, &Paths::of(self.at.resource).spec, replicas.into());
            }
            Form::Whole => {
                // A version is of the write, not of what admission changes.
                let version = into["metadata"]["resourceVersion"].clone();
                if resource.custom.is_some() {
                    if let Some(own) = self.own().await {
                        object = conversion::to_version(self.at.cluster, &own, object).await?;
                    }
                } else {
                    resource.row.strategy().to_storage(&mut object);
                }
                self.at.resource.default(&mut object)?;
                match version {
                    Value::Null => drop(meta::metadata_mut(&mut object).remove("resourceVersion")),
                    version => drop(meta::metadata_mut(&mut object).insert("resourceVersion".to_owned(), version)),
                }
                *into = object;
            }
        }
        Ok(())
    }

    /// The resource of the write, to be converted to.
    async fn own(&self) -> Option<Arc<Resource>> {
        let row = &self.at.resource.row;
        self.at.cluster.served().await.find(row.group(), row.version(), row.resource()).await
    }

    /// The AdmissionRequest for whoever wants to see this version, without its id and without objects.
    pub fn request(&self, to: &Versioned) -> Value {
        let kind = |of: &Versioned| json!({"group": of.kind.group, "version": of.kind.version, "kind": of.kind.kind});
        let resource = |of: &Versioned| json!({"group": of.group, "version": of.version, "resource": of.resource});
        let caller = self.at.caller;
        let mut user = json!({"username": caller.user, "groups": caller.groups});
        if !caller.uid.is_empty() {
            user["uid"] = caller.uid.as_str().into();
        }
        if !caller.extra.is_empty() {
            user["extra"] = json!(caller.extra);
        }
        let mut request = json!({
            "kind": kind(to), "resource": resource(to),
            "requestKind": kind(&self.of), "requestResource": resource(&self.of),
            "operation": self.operation.name(), "userInfo": user, "dryRun": self.dry_run, "options": self.options,
        });
        let texts = [
            ("subResource", self.at.subresource),
            ("requestSubResource", self.at.subresource),
            ("name", self.name.as_str()),
            ("namespace", self.namespace()),
        ];
        for (field, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            request[field] = text.into();
        }
        request
    }

    /// 403 of the object.
    pub fn forbidden(&self, why: impl std::fmt::Display) -> Status {
        Status::forbidden(&self.of.group, &self.of.resource, &self.name, why)
    }
}

/// The same objects in other groups and versions.
async fn equivalents(at: &Attributes<'_>) -> Vec<Arc<Resource>> {
    let row = &at.resource.row;
    if let Some(custom) = row.custom() {
        let definition: &Definition = &custom.definition;
        let served = at.cluster.served().await;
        let mut found = Vec::new();
        for version in definition.versions.iter().filter(|version| version.served && version.name != row.version()) {
            found.extend(served.find(row.group(), &version.name, row.resource()).await);
        }
        return found;
    }
    let others = kinds::all().iter().filter(|other| other.collection == row.collection());
    let others = others.filter(|other| (other.group, other.version) != (row.group(), row.version()));
    others.filter_map(|other| at.cluster.catalog.get(other.group, other.version, other.resource).cloned()).collect()
}
