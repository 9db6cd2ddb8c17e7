//! What is said at a Service's `healthCheckNodePort`: whether this node has endpoints of its own, as kube-proxy says it
//! (`pkg/proxy/healthcheck` of Kubernetes: the fields, the codes and the header that tells how many).

use bytes::Bytes;
use coracle_discovery::Service;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Full};

use crate::Body;

/// How many endpoints there are, for balancers that give nodes a share by that.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The answer: 200 while an endpoint of this node is ready, else 503.
pub(super) fn answer(service: &Service, node: &str) -> Response<Body> {
    let count = service.ready_of(node);
    let Service { namespace, name, .. } = service;
    // Names of Kubernetes' objects have nothing in them that would need quoting.
    let text = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\"localEndpoints\": {count},\n\t\
         \"serviceProxyHealthy\": true\n}}"
    );
    let mut response = Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync());
    if count == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, HeaderValue::from(count));
    response
}
