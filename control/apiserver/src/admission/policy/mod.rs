//! Admission policies (kubernetes-api §22.4): which are asked, with what, and what becomes of what they say.
//!
//! ```text
//! policy matches ─► binding matches ─► params ─► conditions ─► validations: refusals ─► Deny, Warn or Audit, as the binding says
//!                                                         └─► mutations: one after the other, each sees what those before it made
//! ```
//! What cannot be asked is decided by `failurePolicy`. Evaluating is pure and bounded in cost by policy and binding
//! ([`coracle_api::cel`]); what all policies of one request take together is bounded as well, in cost and in time
//! ([`Spent`](crate::request::spent::Spent)).

pub(super) mod grants;
mod mutate;
mod params;
mod validate;

use std::collections::HashSet;

use coracle_api::cel::admission::Inputs;
use coracle_api::meta;
use coracle_api::status::Status;
use serde_json::{Value, json};

use super::is;
use super::matching::Versioned;
use super::review::Review;
use crate::policies::{Action, Binding, Bound, Configured, Does, Policy, Program};
use crate::request::spent::UNIT_BYTES;
use crate::store::Seen;
use params::Param;
use validate::Refusal;

/// Most failures that one annotation of a request tells (Kubernetes').
const FAILURES_MAX: usize = 50;
/// Most bytes of a message, which may show an expression, and of all that is told in the log of one request.
const MESSAGE_BYTES_MAX: usize = 16 << 10;
const TOLD_BYTES_MAX: usize = 256 << 10;
/// What telling something takes beside its own bytes.
const TOLD_BYTES: usize = 64;
const FAILURES: &str = "validation.policy.admission.k8s.io/validation_failure";

/// No more of a message than may be told.
fn told(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        message.push('…');
    }
    message
}

/// A version of the objects of a request, with the request as it is told of it.
struct Shown {
    object: Option<Value>,
    old: Option<Value>,
    request: Value,
}

impl Shown {
    async fn of(
        review: &Review<'_>,
        object: Option<&Value>,
        old: Option<&Value>,
        version: &Versioned,
    ) -> Result<Shown, Status> {
        let mut shown = Shown { object: None, old: None, request: review.request(version) };
        if let Some(object) = object {
            shown.object = Some(review.shown(object, version).await?);
        }
        if let Some(old) = old {
            shown.old = Some(review.shown(old, version).await?);
        }
        Ok(shown)
    }

    fn inputs<'a>(
        &'a self,
        review: &'a Review<'_>,
        params: Option<&'a Value>,
        namespace: Option<&'a Value>,
    ) -> Inputs<'a> {
        Inputs {
            object: self.object.as_ref(),
            old_object: self.old.as_ref(),
            request: &self.request,
            params,
            namespace,
            authorizer: Some(review),
        }
    }
}

/// The namespace of the objects, without what is nobody's business; `None` for those of the cluster.
async fn namespace(review: &Review<'_>) -> Result<Option<Value>, Status> {
    let at = review.at;
    let Some(name) = at.namespace.filter(|_| !is(at.resource, "", "namespaces")) else { return Ok(None) };
    let Some(namespaces) = at.cluster.catalog.named("", "namespaces") else { return Ok(None) };
    let found = at.cluster.store.find(namespaces, name).await?;
    let record = found.ok_or_else(|| Status::not_found("", "namespaces", name))?;
    let mut object = Seen::new(namespaces, &record).value()?;
    let metadata = meta::metadata_mut(&mut object);
    for field in ["managedFields", "ownerReferences", "selfLink"] {
        metadata.remove(field);
    }
    Ok(Some(object))
}

/// A policy that is asked: with what, and why.
struct Asked<'a> {
    policy: &'a Policy,
    binding: &'a Binding,
    program: &'a Program,
    version: Versioned,
}

/// What is configured and cannot be carried out.
struct Wrong<'a> {
    policy: &'a Policy,
    binding: Option<&'a Binding>,
    why: String,
}

impl Wrong<'_> {
    fn told(&self) -> String {
        let what = if self.binding.is_some() { "binding" } else { "policy" };
        format!("failed to configure {what}: {}", self.why)
    }
}

