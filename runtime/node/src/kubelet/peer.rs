//! Who is at the other end of a connection. The certificate's signature was verified in the handshake.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The name under which API servers call nodes.
const API_SERVER: &str = "kube-apiserver-kubelet-client";
/// What names of node agents begin with, and their group.
const NODE: &str = "system:node:";
const NODES: &str = "system:nodes";
/// Who may do everything.
const MASTERS: &str = "system:masters";

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// An API server.
    ApiServer,
    /// The agent of another node, by its name.
    Node(String),
    /// Somebody else whom the authority knows.
    Other,
    /// Somebody without a certificate.
    Anonymous,
}

impl Peer {
    /// Reads the certificate that was shown.
    pub fn of(chain: &[CertificateDer<'_>]) -> Self {
        let Some(certificate) = chain.first() else { return Self::Anonymous };
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Self::Other };
        let subject = certificate.subject();
        let is = |wanted: &str, mut names: Box<dyn Iterator<Item = Option<String>> + '_>| {
            names.any(|name| name.as_deref() == Some(wanted))
        };
        let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().ok().map(str::to_owned);
        let known = is(API_SERVER, Box::new(subject.iter_common_name().map(text)))
            || is(MASTERS, Box::new(subject.iter_organization().map(text)));
        let names: Vec<String> = subject.iter_common_name().filter_map(text).collect();
        let node = match names.as_slice() {
            [name] => name.strip_prefix(NODE).filter(|_| is(NODES, Box::new(subject.iter_organization().map(text)))),
            _ => None,
        };
        match (known, node) {
            (true, _) => Self::ApiServer,
            (false, Some(name)) => Self::Node(name.to_owned()),
            (false, None) => Self::Other,
        }
    }
}
