//! Expressions that admission asks (kubernetes-api §22.4): about an object that is to be written, what it was, and the request.
//!
//! ```text
//! text ─► Expression (compiled once, when a configuration is read) ─► eval(Input, budget) ─► a bool, or why there is none
//! ```
//! Nothing is known of the types of `object`, `oldObject` and `params`; `request` and `namespaceObject` have theirs, so that a
//! field that they lack is told when the expression is written.

use std::rc::Rc;
use std::sync::LazyLock;

use serde_json::{Value, json};

use super::eval::{Run, Stop};
use super::parse;
use super::program::{self, Expr, Ty};
use super::value::{Shape, Val};
use super::{RULE_BUDGET, STATES_ALL_MAX};
use crate::custom::structural::Structural;

/// What all match conditions of one webhook or policy may cost for one request (Kubernetes').
pub const CONDITIONS_BUDGET: usize = 2_500_000;
/// What a question to the authorizer costs (Kubernetes').
const CHECK_COST: usize = 350_000;

/// Answers what an expression asks of `authorizer`.
pub trait Authorizer {
    /// What the request itself is about, `authorizer.requestResource`.
    fn request_resource(&self) -> Asked;
    /// Whether the caller of the request, or a service account (its namespace and its name), may do this with `verb`.
    fn check(&self, account: Option<(&str, &str)>, asked: &Asked, verb: &str) -> Decision;
}

/// What may be allowed, but for the verb.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Of what is no resource.
    pub path: Option<String>,
    /// The group of a resource.
    pub group: String,
    /// As `pods`.
    pub resource: String,
    /// As `status`.
    pub subresource: String,
    /// Empty for the cluster.
    pub namespace: String,
    /// Empty for all.
    pub name: String,
}

/// An authorizer's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why, in words.
    pub reason: String,
}

/// A value on the way from `authorizer` to a decision.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Authority {
    account: Option<(String, String)>,
    pub at: Stage,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    Authorizer,
    Group(String),
    /// A path or a resource.
    Check(Asked),
    Decided(Decision),
}

impl Authority {
    pub fn type_name(&self) -> &'static str {
        match &self.at {
            Stage::Authorizer => "kubernetes.authorization.Authorizer",
            Stage::Group(_) => "kubernetes.authorization.GroupCheck",
            Stage::Check(Asked { path: Some(_), .. }) => "kubernetes.authorization.PathCheck",
            Stage::Check(_) => "kubernetes.authorization.ResourceCheck",
            Stage::Decided(_) => "kubernetes.authorization.Decision",
        }
    }

    fn at<'a>(&self, at: Stage) -> Val<'a> {
        Val::Authority(Rc::new(Authority { account: self.account.clone(), at }))
    }

    /// The field of `authorizer`.
    pub fn field<'a>(&self, name: &str, run: &Run<'a>) -> Option<Val<'a>> {
        match (&self.at, run.authorizer) {
            (Stage::Authorizer, Some(authorizer)) if name == "requestResource" => {
                Some(self.at(Stage::Check(authorizer.request_resource())))
            }
            _ => None,
        }
    }

    /// Calls one of its functions.
    pub fn call<'a>(&self, run: &mut Run<'a>, name: &str, given: &[Val<'a>]) -> Result<Val<'a>, Stop> {
        let mut texts = Vec::with_capacity(given.len());
        for value in given {
            let Val::Text(text) = value else { return Err(Stop::overload()) };
            texts.push(&**text);
        }
        let with = |change: fn(&mut Asked, String), text: &str| match &self.at {
            Stage::Check(asked) if asked.path.is_none() => {
                let mut asked = asked.clone();
                change(&mut asked, text.to_owned());
                Ok(self.at(Stage::Check(asked)))
            }
            _ => Err(Stop::overload()),
        };
        match (name, &self.at, texts.as_slice()) {
            (".path", Stage::Authorizer, [path]) if path.trim().is_empty() => Err(Stop::new("path must not be empty")),
            (".path", Stage::Authorizer, [path]) => {
                Ok(self.at(Stage::Check(Asked { path: Some((*path).to_owned()), ..Asked::default() })))
            }
            (".group", Stage::Authorizer, [group]) => Ok(self.at(Stage::Group((*group).to_owned()))),
            (".serviceAccount", Stage::Authorizer, [namespace, name]) => {
                if !crate::meta::names::is_dns_subdomain(name) {
                    return Err(Stop::new("Invalid service account name"));
                }
                if !crate::meta::names::is_dns_label(namespace) {
                    return Err(Stop::new("Invalid service account namespace"));
                }
                let account = Some(((*namespace).to_owned(), (*name).to_owned()));
                Ok(Val::Authority(Rc::new(Authority { account, at: Stage::Authorizer })))
            }
            (".resource", Stage::Group(_), [resource]) if resource.trim().is_empty() => {
                Err(Stop::new("resource must not be empty"))
            }
            (".resource", Stage::Group(group), [resource]) => {
                let asked = Asked { group: group.clone(), resource: (*resource).to_owned(), ..Asked::default() };
                Ok(self.at(Stage::Check(asked)))
            }
            (".subresource", _, [text]) => with(|asked, text| asked.subresource = text, text),
            (".namespace", _, [text]) => with(|asked, text| asked.namespace = text, text),
            (".name", _, [text]) => with(|asked, text| asked.name = text, text),
            // Roles do not look at what is selected.
            (".fieldSelector" | ".labelSelector", _, [text]) => with(|_, _| {}, text),
            (".check", Stage::Check(asked), [verb]) => {
                run.spend(CHECK_COST)?;
                let authorizer = run.authorizer.ok_or_else(|| Stop::new("no such attribute"))?;
                let account = self.account.as_ref().map(|(namespace, name)| (namespace.as_str(), name.as_str()));
                Ok(self.at(Stage::Decided(authorizer.check(account, asked, verb))))
            }
            (".allowed", Stage::Decided(decision), []) => Ok(Val::Bool(decision.allowed)),
            (".reason", Stage::Decided(decision), []) => Ok(Val::own(decision.reason.as_str())),
            // An authorizer that is asked in this process does not fail.
            (".errored", Stage::Decided(_), []) => Ok(Val::Bool(false)),
            (".error", Stage::Decided(_), []) => Ok(Val::own("")),
            _ => Err(Stop::overload()),
        }
    }
}

