//! What expressions are and what is told of those that are none, as the reference says it (`plugin/cel` of its admission), and
//! what they give.

use serde_json::{Value, json};

use super::admission::{Compiler, Evaluation, Expression, Failure, Gives, Inputs, Outcome, POLICY_BUDGET};
use super::eval::LEVELS_MAX;
use super::{Asked, Authorizer, Decision};

fn compile(source: &str, gives: Gives) -> Result<(), String> {
    let mut compiler = Compiler::new(false);
    compiler.declare();
    for (name, source) in [("n", "1"), ("list", "[1, 2]"), ("any", "object.a"), ("bad", "object.nothing.there")] {
        compiler.variable(name, source).expect("a variable");
    }
    compiler.expression(source, gives, true).map(drop)
}

/// A fault that is told of the first line of a source.
fn told(source: &str, faults: &[(usize, &str)]) -> String {
    let lines: Vec<String> = faults
        .iter()
        .map(|(at, words)| format!("ERROR: <input>:1:{at}: {words}\n | {source}\n | {}^", ".".repeat(at - 1)))
        .collect();
    format!("compilation failed: {}", lines.join("\n"))
}

#[test]
fn types_are_told_as_the_reference_tells_them() {
    let undeclared = |name: &str| format!("undeclared reference to '{name}' (in container '')");
    let no_overload = |name: &str, given: &str| format!("found no matching overload for '{name}' applied to '{given}'");
    for (source, at, words) in [
        ("1 > '1'", 3, no_overload("_>_", "(int, string)")),
        ("'a' + 1", 5, no_overload("_+_", "(string, int)")),
        ("1 == 1.0", 3, no_overload("_==_", "(int, double)")),
        ("1 && true", 1, "expected type 'bool' but found 'int'".to_owned()),
        ("true || 1", 9, "expected type 'bool' but found 'int'".to_owned()),
        ("[1, 'a']", 5, "expected type 'int' but found 'string'".to_owned()),
        ("[dyn(1), 'a']", 10, "expected type 'dyn' but found 'string'".to_owned()),
        ("[[1], ['a']]", 7, "expected type 'list(int)' but found 'list(string)'".to_owned()),
        ("{'a': 1, 'b': 'c'}", 15, "expected type 'int' but found 'string'".to_owned()),
        ("[1, null]", 5, "expected type 'int' but found 'null'".to_owned()),
        ("strange(1) + 'a'", 8, undeclared("strange")),
        ("'a'.strange(1)", 12, undeclared("strange")),
        ("'a'.startsWith()", 15, no_overload("startsWith", "string.()")),
        ("'a'.foo", 4, "type 'string' does not support field selection".to_owned()),
        ("request.foo == 'a'", 8, "undefined field 'foo'".to_owned()),
        ("namespaceObject.metadata.nothing == 'b'", 25, "undefined field 'nothing'".to_owned()),
        ("request.kind['group']", 13, no_overload("_[_]", "(kubernetes.GroupVersionKind, string)")),
        ("request.userInfo.groups['a']", 24, no_overload("_[_]", "(list(string), string)")),
        ("authorizer.group('').check('get')", 27, no_overload("check", "kubernetes.authorization.GroupCheck.(string)")),
        ("[1,2].all(x, x)", 14, "expected type 'bool' but found 'int'".to_owned()),
        ("[1,2].filter(x, x)", 13, no_overload("_?_:_", "(int, list(int), list(int))")),
        ("[1].exists_one(x, 1)", 15, no_overload("_?_:_", "(int, int, int)")),
        (
            "1.all(x, true)",
            1,
            "expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)".to_owned(),
        ),
        ("true ? 1 : 'a'", 6, no_overload("_?_:_", "(bool, int, string)")),
        ("1 in ['a']", 3, no_overload("@in", "(int, list(string))")),
        ("-'a'", 1, no_overload("-_", "(string)")),
        ("!1", 1, no_overload("!_", "(int)")),
        ("optional.of(1).orValue('a')", 23, no_overload("orValue", "optional_type(int).(string)")),
        ("[1].join()", 9, no_overload("join", "list(int).()")),
        ("'abc'.reverse()", 14, no_overload("reverse", "string.()")),
        ("variables.n + 'x'", 13, no_overload("_+_", "(int, string)")),
        ("variables.nothing == 1", 10, "undefined field 'nothing'".to_owned()),
        ("params.a == 1", 1, undeclared("params")),
        ("Object{}", 7, undeclared("Object")),
        ("has(object)", 5, "invalid argument to has() macro".to_owned()),
        ("'a'.matches('(')", 13, "invalid matches argument".to_owned()),
        ("duration('x') == duration('1s')", 10, "invalid duration argument".to_owned()),
        ("object.", 8, "Syntax error: no viable alternative at input '.'".to_owned()),
        ("[1, 2", 6, "Syntax error: mismatched input '<EOF>' expecting {']', ','}".to_owned()),
        ("a b", 3, "Syntax error: extraneous input 'b' expecting <EOF>".to_owned()),
        ("a ? b", 6, "Syntax error: mismatched input '<EOF>' expecting ':'".to_owned()),
        (
            "true &&",
            8,
            "Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', \
             NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}"
                .to_owned(),
        ),
    ] {
        assert_eq!(compile(source, Gives::Any), Err(told(source, &[(at, &words)])), "{source}");
    }
    let both = "self.n > other";
    let faults = [(1, &*undeclared("self")), (10, &*undeclared("other"))];
    assert_eq!(compile(both, Gives::Any), Err(told(both, &faults)));
    let both = "jsonpatch.escapeKey('a')";
    let faults = [(1, &*undeclared("jsonpatch")), (20, &*undeclared("escapeKey"))];
    assert_eq!(compile(both, Gives::Any), Err(told(both, &faults)));
}

