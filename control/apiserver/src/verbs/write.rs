//! What every write does to an object between decoding and storing.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use axum::response::Response;
use coracle_api::kinds::FieldErrors;
use coracle_api::meta::{self, time};
use coracle_api::schema;
use coracle_api::status::Status;
use coracle_keyspace::{Op, Record};
use jiff::Timestamp;
use serde_json::Value;

use super::ownership;
use crate::admission;
use crate::answer::respond;
use crate::answer::table::Include;
use crate::authz;
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::conversion;
use crate::identity::new_uuid;
use crate::request::call::Call;
use crate::request::negotiate::{Form, Format, Offer, Shape};
use crate::request::options::{Admitted, WriteOptions};
use crate::store::{Seen, Store, object};

/// A write under way.
pub(crate) struct Write<'a> {
    pub cluster: &'a Cluster,
    pub call: &'a Call,
    pub resource: &'a Arc<Resource>,
    pub options: &'a WriteOptions,
    /// Empty for the object itself.
    pub subresource: &'a str,
}

impl Write<'_> {
    /// A change that makes its object is a creation, too, and asks for the right to it.
    pub fn may_create(&self) -> Result<(), Status> {
        authz::check(self.cluster, &self.call.identity, &authz::Attributes::of(self.call, "create"))
    }
}

/// What a write left.
pub(crate) enum Written {
    /// This record, written now or found to be the same.
    Record(Arc<Record>),
    /// Nothing: it was a dry run, or the object is gone. This is what the object would be or last was, as stored.
    Value(Value),
}

impl Written {
    /// The answer of a write to the object itself.
    pub async fn respond(
        self,
        cluster: &Cluster,
        form: Form,
        code: u16,
        resource: &Arc<Resource>,
        include: Include,
    ) -> Result<Response, Status> {
        match self {
            Written::Record(record) => {
                let record = conversion::one(cluster, resource, &record).await?;
                respond::record(form, code, &Seen::new(resource, &record), include)
            }
            Written::Value(mut value) => {
                resource.row.strategy().from_storage(&mut value);
                respond::object(form, code, resource, &value, include)
            }
        }
    }

    /// The object as it is stored; a custom resource in this version.
    pub async fn into_value(self, cluster: &Cluster, resource: &Arc<Resource>) -> Result<Value, Status> {
        match self {
            Written::Record(record) => {
                let record = conversion::one(cluster, resource, &record).await?;
                Seen::new(resource, &record).stored()
            }
            Written::Value(value) => Ok(value),
        }
    }
}

