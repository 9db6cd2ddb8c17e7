//! Spans in the protocol's words (`opentelemetry/proto/collector/trace/v1/trace_service.proto`), in protobuf's bytes. Written by hand:
//! these are five messages of which each field is written once, and a code generator with its runtime would be the larger part.

use std::time::{Duration, SystemTime};

use coracle_proxy::{Asker, Span, Tapped};

/// The library that made the spans.
const SCOPE: &str = "coracle";
/// `SpanKind`.
const SERVER: u64 = 2;
const CLIENT: u64 = 3;
/// `StatusCode.ERROR`.
const ERROR: u64 = 2;

/// A message as far as it is written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            // The lower seven bits, and that more follow.
            self.0.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.0.push(number.to_le_bytes()[0]);
    }

    fn key(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn number(&mut self, field: u64, number: u64) {
        self.key(field, 0);
        self.varint(number);
    }

    fn fixed64(&mut self, field: u64, number: u64) {
        self.key(field, 1);
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn fixed32(&mut self, field: u64, number: u32) {
        self.key(field, 5);
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u64, write: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }

    /// A `KeyValue` with a text.
    fn text(&mut self, field: u64, key: &str, value: &str) {
        self.message(field, |pair| {
            pair.bytes(1, key.as_bytes());
            pair.message(2, |any| any.bytes(1, value.as_bytes()));
        });
    }

    /// The same with a number.
    fn integer(&mut self, field: u64, key: &str, value: u64) {
        self.message(field, |pair| {
            pair.bytes(1, key.as_bytes());
            pair.message(2, |any| any.number(3, value));
        });
    }
}

/// An `ExportTraceServiceRequest` with spans of this node.
pub fn request<'a>(node: &str, spans: impl IntoIterator<Item = &'a Span>) -> Vec<u8> {
    let mut request = Message::default();
    request.message(1, |of_resource| {
        of_resource.message(1, |resource| {
            resource.text(1, "service.name", "coracle");
            resource.text(1, "service.version", env!("CARGO_PKG_VERSION"));
            resource.text(1, "service.instance.id", node);
            resource.text(1, "k8s.node.name", node);
        });
        of_resource.message(2, |of_scope| {
            of_scope.message(1, |scope| {
                scope.bytes(1, SCOPE.as_bytes());
                scope.bytes(2, env!("CARGO_PKG_VERSION").as_bytes());
            });
            spans.into_iter().for_each(|one| of_scope.message(2, |message| span(message, one)));
        });
    });
    request.0
}

fn span(message: &mut Message, span: &Span) {
    message.bytes(1, &span.context.trace.to_be_bytes());
    message.bytes(2, &span.context.span.to_be_bytes());
    if let Some(state) = span.state.as_ref().and_then(|state| state.to_str().ok()) {
        message.bytes(3, state.as_bytes());
    }
    if let Some(parent) = span.parent {
        message.bytes(4, &parent.to_be_bytes());
    }
    let Tapped { service, namespace, .. } = &*span.request;
    message.bytes(5, format!("{} {service}.{namespace}", span.request.method).as_bytes());
    // What comes in from outside is served here; a pod's request is a client's.
    message.number(6, if matches!(span.request.asker, Asker::Pod(_)) { CLIENT } else { SERVER });
    message.fixed64(7, nanos(span.request.at));
    message.fixed64(8, nanos(span.request.at + span.request.took));
    attributes(message, &span.request);
    let is_failed = span.request.status.is_none_or(|status| status.is_server_error());
    if is_failed {
        message.message(15, |status| {
            if let Some(error) = &span.request.error {
                status.bytes(2, error.as_bytes());
            }
            status.number(3, ERROR);
        });
    }
    message.fixed32(16, u32::from(span.context.is_sampled));
}

