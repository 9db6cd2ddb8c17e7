//! Lines of a log file: `<time> <stream> <F|P> <content>`.

use std::io::Write as _;

use jiff::Timestamp;

/// A parsed line.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// When it was printed.
    pub time: Timestamp,
    /// The time as it is written.
    pub time_text: &'a str,
    /// `stdout` or `stderr`.
    pub stream: &'a str,
    /// Whether it ends with a newline.
    pub is_whole: bool,
    /// The content, without newline.
    pub content: &'a [u8],
}

/// Appends a line.
pub fn append(out: &mut Vec<u8>, time: Timestamp, stream: &str, is_whole: bool, content: &[u8]) {
    let tag = if is_whole { 'F' } else { 'P' };
    let _ = write!(out, "{} {stream} {tag} ", time.strftime("%Y-%m-%dT%H:%M:%S.%9fZ"));
    out.extend_from_slice(content);
    out.push(b'\n');
}

/// Reads a line without its newline; `None` when it is none.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time_text = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let is_whole = match parts.next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Line { time: time_text.parse().ok()?, time_text, stream, is_whole, content: parts.next()? })
}
