//! What a Job's policies say of a failed pod, and of what has succeeded.

use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicyOnExitCodesRequirement};

use super::indexes::Indexes;
use crate::informer::{Pod, Run};

/// What becomes of a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts towards the limits.
    Count,
    /// It does not.
    Ignore,
    /// Its index has failed.
    FailIndex,
    /// The Job has failed, and why.
    FailJob(String),
}

impl Verdict {
    /// Whether it counts as a failed pod.
    pub(super) fn counts(&self) -> bool {
        *self != Self::Ignore
    }
}

/// What `podFailurePolicy` says of this failed pod: the first rule that fits.
pub(super) fn of_failure(spec: &JobSpec, pod: &Pod) -> Verdict {
    let (Some(policy), Some(run)) = (&spec.pod_failure_policy, &pod.run) else { return Verdict::Count };
    for (index, rule) in policy.rules.iter().enumerate() {
        let because = match (&rule.on_exit_codes, &rule.on_pod_conditions) {
            (Some(codes), _) => failed_container(run, codes).map(|(name, code)| {
                let Pod { key, .. } = pod;
                format!(
                    "Container {name} for pod {key} failed with exit code {code} matching FailJob rule at index {index}"
                )
            }),
            (None, Some(patterns)) => {
                let fits = |(kind, status): &&(Box<str>, Box<str>)| {
                    patterns.iter().any(|pattern| {
                        pattern.type_ == **kind && pattern.status.as_deref().unwrap_or("True") == &**status
                    })
                };
                run.conditions.iter().find(fits).map(|(kind, _)| {
                    format!("Pod {} has condition {kind} matching FailJob rule at index {index}", pod.key)
                })
            }
            (None, None) => None,
        };
        let Some(because) = because else { continue };
        match rule.action.as_str() {
            "Ignore" => return Verdict::Ignore,
            "FailIndex" => return Verdict::FailIndex,
            "FailJob" => return Verdict::FailJob(because),
            "Count" => return Verdict::Count,
            _ => {}
        }
    }
    Verdict::Count
}

/// The container whose exit code fits, and the code.
fn failed_container<'a>(run: &'a Run, wanted: &PodFailurePolicyOnExitCodesRequirement) -> Option<(&'a str, i32)> {
    let named = |name: &str| wanted.container_name.as_deref().is_none_or(|wanted| wanted == name);
    let fits = |code: &i32| match wanted.operator.as_str() {
        "In" => wanted.values.contains(code),
        "NotIn" => !wanted.values.contains(code),
        _ => false,
    };
    let found = run.exit_codes.iter().find(|(name, code)| named(name) && fits(code));
    found.map(|(name, code)| (&**name, *code))
}

/// The message when a rule of `successPolicy` is met.
pub(super) fn met(spec: &JobSpec, succeeded: &Indexes) -> Option<String> {
    let policy = spec.success_policy.as_ref().filter(|_| !succeeded.is_empty())?;
    let completions = super::plan::completions(spec)?;
    let met = policy.rules.iter().position(|rule| {
        let enough = |count: u64| {
            rule.succeeded_count.and_then(|wanted| u64::try_from(wanted).ok()).is_some_and(|wanted| count >= wanted)
        };
        match &rule.succeeded_indexes {
            Some(text) => {
                let wanted = Indexes::parse(text, completions);
                let common = wanted.common(succeeded);
                !wanted.is_empty() && (common == wanted.total() || enough(common))
            }
            None => enough(succeeded.total()),
        }
    });
    met.map(|index| format!("Matched rules at index {index}"))
}
