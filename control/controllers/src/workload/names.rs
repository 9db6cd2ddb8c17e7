//! Names that controllers give.

use coracle_api::meta::generate;

/// Longest prefix of a hashed name.
const PREFIX_MAX: usize = 58;

/// A name as the API server would generate one.
pub(crate) fn generated_name(prefix: &str) -> String {
    generate::generate_name(prefix, rand::random())
}

/// The name of what is the only one of its content: whoever makes it a second time finds it there.
pub(crate) fn hashed_name(prefix: &str, content: &[u8]) -> String {
    format!("{}{}", &prefix[..prefix.floor_char_boundary(PREFIX_MAX)], hash(content.iter()))
}

/// A stable hash (FNV-1a) in characters that are allowed in names.
pub(crate) fn hash<'a>(bytes: impl Iterator<Item = &'a u8>) -> String {
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    generate::safe_encode(&hash.to_string())
}
