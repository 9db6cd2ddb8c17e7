//! Compression of an answer while it is sent.

use std::io::Write;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::{StreamExt, stream};
use http::{HeaderValue, header};
use http_body::Body as _;

use super::pieces::Holds;

/// The same answer, compressed at the level that costs least.
pub(crate) fn gzipped(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    // It has no length any more, and holds what it held.
    if let (None, Some(size)) = (parts.extensions.get::<Holds>(), body.size_hint().exact()) {
        parts.extensions.insert(Holds(usize::try_from(size).unwrap_or(usize::MAX)));
    }
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let state = Some((body.into_data_stream(), encoder));
    let pieces = stream::unfold(state, |state| async move {
        let (mut body, mut encoder) = state?;
        match body.next().await {
            Some(Ok(piece)) => {
                if let Err(error) = encoder.write_all(&piece) {
                    return Some((Err(axum::Error::new(error)), None));
                }
                let done = Bytes::from(std::mem::take(encoder.get_mut()));
                Some((Ok(done), Some((body, encoder))))
            }
            Some(Err(error)) => Some((Err(error), None)),
            None => match encoder.finish() {
                Ok(last) => Some((Ok(Bytes::from(last)), None)),
                Err(error) => Some((Err(axum::Error::new(error)), None)),
            },
        }
    });
    Response::from_parts(parts, Body::from_stream(pieces))
}