/// What an expression is asked about.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// As it shall be.
    pub object: Option<&'a Value>,
    /// As it was.
    pub old_object: Option<&'a Value>,
    /// The request, as an AdmissionReview has it, without the objects.
    pub request: &'a Value,
    /// What a policy is bound with.
    pub params: Option<&'a Value>,
    /// The namespace of the object.
    pub namespace: Option<&'a Value>,
    /// Who may do what.
    pub authorizer: Option<&'a dyn Authorizer>,
}

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It costs more than it may, or than is left: nothing further is to be asked.
    Budget,
    /// In words.
    Fault(String),
}

/// A condition, compiled.
#[derive(Debug)]
pub struct Condition {
    /// What errors call it.
    pub name: String,
    source: String,
    program: Expr,
}

static REQUEST: LazyLock<Structural> = LazyLock::new(|| {
    let text = json!({"type": "string"});
    let of = |fields: Value| json!({"type": "object", "properties": fields});
    let texts = json!({"type": "array", "items": text});
    let kind = of(json!({"group": text, "version": text, "kind": text}));
    let resource = of(json!({"group": text, "version": text, "resource": text}));
    let extra = json!({"type": "object", "additionalProperties": texts});
    Structural::read(&of(json!({
        "kind": kind, "resource": resource, "subResource": text,
        "requestKind": kind, "requestResource": resource, "requestSubResource": text,
        "name": text, "namespace": text, "operation": text, "dryRun": {"type": "boolean"},
        "userInfo": of(json!({"username": text, "uid": text, "groups": texts, "extra": extra})),
        "options": {"x-kubernetes-preserve-unknown-fields": true},
    })))
});

static NAMESPACE: LazyLock<Structural> = LazyLock::new(|| {
    let (text, whole) = (json!({"type": "string"}), json!({"type": "integer"}));
    let time = json!({"type": "string", "format": "date-time"});
    let of = |fields: Value| json!({"type": "object", "properties": fields});
    let texts = json!({"type": "array", "items": text});
    let words = json!({"type": "object", "additionalProperties": text});
    let condition = of(json!({
        "status": text, "type": text, "lastTransitionTime": time, "message": text, "reason": text,
    }));
    Structural::read(&of(json!({
        "metadata": of(json!({
            "name": text, "generateName": text, "namespace": text, "labels": words, "annotations": words, "UID": text,
            "creationTimestamp": time, "deletionGracePeriodSeconds": whole, "deletionTimestamp": time,
            "generation": whole, "resourceVersion": text, "finalizers": texts,
        })),
        "spec": of(json!({"finalizers": texts})),
        "status": of(json!({"conditions": {"type": "array", "items": condition}, "phase": text})),
    })))
});

