//! Rules: what they give, what they cost, and what is said of those that are none.

use serde_json::{Value, json};

use super::*;
use crate::meta::field::FieldErrors;

fn schema() -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "n": {"type": "integer"}, "x": {"type": "number"}, "s": {"type": "string"}, "b": {"type": "boolean"},
        "list": {"type": "array", "items": {"type": "integer"}},
        "names": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
        "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {
            "type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}},
        "words": {"type": "object", "additionalProperties": {"type": "string"}},
        "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "when": {"type": "string", "format": "date-time"}, "long": {"type": "string", "format": "duration"},
        "days": {"type": "string", "format": "duration"},
        "port": {"x-kubernetes-int-or-string": true}, "a-b": {"type": "string"}, "namespace": {"type": "string"},
        "bytes": {"type": "string", "format": "byte"}, "a__b": {"type": "string"}, "null": {"type": "string", "nullable": true},
    }}}})
}

fn object() -> Value {
    json!({"apiVersion": "e.com/v1", "kind": "E", "metadata": {"name": "e", "labels": {"a": "b"}}, "spec": {
        "n": 5, "x": 2, "s": "h\u{e9}llo", "b": true, "list": [3, 1, 2], "names": ["a", "b"],
        "map": [{"k": "a", "v": 1}, {"k": "b", "v": 2}], "words": {"x": "y", "p-q": "r"}, "open": {"deep": [1, "x"]},
        "when": "2026-11-29T17:30:00Z", "long": "1h30m", "port": "http", "a-b": "dash", "namespace": "ns", "a__b": "c",
        // As these formats take them, if not everybody: words for days, and bits behind the last byte.
        "days": "3d12hours", "bytes": "YR==",
    }})
}

/// The errors of an object whose `spec` has these rules.
fn said(rules: &Value, object: &Value, old: Option<&Value>) -> Vec<String> {
    let mut schema = schema();
    schema["properties"]["spec"]["x-kubernetes-validations"] = rules.clone();
    let schema = Structural::read_whole(&schema);
    let mut errors = FieldErrors::new();
    validate(&schema, object, old, &mut errors);
    errors.into_told().iter().map(ToString::to_string).collect()
}

fn of(rule: &str) -> Vec<String> {
    said(&json!([{"rule": rule, "message": "no"}]), &object(), None)
}

