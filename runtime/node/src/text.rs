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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_between_two_letters() {
        let text = "ä".repeat(MESSAGE_BYTES_MAX);
        assert_eq!(cut(&text).len(), MESSAGE_BYTES_MAX);
        assert_eq!(cut_off(format!("x{text}")).len(), MESSAGE_BYTES_MAX - 1);
        assert_eq!((cut("short"), cut_off(String::new())), ("short", String::new()));
    }
}
