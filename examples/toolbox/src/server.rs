//! Servers of one component: any number of ports, served by turns, since a component has one thread.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection};

use crate::grpc;
use crate::http::{self, Request, Response};
use crate::net::{Datagrams, Failure, Listener, Stream, wait};

/// Connections at a time; those beyond wait to be accepted.
const CONNECTIONS_MAX: usize = 500;
/// Bytes of requests that may wait on one connection.
const WAITING_BYTES_MAX: usize = 20 << 20;
/// How long a connection may stand still.
const IDLE: Duration = Duration::from_secs(120);

/// What is done with a request.
pub enum Answer {
    Now(Response),
    After(Duration, Response),
    Never,
    /// The program ends, after a while.
    Exit(Duration, u8),
}

impl From<Response> for Answer {
    fn from(response: Response) -> Answer {
        Answer::Now(response)
    }
}

type Handler = Box<dyn FnMut(&Request) -> Answer>;
/// Whether a service is served; none when it is not known.
type Health = Box<dyn FnMut(&str) -> Option<bool>>;
type Replier = Box<dyn FnMut(&[u8], SocketAddr) -> Option<Vec<u8>>>;

enum Service {
    Http(Handler, Option<Arc<ServerConfig>>),
    /// Tells of a service's health by gRPC.
    Health(Health),
    /// Says this to everyone who connects.
    Says(Vec<u8>),
    /// Says what it hears.
    Echo,
}

#[derive(Default)]
pub struct Server {
    listeners: Vec<(Listener, Service)>,
    datagrams: Vec<(Datagrams, Replier)>,
    connections: Vec<Connection>,
    exit: Option<(Instant, u8)>,
}

struct Connection {
    stream: Stream,
    tls: Option<ServerConnection>,
    service: usize,
    peer: String,
    arrived: Vec<u8>,
    calls: grpc::Calls,
    leaving: VecDeque<u8>,
    /// An answer that is due later.
    later: Option<(Instant, Vec<u8>, bool)>,
    /// A request that is never answered.
    held: bool,
    ends: bool,
    since: Instant,
}

impl Server {
    pub fn http(&mut self, port: u16, handler: impl FnMut(&Request) -> Answer + 'static) -> Result<(), Failure> {
        self.listeners.push((Listener::bind(port)?, Service::Http(Box::new(handler), None)));
        Ok(())
    }

    pub fn https(
        &mut self,
        port: u16,
        config: Arc<ServerConfig>,
        handler: impl FnMut(&Request) -> Answer + 'static,
    ) -> Result<(), Failure> {
        self.listeners.push((Listener::bind(port)?, Service::Http(Box::new(handler), Some(config))));
        Ok(())
    }

    pub fn health(&mut self, port: u16, health: impl FnMut(&str) -> Option<bool> + 'static) -> Result<(), Failure> {
        self.listeners.push((Listener::bind(port)?, Service::Health(Box::new(health))));
        Ok(())
    }

    pub fn says(&mut self, port: u16, bytes: &[u8]) -> Result<(), Failure> {
        self.listeners.push((Listener::bind(port)?, Service::Says(bytes.to_vec())));
        Ok(())
    }

    pub fn echo(&mut self, port: u16) -> Result<(), Failure> {
        self.listeners.push((Listener::bind(port)?, Service::Echo));
        Ok(())
    }

    pub fn udp(
        &mut self,
        port: u16,
        replier: impl FnMut(&[u8], SocketAddr) -> Option<Vec<u8>> + 'static,
    ) -> Result<(), Failure> {
        let datagrams = Datagrams::bind(SocketAddr::from(([0, 0, 0, 0], port)))?;
        self.datagrams.push((datagrams, Box::new(replier)));
        Ok(())
    }

    /// Serves until a request ends it.
    pub fn run(mut self) -> u8 {
        loop {
            self.turn();
            if let Some((_, status)) = self.exit.filter(|(at, _)| *at <= Instant::now()) {
                return status;
            }
            self.rest();
        }
    }

    /// Waits until there is something to do.
    fn rest(&self) {
        let mut pollables = Vec::new();
        if self.connections.len() < CONNECTIONS_MAX {
            pollables.extend(self.listeners.iter().map(|(listener, _)| listener.ready()));
        }
        pollables.extend(self.datagrams.iter().map(|(datagrams, _)| datagrams.readable()));
        let mut deadline = self.exit.map(|(at, _)| at);
        for connection in &self.connections {
            pollables.push(connection.stream.readable());
            if !connection.leaving.is_empty() {
                pollables.push(connection.stream.writable());
            }
            let due = connection.later.as_ref().map_or(connection.since + IDLE, |(at, ..)| *at);
            deadline = Some(deadline.map_or(due, |deadline| deadline.min(due)));
        }
        wait(&pollables.iter().collect::<Vec<_>>(), deadline);
    }

