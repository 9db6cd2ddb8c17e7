//! The cluster's registry, as a joined node reaches it: a listener on loopback that passes what is read on to the API's
//! address, where the node shows its certificate. What pulls images speaks to it as to the registry of its own machine.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, header};
use http_body_util::{Either, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use kube::client::Body;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::failover::Servers;

/// Connections at the same time; more wait in the kernel.
const CONNECTIONS_MAX: usize = 64;
/// Headers that a read of the registry needs, of the request.
const PASSED: [HeaderName; 3] = [header::ACCEPT, header::RANGE, header::IF_NONE_MATCH];
/// How long a server may take to say whether it has an image that another one lacks.
const OTHER_MAX: Duration = Duration::from_secs(3);
/// Wait after a connection could not be accepted.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Listens; [`serve`] answers.
pub async fn listen() -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Passes on until `stop`.
pub async fn serve(listener: TcpListener, servers: Servers, stop: CancellationToken) {
    let (tasks, places) = (TaskTracker::new(), std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX)));
    loop {
        // Waiting is all that is cut here.
        let accepted = tokio::select! {
            accepted = async {
                let place = places.clone().acquire_owned().await;
                (listener.accept().await, place)
            } => accepted,
            () = stop.cancelled() => break,
        };
        let (Ok((stream, _)), Ok(place)) = accepted else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        let (servers, stop) = (servers.clone(), stop.clone());
        tasks.spawn(async move {
            let service = service_fn(move |request| {
                let servers = servers.clone();
                async move { Ok::<_, Infallible>(pass(&servers, request).await) }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new());
            // One that rests would have the place of one that waits; another is soon made on this machine.
            http.keep_alive(false);
            // A download that is cut is begun again by the next pull.
            tokio::select! {
                served = http.serve_connection(TokioIo::new(stream), service) => if let Err(error) = served {
                    tracing::debug!(%error, "a connection for images");
                },
                () = stop.cancelled() => {}
            }
            drop(place);
        });
    }
    tasks.close();
    tasks.wait().await;
}

type Answer = Response<Either<Body, Empty<Bytes>>>;

async fn pass(servers: &Servers, request: Request<Incoming>) -> Answer {
    let plain = |code| {
        let mut response = Response::new(Either::Right(Empty::new()));
        *response.status_mut() = code;
        response
    };
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let is_image = request.uri().path().starts_with("/v2/");
    if !is_read || !is_image {
        return plain(StatusCode::FORBIDDEN);
    }
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let passed = request.headers().iter().filter(|(name, _)| PASSED.contains(name));
    let passed: HeaderMap = passed.map(|(name, value)| (name.clone(), value.clone())).collect();
    let asked = || {
        let mut asked = Request::builder().method(request.method()).uri(&path).body(Body::empty()).ok()?;
        asked.headers_mut().extend(passed.clone());
        Some(asked)
    };
    let Some(first) = asked() else { return plain(StatusCode::BAD_REQUEST) };
    let mut answer = servers.ask(first).await;
    // Its server may lack an image and reach none that has it.
    for other in servers.clients() {
        if !answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::NOT_FOUND) {
            break;
        }
        if let Some(asked) = asked()
            && let Ok(Ok(found)) = tokio::time::timeout(OTHER_MAX, other.send(asked)).await
            && found.status().is_success()
        {
            answer = Ok(found);
        }
    }
    match answer {
        Ok(mut response) => {
            for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::WWW_AUTHENTICATE] {
                response.headers_mut().remove(name);
            }
            response.map(Either::Left)
        }
        Err(error) => {
            tracing::debug!(%error, "the cluster's registry");
            plain(StatusCode::BAD_GATEWAY)
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_connection_that_rests_has_nobodys_place() {
        let service = tower::service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::empty())) });
        let servers = Servers::new(vec![("a".to_owned(), kube::Client::new(service, "default"))], |_| {});
        let (listener, address) = listen().await.unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, servers, stop.clone()));
        let mut resting = Vec::new();
        for _ in 0..=CONNECTIONS_MAX {
            let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
            connection.write_all(b"GET /v2/a/manifests/b HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let mut begin = [0; 12];
            let read = connection.read_exact(&mut begin);
            tokio::time::timeout(Duration::from_secs(20), read).await.expect("it has a place").unwrap();
            assert_eq!(begin, *b"HTTP/1.1 200");
            resting.push(connection);
        }
        stop.cancel();
        serving.await.unwrap();
    }
}
