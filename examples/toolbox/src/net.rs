//! Sockets of WASI 0.2, which wait for several things at once.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use wasip2::clocks::monotonic_clock::subscribe_duration;
use wasip2::io::poll::{Pollable, poll};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress};
use wasip2::sockets::tcp::TcpSocket;
use wasip2::sockets::tcp_create_socket::create_tcp_socket;
use wasip2::sockets::udp::{IncomingDatagramStream, OutgoingDatagram, OutgoingDatagramStream, UdpSocket};
use wasip2::sockets::udp_create_socket::create_udp_socket;

/// Bytes that are read at once.
const READ_BYTES: u64 = 64 << 10;

/// Why there is no connection, or no more of it.
#[derive(Debug, PartialEq)]
pub enum Failure {
    Refused,
    TimedOut,
    Unknown(String),
    Other(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Refused => f.write_str("connection refused"),
            Failure::TimedOut => f.write_str("timed out"),
            Failure::Unknown(name) => write!(f, "no such host: {name}"),
            Failure::Other(why) => f.write_str(why),
        }
    }
}

impl From<ErrorCode> for Failure {
    fn from(code: ErrorCode) -> Failure {
        match code {
            ErrorCode::ConnectionRefused => Failure::Refused,
            ErrorCode::Timeout => Failure::TimedOut,
            other => Failure::Other(format!("{other:?}")),
        }
    }
}

fn to_wasi(address: SocketAddr) -> IpSocketAddress {
    match address {
        SocketAddr::V4(address) => {
            let [a, b, c, d] = address.ip().octets();
            IpSocketAddress::Ipv4(Ipv4SocketAddress { port: address.port(), address: (a, b, c, d) })
        }
        SocketAddr::V6(address) => {
            let [a, b, c, d, e, f, g, h] = address.ip().segments();
            let address_of = (a, b, c, d, e, f, g, h);
            IpSocketAddress::Ipv6(Ipv6SocketAddress {
                port: address.port(),
                flow_info: 0,
                address: address_of,
                scope_id: 0,
            })
        }
    }
}

fn of_wasi(address: IpSocketAddress) -> SocketAddr {
    match address {
        IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address: (a, b, c, d) }) => {
            SocketAddr::from(([a, b, c, d], port))
        }
        IpSocketAddress::Ipv6(Ipv6SocketAddress { port, address: (a, b, c, d, e, f, g, h), .. }) => {
            SocketAddr::from(([a, b, c, d, e, f, g, h], port))
        }
    }
}

fn family(address: IpAddr) -> IpAddressFamily {
    if address.is_ipv4() { IpAddressFamily::Ipv4 } else { IpAddressFamily::Ipv6 }
}

/// The addresses of a host.
pub fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    let found = (host, port).to_socket_addrs().map_err(|_| Failure::Unknown(host.to_owned()))?;
    Ok(found.collect())
}

/// Waits for one of these, or for the deadline.
pub fn wait(pollables: &[&Pollable], deadline: Option<Instant>) {
    let timer = deadline.map(|deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        subscribe_duration(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX))
    });
    let all: Vec<&Pollable> = pollables.iter().copied().chain(&timer).collect();
    if !all.is_empty() {
        poll(&all);
    }
}

pub struct Listener(TcpSocket);

impl Listener {
    pub fn bind(port: u16) -> Result<Listener, Failure> {
        let socket = create_tcp_socket(IpAddressFamily::Ipv4)?;
        socket.start_bind(&instance_network(), to_wasi(SocketAddr::from(([0, 0, 0, 0], port))))?;
        settled(&socket.subscribe(), None, || socket.finish_bind())?;
        socket.start_listen()?;
        settled(&socket.subscribe(), None, || socket.finish_listen())?;
        Ok(Listener(socket))
    }

    pub fn ready(&self) -> Pollable {
        self.0.subscribe()
    }

    /// A connection that has come.
    pub fn accept(&self) -> Option<Stream> {
        let (socket, input, output) = self.0.accept().ok()?;
        Some(Stream { input, output, socket })
    }
}

/// Asks again until it is known.
fn settled<T>(
    ready: &Pollable,
    deadline: Option<Instant>,
    ask: impl Fn() -> Result<T, ErrorCode>,
) -> Result<T, Failure> {
    loop {
        match ask() {
            Err(ErrorCode::WouldBlock) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                return Err(Failure::TimedOut);
            }
            Err(ErrorCode::WouldBlock) => wait(&[ready], deadline),
            done => return Ok(done?),
        }
    }
}

