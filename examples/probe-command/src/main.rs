//! A command that does what its arguments say, so that a test can see how the platform takes it.
//!
//! Steps are carried out one after the other; without any it greets and ends well.
//!
//! | Step | Does |
//! | --- | --- |
//! | `echo TEXT` | prints on standard output |
//! | `warn TEXT` | prints on standard error |
//! | `env [NAME]` | prints one variable, or all |
//! | `exit CODE` | ends here (the standard library tells only 0 and 1 apart) |
//! | `end CODE` | ends here, and tells the code |
//! | `crash` | panics |
//! | `sleep MS` | waits |
//! | `tick MS` | prints a numbered line every so often, for ever |
//! | `spin [MS]` | computes, for ever or for a while |
//! | `alloc MIB` | takes and touches memory, and keeps it |
//! | `recurse` | calls itself until the stack ends |
//! | `flood LINES` | prints this many long lines |
//! | `cat PATH` | prints a file |
//! | `terminal` | says whether it talks with one |
//! | `copy` | prints what it reads from standard input, to its end |
//! | `ls PATH` | lists a directory |
//! | `write PATH TEXT` | writes a file |
//! | `symlink TARGET PATH` | makes a symbolic link |
//! | `unlink PATH` | removes a file or link |
//! | `sparse PATH MIB` | makes a file of this length without content |
//! | `fill PATH MIB` | writes a file of this length |
//! | `listen PORT` | answers every TCP connection with the lines it sends, in capitals, for ever; prints its address |
//! | `serve PORT` | answers every TCP connection with an HTTP response that greets, for ever |
//! | `chat PORT` | agrees with every HTTP request to change the protocol, and goes on as `listen` does |
//! | `send ADDRESS TEXT` | connects, sends a line, prints the one that comes back |
//! | `resolve NAME` | prints the addresses of a host |

use std::env::{args, var, vars};
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use wasip2::filesystem::preopens::get_directories;

