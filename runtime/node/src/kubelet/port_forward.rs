//! `/portForward`: a client's connections to ports of a pod.
//!
//! Three forms (kubernetes-api §13.3): SPDY/3.1 tunnelled in a WebSocket (kubectl), SPDY/3.1 itself (older clients), and
//! numbered channels of a WebSocket (clients in other languages). All end in [`forward`].

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use coracle_proxy::Local;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::places::{Place, hold};
use super::traffic::{STALLED_MAX, STREAMS_WAIT};
use super::upgrade::{self, Wanted};
use super::{channels, refusal, spdy};
use crate::network::pass;
use crate::pod::{Pods, Slot};

/// SPDY in a WebSocket.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Streams of a SPDY connection.
const STREAMS: &str = "portforward.k8s.io";
/// Half-opened requests (one of two streams has come) on one connection.
const PENDING_MAX: usize = 256;

/// Answers by changing to one of the protocols.
pub async fn any(
    State(pods): State<Arc<Pods>>,
    Path(path): Path<HashMap<String, String>>,
    mut request: Request,
) -> Response {
    let (namespace, name) = (path["namespace"].as_str(), path["pod"].as_str());
    let Some(slot) = pods.find(namespace, name) else {
        return refusal(StatusCode::NOT_FOUND, format!("pod does not exist: {name:?}"));
    };
    if path.get("uid").is_some_and(|uid| **uid != *slot.uid) {
        return refusal(StatusCode::NOT_FOUND, format!("pod does not exist: {name:?}"));
    }
    let ports = match channels::ports(request.uri().query().unwrap_or_default()) {
        Ok(ports) => ports,
        Err(message) => return refusal(StatusCode::BAD_REQUEST, message),
    };
    let place = request.extensions_mut().remove::<Place>();
    match Wanted::of(request.headers()) {
        Wanted::WebSocket(offered) => {
            let chosen = offered.iter().find(|name| *name == TUNNEL || *name == channels::PROTOCOL);
            let Some(chosen) = chosen.cloned() else {
                let message = format!("unable to upgrade: none of {offered:?} is supported");
                return refusal(StatusCode::BAD_REQUEST, message);
            };
            let Some((response, upgrading)) = upgrade::accept_websocket(&mut request, Some(&chosen)) else {
                return refusal(StatusCode::BAD_REQUEST, "the WebSocket handshake has no key".to_owned());
            };
            tokio::spawn(hold(place, async move {
                match chosen == TUNNEL {
                    true => tunnelled(pods, slot, upgrading).await,
                    false => channelled(pods, slot, upgrading, ports).await,
                }
            }));
            response
        }
        Wanted::Spdy(offered) => {
            // Clients of old offer nothing and mean the same.
            if !offered.is_empty() && !offered.iter().any(|name| name == STREAMS) {
                return refusal(StatusCode::FORBIDDEN, format!("unable to upgrade: none of {offered:?} is supported"));
            }
            let (response, upgrading) = upgrade::accept_spdy(&mut request, STREAMS);
            tokio::spawn(hold(place, async move {
                match upgrading.await {
                    Ok(upgraded) => streams(pods, slot, TokioIo::new(upgraded)).await,
                    Err(error) => tracing::debug!(%error, "port-forward"),
                }
            }));
            response
        }
        Wanted::Nothing => refusal(StatusCode::BAD_REQUEST, "Upgrade request required".to_owned()),
    }
}

async fn tunnelled(pods: Arc<Pods>, slot: Arc<Slot>, upgrading: OnUpgrade) {
    match upgrading.await {
        Ok(upgraded) => {
            let (stream, pump) = upgrade::tunnel(upgrade::websocket(upgraded).await);
            tokio::join!(streams(pods, slot, stream), pump);
        }
        Err(error) => tracing::debug!(%error, "port-forward"),
    }
}

async fn channelled(pods: Arc<Pods>, slot: Arc<Slot>, upgrading: OnUpgrade, ports: Vec<u16>) {
    match upgrading.await {
        Ok(upgraded) => {
            let socket = upgrade::websocket(upgraded).await;
            channels::serve(socket, &ports, |port, stream| {
                let (pods, slot) = (pods.clone(), slot.clone());
                async move { forward(&pods, &slot, port, stream).await }
            })
            .await;
        }
        Err(error) => tracing::debug!(%error, "port-forward"),
    }
}

/// Serves a SPDY connection: streams come in pairs, one for data and one for errors.
async fn streams<S: AsyncRead + AsyncWrite + Send + 'static>(pods: Arc<Pods>, slot: Arc<Slot>, io: S) {
    let (sender, mut opened) = mpsc::channel(16);
    let serving = AbortOnDropHandle::new(tokio::spawn(spdy::serve(io, sender)));
    let mut pairs = Pairs::default();
    while let Some((data, error)) = pairs.next(&mut opened).await {
        let (pods, slot) = (pods.clone(), slot.clone());
        let gone = data.gone.clone();
        tokio::spawn(async move {
            // The client may be gone while the pod says nothing, and will not.
            tokio::select! {
                () = pair(&pods, &slot, data, error.io) => {}
                () = gone.cancelled() => {}
            }
        });
    }
    if let Ok(Err(error)) = serving.await {
        tracing::debug!(%error, "port-forward");
    }
}

