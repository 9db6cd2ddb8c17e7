//! Expressions that admission asks (kubernetes-api §22.4): about an object that is to be written, what it was, and the request.
//!
//! ```text
//! text ─► Compiler ─► Expression (once, when a policy or a webhook is read) ─► Evaluation (for a request) ─► Outcome
//! ```
//! Nothing is known of the types of `object`, `oldObject` and `params`; `request` and `namespaceObject` have theirs, so that a
//! field that they lack is told when the expression is written.

use std::sync::Arc;

use serde_json::Value;

pub use super::authority::{Asked, Authorizer, Decision};
use super::authority::{Authority, Stage};
use super::signatures::{AUTHORIZER, RESOURCE_CHECK};
use super::types::{Decl, Declared, Fixed, Part, Variables};
use super::{Budget, EXPRESSION_BUDGET, Env, Expr, Made, Run, Shape, Stop, Ty, Val};
use crate::custom::Structural;
use crate::schema;

/// What all match conditions of one webhook or policy may cost for one request (Kubernetes').
pub const CONDITIONS_BUDGET: usize = 2_500_000;
/// What all other expressions of a policy may cost for one request and one binding of it (Kubernetes').
pub const POLICY_BUDGET: usize = 10_000_000;
/// Most variables of one policy.
const VARIABLES_MAX: usize = 1_000;

/// What is told when a budget is spent.
const SPENT: &str = "validation failed due to running out of cost budget, no further validation rules will be run";

static GROUP_VERSION_KIND: Fixed = Fixed {
    name: "kubernetes.GroupVersionKind",
    fields: &[("group", Part::Text), ("version", Part::Text), ("kind", Part::Text)],
};

static GROUP_VERSION_RESOURCE: Fixed = Fixed {
    name: "kubernetes.GroupVersionResource",
    fields: &[("group", Part::Text), ("version", Part::Text), ("resource", Part::Text)],
};

static USER_INFO: Fixed = Fixed {
    name: "kubernetes.UserInfo",
    fields: &[("username", Part::Text), ("uid", Part::Text), ("groups", Part::Texts), ("extra", Part::TextsMap)],
};

static REQUEST: Fixed = Fixed {
    name: "kubernetes.AdmissionRequest",
    fields: &[
        ("kind", Part::Of(&GROUP_VERSION_KIND)),
        ("resource", Part::Of(&GROUP_VERSION_RESOURCE)),
        ("subResource", Part::Text),
        ("requestKind", Part::Of(&GROUP_VERSION_KIND)),
        ("requestResource", Part::Of(&GROUP_VERSION_RESOURCE)),
        ("requestSubResource", Part::Text),
        ("name", Part::Text),
        ("namespace", Part::Text),
        ("operation", Part::Text),
        ("userInfo", Part::Of(&USER_INFO)),
        ("dryRun", Part::Bool),
        ("options", Part::Any),
    ],
};

static NAMESPACE: Fixed = Fixed {
    name: "kubernetes.Namespace",
    fields: &[
        ("metadata", Part::Of(&NAMESPACE_METADATA)),
        ("spec", Part::Of(&NAMESPACE_SPEC)),
        ("status", Part::Of(&NAMESPACE_STATUS)),
    ],
};

static NAMESPACE_METADATA: Fixed = Fixed {
    name: "kubernetes.NamespaceMetadata",
    fields: &[
        ("name", Part::Text),
        ("generateName", Part::Text),
        ("namespace", Part::Text),
        ("labels", Part::TextMap),
        ("annotations", Part::TextMap),
        ("UID", Part::Text),
        ("creationTimestamp", Part::Time),
        ("deletionGracePeriodSeconds", Part::Int),
        ("deletionTimestamp", Part::Time),
        ("generation", Part::Int),
        ("resourceVersion", Part::Text),
        ("finalizers", Part::Texts),
    ],
};

static NAMESPACE_SPEC: Fixed = Fixed { name: "kubernetes.NamespaceSpec", fields: &[("finalizers", Part::Texts)] };

static NAMESPACE_STATUS: Fixed = Fixed {
    name: "kubernetes.NamespaceStatus",
    fields: &[("conditions", Part::List(&NAMESPACE_CONDITION)), ("phase", Part::Text)],
};

static NAMESPACE_CONDITION: Fixed = Fixed {
    name: "kubernetes.NamespaceCondition",
    fields: &[
        ("status", Part::Text),
        ("type", Part::Text),
        ("lastTransitionTime", Part::Time),
        ("message", Part::Text),
        ("reason", Part::Text),
    ],
};