/// Which policies are asked about a request.
async fn asked<'a>(
    review: &Review<'_>,
    policies: &'a [Bound],
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<(Vec<Asked<'a>>, Vec<Wrong<'a>>), Status> {
    let labels = review.labels().await;
    let subject = review.subject(object, old);
    let (mut asked, mut wrong) = (Vec::new(), Vec::new());
    for Bound { policy, bindings } in policies {
        let version = match policy.matching.matches(&subject, |_| labels.clone()) {
            Ok(Some(version)) => version.clone(),
            Ok(None) => continue,
            Err(status) => {
                wrong.push(Wrong { policy, binding: None, why: status.message.clone() });
                continue;
            }
        };
        let unknown = match &policy.params {
            Some(kind) => params::resource(review.at.cluster, kind).await.err(),
            None => None,
        };
        let program = match (&policy.program, unknown) {
            (Ok(program), None) => program,
            (Err(why), _) => {
                wrong.push(Wrong { policy, binding: None, why: why.clone() });
                continue;
            }
            (Ok(_), Some(why)) => {
                wrong.push(Wrong { policy, binding: None, why });
                continue;
            }
        };
        for binding in bindings {
            let matches = match (&binding.unreadable, &binding.matching) {
                (Some(why), _) => Err(why.clone()),
                (None, Some(matching)) => {
                    let found = matching.matches(&subject, |_| labels.clone());
                    found.map(|found| found.is_some()).map_err(|status| status.message.clone())
                }
                (None, None) => Ok(true),
            };
            match matches {
                Ok(false) => {}
                Ok(true) => asked.push(Asked { policy, binding, program, version: version.clone() }),
                Err(why) => wrong.push(Wrong { policy, binding: Some(binding), why }),
            }
        }
    }
    Ok((asked, wrong))
}

impl<'a> Asked<'a> {
    /// That it cannot be asked as its binding says.
    fn wrong(&self, why: String) -> Wrong<'a> {
        Wrong { policy: self.policy, binding: Some(self.binding), why }
    }

    /// What it is asked with; or why it cannot be asked.
    async fn params(&self, review: &Review<'_>) -> Result<Vec<Option<Param>>, Wrong<'a>> {
        let params = params::collect(review.at.cluster, self.policy, self.binding, review.namespace()).await;
        params.map_err(|why| self.wrong(why))
    }

    /// One of these, in the version that it names; or why it cannot be asked with it.
    async fn read(&self, review: &Review<'_>, param: Option<&Param>) -> Result<Option<Value>, Wrong<'a>> {
        let Some(param) = param else { return Ok(None) };
        review.at.spent.take(param.bytes() / UNIT_BYTES).await;
        let read = param.read(review.at.cluster).await;
        read.map(Some).map_err(|status| self.wrong(status.message.clone()))
    }
}

/// The namespace when one of these asks about it.
async fn namespace_for(review: &Review<'_>, asked: &[Asked<'_>]) -> Result<Option<Value>, Status> {
    if asked.iter().any(|one| one.program.asks_namespace) { namespace(review).await } else { Ok(None) }
}

/// That it is known what is bound: what a binding would refuse that cannot be read nobody knows.
pub(super) fn readable(review: &Review<'_>, policies: &Configured) -> Result<(), Status> {
    let Some(binding) = policies.unreadable.first() else { return Ok(()) };
    let (name, why) = (&binding.name, binding.unreadable.as_deref().unwrap_or_default());
    Err(review.forbidden(format_args!("admission policies cannot be asked: binding '{name}': {why}")))
}

