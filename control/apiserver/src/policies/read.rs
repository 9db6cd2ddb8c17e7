//! A policy and a binding, read once: their expressions are compiled here.

use coracle_api::cel::admission::{Compiler, Condition, Expression, Gives, Variable, asks_about};
use coracle_api::codec::json;
use coracle_api::meta::selector::LabelSelector;
use coracle_api::schema;
use serde_json::Value;

use crate::hooks::matching::MatchResources;

/// What a policy does.
#[derive(Debug)]
pub(crate) enum Does {
    /// It says whether an object may be.
    Validates { validations: Vec<Validation>, annotations: Vec<Annotation> },
    /// It changes an object.
    Mutates { mutations: Vec<Mutation>, reinvoked: bool },
}

/// An expression that must hold.
#[derive(Debug)]
pub(crate) struct Validation {
    pub expression: Expression,
    pub message: String,
    pub message_expression: Option<Expression>,
    /// As `Invalid`.
    pub reason: String,
}

/// What is told to who keeps the audit log.
#[derive(Debug)]
pub(crate) struct Annotation {
    pub key: String,
    pub expression: Expression,
}

/// A change.
#[derive(Debug)]
pub(crate) enum Mutation {
    /// A configuration that is applied.
    Apply(Expression),
    /// A JSON patch.
    Patch(Expression),
}

/// The kind of what a policy is bound with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ParamKind {
    pub api_version: String,
    pub kind: String,
}

impl ParamKind {
    /// Its group and its version.
    pub fn group_version(&self) -> (&str, &str) {
        self.api_version.split_once('/').unwrap_or(("", &self.api_version))
    }
}

/// A policy.
#[derive(Debug)]
pub(crate) struct Policy {
    pub name: String,
    pub matching: MatchResources,
    pub params: Option<ParamKind>,
    /// Whether a request fails when the policy cannot be asked.
    pub fails: bool,
    /// Or why its expressions are none.
    pub program: Result<Program, String>,
    /// Bytes that the program holds, about.
    pub weight: usize,
    /// Whether there was no room for its program.
    pub is_laid_aside: bool,
}

/// The expressions of a policy.
#[derive(Debug)]
pub(crate) struct Program {
    pub conditions: Vec<Condition>,
    pub variables: Vec<Variable>,
    pub does: Does,
    /// Whether one of them asks about the namespace.
    pub asks_namespace: bool,
    /// Bytes that they hold, about.
    weight: usize,
}

impl Policy {
    /// Of what is stored under a name, of the kind of those that change objects, or of the other.
    pub fn stored(name: &str, mutates: bool, bytes: &[u8]) -> Policy {
        match decode(bytes, if mutates { "MutatingAdmissionPolicy" } else { "ValidatingAdmissionPolicy" }) {
            Ok(object) => Policy::read(name, mutates, &object),
            Err((object, why)) => {
                let why = format!("the policy is not stored as it should be: {why}");
                tracing::error!(%name, "an admission policy cannot be read: {why}");
                // As far as it can be read it is about what it says; else it is about everything, and fails.
                Policy { program: Err(why), ..Policy::without_program(name, &object["spec"]) }
            }
        }
    }

    pub fn read(name: &str, mutates: bool, object: &Value) -> Policy {
        let policy = Policy::without_program(name, &object["spec"]);
        let program = Program::read(mutates, &object["spec"], policy.params.is_some());
        if let Err(why) = &program {
            tracing::error!(%name, "the expressions of an admission policy cannot be compiled: {why}");
        }
        Policy { weight: program.as_ref().map_or(0, Program::weight), program, ..policy }
    }

    fn without_program(name: &str, spec: &Value) -> Policy {
        let params = &spec["paramKind"];
        Policy {
            name: name.to_owned(),
            matching: MatchResources::of_policy(&spec["matchConstraints"]),
            params: params
                .is_object()
                .then(|| ParamKind { api_version: text(&params["apiVersion"]), kind: text(&params["kind"]) }),
            fails: spec["failurePolicy"] != "Ignore",
            program: Err(String::new()),
            weight: 0,
            is_laid_aside: false,
        }
    }

    /// The same, without its program, of which there is too much.
    pub fn laid_aside(name: &str, mutates: bool, bytes: &[u8], weight: usize) -> Policy {
        let object = decode(bytes, if mutates { "MutatingAdmissionPolicy" } else { "ValidatingAdmissionPolicy" });
        let object = object.unwrap_or_else(|(object, _)| object);
        tracing::error!(%name, "the admission policies that are bound are too large together: this one cannot be asked");
        let why = "the admission policies that are bound are too large together".to_owned();
        Policy { program: Err(why), weight, is_laid_aside: true, ..Policy::without_program(name, &object["spec"]) }
    }
}

/// What is stored, as an object of its kind; or what of it can be read, and what is wrong with it.
fn decode(bytes: &[u8], kind: &str) -> Result<Value, (Value, String)> {
    let object = json::parse(bytes).map_err(|error| (Value::Null, error.to_string()))?;
    let Some(schema) = schema::named(&format!("io.k8s.api.admissionregistration.v1.{kind}")) else { return Ok(object) };
    match json::decode_value(&object, &schema) {
        Ok(_) => Ok(object),
        Err(error) => Err((object, error.to_string())),
    }
}

