//! What a LimitRange gives to containers that do not say what they need, and what it refuses
//! (`plugin/pkg/admission/limitranger`).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::pod::Amounts;
use super::pod::amounts::{read, sum};
use super::value::{Read, child, fields, items_mut};
use crate::meta::{Quantity, field};

/// Where it is written down what was given to a pod.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";
/// Beyond it amounts are compared in whole units.
const MILLIS_MAX: i64 = i64::MAX / 1000;

/// Gives the containers of a pod the requests and limits that they do not name.
pub fn set_defaults(range: &Value, pod: &mut Value) {
    let of = |field: &str| -> BTreeMap<String, Value> {
        let items = range["spec"]["limits"].items().iter().filter(|item| item["type"] == "Container");
        let lists = items.flat_map(|item| item[field].entries());
        lists.map(|(name, amount)| (name.clone(), amount.clone())).collect()
    };
    let (requests, limits) = (of("defaultRequest"), of("default"));
    let mut given = Vec::new();
    let spec = child(pod, "spec");
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        for container in items_mut(spec, list) {
            let name = container["name"].text().to_owned();
            for (field, defaults, word) in [("requests", &requests, "request"), ("limits", &limits, "limit")] {
                let missing = |name: &&String| container["resources"][field].get(name.as_str()).is_none();
                let missing: Vec<String> = defaults.keys().filter(missing).cloned().collect();
                if missing.is_empty() {
                    continue;
                }
                let list = fields(child(child(container, "resources"), field));
                list.extend(missing.iter().map(|name| (name.clone(), defaults[name].clone())));
                given.push(format!("{} {word} for {what} {name}", missing.join(", ")));
            }
        }
    }
    if !given.is_empty() {
        let annotations = child(child(pod, "metadata"), "annotations");
        let text = format!("LimitRanger plugin set: {}", given.join("; "));
        fields(annotations).insert(ANNOTATION.to_owned(), text.into());
    }
}

/// Why a pod may not be; `None` when it may.
pub fn refuse_pod(range: &Value, pod: &Value) -> Option<String> {
    let mut why = Vec::new();
    let spec = &pod["spec"];
    for item in range["spec"]["limits"].items() {
        match item["type"].text() {
            "Container" => {
                for container in spec["containers"].items().iter().chain(spec["initContainers"].items()) {
                    let resources = &container["resources"];
                    bounds(item, &read(&resources["requests"]), &read(&resources["limits"]), &mut why);
                }
            }
            "Pod" => bounds(item, &whole(spec, "requests"), &whole(spec, "limits"), &mut why),
            _ => {}
        }
    }
    (!why.is_empty()).then(|| field::aggregate(why))
}

/// Why a claim may not be; `None` when it may.
pub fn refuse_claim(range: &Value, claim: &Value) -> Option<String> {
    let mut why = Vec::new();
    let requests = read(&claim["spec"]["resources"]["requests"]);
    for item in range["spec"]["limits"].items().iter().filter(|item| item["type"] == "PersistentVolumeClaim") {
        for (name, least) in read(&item["min"]) {
            let bound = Bound { kind: item["type"].text(), name: &name, enforced: &least };
            why.extend(bound.at_least(&requests, &Amounts::new()));
        }
        for (name, most) in read(&item["max"]) {
            let bound = Bound { kind: item["type"].text(), name: &name, enforced: &most };
            why.extend(bound.request_at_most(&requests));
        }
    }
    (!why.is_empty()).then(|| field::aggregate(why))
}