/// The places of the names.
mod place {
    pub const REQUEST: usize = 2;
    pub const NAMESPACE: usize = 3;
    pub const PARAMS: usize = 4;
    pub const AUTHORIZER: usize = 5;
    pub const REQUEST_RESOURCE: usize = 6;
    pub const VARIABLES: usize = 7;
}

/// The type of an object, when expressions are checked against it.
#[derive(Clone)]
pub enum Known<'s> {
    /// Nothing is known of it.
    Any,
    /// Of a built-in kind.
    BuiltIn(Arc<schema::Object>),
    /// Of a custom resource.
    Custom(&'s Structural),
}

impl<'s> Known<'s> {
    fn ty(&self, kind: &str) -> Ty<'s> {
        match self {
            Known::Any => Ty::Dyn,
            Known::BuiltIn(object) => Ty::Object(Decl::BuiltIn(object.clone(), kind.into())),
            Known::Custom(schema) => Ty::of(Shape::Whole(schema), kind),
        }
    }
}

/// What an expression must give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gives {
    /// A bool.
    Bool,
    /// A text.
    Text,
    /// A text or null.
    TextOrNull,
    /// Anything.
    Any,
    /// An `Object{}`, which is applied.
    Apply,
    /// A list of `JSONPatch{}`.
    Patch,
}

impl Gives {
    fn takes(self, ty: &Ty<'_>) -> bool {
        match self {
            Gives::Bool => matches!(ty, Ty::Bool),
            Gives::Text => matches!(ty, Ty::Text),
            Gives::TextOrNull => matches!(ty, Ty::Text | Ty::Null),
            Gives::Any => true,
            Gives::Apply => matches!(ty, Ty::Object(Decl::Apply(name)) if &**name == "Object"),
            Gives::Patch => matches!(ty, Ty::List(of) if matches!(**of, Ty::Object(Decl::Patch))),
        }
    }

    fn asked(self) -> &'static str {
        match self {
            Gives::Bool => "must evaluate to bool",
            Gives::Text => "must evaluate to string",
            Gives::TextOrNull => "must evaluate to one of [string null_type]",
            Gives::Any => "must evaluate to any",
            Gives::Apply => "must evaluate to Object",
            Gives::Patch => "must evaluate to list(JSONPatch)",
        }
    }
}

/// An expression, compiled.
#[derive(Debug)]
pub struct Expression {
    source: String,
    program: Expr,
    uses: u64,
    weight: usize,
}

impl Expression {
    /// As it is written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Bytes that it holds, about.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.weight
    }
}

/// An expression that others may name.
#[derive(Debug)]
pub struct Variable {
    name: String,
    expression: Expression,
}

/// An expression, and what those after it are told of it.
struct Compiled<'s> {
    expression: Expression,
    ty: Ty<'s>,
    depth: usize,
}

impl Variable {
    /// What it stands for.
    #[must_use]
    pub fn expression(&self) -> &Expression {
        &self.expression
    }
}

/// Compiles the expressions of one policy, or of the webhooks of one configuration.
pub struct Compiler<'s> {
    object: Ty<'s>,
    params: Option<Ty<'s>>,
    variables: Option<Arc<Variables<'s>>>,
    budget: Budget,
}

