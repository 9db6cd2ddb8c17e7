//! Links in pages of a proxied application: paths are put below where the application stands among this server's paths, as Kubernetes'
//! API server does it (`apimachinery/pkg/util/proxy`).
//!
//! A page is read once, as it comes: text goes through as it is, and only tags wait for their end. What is in comments and scripts is
//! not looked at.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http_body::Frame;

/// Bytes of one tag; a longer one goes through as it is.
const TAG_BYTES_MAX: usize = 64 << 10;

/// Attributes that are links, whatever their tag.
const LINKS: [&str; 15] = [
    "href",
    "src",
    "action",
    "formaction",
    "cite",
    "data",
    "poster",
    "background",
    "codebase",
    "classid",
    "longdesc",
    "manifest",
    "profile",
    "usemap",
    "icon",
];

/// What a link becomes; none to leave it.
type Rewrite = Box<dyn Fn(&str) -> Option<String> + Send>;

/// A page whose links are rewritten.
pub(super) fn rewritten(page: Body, rewrite: Rewrite) -> Body {
    Body::new(Page { page, links: Links { rewrite, tag: Vec::new(), quote: None, until: None } })
}

struct Page {
    page: Body,
    links: Links,
}

impl http_body::Body for Page {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        loop {
            let frame = match ready!(Pin::new(&mut self.page).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None if self.links.tag.is_empty() => return Poll::Ready(None),
                // A tag that never ended.
                None => return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.links.tag).into())))),
            };
            let bytes = match frame.into_data() {
                Ok(bytes) => self.links.take(&bytes),
                Err(frame) => return Poll::Ready(Some(Ok(frame))),
            };
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(bytes.into()))));
            }
        }
    }
}

struct Links {
    rewrite: Rewrite,
    /// A tag whose end has not come, from its `<`.
    tag: Vec<u8>,
    /// The quote that is open in it.
    quote: Option<u8>,
    /// What ends the part in which there are no tags.
    until: Option<&'static str>,
}

impl Links {
    /// What becomes of the next bytes of a page.
    fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            let first = self.until.map_or(b'<', |until| until.as_bytes()[0]);
            if self.tag.is_empty() && byte != first {
                out.push(byte);
                continue;
            }
            // A `>` between quotes does not end it.
            self.quote = match self.quote {
                None if matches!(byte, b'"' | b'\'') => Some(byte),
                Some(open) if open == byte => None,
                quote => quote,
            };
            self.tag.push(byte);
            if self.is_over() {
                self.end(&mut out);
            }
        }
        out
    }

    /// Whether what began with `<` has ended, or is no tag.
    fn is_over(&self) -> bool {
        let tag = self.tag.as_slice();
        if tag.len() >= TAG_BYTES_MAX {
            return true;
        }
        if let Some(until) = self.until {
            let so_far = &until.as_bytes()[..tag.len().min(until.len())];
            return !tag[..so_far.len()].eq_ignore_ascii_case(so_far) || tag.len() == until.len();
        }
        if tag.len() >= 2 && !(tag[1].is_ascii_alphabetic() || matches!(tag[1], b'/' | b'!' | b'?')) {
            return true;
        }
        if b"<!--".starts_with(&tag[..tag.len().min(4)]) && tag.len() <= 4 {
            return tag.len() == 4;
        }
        tag.len() > 1 && self.quote.is_none() && tag.ends_with(b">")
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        let tag = std::mem::take(&mut self.tag);
        self.quote = None;
        if let Some(until) = self.until {
            if tag.eq_ignore_ascii_case(until.as_bytes()) {
                self.until = None;
                out.extend_from_slice(&tag);
                return;
            }
            // What follows its first byte may be the beginning.
            out.push(tag[0]);
            let rest = self.take(&tag[1..]);
            out.extend_from_slice(&rest);
            return;
        }
        if tag == b"<!--" {
            self.until = Some("-->");
            out.extend_from_slice(&tag);
            return;
        }
        match std::str::from_utf8(&tag) {
            Ok(text) if text.ends_with('>') => out.extend_from_slice(self.tag_with_links(text).as_bytes()),
            _ => out.extend_from_slice(&tag),
        }
        let name: Vec<u8> = tag[1..].iter().take_while(|byte| byte.is_ascii_alphanumeric()).copied().collect();
        self.until = ["</script", "</style"].into_iter().find(|end| end.as_bytes()[2..].eq_ignore_ascii_case(&name));
    }

    fn tag_with_links(&self, tag: &str) -> String {
        let (mut out, mut rest) = (String::with_capacity(tag.len()), tag);
        // A name, `=` and a value between quotes; links without quotes are as rare as pages of that age.
        while let Some(at) = rest.find('=') {
            let name =
                rest[..at].trim_end().rsplit(|c: char| c.is_whitespace() || c == '"' || c == '\'' || c == '/').next();
            let is_link = name.is_some_and(|name| LINKS.iter().any(|link| link.eq_ignore_ascii_case(name)));
            let after = rest[at + 1..].trim_start();
            let start = rest.len() - after.len();
            out.push_str(&rest[..start]);
            let Some(quote) = after.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
                rest = after;
                continue;
            };
            let Some(length) = after[1..].find(quote) else {
                rest = after;
                break;
            };
            let value = &after[1..=length];
            let new = is_link.then(|| (self.rewrite)(value)).flatten();
            out.push(quote);
            out.push_str(new.as_deref().unwrap_or(value));
            out.push(quote);
            rest = &after[length + 2..];
        }
        out.push_str(rest);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> Links {
        let rewrite = |link: &str| link.starts_with('/').then(|| format!("/below{link}"));
        Links { rewrite: Box::new(rewrite), tag: Vec::new(), quote: None, until: None }
    }

    #[test]
    fn links_are_rewritten_and_nothing_else_is() {
        for (page, expected) in [
            ("<a href=\"/rewriteme\">test</a>", "<a href=\"/below/rewriteme\">test</a>"),
            ("<IMG SRC = '/a.png' alt='a > b = \"/c\"'>", "<IMG SRC = '/below/a.png' alt='a > b = \"/c\"'>"),
            ("<a href=\"there\" title=\"/x\">/y</a>", "<a href=\"there\" title=\"/x\">/y</a>"),
            ("1 < 2 <b>x</b> <", "1 < 2 <b>x</b> "),
            (
                "<script>if (a<b) \"<a href='/x'>\"</script><a href='/y'>",
                "<script>if (a<b) \"<a href='/x'>\"</script><a href='/below/y'>",
            ),
            ("<!-- <a href='/x'> ---><a href='/y'>", "<!-- <a href='/x'> ---><a href='/below/y'>"),
            (
                "<form action=\"/\" ><input formaction='/f'/>",
                "<form action=\"/below/\" ><input formaction='/below/f'/>",
            ),
            ("<a href=\"/ü\">", "<a href=\"/below/ü\">"),
            ("<a href=/x>", "<a href=/x>"),
        ] {
            let mut whole = links();
            assert_eq!(String::from_utf8(whole.take(page.as_bytes())).unwrap(), expected, "{page}");
            // However it is cut on its way.
            let mut parts = links();
            let bytes: Vec<u8> = page.bytes().flat_map(|byte| parts.take(&[byte])).collect();
            assert_eq!(String::from_utf8(bytes).unwrap(), expected, "{page}");
        }
        let long = format!("<a title=\"{}\" href=\"/x\">", "x".repeat(2 * TAG_BYTES_MAX));
        assert!(links().take(long.as_bytes()).len() > TAG_BYTES_MAX, "it does not wait for ever");
    }
}