/// What all containers ask for, or what the pod says as a whole.
fn whole(spec: &Value, list: &str) -> Amounts {
    let mut amounts = sum(spec, list);
    let said = read(&spec["resources"][list]).into_iter();
    amounts.extend(said.filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory")));
    amounts
}

fn bounds(item: &Value, requests: &Amounts, limits: &Amounts, why: &mut Vec<String>) {
    type Check = fn(&Bound<'_>, &Amounts, &Amounts) -> Option<String>;
    let checks: [(&str, Check); 3] = [
        ("min", |bound, requests, limits| bound.at_least(requests, limits)),
        ("max", |bound, requests, limits| bound.at_most(requests, limits)),
        ("maxLimitRequestRatio", |bound, requests, limits| bound.ratio_at_most(requests, limits)),
    ];
    for (field, check) in checks {
        for (name, enforced) in read(&item[field]) {
            let bound = Bound { kind: item["type"].text(), name: &name, enforced: &enforced };
            why.extend(check(&bound, requests, limits));
        }
    }
}

struct Bound<'a> {
    /// `Container`, `Pod`, `PersistentVolumeClaim`.
    kind: &'a str,
    /// Of the resource.
    name: &'a str,
    enforced: &'a Quantity,
}

impl Bound<'_> {
    fn usage(&self, which: &str) -> String {
        format!("{which} {} usage per {} is {}", self.name, self.kind, self.enforced)
    }

    /// Amounts in thousandths where all of them can be, else in whole units.
    fn values<const N: usize>(&self, amounts: [Option<&Quantity>; N]) -> ([i64; N], i64) {
        let is_fine = |amount: &Quantity| amount.value() <= MILLIS_MAX;
        let fine = is_fine(self.enforced) && amounts.iter().flatten().all(|amount| is_fine(amount));
        let value = |amount: &Quantity| if fine { amount.milli_value() } else { amount.value() };
        (amounts.map(|amount| amount.map_or(0, value)), value(self.enforced))
    }

    fn at_least(&self, requests: &Amounts, limits: &Amounts) -> Option<String> {
        let (request, limit) = (requests.get(self.name), limits.get(self.name));
        let ([requested, limited], least) = self.values([request, limit]);
        let usage = self.usage("minimum");
        match (request, limit) {
            (None, _) => Some(format!("{usage}.  No request is specified")),
            (Some(request), _) if requested < least => Some(format!("{usage}, but request is {request}")),
            (_, Some(limit)) if limited < least => Some(format!("{usage}, but limit is {limit}")),
            _ => None,
        }
    }

    fn at_most(&self, requests: &Amounts, limits: &Amounts) -> Option<String> {
        let (request, limit) = (requests.get(self.name), limits.get(self.name));
        let ([requested, limited], most) = self.values([request, limit]);
        let usage = self.usage("maximum");
        match (request, limit) {
            (_, None) => Some(format!("{usage}.  No limit is specified")),
            (_, Some(limit)) if limited > most => Some(format!("{usage}, but limit is {limit}")),
            (Some(request), _) if requested > most => Some(format!("{usage}, but request is {request}")),
            _ => None,
        }
    }

    fn request_at_most(&self, requests: &Amounts) -> Option<String> {
        let request = requests.get(self.name);
        let ([requested], most) = self.values([request]);
        let usage = self.usage("maximum");
        match request {
            None => Some(format!("{usage}.  No request is specified")),
            Some(request) if requested > most => Some(format!("{usage}, but request is {request}")),
            Some(_) => None,
        }
    }

    fn ratio_at_most(&self, requests: &Amounts, limits: &Amounts) -> Option<String> {
        let (request, limit) = (requests.get(self.name), limits.get(self.name));
        let ([requested, limited], _) = self.values([request, limit]);
        let Bound { kind, name, enforced } = self;
        let ratio = format!("{name} max limit to request ratio per {kind} is {enforced}");
        if requested == 0 {
            return Some(format!("{ratio}, but no request is specified or request is 0"));
        }
        if limited == 0 {
            return Some(format!("{ratio}, but no limit is specified or limit is 0"));
        }
        let provided = limited as f64 / requested as f64;
        let exceeds = match enforced.value() <= MILLIS_MAX {
            true => provided * 1000.0 > enforced.milli_value() as f64,
            false => provided > enforced.value() as f64,
        };
        exceeds.then(|| format!("{ratio}, but provided ratio is {provided:.6}"))
    }
}

