//! What all objects have in common: names, metadata, labels and selectors, quantities, times, conditions, field errors.

pub mod condition;
pub mod duration;
pub mod field;
pub mod generate;
pub mod link;
pub mod names;
mod object;
mod quantity;
pub mod selector;
pub mod taint;
pub mod text;
pub mod time;
mod validate;
mod version;

pub use object::{
    OwnerReference, annotation, annotations, controller_of, creation_time, deletion_time, finalizers, generation,
    is_deleting, label, labels, metadata, metadata_mut, name, namespace, owner_references, owners, resource_version,
    set_resource_version, uid,
};
pub use quantity::{Format, Quantity, QuantityError};
pub use validate::{
    validate_annotations, validate_field_manager, validate_finalizers, validate_immutable, validate_labels,
    validate_managed_fields, validate_object_meta, validate_object_meta_update, validate_owner_references,
};
pub use version::parse_resource_version;
