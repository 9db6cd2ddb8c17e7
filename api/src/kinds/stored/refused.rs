//! Kinds of which no object can be made, because somebody would rely on what it does not do: rules that are not enforced,
//! requests that are never answered. Lists of them are empty.

use serde_json::{Value, json};

use super::show::Show::{Age, Name, Of};
use super::{BLANK, Kind, Stored, row};
use crate::kinds::value::{Read, child};
use crate::kinds::{AGE, Cell, Column, NAME, column};

const EXTENSIONS: &[&str] = &["api-extensions"];

const fn text(name: &'static str) -> Column {
    column(name, "string")
}

pub(super) static ROWS: &[Kind] =
    &[row!(cluster "apiregistration.k8s.io" "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1" "APIService"
        "apiservices" "apiservice",
        [NAME => Name, text("Service") => Of(api_service), text("Available") => Of(available), AGE => Age],
        Stored::refused("passes no requests on to other API servers").named_as_path().create_by(local),
        categories: EXTENSIONS, has_status: true)];

/// What is served here is always there.
fn local(object: &mut Value) {
    if object["spec"]["service"].is_null() {
        let made = object["metadata"]["creationTimestamp"].clone();
        child(object, "status")["conditions"] = json!([{
            "type": "Available", "status": "True", "lastTransitionTime": made, "reason": "Local",
            "message": "Local APIServices are always available",
        }]);
    }
}

fn api_service(object: &Value) -> Cell {
    match &object["spec"]["service"] {
        Value::Null => "Local".into(),
        service => format!("{}/{}", service["namespace"].text(), service["name"].text()).into(),
    }
}

fn available(object: &Value) -> Cell {
    let conditions = object["status"]["conditions"].items();
    let Some(found) = conditions.iter().find(|condition| condition["type"] == "Available") else {
        return "Unknown".into();
    };
    match found["status"].text() {
        "True" => "True".into(),
        status => format!("{status} ({})", found["reason"].text()).into(),
    }
}
