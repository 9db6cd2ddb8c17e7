//! Requests of controllers: the few shapes they need, as the field manager `kube-controller-manager`.

use http::Request;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::informer::{Key, slim};

/// Who our writes belong to in `managedFields`.
pub(crate) const MANAGER: &str = "fieldManager=kube-controller-manager";

/// Where the objects of a kind are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    /// `v1`, `apps/v1`.
    pub version: &'static str,
    /// `pods`.
    pub plural: &'static str,
}

macro_rules! resources {
    ($($name:ident = $version:literal $plural:literal;)*) => {
        $(pub(crate) const $name: Resource = Resource { version: $version, plural: $plural };)*
    };
}

resources! {
    PODS = "v1" "pods";
    NODES = "v1" "nodes";
    SERVICES = "v1" "services";
    EVENTS = "v1" "events";
    ENDPOINTS = "v1" "endpoints";
    NAMESPACES = "v1" "namespaces";
    CONFIG_MAPS = "v1" "configmaps";
    SERVICE_ACCOUNTS = "v1" "serviceaccounts";
    REPLICATION_CONTROLLERS = "v1" "replicationcontrollers";
    PERSISTENT_VOLUMES = "v1" "persistentvolumes";
    PERSISTENT_VOLUME_CLAIMS = "v1" "persistentvolumeclaims";
    REPLICA_SETS = "apps/v1" "replicasets";
    DEPLOYMENTS = "apps/v1" "deployments";
    RESOURCE_QUOTAS = "v1" "resourcequotas";
    STATEFUL_SETS = "apps/v1" "statefulsets";
    DAEMON_SETS = "apps/v1" "daemonsets";
    CONTROLLER_REVISIONS = "apps/v1" "controllerrevisions";
    JOBS = "batch/v1" "jobs";
    CRON_JOBS = "batch/v1" "cronjobs";
    POD_DISRUPTION_BUDGETS = "policy/v1" "poddisruptionbudgets";
    POD_CERTIFICATE_REQUESTS = "certificates.k8s.io/v1" "podcertificaterequests";
    CERTIFICATE_SIGNING_REQUESTS = "certificates.k8s.io/v1" "certificatesigningrequests";
    INGRESSES = "networking.k8s.io/v1" "ingresses";
    HORIZONTAL_POD_AUTOSCALERS = "autoscaling/v2" "horizontalpodautoscalers";
    ENDPOINT_SLICES = "discovery.k8s.io/v1" "endpointslices";
}

/// `/api/v1/namespaces/a/pods/b`; an empty namespace is a cluster-scoped object's, an empty name is the collection.
pub(crate) fn path(version: &str, plural: &str, namespace: &str, name: &str) -> String {
    let mut path = String::with_capacity(64);
    path.push_str(if version.contains('/') { "/apis/" } else { "/api/" });
    path.push_str(version);
    if !namespace.is_empty() {
        path.push_str("/namespaces/");
        push_segment(&mut path, namespace);
    }
    path.push('/');
    path.push_str(plural);
    if !name.is_empty() {
        path.push('/');
        push_segment(&mut path, name);
    }
    path
}

/// A segment of a path, whatever it is: names come from what tenants write.
fn push_segment(path: &mut String, segment: &str) {
    for byte in segment.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => path.push(char::from(byte)),
            other => path.push_str(&format!("%{other:02X}")),
        }
    }
}

impl Resource {
    fn path(self, key: &Key) -> String {
        path(self.version, self.plural, &key.namespace, &key.name)
    }

    fn collection(self, namespace: &str) -> String {
        path(self.version, self.plural, namespace, "")
    }
}

/// An object of which only the metadata matters.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Meta {
    #[serde(deserialize_with = "slim", default)]
    pub metadata: ObjectMeta,
}

/// How to delete.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeleteOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preconditions: Option<Preconditions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub propagation_policy: Option<&'static str>,
}

/// What must hold for a deletion.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Preconditions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    /// Only the object with this uid.
    pub(crate) fn of(uid: &str) -> Self {
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        Self { preconditions: Some(preconditions), ..Self::default() }
    }
}

/// The API, as a controller uses it: what others answer is bounded by [`crate::foreign`]. Clones are cheap.
#[derive(Clone)]
pub(crate) struct Client(pub(crate) kube::Client);

impl Client {
    /// POST to the collection.
    pub(crate) async fn create<B: Serialize>(
        &self,
        resource: Resource,
        namespace: &str,
        body: &B,
    ) -> Result<Meta, kube::Error> {
        let uri = format!("{}?{MANAGER}", resource.collection(namespace));
        self.send("POST", &uri, "application/json", Some(body)).await
    }

    /// PUT of a whole object.
    pub(crate) async fn replace<B: Serialize>(
        &self,
        resource: Resource,
        key: &Key,
        body: &B,
    ) -> Result<Meta, kube::Error> {
        let uri = format!("{}?{MANAGER}", resource.path(key));
        self.send("PUT", &uri, "application/json", Some(body)).await
    }

    /// Merge patch (RFC 7386).
    pub(crate) async fn patch(&self, resource: Resource, key: &Key, patch: &Value) -> Result<Meta, kube::Error> {
        let uri = format!("{}?{MANAGER}", resource.path(key));
        self.send("PATCH", &uri, "application/merge-patch+json", Some(patch)).await
    }

    /// Merge patch of the subresource `status` of the object with this uid: `status` as it shall be, absent fields given as
    /// null.
    pub(crate) async fn patch_status(
        &self,
        resource: Resource,
        key: &Key,
        uid: &str,
        status: &Value,
    ) -> Result<Meta, kube::Error> {
        self.patch_through_status(resource, key, &json!({ "metadata": {"uid": uid}, "status": status })).await
    }

