//! A service that does harm, each path in one way, so that a test can see that its neighbours do not feel it.
//!
//! | Path | Does |
//! | --- | --- |
//! | `/` | greets |
//! | `/spin` | computes for ever |
//! | `/random?BYTES` | asks for so many random bytes, for ever |
//! | `/clock` | asks for the time, for ever |
//! | `/log` | prints 64 KiB, for ever |
//! | `/newlines` | prints empty lines, for ever |
//! | `/flood?KIB` | writes so much to its output at once, without asking how much it may |
//! | `/lists?N` | hands over lists of as many headers, and of as many values of one, and answers |
//! | `/datagrams?N` | sends so many datagrams at once, which is more than it may |
//! | `/poll` | waits for what is ready already, for ever |
//! | `/memory?MIB` | takes so much memory and keeps it for a minute |
//! | `/fields?N` | makes N lists of large headers and keeps them for a minute |
//! | `/handles` | makes handles until that fails |
//! | `/timers` | waits for ever, with as many timers as it can have |
//! | `/recurse` | calls itself until the stack ends |
//! | `/headers?BYTES` | answers with a header of so many bytes |
//! | `/big?MIB` | answers with so much, as quickly as it is taken |
//! | `/before?MIB` | writes so much before it gives the answer |
//! | `/echo` | sends the request's body back, as it comes |
//! | `/never` | reads nothing and answers nothing |
//! | `/none` | returns without an answer |
//! | `/trickle` | sends a byte each second, for ever |
//! | `/call?URL` | calls, and answers with the status; with `/call?URL?URL…` the callee may call again |
//! | `/proxy?URL` | posts the request's body there, all of it before it reads the answer |

use wasip2::clocks::monotonic_clock;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingRequest, Method, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam, Scheme,
};
use wasip2::random::random::get_random_bytes;

struct Service;
wasip2::http::proxy::export!(Service);

const SECOND: u64 = 1_000_000_000;

impl wasip2::exports::http::incoming_handler::Guest for Service {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let number: usize = query.parse().unwrap_or(0);
        match path {
            "/" => text(out, 200, "hello\n"),
            "/spin" => loop {
                std::hint::black_box(0);
            },
            "/random" => loop {
                std::hint::black_box(get_random_bytes(number as u64));
            },
            "/clock" => loop {
                std::hint::black_box(monotonic_clock::now());
            },
            "/log" => loop {
                println!("{}", "x".repeat(64 << 10));
            },
            "/newlines" => {
                let lines = "\n".repeat(64 << 10);
                loop {
                    print!("{lines}");
                }
            }
            "/flood" => {
                let written = wasip2::cli::stdout::get_stdout().write(&vec![b'\n'; number << 10]);
                text(out, 200, &format!("{written:?}\n"));
            }
            "/lists" => {
                let headers = vec![("a".to_owned(), vec![b'x']); number];
                let values = vec![vec![b'x']; number];
                let refused = [Fields::from_list(&headers).is_err(), Fields::new().set("a", &values).is_err()];
                text(out, 200, &format!("{refused:?}\n"));
            }
            "/datagrams" => {
                use wasip2::sockets::network::{IpAddressFamily, IpSocketAddress, Ipv4SocketAddress};
                use wasip2::sockets::udp::OutgoingDatagram;
                let at = |port| IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address: (127, 0, 0, 1) });
                let network = wasip2::sockets::instance_network::instance_network();
                let socket = wasip2::sockets::udp_create_socket::create_udp_socket(IpAddressFamily::Ipv4).unwrap();
                socket.start_bind(&network, at(0)).and_then(|()| socket.finish_bind()).unwrap();
                let (_incoming, outgoing) = socket.stream(None).unwrap();
                let one = |_| OutgoingDatagram { data: Vec::new(), remote_address: Some(at(9)) };
                let datagrams: Vec<OutgoingDatagram> = (0..number).map(one).collect();
                let sent = outgoing.check_send().and_then(|_| outgoing.send(&datagrams));
                text(out, 200, &format!("{sent:?}\n"));
            }
            "/poll" => loop {
                monotonic_clock::subscribe_duration(0).block();
            },
            "/memory" => {
                let taken = std::hint::black_box(vec![1_u8; number << 20]);
                wait(60);
                text(out, 200, &format!("{}\n", taken.len()));
            }
            "/fields" => {
                let lists: Vec<Fields> = (0..number).map(|_| large()).collect();
                wait(60);
                text(out, 200, &format!("{}\n", lists.len()));
            }
            "/handles" => {
                let mut handles = Vec::new();
                loop {
                    handles.push(Fields::new());
                }
            }
            "/timers" => {
                let timers: Vec<_> =
                    (0..400).map(|number| monotonic_clock::subscribe_duration((3600 + number) * SECOND)).collect();
                let timers: Vec<_> = timers.iter().collect();
                wasip2::io::poll::poll(&timers);
            }
            "/recurse" => text(out, 200, &format!("{}\n", recurse(1))),
            "/headers" => {
                let fields = Fields::new();
                let set = fields.append("x-large", &vec![b'x'; number]);
                finish(start(out, 200, fields), format!("{set:?}\n").as_bytes());
            }
            "/big" => {
                let body = start(out, 200, Fields::new());
                let stream = body.write().unwrap();
                for _ in 0..number << 8 {
                    if stream.blocking_write_and_flush(&[b'x'; 4096]).is_err() {
                        return;
                    }
                }
                drop(stream);
                let _ = OutgoingBody::finish(body, None);
            }
            "/before" => {
                let response = OutgoingResponse::new(Fields::new());
                let body = response.body().unwrap();
                let stream = body.write().unwrap();
                for _ in 0..number << 8 {
                    stream.blocking_write_and_flush(&[b'x'; 4096]).unwrap();
                }
                drop(stream);
                ResponseOutparam::set(out, Ok(response));
                let _ = OutgoingBody::finish(body, None);
            }
            "/echo" => {
                let incoming = request.consume().unwrap();
                let input = incoming.stream().unwrap();
                let body = start(out, 200, Fields::new());
                let output = body.write().unwrap();
                while let Ok(bytes) = input.blocking_read(4096) {
                    if output.blocking_write_and_flush(&bytes).is_err() {
                        return;
                    }
                }
                drop(output);
                let _ = OutgoingBody::finish(body, None);
            }
            "/never" => {
                let _incoming = request.consume();
                wait(86_400);
            }
            "/none" => drop(out),
            "/trickle" => {
                let body = start(out, 200, Fields::new());
                let stream = body.write().unwrap();
                while stream.blocking_write_and_flush(b".").is_ok() {
                    wait(1);
                }
            }
            "/call" => match call(query, Method::Get, &[]) {
                Ok((status, body)) => text(out, status, &String::from_utf8_lossy(&body)),
                Err(error) => text(out, 502, &error),
            },
            "/proxy" => {
                let incoming = request.consume().unwrap();
                let input = incoming.stream().unwrap();
                let mut bytes = Vec::new();
                while let Ok(more) = input.blocking_read(64 << 10) {
                    bytes.extend(more);
                }
                match call(query, Method::Post, &bytes) {
                    Ok((status, body)) => text(out, status, &body.len().to_string()),
                    Err(error) => text(out, 502, &error),
                }
            }
            _ => text(out, 404, "no such harm\n"),
        }
    }
}

