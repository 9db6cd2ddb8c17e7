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

/// HTTP headers of a request may take this many bytes (design.md §6).
const HEADER_BYTES_MAX: usize = 64 << 10;

static SERVER: LazyLock<auto::Builder<TokioExecutor>> = LazyLock::new(|| {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(std::time::Duration::from_secs(60))
        .max_buf_size(HEADER_BYTES_MAX + 8192)
        .pipeline_flush(true);
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
