//! Lines of a log file: `<time> <stream> <F|P> <content>`.

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

/// Bytes of a line beside its content, newline included.
pub const BYTES_MORE: usize = 30 + 1 + 6 + 1 + 1 + 1 + 1;

/// What stands before the content of lines that are printed at the same moment: writing the time costs more than all the rest.
pub struct Begin {
    whole: Vec<u8>,
    part: Vec<u8>,
}

impl Begin {
    /// For lines of this moment and stream.
    pub fn new(time: Timestamp, stream: &str) -> Self {
        let time = time.strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string();
        let begin = |tag: char| format!("{time} {stream} {tag} ").into_bytes();
        Self { whole: begin('F'), part: begin('P') }
    }

    /// Appends a line.
    pub fn append(&self, out: &mut Vec<u8>, is_whole: bool, content: &[u8]) {
        out.extend_from_slice(if is_whole { &self.whole } else { &self.part });
        out.extend_from_slice(content);
        out.push(b'\n');
    }
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