/// The names, in the order of their places. One that there is not is called as nothing can be.
fn names(has_params: bool) -> Vec<(String, Ty<'static>)> {
    let params = if has_params { "params" } else { "" };
    [
        ("object", Ty::Any),
        ("oldObject", Ty::Any),
        ("request", Ty::Of(Shape::Of(&REQUEST))),
        ("namespaceObject", Ty::Of(Shape::Of(&NAMESPACE))),
        (params, Ty::Any),
        ("authorizer", Ty::Any),
    ]
    .map(|(name, ty)| (name.to_owned(), ty))
    .into()
}

impl Condition {
    /// Compiles an expression that gives a bool.
    ///
    /// # Errors
    /// Why it is none, in Kubernetes' words.
    pub fn compile(name: &str, source: &str, has_params: bool) -> Result<Condition, String> {
        let mut states = STATES_ALL_MAX;
        let made = parse::parse(source).and_then(|node| program::make_with(&node, names(has_params), &mut states));
        let made = made.map_err(|fault| format!("compilation failed: {}", fault.show(source)))?;
        if made.ty.is_no_bool() || is_dyn(&made.expr) {
            return Err(format!("must evaluate to bool but got {}", made.ty.name(&made.expr)));
        }
        Ok(Condition { name: name.to_owned(), source: source.to_owned(), program: made.expr })
    }

    /// Whether it holds; what that costs is taken from `budget`.
    ///
    /// # Errors
    /// That it has no value, or none that is a bool.
    pub fn holds(&self, inputs: &Inputs<'_>, budget: &mut usize) -> Result<bool, Failure> {
        let mut run = Run::new(RULE_BUDGET.min(*budget));
        run.authorizer = inputs.authorizer;
        let value = slots(inputs, &mut run).and_then(|slots| run.program(&self.program, slots));
        *budget -= run.spent();
        let failed = |words: &str| Failure::Fault(format!("expression '{}' resulted in error: {words}", self.source));
        match value {
            Ok(Val::Bool(value)) => Ok(value),
            Ok(other) => Err(failed(&format!("it must evaluate to bool but got {}", other.type_name()))),
            Err(Stop::Cost) if *budget == 0 => Err(Failure::Budget),
            Err(Stop::Cost) => Err(failed("operation cancelled: actual cost limit exceeded")),
            Err(Stop::Fault(words)) => Err(failed(&words)),
        }
    }
}

/// Whether all conditions hold. One that does not makes up for others that fail.
///
/// # Errors
/// What failed, in words.
pub fn matches(conditions: &[Condition], inputs: &Inputs<'_>) -> Result<bool, String> {
    let (mut budget, mut failed) = (CONDITIONS_BUDGET, Vec::new());
    for condition in conditions {
        match condition.holds(inputs, &mut budget) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(Failure::Budget) => {
                let words =
                    "validation failed due to running out of cost budget, no further validation rules will be run";
                return Err(words.to_owned());
            }
            Err(Failure::Fault(words)) => failed.push(words),
        }
    }
    if failed.is_empty() { Ok(true) } else { Err(crate::meta::field::aggregate(failed)) }
}

fn slots<'a>(inputs: &Inputs<'a>, run: &mut Run<'a>) -> Result<Vec<Val<'a>>, Stop> {
    static NOTHING: Value = Value::Null;
    let authority = Authority { account: None, at: Stage::Authorizer };
    Ok(vec![
        Val::of(inputs.object.unwrap_or(&NOTHING), Shape::Free, run)?,
        Val::of(inputs.old_object.unwrap_or(&NOTHING), Shape::Free, run)?,
        Val::of(inputs.request, Shape::Of(&REQUEST), run)?,
        Val::of(inputs.namespace.unwrap_or(&NOTHING), Shape::Of(&NAMESPACE), run)?,
        Val::of(inputs.params.unwrap_or(&NOTHING), Shape::Free, run)?,
        if inputs.authorizer.is_some() { Val::Authority(Rc::new(authority)) } else { Val::Null },
    ])
}

