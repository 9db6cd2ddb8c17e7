//! One policy that changes objects, asked about one request with one set of params.

use std::io;

use coracle_api::cel::admission::{Evaluation, Inputs, POLICY_BUDGET};
use coracle_api::codec::{DEPTH_MAX, TOO_DEEP, depth};
use coracle_api::patch;
use coracle_api::schema::Object;
use serde_json::Value;

use crate::policies::{Mutation, Program};
use crate::request::codec;
use crate::request::spent::UNIT_BYTES;
use crate::store::object::OBJECT_BYTES_MAX;

/// What a mutation makes of an object, in the form of the version that the policy wants to see, or why it makes none, in the
/// reference's words; and what that cost. An object that was changed is to be filled in anew.
pub(super) fn apply(
    program: &Program,
    mutation: &Mutation,
    object: &Value,
    schema: &Object,
    inputs: &Inputs<'_>,
) -> (Result<Value, String>, usize) {
    let mut evaluation = Evaluation::new(inputs, &program.variables, POLICY_BUDGET);
    let made = make(&mut evaluation, mutation, object, schema);
    let Some(changed) = made.as_ref().ok().filter(|made| *made != object) else { return (made, evaluation.spent()) };
    // What one adds the next may add to once more.
    let bytes = bytes(changed);
    let made = if bytes > OBJECT_BYTES_MAX {
        Err(format!("the object is too large: limit is {OBJECT_BYTES_MAX}"))
    } else if depth(changed) > DEPTH_MAX {
        Err(format!("the object would nest deeper than {DEPTH_MAX} levels: {TOO_DEEP}"))
    } else {
        made
    };
    (made, evaluation.spent() + bytes / UNIT_BYTES)
}

/// Bytes of an object as JSON.
fn bytes(object: &Value) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // What has no text is no object either.
    serde_json::to_writer(&mut count, object).map_or(usize::MAX, |()| count.0)
}

fn make<'a>(
    evaluation: &mut Evaluation<'a>,
    mutation: &'a Mutation,
    object: &Value,
    schema: &Object,
) -> Result<Value, String> {
    match mutation {
        Mutation::Apply(expression) => {
            let mut config = evaluation.configuration(expression).map_err(|failure| failure.to_string())?;
            let Some(fields) = config.as_object_mut() else {
                return Err("unsupported return type from ApplyConfiguration expression: null_type".to_owned());
            };
            for field in ["apiVersion", "kind"] {
                fields.insert(field.to_owned(), object[field].clone());
            }
            patch::apply::overlay(object, &config, schema).map_err(|why| format!("error applying patch: {why}"))
        }
        Mutation::Patch(expression) => {
            let steps = evaluation.patch(expression).map_err(|failure| failure.to_string())?;
            // One whose test fails changes nothing.
            let Some(changed) = patch::json_if(object, &steps).map_err(|why| format!("JSON Patch: {why}"))? else {
                return Ok(object.clone());
            };
            let decoded = codec::check(&changed, schema).map_err(|error| error.to_string())?;
            if !decoded.problems.is_empty() {
                return Err(format!("strict decoding error: {}", decoded.problems.join(", ")));
            }
            Ok(decoded.value)
        }
    }
}

#[cfg(test)]
mod tests {
    use coracle_api::schema;
    use serde_json::json;

    use super::*;
    use crate::policies::{Does, Policy};

    fn change(mutation: Value, object: &Value) -> Result<Value, String> {
        change_of(mutation, object, &schema::named("io.k8s.api.core.v1.ConfigMap").expect("config maps"))
    }

    fn change_of(mutation: Value, object: &Value, schema: &Object) -> Result<Value, String> {
        let spec = json!({"mutations": [mutation], "variables": [{"name": "n", "expression": "'v'"}]});
        let policy = Policy::read("p", true, &json!({"spec": spec}));
        let program = policy.program.expect("compiled");
        let Does::Mutates { mutations, .. } = &program.does else { panic!("it changes") };
        let request = json!({});
        let inputs = Inputs {
            object: Some(object),
            old_object: None,
            request: &request,
            params: None,
            namespace: None,
            authorizer: None,
        };
        apply(&program, &mutations[0], object, schema, &inputs).0
    }