/// With the names of OpenTelemetry's conventions for HTTP and for Kubernetes.
fn attributes(message: &mut Message, request: &Tapped) {
    const FIELD: u64 = 9;
    let Tapped { service, namespace, .. } = request;
    message.text(FIELD, "http.request.method", request.method.as_str());
    message.text(FIELD, "url.path", &request.path);
    message.text(FIELD, "server.address", &format!("{service}.{namespace}.svc"));
    message.integer(FIELD, "server.port", u64::from(request.port));
    message.text(FIELD, "k8s.namespace.name", namespace);
    message.text(FIELD, "k8s.service.name", service);
    if let Some(status) = request.status {
        message.integer(FIELD, "http.response.status_code", u64::from(status.as_u16()));
    }
    match &request.error {
        Some(_) => message.text(FIELD, "error.type", "no answer"),
        None => {
            if let Some(status) = request.status.filter(http::StatusCode::is_server_error) {
                message.text(FIELD, "error.type", status.as_str());
            }
        }
    }
    if let Some(endpoint) = request.endpoint {
        message.text(FIELD, "network.peer.address", &endpoint.ip().to_string());
        message.integer(FIELD, "network.peer.port", u64::from(endpoint.port()));
    }
    if let Asker::Pod(address) = request.asker {
        message.text(FIELD, "client.address", &address.to_string());
    }
    if request.attempts > 1 {
        message.integer(FIELD, "http.request.resend_count", u64::from(request.attempts - 1));
    }
}

/// Since 1970.
fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A field of a message: its number, and what it holds.
    #[derive(Debug, Clone, PartialEq)]
    pub enum Field {
        Number(u64),
        Bytes(Vec<u8>),
    }

    /// Reads a message's fields, as any reader of protobuf would.
    pub fn fields(mut bytes: &[u8]) -> Vec<(u64, Field)> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let (mut number, mut shift) = (0, 0);
            loop {
                let (byte, rest) = bytes.split_first().expect("a byte");
                *bytes = rest;
                number |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    return number;
                }
            }
        }
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let field = match key & 7 {
                0 => Field::Number(varint(&mut bytes)),
                1 => {
                    let (number, rest) = bytes.split_at(8);
                    bytes = rest;
                    Field::Number(u64::from_le_bytes(number.try_into().unwrap()))
                }
                2 => {
                    let length = usize::try_from(varint(&mut bytes)).unwrap();
                    let (inner, rest) = bytes.split_at(length);
                    bytes = rest;
                    Field::Bytes(inner.to_vec())
                }
                5 => {
                    let (number, rest) = bytes.split_at(4);
                    bytes = rest;
                    Field::Number(u64::from(u32::from_le_bytes(number.try_into().unwrap())))
                }
                other => panic!("wire type {other}"),
            };
            found.push((key >> 3, field));
        }
        found
    }

    /// The messages in a field.
    pub fn inner(message: &[(u64, Field)], wanted: u64) -> Vec<Vec<(u64, Field)>> {
        let bytes = message.iter().filter_map(|(number, field)| match field {
            Field::Bytes(bytes) if *number == wanted => Some(fields(bytes)),
            _ => None,
        });
        bytes.collect()
    }

    /// Attributes by their names, as text.
    pub fn attributes_of(message: &[(u64, Field)], field: u64) -> Vec<String> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let one = |pair: Vec<(u64, Field)>| {
            let (_, Field::Bytes(key)) = &pair[0] else { panic!("a key") };
            let value = match &inner(&pair, 2)[0][0] {
                (1, Field::Bytes(value)) => text(value),
                (3, Field::Number(value)) => value.to_string(),
                other => panic!("{other:?}"),
            };
            format!("{}={value}", text(key))
        };
        inner(message, field).into_iter().map(one).collect()
    }

    #[test]
    fn numbers_take_seven_bits_a_byte() {
        for (number, expected) in [
            (0, &[0][..]),
            (127, &[0x7f]),
            (300, &[0xac, 0x02]),
            (u64::MAX, &[255, 255, 255, 255, 255, 255, 255, 255, 255, 1]),
        ] {
            let mut message = Message::default();
            message.varint(number);
            assert_eq!(message.0, expected, "{number}");
        }
    }
}