fn large() -> Fields {
    let fields = Fields::new();
    for number in 0..10 {
        let _ = fields.append(&format!("x-{number}"), &[b'x'; 8 << 10]);
    }
    fields
}

fn wait(seconds: u64) {
    monotonic_clock::subscribe_duration(seconds * SECOND).block();
}

#[allow(unconditional_recursion, clippy::only_used_in_recursion)]
fn recurse(depth: u64) -> u64 {
    std::hint::black_box(recurse(depth + 1)) + depth
}

fn start(out: ResponseOutparam, status: u16, headers: Fields) -> OutgoingBody {
    let response = OutgoingResponse::new(headers);
    response.set_status_code(status).unwrap();
    let body = response.body().unwrap();
    ResponseOutparam::set(out, Ok(response));
    body
}

fn finish(body: OutgoingBody, bytes: &[u8]) {
    let stream = body.write().unwrap();
    for chunk in bytes.chunks(4096) {
        if stream.blocking_write_and_flush(chunk).is_err() {
            break;
        }
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}

fn text(out: ResponseOutparam, status: u16, text: &str) {
    finish(start(out, status, Fields::new()), text.as_bytes());
}

fn call(url: &str, method: Method, bytes: &[u8]) -> Result<(u16, Vec<u8>), String> {
    let rest = url.strip_prefix("http://").ok_or("no URL")?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let request = OutgoingRequest::new(Fields::new());
    request.set_method(&method).map_err(|()| "method")?;
    request.set_scheme(Some(&Scheme::Http)).map_err(|()| "scheme")?;
    request.set_authority(Some(authority)).map_err(|()| "authority")?;
    request.set_path_with_query(Some(path)).map_err(|()| "path")?;
    let body = request.body().map_err(|()| "body")?;
    let future = outgoing_handler::handle(request, None).map_err(|error| format!("{error:?}"))?;
    finish(body, bytes);
    future.subscribe().block();
    let response = future.get().ok_or("no answer")?.map_err(|()| "taken")?.map_err(|error| format!("{error:?}"))?;
    let incoming = response.consume().map_err(|()| "body")?;
    let stream = incoming.stream().map_err(|()| "stream")?;
    let mut all = Vec::new();
    while let Ok(more) = stream.blocking_read(64 << 10) {
        all.extend(more);
    }
    Ok((response.status(), all))
}
