//! The way to a server to which requests are passed on (an APIService's): a connection for each, since many are long, in which
//! this server proves that it is the front proxy.

use axum::body::Body;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;

use super::dial::{self, Trust};
use super::{Nodes, Target, Way, why};
use crate::limits::Flow;

/// By what servers know that it is this cluster's API server who says on whose behalf it asks: a client certificate, and the
/// authority that has signed it and signs nothing else. All of it is PEM.
#[derive(Clone)]
pub struct FrontProxy {
    /// The authority's certificate, which is published (`kube-system/extension-apiserver-authentication`).
    pub authority: String,
    /// The certificate that is shown.
    pub certificate: String,
    /// Its key (PKCS #8).
    pub key: String,
}

impl FrontProxy {
    /// Whom it is, as the published ConfigMap says it: `requestheader-allowed-names`.
    pub const NAME: &str = "front-proxy-client";
}

/// Without the key.
impl std::fmt::Debug for FrontProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrontProxy").finish_non_exhaustive()
    }
}

/// The way to one server.
pub(crate) struct Passage {
    authorities: Vec<u8>,
    is_unproven: bool,
    front: Option<std::sync::Arc<FrontProxy>>,
    tls: OnceCell<TlsConnector>,
}

impl std::fmt::Debug for Passage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passage").field("is_unproven", &self.is_unproven).finish_non_exhaustive()
    }
}

impl Passage {
    /// To a server with these authorities (PEM); without any the machine's are trusted, or nobody has to prove anything.
    pub fn new(authorities: Vec<u8>, is_unproven: bool, front: Option<std::sync::Arc<FrontProxy>>) -> Passage {
        let authorities = if authorities.trim_ascii().is_empty() { Vec::new() } else { authorities };
        Passage { authorities, is_unproven, front, tls: OnceCell::new() }
    }

    /// Whether the server is to prove itself by a certificate of its own authority.
    pub fn has_authorities(&self) -> bool {
        !self.authorities.is_empty()
    }

    /// A connection of its own for one request of `flow`. It ends with the answer, or with what that becomes.
    pub async fn open(&self, nodes: &Nodes, target: &Target, flow: Flow<'_>) -> Result<SendRequest<Body>, String> {
        let own = match target.way {
            Way::Node { .. } => None,
            Way::Direct { .. } | Way::Tunnel { .. } => {
                let trust = match self.is_unproven {
                    true => Trust::Anybody,
                    false => Trust::Authorities(&self.authorities),
                };
                Some(self.tls.get_or_try_init(|| dial::tls(trust, self.front.as_deref())).await?)
            }
        };
        let (stream, held) = dial::stream(own, nodes, target, flow).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| why(&error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to an API server");
            }
            drop(held);
        });
        Ok(sender)
    }
}