impl<'s> Compiler<'s> {
    /// One whose expressions may name `params`, if there are any.
    #[must_use]
    pub fn new(has_params: bool) -> Compiler<'s> {
        Compiler { object: Ty::Dyn, params: has_params.then_some(Ty::Dyn), variables: None, budget: Budget::default() }
    }

    /// One that checks against the types of the object and of the params.
    #[must_use]
    pub fn typed(object: (&Known<'s>, &str), params: Option<(&Known<'s>, &str)>) -> Compiler<'s> {
        let params = params.map(|(known, kind)| known.ty(kind));
        Compiler { object: object.0.ty(object.1), params, ..Compiler::new(false) }
    }

    /// Expressions from here on may name `variables`, of which there are none yet.
    pub fn declare(&mut self) {
        self.variables = Some(Arc::default());
    }

    /// Compiles an expression that those after it may name. When it is none they may do so all the same.
    ///
    /// # Errors
    /// Why it is none, in Kubernetes' words.
    pub fn variable(&mut self, name: &str, source: &str) -> Result<Variable, String> {
        if self.variables.as_ref().is_some_and(|all| all.len() >= VARIABLES_MAX) {
            return Err(format!("a policy has {VARIABLES_MAX} variables at most"));
        }
        let (made, declared) = match self.make(source, Gives::Any, true) {
            Ok(Compiled { expression, ty, depth }) => {
                (Ok(Variable { name: name.to_owned(), expression }), Declared { ty: ty.plain(), depth })
            }
            Err(why) => (Err(why), Declared { ty: Ty::Dyn, depth: 0 }),
        };
        // Nobody else holds them between two expressions.
        Arc::make_mut(self.variables.get_or_insert_default()).push(name, declared);
        made
    }

    /// Compiles an expression; `authorizer` says whether it may ask that.
    ///
    /// # Errors
    /// Why it is none, in Kubernetes' words.
    pub fn expression(&mut self, source: &str, gives: Gives, authorizer: bool) -> Result<Expression, String> {
        self.make(source, gives, authorizer).map(|made| made.expression)
    }

    /// What is wrong with an expression.
    pub fn faults(&mut self, source: &str) -> Option<String> {
        let env = self.env(Gives::Any, true);
        super::compile(source, &env, &mut self.budget).err()
    }

    fn env(&self, gives: Gives, authorizer: bool) -> Env<'s> {
        let hidden = || (String::new(), Ty::Error);
        let named = |name: &str, ty: Ty<'s>| (name.to_owned(), ty);
        let mut names = vec![
            named("object", self.object.clone()),
            named("oldObject", self.object.clone()),
            named("request", Ty::Object(Decl::Fixed(&REQUEST))),
            named("namespaceObject", Ty::Object(Decl::Fixed(&NAMESPACE))),
            self.params.as_ref().map_or_else(hidden, |ty| named("params", ty.clone())),
        ];
        if authorizer {
            names.push(named("authorizer", Ty::Opaque(AUTHORIZER)));
            names.push(named("authorizer.requestResource", Ty::Opaque(RESOURCE_CHECK)));
        } else {
            names.extend([hidden(), hidden()]);
        }
        let variables = self.variables.as_ref();
        names.push(variables.map_or_else(hidden, |all| named("variables", Ty::Object(Decl::Variables(all.clone())))));
        Env { names, patches: matches!(gives, Gives::Apply | Gives::Patch), binds: false }
    }

    fn make(&mut self, source: &str, gives: Gives, authorizer: bool) -> Result<Compiled<'s>, String> {
        let env = self.env(gives, authorizer);
        let made = super::compile(source, &env, &mut self.budget);
        let made = made.map_err(|told| format!("compilation failed: {told}"))?;
        if !gives.takes(&made.ty) {
            return Err(format!("{} but got {}", gives.asked(), made.ty.output()));
        }
        let Made { expr, ty, uses, depth, weight } = made;
        let weight = weight + source.len();
        Ok(Compiled { expression: Expression { source: source.to_owned(), program: expr, uses, weight }, ty, depth })
    }
}

/// What expressions are asked about.
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
    /// All has cost more than it may: nothing further is to be asked.
    Budget,
    /// In words.
    Fault(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Budget => f.write_str(SPENT),
            Failure::Fault(words) => f.write_str(words),
        }
    }
}

/// What an expression gives.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// true or false.
    Bool(bool),
    /// A text.
    Text(String),
    /// Nothing.
    Null,
    /// Something else, by the name of its type.
    Other(&'static str),
}

/// Expressions that are asked about the same request.
pub struct Evaluation<'a> {
    run: Run<'a>,
}

