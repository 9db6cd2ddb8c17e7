//! When faults have stopped, what is there becomes what is wanted: as many pods as asked for, all of them ready where there is room, and
//! nothing that is being deleted stays.
//!
//! Kubernetes' promise of declarative state ("level-based", contributors/devel/sig-api-machinery/controllers.md); of Deployments:
//! `DeploymentComplete` (`pkg/controller/deployment/util`).

use serde_json::Value;

use super::{called, controller, endpoints, lives, uid};

/// Everything that is there.
pub struct Objects {
    pub nodes: Vec<Value>,
    pub pods: Vec<Value>,
    pub sets: Vec<Value>,
    pub deployments: Vec<Value>,
    pub services: Vec<Value>,
    pub slices: Vec<Value>,
}

/// What is not as it should be.
pub fn judge(objects: &Objects) -> Result<(), String> {
    for node in &objects.nodes {
        let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        if !conditions.iter().any(|known| known["type"] == "Ready" && known["status"] == "True") {
            return Err(format!("node {} is not ready", called(node)));
        }
        if node["spec"]["taints"].as_array().is_some_and(|taints| !taints.is_empty()) {
            return Err(format!("node {} has the taints {}", called(node), node["spec"]["taints"]));
        }
    }
    for pod in &objects.pods {
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            return Err(format!("pod {} is still being deleted", called(pod)));
        }
        if !endpoints::is_ready(pod) {
            return Err(format!(
                "pod {} on {} is not ready: {} {}",
                called(pod),
                pod["spec"]["nodeName"],
                pod["status"]["phase"],
                pod["status"]["conditions"]
            ));
        }
    }
    for set in &objects.sets {
        let uid = uid(set);
        let pods = objects.pods.iter().filter(|pod| controller(pod) == Some(&uid) && lives(pod)).count() as u64;
        let (wanted, said) = (set["spec"]["replicas"].as_u64(), set["status"]["readyReplicas"].as_u64().unwrap_or(0));
        if wanted != Some(pods) || said != pods {
            return Err(format!("ReplicaSet {} wants {wanted:?} pods, has {pods} and says {said}", called(set)));
        }
    }
    for deployment in &objects.deployments {
        let (spec, status) = (&deployment["spec"], &deployment["status"]);
        let wanted = spec["replicas"].as_u64().unwrap_or(1);
        let says = |field: &str| status[field].as_u64().unwrap_or(0);
        let is_complete = status["observedGeneration"] == deployment["metadata"]["generation"]
            && ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"]
                .iter()
                .all(|field| says(field) == wanted);
        if !is_complete {
            return Err(format!("Deployment {} wants {wanted} and says {status}", called(deployment)));
        }
    }
    for service in &objects.services {
        endpoints::judge(service, &objects.slices, &objects.pods)?;
    }
    Ok(())
}
