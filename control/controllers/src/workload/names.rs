//! Names that controllers give.

use rand::Rng as _;

/// Characters of generated names (no vowels, nothing that looks like another).
const CHARACTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Longest prefix of a generated name.
const PREFIX_MAX: usize = 58;

/// A name as the API server would generate one.
pub(crate) fn generated_name(prefix: &str) -> String {
    let mut name = cut(prefix).to_owned();
    let mut random = rand::rng();
    name.extend((0..5).map(|_| char::from(CHARACTERS[random.random_range(0..CHARACTERS.len())])));
    name
}

/// The name of what is the only one of its content: whoever makes it a second time finds it there.
pub(crate) fn hashed_name(prefix: &str, content: &[u8]) -> String {
    format!("{}{}", cut(prefix), hash(content.iter()))
}

fn cut(prefix: &str) -> &str {
    &prefix[..prefix.floor_char_boundary(PREFIX_MAX)]
}

/// A stable hash (FNV-1a) in characters that are allowed in names.
pub(crate) fn hash<'a>(bytes: impl Iterator<Item = &'a u8>) -> String {
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let safe = |byte: u8| char::from(CHARACTERS[usize::from(byte) % CHARACTERS.len()]);
    hash.to_string().bytes().map(safe).collect()
}
