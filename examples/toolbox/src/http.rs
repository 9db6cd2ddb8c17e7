//! HTTP/1.1 as the test suite's servers and clients speak it.

/// Bytes of a request's or an answer's head, and of its body.
const HEAD_BYTES_MAX: usize = 64 << 10;
const BODY_BYTES_MAX: usize = 16 << 20;

pub struct Request {
    pub method: String,
    /// As it was asked for.
    pub target: String,
    /// Without the query, decoded.
    pub path: String,
    /// Name and value, decoded.
    pub query: Vec<(String, String)>,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The connection is used for another request.
    pub stays: bool,
    /// Who asks, as `ADDRESS:PORT`; empty until the server says it.
    pub peer: String,
    /// The certificate that it has shown, if the server asks for one.
    pub certificate: Option<Vec<u8>>,
}

impl Request {
    /// The first value of a parameter, in the query or in a form; empty when it has none.
    pub fn parameter(&self, name: &str) -> &str {
        self.query.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Response {
        Response { status, headers: Vec::new(), body: body.into() }
    }

    pub fn text(body: impl Into<Vec<u8>>) -> Response {
        Response::new(200, body).with("content-type", "text/plain; charset=utf-8")
    }

    /// A refusal, as Go's servers write it.
    pub fn error(status: u16, why: &str) -> Response {
        Response::new(status, format!("{why}\n")).with("content-type", "text/plain; charset=utf-8")
    }

    pub fn json(value: &serde_json::Value) -> Response {
        Response::new(200, value.to_string()).with("content-type", "application/json")
    }

    pub fn with(mut self, name: &str, value: &str) -> Response {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// As it is sent.
    pub fn encoded(&self, request: &Request) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        head.push_str(if request.stays { "\r\n" } else { "connection: close\r\n\r\n" });
        let mut bytes = head.into_bytes();
        if request.method != "HEAD" {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        301 => "Moved Permanently",
        302 => "Found",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        404 => "Not Found",
        412 => "Precondition Failed",
        417 => "Expectation Failed",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Status",
    }
}

/// The status line or request line, the headers, and where the body begins; none until the head is whole.
type Head = (String, Vec<(String, String)>, usize);

fn head(bytes: &[u8]) -> Result<Option<Head>, String> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() > HEAD_BYTES_MAX { Err("the head is too long".to_owned()) } else { Ok(None) };
    };
    let text = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default().to_owned();
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()));
    Ok(Some((first, headers.collect(), end + 4)))
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// The body and how many bytes it takes; none until it is whole.
fn body(bytes: &[u8], headers: &[(String, String)]) -> Result<Option<(Vec<u8>, usize)>, String> {
    if find(headers, "transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        let (mut body, mut at) = (Vec::new(), 0);
        loop {
            let Some(line) = bytes[at..].windows(2).position(|window| window == b"\r\n") else { return Ok(None) };
            let size =
                String::from_utf8_lossy(&bytes[at..at + line]).split(';').next().unwrap_or_default().trim().to_owned();
            let size = usize::from_str_radix(&size, 16).map_err(|_| "a chunk has no size".to_owned())?;
            if size > BODY_BYTES_MAX || body.len() + size > BODY_BYTES_MAX {
                return Err("the body is too long".to_owned());
            }
            at += line + 2;
            if bytes.len() < at + size + 2 {
                return Ok(None);
            }
            body.extend_from_slice(&bytes[at..at + size]);
            at += size + 2;
            if size == 0 {
                return Ok(Some((body, at)));
            }
        }
    }
    let length = find(headers, "content-length")
        .map_or(Ok(0), str::parse::<usize>)
        .map_err(|_| "bad content-length".to_owned())?;
    if length > BODY_BYTES_MAX {
        return Err("the body is too long".to_owned());
    }
    Ok((bytes.len() >= length).then(|| (bytes[..length].to_vec(), length)))
}

