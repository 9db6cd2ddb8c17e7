//! Greets in the words of its environment: what a ConfigMap, a Secret and the downward API put there.

use std::env::var;

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

struct Greeter;

wasip2::http::proxy::export!(Greeter);

impl Guest for Greeter {
    fn handle(_request: IncomingRequest, answer: ResponseOutparam) {
        let greeting = var("GREETING").unwrap_or_else(|_| "hello".to_owned());
        let pod = var("POD_NAME").unwrap_or_else(|_| "nowhere".to_owned());
        // That a secret is there may be told; the secret itself may not.
        let secret = if var("API_TOKEN").is_ok_and(|token| !token.is_empty()) { "with" } else { "without" };
        let text = format!("{greeting} from pod {pod}, {secret} a secret\n");
        let headers = Fields::new();
        let length = text.len().to_string();
        for (name, value) in [("content-type", "text/plain; charset=utf-8"), ("content-length", &length)] {
            headers.append(name, value.as_bytes()).expect("the name and the value are well-formed");
        }
        let response = OutgoingResponse::new(headers);
        let body = response.body().expect("the body is taken once");
        ResponseOutparam::set(answer, Ok(response));
        let stream = body.write().expect("the stream is taken once");
        // The host may close the body once its length is reached, or the client may be gone.
        let _ = stream.blocking_write_and_flush(text.as_bytes());
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}
