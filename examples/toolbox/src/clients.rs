//! Programs that ask others: `curl`, `wget`, `nc`, `getent`, `nslookup` and `dig`. Names are looked up by whoever runs the component:
//! it has no resolver, so `dig` can tell addresses and nothing else, and speaks neither TCP nor UDP for them.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use crate::http::{self, Response, Url};
use crate::io::{Io, Output};
use crate::net::{Datagrams, Failure, Listener, Stream, resolve, wait};
use crate::tls::{Secured, client};

type Program = fn(&[String], &mut Io) -> Result<u8, String>;

const PROGRAMS: &[(&str, Program)] =
    &[("curl", curl), ("dig", dig), ("getent", getent), ("nc", nc), ("nslookup", nslookup), ("wget", wget)];

/// Redirects that a client follows.
const REDIRECTS_MAX: u32 = 10;

pub fn exists(name: &str) -> bool {
    PROGRAMS.iter().any(|(known, _)| *known == name)
}

/// Runs a program; none when there is none of this name.
pub fn run(name: &str, arguments: &[String], io: &mut Io) -> Option<u8> {
    let (_, program) = PROGRAMS.iter().find(|(known, _)| *known == name)?;
    Some(program(arguments, io).unwrap_or_else(|wrong| {
        io.errors.line(&format!("{name}: {wrong}"));
        1
    }))
}

/// A request of a client.
pub struct Asked<'a> {
    pub method: &'a str,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// For all of it.
    pub timeout: Option<Duration>,
    /// Until there is a connection.
    pub connect_timeout: Option<Duration>,
    /// Whom it believes, and who it is; everyone and nobody, if it is not said.
    pub tls: Option<Arc<ClientConfig>>,
}

impl Default for Asked<'_> {
    fn default() -> Self {
        Asked { method: "GET", headers: Vec::new(), body: Vec::new(), timeout: None, connect_timeout: None, tls: None }
    }
}

/// Asks once; redirects are answers.
pub fn ask(url: &Url, asked: &Asked<'_>) -> Result<Response, Failure> {
    let begun = Instant::now();
    let deadline = asked.timeout.map(|timeout| begun + timeout);
    let connected_by = asked.connect_timeout.map(|timeout| begun + timeout).into_iter().chain(deadline).min();
    let mut failure = Failure::Unknown(url.host.clone());
    let mut stream = None;
    for address in resolve(&url.host, url.port)? {
        match Stream::connect(address, connected_by) {
            Ok(connected) => {
                stream = Some(connected);
                break;
            }
            Err(error) => failure = error,
        }
    }
    let stream = stream.ok_or(failure)?;
    let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.clone() };
    let mut head =
        format!("{} {} HTTP/1.1\r\nhost: {host}:{}\r\nconnection: close\r\n", asked.method, url.target, url.port);
    if !asked.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("user-agent")) {
        head.push_str("user-agent: toolbox\r\naccept: */*\r\n");
    }
    for (name, value) in &asked.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !asked.body.is_empty() || asked.method == "POST" {
        head.push_str(&format!("content-length: {}\r\n", asked.body.len()));
    }
    let mut bytes = (head + "\r\n").into_bytes();
    bytes.extend_from_slice(&asked.body);
    let mut secured = match url.secure {
        true => {
            let config = asked.tls.clone().map_or_else(client, Ok).map_err(Failure::Other)?;
            Some(Secured::new(&stream, &url.host, config, deadline)?)
        }
        false => None,
    };
    match &mut secured {
        Some(secured) => secured.write(&bytes)?,
        None => stream.write(&bytes, deadline)?,
    }
    let mut arrived = Vec::new();
    loop {
        let more = match &mut secured {
            Some(secured) => secured.read()?,
            None => stream.read(deadline)?,
        };
        let is_end = more.is_none();
        arrived.extend(more.unwrap_or_default());
        match http::response(&arrived, is_end, asked.method == "HEAD").map_err(Failure::Other)? {
            Some(response) => return Ok(response),
            None if is_end => return Err(Failure::Other("empty reply from server".to_owned())),
            None => {}
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("bad number {text:?}"))?;
    Duration::try_from_secs_f64(number).map_err(|_| format!("bad number {text:?}"))
}

