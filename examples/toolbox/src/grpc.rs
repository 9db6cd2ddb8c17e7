//! As much of HTTP/2 and gRPC as `grpc.health.v1.Health/Check` takes: every call is taken for one, whatever its head says.

use std::collections::HashMap;

/// What a client begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame, and of what one call asks.
const FRAME_BYTES_MAX: usize = 16 << 10;
/// Calls of one connection at a time.
const CALLS_MAX: usize = 100;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `:status: 200` and `content-type: application/grpc`, by HPACK's static table.
const HEAD: &[u8] = b"\x88\x0f\x10\x10application/grpc";

/// The calls of one connection.
#[derive(Default)]
pub struct Calls {
    has_begun: bool,
    /// What was asked so far, by stream.
    open: HashMap<u32, Vec<u8>>,
}

impl Calls {
    /// Takes what has arrived, as far as it is whole, and says what is answered; none when the connection is over.
    pub fn advance(&mut self, arrived: &mut Vec<u8>, health: &mut dyn FnMut(&str) -> Option<bool>) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        if !self.has_begun {
            if arrived.len() < PREFACE.len() {
                return PREFACE.starts_with(arrived).then_some(out);
            }
            if !arrived.starts_with(PREFACE) {
                return None;
            }
            arrived.drain(..PREFACE.len());
            self.has_begun = true;
            frame(&mut out, SETTINGS, 0, 0, &[]);
        }
        while let Some((head, rest)) = arrived.split_at_checked(9) {
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let (kind, flags) = (head[3], head[4]);
            let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
            if length > FRAME_BYTES_MAX {
                return None;
            }
            let Some(payload) = rest.get(..length) else { break };
            match kind {
                SETTINGS if flags & ACK == 0 => frame(&mut out, SETTINGS, ACK, 0, &[]),
                PING if flags & ACK == 0 => frame(&mut out, PING, ACK, 0, payload),
                GOAWAY => return None,
                RST_STREAM => drop(self.open.remove(&stream)),
                HEADERS | DATA => {
                    if self.open.len() >= CALLS_MAX && !self.open.contains_key(&stream) {
                        return None;
                    }
                    let asked = self.open.entry(stream).or_default();
                    if kind == DATA {
                        asked.extend_from_slice(payload);
                    }
                    if asked.len() > FRAME_BYTES_MAX {
                        return None;
                    }
                    if flags & END_STREAM != 0 {
                        let asked = self.open.remove(&stream).unwrap_or_default();
                        answer(&mut out, stream, health(&service(&asked)?));
                    }
                }
                _ => {}
            }
            arrived.drain(..9 + length);
        }
        Some(out)
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// The service that is asked for: the first field of a `HealthCheckRequest`.
fn service(asked: &[u8]) -> Option<String> {
    match asked.get(5..)? {
        [] => Some(String::new()),
        [0x0a, length, name @ ..] if *length < 0x80 && usize::from(*length) == name.len() => {
            String::from_utf8(name.to_vec()).ok()
        }
        _ => None,
    }
}

fn answer(out: &mut Vec<u8>, stream: u32, is_served: Option<bool>) {
    frame(out, HEADERS, END_HEADERS, stream, HEAD);
    // `NOT_FOUND`, or a status of two bytes.
    let code: &[u8] = match is_served {
        None => b"5",
        Some(is_served) => {
            frame(out, DATA, 0, stream, &[0, 0, 0, 0, 2, 0x08, if is_served { 1 } else { 2 }]);
            b"0"
        }
    };
    frame(out, HEADERS, END_HEADERS | END_STREAM, stream, &[b"\x00\x0bgrpc-status\x01", code].concat());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_answered_however_it_arrives() {
        let mut sent = PREFACE.to_vec();
        frame(&mut sent, SETTINGS, 0, 0, &[]);
        frame(&mut sent, HEADERS, END_HEADERS, 1, b"whatever");
        frame(&mut sent, DATA, END_STREAM, 1, b"\0\0\0\0\x03\x0a\x01a");
        let whole = Calls::default().advance(&mut sent.clone(), &mut |name| (name == "a").then_some(true)).unwrap();
        assert!(whole.windows(7).any(|bytes| bytes == [0, 0, 0, 0, 2, 8, 1]));
        let (mut calls, mut arrived, mut parts) = (Calls::default(), Vec::new(), Vec::new());
        for byte in sent {
            arrived.push(byte);
            parts.extend(calls.advance(&mut arrived, &mut |name| (name == "a").then_some(true)).unwrap());
        }
        assert_eq!(parts, whole);
        assert!(
            Calls::default().advance(&mut b"GET / HTTP/1.1\r\n\r\n and what follows".to_vec(), &mut |_| None).is_none()
        );
    }
}