#[test]
fn what_an_expression_gives_must_be_what_is_asked() {
    for (source, gives, found) in [
        ("1 + 1", Gives::Bool, "must evaluate to bool but got int"),
        ("object.x", Gives::Bool, "must evaluate to bool but got dyn"),
        ("has(object.x)", Gives::Text, "must evaluate to string but got bool"),
        ("object.x", Gives::Text, "must evaluate to string but got dyn"),
        ("1", Gives::TextOrNull, "must evaluate to one of [string null_type] but got int"),
        ("{}", Gives::Bool, "must evaluate to bool but got map(dyn, dyn)"),
        ("[1].first()", Gives::Bool, "must evaluate to bool but got optional_type(int)"),
        ("[]", Gives::Patch, "must evaluate to list(JSONPatch) but got list(dyn)"),
        ("Object.spec{a: 1}", Gives::Apply, "must evaluate to Object but got Object.spec"),
        (
            "duration('1h') + timestamp('2026-01-01T00:00:00Z')",
            Gives::Bool,
            "must evaluate to bool but got google.protobuf.Timestamp",
        ),
        ("variables.list", Gives::Bool, "must evaluate to bool but got list(int)"),
        ("variables.any", Gives::Bool, "must evaluate to bool but got dyn"),
        ("true ? 'a' : object.x", Gives::Text, "must evaluate to string but got dyn"),
        ("object.a + object.b", Gives::Text, "must evaluate to string but got dyn"),
        ("request.dryRun", Gives::Text, "must evaluate to string but got bool"),
        (
            "authorizer.requestResource",
            Gives::Bool,
            "must evaluate to bool but got kubernetes.authorization.ResourceCheck",
        ),
    ] {
        assert_eq!(compile(source, gives), Err(found.to_owned()), "{source}");
    }
    for (source, gives) in [
        ("null", Gives::TextOrNull),
        ("object.a.lowerAscii() + object.b", Gives::Text),
        ("request.userInfo.extra['a'][0]", Gives::Text),
        ("Object{metadata: Object.metadata{labels: {'a': object.b}}}", Gives::Apply),
        ("true ? Object{} : Object{?a: optional.none()}", Gives::Apply),
        ("true ? [JSONPatch{op: 'add', path: '/a', value: 1}] : []", Gives::Patch),
        ("[JSONPatch{op: 'add', path: '/' + jsonpatch.escapeKey('a'), value: Object.a{b: 1}}]", Gives::Patch),
        ("'%s %s'.format([1, 'a'])", Gives::Text),
        ("object.x.all(k, v, k == v) && [1, 2].existsOne(i, v, v == 1)", Gives::Bool),
        ("oldObject == null || object.spec.replicas >= oldObject.spec.replicas", Gives::Bool),
    ] {
        assert_eq!(compile(source, gives), Ok(()), "{source}");
    }
    let patch = "[JSONPatch{op: 1, foo: 3}]";
    let faults = [
        (14, "expected type of field 'op' is 'string' but provided type is 'int'"),
        (22, "expected type of field 'foo' is '' but provided type is 'int'"),
    ];
    assert_eq!(compile(patch, Gives::Patch), Err(told(patch, &faults)));
}

