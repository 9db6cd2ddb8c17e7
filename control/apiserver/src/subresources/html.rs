//! Links in pages of a proxied application: paths are put below where the application stands among this server's paths, as Kubernetes'
//! API server does it (`apimachinery/pkg/util/proxy`).
//!
//! A page is read once, as it comes, with the states of HTML's tokenizer (WHATWG HTML §13.2.5) as far as they tell where an attribute's
//! value is: everything goes through as it is, and only links wait for their end. What is in comments and in scripts, styles and other
//! elements of text is not looked at.

use std::io::{self, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use http_body::Frame;

/// Bytes of one link; a longer one goes through as it is.
const LINK_BYTES_MAX: usize = 64 << 10;
/// Bytes of a page that are looked at at once: decompressed they are a thousand times as many, at most.
const CHUNK_BYTES_MAX: usize = 4 << 10;

/// Elements without tags in them.
const TEXTS: [&str; 9] = ["script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes", "plaintext"];

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

/// A page whose links are rewritten. One that is compressed, by gzip, is not any more.
pub(super) fn rewritten(page: Body, is_compressed: bool, rewrite: Rewrite) -> Body {
    let decoder = is_compressed.then(|| Box::new(MultiGzDecoder::new(Vec::new())));
    let links = Links::new(rewrite);
    Body::new(Page { page, decoder, links, rest: Bytes::new(), last: None, has_begun: false, is_over: false })
}

struct Page {
    page: Body,
    decoder: Option<Box<MultiGzDecoder<Vec<u8>>>>,
    links: Links,
    /// What has come and was not looked at.
    rest: Bytes,
    /// Trailers, which wait for the last of the page.
    last: Option<Frame<Bytes>>,
    has_begun: bool,
    is_over: bool,
}

impl Page {
    /// What becomes of the next bytes.
    fn take(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        self.has_begun = true;
        let Some(decoder) = &mut self.decoder else { return Ok(self.links.take(bytes)) };
        decoder.write_all(bytes)?;
        decoder.flush()?;
        Ok(self.links.take(&std::mem::take(decoder.get_mut())))
    }

    /// The last of what has come; an error for a compressed page that was cut.
    fn end(&mut self) -> io::Result<Vec<u8>> {
        self.is_over = true;
        let mut out = Vec::new();
        if let Some(decoder) = self.decoder.as_mut().filter(|_| self.has_begun) {
            decoder.try_finish()?;
            out = self.links.take(&std::mem::take(decoder.get_mut()));
        }
        self.links.end_link(&mut out);
        Ok(out)
    }
}

impl http_body::Body for Page {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        loop {
            let out = if !this.rest.is_empty() {
                let now = this.rest.split_to(this.rest.len().min(CHUNK_BYTES_MAX));
                this.take(&now)
            } else if this.is_over {
                return Poll::Ready(this.last.take().map(Ok));
            } else {
                match ready!(Pin::new(&mut this.page).poll_frame(context)).transpose()?.map(Frame::into_data) {
                    Some(Ok(bytes)) => {
                        this.rest = bytes;
                        continue;
                    }
                    Some(Err(trailers)) => {
                        this.last = Some(trailers);
                        this.end()
                    }
                    None => this.end(),
                }
            };
            let out = match out {
                Ok(out) => out,
                Err(error) => {
                    (this.is_over, this.rest, this.last) = (true, Bytes::new(), None);
                    return Poll::Ready(Some(Err(axum::Error::new(error))));
                }
            };
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out.into()))));
            }
        }
    }
}

