//! One policy that validates, asked about one request with one set of params.

use coracle_api::cel::admission::{self, Evaluation, Inputs, Outcome, POLICY_BUDGET};

use crate::policies::{Annotation, Program, Validation};

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
    /// What that has cost.
    pub spent: usize,
}

/// Asks a policy. `fails` says whether it refuses what it cannot be asked about.
pub(super) fn ask(
    program: &Program,
    (validations, annotations): (&[Validation], &[Annotation]),
    fails: bool,
    inputs: &Inputs<'_>,
) -> Verdict {
    let mut verdict = Verdict::default();
    // What cannot be asked is let through where the policy says so.
    let failed = |verdict: &mut Verdict, index, message| {
        if fails {
            verdict.refusals.push(Refusal { index, ..Refusal::failed(message) });
        }
    };
    let conditions = Inputs { namespace: None, ..*inputs };
    match admission::matches(&program.conditions, &conditions) {
        Ok(true) => {}
        Ok(false) => return verdict,
        Err(why) => {
            failed(&mut verdict, 0, why);
            return verdict;
        }
    }
    let mut evaluation = Evaluation::new(inputs, &program.variables, POLICY_BUDGET);
    let mut untold = Vec::new();
    for (index, validation) in validations.iter().enumerate() {
        match evaluation.value(&validation.expression) {
            Ok(Outcome::Bool(true)) => {}
            Ok(_) => untold.push((index, validation)),
            Err(admission::Failure::Budget) => {
                // Nothing that was found before counts.
                verdict.refusals.clear();
                failed(&mut verdict, 0, admission::Failure::Budget.to_string());
                verdict.spent = evaluation.spent();
                return verdict;
            }
            Err(failure) => failed(&mut verdict, index, failure.to_string()),
        }
    }
    for (index, validation) in untold {
        let told = validation.message_expression.as_ref().map(|expression| evaluation.value(expression));
        let message = match told {
            Some(Ok(Outcome::Text(text))) => {
                let text = text.trim();
                let is_right = !text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n');
                is_right.then(|| text.to_owned())
            }
            Some(Err(failure @ admission::Failure::Budget)) => {
                failed(&mut verdict, index, format!("failed messageExpression: {failure}"));
                continue;
            }
            _ => None,
        };
        let message = message.unwrap_or_else(|| match validation.message.trim() {
            "" => format!("failed expression: {}", validation.expression.source().trim()),
            message => message.to_owned(),
        });
        verdict.refusals.push(Refusal { index, message, reason: validation.reason.clone() });
    }
    verdict.refusals.sort_by_key(|refusal| refusal.index);
    verdict.spent = evaluation.spent();
    if annotations.is_empty() {
        return verdict;
    }
    let mut evaluation = Evaluation::new(inputs, &program.variables, POLICY_BUDGET);
    for annotation in annotations {
        match evaluation.value(&annotation.expression) {
            Ok(Outcome::Text(text)) if !text.trim().is_empty() => {
                let text = text.trim();
                let cut = text.floor_char_boundary(ANNOTATION_BYTES_MAX);
                verdict.annotations.push((annotation.key.clone(), text[..cut].to_owned()));
            }
            Ok(_) => {}
            Err(failure) if fails => verdict.denials.push(Refusal::failed(failure.to_string())),
            Err(_) => {}
        }
    }
    verdict.spent += evaluation.spent();
    verdict
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::policies::{Does, Policy};

    fn ask_of(spec: Value, object: &Value) -> Verdict {
        let policy = Policy::read(&json!({"metadata": {"name": "p"}, "spec": spec}));
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
        ask(&program, (validations, annotations), policy.fails, &inputs)
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
