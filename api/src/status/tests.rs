//! What clients of Kubernetes are told, word for word.

use serde_json::{Value, json};

use super::*;

#[test]
fn says_what_kubernetes_says() {
    let error = |field: &str| FieldError::invalid(field, -1, "must be greater than or equal to 0");
    let table: Vec<(Status, Value)> = vec![
        (
            Status::not_found("", "pods", "x"),
            json!({"message": "pods \"x\" not found", "reason": "NotFound", "details": {"name": "x", "kind": "pods"}, "code": 404}),
        ),
        (
            Status::stale("apps", "deployments", "x"),
            json!({"message": "Operation cannot be fulfilled on deployments.apps \"x\": the object has been modified; please apply your changes to the latest version and try again",
                "reason": "Conflict", "details": {"name": "x", "group": "apps", "kind": "deployments"}, "code": 409}),
        ),
        (
            Status::invalid("apps", "Deployment", "x", vec![error("spec.replicas")]),
            json!({"message": "Deployment.apps \"x\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "reason": "Invalid", "code": 422, "details": {"name": "x", "group": "apps", "kind": "Deployment", "causes": [
                    {"reason": "FieldValueInvalid", "message": "Invalid value: -1: must be greater than or equal to 0", "field": "spec.replicas"}]}}),
        ),
        (
            Status::invalid("", "Pod", "x", vec![error("a"), error("b"), error("a")]),
            json!({"message": "Pod \"x\" is invalid: [a: Invalid value: -1: must be greater than or equal to 0, b: Invalid value: -1: must be greater than or equal to 0]",
                "reason": "Invalid", "code": 422, "details": {"name": "x", "kind": "Pod", "causes": [
                    {"reason": "FieldValueInvalid", "message": "Invalid value: -1: must be greater than or equal to 0", "field": "a"},
                    {"reason": "FieldValueInvalid", "message": "Invalid value: -1: must be greater than or equal to 0", "field": "b"}]}}),
        ),
        (
            Status::forbidden("", "", "", "User \"bob\" cannot get path \"/x\""),
            json!({"message": "forbidden: User \"bob\" cannot get path \"/x\"", "reason": "Forbidden", "details": {}, "code": 403}),
        ),
        (
            Status::too_large_resource_version(9, 5, 1),
            json!({"message": "Timeout: Too large resource version: 9, current: 5", "reason": "Timeout", "code": 504,
                "details": {"retryAfterSeconds": 1, "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]}}),
        ),
        (
            Status::path_not_found(),
            json!({"message": "the server could not find the requested resource", "reason": "NotFound", "details": {}, "code": 404}),
        ),
        (
            Status::internal_error("boom"),
            json!({"message": "Internal error occurred: boom", "reason": "InternalError", "code": 500, "details": {"causes": [{"message": "boom"}]}}),
        ),
    ];
    for (status, mut expected) in table {
        let fields = expected.as_object_mut().unwrap();
        for (key, value) in [("kind", "Status"), ("apiVersion", "v1"), ("status", "Failure")] {
            fields.insert(key.to_owned(), json!(value));
        }
        fields.insert("metadata".to_owned(), json!({}));
        assert_eq!(serde_json::to_value(&status).unwrap(), expected);
        assert_eq!(serde_json::from_value::<Status>(expected).unwrap(), status);
    }
}
