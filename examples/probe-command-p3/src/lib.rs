//! A command of WASI 0.3 that prints its arguments, then uses its network: `serve` listens on a port and greets who
//! connects, `connect` reaches a port of a host by name, `files` writes, reads and lists in a directory, `copy` prints what it
//! reads from standard input. `keep` and `keep-listening` let go of a socket and keep its stream, `open` opens a file, `stats` asks
//! for one that is not there so many times at once. Fails when any of it fails, or when told to `fail`.

use wasip3::cli::{environment, stdin, stdout};
use wasip3::clocks::monotonic_clock;
use wasip3::filesystem::preopens::get_directories;
use wasip3::filesystem::types::{Descriptor, DescriptorFlags, OpenFlags, PathFlags};
use wasip3::sockets::ip_name_lookup::resolve_addresses;
use wasip3::sockets::types::{IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, TcpSocket};
use wasip3::wit_stream;

struct Probe;

wasip3::cli::command::export!(Probe);

impl wasip3::exports::cli::run::Guest for Probe {
    async fn run() -> Result<(), ()> {
        let arguments = environment::get_arguments();
        print(format!("{}\n", arguments.join(" "))).await;
        let done = match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[1..] {
            ["fail"] => Err("as told".to_owned()),
            ["serve", port] => serve(number(port)).await,
            ["connect", host, port] => connect(host, number(port)).await,
            ["files", dir] => files(dir).await,
            ["copy"] => copy().await,
            ["keep", host, port] => keep(host, number(port)).await,
            ["keep-listening", port] => keep_listening(number(port)).await,
            ["open", dir, name] => open(dir, name).await,
            ["stats", dir, count] => stats(dir, number(count)).await,
            _ => Ok(()),
        };
        if let Err(error) = &done {
            print(format!("{error}\n")).await;
        }
        done.map_err(drop)
    }
}

fn number(text: &str) -> u16 {
    text.parse().unwrap_or(8000)
}

async fn serve(port: u16) -> Result<(), String> {
    let socket = TcpSocket::create(IpAddressFamily::Ipv4).map_err(said)?;
    socket.bind(at((0, 0, 0, 0), port)).map_err(said)?;
    let mut connections = socket.listen().map_err(said)?;
    print(format!("listening on {}\n", show(socket.get_local_address().map_err(said)?))).await;
    while let Some(connection) = connections.next().await {
        let peer = connection.get_remote_address().map_err(said)?;
        let (mut sender, receiver) = wit_stream::new();
        let sent = connection.send(receiver);
        sender.write_all(format!("hello {}\n", show(peer)).into_bytes()).await;
        drop(sender);
        let _ = sent.await;
    }
    Ok(())
}

async fn connect(host: &str, port: u16) -> Result<(), String> {
    let socket = connected(host, port).await?;
    print(format!("connected to {}\n", show(socket.get_remote_address().map_err(said)?))).await;
    let (received, _ended) = socket.receive();
    let text = received.collect().await;
    print(String::from_utf8_lossy(&text).into_owned()).await;
    Ok(())
}

async fn connected(host: &str, port: u16) -> Result<TcpSocket, String> {
    let addresses = resolve_addresses(host.to_owned()).await.map_err(said)?;
    let Some(IpAddress::Ipv4(address)) = addresses.into_iter().next() else {
        return Err("no IPv4 address".to_owned());
    };
    let socket = TcpSocket::create(IpAddressFamily::Ipv4).map_err(said)?;
    socket.connect(at(address, port)).await.map_err(said)?;
    Ok(socket)
}

async fn keep(host: &str, port: u16) -> Result<(), String> {
    let socket = connected(host, port).await?;
    let received = socket.receive();
    drop(socket);
    rest("kept").await;
    drop(received);
    Ok(())
}

