//! Since when pods stand under taints that do not say when they came (`kubectl taint` does not): what a toleration allows
//! counts from the first look, not from every look.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// A taint without a time, and when it was met.
struct Meeting {
    key: String,
    value: Option<String>,
    at: Timestamp,
}

impl Meeting {
    fn is_of(&self, taint: &Taint) -> bool {
        self.key == taint.key && self.value == taint.value
    }
}

/// First meetings, per uid of the pod. Bounded by the pods of nodes with such taints, and by the taints of each.
#[derive(Default)]
pub(crate) struct Met {
    pods: HashMap<Arc<str>, Vec<Meeting>>,
}

impl Met {
    /// Gives the `NoExecute` taints of a pod's node that have no time that of their first meeting; those that are not
    /// among them any more are forgotten.
    pub(crate) fn date(&mut self, pod: &Arc<str>, taints: &mut [Taint], now: Timestamp) {
        let before = self.pods.remove(pod).unwrap_or_default();
        let mut meetings = Vec::new();
        for taint in taints.iter_mut().filter(|taint| taint.time_added.is_none()) {
            let at = before.iter().find(|met| met.is_of(taint)).map_or(now, |met| met.at);
            meetings.push(Meeting { key: taint.key.clone(), value: taint.value.clone(), at });
            taint.time_added = Some(Time(at));
        }
        if !meetings.is_empty() {
            self.pods.insert(pod.clone(), meetings);
        }
    }

    /// The pod's node has these `NoExecute` taints: one that is taken away and comes back is a new one.
    pub(crate) fn retain(&mut self, pod: &str, taints: &[&Taint]) {
        let Some(meetings) = self.pods.get_mut(pod) else { return };
        meetings.retain(|met| taints.iter().any(|taint| met.is_of(taint)));
        if meetings.is_empty() {
            self.pods.remove(pod);
        }
    }

    /// The pod is gone.
    pub(crate) fn forget(&mut self, pod: &str) {
        self.pods.remove(pod);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;

    #[test]
    fn a_taint_without_a_time_counts_from_the_first_look_until_it_is_taken_away() {
        let (mut met, pod) = (Met::default(), Arc::from("p"));
        let begun: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let taint = |added: Option<Timestamp>| Taint {
            key: "k".to_owned(),
            effect: "NoExecute".to_owned(),
            time_added: added.map(Time),
            value: None,
        };
        let later = |seconds: i64| begun + SignedDuration::from_secs(seconds);
        let look = |met: &mut Met, seconds: i64, added| {
            let mut taints = [taint(added)];
            met.date(&pod, &mut taints, later(seconds));
            let [taint] = taints;
            taint.time_added.unwrap().0
        };
        assert_eq!((look(&mut met, 0, None), look(&mut met, 5, None)), (begun, begun));
        met.retain("p", &[&taint(None)]);
        assert_eq!(look(&mut met, 6, None), begun);
        met.retain("p", &[]);
        assert_eq!(look(&mut met, 7, None), later(7), "it was away");
        assert_eq!(look(&mut met, 8, Some(begun)), begun, "its own word counts");
        assert!(met.pods.is_empty(), "nothing is kept that is not needed");
        look(&mut met, 9, None);
        met.forget("p");
        assert!(met.pods.is_empty());
    }
}
