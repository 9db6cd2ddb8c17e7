//! Bodies of known length that are made a piece at a time: what was sent is not held, and nothing long happens between two
//! pieces.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::{Buf, Bytes};
use coracle_api::codec::json::Indent;
use futures::{FutureExt, StreamExt, stream};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

/// Bytes of an answer that are put together at a time: few enough that they are still in the processor's cache when TLS
/// takes them, and that the allocator has the same memory ready for the next piece.
pub(crate) const PIECE_BYTES: usize = 64 << 10;

/// Bytes of memory that an answer holds while it is sent, where that is not its length: an extension of the response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holds(pub usize);

struct Pieces<I> {
    pieces: I,
    left: u64,
}

impl<I: Iterator<Item = Bytes> + Unpin> http_body::Body for Pieces<I> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.pieces.next();
        if let Some(piece) = &piece {
            self.left = self.left.saturating_sub(piece.len() as u64);
        }
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// A body of `size` bytes in `pieces`.
pub(crate) fn exact(pieces: impl Iterator<Item = Bytes> + Send + Unpin + 'static, size: usize) -> Body {
    Body::new(Pieces { pieces, left: size as u64 })
}

/// The same bytes in pieces of their own, so that the whole goes when the last of it is sent, wherever the pieces are.
fn cut(mut whole: Bytes) -> impl Iterator<Item = Bytes> + Send + Unpin {
    std::iter::from_fn(move || next_of(&mut whole))
}

/// Takes the next piece of `whole`, which goes with the last.
pub(crate) fn next_of(whole: &mut Bytes) -> Option<Bytes> {
    let size = whole.len().min(PIECE_BYTES);
    let piece = (size > 0).then(|| Bytes::copy_from_slice(&whole[..size]));
    whole.advance(size);
    if whole.is_empty() {
        *whole = Bytes::new();
    }
    piece
}

/// The same answer in pieces, when it is a long one and all of it is there.
pub(crate) fn in_pieces(response: Response) -> Response {
    use http_body::Body as _;
    let Some(size) = response.body().size_hint().exact().filter(|size| *size > PIECE_BYTES as u64) else {
        return response;
    };
    let (parts, mut body) = response.into_parts();
    let first = body.frame().now_or_never().flatten().and_then(Result::ok).and_then(|frame| frame.into_data().ok());
    let body = match first {
        Some(whole) if whole.len() as u64 == size => exact(cut(whole), whole_size(size)),
        Some(first) => Body::from_stream(stream::once(async { Ok(first) }).chain(body.into_data_stream())),
        None => body,
    };
    Response::from_parts(parts, body)
}

struct Indented<I> {
    pieces: I,
    piece: Bytes,
    indent: Indent,
    ended: bool,
}

impl<I: Iterator<Item = Bytes>> Iterator for Indented<I> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while !self.ended && out.len() < PIECE_BYTES {
            if self.piece.is_empty() {
                match self.pieces.next() {
                    Some(piece) => self.piece = piece,
                    None => {
                        out.push(b'\n');
                        self.ended = true;
                    }
                }
            }
            let mut left = &self.piece[..];
            self.indent.more(&mut left, &mut out, PIECE_BYTES);
            let taken = self.piece.len() - left.len();
            self.piece.advance(taken);
        }
        (!out.is_empty()).then(|| Bytes::from(out))
    }
}

/// A JSON text with line breaks for people, made while it is sent.
pub(crate) fn indented(pieces: impl Iterator<Item = Bytes> + Send + 'static) -> Body {
    let mut pieces = Indented { pieces, piece: Bytes::new(), indent: Indent::default(), ended: false };
    let first = pieces.next().unwrap_or_default();
    match pieces.next() {
        // A short answer has a length.
        None => Body::from(first),
        Some(second) => {
            let pieces = [first, second].into_iter().chain(pieces);
            Body::from_stream(stream::iter(pieces.map(Ok::<Bytes, Infallible>)))
        }
    }
}

fn whole_size(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body as _;

    #[tokio::test]
    async fn a_long_answer_is_sent_in_pieces_and_says_its_length() {
        let whole: Vec<u8> = (0..200_000_u32).map(|number| number as u8).collect();
        let mut body = in_pieces(Response::new(Body::from(whole.clone()))).into_body();
        assert_eq!(body.size_hint().exact(), Some(200_000));
        let mut read = Vec::new();
        while let Some(frame) = body.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            assert!(data.len() <= PIECE_BYTES);
            read.extend_from_slice(&data);
            assert_eq!(body.size_hint().exact(), Some((whole.len() - read.len()) as u64));
        }
        assert!(read == whole && body.is_end_stream());
    }

    #[tokio::test]
    async fn what_is_long_when_indented_is_made_in_pieces() {
        let deep = format!("{}{}", "[".repeat(900), "]".repeat(900));
        let texts = [deep, format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 20)), "{}".to_owned()];
        for text in texts {
            let cut: Vec<_> = text.as_bytes().chunks(1000).map(Bytes::copy_from_slice).collect();
            let mut body = indented(cut.into_iter());
            let mut read = Vec::new();
            while let Some(frame) = body.frame().await {
                let data = frame.unwrap().into_data().unwrap();
                assert!(data.len() <= PIECE_BYTES + 2 * 1000);
                read.extend_from_slice(&data);
            }
            assert!(read == coracle_api::codec::json::pretty(text.as_bytes()));
        }
    }
}