    fn turn(&mut self) {
        for (datagrams, replier) in &mut self.datagrams {
            for (bytes, from) in datagrams.receive_now() {
                if let Some(reply) = replier(&bytes, from) {
                    // Who does not hear it asks again.
                    let _ = datagrams.send(&reply, from);
                }
            }
        }
        for service in 0..self.listeners.len() {
            while self.connections.len() < CONNECTIONS_MAX
                && let Some(stream) = self.listeners[service].0.accept()
            {
                let mut connection = Connection::new(stream, service);
                match &self.listeners[service].1 {
                    Service::Http(_, config) => match config.clone().map(ServerConnection::new).transpose() {
                        Ok(tls) => connection.tls = tls,
                        Err(_) => continue,
                    },
                    Service::Health(_) | Service::Echo => {}
                    Service::Says(bytes) => {
                        connection.leaving.extend(bytes);
                        connection.ends = true;
                    }
                }
                self.connections.push(connection);
            }
        }
        let (listeners, exit) = (&mut self.listeners, &mut self.exit);
        self.connections.retain_mut(|connection| connection.advance(&mut listeners[connection.service].1, exit));
    }
}

impl Connection {
    fn new(stream: Stream, service: usize) -> Connection {
        let peer = stream.peer();
        let (arrived, leaving) = (Vec::new(), VecDeque::new());
        Connection {
            stream,
            tls: None,
            service,
            peer,
            arrived,
            calls: grpc::Calls::default(),
            leaving,
            later: None,
            held: false,
            ends: false,
            since: Instant::now(),
        }
    }

    /// Goes on as far as it can; whether it goes on at all.
    fn advance(&mut self, service: &mut Service, exit: &mut Option<(Instant, u8)>) -> bool {
        let now = Instant::now();
        if self.read().is_none() && self.leaving.is_empty() {
            return false;
        }
        if let Some((_, bytes, ends)) = self.later.take_if(|(at, ..)| *at <= now) {
            self.ends |= ends;
            self.send(&bytes);
        }
        match service {
            Service::Http(handler, _) => self.answer(handler, exit, now),
            Service::Health(health) => match self.calls.advance(&mut self.arrived, health) {
                Some(bytes) => self.send(&bytes),
                None => self.ends = true,
            },
            Service::Says(_) => {}
            Service::Echo => {
                let heard = std::mem::take(&mut self.arrived);
                self.send(&heard);
            }
        }
        if self.write().is_none() || (self.ends && self.leaving.is_empty() && self.later.is_none()) {
            self.stream.end();
            return false;
        }
        now < self.since + IDLE || self.later.is_some()
    }

    fn answer(&mut self, handler: &mut Handler, exit: &mut Option<(Instant, u8)>, now: Instant) {
        while self.later.is_none() && !self.held && !self.ends {
            let mut request = match http::request(&mut self.arrived) {
                Ok(Some(request)) => request,
                Ok(None) => return,
                Err(_) => {
                    // As Go's servers say it.
                    self.send(b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n\r\n400 Bad Request");
                    self.ends = true;
                    return;
                }
            };
            request.peer.clone_from(&self.peer);
            let shown = self.tls.as_ref().and_then(|tls| tls.peer_certificates());
            request.certificate = shown.and_then(|shown| Some(shown.first()?.to_vec()));
            match handler(&request) {
                Answer::Now(response) => {
                    self.ends |= !request.stays;
                    self.send(&response.encoded(&request));
                }
                Answer::After(delay, response) => {
                    self.later = Some((now + delay, response.encoded(&request), !request.stays))
                }
                Answer::Never => self.held = true,
                Answer::Exit(delay, status) => *exit = Some((now + delay, status)),
            }
        }
    }

    /// Takes what has come; none at the end.
    fn read(&mut self) -> Option<()> {
        if self.arrived.len() > WAITING_BYTES_MAX {
            return None;
        }
        let bytes = self.stream.read_now()?;
        if bytes.is_empty() {
            return Some(());
        }
        self.since = Instant::now();
        let Some(tls) = &mut self.tls else {
            self.arrived.extend_from_slice(&bytes);
            return Some(());
        };
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            tls.read_tls(&mut rest).ok()?;
            let state = tls.process_new_packets();
            let failed = state.is_err();
            if let Ok(state) = state {
                let mut plain = vec![0; state.plaintext_bytes_to_read()];
                std::io::Read::read_exact(&mut tls.reader(), &mut plain).ok()?;
                self.arrived.append(&mut plain);
            }
            while tls.wants_write() {
                tls.write_tls(&mut self.leaving).ok()?;
            }
            if failed {
                // The alert that says why goes out.
                self.ends = true;
                return Some(());
            }
        }
        Some(())
    }

    fn send(&mut self, bytes: &[u8]) {
        let Some(tls) = &mut self.tls else {
            self.leaving.extend(bytes);
            return;
        };
        for part in bytes.chunks(16 << 10) {
            if std::io::Write::write_all(&mut tls.writer(), part).is_err() {
                self.ends = true;
            }
            while tls.wants_write() && tls.write_tls(&mut self.leaving).is_ok() {}
        }
    }

    fn write(&mut self) -> Option<()> {
        while !self.leaving.is_empty() {
            let written = self.stream.write_now(self.leaving.make_contiguous())?;
            if written == 0 {
                return Some(());
            }
            self.leaving.drain(..written);
            self.since = Instant::now();
        }
        Some(())
    }
}