/// Where in a page the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Text,
    /// Behind `<`.
    Open,
    /// Behind `</`.
    EndOpen,
    /// Behind `<!`, or `<!-`.
    Markup {
        dash: bool,
    },
    /// In what goes to the next `>`, whatever is in it: declarations, and what is no tag.
    Declaration,
    /// In a comment, behind so many hyphens; two or more end it with a `>`.
    Comment {
        dashes: u8,
        bang: bool,
    },
    TagName,
    /// In a tag, between attributes.
    Tag,
    Attribute,
    /// Behind an attribute's name and a space.
    AttributeEnd,
    /// Behind `=`.
    Equals,
    /// In a value, and the quote that ends it.
    Value(Option<u8>),
    /// In an element without tags, behind so many bytes of its end.
    Raw {
        element: &'static str,
        seen: usize,
    },
}

/// A name, in lower case, as far as those go that matter.
#[derive(Default)]
struct Name(Vec<u8>);

impl Name {
    const BYTES_MAX: usize = 16;

    fn begin(&mut self, byte: u8) {
        self.0.clear();
        self.push(byte);
    }

    fn push(&mut self, byte: u8) {
        // One more than any that matters has makes it another.
        if self.0.len() < Self::BYTES_MAX {
            self.0.push(byte.to_ascii_lowercase());
        }
    }

    fn among(&self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().find(|name| name.as_bytes() == self.0).copied()
    }
}

struct Links {
    rewrite: Rewrite,
    place: Place,
    /// The tag's; that of an end is nothing that matters.
    tag: Name,
    attribute: Name,
    /// The value so far, if it is a link.
    link: Option<Vec<u8>>,
}

impl Links {
    fn new(rewrite: Rewrite) -> Self {
        Self { rewrite, place: Place::Text, tag: Name::default(), attribute: Name::default(), link: None }
    }