fn written(body: &[u8], file: Option<&Path>, io: &Io) -> Result<(), String> {
    let output = match file {
        Some(path) if path != Path::new("-") => {
            Output::file(path, false).map_err(|error| format!("{}: {error}", path.display()))?
        }
        _ => io.output.clone(),
    };
    if output.write(body) { Ok(()) } else { Err("cannot write".to_owned()) }
}

fn curl(arguments: &[String], io: &mut Io) -> Result<u8, String> {
    let (mut asked, mut urls, mut file) = (Asked::default(), Vec::<String>::new(), None::<PathBuf>);
    let (mut follows, mut fails, mut method, mut shows, mut format) =
        (false, false, None::<String>, true, None::<String>);
    let mut is_head = false;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = |given: &str| match given.is_empty() {
            true => rest.next().cloned().ok_or(format!("option {argument}: requires parameter")),
            false => Ok(given.to_owned()),
        };
        if let Some(long) = argument.strip_prefix("--") {
            match long {
                "silent" => shows = false,
                "show-error" | "globoff" | "insecure" | "http1.1" | "verbose" | "ipv4" | "no-buffer" => {}
                "location" => follows = true,
                "fail" => fails = true,
                "head" => is_head = true,
                "max-time" => asked.timeout = Some(seconds(&value("")?)?),
                "connect-timeout" => asked.connect_timeout = Some(seconds(&value("")?)?),
                "output" => file = Some(value("")?.into()),
                "request" => method = Some(value("")?),
                "data" | "data-raw" | "data-binary" => asked.body = value("")?.into_bytes(),
                "header" => asked
                    .headers
                    .extend(value("")?.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()))),
                "write-out" => format = Some(value("")?),
                other => return Err(format!("option --{other}: is unknown")),
            }
            continue;
        }
        let Some(letters) = argument.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            urls.push(argument.clone());
            continue;
        };
        let mut letters = letters.chars();
        while let Some(letter) = letters.next() {
            let given = letters.as_str().to_owned();
            let takes = match letter {
                's' => {
                    shows = false;
                    false
                }
                'S' | 'g' | 'q' | 'k' | 'v' | '4' | 'N' | 'i' => false,
                'L' => {
                    follows = true;
                    false
                }
                'f' => {
                    fails = true;
                    false
                }
                'I' => {
                    is_head = true;
                    false
                }
                'm' => {
                    asked.timeout = Some(seconds(&value(&given)?)?);
                    true
                }
                'o' => {
                    file = Some(value(&given)?.into());
                    true
                }
                'X' => {
                    method = Some(value(&given)?);
                    true
                }
                'd' => {
                    asked.body = value(&given)?.into_bytes();
                    true
                }
                'H' => {
                    asked.headers.extend(
                        value(&given)?.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned())),
                    );
                    true
                }
                'w' => {
                    format = Some(value(&given)?);
                    true
                }
                other => return Err(format!("option -{other}: is unknown")),
            };
            if takes {
                break;
            }
        }
    }
    let method = method.unwrap_or_else(|| {
        if is_head {
            "HEAD"
        } else if asked.body.is_empty() {
            "GET"
        } else {
            "POST"
        }
        .to_owned()
    });
    asked.method = &method;
    let mut url = http::url(urls.first().ok_or("no URL specified")?)?;
    for _ in 0..REDIRECTS_MAX {
        let response = match ask(&url, &asked) {
            Ok(response) => response,
            Err(failure) => {
                io.errors.line(&format!("curl: {failure}"));
                return Ok(match failure {
                    Failure::Unknown(_) => 6,
                    Failure::Refused => 7,
                    Failure::TimedOut => 28,
                    Failure::Other(_) => 56,
                });
            }
        };
        let location = response
            .headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("location"))
            .map(|(_, value)| value.clone());
        if let (true, 301..=308, Some(location)) = (follows, response.status, location) {
            url = match location.starts_with('/') {
                true => Url { target: location, ..url },
                false => http::url(&location)?,
            };
            continue;
        }
        if fails && response.status >= 400 {
            if shows {
                io.errors.line(&format!("curl: the server answered {}", response.status));
            }
            return Ok(22);
        }
        written(&response.body, file.as_deref(), io)?;
        if let Some(format) = format {
            let text = format.replace("%{http_code}", &response.status.to_string()).replace("\\n", "\n");
            io.output.write(text.as_bytes());
        }
        return Ok(0);
    }
    io.errors.line("curl: too many redirects");
    Ok(47)
}