/// Streams of which the other of two has not come.
#[derive(Default)]
struct Pairs {
    /// With when it is to be there.
    pending: HashMap<String, (spdy::Stream, Instant)>,
}

impl Pairs {
    /// The next two that belong together: for data, and for errors. None when no more are opened.
    async fn next(&mut self, opened: &mut mpsc::Receiver<spdy::Stream>) -> Option<(spdy::Stream, spdy::Stream)> {
        loop {
            let until = self.pending.values().map(|(_, until)| *until).min();
            // Both only wait.
            let stream = tokio::select! {
                stream = opened.recv() => stream?,
                () = tokio::time::sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    self.pending.retain(|_, (_, until)| *until > Instant::now());
                    continue;
                }
            };
            let header = |name: &str| stream.headers.get(name).map(String::as_str).unwrap_or_default();
            // Clients of old number nothing: there the port pairs them.
            let id = Some(header("requestid")).filter(|id| !id.is_empty()).unwrap_or_else(|| header("port")).to_owned();
            let Some((first, _)) = self.pending.remove(&id) else {
                if self.pending.len() < PENDING_MAX {
                    self.pending.insert(id, (stream, Instant::now() + STREAMS_WAIT));
                }
                continue;
            };
            let kind = |stream: &spdy::Stream| stream.headers.get("streamtype").cloned().unwrap_or_default();
            match (kind(&first).as_str(), kind(&stream).as_str()) {
                ("data", "error") => return Some((first, stream)),
                ("error", "data") => return Some((stream, first)),
                _ => {}
            }
        }
    }
}

async fn pair(pods: &Pods, slot: &Slot, data: spdy::Stream, mut errors: DuplexStream) {
    let text = data.headers.get("port").map(String::as_str).unwrap_or_default();
    let result = match text.parse::<u16>() {
        Ok(port) if port > 0 => forward(pods, slot, port, data.io).await,
        _ => Err(format!("invalid port {text:?}")),
    };
    if let Err(message) = result {
        let _ = errors.write_all(message.as_bytes()).await;
    }
    let _ = errors.shutdown().await;
}

/// Connects a stream with a port of a pod until either ends.
async fn forward<S>(pods: &Pods, slot: &Slot, port: u16, stream: S) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |why: &str| {
        let (uid, name) = (&slot.uid, &slot.name);
        Err(format!(
            "error forwarding port {port} to pod {name}, uid : failed to connect to port {port} of pod {uid}: {why}"
        ))
    };
    let Some(address) = slot.address() else { return failed("the pod does not run") };
    match pods.context.network.local(address.pod, port) {
        Some(Local::Http(service)) => {
            if let Err(error) = coracle_proxy::serve_stream(stream, service).await {
                tracing::trace!(%error, "port-forward");
            }
            Ok(())
        }
        Some(Local::Tcp(at)) => {
            let socket = match pods.context.network.dial(at).await {
                Ok(socket) => socket,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    return failed(&format!("dial tcp {}:{port}: connect: connection refused", address.pod));
                }
                Err(error) => return failed(&error.to_string()),
            };
            let _ = socket.set_nodelay(true);
            // A bound is the kernel's to keep: it knows what the pod has not taken.
            let stalled_max_ms = u32::try_from(STALLED_MAX.as_millis()).unwrap_or(u32::MAX);
            let _ = rustix::net::sockopt::set_tcp_user_timeout(&socket, stalled_max_ms);
            if let Err(error) = pass(socket, async { Ok(stream) }).await {
                tracing::trace!(%error, "port-forward");
            }
            Ok(())
        }
        None => failed("no container of the pod runs"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// A stream as a client opens it, and the client's end.
    fn stream(kind: &str, id: &str) -> (spdy::Stream, DuplexStream) {
        let headers =
            [("streamtype", kind), ("requestid", id)].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let (io, client) = tokio::io::duplex(16);
        (spdy::Stream { headers: headers.into(), io, gone: CancellationToken::new() }, client)
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_waits_for_its_other_so_long() {
        let (client, mut opened) = mpsc::channel(16);
        let mut pairs = Pairs::default();
        let (half, mut half_client) = stream("data", "1");
        client.send(half).await.unwrap();
        let begun = Instant::now();
        let mut nothing = [0; 8];
        let dropped = tokio::select! {
            read = half_client.read(&mut nothing) => read.unwrap(),
            _ = pairs.next(&mut opened) => panic!("nothing belongs together"),
        };
        assert_eq!((dropped, begun.elapsed().as_secs()), (0, STREAMS_WAIT.as_secs()));
        for (kind, id) in [("error", "2"), ("data", "3"), ("data", "2")] {
            client.send(stream(kind, id).0).await.unwrap();
        }
        let (data, error) = pairs.next(&mut opened).await.unwrap();
        assert_eq!((data.headers["streamtype"].as_str(), error.headers["streamtype"].as_str()), ("data", "error"));
        drop(client);
        assert!(pairs.next(&mut opened).await.is_none());
    }
}