async fn keep_listening(port: u16) -> Result<(), String> {
    let socket = TcpSocket::create(IpAddressFamily::Ipv4).map_err(said)?;
    socket.bind(at((0, 0, 0, 0), port)).map_err(said)?;
    let connections = socket.listen().map_err(said)?;
    drop(socket);
    rest("kept").await;
    drop(connections);
    Ok(())
}

/// Says so, after enough calls that the host looks what there is, and waits.
async fn rest(said: &str) {
    (0..100).for_each(|_| drop(environment::get_arguments()));
    print(format!("{said}\n")).await;
    monotonic_clock::wait_for(3_600_000_000_000).await;
}

async fn open(dir: &str, name: &str) -> Result<(), String> {
    let dir = directory(dir)?;
    let opened = dir.open_at(PathFlags::empty(), name.to_owned(), OpenFlags::empty(), DescriptorFlags::READ);
    opened.await.map(drop).map_err(said)
}

/// Of a name as long as may be.
async fn stats(dir: &str, count: u16) -> Result<(), String> {
    let (dir, path) = (directory(dir)?, "none/".repeat(800));
    let asked = futures::future::join_all((0..count).map(|_| dir.stat_at(PathFlags::empty(), path.clone())));
    let found = asked.await.into_iter().filter(Result::is_ok).count();
    print(format!("{found} of {count}\n")).await;
    Ok(())
}

fn directory(dir: &str) -> Result<Descriptor, String> {
    let found = get_directories().into_iter().find(|(_, name)| name == dir);
    found.map(|(dir, _)| dir).ok_or_else(|| "there is no such directory".to_owned())
}

async fn files(dir: &str) -> Result<(), String> {
    let dir = directory(dir)?;
    // More than the host has threads for files. Nobody reads them.
    let unread: Vec<_> = (0..100).map(|_| dir.read_directory()).collect();
    let flags = DescriptorFlags::READ | DescriptorFlags::WRITE;
    let file = dir.open_at(PathFlags::empty(), "made".to_owned(), OpenFlags::CREATE, flags).await.map_err(said)?;
    for (at, bytes) in [(Some(0), 100_000), (None, 10)] {
        let (mut sender, receiver) = wit_stream::new();
        let written = match at {
            Some(offset) => file.write_via_stream(receiver, offset),
            None => file.append_via_stream(receiver),
        };
        let write = async {
            sender.write_all(vec![b'x'; bytes]).await;
            drop(sender);
        };
        futures::join!(written.into_future(), write).0.map_err(|error| format!("write: {error:?}"))?;
    }
    let (read, read_ended) = file.read_via_stream(0);
    let bytes = read.collect().await;
    read_ended.await.map_err(|error| format!("read: {error:?}"))?;
    let (entries, entries_ended) = dir.read_directory();
    let entries = entries.collect().await;
    entries_ended.await.map_err(|error| format!("list: {error:?}"))?;
    print(format!("{} bytes, {} entries\n", bytes.len(), entries.len())).await;
    drop(unread);
    Ok(())
}

async fn copy() -> Result<(), String> {
    let (read, ended) = stdin::read_via_stream();
    let printed = stdout::write_via_stream(read);
    printed.await.map_err(said)?;
    ended.await.map_err(said)
}

async fn print(text: String) {
    let (mut sender, receiver) = wit_stream::new();
    let write = async {
        sender.write_all(text.into_bytes()).await;
        drop(sender);
    };
    let _ = futures::join!(stdout::write_via_stream(receiver).into_future(), write);
}

fn said(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

fn at(address: (u8, u8, u8, u8), port: u16) -> IpSocketAddress {
    IpSocketAddress::Ipv4(Ipv4SocketAddress { address, port })
}

fn show(address: IpSocketAddress) -> String {
    match address {
        IpSocketAddress::Ipv4(Ipv4SocketAddress { address: (a, b, c, d), .. }) => format!("{a}.{b}.{c}.{d}"),
        IpSocketAddress::Ipv6(_) => "an IPv6 address".to_owned(),
    }
}