fn wget(arguments: &[String], io: &mut Io) -> Result<u8, String> {
    let (mut asked, mut file, mut given) = (Asked::default(), None::<PathBuf>, None);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut next = || rest.next().cloned().ok_or(format!("option requires an argument: {argument}"));
        match argument.as_str() {
            "-q" | "-S" | "--no-check-certificate" | "-nv" => {}
            "-O" => file = Some(next()?.into()),
            "-T" => asked.timeout = Some(seconds(&next()?)?),
            "-t" => drop(next()?),
            other => match (
                other.split_once('='),
                other.strip_prefix("-O"),
                other.strip_prefix("-qO"),
                other.strip_prefix("-T"),
            ) {
                (Some(("--post-data", data)), ..) => asked.body = data.as_bytes().to_vec(),
                (Some(("--timeout", time)), ..) | (_, _, _, Some(time)) => asked.timeout = Some(seconds(time)?),
                (_, Some(path), ..) => file = Some(path.into()),
                (_, _, Some(""), _) => file = Some(next()?.into()),
                (_, _, Some(path), _) => file = Some(path.into()),
                _ if other.starts_with('-') => return Err(format!("unrecognized option: {other}")),
                _ => given = Some(other.to_owned()),
            },
        }
    }
    let url = http::url(&given.ok_or("missing URL")?)?;
    if !asked.body.is_empty() {
        asked.method = "POST";
    }
    let response = ask(&url, &asked).map_err(|failure| failure.to_string())?;
    if response.status >= 400 {
        return Err(format!("server returned error: HTTP/1.1 {}", response.status));
    }
    let name = url
        .target
        .split('?')
        .next()
        .and_then(|path| path.rsplit('/').next())
        .filter(|name| !name.is_empty())
        .unwrap_or("index.html");
    written(&response.body, Some(file.as_deref().unwrap_or(Path::new(name))), io)?;
    Ok(0)
}

fn nc(arguments: &[String], io: &mut Io) -> Result<u8, String> {
    let (mut looks, mut is_udp, mut says, mut listens) = (false, false, false, false);
    let (mut timeout, mut own_port, mut names) = (None, None, Vec::new());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(letters) = argument.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            names.push(argument.as_str());
            continue;
        };
        let mut letters = letters.chars();
        while let Some(letter) = letters.next() {
            match letter {
                'z' => looks = true,
                'u' => is_udp = true,
                'v' => says = true,
                'l' => listens = true,
                't' | 'n' | '4' | 'N' => {}
                'w' | 'p' => {
                    let given = letters.as_str().to_owned();
                    let value = if given.is_empty() {
                        rest.next().cloned().ok_or(format!("option requires an argument -- {letter}"))?
                    } else {
                        given
                    };
                    match letter {
                        'w' => timeout = Some(seconds(&value)?),
                        _ => own_port = Some(port(&value)?),
                    }
                    break;
                }
                other => return Err(format!("invalid option -- '{other}'")),
            }
        }
    }
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    match (listens, own_port, names.is_empty() && !is_udp && !looks) {
        (false, None, _) => {}
        (true, Some(port), true) => return listen(port, deadline, io),
        _ => return Err("one that listens is \"nc -l -p PORT\"".to_owned()),
    }
    let [host, number] = names.as_slice() else { return Err("a host and a port are needed".to_owned()) };
    let port = port(number)?;
    let addresses = match resolve(host, port) {
        Ok(addresses) => addresses,
        Err(failure) => return Err(format!("getaddrinfo for host \"{host}\" port {port}: {failure}")),
    };
    let to = *addresses.first().ok_or("no address")?;
    let input = if looks { Vec::new() } else { io.input.all() };
    if is_udp {
        let datagrams = Datagrams::bind(SocketAddr::from(([0, 0, 0, 0], 0))).map_err(|failure| failure.to_string())?;
        datagrams.send(&input, to).map_err(|failure| failure.to_string())?;
        let wait = timeout.unwrap_or(Duration::from_secs(5));
        if let Ok(bytes) = datagrams.receive(Instant::now() + wait) {
            io.output.write(&bytes);
        }
        return Ok(0);
    }
    let stream = match Stream::connect(to, deadline) {
        Ok(stream) => stream,
        Err(failure) => {
            io.errors.line(&format!("nc: connect to {host} ({}) port {port} (tcp) failed: {failure}", to.ip()));
            return Ok(1);
        }
    };
    if says {
        io.errors.line(&format!("Connection to {host} ({}) {port} port [tcp/*] succeeded!", to.ip()));
    }
    if looks {
        return Ok(0);
    }
    stream.write(&input, deadline).map_err(|failure| failure.to_string())?;
    while let Ok(Some(bytes)) = stream.read(deadline) {
        io.output.write(&bytes);
    }
    Ok(0)
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("bad port '{text}'"))
}

