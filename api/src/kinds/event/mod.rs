//! Event: the core kind, and `events.k8s.io` as a second view of the same objects.
//!
//! Events are stored in core form. The other group's kind has the same data under other names, so its row differs in
//! [`Strategy::to_storage`] and [`Strategy::from_storage`] and in what it calls its selectable fields.

mod validation;

use serde_json::{Value, json};

use super::value::{Read, child, default_to, fields, or};
use super::{Cell, Column, FieldErrors, Kind, NAME, Strategy, VERBS, column, table, wide};
use crate::meta::names;

const COLUMNS: &[Column] = &[
    column("Last Seen", "string"),
    column("Type", "string"),
    column("Reason", "string"),
    column("Object", "string"),
    wide("Subobject", "string"),
    wide("Source", "string"),
    column("Message", "string"),
    wide("First Seen", "string"),
    wide("Count", "string"),
    Column { priority: 1, ..NAME },
];

pub(super) static CORE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Event",
    resource: "events",
    singular: "event",
    short_names: &["ev"],
    categories: &[],
    namespaced: true,
    schema: "io.k8s.api.core.v1.Event",
    collection: "events",
    verbs: VERBS,
    has_status: false,
    has_scale: false,
    subresources: &[],
    selectable: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    columns: COLUMNS,
    strategy: &Event { view: View::Core },
};

pub(super) static EVENTS: Kind = Kind {
    group: "events.k8s.io",
    version: "v1",
    kind: "Event",
    resource: "events",
    singular: "event",
    short_names: &["ev"],
    categories: &[],
    namespaced: true,
    schema: "io.k8s.api.events.v1.Event",
    collection: "events",
    verbs: VERBS,
    has_status: false,
    has_scale: false,
    subresources: &[],
    selectable: &[
        "reason",
        "regarding.kind",
        "regarding.namespace",
        "regarding.name",
        "regarding.uid",
        "regarding.apiVersion",
        "regarding.resourceVersion",
        "regarding.fieldPath",
        "reportingController",
        "type",
    ],
    columns: COLUMNS,
    strategy: &Event { view: View::Events },
};

/// Fields of `events.k8s.io` that core calls otherwise: there, here.
const RENAMED: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

#[derive(Clone, Copy, PartialEq)]
enum View {
    Core,
    Events,
}

struct Event {
    view: View,
}

impl Strategy for Event {
    fn default(&self, object: &mut Value) {
        child(object, "involvedObject");
        child(object, "source");
        for field in ["firstTimestamp", "lastTimestamp", "eventTime"] {
            default_to(object, field, Value::Null);
        }
        default_to(object, "reportingComponent", "");
        default_to(object, "reportingInstance", "");
        if object["series"].is_object() {
            default_to(child(object, "series"), "lastObservedTime", Value::Null);
        }
    }

    fn to_storage(&self, object: &mut Value) {
        if self.view == View::Events {
            let fields = fields(object);
            for (theirs, ours) in RENAMED {
                if let Some(value) = fields.remove(theirs) {
                    fields.insert(ours.to_owned(), value);
                }
            }
            fields.insert("apiVersion".to_owned(), "v1".into());
        }
    }

    fn from_storage(&self, object: &mut Value) {
        if self.view == View::Events {
            let fields = fields(object);
            for (theirs, ours) in RENAMED {
                if let Some(value) = fields.remove(ours) {
                    let is_zero = value.is_empty() || value == json!(0);
                    let always = ["source", "firstTimestamp", "lastTimestamp", "involvedObject"].contains(&ours);
                    if always || !is_zero {
                        fields.insert(theirs.to_owned(), value);
                    }
                }
            }
            if fields.get("reportingInstance").is_some_and(Read::is_empty) {
                fields.remove("reportingInstance");
            }
            fields.insert("apiVersion".to_owned(), "events.k8s.io/v1".into());
        }
    }

    fn view_names(&self) -> Option<(&'static str, &'static [(&'static str, &'static str)])> {
        Some(("events.k8s.io/v1", &RENAMED))
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        validation::create(object, self.view == View::Events, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        validation::update(object, old, self.view == View::Events, errors);
    }

    /// The core kind takes whatever can be part of a path.
    fn check_name(&self, name: &str, is_prefix: bool) -> Vec<String> {
        match self.view {
            View::Core => names::name_is_path_segment(name, is_prefix),
            View::Events => names::name_is_dns_subdomain(name, is_prefix),
        }
    }

    fn knows_finalizers(&self) -> bool {
        self.view == View::Events
    }

    fn allows_create_on_update(&self) -> bool {
        true
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        let text = match path {
            "reason" | "type" | "reportingComponent" => object[path].text(),
            "reportingController" => object["reportingComponent"].text(),
            "source" => or(object["source"]["component"].text(), object["reportingComponent"].text()),
            _ => match path.split_once('.')? {
                ("involvedObject" | "regarding", field) => object["involvedObject"][field].text(),
                _ => return None,
            },
        };
        Some(text.to_owned())
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        let first = object["firstTimestamp"].time().or_else(|| object["eventTime"].time());
        let mut last = object["lastTimestamp"].time().or(first);
        let mut count = object["count"].int().max(1);
        if object["series"].is_object() {
            last = object["series"]["lastObservedTime"].time();
            count = object["series"]["count"].int();
        }
        let involved = &object["involvedObject"];
        let kind = involved["kind"].text().to_lowercase();
        let target = match involved["name"].text() {
            "" => kind,
            name => format!("{kind}/{name}"),
        };
        let component = or(object["source"]["component"].text(), object["reportingComponent"].text());
        let source = match or(object["source"]["host"].text(), object["reportingInstance"].text()) {
            "" => component.to_owned(),
            instance => format!("{component}, {instance}"),
        };
        vec![
            Cell::Age(last),
            object["type"].text().into(),
            object["reason"].text().into(),
            target.into(),
            involved["fieldPath"].text().into(),
            source.into(),
            object["message"].text().trim().into(),
            Cell::Age(first),
            count.into(),
            table::name(object),
        ]
    }
}
