//! Texts for people that carry what somebody else has written: names in images and pods are as long as he liked, and a message is
//! kept, logged and written into objects in many places.

/// Bytes of a message in a status, an event or an error (a termination message has as many).
pub const MESSAGE_BYTES_MAX: usize = 4 << 10;

/// The message, or its beginning.
pub fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MESSAGE_BYTES_MAX)]
}

/// The same of a message that is the caller's.
pub fn cut_off(mut text: String) -> String {
    text.truncate(cut(&text).len());
    text
}

/// Of a text of entries between commas, as many as such a text may have in bytes; the last one says how many more there are.
pub fn entries_within(mut text: String, bytes_max: usize) -> String {
    /// Bytes of what is said then.
    const SAID: usize = 32;
    if text.len() > bytes_max {
        let within = &text.as_bytes()[..bytes_max.saturating_sub(SAID)];
        let end = within.iter().rposition(|byte| *byte == b',').unwrap_or_default();
        let left_out = text.as_bytes()[end..].iter().filter(|byte| **byte == b',').count();
        // It begins at a comma, which is a letter's boundary.
        text.truncate(end);
        text.push_str(&format!(",{left_out} left out"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_between_two_letters() {
        let text = "ä".repeat(MESSAGE_BYTES_MAX);
        assert_eq!(cut(&text).len(), MESSAGE_BYTES_MAX);
        assert_eq!(cut_off(format!("x{text}")).len(), MESSAGE_BYTES_MAX - 1);
        let entries = format!("::1{}", ",n/web:80/TCP".repeat(100));
        let within = entries_within(entries.clone(), 100);
        assert_eq!(within, "::1,n/web:80/TCP,n/web:80/TCP,n/web:80/TCP,n/web:80/TCP,96 left out");
        assert_eq!(entries_within(entries.clone(), entries.len()), entries);
        assert_eq!((cut("short"), cut_off(String::new())), ("short", String::new()));
    }
}