/// Says the input to the first who connects, and prints what he says.
fn listen(port: u16, deadline: Option<Instant>, io: &mut Io) -> Result<u8, String> {
    let listener = Listener::bind(port).map_err(|failure| failure.to_string())?;
    let stream = loop {
        match listener.accept() {
            Some(stream) => break stream,
            None if deadline.is_some_and(|deadline| Instant::now() >= deadline) => return Ok(1),
            None => wait(&[&listener.ready()], deadline),
        }
    };
    stream.write(&io.input.all(), deadline).map_err(|failure| failure.to_string())?;
    stream.end();
    while let Ok(Some(bytes)) = stream.read(deadline) {
        io.output.write(&bytes);
    }
    Ok(0)
}

fn getent(arguments: &[String], io: &mut Io) -> Result<u8, String> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let name = match words.as_slice() {
        ["hosts" | "ahosts" | "ahostsv4", name] => *name,
        _ => return Err("only \"getent hosts NAME\" is supported".to_owned()),
    };
    let Ok(addresses) = resolve(name, 0) else { return Ok(2) };
    addresses.iter().for_each(|address| io.output.line(&format!("{:<15} {name}", address.ip())));
    Ok(if addresses.is_empty() { 2 } else { 0 })
}

fn nslookup(arguments: &[String], io: &mut Io) -> Result<u8, String> {
    let name = arguments.iter().find(|argument| !argument.starts_with('-')).ok_or("a name is needed")?;
    match resolve(name, 0) {
        Ok(addresses) => {
            for address in addresses {
                io.output.line(&format!("Name:\t{name}\nAddress: {}", address.ip()));
            }
            Ok(0)
        }
        Err(_) => {
            io.output.line(&format!("** server can't find {name}: NXDOMAIN"));
            Ok(1)
        }
    }
}

fn dig(arguments: &[String], io: &mut Io) -> Result<u8, String> {
    let (mut name, mut kind, mut short) = (None, "A", false);
    for argument in arguments {
        match argument.as_str() {
            "+short" => short = true,
            "A" | "AAAA" => kind = argument,
            "SRV" | "CNAME" | "PTR" | "TXT" | "NS" | "SOA" | "-x" => {
                return Err(format!("a component looks up addresses only, not {argument}"));
            }
            server if server.starts_with('@') => {
                return Err("a component cannot choose who looks up its names".to_owned());
            }
            option if option.starts_with(['+', '-']) => {}
            other => name = Some(other.to_owned()),
        }
    }
    let name = name.ok_or("a name is needed")?;
    let fits = |ip: &IpAddr| ip.is_ipv4() == (kind == "A");
    for ip in resolve(&name, 0).unwrap_or_default().iter().map(SocketAddr::ip).filter(fits) {
        io.output.line(&if short {
            ip.to_string()
        } else {
            format!("{}.\t30\tIN\t{kind}\t{ip}", name.trim_end_matches('.'))
        });
    }
    Ok(0)
}