/// Defaults of the items themselves: what one bound says of another (`SetDefaults_LimitRangeItem`).
pub(super) fn default_items(range: &mut Value) {
    for item in items_mut(child(range, "spec"), "limits") {
        for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            super::pod::default_resources(item, list);
        }
        if item["type"] != "Container" {
            continue;
        }
        // A limit is the greatest there is, a request the limit, or else the least there is.
        for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
            let missing: Map<String, Value> = item[from]
                .entries()
                .filter(|(name, _)| item[to].get(name.as_str()).is_none())
                .map(|(name, amount)| (name.clone(), amount.clone()))
                .collect();
            if !missing.is_empty() {
                fields(child(item, to)).extend(missing);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn range(items: Value) -> Value {
        let mut range = json!({"spec": {"limits": items}});
        default_items(&mut range);
        range
    }

    #[test]
    fn a_bound_says_what_is_not_said() {
        let given = range(json!([{"type": "Container", "max": {"cpu": "2", "memory": "1Gi"}, "default": {"cpu": "1"},
            "min": {"cpu": "100m", "ephemeral-storage": "1Mi"}}]));
        let item = &given["spec"]["limits"][0];
        assert_eq!(item["default"], json!({"cpu": "1", "memory": "1Gi"}));
        assert_eq!(item["defaultRequest"], json!({"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Mi"}));
        let pod = range(json!([{"type": "Pod", "max": {"cpu": "2"}}]));
        assert_eq!(pod["spec"]["limits"][0], json!({"type": "Pod", "max": {"cpu": "2"}}));
    }

    #[test]
    fn containers_get_what_they_do_not_name() {
        let range = range(json!([{"type": "Container", "default": {"cpu": "1", "memory": "1Gi"},
            "defaultRequest": {"cpu": "500m"}}]));
        let mut pod = json!({"spec": {
            "containers": [{"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "3", "memory": "1Mi"},
                "requests": {"cpu": "3", "memory": "1Mi"}}}],
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}}}],
        }});
        set_defaults(&range, &mut pod);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}})
        );
        assert_eq!(pod["spec"]["containers"][1]["resources"]["limits"], json!({"cpu": "3", "memory": "1Mi"}));
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu, memory request for \
            container a; cpu, memory limit for container a; cpu, memory limit for init container i"
        );
        let once = pod.clone();
        set_defaults(&range, &mut pod);
        assert_eq!(pod, once);
    }

    #[test]
    fn refuses_in_the_reference_s_words() {
        let pod = |request: &str, limit: &str| {
            let list = |amount: &str| if amount.is_empty() { json!({}) } else { json!({ "cpu": amount }) };
            let resources = json!({"requests": list(request), "limits": list(limit)});
            json!({"spec": {"containers": [{"name": "a", "resources": resources}, {"name": "b", "resources": resources}]}})
        };
        for (kind, field, bound, request, limit, expected) in [
            ("Container", "min", "1", "", "", "minimum cpu usage per Container is 1.  No request is specified"),
            ("Container", "min", "1", "500m", "", "minimum cpu usage per Container is 1, but request is 500m"),
            ("Container", "min", "1", "1", "999m", "minimum cpu usage per Container is 1, but limit is 999m"),
            ("Container", "max", "1", "1", "", "maximum cpu usage per Container is 1.  No limit is specified"),
            ("Container", "max", "1", "1", "1001m", "maximum cpu usage per Container is 1, but limit is 1001m"),
            ("Container", "max", "1", "1", "1", ""),
            ("Pod", "max", "1", "500m", "501m", "maximum cpu usage per Pod is 1, but limit is 1002m"),
            ("Pod", "max", "1", "500m", "500m", ""),
            ("Pod", "min", "1", "499m", "1", "minimum cpu usage per Pod is 1, but request is 998m"),
            (
                "Container",
                "maxLimitRequestRatio",
                "2",
                "",
                "1",
                "cpu max limit to request ratio per Container is 2, but no request is specified or request is 0",
            ),
            (
                "Container",
                "maxLimitRequestRatio",
                "2",
                "1",
                "",
                "cpu max limit to request ratio per Container is 2, but no limit is specified or limit is 0",
            ),
            (
                "Container",
                "maxLimitRequestRatio",
                "2",
                "300m",
                "1",
                "cpu max limit to request ratio per Container is 2, but provided ratio is 3.333333",
            ),
            ("Container", "maxLimitRequestRatio", "2", "500m", "1", ""),
        ] {
            // What no defaults were given for: bounds alone.
            let range = json!({"spec": {"limits": [{"type": kind, field: {"cpu": bound}}]}});
            let refused = refuse_pod(&range, &pod(request, limit)).unwrap_or_default();
            assert_eq!(refused, expected, "{kind} {field} {bound}: {request} {limit}");
        }
        let both = json!({"spec": {"limits": [{"type": "Container", "min": {"cpu": "1"}, "max": {"cpu": "2"}}]}});
        assert_eq!(
            refuse_pod(&both, &pod("", "")).as_deref(),
            Some(
                "[minimum cpu usage per Container is 1.  No request is specified, maximum cpu usage per Container is 2.  \
                  No limit is specified]"
            )
        );
    }

    #[test]
    fn claims_have_bounds() {
        let range = json!({"spec": {"limits": [{"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"},
            "max": {"storage": "2Gi"}}]}});
        for (storage, expected) in [
            ("1Gi", ""),
            ("1Mi", "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"),
            ("3Gi", "maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"),
        ] {
            let claim = json!({"spec": {"resources": {"requests": {"storage": storage}}}});
            assert_eq!(refuse_claim(&range, &claim).unwrap_or_default(), expected);
        }
    }
}
