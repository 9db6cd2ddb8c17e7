//! One odd object must not stop the watch of its kind: what does not decode is kept as what could be read of it.
//!
//! A watch whose event does not decode is an error to the kube runtime, which backs off; a handful of such objects would
//! hold up everything else of the kind for minutes. Controllers, scheduler and nodes (their pods) read what they watch through this.

use std::borrow::Cow;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// An object as it comes, whether it decodes or not.
#[derive(Clone, Debug)]
pub enum Tolerant<W> {
    /// It decoded.
    Good(W),
    /// It did not: its name, namespace, uid and version, and why.
    Odd {
        /// What could be read.
        meta: Box<ObjectMeta>,
        /// The decoder's words; they quote what they mean, of which a part will do.
        why: Arc<str>,
    },
}

impl<'de, W: DeserializeOwned> Deserialize<'de> for Tolerant<W> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Ok(match serde_json::from_str(raw.get()) {
            Ok(good) => Self::Good(good),
            Err(error) => match without_nulls(raw.get()) {
                Some(good) => Self::Good(good),
                None => Self::Odd { meta: Box::new(meta_of(raw.get())), why: cut(&error.to_string()).into() },
            },
        })
    }
}

/// The object without the nulls in it: Go writes the zero time so, also as the value of a key, where its readers here expect a
/// time.
fn without_nulls<W: DeserializeOwned>(json: &str) -> Option<W> {
    fn drop_nulls(value: &mut Value) -> bool {
        match value {
            Value::Object(fields) => {
                let before = fields.len();
                fields.retain(|_, value| !value.is_null());
                let dropped = fields.len() < before;
                fields.values_mut().map(drop_nulls).filter(|dropped| *dropped).count() > 0 || dropped
            }
            Value::Array(items) => items.iter_mut().map(drop_nulls).filter(|dropped| *dropped).count() > 0,
            _ => false,
        }
    }
    let mut value = serde_json::from_str(json).ok()?;
    if drop_nulls(&mut value) { serde_json::from_value(value).ok() } else { None }
}

/// So much of a reason is told: it is logged at each change of the object.
const WHY_BYTES_MAX: usize = 512;

/// So much of a reason as is told.
pub fn cut(why: &str) -> &str {
    &why[..why.floor_char_boundary(WHY_BYTES_MAX)]
}

/// So much of a message is told in an event or a condition: what it quotes somebody else has written, and many wait to be sent.
const MESSAGE_BYTES_MAX: usize = 4 << 10;

/// So much of a message as is told in an event or a condition.
pub fn cut_message(message: &str) -> &str {
    &message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)]
}

/// What can be read of metadata, each field for itself.
fn meta_of(json: &str) -> ObjectMeta {
    #[derive(Deserialize)]
    struct Object {
        #[serde(default)]
        metadata: serde_json::Map<String, serde_json::Value>,
    }
    let metadata = serde_json::from_str::<Object>(json).map(|object| object.metadata).unwrap_or_default();
    let text = |name: &str| metadata.get(name).and_then(|value| value.as_str()).map(str::to_owned);
    ObjectMeta {
        name: text("name"),
        namespace: text("namespace"),
        uid: text("uid"),
        resource_version: text("resourceVersion"),
        ..ObjectMeta::default()
    }
}

/// For `#[serde(deserialize_with)]`: null is what is not there.
pub fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl<W: kube::Resource> kube::Resource for Tolerant<W> {
    type DynamicType = W::DynamicType;
    type Scope = W::Scope;

    fn kind(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        W::kind(dynamic)
    }

    fn group(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        W::group(dynamic)
    }

    fn version(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        W::version(dynamic)
    }

    fn plural(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        W::plural(dynamic)
    }

    fn metadata_api() -> bool {
        W::metadata_api()
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Good(good) => good.meta(),
            Self::Odd { meta, .. } => meta,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Good(good) => good.meta_mut(),
            Self::Odd { meta, .. } => meta,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_decode_still_has_a_name() {
        use k8s_openapi::api::core::v1::Service;
        let odd = r#"{"metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7", "labels": 3}}"#;
        let Tolerant::Odd { meta, .. } = serde_json::from_str::<Tolerant<Service>>(odd).unwrap() else {
            panic!("labels are no number");
        };
        assert_eq!((meta.name.as_deref(), meta.resource_version.as_deref()), (Some("a"), Some("7")));
        let long = format!(r#"{{"metadata": {{"name": "a", "labels": "{}"}}}}"#, "ä".repeat(1000));
        let Tolerant::Odd { why, .. } = serde_json::from_str::<Tolerant<Service>>(&long).unwrap() else {
            panic!("labels are no text");
        };
        assert!(why.len() <= WHY_BYTES_MAX && why.contains("invalid type"), "{why}");
        let good = serde_json::from_str::<Tolerant<Service>>(r#"{"metadata": {"name": "a"}}"#).unwrap();
        assert!(matches!(good, Tolerant::Good(_)));
    }

    #[test]
    fn the_zero_time_of_a_key_hides_no_object() {
        use k8s_openapi::api::policy::v1::PodDisruptionBudget;
        let zero = r#"{"metadata": {"name": "a"}, "status": {"currentHealthy": 1, "desiredHealthy": 1, "disruptionsAllowed": 0,
            "expectedPods": 1, "disruptedPods": {"p": null, "q": "2020-01-01T00:00:00Z"}}}"#;
        let Tolerant::Good(budget) = serde_json::from_str::<Tolerant<PodDisruptionBudget>>(zero).unwrap() else {
            panic!("a budget");
        };
        let pods = budget.status.and_then(|status| status.disrupted_pods).unwrap();
        assert_eq!(pods.into_keys().collect::<Vec<_>>(), ["q"]);
    }
}