fn value(source: &str) -> Result<Outcome, String> {
    let mut compiler = Compiler::new(false);
    compiler.declare();
    let variables: Vec<_> = [("n", "1"), ("more", "variables.n + 1"), ("bad", "object.nothing.there")]
        .iter()
        .map(|(name, source)| compiler.variable(name, source).expect("a variable"))
        .collect();
    let expression = compiler.expression(source, Gives::Any, true).unwrap_or_else(|why| panic!("{source}: {why}"));
    let object = json!({"spec": {"replicas": 7, "names": ["a", "b"]}, "metadata": {"labels": {"x": "y"}}});
    let request = json!({"operation": "CREATE", "userInfo": {"username": "bob", "groups": ["g"]}});
    let inputs = Inputs {
        object: Some(&object),
        old_object: None,
        request: &request,
        params: None,
        namespace: None,
        authorizer: None,
    };
    Evaluation::new(&inputs, &variables, POLICY_BUDGET).value(&expression).map_err(|failure| failure.to_string())
}

#[test]
fn expressions_give_what_the_reference_gives() {
    for source in [
        "object.spec.replicas == 7 && oldObject == null && object != null",
        "!has(object.spec) || object.spec.replicas <= 7",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && semver('v1.2', true).minor() == 2 && !isSemver('1.2')",
        "[3, 1].sortBy(x, -x) == [3, 1] && [3, 1].sortBy(x, x) == [1, 3]",
        "[[[1]], [[2]]].flatten(9223372036854775807) == [1, 2] && [[[1]]].flatten(1) == [[1]] && [[1]].flatten(0) == [[1]]",
        "[1].first().value() == 1 && !object.spec.names.first().hasValue() == false && [1, 2].last().value() == 2",
        "optional.unwrap([optional.of(1), optional.none()]) == [1] && [optional.of(1)].unwrapOpt() == [1]",
        "type('a') == string && type(timestamp('2026-01-01T00:00:00Z')) == google.protobuf.Timestamp",
        "object.?a.b.c.orValue('d') == 'd' && object.metadata.?labels[?'x'].orValue('b') == 'y'",
        "request.userInfo.groups.exists(g, g == 'g') && request.operation in ['CREATE', 'UPDATE']",
        "variables.more == 2 && has(variables.more) && [1, 2].all(x, variables.more >= x)",
        "dyn(1) == 1.0 && 1.5 > 1 && 1 >= 1.0 && 1u <= 2",
        "!has(oldObject.data) && !has(dyn('a').b) && !has(object.spec.replicas.x) && !oldObject[?'x'].hasValue()",
        "timestamp('2026-06-01T00:30:00Z').getHours('Europe/Berlin') == 2 && timestamp(0).getDate('America/New_York') == 31",
        "timestamp(0).getHours('+05:30') == 5 && timestamp(0).getHours('UTC') == 0",
        "'%s'.format([[1, 'a\"', 2.5, null, duration('1h')]]) == '[1, \"a\\\\\"\", 2.500000, null, duration(\"3600s\")]'",
        "'%s %s'.format([{'b': [1], 'a': 2}, 1.0]) == '{\"a\":2, \"b\":[1]} 1'",
        "'%x %X %o %x'.format([-255, b'\\xabc', -8, 'é']) == '-ff AB63 -10 c3a9'",
        "object.spec.names.map(n, n + '!') == ['a!', 'b!'] && object.metadata.labels.all(k, k.startsWith('x'))",
    ] {
        assert_eq!(value(source), Ok(Outcome::Bool(true)), "{source}");
    }
    for (source, words) in [
        ("object.nothing.there == 1", "no such key: nothing"),
        ("object.spec.replicas.there == 1", "no such key: there"),
        ("object.spec.names[2] == 'c'", "index out of bounds: 2"),
        ("variables.bad == 1", "composited variable \"bad\" fails to evaluate: no such key: nothing"),
        ("has(variables.bad)", "composited variable \"bad\" fails to evaluate: no such key: nothing"),
        ("object.spec.replicas / 0 == 1", "division by zero"),
        ("has(dyn([1]).x)", "unsupported index type 'string' in list"),
        ("dyn([1, 2])[1.5] == 2", "unsupported index value 1.5 in list"),
        ("dyn(1)['a'] == 2", "no such key: a"),
        ("timestamp(0).getHours('europe/berlin') == 2", "unknown time zone europe/berlin"),
        ("[1].slice(1, 0) == []", "cannot slice(1, 0), start index must be less than or equal to end index"),
        ("lists.range(-1) == []", "lists.range: size must be non-negative, got -1"),
        ("[[1]].flatten(-1) == [1]", "level must be non-negative"),
        ("lists.range(2000000).size() > 0", "operation cancelled: actual cost limit exceeded"),
    ] {
        assert_eq!(value(source), Err(format!("expression '{source}' resulted in error: {words}")), "{source}");
    }
}

