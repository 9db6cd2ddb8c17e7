//! What nodes see of requests: as they are answered, and where one would go.

use futures::{AsyncBufReadExt as _, Stream, StreamExt as _};
use http::Request;
use serde::Deserialize;
use serde_json::Value;

use crate::{AskError, Remote};

/// A request that a node has seen answered.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Tapped {
    /// When it came, as RFC 3339 has it.
    pub at: String,
    /// Who has asked: a pod, a port of the node, an Ingress.
    pub source: String,
    /// Namespace of the Service.
    pub namespace: String,
    /// The Service.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// Who has answered, or was asked last.
    pub endpoint: Option<String>,
    /// The pod there, as `namespace/name`, where the node knows it.
    pub pod: Option<String>,
    /// The request's method.
    pub method: String,
    /// Its path, without a query.
    pub path: String,
    /// The answer's status.
    pub status: Option<u16>,
    /// Why there is none.
    pub error: Option<String>,
    /// From its begin to the head of the answer.
    pub latency_micros: u64,
    /// How many endpoints were asked.
    pub attempts: u32,
    /// The node that has seen it.
    pub node: String,
}

/// What is told of requests.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum TapLine {
    /// One.
    Request(Box<Tapped>),
    /// So many came too fast.
    Lost {
        /// How many.
        lost: u64,
        /// At which node.
        node: String,
    },
    /// A node tells nothing.
    Failed {
        /// Which one.
        node: Option<String>,
        /// Why.
        error: String,
    },
}

/// What is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoutesOf<'a> {
    /// A request to an Ingress.
    Host {
        /// Its host.
        host: &'a str,
        /// Its path.
        path: &'a str,
    },
    /// A Service.
    Service {
        /// Its namespace.
        namespace: &'a str,
        /// Its name.
        name: &'a str,
    },
}

impl Remote {
    /// Requests to Services as they are answered, from now on: of one namespace, or of all; to one Service, or to all. Each is given
    /// as it was told, too.
    pub async fn tap(
        &self,
        namespace: Option<&str>,
        service: Option<&str>,
    ) -> Result<impl Stream<Item = Result<(String, TapLine), AskError>> + use<>, AskError> {
        let query = query(&[("namespace", namespace), ("service", service)]);
        let lines = self.client().request_stream(get(&format!("/coracle/v1/tap?{query}"))?).await?;
        let lines = Box::pin(lines).lines();
        Ok(lines.map(|line| {
            let line = line.map_err(|error| AskError::Other(error.to_string()))?;
            let read = serde_json::from_str(&line).map_err(|error| AskError::Other(error.to_string()))?;
            Ok((line, read))
        }))
    }

    /// Where a request would go, as each node sees it: `{"nodes": {NAME: …}}`.
    pub async fn routes(&self, of: &RoutesOf<'_>) -> Result<Value, AskError> {
        let query = match *of {
            RoutesOf::Host { host, path } => query(&[("host", Some(host)), ("path", Some(path))]),
            RoutesOf::Service { namespace, name } => query(&[("namespace", Some(namespace)), ("service", Some(name))]),
        };
        Ok(self.client().request(get(&format!("/coracle/v1/routes?{query}"))?).await?)
    }
}

fn get(path: &str) -> Result<Request<Vec<u8>>, AskError> {
    Request::get(path).body(Vec::new()).map_err(|error| AskError::Other(error.to_string()))
}

fn query(pairs: &[(&str, Option<&str>)]) -> String {
    let encoded = |text: &str| {
        text.bytes().fold(String::new(), |mut encoded, byte| {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
                other => encoded.push_str(&format!("%{other:02X}")),
            }
            encoded
        })
    };
    let pairs = pairs.iter().filter_map(|(name, value)| Some(format!("{name}={}", encoded((*value)?))));
    pairs.collect::<Vec<_>>().join("&")
}
