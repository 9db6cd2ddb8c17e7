//! Sockets for components that have none: a guest that speaks TCP to an HTTP component of another pod gets a listener
//! at that pod's twin, made when it is first wanted and closed with the pod.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use coracle_proxy::{HttpService, serve_stream};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Listeners at the same time; beyond it a connection is refused.
const BRIDGES_MAX: usize = 1024;

#[derive(Default)]
pub(super) struct Bridges(Mutex<HashMap<SocketAddr, Bridge>>);

struct Bridge {
    at: SocketAddr,
    stop: CancellationToken,
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Bridges {
    /// The socket at `at` that leads to `service`, for the pod's `endpoint`.
    pub fn open(&self, endpoint: SocketAddr, at: SocketAddr, service: Arc<dyn HttpService>) -> Option<SocketAddr> {
        let mut bridges = self.0.lock();
        if let Some(bridge) = bridges.get(&endpoint) {
            return Some(bridge.at);
        }
        if bridges.len() >= BRIDGES_MAX {
            return None;
        }
        let listen = || -> std::io::Result<tokio::net::TcpListener> {
            let listener = std::net::TcpListener::bind(at)?;
            listener.set_nonblocking(true)?;
            tokio::net::TcpListener::from_std(listener)
        };
        let listener = listen().inspect_err(|error| tracing::debug!(%at, %error, "bridge")).ok()?;
        let stop = CancellationToken::new();
        tokio::spawn(accept(listener, service, stop.clone()));
        bridges.insert(endpoint, Bridge { at, stop });
        Some(at)
    }

    /// Closes those of a pod.
    pub fn close(&self, address: IpAddr) {
        let mut bridges = self.0.lock();
        if !bridges.is_empty() {
            bridges.retain(|endpoint, _| endpoint.ip() != address);
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, service: Arc<dyn HttpService>, stop: CancellationToken) {
    loop {
        // Waiting is all that is cut here.
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else { continue };
        let _ = stream.set_nodelay(true);
        let (service, stop) = (service.clone(), stop.clone());
        tokio::spawn(async move {
            // The connection ends with the pod.
            tokio::select! {
                result = serve_stream(stream, service) => if let Err(error) = result {
                    tracing::trace!(%error, "bridge connection");
                },
                () = stop.cancelled() => {}
            }
        });
    }
}
