//! Names that the server makes up for `metadata.generateName`.

/// Characters of generated names: no vowels and nothing that is mistaken for another (apimachinery's `util/rand`).
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Characters that are added.
const ADDED: usize = 5;
/// Longest prefix that is kept: names have 63 characters, so that they fit in labels.
const PREFIX_MAX: usize = 63 - ADDED;

/// `base` (cut where it is too long) and five characters out of `random`, which should be uniform.
pub fn generate_name(base: &str, random: u64) -> String {
    let mut end = base.len().min(PREFIX_MAX);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = String::with_capacity(end + ADDED);
    name.push_str(&base[..end]);
    name.push_str(&suffix(random, ADDED));
    name
}

/// `length` characters of the alphabet; at most 13 differ by chance.
pub fn suffix(mut random: u64, length: usize) -> String {
    let mut next = || {
        let at = random % ALPHABET.len() as u64;
        random /= ALPHABET.len() as u64;
        // `at` is below 27.
        char::from(ALPHABET[at as usize])
    };
    (0..length).map(|_| next()).collect()
}

/// A number as such characters (`rand.SafeEncodeString` of the reference): hashes of pod templates.
pub fn safe_encode(text: &str) -> String {
    text.bytes().map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_names_short() {
        assert_eq!(generate_name("web-", 0), "web-bbbbb");
        assert_eq!(generate_name("web-", u64::MAX).len(), 9);
        assert_eq!(generate_name(&"a".repeat(100), 7).len(), 63);
        assert_eq!(generate_name(&"é".repeat(40), 7).len(), 63);
    }
}
