//! Ingress: which Services answer requests from outside.

mod validation;

use serde_json::{Value, json};

use super::value::{Read, fields, join, keep, or};
use super::{AGE, Cell, FieldErrors, Kind, NAME, Strategy, VERBS, column, table};

/// The annotation that named a class before there was a field for it.
const CLASS: &str = "kubernetes.io/ingress.class";

pub(super) static KIND: Kind = Kind {
    group: "networking.k8s.io",
    version: "v1",
    kind: "Ingress",
    resource: "ingresses",
    singular: "ingress",
    short_names: &["ing"],
    categories: &[],
    namespaced: true,
    schema: "io.k8s.api.networking.v1.Ingress",
    collection: "ingresses.networking.k8s.io",
    verbs: VERBS,
    has_status: true,
    has_scale: false,
    subresources: &[],
    selectable: &[],
    columns: &[
        NAME,
        column("Class", "string"),
        column("Hosts", "string"),
        column("Address", "string"),
        column("Ports", "string"),
        AGE,
    ],
    strategy: &Ingress,
};

struct Ingress;

impl Strategy for Ingress {
    fn prepare_create(&self, object: &mut Value) {
        fields(object).insert("status".to_owned(), json!({ "loadBalancer": {} }));
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "status");
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        validation::create(object, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        validation::update(object, old, errors);
    }

    fn validate_status_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        validation::status_update(object, old, errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        match &object["metadata"]["annotations"][CLASS] {
            Value::String(_) if old.is_none() => {
                vec![format!("annotation \"{CLASS}\" is deprecated, please use 'spec.ingressClassName' instead")]
            }
            _ => Vec::new(),
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        vec![
            object["metadata"]["name"].text().into(),
            or(object["spec"]["ingressClassName"].text(), "<none>").into(),
            hosts(object).into(),
            addresses(object).into(),
            if object["spec"]["tls"].is_empty() { "80" } else { "80, 443" }.into(),
            table::age(object),
        ]
    }
}

/// The first three hosts, and how many more there are.
fn hosts(object: &Value) -> String {
    const SHOWN: usize = 3;
    let hosts = object["spec"]["rules"].items().iter().map(|rule| rule["host"].text());
    let hosts: Vec<&str> = hosts.filter(|host| !host.is_empty()).collect();
    let shown = join(hosts.iter().copied().take(SHOWN));
    match hosts.len() {
        0 => "*".to_owned(),
        count if count > SHOWN => format!("{shown} + {} more...", count - SHOWN),
        _ => shown,
    }
}

fn addresses(object: &Value) -> String {
    let points = object["status"]["loadBalancer"]["ingress"].items().iter();
    join(points.map(|point| or(point["ip"].text(), point["hostname"].text())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_one_says_nothing_of_where_it_is_served_and_an_old_annotation_is_told() {
        let mut object = json!({"metadata": {"annotations": {CLASS: "x"}}, "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}});
        let told =
            ["annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead"];
        assert_eq!(Ingress.warnings(&object, None), told);
        assert!(Ingress.warnings(&object, Some(&object)).is_empty());
        let old = object.clone();
        Ingress.prepare_create(&mut object);
        assert_eq!(object["status"], json!({"loadBalancer": {}}));
        Ingress.prepare_update(&mut object, &old);
        assert_eq!(addresses(&object), "1.2.3.4");
    }

    #[test]
    fn its_row() {
        let rule = |host: &str| json!({"host": host});
        let row = |object: Value| -> Vec<Cell> { Ingress.cells(&object).into_iter().take(5).collect() };
        let cells = |cells: [&str; 5]| cells.map(Cell::from).to_vec();
        let object = json!({"metadata": {"name": "a"}, "spec": {"ingressClassName": "coracle", "tls": [{}],
            "rules": [rule("a"), rule("b"), rule("c"), rule("d")]},
            "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}, {"hostname": "x.y"}]}}});
        assert_eq!(row(object), cells(["a", "coracle", "a,b,c + 1 more...", "1.2.3.4,x.y", "80, 443"]));
        let object = json!({"metadata": {"name": "b"}, "spec": {"rules": [{}]}});
        assert_eq!(row(object), cells(["b", "<none>", "*", "", "80"]));
    }
}