    /// What becomes of the next bytes of a page.
    fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            let before = self.place;
            self.place = self.behind(before, byte);
            match (before, self.place) {
                (Place::Equals, Place::Value(quote)) => {
                    let is_link = self.attribute.among(&LINKS).is_some();
                    if quote.is_some() {
                        out.push(byte);
                    }
                    self.link = is_link.then(Vec::new);
                    if quote.is_some() {
                        continue;
                    }
                }
                (Place::Value(_), Place::Value(_)) => {}
                (Place::Value(_), _) => self.end_link(&mut out),
                _ => {}
            }
            match &mut self.link {
                Some(link) if link.len() < LINK_BYTES_MAX => link.push(byte),
                Some(link) => {
                    out.append(link);
                    out.push(byte);
                    self.link = None;
                }
                None => out.push(byte),
            }
        }
        out
    }

    /// Puts the link that has ended to the rest.
    fn end_link(&mut self, out: &mut Vec<u8>) {
        let Some(link) = self.link.take() else { return };
        let new = std::str::from_utf8(&link).ok().and_then(|link| (self.rewrite)(link.trim_ascii()));
        out.extend_from_slice(new.as_deref().map_or(&link, str::as_bytes));
    }

    /// Where the byte behind one of this place leads.
    fn behind(&mut self, place: Place, byte: u8) -> Place {
        let is_space = matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'\x0c');
        match (place, byte) {
            (Place::Text, b'<') => Place::Open,
            (Place::Text, _) => Place::Text,
            (Place::Open, b'/') => Place::EndOpen,
            (Place::Open, b'!') => Place::Markup { dash: false },
            (Place::Open, b'?') => Place::Declaration,
            (Place::Open, b'<') => Place::Open,
            (Place::Open, _) if byte.is_ascii_alphabetic() => {
                self.tag.begin(byte);
                Place::TagName
            }
            (Place::Open, _) => Place::Text,
            (Place::EndOpen, _) if byte.is_ascii_alphabetic() => {
                self.tag.begin(b'/');
                Place::TagName
            }
            (Place::EndOpen | Place::Declaration | Place::Markup { .. }, b'>') => Place::Text,
            (Place::Markup { dash: false }, b'-') => Place::Markup { dash: true },
            // `<!-->` is one, too.
            (Place::Markup { dash: true }, b'-') => Place::Comment { dashes: 2, bang: false },
            (Place::EndOpen | Place::Declaration | Place::Markup { .. }, _) => Place::Declaration,
            (Place::Comment { dashes: 2.., .. }, b'>') => Place::Text,
            (Place::Comment { dashes, .. }, b'-') => Place::Comment { dashes: dashes.saturating_add(1), bang: false },
            (Place::Comment { dashes: 2.., bang: false }, b'!') => Place::Comment { dashes: 2, bang: true },
            (Place::Comment { .. }, _) => Place::Comment { dashes: 0, bang: false },
            (Place::Value(Some(quote)), _) if byte == quote => Place::Tag,
            (Place::Value(Some(quote)), _) => Place::Value(Some(quote)),
            (Place::Equals, b'"' | b'\'') => Place::Value(Some(byte)),
            (Place::Equals, _) if is_space => Place::Equals,
            (
                Place::TagName
                | Place::Tag
                | Place::Attribute
                | Place::AttributeEnd
                | Place::Equals
                | Place::Value(None),
                b'>',
            ) => match self.tag.among(&TEXTS) {
                Some(element) => Place::Raw { element, seen: 0 },
                None => Place::Text,
            },
            (Place::Equals | Place::Value(None), _) if !is_space => Place::Value(None),
            (Place::Attribute | Place::AttributeEnd, b'=') => Place::Equals,
            (Place::Attribute | Place::AttributeEnd, _) if is_space => Place::AttributeEnd,
            (Place::TagName | Place::Tag | Place::Attribute | Place::AttributeEnd, b'/') => Place::Tag,
            (Place::TagName | Place::Tag | Place::Value(None), _) if is_space => Place::Tag,
            (Place::TagName, _) => {
                self.tag.push(byte);
                Place::TagName
            }
            (Place::Attribute, _) => {
                self.attribute.push(byte);
                Place::Attribute
            }
            (Place::Tag | Place::AttributeEnd | Place::Equals | Place::Value(None), _) => {
                self.attribute.begin(byte);
                Place::Attribute
            }
            (Place::Raw { element, seen }, _) => self.behind_raw(element, seen, byte, is_space),
        }
    }

    /// In an element without tags: only its own end, `</` and its name, ends it.
    fn behind_raw(&mut self, element: &'static str, seen: usize, byte: u8, is_space: bool) -> Place {
        let expected = [b'<', b'/'].into_iter().chain(element.bytes()).nth(seen);
        match expected {
            Some(expected) if byte.to_ascii_lowercase() == expected => Place::Raw { element, seen: seen + 1 },
            None if is_space || matches!(byte, b'/' | b'>') => {
                self.tag.begin(b'/');
                if byte == b'>' { Place::Text } else { Place::Tag }
            }
            _ => Place::Raw { element, seen: usize::from(byte == b'<') },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite() -> Rewrite {
        Box::new(|link| link.starts_with('/').then(|| format!("/below{link}")))
    }

    #[test]
    fn links_are_rewritten_and_nothing_else_is() {
        for (page, expected) in [
            ("<a href=\"/rewriteme\">test</a>", "<a href=\"/below/rewriteme\">test</a>"),
            ("<IMG SRC = '/a.png' alt='a > b = \"/c\"'>", "<IMG SRC = '/below/a.png' alt='a > b = \"/c\"'>"),
            ("<a href=\"there\" title=\"/x\">/y</a>", "<a href=\"there\" title=\"/x\">/y</a>"),
            ("1 < 2 <b>x</b> <", "1 < 2 <b>x</b> <"),
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
            // Without quotes, as pages are that were made small.
            (
                "<a href=/x>y</a><link rel=icon href=/i.png><a href=/>",
                "<a href=/below/x>y</a><link rel=icon href=/below/i.png><a href=/below/>",
            ),
            // A quote opens a value only where one begins.
            ("<p class=it's><a href='/x'>", "<p class=it's><a href='/below/x'>"),
            ("<p don't><a href='/x'>", "<p don't><a href='/below/x'>"),
            ("</p '><a href='/x'>", "</p '><a href='/below/x'>"),
            ("<!DOCTYPE \"html><a href='/x'>", "<!DOCTYPE \"html><a href='/below/x'>"),
            ("<?xml '?><a href='/x'></ '><a href='/y'>", "<?xml '?><a href='/below/x'></ '><a href='/below/y'>"),
            ("<a title=\"=\" href=\"/x\">", "<a title=\"=\" href=\"/below/x\">"),
            ("<a href=\"/x\"src='/y'/href = /z>", "<a href=\"/below/x\"src='/below/y'/href = /below/z>"),
            ("<a data-href='/x' href>", "<a data-href='/x' href>"),
            (
                "<!--><a href='/x'><!---><a href='/y'><!--a--!><a href='/z'>",
                "<!--><a href='/below/x'><!---><a href='/below/y'><!--a--!><a href='/below/z'>",
            ),
            (
                "<TITLE><a href='/x'></title ><a href='/y'><textarea></text<a href='/z'></textarea><script></scripty>'/></script>",
                "<TITLE><a href='/x'></title ><a href='/below/y'><textarea></text<a href='/z'></textarea><script></scripty>'/></script>",
            ),
            ("<a href='/never ends", "<a href='/below/never ends"),
        ] {
            let whole = |links: &mut Links, parts: &mut dyn Iterator<Item = &[u8]>| {
                let mut bytes: Vec<u8> = parts.flat_map(|part| links.take(part)).collect();
                links.end_link(&mut bytes);
                String::from_utf8(bytes).unwrap()
            };
            let mut links = Links::new(rewrite());
            assert_eq!(whole(&mut links, &mut [page.as_bytes()].into_iter()), expected, "{page}");
            // However it is cut on its way.
            let mut links = Links::new(rewrite());
            assert_eq!(whole(&mut links, &mut page.as_bytes().chunks(1)), expected, "{page}");
        }
        let long = format!("<a href=\"/{}", "x".repeat(2 * LINK_BYTES_MAX));
        assert!(Links::new(rewrite()).take(long.as_bytes()).len() > LINK_BYTES_MAX, "it does not wait for ever");
    }

    /// Its data and its trailers, in their order.
    async fn all(page: Body, is_compressed: bool) -> Result<(String, Option<http::HeaderMap>), axum::Error> {
        use http_body_util::BodyExt as _;
        let (mut body, mut text, mut trailers) = (rewritten(page, is_compressed, rewrite()), Vec::new(), None);
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(bytes) if trailers.is_none() => text.extend_from_slice(&bytes),
                Ok(bytes) => panic!("behind the trailers: {bytes:?}"),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        Ok((String::from_utf8(text).unwrap(), trailers))
    }

    #[tokio::test]
    async fn trailers_come_behind_what_had_no_end() {
        let trailers = http::HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())]);
        let frames = [Frame::data(Bytes::from("<a href='/x")), Frame::trailers(trailers.clone())];
        let page = http_body_util::StreamBody::new(futures::stream::iter(frames.map(Ok::<_, io::Error>)));
        let read = all(Body::new(page), false).await.unwrap();
        assert_eq!(read, ("<a href='/below/x".to_owned(), Some(trailers)));
    }

    #[tokio::test]
    async fn a_compressed_page_is_read_and_one_that_was_cut_is_an_error() {
        let page = "<a href='/x'>".repeat(10_000);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(page.as_bytes()).unwrap();
        let compressed = encoder.finish().unwrap();
        let (text, _) = all(Body::from(compressed.clone()), true).await.unwrap();
        assert!(text == page.replace("/x", "/below/x"));
        let cut = compressed[..compressed.len() / 2].to_vec();
        assert!(all(Body::from(cut), true).await.is_err());
        assert!(all(Body::from("no gzip"), true).await.is_err());
        assert_eq!(all(Body::from(""), true).await.unwrap().0, "", "an empty page is not compressed");
    }
}
