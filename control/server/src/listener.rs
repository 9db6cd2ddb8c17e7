//! Listeners: accept, TLS, who is calling, HTTP/1.1 and HTTP/2, and an orderly end.
//!
//! The caller's verified client certificate becomes the request extension that the API server authenticates by; the
//! listener itself decides nothing about rights.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use coracle_apiserver::Identity;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::Service;

/// Connections of one listener at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 20_000;
/// How long a client may take for its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// One Go client runs every watch over one connection (kubernetes-api §1.1).
const STREAMS_PER_CONNECTION_MAX: u32 = 2_000;
/// How long connections may finish what they began after the listener is told to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// Binds `address`; the error names it and says what to do.
pub async fn bind(address: SocketAddr, what: &'static str) -> Result<TcpListener, crate::Error> {
    TcpListener::bind(address).await.map_err(|source| crate::Error::Bind { what, address, source })
}

/// Serves `router` until `stop`, then lets connections finish.
pub async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, router: Router, stop: CancellationToken) {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30)).max_buf_size(128 * 1024);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(8 << 20)
        .max_frame_size(256 * 1024)
        .max_send_buf_size(1 << 20)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let http = Arc::new(http);
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let slot = tokio::select! {
            () = stop.cancelled() => break,
            slot = slots.clone().acquire_owned() => slot.expect("the semaphore is never closed"),
        };
        let (stream, peer) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_connection_error(&error) => continue,
                Err(error) => {
                    // Out of file descriptors: a pause lets connections end, instead of spinning on the error.
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (http, graceful, tls, router) = (http.clone(), graceful.watcher(), tls.clone(), router.clone());
        tokio::spawn(async move {
            if let Err(error) = connection(stream, peer, tls, router, &http, graceful).await {
                tracing::debug!(%peer, error, "connection");
            }
            drop(slot);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    router: Router,
    http: &auto::Builder<TokioExecutor>,
    graceful: hyper_util::server::graceful::Watcher,
) -> Result<(), String> {
    let _ = stream.set_nodelay(true);
    match tls {
        None => exchange(stream, peer, None, router, http, graceful).await,
        Some(tls) => {
            let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream))
                .await
                .map_err(|_| "TLS handshake took too long".to_owned())?
                .map_err(|e| e.to_string())?;
            let identity = stream.get_ref().1.peer_certificates().and_then(|chain| identity(chain.first()?));
            exchange(stream, peer, identity, router, http, graceful).await
        }
    }
}

async fn exchange<S>(
    stream: S,
    peer: SocketAddr,
    identity: Option<Identity>,
    router: Router,
    http: &auto::Builder<TokioExecutor>,
    graceful: hyper_util::server::graceful::Watcher,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        if let Some(identity) = &identity {
            request.extensions_mut().insert(identity.clone());
        }
        router.clone().call(request)
    });
    let connection = http.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    graceful.watch(connection).await.map_err(|e| e.to_string())
}

/// User and groups of a verified client certificate: common name and organizations (kubernetes-api §23.2).
fn identity(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let user = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = certificate.subject().iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    Some(Identity::authenticated(user, groups))
}

/// Errors of one connection that say nothing about the listener.
fn is_connection_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}
