//! From a request or an address to the endpoint that answers.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use coracle_discovery::{Resolved, Service};
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::{Balancer, Body, BoxError, Error, Local, Picked, Proxy};

/// Connections to endpoints that are not called, pooled.
pub(crate) type Client = legacy::Client<HttpConnector, Body>;

/// How many endpoints are tried before there is no answer: one may have gone since discovery spoke.
const TRIES: usize = 3;

pub(crate) fn client() -> Client {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(Duration::from_secs(5)));
    legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(30))
        .pool_max_idle_per_host(64)
        .build(connector)
}

impl Proxy {
    /// A guest's outgoing HTTP request to a Service or pod of the cluster. [`Error::NotInCluster`] when the authority names
    /// neither.
    pub async fn call(&self, from_namespace: &str, request: Request<Body>) -> Result<Response<Body>, Error> {
        let authority = authority(&request)?;
        let port = authority.port_u16().unwrap_or(match request.uri().scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => 443,
            _ => 80,
        });
        match self.destination(authority.host(), from_namespace)? {
            Destination::Service(service) => self.call_service(&service, port, request).await,
            Destination::Pod(address) => self.call_endpoint(SocketAddr::new(address, port), request).await,
        }
    }

    /// The real address for a guest's connection to a Service or pod; `None` when the address is not the cluster's.
    pub fn connect_address(&self, to: SocketAddr) -> Option<Result<SocketAddr, Error>> {
        if let Some(service) = self.discovery.snapshot().by_address(to.ip()) {
            return Some(self.connect_service(service, to.port()));
        }
        self.local.is_pod_address(to.ip()).then(|| self.socket_of(to))
    }

    /// Addresses behind a name of the cluster, for a guest's resolver; `None` when it is not the cluster's.
    pub fn resolve(&self, host: &str, from_namespace: &str) -> Option<Vec<IpAddr>> {
        match self.discovery.snapshot().resolve(host, from_namespace)? {
            Resolved::Service(service) => service.cluster_ip.map(|address| vec![address]),
            Resolved::Addresses(addresses) => Some(addresses),
            Resolved::External(_) => None,
        }
    }

    /// A request to somewhere outside of the cluster, over a pooled connection. Plain HTTP only.
    pub async fn external(&self, request: Request<Body>) -> Result<Response<Body>, Error> {
        let authority = authority(&request)?;
        match request.uri().scheme() {
            Some(scheme) if *scheme != Scheme::HTTP => return Err(Error::Scheme(scheme.to_string())),
            _ => {}
        }
        self.dial(&authority, request).await
    }

    fn destination(&self, host: &str, from_namespace: &str) -> Result<Destination, Error> {
        let not_ours = || Error::NotInCluster(host.to_owned());
        let snapshot = self.discovery.snapshot();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        if let Ok(address) = address {
            return match snapshot.by_address(address) {
                Some(service) => Ok(Destination::Service(service.clone())),
                None if self.local.is_pod_address(address) => Ok(Destination::Pod(address)),
                None => Err(not_ours()),
            };
        }
        match snapshot.resolve(host, from_namespace).ok_or_else(not_ours)? {
            Resolved::Service(service) => Ok(Destination::Service(service)),
            Resolved::Addresses(addresses) => {
                // Any will do: a headless Service leaves the choice to its client.
                let at = rand::random_range(0..addresses.len().max(1));
                addresses.get(at).map(|address| Destination::Pod(*address)).ok_or_else(not_ours)
            }
            Resolved::External(_) => Err(not_ours()),
        }
    }

    /// Answers from one of the endpoints of a Service's port.
    async fn call_service(
        &self,
        service: &Arc<Service>,
        port: u16,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        let no_port = || Error::NoPort { namespace: service.namespace.clone(), name: service.name.clone(), port };
        let at = service.ports.iter().position(|found| found.port == port).ok_or_else(no_port)?;
        let balancer = self.routes.balancer(service, at).ok_or_else(no_port)?;
        self.call_balanced(service, &balancer, request).await
    }

    pub(crate) async fn call_balanced(
        &self,
        service: &Service,
        balancer: &Balancer,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        let (picked, local) = self.pick(service, balancer)?;
        let endpoint = SocketAddr::new(picked.endpoint().address, picked.endpoint().port);
        let answer = match local {
            Some(Local::Http(service)) => {
                service.call(request).await.map_err(|source| Error::Failed { endpoint: endpoint.to_string(), source })
            }
            Some(Local::Tcp(address)) => self.dial(&authority_of(address), request).await,
            None => self.dial(&authority_of(endpoint), request).await,
        };
        match answer {
            Ok(response) => {
                picked.succeeded();
                Ok(response.map(|body| Counted { body, _picked: picked }.boxed_unsync()))
            }
            Err(error) => {
                picked.failed();
                Err(error)
            }
        }
    }

    /// An endpoint that is there, and how it is reached: `None` over the network.
    pub(crate) fn pick(&self, service: &Service, balancer: &Balancer) -> Result<(Picked, Option<Local>), Error> {
        for _ in 0..TRIES {
            let Some(picked) = balancer.pick() else { break };
            let endpoint = picked.endpoint();
            match self.local.lookup(endpoint.address, endpoint.port) {
                Some(local) => return Ok((picked, Some(local))),
                // The pod has just gone; discovery will say so in a moment.
                None if self.local.is_pod_address(endpoint.address) => picked.failed(),
                None if !self.local.may_dial(SocketAddr::new(endpoint.address, endpoint.port)) => picked.failed(),
                None => return Ok((picked, None)),
            }
        }
        Err(Error::NoEndpoints { namespace: service.namespace.clone(), name: service.name.clone() })
    }

    async fn call_endpoint(&self, endpoint: SocketAddr, request: Request<Body>) -> Result<Response<Body>, Error> {
        match self.local.lookup(endpoint.ip(), endpoint.port()) {
            Some(Local::Http(service)) => {
                service.call(request).await.map_err(|source| Error::Failed { endpoint: endpoint.to_string(), source })
            }
            Some(Local::Tcp(address)) => self.dial(&authority_of(address), request).await,
            None => Err(Error::NoPod(endpoint)),
        }
    }

    fn connect_service(&self, service: &Arc<Service>, port: u16) -> Result<SocketAddr, Error> {
        let no_port = || Error::NoPort { namespace: service.namespace.clone(), name: service.name.clone(), port };
        let at = service.ports.iter().position(|found| found.port == port).ok_or_else(no_port)?;
        let balancer = self.routes.balancer(service, at).ok_or_else(no_port)?;
        let (picked, local) = self.pick(service, &balancer)?;
        let endpoint = SocketAddr::new(picked.endpoint().address, picked.endpoint().port);
        match local {
            Some(Local::Tcp(address)) => Ok(address),
            Some(Local::Http(_)) => Err(Error::NoPod(endpoint)),
            None => Ok(endpoint),
        }
    }

    /// The socket behind a pod's port. A component that is called has none.
    fn socket_of(&self, endpoint: SocketAddr) -> Result<SocketAddr, Error> {
        match self.local.lookup(endpoint.ip(), endpoint.port()) {
            Some(Local::Tcp(address)) => Ok(address),
            Some(Local::Http(_)) | None => Err(Error::NoPod(endpoint)),
        }
    }

    /// Sends a request to `to`, whatever its URI names; the client keeps connections by where they lead.
    async fn dial(&self, to: &Authority, mut request: Request<Body>) -> Result<Response<Body>, Error> {
        if !request.headers().contains_key(http::header::HOST)
            && let Some(host) = request.uri().authority().and_then(|authority| authority.as_str().parse().ok())
        {
            request.headers_mut().insert(http::header::HOST, host);
        }
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
        let uri = Uri::builder().scheme(Scheme::HTTP).authority(to.clone()).path_and_query(path).build();
        *request.uri_mut() = uri.map_err(|_| Error::NoAuthority)?;
        *request.version_mut() = http::Version::HTTP_11;
        let failed = |source: legacy::Error| Error::Failed { endpoint: to.to_string(), source: source.into() };
        let response = self.client.request(request).await.map_err(failed)?;
        Ok(response.map(|body| body.map_err(BoxError::from).boxed_unsync()))
    }
}

enum Destination {
    Service(Arc<Service>),
    Pod(IpAddr),
}

/// Whom a request is for: its URI says, else its Host.
fn authority(request: &Request<Body>) -> Result<Authority, Error> {
    if let Some(authority) = request.uri().authority() {
        return Ok(authority.clone());
    }
    let host = request.headers().get(http::header::HOST).ok_or(Error::NoAuthority)?;
    Authority::try_from(host.as_bytes()).map_err(|_| Error::NoAuthority)
}

fn authority_of(address: SocketAddr) -> Authority {
    address.to_string().parse().expect("a socket address is an authority")
}

/// A response body that counts as under way until its end.
struct Counted {
    body: Body,
    _picked: Picked,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
