//! The smallest useful service: answers every request with `hello`.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

struct Hello;

wasip2::http::proxy::export!(Hello);

const TEXT: &[u8] = b"hello\n";

impl Guest for Hello {
    fn handle(_request: IncomingRequest, answer: ResponseOutparam) {
        let headers = Fields::new();
        for (name, value) in [("content-type", "text/plain"), ("content-length", "6")] {
            headers.append(name, value.as_bytes()).expect("the name and the value are well-formed");
        }
        let response = OutgoingResponse::new(headers);
        let body = response.body().expect("the body is taken once");
        ResponseOutparam::set(answer, Ok(response));
        let stream = body.write().expect("the stream is taken once");
        // The host may close the body once its length is reached, or the client may be gone.
        let _ = stream.blocking_write_and_flush(TEXT);
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}