fn main() -> ExitCode {
    let mut steps = args().skip(1).peekable();
    if steps.peek().is_none() {
        println!("hello");
    }
    let mut kept = Vec::new();
    while let Some(step) = steps.next() {
        let mut next = || steps.next().unwrap_or_default();
        let done = match step.as_str() {
            "echo" => writeln!(std::io::stdout(), "{}", next()),
            "warn" => writeln!(std::io::stderr(), "{}", next()),
            "env" => {
                match next().as_str() {
                    "" => vars().for_each(|(name, value)| println!("{name}={value}")),
                    name => println!("{}", var(name).unwrap_or_default()),
                }
                Ok(())
            }
            "exit" => return ExitCode::from(next().parse::<u8>().unwrap_or(0)),
            "end" => {
                wasip2::cli::exit::exit_with_code(next().parse().unwrap_or(0));
                Ok(())
            }
            "crash" => panic!("asked to"),
            "sleep" => {
                sleep(millis(&next()));
                Ok(())
            }
            "tick" => tick(millis(&next())),
            "spin" => {
                spin(next().parse().ok().map(Duration::from_millis));
                Ok(())
            }
            "alloc" => {
                let mut taken = vec![0_u8; next().parse::<usize>().unwrap_or(1) << 20];
                taken.iter_mut().step_by(4096).for_each(|page| *page = 1);
                kept.push(std::hint::black_box(taken));
                Ok(())
            }
            "recurse" => {
                println!("{}", recurse(1));
                Ok(())
            }
            "flood" => flood(next().parse().unwrap_or(1)),
            "cat" => std::fs::read(next()).and_then(|bytes| std::io::stdout().write_all(&bytes)),
            "copy" => copy(),
            "terminal" => {
                let is = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
                writeln!(std::io::stdout(), "{} terminal", if is { "a" } else { "no" })
            }
            "ls" => list(&next()),
            "write" => std::fs::write(next(), next()),
            "symlink" => symlink(&next(), &next()),
            "unlink" => std::fs::remove_file(next()),
            "sparse" => std::fs::File::create(next()).and_then(|file| file.set_len(mib(&next()))),
            "fill" => fill(&next(), mib(&next())),
            "listen" => listen(&next(), capitals),
            "serve" => listen(&next(), http),
            "chat" => listen(&next(), chat),
            "send" => send(&next(), &next()),
            "resolve" => {
                (next().as_str(), 0).to_socket_addrs().map(|found| found.for_each(|found| println!("{}", found.ip())))
            }
            other => {
                eprintln!("there is no step {other:?}");
                return ExitCode::from(2);
            }
        };
        if let Err(error) = done {
            eprintln!("{step}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn millis(text: &str) -> Duration {
    Duration::from_millis(text.parse().unwrap_or(1000))
}

fn mib(text: &str) -> u64 {
    text.parse::<u64>().unwrap_or(1) << 20
}

fn fill(path: &str, bytes: u64) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    let block = vec![b'x'; 1 << 16];
    (0..bytes / block.len() as u64).try_for_each(|_| file.write_all(&block))
}

/// The standard library has no stable name for it.
fn symlink(target: &str, path: &str) -> std::io::Result<()> {
    let within = |name: &str| path.strip_prefix(name.trim_end_matches('/'))?.strip_prefix('/').map(str::to_owned);
    let found = get_directories().into_iter().filter_map(|(dir, name)| Some((name.len(), dir, within(&name)?)));
    let Some((_, dir, relative)) = found.max_by_key(|(length, ..)| *length) else {
        return Err(std::io::ErrorKind::NotFound.into());
    };
    dir.symlink_at(target, &relative).map_err(|error| std::io::Error::other(format!("{error:?}")))
}

fn tick(pause: Duration) -> std::io::Result<()> {
    for number in 0.. {
        println!("tick {number}");
        sleep(pause);
    }
    Ok(())
}

fn spin(time: Option<Duration>) {
    let begun = Instant::now();
    let mut number = 1_u64;
    while time.is_none_or(|time| begun.elapsed() < time) {
        for _ in 0..10_000 {
            number = std::hint::black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
}

#[expect(unconditional_recursion, reason = "that is the point")]
fn recurse(depth: u64) -> u64 {
    std::hint::black_box(recurse(std::hint::black_box(depth + 1))) + 1
}

fn flood(lines: u64) -> std::io::Result<()> {
    let line = "x".repeat(1023);
    let mut out = std::io::stdout().lock();
    (0..lines).try_for_each(|_| writeln!(out, "{line}"))
}

/// As it comes, so that an answer can be waited for.
fn copy() -> std::io::Result<()> {
    let (mut input, mut out) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut buffer = [0; 4096];
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(()),
            count => out.write_all(&buffer[..count]).and_then(|()| out.flush())?,
        }
    }
}

fn list(path: &str) -> std::io::Result<()> {
    let mut names = std::fs::read_dir(path)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<Vec<_>>>()?;
    names.sort();
    names.iter().for_each(|name| println!("{name}"));
    Ok(())
}

fn listen(port: &str, serve: impl Fn(TcpStream) -> std::io::Result<()>) -> std::io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port.parse().unwrap_or(8000)))?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, peer) = listener.accept()?;
        println!("connection from {}", peer.ip());
        // A client that goes away is no reason to end.
        if let Err(error) = serve(stream) {
            eprintln!("{peer}: {error}");
        }
    }
}

fn capitals(mut stream: TcpStream) -> std::io::Result<()> {
    let mut line = String::new();
    loop {
        // One reader each time, bounded to a line, since a stream cannot be cloned here.
        line.clear();
        let mut byte = [0];
        while !line.ends_with('\n') && line.len() < 4096 {
            if stream.read(&mut byte)? == 0 {
                return Ok(());
            }
            line.push(char::from(byte[0]));
        }
        stream.write_all(line.to_uppercase().as_bytes())?;
    }
}

fn read_head(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && head.len() < 16384 && stream.read(&mut byte)? == 1 {
        head.push(byte[0]);
    }
    Ok(())
}

fn chat(mut stream: TcpStream) -> std::io::Result<()> {
    read_head(&mut stream)?;
    stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: chat\r\n\r\n")?;
    capitals(stream)
}

fn http(mut stream: TcpStream) -> std::io::Result<()> {
    read_head(&mut stream)?;
    let body = format!("hello from {}\n", var("HOSTNAME").unwrap_or_default());
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn send(address: &str, text: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    println!("connected from {} to {}", stream.local_addr()?.ip(), stream.peer_addr()?);
    writeln!(stream, "{text}")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    print!("{line}");
    Ok(())
}