impl<'a> Evaluation<'a> {
    /// Expressions that may cost so much together, and name these variables.
    #[must_use]
    pub fn new(inputs: &Inputs<'a>, variables: &'a [Variable], budget: usize) -> Evaluation<'a> {
        let mut run = Run::of(EXPRESSION_BUDGET, budget);
        run.authorizer = inputs.authorizer;
        run.set(slots(inputs));
        run.declare(variables.iter().map(|variable| (variable.name.as_str(), &variable.expression.program)));
        Evaluation { run }
    }

    /// What they have cost.
    #[must_use]
    pub fn spent(&self) -> usize {
        self.run.spent()
    }

    /// The value of an expression.
    ///
    /// # Errors
    /// That it has none.
    pub fn value(&mut self, expression: &'a Expression) -> Result<Outcome, Failure> {
        Ok(match self.ask(expression)? {
            Val::Bool(value) => Outcome::Bool(value),
            Val::Text(text) => {
                self.spend(text.len() / 10, expression)?;
                Outcome::Text(text.to_string())
            }
            Val::Null => Outcome::Null,
            other => Outcome::Other(other.type_name()),
        })
    }

    /// The configuration that an expression gives.
    ///
    /// # Errors
    /// That it has no value, or none that can be applied.
    pub fn configuration(&mut self, expression: &'a Expression) -> Result<Value, Failure> {
        let value = self.ask(expression)?;
        self.json(&value, expression)
    }

    /// The JSON patch that an expression gives.
    ///
    /// # Errors
    /// That it has no value, or none that is a patch.
    pub fn patch(&mut self, expression: &'a Expression) -> Result<Value, Failure> {
        let value = self.ask(expression)?;
        let Val::List(steps) = value else {
            return Err(Failure::Fault("type mismatch: JSONPatchType.expression should evaluate to array".to_owned()));
        };
        let mut made = Vec::with_capacity(steps.len());
        for step in steps.iter() {
            let Val::Struct("JSONPatch", fields) = step else {
                let words = "type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch";
                return Err(Failure::Fault(words.to_owned()));
            };
            // What is said of a field last is what it is.
            let mut said: [Option<&Val<'a>>; 4] = [None; 4];
            self.spend(fields.len(), expression)?;
            for (name, value) in fields.iter() {
                if let Some(place) = STEP_FIELDS.iter().position(|known| known == name).and_then(|at| said.get_mut(at))
                {
                    *place = Some(value);
                }
            }
            let mut operation = serde_json::Map::new();
            for (name, value) in STEP_FIELDS.into_iter().zip(said) {
                let made = match (name, value) {
                    ("value", Some(value)) => self.json(value, expression)?,
                    (_, Some(Val::Text(text))) => {
                        self.spend(text.len() / 10, expression)?;
                        text.to_string().into()
                    }
                    ("op" | "path", _) => "".into(),
                    _ => continue,
                };
                operation.insert(name.to_owned(), made);
            }
            made.push(Value::Object(operation));
        }
        Ok(Value::Array(made))
    }

    /// A value as JSON, whose structures are named as the fields that lead to them.
    fn json(&mut self, value: &Val<'a>, expression: &Expression) -> Result<Value, Failure> {
        if let Val::Struct(name, _) = value {
            let mut names = Names { path: (*name).to_owned(), wrong: String::new() };
            names.check(value, &mut self.run).map_err(|stop| self.failure(stop, expression))?;
            if !names.wrong.is_empty() {
                return Err(Failure::Fault(format!("type mismatch: {}", names.wrong)));
            }
        }
        value.to_json(&mut self.run).map_err(|stop| self.failure(stop, expression))
    }

    fn spend(&mut self, cost: usize, expression: &Expression) -> Result<(), Failure> {
        self.run.spend(cost).map_err(|stop| self.failure(stop, expression))
    }

    fn ask(&mut self, expression: &'a Expression) -> Result<Val<'a>, Failure> {
        self.run.further(&expression.program).map_err(|stop| self.failure(stop, expression))
    }

    fn failure(&mut self, stop: Stop, expression: &Expression) -> Failure {
        // The expression is copied into what is told. Where nothing is left for that the next one is not asked.
        drop(self.run.spend(expression.source.len() / 10));
        let failed =
            |words: &str| Failure::Fault(format!("expression '{}' resulted in error: {words}", expression.source));
        match stop {
            Stop::Cost if self.run.is_spent() => Failure::Budget,
            Stop::Cost => failed("operation cancelled: actual cost limit exceeded"),
            Stop::Fault(words) => failed(&words),
        }
    }
}

/// Whether an expression asks about the request or the namespace, which need not be made where none does.
#[must_use]
pub fn asks_about(expressions: &[&Expression], variables: &[Variable]) -> (bool, bool) {
    let all = expressions.iter().copied().chain(variables.iter().map(|variable| &variable.expression));
    let uses = all.fold(0, |uses, expression| uses | expression.uses);
    (uses & (1 << place::REQUEST) != 0, uses & (1 << place::NAMESPACE) != 0)
}

fn slots<'a>(inputs: &Inputs<'a>) -> Vec<Val<'a>> {
    let mut slots = vec![Val::Null; place::VARIABLES];
    let values = [inputs.object, inputs.old_object, Some(inputs.request), inputs.namespace, inputs.params];
    for (slot, value) in slots.iter_mut().zip(values) {
        *slot = value.map_or(Val::Null, Val::free);
    }
    if let Some(authorizer) = inputs.authorizer {
        let at = [
            (place::AUTHORIZER, Stage::Authorizer),
            (place::REQUEST_RESOURCE, Stage::Check(authorizer.request_resource())),
        ];
        for (place, stage) in at {
            if let Some(slot) = slots.get_mut(place) {
                *slot = Authority::begin(stage);
            }
        }
    }
    debug_assert_eq!(place::PARAMS + 1, place::AUTHORIZER);
    // What is declared is found by its number.
    slots.push(Val::Null);
    slots
}

