//! A policy and a binding, read once: their expressions are compiled here.

use coracle_api::cel::admission::{Compiler, Condition, Expression, Gives, Variable, asks_about};
use coracle_api::meta::selector::LabelSelector;
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
}

/// The expressions of a policy.
#[derive(Debug)]
pub(crate) struct Program {
    pub conditions: Vec<Condition>,
    pub variables: Vec<Variable>,
    pub does: Does,
    /// Whether one of them asks about the namespace.
    pub asks_namespace: bool,
}

impl Policy {
    pub fn read(object: &Value) -> Policy {
        let (name, spec) = (text(&object["metadata"]["name"]), &object["spec"]);
        let params = &spec["paramKind"];
        let params = params
            .is_object()
            .then(|| ParamKind { api_version: text(&params["apiVersion"]), kind: text(&params["kind"]) });
        let program = Program::read(object["kind"] == "MutatingAdmissionPolicy", spec, params.is_some());
        if let Err(why) = &program {
            tracing::error!(%name, "the expressions of an admission policy cannot be compiled: {why}");
        }
        Policy {
            name,
            matching: MatchResources::of_policy(&spec["matchConstraints"]),
            params,
            fails: spec["failurePolicy"] != "Ignore",
            program,
        }
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
        Ok(Program { conditions, variables, does, asks_namespace })
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
    pub policy: String,
    pub matching: Option<MatchResources>,
    pub params: Option<ParamRef>,
    /// Of a binding of a policy that validates.
    pub actions: Vec<Action>,
}

impl Binding {
    pub fn read(object: &Value) -> Binding {
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
        let action = |action: &Value| match action.as_str()? {
            "Deny" => Some(Action::Deny),
            "Warn" => Some(Action::Warn),
            "Audit" => Some(Action::Audit),
            _ => None,
        };
        let resources = &spec["matchResources"];
        Binding {
            name: text(&object["metadata"]["name"]),
            policy: text(&spec["policyName"]),
            matching: resources.is_object().then(|| MatchResources::of_policy(resources)),
            params,
            actions: items(&spec["validationActions"]).filter_map(action).collect(),
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn items(list: &Value) -> std::slice::Iter<'_, Value> {
    list.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}