/// Takes a request from the beginning of what has arrived; none until it is whole.
pub fn request(bytes: &mut Vec<u8>) -> Result<Option<Request>, String> {
    // What begins with no request line is none, whatever follows.
    let first =
        bytes.iter().position(|byte| *byte == b'\n').map(|end| String::from_utf8_lossy(&bytes[..end]).into_owned());
    if first.is_some_and(|line| !line.trim_end().contains(" HTTP/1.")) {
        return Err("no request line".to_owned());
    }
    let Some((line, headers, at)) = head(bytes)? else { return Ok(None) };
    let Some((body, length)) = body(&bytes[at..], &headers)? else { return Ok(None) };
    bytes.drain(..at + length);
    let mut words = line.split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Err("no request line".to_owned()) };
    let target = target.strip_prefix("http://").map_or(target, |rest| rest.find('/').map_or("/", |at| &rest[at..]));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut query = pairs(query);
    if find(&headers, "content-type").is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded")) {
        query.extend(pairs(&String::from_utf8_lossy(&body)));
    }
    let connection = find(&headers, "connection").unwrap_or_default().to_ascii_lowercase();
    let stays = if words.next() == Some("HTTP/1.0") { connection == "keep-alive" } else { connection != "close" };
    Ok(Some(Request {
        method: method.to_owned(),
        target: target.to_owned(),
        path: decoded(path, false),
        query,
        headers,
        body,
        stays,
        certificate: None,
        peer: String::new(),
    }))
}

/// An answer that was read to the end of its connection or of its length; none until it is whole.
pub fn response(bytes: &[u8], is_end: bool, is_head: bool) -> Result<Option<Response>, String> {
    let Some((line, headers, at)) = head(bytes)? else { return Ok(None) };
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or("no status line")?;
    let is_bounded = find(&headers, "content-length").is_some() || find(&headers, "transfer-encoding").is_some();
    let body = match (is_head || status == 204 || status == 304, is_bounded) {
        (true, _) => Vec::new(),
        (_, true) => match body(&bytes[at..], &headers)? {
            Some((body, _)) => body,
            None => return Ok(None),
        },
        (_, false) if is_end => bytes[at..].to_vec(),
        _ => return Ok(None),
    };
    Ok(Some(Response { status, headers, body }))
}

fn pairs(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decoded(name, true), decoded(value, true)))
        .collect()
}

/// Without percent signs, and in queries without plus signs.
pub fn decoded(text: &str, is_query: bool) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let hex = |byte: Option<&u8>| {
            byte.and_then(|byte| char::from(*byte).to_digit(16)).and_then(|digit| u8::try_from(digit).ok())
        };
        match (bytes[at], hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push(high << 4 | low);
                at += 2;
            }
            (b'+', _, _) if is_query => out.push(b' '),
            (byte, _, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// For a query.
pub fn encoded(text: &str) -> String {
    let encoded = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(encoded).collect()
}

/// What a URL names.
pub struct Url {
    pub secure: bool,
    pub host: String,
    pub port: u16,
    pub target: String,
}

pub fn url(text: &str) -> Result<Url, String> {
    let (secure, rest) = match text.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        Some((other, _)) => return Err(format!("{other} is not supported")),
        None => (false, text),
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(end);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| format!("bad port in {text}"))?),
        _ => (authority, if secure { 443 } else { 80 }),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    Ok(Url { secure, host, port, target })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_taken_one_after_the_other() {
        let mut bytes =
            b"POST /a%20b?x=1%2B2&y=a+b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.0\r\n\r\nGET"
                .to_vec();
        let first = request(&mut bytes).unwrap().unwrap();
        assert_eq!((first.path.as_str(), first.parameter("x"), first.parameter("y")), ("/a b", "1+2", "a b"));
        assert_eq!((first.body.as_slice(), first.stays), (&b"abc"[..], true));
        let second = request(&mut bytes).unwrap().unwrap();
        assert_eq!((second.method.as_str(), second.stays), ("GET", false));
        assert!(request(&mut bytes).unwrap().is_none());
        assert_eq!(bytes, b"GET");
        assert!(request(&mut b"hostName\n".to_vec()).is_err());
    }

    #[test]
    fn bodies_come_whole_or_not_at_all() {
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(response(chunked, false, false).unwrap().unwrap().body, b"abcde");
        assert!(response(&chunked[..chunked.len() - 4], false, false).unwrap().is_none());
        assert!(response(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na", true, false).unwrap().is_none());
        assert_eq!(response(b"HTTP/1.1 404 Not Found\r\n\r\nno", true, false).unwrap().unwrap().status, 404);
    }

    #[test]
    fn urls_name_host_port_and_target() {
        let url = url("https://[fd00::1]:8443/a?b=c").unwrap();
        assert_eq!((url.secure, url.host.as_str(), url.port, url.target.as_str()), (true, "fd00::1", 8443, "/a?b=c"));
        assert_eq!(super::url("example.com").unwrap().target, "/");
    }
}