#[test]
fn what_is_large_ends() {
    // Types that double with each variable, and many of them.
    let mut compiler = Compiler::new(false);
    compiler.declare();
    compiler.variable("v0", "{'a': 1}").expect("a variable");
    for number in 1..90 {
        let before = number - 1;
        let source = format!("[[variables.v{before}], [variables.v{before}]].map(x, {{'a': x, 'b': x}})");
        compiler.variable(&format!("v{number}"), &source).expect("a variable");
    }
    // Lists of lists without a type of their own.
    let empty = format!("[{}].size() > 0", vec!["[]"; 20_000].join(", "));
    compiler.expression(&empty, Gives::Bool, true).expect("an expression");
    // Faults that each show a long line.
    let long = format!("{} == 1", vec!["x"; 20_000].join(" + "));
    assert!(compiler.expression(&long, Gives::Bool, true).expect_err("a fault").len() < 1 << 20);
    let long = format!("[{}]", vec!["x"; 20_000].join(", "));
    assert!(compiler.expression(&long, Gives::Any, true).expect_err("a fault").len() < 1 << 20);
}

/// Runs on the stack of a worker.
fn on_a_worker(work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(2 << 20).spawn(work).expect("a thread").join().expect("no panic");
}

/// Answers that everything is allowed.
struct Allows;

impl Authorizer for Allows {
    fn request_resource(&self) -> Asked {
        Asked::default()
    }

    fn check(&self, _: Option<(&str, &str)>, _: &Asked, _: &str) -> Decision {
        Decision { allowed: true, reason: String::new() }
    }
}

/// Asks an expression, which may name variables, about an object.
fn ask<T>(
    variables: &[(String, String)],
    (source, gives): (&str, Gives),
    object: &Value,
    asks: impl for<'a> Fn(&mut Evaluation<'a>, &'a Expression) -> Result<T, Failure>,
) -> Result<T, String> {
    let mut compiler = Compiler::new(false);
    compiler.declare();
    let made = variables.iter().map(|(name, source)| compiler.variable(name, source));
    let variables: Vec<_> = made.collect::<Result<_, _>>().unwrap_or_else(|why| panic!("a variable: {why}"));
    let expression = compiler.expression(source, gives, true).unwrap_or_else(|why| panic!("{source}: {why}"));
    let request = json!({});
    let inputs = Inputs {
        object: Some(object),
        old_object: Some(object),
        request: &request,
        params: None,
        namespace: None,
        authorizer: Some(&Allows),
    };
    asks(&mut Evaluation::new(&inputs, &variables, POLICY_BUDGET), &expression).map_err(|failure| failure.to_string())
}

