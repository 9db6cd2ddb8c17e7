//! How an endpoint is reached. The ways are told apart here and nowhere else.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use coracle_discovery::Protocol;
use coracle_policy::Source;
use http::{Request, Response};
use tokio::net::TcpStream;

use crate::balance::{Balancer, Picked};
use crate::dial::Dialer;
use crate::guard::Guard;
use crate::{
    Asker, Body, BoxError, Busy, Error, HttpService, Local, LocalEndpoints, NotAllowed, Place, Purpose, Seen, Stream,
    spare,
};

/// A connection to an endpoint is made within this time, or not at all.
pub(crate) const CONNECT_MAX: Duration = Duration::from_secs(5);

/// An endpoint and the way to it.
pub(crate) struct Endpoint {
    /// What it is called: the pod's address, not where its sockets really are.
    pub address: SocketAddr,
    way: Way,
}

enum Way {
    /// A component that is called.
    Call(Arc<dyn HttpService>),
    /// Something that listens.
    Socket(SocketAddr),
    /// A pod of another node, which answers whatever it is.
    Elsewhere,
}

/// What a connection to an endpoint is.
pub(crate) enum Connected {
    /// Bytes go there and come back.
    Socket(TcpStream),
    /// The same, through another node.
    Elsewhere(Box<dyn Stream>, Place),
    /// It only answers requests.
    CallsOnly,
}

/// Why there is no answer.
pub(crate) struct Failure {
    pub error: Error,
    /// Nobody has seen the request.
    pub is_unseen: bool,
    /// The endpoint has too much to do; else it fails.
    pub is_busy: bool,
    /// It is no fault of the endpoint: who asks has taken its share of the way there, or may not go there.
    pub is_askers: bool,
}

/// Who asks has its share of the way to a node.
#[derive(Debug, thiserror::Error)]
#[error("whoever asks has as many connections to that node as it may")]
pub(crate) struct ShareTaken;

impl Failure {
    pub fn unseen(endpoint: SocketAddr, source: BoxError) -> Failure {
        let (is_busy, is_share) = (source.is::<Busy>(), source.is::<ShareTaken>());
        let endpoint = endpoint.to_string();
        match NotAllowed::is_cause(&*source) {
            true => Failure { error: Error::NotAllowed(endpoint), is_unseen: true, is_busy, is_askers: true },
            false => Failure {
                error: Error::Unavailable { endpoint, source },
                is_unseen: true,
                is_busy,
                is_askers: is_share,
            },
        }
    }

    pub fn seen(endpoint: SocketAddr, source: BoxError) -> Failure {
        let error = Error::Failed { endpoint: endpoint.to_string(), source };
        Failure { error, is_unseen: false, is_busy: false, is_askers: false }
    }

    /// Tells the balancer what it means for the endpoint.
    pub fn tell(&self, balancer: &Balancer, picked: Picked) {
        match self {
            Failure { is_askers: true, .. } => drop(picked),
            Failure { is_busy: true, .. } => picked.refused_busy(),
            _ => balancer.failed(picked),
        }
    }

    /// Whether policies are why.
    pub fn is_not_allowed(&self) -> bool {
        matches!(self.error, Error::NotAllowed(_))
    }

    /// Whether discovery may know less than this: nobody was there.
    pub fn is_gone(&self) -> bool {
        self.is_unseen && !self.is_busy && !self.is_askers
    }
}

impl Endpoint {
    /// The way to this address; `None` when nothing is there that may be reached.
    pub fn find(local: &dyn LocalEndpoints, address: SocketAddr) -> Option<Endpoint> {
        let way = match local.lookup(address.ip(), address.port()) {
            Some(Local::Http(service)) => Way::Call(service),
            Some(Local::Tcp(socket)) => Way::Socket(socket),
            None if local.is_elsewhere(address.ip()) => Way::Elsewhere,
            None if local.is_pod_address(address.ip()) || !local.may_dial(address) => return None,
            None => Way::Socket(address),
        };
        Some(Endpoint { address, way })
    }

    /// Whether something is meant by this address that nobody may reach.
    pub fn is_forbidden(local: &dyn LocalEndpoints, address: SocketAddr) -> bool {
        let is_pod = local.is_pod_address(address.ip()) || local.is_elsewhere(address.ip());
        !is_pod && local.lookup(address.ip(), address.port()).is_none() && !local.may_dial(address)
    }

    /// Whether it is a pod of another node.
    pub fn is_elsewhere(&self) -> bool {
        matches!(self.way, Way::Elsewhere)
    }

    /// Its socket; `None` when it has none on this machine, since it is called or on another node.
    pub fn socket(&self) -> Option<SocketAddr> {
        match self.way {
            Way::Call(_) | Way::Elsewhere => None,
            Way::Socket(socket) => Some(socket),
        }
    }

    /// Whether datagrams can be sent to it, as far as this node can tell; not to a component, which is called.
    pub fn takes_datagrams(&self) -> bool {
        matches!(self.way, Way::Socket(_) | Way::Elsewhere)
    }

    /// Answers a request.
    pub async fn call(&self, dialer: &Dialer, request: Request<Body>) -> Result<Response<Body>, Failure> {
        match &self.way {
            Way::Call(service) => service.call(request).await.map_err(|source| match source.is::<Seen>() {
                true => Failure::seen(self.address, source),
                false => Failure::unseen(self.address, source),
            }),
            // In boxes, lest each request that is called has a place for an HTTP client in its future, which is copied.
            Way::Socket(socket) => Box::pin(dialer.call(self.address, *socket, request)).await,
            Way::Elsewhere => Box::pin(dialer.call_elsewhere(self.address, request)).await,
        }
    }

    /// Connects to it, for `source`, in the share of `by`.
    pub async fn connect(&self, guard: &Guard, by: Asker, source: &Source) -> Result<Connected, BoxError> {
        let local = &guard.local;
        let socket = match self.way {
            Way::Call(_) => return Ok(Connected::CallsOnly),
            Way::Socket(socket) => socket,
            Way::Elsewhere => {
                let place = local.enter_elsewhere(self.address, by).ok_or(ShareTaken)?;
                let there = guard.connect(self.address, Purpose::Bytes, source.clone()).await?;
                return Ok(match there.is_called {
                    true => Connected::CallsOnly,
                    false => Connected::Elsewhere(there.stream, place),
                });
            }
        };
        if !local.is_reached(socket, Protocol::Tcp) {
            return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into());
        }
        let stream = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(socket)).await??;
        stream.set_nodelay(true)?;
        spare::keep_alive(&stream)?;
        Ok(Connected::Socket(stream))
    }
}