    fn applied(expression: &str) -> Value {
        json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}})
    }

    fn patched(expression: &str) -> Value {
        json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}})
    }

    fn object() -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"x": "y"}}, "data": {"k": "w"}})
    }

    #[test]
    fn a_configuration_is_merged() {
        let mutation =
            applied("Object{metadata: Object.metadata{labels: {'l': variables.n}}, data: {'m': object.data.k}}");
        let mut expected = object();
        expected["metadata"]["labels"]["l"] = "v".into();
        expected["data"]["m"] = "w".into();
        assert_eq!(change(mutation, &object()), Ok(expected));
        let wrong =
            change(applied("Object{metadata: Object.wrong{labels: {'l': 'v'}}}"), &object()).expect_err("refused");
        assert!(
            wrong.contains("type mismatch: unexpected type name \"Object.wrong\", expected \"Object.metadata\""),
            "{wrong}"
        );
        let wrong = change(applied("Object{nothing: 1}"), &object()).expect_err("refused");
        assert!(wrong.contains(".nothing: field not declared in schema"), "{wrong}");
    }

    #[test]
    fn an_object_stays_as_small_as_is_stored() {
        let mut large = object();
        large["data"]["k"] = "x".repeat(OBJECT_BYTES_MAX / 2).into();
        let twice = applied("Object{data: {'again': object.data.k}}");
        let wrong = change(twice, &large).expect_err("too large");
        assert!(wrong.contains("the object is too large"), "{wrong}");
        large["data"]["k"] = "x".repeat(OBJECT_BYTES_MAX / 4).into();
        assert!(change(applied("Object{data: {'again': object.data.k}}"), &large).is_ok());
        // What is no object changes nothing.
        let wrong = change(applied("has(object.nothing) ? Object{} : null"), &object()).expect_err("nothing");
        assert!(wrong.contains("unsupported return type"), "{wrong}");
    }

    /// What each mutation wraps anew would have no end.
    #[test]
    fn an_object_nests_as_deep_as_is_stored() {
        let nest = |levels: usize| format!("{}object.data{}", "{'a': ".repeat(levels), "}".repeat(levels));
        let applied = |levels: usize| applied(&format!("Object{{data: {}}}", nest(levels)));
        let patched =
            |levels: usize| patched(&format!("[JSONPatch{{op: 'replace', path: '/data', value: {}}}]", nest(levels)));
        let revisions = schema::named("io.k8s.api.apps.v1.ControllerRevision").expect("revisions");
        for mutation in [&applied as &dyn Fn(usize) -> Value, &patched] {
            let mut object = json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": "a"}, "data": {}, "revision": 1});
            for _ in 0..3 {
                object = change_of(mutation(30), &object, &revisions).expect("it nests as deep as is taken");
            }
            assert_eq!(depth(&object), 92);
            let wrong = change_of(mutation(30), &object, &revisions).expect_err("too deep");
            assert!(wrong.contains("exceeded max depth"), "{wrong}");
        }
    }

    #[test]
    fn a_patch_is_carried_out_unless_its_test_fails() {
        let add = "JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: 'c'}";
        let mut expected = object();
        expected["metadata"]["labels"]["a/b"] = "c".into();
        assert_eq!(change(patched(&format!("[{add}]")), &object()), Ok(expected));
        let test = "JSONPatch{op: 'test', path: '/data/k', value: 'other'}";
        assert_eq!(change(patched(&format!("[{test}, {add}]")), &object()), Ok(object()));
        let whole = "[JSONPatch{op: 'replace', path: '/metadata', value: Object.metadata{labels: {'q': 'r'}}}]";
        assert_eq!(
            change(patched(whole), &object()).map(|object| object["metadata"].clone()),
            Ok(json!({"labels": {"q": "r"}}))
        );
        assert!(change(patched("[JSONPatch{op: 'remove', path: '/data/none/x'}]"), &object()).is_err());
        assert!(change(patched("[JSONPatch{op: 'add', path: '/nothing', value: 1}]"), &object()).is_err());
    }
}