#[test]
fn a_text_that_is_given_is_paid_for() {
    let object = json!({"a": "x".repeat(1 << 20)});
    let asked = |expression: &str| {
        ask(&[], (expression, Gives::Any), &object, |run, of| {
            let value = run.value(of);
            Ok((value.is_ok(), run.spent()))
        })
    };
    let (given, cost) = asked("object.a").expect("asked");
    assert!(given && cost >= (1 << 20) / 10, "{cost}");
    // What fails shows the expression.
    let long = format!("object.b == '{}'", "y".repeat(100_000));
    let (given, cost) = asked(&long).expect("asked");
    assert!(!given && cost >= long.len() / 10, "{cost}");
}

/// Variables of which each is made of the one before it.
fn chain(count: usize, first: &str, next: impl Fn(&str) -> String) -> Vec<(String, String)> {
    let source =
        |number: usize| if number == 0 { first.to_owned() } else { next(&format!("variables.v{}", number - 1)) };
    (0..count).map(|number| (format!("v{number}"), source(number))).collect()
}

#[test]
fn variables_nest_as_deep_as_a_worker_goes() {
    on_a_worker(|| {
        // What is deeper is told when it is written.
        let mut compiler = Compiler::new(false);
        compiler.declare();
        let mut refused = None;
        for (name, source) in chain(1_000, "1", |before| format!("{before} + 1")) {
            if let Err(why) = compiler.variable(&name, &source) {
                refused = refused.or(Some((name, why)));
            }
        }
        let (name, why) = refused.expect("one of them is too deep");
        assert!(why.contains("nests too deeply, with the variables that it asks for"), "{why}");
        let deepest: usize = name.strip_prefix('v').and_then(|number| number.parse().ok()).expect("a number");
        assert!(deepest > 100, "{deepest}");
        let asked = format!("variables.v{} == {deepest}", deepest - 2);
        let counted = ask(
            &chain(deepest - 1, "2", |before| format!("{before} + 1")),
            (&asked, Gives::Bool),
            &json!({}),
            |run, of| run.value(of),
        );
        assert_eq!(counted, Ok(Outcome::Bool(true)));
        // Loops take most of a stack.
        let nested = |inner: &str| format!("{}{inner}{}", "[1].map(x, ".repeat(30), ")[0]".repeat(30));
        let levels = nested("1").matches("map").count();
        let loops = chain(LEVELS_MAX / (2 * levels) - 1, "1", nested);
        let asked = format!("variables.v{} == 1", loops.len() - 1);
        assert_eq!(ask(&loops, (&asked, Gives::Bool), &json!({}), |run, of| run.value(of)), Ok(Outcome::Bool(true)));
    });
}

#[test]
fn values_nest_no_deeper_than_they_can_be_walked() {
    on_a_worker(|| {
        let within = |before: &str| format!("[1].map(x, {}{before}{})", "[".repeat(40), "]".repeat(40));
        let deep = chain(9, "1", within);
        let failed = ask(&deep, ("variables.v8 == variables.v8", Gives::Bool), &json!({}), |run, of| run.value(of));
        assert!(failed.as_ref().is_err_and(|why| why.contains("a value nests too deeply")), "{failed:?}");
        let again = "[0].map(x, [x])".to_owned() + &".map(x, [x])".repeat(110);
        let failed = ask(&[], (&format!("{again} == {again}"), Gives::Bool), &json!({}), |run, of| run.value(of));
        assert!(failed.as_ref().is_err_and(|why| why.contains("a value nests too deeply")), "{failed:?}");
        let failed = ask(
            &chain(103, "optional.of(1)", |before| format!("optional.of({before})")),
            ("variables.v102.hasValue()", Gives::Any),
            &json!({}),
            |run, of| run.value(of),
        );
        assert!(failed.as_ref().is_err_and(|why| why.contains("a value nests too deeply")), "{failed:?}");
        // An object may nest deeper than two of them are compared.
        let object = (0..900).fold(json!(1), |inner, _| json!([inner]));
        let failed = ask(&[], ("object == oldObject", Gives::Bool), &object, |run, of| run.value(of));
        assert!(failed.as_ref().is_err_and(|why| why.contains("nests too deeply")), "{failed:?}");
    });
}