#[test]
fn rules_that_hold_hold() {
    for rule in [
        "self.n == 5 && self.n != 6 && self.n < 6 && self.n >= 5 && !(self.n > 5)",
        "self.n + 2 * 3 - 1 == 10 && 7 / 2 == 3 && -7 % 3 == -1 && 7.0 / 2.0 == 3.5 && self.x == 2.0 && self.x < 3",
        "-9223372036854775808 < 0 && 0x1F == 31 && 3u == 3u && 1e3 == 1000.0",
        "self.s.size() == 5 && size(self.s) == 5 && self.s.startsWith('h') && self.s.endsWith(\"lo\") && self.s.contains('\u{e9}')",
        r#"self.s.matches('^h.llo$') && !'x'.matches(self.s) && r'\d' == '\\d' && "\u00e9" == 'é' && '''a'b''' == "a'b""#,
        "self.s + '!' == 'h\u{e9}llo!' && self.s < 'i'",
        "has(self.n) && !has(self.__null__) && has(self.words.x) && !has(self.words.z)",
        "self.b ? self.n == 5 : false",
        "self.list.all(x, x > 0) && self.list.exists(x, x == 2) && self.list.exists_one(x, x > 2)",
        "self.list.map(x, x * 2) == [6, 2, 4] && self.list.map(x, x > 1, x) == [3, 2] && self.list.filter(x, x < 3) == [1, 2]",
        "self.list.all(i, x, x < i + 4) && self.words.transformMap(k, v, v + k) == {'x': 'yx', 'p-q': 'rp-q'}",
        "self.list.transformList(i, x, i + x) == [3, 2, 4]",
        "self.list[0] == 3 && self.words['p-q'] == 'r' && 2 in self.list && !('c' in self.names) && 'x' in self.words",
        "self.names == ['b', 'a'] && self.names + ['a', 'c'] == ['a', 'b', 'c'] && self.list != [1, 2, 3]",
        "self.map.exists(m, m.k == 'b' && m.v == 2) && self.map.all(m, self.map.exists_one(o, o.k == m.k))",
        "(self.map + self.map).filter(m, m.k == 'a').size() == 1",
        "self.words.all(k, self.words[k].size() == 1)",
        "dyn(self.open).deep[0] == 1 && dyn(self.open).deep[1] == 'x'",
        "self.when < timestamp('2027-01-01T00:00:00Z') && self.when.getFullYear() == 2026 && self.when.getMonth() == 10",
        "self.when.getHours('-08:00') == 9 && self.when + duration('1h') == timestamp('2026-11-29T18:30:00Z')",
        "string(1234567.0) == '1.234567e+06' && string(0.00001) == '1e-05' && string(100000.5) == '100000.5' && string(7.0) == '7'",
        "string(999999.9999999999) == '999999.9999999999' && string(0.00009999999999999999) == '9.999999999999999e-05'",
        "self.long == duration('90m') && self.long.getMinutes() == 90 && string(duration('1.5s')) == '1.5s'",
        "self.days == duration('84h') && string(self.days) == '302400s' && self.bytes == b'a'",
        "type(self.port) == string ? self.port == 'http' : self.port > 0",
        "self.a__dash__b == 'dash' && self.__namespace__ == 'ns' && self.a__underscores__b == 'c'",
        "int('12') == 12 && string(12) == '12' && double('1.5') == 1.5 && int(2.9) == 2 && bool('true') && bytes('a') == b'a'",
        "'a,b,c'.split(',') == ['a', 'b', 'c'] && ['a', 'b'].join('-') == 'a-b' && 'abc'.substring(1) == 'bc'",
        "'aXbX'.replace('X', '-') == 'a-b-' && ' x '.trim() == 'x' && 'Ab'.lowerAscii() == 'ab' && 'abc'.charAt(1) == 'b'",
        "'abcb'.indexOf('b') == 1 && 'abcb'.lastIndexOf('b') == 3 && 'abcb'.indexOf('b', 2) == 3 && 'abc'.indexOf('z') == -1",
        "'%s has %d of %.2f, %s'.format(['a', 3, 1.5, [1, 2]]) == 'a has 3 of 1.50, [1, 2]'",
        "['b', 'c', 'a', 'd', 'b'].sort() == ['a', 'b', 'b', 'c', 'd'] && [3, 1, 2].sort() == [1, 2, 3] && [].sort() == []",
        "[b'b', b'a'].sort() == [b'a', b'b'] && [2.0, 0.5, 1.5].sort() == [0.5, 1.5, 2.0]",
        "'aXbXc'.findAll('[a-z]', 2) == ['a', 'b'] && 'abc'.findAll('x*').size() == 4 && 'abc'.find('z') == ''",
        "url('https://a.b/?d=e&f=g&d=h&i').getQuery() == {'d': ['e', 'h'], 'f': ['g'], 'i': ['']}",
        "'a1b22'.find('[0-9]+') == '1' && 'a1b22'.findAll('[0-9]+') == ['1', '22']",
        "[1, 2, 3].isSorted() && [1, 2, 3].sum() == 6 && self.list.min() == 1 && self.list.max() == 3 && [1, 2].indexOf(2) == 1",
        "sets.contains([1, 2, 3], [2]) && sets.intersects([1], [1, 2]) && sets.equivalent([1, 2], [2, 1, 1])",
        "quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('1.5').add(quantity('500m')).compareTo(quantity('2')) == 0",
        "isQuantity('1Mi') && !isQuantity('x') && quantity('2k').asInteger() == 2000",
        "isURL('https://a.b:80/c?d=e') && url('https://a.b:80/c?d=e').getPort() == '80' && url('https://[::1]:80/').getHostname() == '::1'",
        "url('https://a.b/c%20d?d=e&d=f').getQuery() == {'d': ['e', 'f']} && !isURL('a b') && url('/x').getScheme() == ''",
        "isIP('10.0.0.1') && ip('::1').family() == 6 && cidr('10.0.0.0/8').containsIP('10.1.2.3') && !isCIDR('10.0.0.0/33')",
        "cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && ip('127.0.0.1').isLoopback() && cidr('10.1.1.1/8').masked() == cidr('10.0.0.0/8')",
        "!format.dns1123Label().validate('a-b').hasValue() && format.named('dns1123Label').value().validate('A').hasValue()",
        "self.?__null__.orValue('none') == 'none' && self.words[?'z'].orValue('q') == 'q' && optional.of(1).optMap(x, x + 1).value() == 2",
        "self.?n.hasValue() && [1, ?optional.none()].size() == 1 && optional.none().or(optional.of(2)).value() == 2",
        "false && 1 / 0 == 1 || true || 1 / 0 == 1",
        "(1 / 0 == 1 || true) && [0, 1].exists(x, 1 / x == 1)",
        "// a comment\n true",
    ] {
        assert!(of(rule).is_empty(), "{rule}: {:?}", of(rule));
    }
}

