//! What a GRPCRoute says of services and methods, as paths: a call of gRPC asks for `/SERVICE/METHOD` (gRPC over HTTP2, "Requests").
//!
//! | match | path |
//! | --- | --- |
//! | service and method | that path, to the byte |
//! | either, as an expression | one expression for both; what is not said is anything without a slash |
//! | a service | its first segment |
//! | a method | any, with a condition for what comes behind its first segment |
//! | neither | any |
//!
//! In this order they go first, as the longer name of a service does before that of a method in Gateway API.

use std::sync::Arc;

use serde::Deserialize;

use crate::rule::{self, Conditions, Match, PathMatch, TextSpec};
use crate::text::Pattern;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct MatchSpec {
    method: MethodSpec,
    headers: Vec<TextSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct MethodSpec {
    #[serde(rename = "type")]
    kind: Option<String>,
    service: Option<String>,
    method: Option<String>,
}

/// Bytes of a name (the field's own bound).
const NAME_BYTES_MAX: usize = 1024;

impl MatchSpec {
    pub fn read(&self) -> Result<Match, String> {
        let (path, call) = self.method.read()?;
        let conditions = Conditions { headers: rule::read_headers(&self.headers)?, call, ..Conditions::default() };
        Ok(Match { path, conditions })
    }
}

impl MethodSpec {
    /// The path, and what comes behind its first segment.
    fn read(&self) -> Result<(PathMatch, Option<Arc<str>>), String> {
        // What is empty says nothing, as Gateway API has it.
        let said = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
        let (service, method) = (said(&self.service), said(&self.method));
        match self.kind.as_deref().unwrap_or("Exact") {
            "Exact" => {}
            "RegularExpression" => return expression(service.as_deref(), method.as_deref()),
            other => return Err(format!("type {other:?} of a method is not supported")),
        }
        if let Some(odd) = [&service, &method].into_iter().flatten().find(|name| !is_name(name)) {
            return Err(format!("{odd:?} is no name of a service or method"));
        }
        Ok(match (service, method) {
            (Some(service), Some(method)) => (PathMatch::Exact(format!("/{service}/{method}").into()), None),
            (Some(service), None) => (PathMatch::Prefix(format!("/{service}").into()), None),
            (None, Some(method)) => (anything(), Some(method.into())),
            (None, None) => (anything(), None),
        })
    }
}

fn anything() -> PathMatch {
    PathMatch::Prefix("/".into())
}

fn is_name(text: &str) -> bool {
    text.len() <= NAME_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#".contains(&byte))
}

fn expression(service: Option<&str>, method: Option<&str>) -> Result<(PathMatch, Option<Arc<str>>), String> {
    if service.is_none() && method.is_none() {
        return Ok((anything(), None));
    }
    let pattern = Pattern::of_segments(&[service, method])?;
    Ok((PathMatch::Pattern(pattern), None))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(spec: Value) -> Result<Match, String> {
        MatchSpec::deserialize(&spec).map_err(|error| error.to_string())?.read()
    }

    #[test]
    fn services_and_methods_are_paths() {
        let expression =
            |service: Value, method: Value| json!({"type": "RegularExpression", "service": service, "method": method});
        for (method, path, call) in [
            (json!({"service": "a.B", "method": "C"}), PathMatch::Exact("/a.B/C".into()), None),
            (json!({"type": "Exact", "service": "a.B"}), PathMatch::Prefix("/a.B".into()), None),
            (json!({"method": "C"}), anything(), Some("C")),
            (json!({}), anything(), None),
            (json!({"service": "", "method": ""}), anything(), None),
            (json!({"type": "RegularExpression"}), anything(), None),
        ] {
            let found = read(json!({"method": method})).unwrap();
            assert_eq!((found.path, found.conditions.call.as_deref()), (path, call), "{method}");
        }
        for (method, path, expected) in [
            (expression(json!("a\\.(B|C)"), json!("D.*")), "/a.B/Do", true),
            (expression(json!("a\\.(B|C)"), json!("D.*")), "/a.E/Do", false),
            (expression(json!("a|b"), json!(null)), "/a/X", true),
            (expression(json!("a|b"), json!(null)), "/ab/X", false),
            (expression(json!("a|b"), json!(null)), "/a/X/Y", false),
            (expression(json!("^a$|^b$"), json!("^X")), "/b/X", true),
            (expression(json!("a.*"), json!(null)), "/a/b/X", false),
            (expression(json!(null), json!("Get|Set")), "/any.Service/Set", true),
            (expression(json!(null), json!("Get|Set")), "/any.Service/GetSet", false),
        ] {
            let PathMatch::Pattern(pattern) = read(json!({"method": method})).unwrap().path else { panic!("{method}") };
            assert_eq!(pattern.is_match(path), expected, "{method} {path}");
        }
        let headers =
            json!([{"name": "A", "value": "1"}, {"type": "RegularExpression", "name": "b", "value": "[0-9]"}]);
        let found = read(json!({"method": {"method": "C"}, "headers": headers})).unwrap();
        assert_eq!(found.conditions.rank(), (1, false, 2, 0));
    }

    #[test]
    fn what_is_no_match_says_so() {
        for (spec, words) in [
            (json!({"method": {"type": "Glob", "service": "a"}}), "type \"Glob\" of a method is not supported"),
            (json!({"method": {"service": "a/b"}}), "\"a/b\" is no name of a service or method"),
            (json!({"method": {"method": "a?b"}}), "\"a?b\" is no name of a service or method"),
            (json!({"method": {"type": "RegularExpression", "service": "("}}), "\"(\" is no regular expression"),
            (
                json!({"method": {"type": "RegularExpression", "service": "a)|(b"}}),
                "\"a)|(b\" is no regular expression",
            ),
            (json!({"method": {"caseSensitive": true}}), "unknown field `caseSensitive`"),
            (json!({"queryParams": []}), "unknown field `queryParams`"),
            (json!({"headers": [{"name": "no name"}]}), "\"no name\" is no name of a header"),
        ] {
            let why = read(spec.clone()).unwrap_err();
            assert!(why.starts_with(words), "{spec}: {why}");
        }
    }
}