#[test]
fn what_is_there_twice_is_walked_through_twice_and_paid_for() {
    let double = |before: &str| format!("[{before}, {before}]");
    let doubled = chain(60, "dyn(1)", double);
    let config = ("Object{spec: Object.spec{a: variables.v59}}", Gives::Apply);
    let failed = ask(&doubled, config, &json!({}), |run, of| run.configuration(of)).expect_err("it costs too much");
    assert!(failed.contains("actual cost limit exceeded"), "{failed}");
    let patch = ("[JSONPatch{op: 'add', path: '/a', value: variables.v59}]", Gives::Patch);
    let failed = ask(&doubled, patch, &json!({}), |run, of| run.patch(of)).expect_err("it costs too much");
    assert!(failed.contains("actual cost limit exceeded"), "{failed}");
    let structures = chain(60, "dyn(1)", |before| format!("[{before}, {before}]"));
    let patch = ("[JSONPatch{op: 'add', path: '/a', value: Object.a{b: variables.v59}}]", Gives::Patch);
    let failed = ask(&structures, patch, &json!({}), |run, of| run.patch(of)).expect_err("it costs too much");
    assert!(failed.contains("actual cost limit exceeded"), "{failed}");
    // What is told of wrong names is bounded, too.
    let wrong = format!("Object{{a: [{}]}}", vec!["Object.strange{}"; 2_000].join(", "));
    let failed =
        ask(&[], (&wrong, Gives::Apply), &json!({}), |run, of| run.configuration(of)).expect_err("wrong names");
    assert!(
        failed.contains("unexpected type name \"Object.strange\", expected \"Object.a\"") && failed.len() < 32 << 10
    );
}

#[test]
fn what_is_copied_is_paid_for() {
    let long = "a".repeat(100_000);
    let object = json!({"text": long, "version": format!("1.0.0-{long}")});
    let costs = |variables: &[(&str, &str)], source: &str, gives: Gives| {
        let variables: Vec<_> =
            variables.iter().map(|(name, source)| ((*name).to_owned(), (*source).to_owned())).collect();
        let asked = match gives {
            Gives::Patch => ask(&variables, (source, gives), &object, |run, of| run.patch(of).map(drop)),
            Gives::Apply => ask(&variables, (source, gives), &object, |run, of| run.configuration(of).map(drop)),
            _ => ask(&variables, (source, gives), &object, |run, of| run.value(of).map(drop)),
        };
        let failed = asked.expect_err(source);
        assert!(failed.contains("actual cost limit exceeded"), "{source}: {failed}");
    };
    costs(&[], "lists.range(1000).map(i, JSONPatch{op: 'add', path: object.text, value: 1})", Gives::Patch);
    costs(&[("m", "{object.text: 1}")], "Object{data: lists.range(1000).map(i, variables.m)}", Gives::Apply);
    let semver = [("v", "semver(object.version)")];
    costs(&semver, "lists.range(1000).all(i, string(variables.v) != '')", Gives::Bool);
    costs(&semver, "lists.range(1000).all(i, variables.v == variables.v)", Gives::Bool);
    costs(
        &[("group", "authorizer.group(object.text)")],
        "lists.range(1000).all(i, type(variables.group.resource('pods')) != int)",
        Gives::Bool,
    );
    // A literal costs something, too, and so does what it is put into.
    costs(&[], &format!("lists.range(1000).all(i, [{}].size() > 0)", vec!["1"; 2_000].join(",")), Gives::Bool);
    costs(&[], &format!("lists.range(1000).all(i, {})", vec!["true"; 12_000].join(" && ")), Gives::Bool);
}

