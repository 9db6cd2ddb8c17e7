//! What a pod requests, as far as it is measured: of processor and memory, in thousandths.

use coracle_api::meta::Quantity;
use serde::Deserialize;
use serde_json::Value;

/// Of one container, or of the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub cpu: Option<i64>,
    pub memory: Option<i64>,
}

impl Request {
    /// Of a resource by its name.
    pub(crate) fn of(&self, resource: &str) -> Option<i64> {
        match resource {
            "cpu" => self.cpu,
            "memory" => self.memory,
            _ => None,
        }
    }
}

/// Of a whole pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    /// What the pod requests for all of its containers.
    pub pod: Request,
    /// Of containers and sidecars, by name.
    pub containers: Vec<(Box<str>, Request)>,
}

/// `resources` of a container or a pod, as it comes.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub(super) struct Resources {
    requests: Option<Wire>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
struct Wire {
    cpu: Value,
    memory: Value,
}

impl Resources {
    pub(super) fn request(&self) -> Request {
        let milli = |quantity: &Value| Quantity::from_json(quantity).ok().map(|quantity| quantity.milli_value());
        let requests = self.requests.as_ref();
        Request {
            cpu: requests.and_then(|requests| milli(&requests.cpu)),
            memory: requests.and_then(|requests| milli(&requests.memory)),
        }
    }
}
