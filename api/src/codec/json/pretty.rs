//! JSON for people: the same text with line breaks, its keys in the order they stand in.

/// Breaks compact JSON into lines as Go's `json.Indent` does, with two spaces a level and a line break at the end. The
/// order of keys stays, which a detour over a value would lose.
#[must_use]
pub fn pretty(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() * 2);
    let (mut depth, mut at) = (0_usize, 0);
    let line = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.resize(out.len() + 2 * depth, b' ');
    };
    while let Some(&byte) = json.get(at) {
        at += 1;
        match byte {
            b'"' => {
                let start = at - 1;
                while let Some(&byte) = json.get(at) {
                    at += 1;
                    match byte {
                        b'\\' => at += 1,
                        b'"' => break,
                        _ => {}
                    }
                }
                at = at.min(json.len());
                out.extend_from_slice(&json[start..at]);
            }
            b' ' | b'\n' | b'\r' | b'\t' => {}
            b'{' | b'[' => {
                out.push(byte);
                let next = json[at..].iter().position(|byte| !byte.is_ascii_whitespace()).map(|more| at + more);
                match next.map(|next| (next, json[next])) {
                    Some((next, end @ (b'}' | b']'))) => {
                        out.push(end);
                        at = next + 1;
                    }
                    _ => {
                        depth += 1;
                        line(&mut out, depth);
                    }
                }
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                line(&mut out, depth);
            }
            b':' => out.extend_from_slice(b": "),
            other => out.push(other),
        }
    }
    out.push(b'\n');
    out
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
}
