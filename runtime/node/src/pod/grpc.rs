//! The substance of gRPC probes: one call of `grpc.health.v1.Health/Check`, over a connection of its own, as the kubelet's
//! prober makes it (`pkg/probe/grpc`).

use bytes::Bytes;
use coracle_proxy::{Body, BoxError};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::AbortOnDropHandle;

/// Bytes of an answer: a status is two.
const ANSWER_BYTES_MAX: usize = 4 << 10;
/// `ServingStatus.SERVING`.
const SERVING: u64 = 1;

/// Asks whether a service is served; the error says why not, in the kubelet's words.
pub(super) async fn check<S>(stream: S, authority: &str, service: &str) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: &dyn std::fmt::Display| format!("error: health rpc probe failed: {error}");
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    let _driven = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, "kube-probe/1.37")
        .body(coracle_engine::full(asked(service)))
        .map_err(|error| failed(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
    if answer.status() != StatusCode::OK {
        return Err(failed(&format!("the server answered {}", answer.status())));
    }
    let (parts, body) = answer.into_parts();
    let (bytes, trailers) = read(body.map_err(BoxError::from).boxed_unsync()).await.map_err(|error| failed(&error))?;
    // Without a message the head has what else the trailers would have.
    verdict(trailers.as_ref().unwrap_or(&parts.headers), &bytes)
}

async fn read(mut body: Body) -> Result<(Vec<u8>, Option<HeaderMap>), BoxError> {
    let (mut bytes, mut trailers) = (Vec::new(), None);
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) if bytes.len() + data.len() > ANSWER_BYTES_MAX => return Err("the answer is too long".into()),
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((bytes, trailers))
}

/// A message that asks for a service: `HealthCheckRequest`, uncompressed.
fn asked(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length.to_le_bytes()[0] | 0x80);
            length >>= 7;
        }
        message.push(length.to_le_bytes()[0]);
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0], &length.to_be_bytes()[..], &message].concat().into()
}

/// What an answer means.
fn verdict(trailers: &HeaderMap, bytes: &[u8]) -> Result<(), String> {
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("grpc-status") {
        "0" => {}
        "12" => {
            let message = text("grpc-message");
            return Err(format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
            ));
        }
        code => {
            let message = text("grpc-message");
            return Err(format!("error: health rpc probe failed: rpc error: code = {code} desc = {message}"));
        }
    }
    let status = status(bytes).ok_or("error: health rpc probe failed: the answer is no HealthCheckResponse")?;
    let name = match status {
        SERVING => return Ok(()),
        0 => "UNKNOWN".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => other.to_string(),
    };
    Err(format!("service unhealthy (responded with {name:?})"))
}

/// The status of a `HealthCheckResponse`: its first field, which is a number.
fn status(bytes: &[u8]) -> Option<u64> {
    let (head, message) = bytes.split_at_checked(5)?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?);
    if head[0] != 0 || usize::try_from(length).ok()? != message.len() {
        return None;
    }
    match message {
        // What has its default is left out.
        [] => Some(0),
        [0x08, value] if *value < 0x80 => Some(u64::from(*value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_mean_what_the_kubelet_takes_them_for() {
        let message = |body: &[u8]| [&[0, 0, 0, 0], &[u8::try_from(body.len()).unwrap()][..], body].concat();
        let said = |code: &str, bytes: &[u8]| {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", code.parse().unwrap());
            verdict(&trailers, bytes).err().unwrap_or_default()
        };
        assert_eq!(said("0", &message(&[8, 1])), "");
        assert_eq!(said("0", &message(&[8, 2])), "service unhealthy (responded with \"NOT_SERVING\")");
        assert_eq!(said("0", &message(&[])), "service unhealthy (responded with \"UNKNOWN\")");
        assert!(said("0", &[]).contains("no HealthCheckResponse"));
        assert!(said("0", &message(&[8, 1])[..6]).contains("no HealthCheckResponse"));
        assert!(said("12", &[]).contains("does not implement the grpc health protocol"));
        assert!(said("5", &[]).contains("code = 5"));
        assert_eq!(asked("a"), &[0, 0, 0, 0, 3, 0x0a, 1, b'a'][..]);
        assert_eq!(asked(""), &[0, 0, 0, 0, 0][..]);
        assert_eq!(asked(&"x".repeat(200))[5..8], [0x0a, 0xc8, 1]);
    }
}
