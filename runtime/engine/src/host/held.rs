//! What the host holds for one handle of a guest.

use std::any::Any;

use http::{HeaderMap, Uri};
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::{self, DynInputStream, DynOutputStream};
use wasmtime_wasi::p3::bindings::sockets::types as sockets;
use wasmtime_wasi_http::FieldMap;
use wasmtime_wasi_http::p2::body::HostOutgoingBody;
use wasmtime_wasi_http::p2::types::{HostIncomingResponse, HostOutgoingRequest, HostOutgoingResponse};
use wasmtime_wasi_http::p3;

use super::outbound::CHUNK_BYTES_MAX;

/// A handle itself: its entry, a small object.
const HANDLE_BYTES: u64 = 512;
/// A call that waits, without what it was given: its future.
pub(super) const CALL_BYTES: u64 = 1 << 10;
/// What a stream may have in its buffers.
const STREAM_BYTES: u64 = 16 << 10;
/// A header beside its text.
const HEADER_BYTES: u64 = 64;

/// Bytes that the host holds for this entry of a table, as the most that is usual for its kind. The request that an
/// instance of 0.2 serves shows nothing: it is one, and the edge bounds it.
pub(crate) fn bytes_of(entry: &mut (dyn Any + Send)) -> u64 {
    let more = if let Some(fields) = entry.downcast_ref::<FieldMap>() {
        headers(fields)
    } else if let Some(response) = entry.downcast_ref::<HostOutgoingResponse>() {
        headers(&response.headers)
    } else if let Some(request) = entry.downcast_ref::<HostOutgoingRequest>() {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len) as u64;
        headers(&request.headers) + text(&request.authority) + text(&request.path_with_query)
    } else if let Some(response) = entry.downcast_ref::<HostIncomingResponse>() {
        headers(&response.headers)
    } else if let Some(response) = entry.downcast_ref::<p3::Response>() {
        headers(&response.headers)
    } else if let Some(request) = entry.downcast_ref::<p3::Request>() {
        headers(&request.headers) + request.path_with_query.as_ref().map_or(0, |path| path.as_str().len()) as u64
    } else if entry.is::<HostOutgoingBody>() {
        CHUNK_BYTES_MAX as u64
    } else if entry.is::<DynOutputStream>() || entry.is::<DynInputStream>() {
        STREAM_BYTES
    } else {
        0
    };
    HANDLE_BYTES + more
}

/// Whether this entry of a table is a file or socket of this process, or may be one: a directory that was given to the guest
/// is listed as often as it asked for it.
pub(crate) fn is_open(entry: &mut (dyn Any + Send)) -> bool {
    entry.is::<Descriptor>()
        || entry.is::<p2::TcpSocket>()
        || entry.is::<p2::UdpSocket>()
        || entry.is::<sockets::TcpSocket>()
        || entry.is::<sockets::UdpSocket>()
}

pub(super) fn headers(map: &HeaderMap) -> u64 {
    map.iter().map(|(name, value)| HEADER_BYTES + (name.as_str().len() + value.len()) as u64).sum()
}

pub(super) fn uri(uri: &Uri) -> u64 {
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    (authority + uri.path_and_query().map_or(0, |path| path.as_str().len())) as u64
}