impl Program {
    fn read(mutates: bool, spec: &Value, has_params: bool) -> Result<Program, String> {
        let conditions = items(&spec["matchConditions"]).map(|condition| {
            Condition::compile(&text(&condition["name"]), text(&condition["expression"]).trim(), has_params)
        });
        let conditions: Vec<Condition> = conditions.collect::<Result<_, _>>()?;
        let mut compiler = Compiler::new(has_params);
        compiler.declare();
        let variables = items(&spec["variables"])
            .map(|variable| compiler.variable(&text(&variable["name"]), &text(&variable["expression"])));
        let variables: Vec<Variable> = variables.collect::<Result<_, _>>()?;
        let does = if mutates { mutations(&mut compiler, spec)? } else { validations(&mut compiler, spec)? };
        let asked: Vec<&Expression> = match &does {
            Does::Validates { validations, annotations } => validations
                .iter()
                .flat_map(|one| std::iter::once(&one.expression).chain(&one.message_expression))
                .chain(annotations.iter().map(|one| &one.expression))
                .collect(),
            Does::Mutates { mutations, .. } => mutations
                .iter()
                .map(|one| match one {
                    Mutation::Apply(expression) | Mutation::Patch(expression) => expression,
                })
                .collect(),
        };
        let (_, asks_namespace) = asks_about(&asked, &variables);
        let expressions = asked.into_iter().chain(variables.iter().map(Variable::expression));
        let expressions = expressions.chain(conditions.iter().map(Condition::expression));
        let weight = expressions.map(Expression::weight).sum();
        Ok(Program { conditions, variables, does, asks_namespace, weight })
    }

    fn weight(&self) -> usize {
        self.weight
    }
}

fn validations(compiler: &mut Compiler<'_>, spec: &Value) -> Result<Does, String> {
    let mut validations = Vec::new();
    for one in items(&spec["validations"]) {
        let expression = compiler.expression(&text(&one["expression"]), Gives::Bool, true)?;
        let message_expression = match one["messageExpression"].as_str() {
            None | Some("") => None,
            Some(source) => Some(compiler.expression(source, Gives::Text, false)?),
        };
        let reason = one["reason"].as_str().filter(|reason| !reason.is_empty()).unwrap_or("Invalid").to_owned();
        validations.push(Validation { expression, message: text(&one["message"]), message_expression, reason });
    }
    let mut annotations = Vec::new();
    for one in items(&spec["auditAnnotations"]) {
        let expression = compiler.expression(text(&one["valueExpression"]).trim(), Gives::TextOrNull, true)?;
        annotations.push(Annotation { key: text(&one["key"]), expression });
    }
    Ok(Does::Validates { validations, annotations })
}

fn mutations(compiler: &mut Compiler<'_>, spec: &Value) -> Result<Does, String> {
    let mut mutations = Vec::new();
    for one in items(&spec["mutations"]) {
        mutations.push(if one["patchType"] == "JSONPatch" {
            let source = text(&one["jsonPatch"]["expression"]);
            Mutation::Patch(compiler.expression(source.trim(), Gives::Patch, true)?)
        } else {
            let source = text(&one["applyConfiguration"]["expression"]);
            Mutation::Apply(compiler.expression(source.trim(), Gives::Apply, true)?)
        });
    }
    Ok(Does::Mutates { mutations, reinvoked: spec["reinvocationPolicy"] == "IfNeeded" })
}

/// What is done with an object that a policy does not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Deny,
    Warn,
    Audit,
}

impl Action {
    pub fn name(self) -> &'static str {
        match self {
            Action::Deny => "Deny",
            Action::Warn => "Warn",
            Action::Audit => "Audit",
        }
    }
}

/// What a policy is bound with.
#[derive(Debug)]
pub(crate) struct ParamRef {
    pub name: String,
    pub namespace: String,
    /// Instead of a name; or why it is none.
    pub selector: Option<Result<LabelSelector, String>>,
    /// Whether a request is denied where there is nothing.
    pub denies: bool,
}

/// A binding.
#[derive(Debug)]
pub(crate) struct Binding {
    pub name: String,
    /// Empty where that cannot be read.
    pub policy: String,
    /// Why it cannot be carried out, where it is not stored as it should be.
    pub unreadable: Option<String>,
    pub matching: Option<MatchResources>,
    pub params: Option<ParamRef>,
    /// Of a binding of a policy that validates.
    pub actions: Vec<Action>,
}

impl Binding {
    /// Of what is stored under a name.
    pub fn stored(name: &str, mutates: bool, bytes: &[u8]) -> Binding {
        let kind = if mutates { "MutatingAdmissionPolicyBinding" } else { "ValidatingAdmissionPolicyBinding" };
        match decode(bytes, kind) {
            Ok(object) => Binding::read(name, &object),
            Err((object, why)) => {
                let why = format!("the binding is not stored as it should be: {why}");
                tracing::error!(%name, "a binding of an admission policy cannot be read: {why}");
                Binding { unreadable: Some(why), ..Binding::read(name, &object) }
            }
        }
    }

    pub fn read(name: &str, object: &Value) -> Binding {
        let spec = &object["spec"];
        let params = &spec["paramRef"];
        let selector = &params["selector"];
        let params = params.is_object().then(|| ParamRef {
            name: text(&params["name"]),
            namespace: text(&params["namespace"]),
            selector: selector
                .is_object()
                .then(|| LabelSelector::from_object(selector).map_err(|error| error.to_string())),
            denies: params["parameterNotFoundAction"] != "Allow",
        });
        let action = |action: &Value| match action.as_str() {
            Some("Warn") => Action::Warn,
            Some("Audit") => Action::Audit,
            _ => Action::Deny,
        };
        let resources = &spec["matchResources"];
        Binding {
            name: name.to_owned(),
            policy: text(&spec["policyName"]),
            unreadable: None,
            matching: resources.is_object().then(|| MatchResources::of_policy(resources)),
            params,
            actions: items(&spec["validationActions"]).map(action).collect(),
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn items(list: &Value) -> std::slice::Iter<'_, Value> {
    list.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}
