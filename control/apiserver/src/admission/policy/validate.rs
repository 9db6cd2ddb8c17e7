//! One policy that validates, asked about one request with one set of params.

use coracle_api::cel::admission::{self, Evaluation, Expression, Inputs, Outcome, POLICY_BUDGET};

use super::told;
use crate::policies::{Annotation, Program, Validation};
use crate::request::spent::{Spent, UNIT_BYTES};

/// Longest message that an expression may give.
const MESSAGE_BYTES_MAX: usize = 5 << 10;
/// Longest value of an annotation.
const ANNOTATION_BYTES_MAX: usize = 10 << 10;

/// What is wrong, as the answer says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Which of the validations it is; 0 where none was asked.
    pub index: usize,
    pub message: String,
    /// As `Invalid`; empty where no validation says one.
    pub reason: String,
}

impl Refusal {
    /// What could not be asked.
    pub fn failed(message: String) -> Refusal {
        Refusal { index: 0, message, reason: String::new() }
    }
}

/// What a policy says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// What it refuses: what is done with that, its binding says.
    pub refusals: Vec<Refusal>,
    /// What it denies, whatever its binding says.
    pub denials: Vec<Refusal>,
    /// Annotations of the request.
    pub annotations: Vec<(String, String)>,
}

impl Verdict {
    fn refuse(&mut self, index: usize, message: String, reason: &str) {
        self.refusals.push(Refusal { index, message: told(message), reason: reason.to_owned() });
    }
}

/// Asks a policy. `fails` says whether it refuses what it cannot be asked about. Others have their turn between two expressions.
pub(super) async fn ask(
    program: &Program,
    (validations, annotations): (&[Validation], &[Annotation]),
    fails: bool,
    inputs: &Inputs<'_>,
    spent: &Spent,
) -> Verdict {
    let mut verdict = Verdict::default();
    let conditions = Inputs { namespace: None, ..*inputs };
    match spent.matches(&program.conditions, &conditions).await {
        Ok(true) => {}
        Ok(false) => return verdict,
        Err(why) => {
            // What cannot be asked is let through where the policy says so.
            if fails {
                verdict.refuse(0, why, "");
            }
            return verdict;
        }
    }
    if judge(&mut verdict, program, validations, fails, inputs, spent).await && !annotations.is_empty() {
        annotate(&mut verdict, program, annotations, fails, inputs, spent).await;
    }
    verdict
}

/// Asks the validations; says whether the budget was enough for that.
async fn judge(
    verdict: &mut Verdict,
    program: &Program,
    validations: &[Validation],
    fails: bool,
    inputs: &Inputs<'_>,
    spent: &Spent,
) -> bool {
    let mut asking = Asking::new(program, inputs);
    let mut untold = Vec::new();
    for (index, validation) in validations.iter().enumerate() {
        match asking.value(&validation.expression, spent).await {
            Ok(Outcome::Bool(true)) => {}
            Ok(_) => untold.push((index, validation)),
            Err(failure @ admission::Failure::Budget) => {
                // Nothing that was found before counts.
                verdict.refusals.clear();
                if fails {
                    verdict.refuse(0, failure.to_string(), "");
                }
                return false;
            }
            Err(failure) if fails => verdict.refuse(index, failure.to_string(), ""),
            Err(_) => {}
        }
    }
    for (index, validation) in untold {
        let told = match &validation.message_expression {
            Some(expression) => Some(asking.value(expression, spent).await),
            None => None,
        };
        let message = match told {
            Some(Ok(Outcome::Text(text))) => {
                let text = text.trim();
                let is_right = !text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n');
                is_right.then(|| text.to_owned())
            }
            Some(Err(failure @ admission::Failure::Budget)) => {
                if fails {
                    verdict.refuse(index, format!("failed messageExpression: {failure}"), "");
                }
                continue;
            }
            _ => None,
        };
        let message = message.unwrap_or_else(|| match validation.message.trim() {
            "" => format!("failed expression: {}", validation.expression.source().trim()),
            message => message.to_owned(),
        });
        spent.take(message.len() / UNIT_BYTES).await;
        verdict.refuse(index, message, &validation.reason);
    }
    verdict.refusals.sort_by_key(|refusal| refusal.index);
    true
}

