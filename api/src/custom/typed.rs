//! A schema as the type that server-side apply knows: what has parts, and how items are told apart.

use std::collections::HashMap;
use std::sync::Arc;

use super::structural::{Additional, META, Structural, Type};
use crate::schema::{Field, Fields, List, ListKind, Map, Named, Object, Type as Typed};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The type of whole objects.
pub(super) fn object(schema: &Arc<Structural>, name: String) -> Object {
    let mut fields = named(schema);
    add_meta(&mut fields);
    Object {
        preserves_unknown: schema.preserves_unknown,
        custom: Some(schema.clone()),
        ..Object::new(name, Fields::from(fields))
    }
}

/// The fields that every object has.
fn add_meta(fields: &mut HashMap<String, Field>) {
    for name in META {
        let ty = if name == "metadata" { Typed::Named(Named::new(OBJECT_META)) } else { Typed::String };
        fields.insert(name.to_owned(), Field::of(ty));
    }
}

fn named(schema: &Structural) -> HashMap<String, Field> {
    let field = |of: &Structural| Field { default: of.default.clone(), ..Field::of(ty(of)) };
    schema.properties.iter().map(|(name, of)| (name.to_owned(), field(of))).collect()
}

fn ty(schema: &Structural) -> Typed {
    let has_fields = !schema.properties.is_empty() || schema.embedded;
    match schema.ty {
        Type::String => Typed::String,
        Type::Integer => Typed::Int64,
        Type::Number => Typed::Float64,
        Type::Boolean => Typed::Bool,
        Type::IntOrString => Typed::IntOrString,
        Type::Array => {
            let items = schema.items.as_deref().map_or(Typed::Deduced, ty);
            Typed::List(Arc::new(List { items, kind: schema.list.clone().unwrap_or(ListKind::Atomic) }))
        }
        Type::Object | Type::Any if has_fields => {
            let mut fields = named(schema);
            if schema.embedded {
                add_meta(&mut fields);
            }
            Typed::Object(Arc::new(Object {
                atomic: schema.atomic,
                preserves_unknown: schema.preserves_unknown,
                ..Object::new("", Fields::from(fields))
            }))
        }
        Type::Object | Type::Any if schema.preserves_unknown && schema.atomic => Typed::Any,
        Type::Object | Type::Any if schema.preserves_unknown => Typed::Deduced,
        Type::Object => {
            let values = match &schema.additional {
                Additional::Of(of) => ty(of),
                _ => Typed::Deduced,
            };
            Typed::Map(Arc::new(Map { values, atomic: schema.atomic }))
        }
        Type::Any => Typed::Deduced,
    }
}
