//! HTTPS to hosts outside of the cluster, for guests that may leave it. The machine's roots are trusted.

use std::sync::Arc;
use std::time::Duration;

use coracle_engine::{Body, BoxError, OutboundError};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::OnceCell;

use super::guest::no_answer;

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

type Client = legacy::Client<HttpsConnector<HttpConnector>, Body>;

/// Pooled connections, made when the first guest asks.
#[derive(Default)]
pub(super) struct Https(OnceCell<Client>);

impl Https {
    /// Sends a request whose URI is `https` and absolute.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>, OutboundError> {
        let client = self.0.get_or_try_init(connect).await?;
        let endpoint = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        // What the connection speaks is agreed with the server.
        *request.version_mut() = http::Version::HTTP_11;
        let response = client.request(request).await.map_err(|error| no_answer(endpoint, error.into()))?;
        Ok(response.map(|body| body.map_err(BoxError::from).boxed_unsync()))
    }
}

async fn connect() -> Result<Client, OutboundError> {
    let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    let loaded = loaded.map_err(|error| OutboundError::Internal(error.to_string()))?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(loaded.certs);
    if roots.is_empty() {
        return Err(OutboundError::Internal("this machine has no root certificates for https".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let tls = tls.map_err(|error| OutboundError::Internal(error.to_string()))?;
    let tls = tls.with_root_certificates(roots).with_no_client_auth();
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only()
        .enable_all_versions()
        .wrap_connector(http);
    Ok(legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(30))
        .pool_max_idle_per_host(16)
        .build(connector))
}
