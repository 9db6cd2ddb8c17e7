//! A service of WASI 0.3: `/` says hello, `/sleep` answers after 100 ms, `/echo` sends the request's body back,
//! `/panic` panics.

use http::{Request, Response};
use wasip3::clocks::monotonic_clock;
use wasip3::http::types::{self, ErrorCode};
use wasip3::http_compat::{IncomingRequestBody, http_from_wasi_request, http_into_wasi_response};

struct Hello;

wasip3::http::service::export!(Hello);

impl wasip3::exports::http::handler::Guest for Hello {
    async fn handle(request: types::Request) -> Result<types::Response, ErrorCode> {
        let request: Request<IncomingRequestBody> = http_from_wasi_request(request)?;
        match request.uri().path() {
            "/echo" => http_into_wasi_response(Response::new(request.into_body())),
            "/sleep" => {
                monotonic_clock::wait_for(100_000_000).await;
                http_into_wasi_response(Response::new("awake\n".to_owned()))
            }
            "/panic" => panic!("asked to"),
            _ => http_into_wasi_response(Response::new("hello\n".to_owned())),
        }
    }
}