#[test]
fn words_of_faults_are_bounded() {
    let object = json!({"text": "a".repeat(100_000)});
    for source in
        ["{'a': 1}[object.text] == 1", "duration(object.text) == duration('1s')", "ip(object.text) == ip('::1')"]
    {
        let failed = ask(&[], (source, Gives::Bool), &object, |run, of| run.value(of)).expect_err(source);
        assert!(failed.len() < 4 << 10 && failed.contains('…'), "{source}: {}", failed.len());
    }
}

#[test]
fn variables_that_wait_for_one_another_hold_no_more_than_one_may() {
    let chain = chain(8, "[1]", |before| format!("[lists.range(600000).size(), {before}.size()]"));
    let failed = ask(&chain, ("variables.v7.size() == 2", Gives::Bool), &json!({}), |run, of| run.value(of));
    assert!(failed.as_ref().is_err_and(|why| why.contains("wait for one another")), "{failed:?}");
    // One after the other they may.
    let asked = "variables.v1.size() == 2 && variables.v2.size() == 2 && variables.v3.size() == 2";
    assert_eq!(ask(&chain, (asked, Gives::Bool), &json!({}), |run, of| run.value(of)), Ok(Outcome::Bool(true)));
}

#[test]
fn types_that_stand_for_one_another_end() {
    // Each stands for a map of the next to the next: written out the first has 2^40 parts.
    let count = 40;
    let equal = |at: usize| format!("a{at} == {{a{0}: a{0}}}", at + 1);
    for order in [(0..count).collect::<Vec<_>>(), (0..count).rev().collect()] {
        let body: Vec<String> = order.into_iter().map(equal).collect();
        let mut source = format!("{} && a0 == 1", body.join(" && "));
        for at in (0..=count).rev() {
            source = format!("[].all(a{at}, {source})");
        }
        let why = compile(&source, Gives::Bool).expect_err("no types");
        assert!(why.contains("the types of the expression are too large together"), "{why}");
    }
}

/// Of as many states as one may have.
const HEAVY: &str = "(a{1000}){19}";

#[test]
fn what_finds_no_room_is_not_compiled() {
    let mut compiler = Compiler::new(false);
    let source = format!("'x'.matches('{HEAVY}')");
    let begun = std::time::Instant::now();
    let made = (0..1_000).take_while(|_| compiler.expression(&source, Gives::Bool, true).is_ok()).count();
    assert!((10..60).contains(&made), "{made}");
    let compiling = begun.elapsed();
    let begun = std::time::Instant::now();
    for _ in 0..20 * made {
        assert!(compiler.expression(&source, Gives::Bool, true).is_err());
    }
    assert!(begun.elapsed() < 5 * compiling, "{:?}, and {compiling:?} for a twentieth of it", begun.elapsed());
    // What is small is compiled still, and what has too many bytes is not read.
    assert!(compiler.expression("'x'.matches('a')", Gives::Bool, true).is_ok());
    let mut compiler = Compiler::new(false);
    let long = format!("'{}' == ''", "x".repeat(600_000));
    assert!(compiler.faults(&long).is_none());
    let why = compiler.faults(&long).expect("too long");
    assert_eq!(why, "the expressions have more than 1048576 bytes together");
}

#[test]
fn what_turns_out_to_be_no_pattern_has_cost_as_much() {
    // Few states by their count, and more bytes than a compiled one may have.
    let object = json!({"pattern": "(.{1000}){19}"});
    let source = "lists.range(1000).exists(i, 'x'.matches(object.pattern))";
    let failed = ask(&[], (source, Gives::Bool), &object, |run, of| run.value(of)).expect_err("no pattern");
    assert!(failed.contains("cost limit exceeded"), "{failed}");
}
