//! JSON for people: the same text with line breaks, its keys in the order they stand in.

/// Breaks compact JSON into lines as Go's `json.Indent` does, with two spaces a level and a line break at the end. The
/// order of keys stays, which a detour over a value would lose.
#[must_use]
pub fn pretty(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() * 2);
    Indent::default().more(&mut &*json, &mut out, usize::MAX);
    out.push(b'\n');
    out
}

/// [`pretty`] of a text that comes in parts, and goes in parts: brackets of a deep object are a thousand times longer when
/// they are indented.
#[derive(Debug, Default)]
pub struct Indent {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// A bracket was the last thing written: whether a line follows depends on what comes.
    opened: bool,
}

impl Indent {
    /// Takes from `json` until nothing is left of it or `out` has `limit` bytes; at most a line is written beyond.
    pub fn more(&mut self, json: &mut &[u8], out: &mut Vec<u8>, limit: usize) {
        while let (Some(&byte), true) = (json.first(), out.len() < limit) {
            if self.in_string {
                let room = json.len().min(limit - out.len());
                let text = &json[..self.string(&json[..room])];
                out.extend_from_slice(text);
                *json = &json[text.len()..];
                continue;
            }
            *json = &json[1..];
            if byte.is_ascii_whitespace() {
                continue;
            }
            if std::mem::take(&mut self.opened) {
                if matches!(byte, b'}' | b']') {
                    out.push(byte);
                    continue;
                }
                self.depth += 1;
                self.line(out);
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.opened = true,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    self.line(out);
                }
                _ => {}
            }
            out.push(byte);
            match byte {
                b',' => self.line(out),
                b':' => out.push(b' '),
                _ => {}
            }
        }
    }

    fn line(&self, out: &mut Vec<u8>) {
        out.push(b'\n');
        out.resize(out.len() + 2 * self.depth, b' ');
    }

    /// How many bytes of `text`, which begins within a string, belong to it.
    fn string(&mut self, text: &[u8]) -> usize {
        for (at, byte) in text.iter().enumerate() {
            if std::mem::take(&mut self.escaped) {
                continue;
            }
            match byte {
                b'\\' => self.escaped = true,
                b'"' => {
                    self.in_string = false;
                    return at + 1;
                }
                _ => {}
            }
        }
        text.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_in_their_order() {
        let text = br#"{"kind":"A","apiVersion":"v1","metadata":{},"data":{"b":"{\"[,:","a":[1,{"x":null},[]]}}"#;
        let expected = "{\n  \"kind\": \"A\",\n  \"apiVersion\": \"v1\",\n  \"metadata\": {},\n  \"data\": {\n    \
                        \"b\": \"{\\\"[,:\",\n    \"a\": [\n      1,\n      {\n        \"x\": null\n      },\n      []\n    ]\n  \
                        }\n}\n";
        assert_eq!(String::from_utf8(pretty(text)).expect("text"), expected);
        assert_eq!(pretty(&pretty(text)), pretty(text));
        assert_eq!(pretty(br#""open\"#), b"\"open\\\n");
    }

    #[test]
    fn parts_of_any_size_say_the_same() {
        let text = br#"{"a\\\"[":[{},[ ],{"b":"\u007b,","c":-1.5e3}],"d":{"e":null}}"#;
        for (part, limit) in (1..9).flat_map(|part| (1..9).map(move |limit| (part, limit))) {
            let (mut indent, mut whole) = (Indent::default(), Vec::new());
            for mut part in text.chunks(part) {
                while !part.is_empty() {
                    let mut out = Vec::new();
                    indent.more(&mut part, &mut out, limit);
                    assert!(out.len() <= limit + 1 + 2 * 8, "{out:?}");
                    whole.extend(out);
                }
            }
            whole.push(b'\n');
            assert_eq!(whole, pretty(text), "{part} {limit}");
        }
    }
}