/// A connection. The streams are the socket's children, and go before it.
pub struct Stream {
    input: InputStream,
    output: OutputStream,
    socket: TcpSocket,
}

impl Stream {
    pub fn connect(address: SocketAddr, deadline: Option<Instant>) -> Result<Stream, Failure> {
        let socket = create_tcp_socket(family(address.ip()))?;
        socket.start_connect(&instance_network(), to_wasi(address))?;
        let (input, output) = settled(&socket.subscribe(), deadline, || socket.finish_connect())?;
        Ok(Stream { input, output, socket })
    }

    pub fn peer(&self) -> String {
        self.socket.remote_address().map(|address| of_wasi(address).to_string()).unwrap_or_default()
    }

    pub fn readable(&self) -> Pollable {
        self.input.subscribe()
    }

    pub fn writable(&self) -> Pollable {
        self.output.subscribe()
    }

    /// What has come; none at the end of the connection.
    pub fn read_now(&self) -> Option<Vec<u8>> {
        self.input.read(READ_BYTES).ok()
    }

    /// Writes as much as is taken now; none when the connection has ended.
    pub fn write_now(&self, bytes: &[u8]) -> Option<usize> {
        let room = usize::try_from(self.output.check_write().ok()?).unwrap_or(usize::MAX).min(bytes.len());
        if room > 0 {
            self.output.write(&bytes[..room]).ok()?;
            self.output.flush().ok()?;
        }
        Some(room)
    }

    /// What comes next; none at the end of the connection.
    pub fn read(&self, deadline: Option<Instant>) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            match self.input.read(READ_BYTES) {
                Ok(bytes) if !bytes.is_empty() => return Ok(Some(bytes)),
                Ok(_) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => return Err(Failure::TimedOut),
                Ok(_) => wait(&[&self.readable()], deadline),
                Err(StreamError::Closed) => return Ok(None),
                Err(StreamError::LastOperationFailed(error)) => return Err(Failure::Other(error.to_debug_string())),
            }
        }
    }

    pub fn write(&self, mut bytes: &[u8], deadline: Option<Instant>) -> Result<(), Failure> {
        while !bytes.is_empty() {
            match self.write_now(bytes) {
                None => return Err(Failure::Other("connection reset by peer".to_owned())),
                Some(0) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                    return Err(Failure::TimedOut);
                }
                Some(0) => wait(&[&self.writable()], deadline),
                Some(written) => bytes = &bytes[written..],
            }
        }
        Ok(())
    }

    /// Says that nothing more is written.
    pub fn end(&self) {
        let _ = self.output.blocking_flush();
        let _ = self.socket.shutdown(wasip2::sockets::tcp::ShutdownType::Send);
    }
}

/// A socket of datagrams. The streams are its children, and go before it.
pub struct Datagrams {
    input: IncomingDatagramStream,
    output: OutgoingDatagramStream,
    _socket: UdpSocket,
}

impl Datagrams {
    /// At a port, or at one that is free.
    pub fn bind(address: SocketAddr) -> Result<Datagrams, Failure> {
        let socket = create_udp_socket(family(address.ip()))?;
        socket.start_bind(&instance_network(), to_wasi(address))?;
        settled(&socket.subscribe(), None, || socket.finish_bind())?;
        let (input, output) = socket.stream(None)?;
        Ok(Datagrams { input, output, _socket: socket })
    }

    pub fn readable(&self) -> Pollable {
        self.input.subscribe()
    }

    /// What has come, and from whom.
    pub fn receive_now(&self) -> Vec<(Vec<u8>, SocketAddr)> {
        let received = self.input.receive(16).unwrap_or_default();
        received.into_iter().map(|datagram| (datagram.data, of_wasi(datagram.remote_address))).collect()
    }

    pub fn receive(&self, deadline: Instant) -> Result<Vec<u8>, Failure> {
        loop {
            if let Some((bytes, _)) = self.receive_now().into_iter().next() {
                return Ok(bytes);
            }
            if Instant::now() >= deadline {
                return Err(Failure::TimedOut);
            }
            wait(&[&self.readable()], Some(deadline));
        }
    }

    pub fn send(&self, bytes: &[u8], to: SocketAddr) -> Result<(), Failure> {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.output.check_send()? == 0 {
            if Instant::now() >= deadline {
                return Err(Failure::TimedOut);
            }
            wait(&[&self.output.subscribe()], Some(deadline));
        }
        self.output.send(&[OutgoingDatagram { data: bytes.to_vec(), remote_address: Some(to_wasi(to)) }])?;
        Ok(())
    }
}