#[test]
fn rules_that_fail_say_so() {
    assert_eq!(of("self.n > 5"), ["spec: Invalid value: no"]);
    let tell = |rule: Value| said(&json!([rule]), &object(), None);
    assert_eq!(tell(json!({"rule": "self.n > 5"})), ["spec: Invalid value: failed rule: self.n > 5"]);
    let rule = json!({"rule": "self.n > 5", "messageExpression": "'n is %d'.format([self.n])", "reason": "FieldValueForbidden", "fieldPath": ".n"});
    assert_eq!(tell(rule), ["spec.n: Forbidden: n is 5"]);
    let rule = json!({"rule": "self.n > 5", "message": "m", "messageExpression": "''", "fieldPath": ".words['a.b']"});
    assert_eq!(tell(rule), ["spec.words[a.b]: Invalid value: m"]);
    assert_eq!(
        of("self.list[7] == 1"),
        ["spec: Invalid value: \"object\": index out of bounds: 7 evaluating rule: no"]
    );
    assert_eq!(of("self.words['z'] == 'y'"), ["spec: Invalid value: \"object\": no such key: z evaluating rule: no"]);
    assert_eq!(
        of("duration('1' + 'd') == duration('24h')"),
        ["spec: Invalid value: \"object\": invalid duration \"1d\" evaluating rule: no"]
    );
    assert_eq!(of("self.n / 0 == 1"), ["spec: Invalid value: \"object\": division by zero evaluating rule: no"]);
    let words = "'no such overload': call arguments did not match a supported operator, function or macro signature for rule: no";
    assert_eq!(of("self.port + 1 == 2"), [format!("spec: Invalid value: \"object\": {words}")]);
    let mut schema = schema();
    schema["properties"]["spec"]["properties"]["n"]["x-kubernetes-validations"] =
        json!([{"rule": "self < 3", "message": "large"}]);
    let schema = Structural::read_whole(&schema);
    let mut errors = FieldErrors::new();
    validate(&schema, &object(), None, &mut errors);
    let told: Vec<String> = errors.into_told().iter().map(ToString::to_string).collect();
    assert_eq!(told, ["spec.n: Invalid value: 5: large"]);
}

