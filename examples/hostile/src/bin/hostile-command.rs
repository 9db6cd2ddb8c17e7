//! A command that does harm, as its arguments say, so that a test can see that its neighbours do not feel it.
//!
//! | Step | Does |
//! | --- | --- |
//! | `spin` | computes for ever |
//! | `random` | asks for random bytes, for ever |
//! | `memory MIB` | takes so much memory and keeps it |
//! | `recurse` | calls itself until the stack ends |
//! | `log LINES` | prints this many lines of 1 KiB; 0 is for ever |
//! | `disk PATH MIB` | writes so much into a file |
//! | `files DIR N` | opens N files and keeps them; prints how many it got |
//! | `streams DIR N` | opens N files, keeps a stream of each and lets go of the rest; prints how many it got |
//! | `idle-files DIR N` | makes N files, writes to each and keeps them; prints how long the first is |
//! | `list DIR` | prints how many entries a directory has |
//! | `sockets N` | makes N sockets and keeps them; prints how many it got |
//! | `look-up NAME N` | looks up a name N times |
//! | `link TARGET PATH` | makes a symbolic link; prints what came of it |
//! | `read PATH` | prints a file, or why not |
//! | `listen ADDRESS` | listens there; prints what came of it |
//! | `connect ADDRESS` | connects; prints what came of it |
//! | `sleep SECONDS` | waits |
//! | `loop` | begins again with the first step |

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::Duration;

fn main() {
    let steps: Vec<String> = std::env::args().skip(1).collect();
    let (mut memory, mut files, mut sockets, mut streams) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut at = 0;
    while at < steps.len() {
        let step = &steps[at];
        let argument = |number: usize| steps.get(at + number).map_or("", String::as_str);
        let count = |number: usize| argument(number).parse::<usize>().unwrap_or(0);
        let taken = match step.as_str() {
            "spin" => loop {
                std::hint::black_box(0);
            },
            "random" => loop {
                std::hint::black_box(wasip2::random::random::get_random_bytes(64 << 10));
            },
            "memory" => {
                memory.push(std::hint::black_box(vec![1_u8; count(1) << 20]));
                1
            }
            "recurse" => {
                println!("{}", recurse(1));
                0
            }
            "log" => {
                let line = "x".repeat(1023);
                let mut left = count(1);
                loop {
                    println!("{line}");
                    left = left.wrapping_sub(1);
                    if left == 0 {
                        break;
                    }
                }
                1
            }
            "disk" => {
                let written = File::create(argument(1))
                    .and_then(|mut file| (0..count(2)).try_for_each(|_| file.write_all(&vec![b'x'; 1 << 20])));
                println!("{written:?}");
                2
            }
            "files" => {
                for number in 0..count(2) {
                    let path = format!("{}/{}", argument(1), number % 10);
                    match OpenOptions::new().create(true).append(true).open(path) {
                        Ok(file) => files.push(file),
                        Err(_) => break,
                    }
                }
                println!("{}", files.len());
                2
            }
            "streams" => {
                use wasip2::filesystem::preopens::get_directories;
                use wasip2::filesystem::types::{DescriptorFlags, OpenFlags, PathFlags};
                let found = get_directories().into_iter().find(|(_, name)| name == argument(1));
                let (dir, _) = found.expect("the directory is mounted");
                for number in 0..count(2) {
                    // Letting go of what was given anyway makes no room.
                    drop(get_directories());
                    let name = format!("{}", number % 10);
                    let flags = DescriptorFlags::READ | DescriptorFlags::WRITE;
                    let file = dir.open_at(PathFlags::empty(), &name, OpenFlags::CREATE, flags);
                    match file.and_then(|file| file.append_via_stream()) {
                        Ok(stream) => streams.push(stream),
                        Err(_) => break,
                    }
                }
                println!("{}", streams.len());
                2
            }
            "idle-files" => {
                let path = |number| format!("{}/idle-{number}", argument(1));
                let mut idle: Vec<File> = (0..count(2)).map(|number| File::create(path(number)).unwrap()).collect();
                idle.iter_mut().for_each(|file| file.write_all(b"x").unwrap());
                println!("{}", std::fs::metadata(path(0)).unwrap().len());
                files.extend(idle);
                2
            }
            "list" => {
                let entries: Result<Vec<_>, _> = std::fs::read_dir(argument(1)).and_then(|all| all.collect());
                println!("{}", entries.unwrap().len());
                1
            }
            "sockets" => {
                for _ in 0..count(1) {
                    match UdpSocket::bind("0.0.0.0:0") {
                        Ok(socket) => sockets.push(socket),
                        Err(_) => break,
                    }
                }
                println!("{}", sockets.len());
                1
            }
            "look-up" => {
                for _ in 0..count(2) {
                    let _ = (argument(1), 80).to_socket_addrs();
                }
                2
            }
            "link" => {
                #[allow(deprecated)]
                let linked = std::fs::soft_link(argument(1), argument(2));
                println!("{linked:?}");
                2
            }
            "read" => {
                match std::fs::read(argument(1)) {
                    Ok(bytes) => println!("{}", String::from_utf8_lossy(&bytes)),
                    Err(error) => println!("refused: {error}"),
                }
                1
            }
            "listen" => {
                println!("{:?}", TcpListener::bind(argument(1)).and_then(|listener| listener.local_addr()));
                1
            }
            "connect" => {
                println!("{:?}", TcpStream::connect(argument(1)).map(|_| ()));
                1
            }
            "sleep" => {
                std::thread::sleep(Duration::from_secs(count(1) as u64));
                1
            }
            "loop" => {
                at = 0;
                continue;
            }
            other => panic!("no such harm: {other}"),
        };
        at += 1 + taken;
    }
}

#[allow(unconditional_recursion, clippy::only_used_in_recursion)]
fn recurse(depth: u64) -> u64 {
    std::hint::black_box(recurse(depth + 1)) + depth
}