async fn annotate(
    verdict: &mut Verdict,
    program: &Program,
    annotations: &[Annotation],
    fails: bool,
    inputs: &Inputs<'_>,
    spent: &Spent,
) {
    let mut asking = Asking::new(program, inputs);
    for annotation in annotations {
        match asking.value(&annotation.expression, spent).await {
            Ok(Outcome::Text(text)) if !text.trim().is_empty() => {
                let text = text.trim();
                let cut = text.floor_char_boundary(ANNOTATION_BYTES_MAX);
                verdict.annotations.push((annotation.key.clone(), text[..cut].to_owned()));
            }
            Ok(_) => {}
            Err(failure) if fails => verdict.denials.push(Refusal::failed(told(failure.to_string()))),
            Err(_) => {}
        }
    }
}

/// Expressions of a policy that share a budget, asked one after the other.
struct Asking<'a> {
    evaluation: Evaluation<'a>,
    /// What of it was paid for.
    paid: usize,
}

impl<'a> Asking<'a> {
    fn new(program: &'a Program, inputs: &Inputs<'a>) -> Asking<'a> {
        Asking { evaluation: Evaluation::new(inputs, &program.variables, POLICY_BUDGET), paid: 0 }
    }

    async fn value(&mut self, expression: &'a Expression, spent: &Spent) -> Result<Outcome, admission::Failure> {
        let outcome = self.evaluation.value(expression);
        let all = self.evaluation.spent();
        spent.take(all - self.paid).await;
        self.paid = all;
        outcome
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::policies::{Does, Policy};

    fn ask_of(spec: Value, object: &Value) -> Verdict {
        let policy = Policy::read("p", false, &json!({"spec": spec}));
        let program = policy.program.expect("compiled");
        let Does::Validates { validations, annotations } = &program.does else { panic!("it validates") };
        let request = json!({"operation": "CREATE", "userInfo": {"username": "bob"}});
        let namespace = json!({"metadata": {"name": "ns", "labels": {"team": "x"}}});
        let inputs = Inputs {
            object: Some(object),
            old_object: None,
            request: &request,
            params: None,
            namespace: Some(&namespace),
            authorizer: None,
        };
        let spent = Spent::default();
        let asked = ask(&program, (validations, annotations), policy.fails, &inputs, &spent);
        futures::executor::block_on(asked)
    }

    fn told(spec: Value) -> Vec<(usize, String, String)> {
        let object = json!({"metadata": {"name": "a"}, "spec": {"replicas": 7}});
        let refusals = ask_of(spec, &object).refusals;
        refusals.into_iter().map(|refusal| (refusal.index, refusal.message, refusal.reason)).collect()
    }

    #[test]
    fn what_does_not_hold_is_told_in_the_words_of_the_policy() {
        let refusal = |index: usize, message: &str, reason: &str| (index, message.to_owned(), reason.to_owned());
        assert_eq!(told(json!({"validations": [{"expression": "object.spec.replicas < 9"}]})), []);
        assert_eq!(
            told(json!({"validations": [
                {"expression": " object.spec.replicas < 5"},
                {"expression": "object.spec.replicas == 5", "message": " five "},
                {"expression": "false", "message": "m", "messageExpression": "'has ' + string(object.spec.replicas)", "reason": "Forbidden"},
                {"expression": "false", "message": "m", "messageExpression": "'a\\nb'"},
                {"expression": "false", "messageExpression": "string(object.spec.nothing)"},
            ]})),
            [
                refusal(0, "failed expression: object.spec.replicas < 5", "Invalid"),
                refusal(1, "five", "Invalid"),
                refusal(2, "has 7", "Forbidden"),
                refusal(3, "m", "Invalid"),
                refusal(4, "failed expression: false", "Invalid"),
            ],
        );
        assert_eq!(
            told(json!({"validations": [{"expression": "request.userInfo.username == 'bob' && namespaceObject.metadata.labels.team == 'y'"}]})).len(),
            1
        );
    }

    #[test]
    fn what_cannot_be_asked_is_refused_unless_it_is_to_be_ignored() {
        let broken = json!([{"expression": "object.spec.nothing == 1"}, {"expression": "true"}]);
        let words = "expression 'object.spec.nothing == 1' resulted in error: no such key: nothing";
        assert_eq!(told(json!({"validations": broken})), [(0, words.to_owned(), String::new())]);
        assert_eq!(told(json!({"validations": broken, "failurePolicy": "Ignore"})), []);
        let conditions = json!([{"name": "c", "expression": "object.spec.nothing == 1"}]);
        let spec = json!({"matchConditions": conditions, "validations": [{"expression": "false"}]});
        assert_eq!(told(spec), [(0, words.to_owned(), String::new())]);
        let spec = json!({"matchConditions": [{"name": "c", "expression": "false"}], "validations": [{"expression": "false"}]});
        assert_eq!(told(spec), []);
    }

    #[test]
    fn variables_are_composed_and_asked_once() {
        let variables = json!([
            {"name": "n", "expression": "object.spec.replicas"}, {"name": "more", "expression": "variables.n + 1"},
        ]);
        assert_eq!(told(json!({"variables": variables, "validations": [{"expression": "variables.more == 8"}]})), []);
        // What a variable costs is paid once.
        let large = json!([{"name": "large", "expression": "lists.range(400000).size()"}]);
        let asks: Vec<Value> = (0..40).map(|_| json!({"expression": "variables.large > 0"})).collect();
        assert_eq!(told(json!({"variables": large, "validations": asks})), []);
        let asks: Vec<Value> = (0..40).map(|_| json!({"expression": "lists.range(400000).size() > 0"})).collect();
        assert!(told(json!({"validations": asks}))[0].1.contains("cost budget"));
    }

    #[test]
    fn all_that_is_asked_is_paid_for() {
        let large = "lists.range(300000).size() > 0";
        for (spec, least) in [
            (json!({"matchConditions": [{"name": "c", "expression": format!("!({large})")}]}), 300_000),
            (json!({"validations": [{"expression": large}, {"expression": large}]}), 600_000),
            (json!({"auditAnnotations": [{"key": "a", "valueExpression": format!("string({large})")}]}), 300_000),
        ] {
            let policy = Policy::read("p", false, &json!({"spec": spec}));
            let program = policy.program.expect("compiled");
            let Does::Validates { validations, annotations } = &program.does else { panic!("it validates") };
            let (object, request) = (json!({}), json!({}));
            let inputs = Inputs {
                object: Some(&object),
                old_object: None,
                request: &request,
                params: None,
                namespace: None,
                authorizer: None,
            };
            let spent = Spent::default();
            futures::executor::block_on(ask(&program, (validations, annotations), true, &inputs, &spent));
            assert!((least..least + 1_000).contains(&spent.cost()), "{}", spent.cost());
        }
    }

    #[test]
    fn annotations_are_texts_or_nothing() {
        let annotations = json!([
            {"key": "a", "valueExpression": "'r ' + string(object.spec.replicas)"}, {"key": "b", "valueExpression": "''"},
            {"key": "c", "valueExpression": "null"}, {"key": "d", "valueExpression": "string(object.spec.nothing)"},
        ]);
        let object = json!({"spec": {"replicas": 7}});
        let verdict = ask_of(json!({"auditAnnotations": annotations}), &object);
        assert_eq!(verdict.annotations, [("a".to_owned(), "r 7".to_owned())]);
        assert_eq!(verdict.denials.len(), 1);
        let verdict = ask_of(json!({"auditAnnotations": annotations, "failurePolicy": "Ignore"}), &object);
        assert_eq!((verdict.annotations.len(), verdict.denials.len()), (1, 0));
    }
}