/// The fields of a step of a JSON patch.
const STEP_FIELDS: [&str; 4] = ["op", "path", "from", "value"];
/// Most bytes that are told of structures that are not named as they should be.
const WRONG_BYTES_MAX: usize = 16 << 10;

/// Whether each structure is named as the fields that lead to it.
struct Names {
    /// Of the fields that lead to where it is.
    path: String,
    wrong: String,
}

impl Names {
    /// Walks through a value; a part that is there twice is walked through twice, and paid for.
    fn check<'a>(&mut self, value: &Val<'a>, run: &mut Run<'a>) -> Result<(), Stop> {
        run.spend(1)?;
        match value {
            Val::Struct(name, fields) => {
                run.spend(name.len() / 100)?;
                if *name != self.path {
                    self.tell(name);
                }
                for (field, value) in fields.iter() {
                    let length = self.path.len();
                    run.spend(field.len() / 10)?;
                    self.path.push('.');
                    self.path.push_str(field);
                    let checked = self.check(value, run);
                    self.path.truncate(length);
                    checked?;
                }
                Ok(())
            }
            Val::List(items) => items.iter().try_for_each(|item| self.check(item, run)),
            Val::Map(fields) => fields.iter().try_for_each(|(_, value)| self.check(value, run)),
            _ => Ok(()),
        }
    }

    fn tell(&mut self, name: &str) {
        let Names { path, wrong } = self;
        if wrong.len() < WRONG_BYTES_MAX {
            let line = if wrong.is_empty() { "" } else { "\n" };
            let words = format!(
                "{line}unexpected type name {name:?}, expected {path:?}, which matches field name path from root Object type"
            );
            wrong.push_str(words.get(..words.floor_char_boundary(WRONG_BYTES_MAX)).unwrap_or_default());
        }
    }
}

/// A condition, compiled.
#[derive(Debug)]
pub struct Condition {
    /// What it is called.
    pub name: String,
    expression: Expression,
}

impl Condition {
    /// Compiles an expression that gives a bool.
    ///
    /// # Errors
    /// Why it is none, in Kubernetes' words.
    pub fn compile(name: &str, source: &str, has_params: bool) -> Result<Condition, String> {
        let expression = Compiler::new(has_params).expression(source, Gives::Bool, true)?;
        Ok(Condition { name: name.to_owned(), expression })
    }

    /// What is asked.
    #[must_use]
    pub fn expression(&self) -> &Expression {
        &self.expression
    }
}

/// Whether all conditions hold, or what failed, in words; and what that has cost. One that does not hold makes up for others
/// that fail.
pub fn matches(conditions: &[Condition], inputs: &Inputs<'_>) -> (Result<bool, String>, usize) {
    if conditions.is_empty() {
        return (Ok(true), 0);
    }
    let mut evaluation = Evaluation::new(inputs, &[], CONDITIONS_BUDGET);
    let holds = hold(conditions, &mut evaluation);
    (holds, evaluation.spent())
}

fn hold<'a>(conditions: &'a [Condition], evaluation: &mut Evaluation<'a>) -> Result<bool, String> {
    let mut failed = Vec::new();
    for condition in conditions {
        match evaluation.value(&condition.expression) {
            Ok(Outcome::Bool(true)) => {}
            Ok(Outcome::Bool(false)) => return Ok(false),
            Ok(_) => failed.push(format!("condition '{}' gives no bool", condition.name)),
            Err(Failure::Budget) => return Err(SPENT.to_owned()),
            Err(Failure::Fault(words)) => failed.push(words),
        }
    }
    if failed.is_empty() { Ok(true) } else { Err(crate::meta::field::aggregate(failed)) }
}
