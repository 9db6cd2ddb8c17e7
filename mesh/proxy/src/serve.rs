//! HTTP on a byte stream, answered by something that is called.

use std::convert::Infallible;
use std::sync::LazyLock;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Body, BoxError, Error, HttpService};

/// HTTP headers of a request may take this many bytes (design.md §6). hyper looks after each read, so that somewhat more may
/// pass when it comes at once.
const HEADER_BYTES_MAX: usize = 64 << 10;

static SERVER: LazyLock<auto::Builder<TokioExecutor>> = LazyLock::new(|| {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(std::time::Duration::from_secs(60))
        .max_buf_size(HEADER_BYTES_MAX + 8192);
    http.http2().timer(TokioTimer::new()).max_header_list_size(HEADER_BYTES_MAX as u32);
    http
});

/// Serves HTTP/1.1 and HTTP/2 (prior knowledge) on a byte stream, until its end.
pub async fn serve_stream<S>(stream: S, service: std::sync::Arc<dyn HttpService>) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let call = move |request| {
        let answer = service.call(request);
        async move { answer.await.map_err(|source| Error::Failed { endpoint: "the pod".to_owned(), source }) }
    };
    serve(stream, call).await
}

/// The same with an answer for each request; errors become a plain response.
pub(crate) async fn serve<S, F, A>(stream: S, answer: F) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Body>) -> A,
    A: Future<Output = Result<Response<Body>, Error>> + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request.map(|body| body.map_err(BoxError::from).boxed_unsync()));
        let response: BoxFuture<'static, Result<Response<Body>, Infallible>> =
            Box::pin(async move { Ok(answer.await.unwrap_or_else(|error| refuse(&error))) });
        response
    });
    SERVER.serve_connection(TokioIo::new(stream), service).await
}

/// What a client is told when nothing answered it.
fn refuse(error: &Error) -> Response<Body> {
    let status = match error {
        Error::NoEndpoints { .. } | Error::NoPod(_) => StatusCode::SERVICE_UNAVAILABLE,
        Error::NotInCluster(_) | Error::NoPort { .. } => StatusCode::NOT_FOUND,
        Error::NoAuthority | Error::Scheme(_) => StatusCode::BAD_REQUEST,
        Error::Failed { source, .. } => {
            tracing::debug!(error = %error, cause = %source, "no answer");
            StatusCode::BAD_GATEWAY
        }
    };
    let body = Full::new(Bytes::from(format!("{error}\n"))).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Answers its path; `/broken` not at all.
    struct Echo;

    impl HttpService for Echo {
        fn call(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
            let path = request.uri().path().to_owned();
            Box::pin(async move {
                if path == "/broken" {
                    return Err("it broke".into());
                }
                let body = Full::new(Bytes::from(path)).map_err(|never| match never {}).boxed_unsync();
                Ok(Response::new(body))
            })
        }
    }

    async fn ask(request: &str) -> String {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let serving = tokio::spawn(serve_stream(server, Arc::new(Echo)));
        // Who is refused early is not read to the end.
        let _ = client.write_all(request.as_bytes()).await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        let _ = serving.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn every_request_that_came_whole_is_answered() {
        let old = ask("GET /old HTTP/1.0\r\n\r\n\n").await;
        assert!(old.starts_with("HTTP/1.0 200") && old.ends_with("/old"), "{old:?}");
        let two =
            ask("GET /one HTTP/1.1\r\nhost: a\r\n\r\nGET /two HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert!(two.contains("/one") && two.ends_with("/two"), "{two:?}");
        let none = ask("GET /broken HTTP/1.1\r\nconnection: close\r\n\r\n").await;
        assert!(none.starts_with("HTTP/1.1 502") && none.contains("the pod did not answer"), "{none:?}");
        let large = ask(&format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(400 << 10))).await;
        assert!(large.starts_with("HTTP/1.1 431"), "{large:?}");
    }
}