    /// Merge patch of an object through its subresource `status`, by which annotations change without a new generation.
    pub(crate) async fn patch_through_status(
        &self,
        resource: Resource,
        key: &Key,
        patch: &Value,
    ) -> Result<Meta, kube::Error> {
        let uri = format!("{}/status?{MANAGER}", resource.path(key));
        self.send("PATCH", &uri, "application/merge-patch+json", Some(patch)).await
    }

    /// Strategic merge patch of the subresource `status`: conditions merge by their type.
    pub(crate) async fn merge_status(&self, resource: Resource, key: &Key, patch: &Value) -> Result<Meta, kube::Error> {
        let uri = format!("{}/status?{MANAGER}", resource.path(key));
        self.send("PATCH", &uri, "application/strategic-merge-patch+json", Some(patch)).await
    }

    /// Strategic merge patch: lists may be told what to lose.
    pub(crate) async fn merge(&self, resource: Resource, key: &Key, patch: &Value) -> Result<Meta, kube::Error> {
        let uri = format!("{}?{MANAGER}", resource.path(key));
        self.send("PATCH", &uri, "application/strategic-merge-patch+json", Some(patch)).await
    }

    /// DELETE; an object that is not there is as good as deleted.
    pub(crate) async fn delete(
        &self,
        resource: Resource,
        key: &Key,
        options: &DeleteOptions,
    ) -> Result<(), kube::Error> {
        self.delete_at(&resource.path(key), options).await
    }

    /// DELETE of any path; what is not there is as good as deleted.
    pub(crate) async fn delete_at(&self, path: &str, options: &DeleteOptions) -> Result<(), kube::Error> {
        let deleted: Result<serde::de::IgnoredAny, _> =
            self.send("DELETE", path, "application/json", Some(options)).await;
        match deleted {
            Err(error) if is_not_found(&error) => Ok(()),
            other => other.map(drop),
        }
    }

    /// PATCH of any path with a merge patch.
    pub(crate) async fn patch_at(&self, path: &str, patch: &Value) -> Result<Meta, kube::Error> {
        let uri = format!("{path}?{MANAGER}");
        self.send("PATCH", &uri, "application/merge-patch+json", Some(patch)).await
    }

    /// POST to any path, for its answer.
    pub(crate) async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, kube::Error> {
        self.send("POST", path, "application/json", Some(body)).await
    }

    /// GET of a path.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, kube::Error> {
        self.send("GET", path, "application/json", None::<&()>).await
    }

    /// GET of a collection, of which only metadata is asked for.
    pub(crate) async fn list_meta<T: DeserializeOwned>(&self, path: &str) -> Result<T, kube::Error> {
        let accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        let request = Request::get(path).header(http::header::ACCEPT, accept).body(Vec::new());
        self.ask(request.map_err(kube::Error::HttpError)?).await
    }

    /// GET of one object.
    pub(crate) async fn fetch<T: DeserializeOwned>(&self, resource: Resource, key: &Key) -> Result<T, kube::Error> {
        self.get(&resource.path(key)).await
    }

    /// PUT of any path.
    pub(crate) async fn put_at<B: Serialize>(&self, path: &str, body: &B) -> Result<Meta, kube::Error> {
        self.send("PUT", path, "application/json", Some(body)).await
    }

    async fn send<B: Serialize, T: DeserializeOwned>(
        &self,
        method: &str,
        uri: &str,
        media: &str,
        body: Option<&B>,
    ) -> Result<T, kube::Error> {
        let bytes = match body {
            Some(body) => serde_json::to_vec(body).map_err(kube::Error::SerdeError)?,
            None => Vec::new(),
        };
        let request = Request::builder().method(method).uri(uri).header(http::header::CONTENT_TYPE, media);
        self.ask(request.body(bytes).map_err(kube::Error::HttpError)?).await
    }

    /// Asks, and decodes the answer: kube would log all of one that does not decode.
    async fn ask<T: DeserializeOwned>(&self, request: Request<Vec<u8>>) -> Result<T, kube::Error> {
        let text = self.0.request_text(request).await?;
        serde_json::from_str(&text).map_err(kube::Error::SerdeError)
    }
}

/// The status code of an answer, if there was one.
pub(crate) fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    code(error) == Some(404)
}

pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    code(error) == Some(409)
}

/// Whether the namespace is being deleted, so that creating in it is pointless.
pub(crate) fn is_namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    status.code == 403
        && (status.message.contains("because it is being terminated")
            || status
                .details
                .as_ref()
                .is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating")))
}

/// Whether the write may still have happened: no answer, or one that says so.
pub(crate) fn is_unknown(error: &kube::Error) -> bool {
    code(error).is_none_or(|code| code == 504 || code == 500)
}

/// The part of a query by which the rest of a list is asked for.
pub(crate) fn page_after(list: &ListMeta) -> Option<String> {
    let token = list.continue_.as_deref().filter(|token| !token.is_empty())?;
    let encoded: String = token
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect();
    Some(format!("&continue={encoded}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_paths() {
        for (version, plural, namespace, name, expected) in [
            ("v1", "pods", "a", "b", "/api/v1/namespaces/a/pods/b"),
            ("v1", "nodes", "", "n", "/api/v1/nodes/n"),
            ("apps/v1", "deployments", "a", "", "/apis/apps/v1/namespaces/a/deployments"),
            ("v1", "pods", "a", "x?y=/../z", "/api/v1/namespaces/a/pods/x%3Fy%3D%2F..%2Fz"),
            (
                "rbac.authorization.k8s.io/v1",
                "clusterroles",
                "",
                "system:a",
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:a",
            ),
        ] {
            assert_eq!(path(version, plural, namespace, name), expected);
        }
    }
}