impl Write<'_> {
    /// What admission is told of it.
    pub fn attributes(&self) -> admission::Attributes<'_> {
        admission::Attributes {
            cluster: self.cluster,
            resource: self.resource,
            caller: &self.call.identity,
            call: self.call,
            spent: &self.call.spent,
            is_here: self.call.is_here,
            namespace: self.call.namespace(),
            subresource: self.subresource,
            is_admitted: self.options.own || matches!(self.options.admitted, Admitted::As(_)),
        }
    }

    /// The namespace of the object is the path's; another one in the body is an error.
    pub fn take_place(&self, object: &mut Value) -> Result<(), Status> {
        let metadata = meta::metadata_mut(object);
        let given = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
        match self.call.namespace().filter(|_| self.resource.row.namespaced()) {
            Some(namespace) if given.is_empty() => {
                metadata.insert("namespace".to_owned(), namespace.into());
            }
            Some(_) => return self.call.check_namespace(object),
            None => drop(metadata.remove("namespace")),
        }
        Ok(())
    }

    /// Takes from a new object what clients cannot say of it.
    pub fn wipe_metadata(&self, object: &mut Value) {
        let metadata = meta::metadata_mut(object);
        for field in [
            "resourceVersion",
            "selfLink",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "uid",
            "creationTimestamp",
        ] {
            metadata.remove(field);
        }
    }

    /// Makes the metadata of a new object the server's own. Who admits it knows nothing of that yet.
    fn new_metadata(&self, object: &mut Value) {
        self.wipe_metadata(object);
        let metadata = meta::metadata_mut(object);
        metadata.insert("uid".to_owned(), new_uuid().into());
        metadata.insert("creationTimestamp".to_owned(), time::format(Timestamp::now()).into());
        if self.resource.row.strategy().has_generation() {
            metadata.insert("generation".to_owned(), 1.into());
        }
    }

    /// Takes from the stored object what clients cannot change.
    pub fn keep_metadata(&self, object: &mut Value, old: &Value) {
        let metadata = meta::metadata_mut(object);
        for field in [
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "generateName",
            "selfLink",
        ] {
            // A generateName is only kept where the client left it out.
            if field == "generateName" && metadata.contains_key(field) {
                continue;
            }
            match old["metadata"].get(field) {
                Some(value) => drop(metadata.insert(field.to_owned(), value.clone())),
                None => drop(metadata.remove(field)),
            }
        }
    }

    /// Owners that are named twice count once, and the client hears of it.
    fn merge_owners(&self, object: &mut Value) {
        let Some(owners) = object.pointer_mut("/metadata/ownerReferences").and_then(Value::as_array_mut) else {
            return;
        };
        if owners.len() < 2 {
            return;
        }
        let mut seen = HashSet::with_capacity(owners.len());
        let mut doubled = Vec::new();
        owners.retain(|owner| {
            let first = seen.insert(owner.to_string());
            if !first {
                doubled.push(owner["uid"].as_str().unwrap_or_default().to_owned());
            }
            first
        });
        if !doubled.is_empty() {
            self.call.warn(format!(
                ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may \
                 reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
                doubled.join(", ")
            ));
        }
    }

    /// Checks a new object.
    pub fn validate_new(&self, object: &Value) -> Result<(), Status> {
        let strategy = self.resource.row.strategy();
        let mut errors = FieldErrors::new();
        self.resource.row.validate_metadata(object, &mut errors);
        strategy.validate(object, &mut errors);
        self.refuse(object, errors)
    }

    /// Checks a changed object.
    pub fn validate_changed(&self, object: &Value, old: &Value) -> Result<(), Status> {
        let strategy = self.resource.row.strategy();
        let mut errors = FieldErrors::new();
        self.resource.row.validate_metadata(object, &mut errors);
        self.resource.row.validate_metadata_update(object, old, &mut errors);
        match self.subresource {
            "" | "scale" => strategy.validate_update(object, old, &mut errors),
            // A binding sets what no client may set, and was checked when it was made.
            "binding" => {}
            "status" => strategy.validate_status_update(object, old, &mut errors),
            other => strategy.validate_subresource_update(other, object, old, &mut errors),
        }
        self.refuse(object, errors)
    }

    fn refuse(&self, object: &Value, errors: FieldErrors) -> Result<(), Status> {
        if errors.is_empty() || self.options.own {
            return Ok(());
        }
        let row = &self.resource.stored;
        Err(Status::invalid(row.group(), row.kind(), meta::name(object), errors))
    }

    /// Everything up to storing of a new object: defaults, admission, ownership, the kind's own steps. `owned` says that
    /// an apply has already written down who owns what, `generated` that its name is the server's.
    pub async fn ready_new(&self, object: &mut Value, owned: bool, generated: bool) -> Result<(), Status> {
        let strategy = self.resource.row.strategy();
        self.merge_owners(object);
        self.resource.default(object)?;
        // What admission adds is owned by nobody.
        if !owned {
            ownership::track(self, None, object);
        }
        if admission::mutate_new(&self.attributes(), object, generated, self.options.dry_run).await? {
            self.merge_owners(object);
            self.check_place(object)?;
        }
        self.new_metadata(object);
        strategy.prepare_create(object);
        Ok(())
    }

    /// That a webhook has not put an object somewhere else.
    fn check_place(&self, object: &Value) -> Result<(), Status> {
        let given = object["metadata"]["namespace"].as_str().unwrap_or_default();
        let namespace = self.call.namespace().filter(|_| self.resource.row.namespaced()).unwrap_or_default();
        if given == namespace {
            return Ok(());
        }
        let message = "the namespace of the provided object does not match the namespace sent on the request";
        Err(Status::bad_request(message))
    }

    /// The same of a change.
    pub async fn ready_changed(&self, object: &mut Value, old: &Value, owned: bool) -> Result<(), Status> {
        let strategy = self.resource.row.strategy();
        self.merge_owners(object);
        self.resource.default(object)?;
        if !owned {
            ownership::track(self, Some(old), object);
        }
        if admission::mutate_changed(&self.attributes(), object, old, self.options.dry_run).await? {
            self.merge_owners(object);
            // What else of the metadata is the server's may not be changed; this one may grow, and is counted here.
            match old["metadata"].get("generation") {
                Some(counted) => drop(meta::metadata_mut(object).insert("generation".to_owned(), counted.clone())),
                None => drop(meta::metadata_mut(object).remove("generation")),
            }
        }
        match self.subresource {
            "" | "scale" => strategy.prepare_update(object, old),
            "binding" => {}
            "status" => strategy.prepare_status_update(object, old),
            other => strategy.prepare_subresource_update(other, object, old),
        }
        let changes = matches!(self.subresource, "" | "scale" | "resize" | "ephemeralcontainers")
            && strategy.changes_generation(object, old)
            && strategy.changes_generation(&self.as_stored(object), old);
        if changes {
            meta::metadata_mut(object).insert("generation".to_owned(), (meta::generation(old) + 1).into());
        }
        Ok(())
    }

    /// The object as it will be stored: that a list is empty instead of nothing is no change.
    fn as_stored<'b>(&self, object: &'b Value) -> Cow<'b, Value> {
        if self.resource.custom.is_some() {
            return Cow::Borrowed(object);
        }
        let mut object = object.clone();
        schema::forget_empty(&mut object, &self.resource.stored_schema);
        Cow::Owned(object)
    }

    /// Gives an object that was checked the form in which it is stored.
    pub fn canonicalize(&self, object: &mut Value) {
        self.resource.row.strategy().canonicalize(object);
        if self.resource.custom.is_none() {
            schema::forget_empty(object, &self.resource.stored_schema);
        }
    }

    /// Adds that the definition of a custom resource is what it was when this was decided; gives the place of that.
    pub fn guard(&self, ops: &mut Vec<Op>) -> Option<usize> {
        let custom = self.resource.custom.as_ref()?;
        ops.push(custom.guard());
        Some(ops.len() - 1)
    }

    /// What is told when it is not: the router decides anew, by the definition as it is then.
    pub fn redefined(&self, operation: &str) -> Status {
        let row = &self.resource.row;
        Status::server_timeout(row.group(), row.resource(), operation, 1)
    }

    /// That `object` was written as `record`. An answer in protobuf is made of what is at hand here, instead of reading again what
    /// is stored.
    pub fn written(&self, record: Arc<Record>, mut object: Value) -> Written {
        let resource = self.resource;
        let form = resource.form(self.call, Offer::Stored);
        let is_message = form.is_ok_and(|form| (form.shape, form.format) == (Shape::Whole, Format::Protobuf));
        if is_message && resource.custom.is_none() && !resource.is_view {
            meta::set_resource_version(&mut object, record.revision.get());
            Seen::new(resource, &record).keep_protobuf(&object);
        }
        Written::Record(record)
    }

    /// The bytes to store; an object that is too large is refused.
    pub async fn encode(&self, object: &Value) -> Result<coracle_keyspace::Value, Status> {
        let stored = conversion::to_stored(self.cluster, self.resource, object).await?;
        let object = stored.as_ref().unwrap_or(object);
        self.resource.check_depth(object)?;
        let content = Store::encode(self.resource, object);
        if content.bytes.len() > object::OBJECT_BYTES_MAX {
            return Err(Status::request_too_large(format!("limit is {}", object::OBJECT_BYTES_MAX)));
        }
        Ok(content)
    }
}
