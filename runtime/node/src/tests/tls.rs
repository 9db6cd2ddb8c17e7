//! `https` of a guest to a Service of the cluster is TLS, or nothing.

use std::sync::Arc;

use coracle_engine::OutboundError;
use http::Request;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::caller::Certificates;
use crate::network::Outside;

fn request() -> Request<coracle_engine::Body> {
    let request = Request::get("https://127.0.0.1/version").header("authorization", "Bearer secret");
    request.body(coracle_engine::empty()).unwrap()
}

#[tokio::test]
async fn the_clusters_authority_is_trusted_and_nothing_goes_out_in_the_clear() {
    let certificates = Certificates::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let from = "127.9.8.7".parse().unwrap();
    let acceptor = TlsAcceptor::from(certificates.node());
    let serving = tokio::spawn(async move {
        for _ in 0..2 {
            let (stream, peer) = listener.accept().await.unwrap();
            assert_eq!(peer.ip(), from, "it is known who comes");
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 4096];
            let count = stream.read(&mut request).await.unwrap();
            assert!(String::from_utf8_lossy(&request[..count]).contains("Bearer secret"));
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    // A stranger's certificate is refused, the cluster's is not.
    let stranger = Outside::new(Arc::default(), Arc::new(|_, _| true), Vec::new());
    let error = stranger.send_tls(from, at, "127.0.0.1", request()).await.map(drop).unwrap_err();
    assert!(matches!(&error, OutboundError::Internal(text) if text.contains("TLS could not be agreed")), "{error:?}");
    let outside = Outside::new(Arc::default(), Arc::new(|_, _| true), vec![certificates.root()]);
    let answer = outside.send_tls(from, at, "127.0.0.1", request()).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
    serving.await.unwrap();

    // Something that speaks no TLS is not told anything.
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = plain.local_addr().unwrap();
    let hearing = tokio::spawn(async move {
        let (mut stream, _) = plain.accept().await.unwrap();
        let mut heard = vec![0; 4096];
        let count = stream.read(&mut heard).await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        heard.truncate(count);
        heard
    });
    let error = outside.send_tls(from, at, "127.0.0.1", request()).await.map(drop).unwrap_err();
    assert!(matches!(&error, OutboundError::Internal(text) if text.contains("TLS could not be agreed")), "{error:?}");
    let heard = hearing.await.unwrap();
    assert!(heard[0] == 0x16 && !heard.windows(6).any(|window| window == b"secret"), "a TLS handshake record only");
}