/// Whether nothing is known of what an expression gives, as it is a part of an object.
fn is_dyn(expr: &Expr) -> bool {
    match expr {
        Expr::Slot(at) => matches!(at, 0 | 1 | 4),
        Expr::Select(of, _, false) => is_dyn(of),
        Expr::Index(of, _, false) => is_dyn(of),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Roles;

    impl Authorizer for Roles {
        fn request_resource(&self) -> Asked {
            Asked { resource: "pods".into(), namespace: "ns".into(), name: "p".into(), ..Asked::default() }
        }

        fn check(&self, account: Option<(&str, &str)>, asked: &Asked, verb: &str) -> Decision {
            let shown = format!("{account:?} {verb} {} {}/{}", asked.resource, asked.namespace, asked.name);
            Decision { allowed: verb == "get", reason: shown }
        }
    }

    fn inputs<'a>(object: Option<&'a Value>, request: &'a Value) -> Inputs<'a> {
        Inputs { object, old_object: None, request, namespace: None, params: None, authorizer: Some(&Roles) }
    }

    fn ask(source: &str) -> Result<bool, String> {
        let condition = Condition::compile("c", source, false).unwrap_or_else(|why| panic!("{source}: {why}"));
        let object = json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"replicas": 3}});
        let request = json!({
            "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE", "namespace": "ns",
            "userInfo": {"username": "alice", "groups": ["g"]}, "options": {"kind": "CreateOptions"}, "dryRun": false,
        });
        matches(&[condition], &inputs(Some(&object), &request))
    }

    #[test]
    fn conditions_see_the_object_the_request_and_who_may_what() {
        for (source, expected) in [
            ("object.spec.replicas > 2 && oldObject == null", true),
            ("request.operation == 'CREATE' && request.namespace == 'ns' && !request.dryRun", true),
            ("has(object.metadata.labels.x) && !has(object.spec.other)", true),
            ("'g' in request.userInfo.groups && request.userInfo.username == 'bob'", false),
            ("request.options.kind == 'CreateOptions'", true),
            ("authorizer.group('').resource('pods').namespace('ns').name('p').check('get').allowed()", true),
            ("authorizer.requestResource.check('delete').allowed()", false),
            ("authorizer.requestResource.check('get').reason() == 'None get pods ns/p'", true),
            ("authorizer.path('/x').check('get').allowed() && !authorizer.path('/x').check('get').errored()", true),
            ("authorizer.serviceAccount('a', 'b').requestResource.check('get').reason().contains('\"b\"')", true),
            ("authorizer.group('a').resource('b').subresource('c').fieldSelector('d=e').check('get').allowed()", true),
        ] {
            assert_eq!(ask(source), Ok(expected), "{source}");
        }
        let words = "expression 'object.spec.nothing == 1' resulted in error: no such key: nothing";
        assert_eq!(ask("object.spec.nothing == 1"), Err(words.to_owned()));
        assert!(ask("authorizer.path(' ').check('get').allowed()").is_err());
        assert!(ask("authorizer.group('').check('get').allowed()").is_err());
    }

    #[test]
    fn what_is_no_condition_is_told() {
        let wrong = |source: &str| Condition::compile("c", source, false).expect_err(source);
        assert!(wrong("request.nothing == ''").contains("undefined field 'nothing'"));
        assert!(wrong("params.x == 1").contains("undeclared reference to 'params'"));
        assert_eq!(wrong("object.spec.flag"), "must evaluate to bool but got dyn");
        assert_eq!(wrong("'text'"), "must evaluate to bool but got string");
        assert_eq!(wrong("1"), "must evaluate to bool but got int");
        assert!(wrong("object.").starts_with("compilation failed: ERROR: <input>:1:8: "));
    }

    #[test]
    fn one_that_does_not_hold_makes_up_for_those_that_fail() {
        let make = |source: &str| Condition::compile("c", source, false).expect(source);
        let request = json!({});
        let ask = |sources: &[&str]| {
            let conditions: Vec<Condition> = sources.iter().map(|source| make(source)).collect();
            matches(&conditions, &inputs(None, &request))
        };
        assert_eq!(ask(&["object.x == 1", "false"]), Ok(false));
        assert!(ask(&["object.x == 1", "true"]).is_err());
        assert_eq!(ask(&[]), Ok(true));
    }

    #[test]
    fn conditions_end_where_the_budget_ends() {
        let source = "authorizer.requestResource.check('get').allowed()";
        let all: Vec<Condition> =
            (0..8).map(|_| Condition::compile("c", source, false).expect("a condition")).collect();
        let request = json!({});
        assert_eq!(matches(&all[..7], &inputs(None, &request)), Ok(true));
        assert!(matches(&all, &inputs(None, &request)).is_err_and(|why| why.contains("cost budget")));
    }
}