#[test]
fn old_values_are_asked_about_where_there_are_any() {
    let rules = json!([{"rule": "self.n >= oldSelf.n", "message": "less"}, {"rule": "self.s == 'x'", "message": "s"}]);
    let mut less = object();
    less["spec"]["n"] = 4.into();
    assert_eq!(said(&rules, &object(), None), ["spec: Invalid value: s"]);
    assert_eq!(said(&rules, &less, Some(&object())), ["spec: Invalid value: less", "spec: Invalid value: s"]);
    // What has not changed is let through by rules that do not ask about it.
    assert!(said(&rules, &object(), Some(&object())).is_empty());
    let rules = json!([{"rule": "oldSelf.hasValue() || self.n == 1", "optionalOldSelf": true, "message": "new"}]);
    assert_eq!(said(&rules, &object(), None), ["spec: Invalid value: new"]);
    assert!(said(&rules, &less, Some(&object())).is_empty());

    let items = json!([{"rule": "self.v >= oldSelf.v", "message": "less"}]);
    let mut schema = schema();
    schema["properties"]["spec"]["properties"]["map"]["items"]["x-kubernetes-validations"] = items;
    let schema = Structural::read_whole(&schema);
    let mut new = object();
    new["spec"]["map"] = json!([{"k": "b", "v": 1}, {"k": "c", "v": 0}, {"k": "a", "v": 1}]);
    let (mut errors, old) = (FieldErrors::new(), object());
    validate(&schema, &new, Some(&old), &mut errors);
    let told: Vec<String> = errors.into_told().iter().map(ToString::to_string).collect();
    assert_eq!(told, ["spec.map[0]: Invalid value: less"]);
}

#[test]
fn what_is_no_rule_is_told() {
    let fault = |rule: &str| {
        let mut schema = schema();
        schema["properties"]["spec"]["x-kubernetes-validations"] = json!([{"rule": rule}]);
        let read = Structural::read_whole(&schema);
        read.properties.get("spec").and_then(|spec| spec.rules.first()?.fault.clone()).unwrap_or_default()
    };
    let undeclared = "compilation failed: ERROR: <input>:1:10: undeclared reference to 'other' (in container '')\n | self.n > other\n | .........^";
    assert_eq!(fault("self.n > other"), undeclared);
    for (rule, words) in [
        ("self.nothing == 1", "undefined field 'nothing'"),
        ("has(self.nothing)", "undefined field 'nothing'"),
        ("self.list.all(x, x.y == 1)", "does not support field selection"),
        ("self.map.all(m, m.z == 1)", "undefined field 'z'"),
        ("self.metadata == 1", "undefined field 'metadata'"),
        ("strange(self.n)", "undeclared reference to 'strange'"),
        ("self.s.strange()", "undeclared reference to 'strange'"),
        ("self.s.startsWith()", "found no matching overload for 'startsWith'"),
        ("self.n", "cel expression must evaluate to a bool"),
        ("self.s + 'a'", "cel expression must evaluate to a bool"),
        ("self.n && true", "expected type 'bool' but found 'int'"),
        ("self.open.deep == 1", "undefined field 'deep'"),
        ("self.x == 2", "found no matching overload for '_==_' applied to '(double, int)'"),
        ("has(self.null)", "Syntax error: mismatched input 'null' expecting IDENTIFIER"),
        ("self.size() > 0", "found no matching overload for 'size'"),
        ("self.n > ", "Syntax error"),
        ("self.n == 'a", "Syntax error"),
        ("self.s.matches('(')", "invalid matches argument"),
        ("self.list.all(1, true)", "argument must be a simple name"),
        ("self.n === 5", "Syntax error"),
    ] {
        assert!(fault(rule).contains(words), "{rule}: {}", fault(rule));
    }
    assert!(fault("true").is_empty());
    let root = json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.metadata.name == 'e' && self.kind == 'E'"}, {"rule": "has(self.metadata.labels)"}]});
    let read = Structural::read_whole(&root);
    assert!(read.rules[0].fault.is_none() && read.rules[1].fault.is_some());
}