/// Asks the policies that validate.
pub(super) async fn validate(
    review: &Review<'_>,
    policies: &[Bound],
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<(), Status> {
    if policies.is_empty() {
        return Ok(());
    }
    let spent = review.at.spent;
    let _phase = spent.phase();
    let (asked, wrong) = asked(review, policies, object, old).await?;
    let namespace = namespace_for(review, &asked).await?;
    let warn = &|warning: String| review.at.call.warn(warning);
    let mut findings = Findings::default();
    for one in &wrong {
        findings.wrong(one);
    }
    // From here on nothing ends it: what one policy cannot be asked is decided by its `failurePolicy`, and what others said is told.
    let mut shown: Vec<(&Versioned, Result<Shown, String>)> = Vec::new();
    for one in &asked {
        let Does::Validates { validations, annotations } = &one.program.does else { continue };
        if let Some(why) = spent.over() {
            findings.failed(one.policy, one.binding, why, warn);
            continue;
        }
        let params = match one.params(review).await {
            Ok(params) => params,
            Err(wrong) => {
                findings.wrong(&wrong);
                continue;
            }
        };
        if shown.iter().all(|(version, _)| **version != one.version) {
            let made = Shown::of(review, object, old, &one.version).await;
            shown.push((&one.version, made.map_err(|status| status.message.clone())));
        }
        let shown = match shown.iter().find(|(version, _)| **version == one.version) {
            Some((_, Ok(shown))) => shown,
            Some((_, Err(why))) => {
                findings.wrong(&one.wrong(format!("failed to convert object version: {why}")));
                continue;
            }
            None => continue,
        };
        for param in &params {
            if let Some(why) = spent.over() {
                findings.failed(one.policy, one.binding, why, warn);
                break;
            }
            let params = match one.read(review, param.as_ref()).await {
                Ok(params) => params,
                Err(wrong) => {
                    findings.wrong(&wrong);
                    break;
                }
            };
            let inputs = shown.inputs(review, params.as_ref(), namespace.as_ref());
            let verdict =
                validate::ask(one.program, (validations, annotations), one.policy.fails, &inputs, spent).await;
            for refusal in &verdict.refusals {
                findings.refused(one.policy, one.binding, refusal, warn);
            }
            for refusal in &verdict.denials {
                findings.deny(one.policy, Some(one.binding), refusal);
            }
            for (key, value) in verdict.annotations {
                findings.told.annotation(format!("{}/{key}", one.policy.name), value);
            }
            // Others have their turn between two of them.
            tokio::task::yield_now().await;
        }
    }
    findings.told.publish(review);
    findings.denied.map_or(Ok(()), |(message, reason)| Err(refused(review, message, &reason)))
}

/// What the policies of a request say that validate.
#[derive(Default)]
struct Findings {
    /// The first that is denied, with its reason: that is what the client hears.
    denied: Option<(String, String)>,
    told: Told,
}

impl Findings {
    /// What is configured and cannot be carried out: that is denied, whatever a binding says.
    fn wrong(&mut self, one: &Wrong<'_>) {
        if one.policy.fails {
            self.deny(one.policy, one.binding, &Refusal::failed(one.told()));
        }
    }

    /// What cannot be asked any more.
    fn failed(&mut self, policy: &Policy, binding: &Binding, why: String, warn: &dyn Fn(String)) {
        if policy.fails {
            self.refused(policy, binding, &Refusal::failed(why), warn);
        }
    }

    /// What a policy refuses: its binding says what is done with that.
    fn refused(&mut self, policy: &Policy, binding: &Binding, refusal: &Refusal, warn: &dyn Fn(String)) {
        for action in &binding.actions {
            match action {
                Action::Deny => self.deny(policy, Some(binding), refusal),
                Action::Warn => warn(format!(
                    "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                    policy.name, binding.name, refusal.message
                )),
                Action::Audit => self.told.failure(binding, refusal),
            }
        }
    }

    fn deny(&mut self, policy: &Policy, binding: Option<&Binding>, refusal: &Refusal) {
        self.denied.get_or_insert_with(|| {
            let bound = binding.map(|binding| format!(" with binding '{}'", binding.name)).unwrap_or_default();
            let message =
                format!("ValidatingAdmissionPolicy '{}'{bound} denied request: {}", policy.name, refusal.message);
            (told(message), refusal.reason.clone())
        });
    }
}

/// The answer to what a policy denies.
fn refused(review: &Review<'_>, message: String, reason: &str) -> Status {
    let (reason, code) = match reason {
        "Forbidden" => ("Forbidden", 403),
        "Unauthorized" => ("Unauthorized", 401),
        "RequestEntityTooLarge" => ("RequestEntityTooLarge", 413),
        _ => ("Invalid", 422),
    };
    let mut status = review.forbidden(&message);
    status.reason = reason.into();
    status.code = code;
    status.with_cause("", message, "")
}

/// What is told in the audit log or, where there is none, in the log of the server.
struct Told {
    failures: Vec<Value>,
    annotations: Vec<(String, Vec<String>)>,
    /// Bytes that may still be told.
    left: usize,
    /// How many there was no room for.
    untold: usize,
}

impl Default for Told {
    fn default() -> Told {
        Told { failures: Vec::new(), annotations: Vec::new(), left: TOLD_BYTES_MAX, untold: 0 }
    }
}

impl Told {
    /// Whether there is room for something of so many bytes. What has none is counted; what is smaller may have some all the same.
    fn takes(&mut self, bytes: usize) -> bool {
        let left = self.left.checked_sub(TOLD_BYTES + bytes);
        match left {
            Some(left) => self.left = left,
            None => self.untold += 1,
        }
        left.is_some()
    }

    fn failure(&mut self, binding: &Binding, refusal: &Refusal) {
        let bytes = refusal.message.len() + binding.policy.len() + binding.name.len();
        if self.failures.len() >= FAILURES_MAX {
            self.untold += 1;
        } else if self.takes(bytes) {
            let actions: Vec<&str> = binding.actions.iter().map(|action| action.name()).collect();
            self.failures.push(json!({
                "message": refusal.message, "policy": binding.policy, "binding": binding.name,
                "expressionIndex": refusal.index, "validationActions": actions,
            }));
        }
    }

    /// Several bindings may say several things; what they say again is said once.
    fn annotation(&mut self, key: String, value: String) {
        let known = self.annotations.iter().position(|(known, _)| *known == key);
        let known = known.and_then(|at| self.annotations.get(at));
        if known.is_some_and(|(_, values)| values.contains(&value)) || !self.takes(key.len() + value.len()) {
            return;
        }
        match self.annotations.iter_mut().find(|(known, _)| *known == key) {
            Some((_, values)) => values.push(value),
            None => self.annotations.push((key, vec![value])),
        }
    }

    fn publish(self, review: &Review<'_>) {
        let request = format!("{} {}", review.at.call.method, review.at.call.uri.path());
        let user = &review.at.caller.user;
        let failures = (!self.failures.is_empty()).then(|| (FAILURES.to_owned(), json!(self.failures).to_string()));
        let annotations = self.annotations.into_iter().map(|(key, values)| (key, values.join(", ")));
        for (key, value) in annotations.chain(failures) {
            match review.at.call.is_audited() {
                true => review.at.call.annotate(&key, || value),
                false => tracing::info!(%user, %request, "{key}: {value}"),
            }
        }
        if self.untold > 0 {
            review.at.call.leave_out();
            tracing::warn!(%user, %request, "{} more audit annotations and failures of policies have no room to be told", self.untold);
        }
    }
}

/// Which of the policies that change objects were asked, and which are to be asked again.
#[derive(Default)]
pub(super) struct Rounds {
    is_second: bool,
    /// What the last policy left.
    left: Option<Value>,
    /// Those that want to be asked again, should anybody change the object.
    invoked: HashSet<String>,
    again: HashSet<String>,
}

impl Rounds {
    /// Begins the second round, with the object as others left it.
    pub fn second(&mut self, object: &Value) {
        self.is_second = true;
        if self.left.as_ref() != Some(object) {
            self.changed();
        }
    }

    fn changed(&mut self) {
        self.again.extend(self.invoked.drain());
    }
}

/// Asks the policies that change objects; says whether one of them did.
pub(super) async fn mutate(
    review: &Review<'_>,
    policies: &[Bound],
    object: &mut Value,
    old: Option<&Value>,
    rounds: &mut Rounds,
) -> Result<bool, Status> {
    if policies.is_empty() {
        return Ok(false);
    }
    let spent = review.at.spent;
    let _phase = spent.phase();
    // Which are meant is decided before one of them changes anything.
    let (asked, wrong) = asked(review, policies, Some(&*object), old).await?;
    let namespace = namespace_for(review, &asked).await?;
    let mut failed = Failed::default();
    for one in &wrong {
        failed.wrong(one);
    }
    let mut any = false;
    for one in &asked {
        if let Some(why) = spent.over() {
            failed.failed(one, &why);
            continue;
        }
        let params = match one.params(review).await {
            Ok(params) => params,
            Err(wrong) => {
                failed.wrong(&wrong);
                continue;
            }
        };
        for param in &params {
            if let Some(why) = spent.over() {
                failed.failed(one, &why);
                break;
            }
            let params = match one.read(review, param.as_ref()).await {
                Ok(params) => params,
                Err(wrong) => {
                    failed.wrong(&wrong);
                    break;
                }
            };
            let with = (params.as_ref(), namespace.as_ref());
            any |= Box::pin(change(review, one, with, (&mut *object, old), &mut *rounds, &mut failed)).await?;
            tokio::task::yield_now().await;
        }
    }
    if any {
        rounds.changed();
    }
    rounds.left = Some(object.clone());
    failed.status.map_or(Ok(any), |status| Err(refused_change(review, status)))
}

/// Asks one of them with one set of params; says whether it changed the object.
async fn change(
    review: &Review<'_>,
    one: &Asked<'_>,
    (params, namespace): (Option<&Value>, Option<&Value>),
    (object, old): (&mut Value, Option<&Value>),
    rounds: &mut Rounds,
    failed: &mut Failed,
) -> Result<bool, Status> {
    let Does::Mutates { mutations, reinvoked } = &one.program.does else { return Ok(false) };
    let place = |field: &str| params.map(|params| params["metadata"][field].as_str().unwrap_or_default());
    let key = format!("{}/{}/{:?}/{:?}", one.policy.name, one.binding.name, place("namespace"), place("name"));
    if rounds.is_second && !rounds.again.contains(&key) {
        return Ok(false);
    }
    let spent = review.at.spent;
    let mut shown = match Shown::of(review, Some(&*object), old, &one.version).await {
        Ok(shown) => shown,
        Err(status) => {
            failed.wrong(&Wrong { binding: None, ..one.wrong(status.message.clone()) });
            return Ok(false);
        }
    };
    match spent.matches(&one.program.conditions, &shown.inputs(review, params, None)).await {
        Ok(true) => {}
        Ok(false) => return Ok(false),
        Err(why) => {
            failed.failed(one, &why);
            return Ok(false);
        }
    }
    let Some(schema) = review.schema(&one.version) else {
        let of = &one.version.kind;
        return Err(Status::service_unavailable(format!(
            "Resource kind {}/{}, Kind={} not found. There can be a delay between when CustomResourceDefinitions are created and when they are available.",
            of.group, of.version, of.kind
        )));
    };
    let before = object.clone();
    for mutation in mutations {
        if let Some(why) = spent.over() {
            failed.failed(one, &why);
            break;
        }
        let Some(current) = shown.object.as_ref() else { break };
        let inputs = shown.inputs(review, params, namespace);
        let (made, cost) = mutate::apply(one.program, mutation, current, &schema, &inputs);
        spent.take(cost).await;
        match made {
            Ok(made) if made != *current => {
                review.take(made, &one.version, object).await?;
                shown.object = Some(review.shown(object, &one.version).await?);
            }
            Ok(_) => {}
            Err(why) => failed.failed(one, &why),
        }
    }
    let changed = before != *object;
    if changed {
        rounds.changed();
    }
    if *reinvoked {
        rounds.invoked.insert(key);
    }
    Ok(changed)
}

/// What policies that change objects could not do.
#[derive(Default)]
struct Failed {
    status: Option<(String, &'static str, Vec<String>)>,
}

impl Failed {
    /// What is configured and cannot be carried out.
    fn wrong(&mut self, one: &Wrong<'_>) {
        if one.policy.fails {
            self.add(one.policy, one.binding, &one.told(), "Forbidden");
        }
    }

    /// What could not be done.
    fn failed(&mut self, one: &Asked<'_>, why: &str) {
        if one.policy.fails {
            self.add(one.policy, Some(one.binding), why, "Invalid");
        }
    }

    fn add(&mut self, policy: &Policy, binding: Option<&Binding>, why: &str, reason: &'static str) {
        let message = match binding {
            Some(binding) => format!("policy '{}' with binding '{}' denied request: {why}", policy.name, binding.name),
            None => format!("policy {} denied request: {why}", meta::text::quote(&policy.name)),
        };
        let message = told(message);
        let (_, _, all) = self.status.get_or_insert_with(|| (message.clone(), reason, Vec::new()));
        if all.len() < FAILURES_MAX {
            all.push(message);
        }
    }
}

/// The answer to what such a policy could not do. The code is that of a refusal whatever the reason is, as in the reference.
fn refused_change(review: &Review<'_>, (message, reason, all): (String, &'static str, Vec<String>)) -> Status {
    let mut status = review.forbidden("admission request denied by policy");
    status.message = message;
    status.reason = reason.into();
    all.into_iter().fold(status, |status, message| status.with_cause("", message, ""))
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[test]
    fn what_cannot_be_asked_any_more_is_done_with_as_the_binding_says() {
        let found = |actions: &[&str], failure: &str| {
            let spec = json!({"failurePolicy": failure, "validations": [{"expression": "true"}]});
            let policy = Policy::read("p", false, &json!({"spec": spec}));
            let binding = Binding::read("b", &json!({"spec": {"policyName": "p", "validationActions": actions}}));
            let (mut findings, warnings) = (Findings::default(), Mutex::new(Vec::new()));
            findings.failed(&policy, &binding, "over".to_owned(), &|warning| warnings.lock().push(warning));
            (findings.denied.is_some(), warnings.into_inner().len(), findings.told.failures.len())
        };
        assert_eq!(found(&["Deny"], "Fail"), (true, 0, 0));
        assert_eq!(found(&["Warn", "Audit"], "Fail"), (false, 1, 1));
        assert_eq!(found(&["Deny", "Audit"], "Fail"), (true, 0, 1));
        assert_eq!(found(&["Deny", "Audit"], "Ignore"), (false, 0, 0));
    }

    #[test]
    fn what_is_told_of_a_request_is_bounded() {
        let binding = Binding::read("b", &json!({"spec": {"policyName": "p", "validationActions": ["Audit"]}}));
        let refusal = Refusal { index: 0, message: "m".repeat(MESSAGE_BYTES_MAX), reason: String::new() };
        let mut told = Told::default();
        for number in 0..20 {
            told.failure(&binding, &refusal);
            told.annotation("p/key".to_owned(), number.to_string().repeat(10 << 10));
        }
        let values =
            |told: &Told| told.annotations.iter().flat_map(|(_, values)| values).map(String::len).sum::<usize>();
        let failures = |told: &Told| told.failures.iter().map(|one| one.to_string().len()).sum::<usize>();
        assert!(told.untold > 0 && !told.failures.is_empty() && !told.annotations.is_empty());
        assert!(values(&told) + failures(&told) < TOLD_BYTES_MAX + (16 << 10));
        // Of many that say little as well.
        let mut told = Told::default();
        for number in 0..100_000 {
            told.annotation("p/key".to_owned(), number.to_string());
        }
        assert!(told.untold > 0 && told.annotations[0].1.len() < TOLD_BYTES_MAX / TOLD_BYTES);
        // Each is told or counted, the small ones behind a large one too.
        let mut told = Told::default();
        told.annotation("p/large".to_owned(), "x".repeat(TOLD_BYTES_MAX));
        for number in 0..FAILURES_MAX + 1 {
            told.annotation("p/key".to_owned(), number.to_string());
            told.failure(&binding, &Refusal { message: String::new(), ..refusal.clone() });
        }
        assert_eq!(
            (told.annotations[0].1.len(), told.failures.len(), told.untold),
            (FAILURES_MAX + 1, FAILURES_MAX, 2)
        );
        assert!(super::told("é".repeat(MESSAGE_BYTES_MAX)).len() <= MESSAGE_BYTES_MAX + '…'.len_utf8());
    }
}
