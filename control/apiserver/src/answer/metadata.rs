//! Objects of which only the metadata is shown (kubernetes-api §12.3).

use bytes::Bytes;

use crate::store::Seen;

/// The kind of such an object.
pub(crate) const KIND: &str = "PartialObjectMetadata";

/// Version of the group in which it is asked for.
pub(crate) fn api_version(beta: bool) -> &'static str {
    if beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" }
}

/// JSON of one.
pub(crate) fn object(seen: &Seen<'_>, beta: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    write(&mut out, &seen.metadata(), beta);
    out
}

/// Appends one, given the JSON of its metadata.
pub(crate) fn write(out: &mut Vec<u8>, metadata: &Bytes, beta: bool) {
    out.extend_from_slice(b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"");
    out.extend_from_slice(api_version(beta).as_bytes());
    out.extend_from_slice(b"\",\"metadata\":");
    out.extend_from_slice(metadata);
    out.push(b'}');
}