#[test]
fn what_would_take_long_ends() {
    let deep = |open: &str, close: &str| format!("{}true{}", open.repeat(100_000), close.repeat(100_000));
    for rule in
        [deep("(", ")"), deep("[", "]"), deep("!(", ")"), format!("1{} == 1", " + 1".repeat(100_000)), deep("!", "")]
    {
        let said = of(&rule);
        assert!(said.len() <= 1, "{said:?}");
    }
    let mut large = object();
    large["spec"]["list"] = (0..1000).collect::<Vec<i32>>().into();
    for rule in [
        "self.list.all(a, self.list.all(b, self.list.all(c, a + b + c >= 0)))",
        "self.list.map(a, self.list.map(b, self.list.map(c, 'xxxxxxxxxx'))).size() > 0",
        "self.list.all(a, [self.list, self.list, self.list].flatten().sort().size() > 0)",
        "lists.range(1000000000).size() > 0",
        "self.list.exists(a, 'a'.matches('(a{1,1000}){1,' + string(a) + '}z'))",
    ] {
        let said = said(&json!([{"rule": rule, "message": "no"}]), &large, None);
        assert!(said.iter().any(|error| error.contains("cost")) || said[0].contains("regexp"), "{rule}: {said:?}");
    }
    let rule = json!({"rule": "self.list.all(a, self.list.all(b, b >= 0)) || true", "message": "no"});
    let said = said(&Value::Array(vec![rule; 30]), &large, None);
    assert!(said.iter().any(|error| error.contains("cost")), "{said:?}");
}

#[test]
fn what_looks_at_much_pays_for_it() {
    let started = crate::spent::now();
    let mut large = object();
    let spec = &mut large["spec"];
    spec["list"] = (0..300).collect::<Vec<i32>>().into();
    let pairs: Vec<String> = (0..100_000).map(|number| format!("k{number}=v")).collect();
    spec["s"] = format!("/a?{}", pairs.join("&")).into();
    spec["bytes"] = "AAAA".repeat(100_000).into();
    spec["words"] = (0..200)
        .map(|number| (format!("k{number}"), "x".repeat(20_000).into()))
        .collect::<serde_json::Map<_, _>>()
        .into();
    for rule in [
        // A query of many names, each of which is compared with none.
        "self.list.all(a, url(self.s).getQuery().size() > 0)",
        // Each match looks at all that is left for a longer one.
        "self.s.findAll('k(.*~)?').size() > 0",
        // Read, compared and converted again and again.
        "self.list.all(a, self.bytes.size() > 0)",
        "[self.bytes].all(b, self.list.all(a, b <= b))",
        "[bytes(self.s)].all(b, self.list.all(a, string(b) != ''))",
        // The budget ends while a list is sorted.
        "self.words.map(k, self.words[k] + k).sort().size() > 0",
    ] {
        let said = said(&json!([{"rule": rule, "message": "no"}]), &large, None);
        assert!(said.iter().any(|error| error.contains("cost")), "{rule}: {said:?}");
    }
    let spent = crate::spent::now() - started;
    assert!(spent < std::time::Duration::from_secs(60), "{spent:?}");
}

#[test]
fn fields_that_are_counted_are_paid_for() {
    let fields: serde_json::Map<String, Value> =
        (0..10_000).map(|number| (format!("f{number}"), json!({"type": "integer"}))).collect();
    let values: serde_json::Map<String, Value> = fields.keys().map(|name| (name.clone(), 1.into())).collect();
    let schema = json!({"type": "object", "properties": fields, "x-kubernetes-validations": [
        {"rule": "lists.range(1000).all(a, dyn(self).size() > 0)"},
    ]});
    let schema = json!({"type": "object", "properties": {"spec": schema}});
    let mut errors = FieldErrors::new();
    validate(&Structural::read_whole(&schema), &json!({"spec": values}), None, &mut errors);
    let told: Vec<String> = errors.into_told().iter().map(ToString::to_string).collect();
    assert!(told.iter().any(|error| error.contains("cost")), "{told:?}");
}
