//! The sockets: one for datagrams and one for streams, at the same port. Answers are made where they are asked for, since they wait for
//! nothing; so there is one at a time of the datagrams, and one of each stream, of which there are few.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::message::{By, QUERY_BYTES_MAX, answer};
use crate::zone::{Answer, Kind, Zone};

/// Who knows the names.
type Ask = Arc<dyn Fn(&[&str], Kind) -> Answer + Send + Sync>;

/// Streams at a time; more wait in the kernel's queue until one of these is over.
const STREAMS_MAX: usize = 64;
/// Queries of one stream, after which it ends: clients begin another.
const QUERIES_MAX: usize = 1000;
/// A stream's next query is there as a whole within this time, and its answer is taken.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// A free port for both is looked for so often.
const PORTS_TRIED_MAX: usize = 16;
/// Wait after an error of a socket that comes again and again.
const ERROR_WAIT: Duration = Duration::from_millis(50);

/// Listens; nothing is answered before [`Listener::run`].
pub struct Listener {
    datagrams: UdpSocket,
    streams: TcpListener,
}

/// Whether only this machine reaches a listener at the address.
pub fn is_near(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

impl Listener {
    /// Opens both at this address; 0 takes a port that is free for both.
    pub async fn open(address: SocketAddr) -> io::Result<Listener> {
        let mut tried = 0;
        loop {
            let streams = TcpListener::bind(address).await?;
            tried += 1;
            match UdpSocket::bind(streams.local_addr()?).await {
                Ok(datagrams) => return Ok(Listener { datagrams, streams }),
                Err(_) if address.port() == 0 && tried < PORTS_TRIED_MAX => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.streams.local_addr()
    }

    /// Answers until told to stop.
    pub async fn run(self, zone: Zone, stop: CancellationToken) {
        self.serve(Arc::new(move |labels, kind| zone.ask(labels, kind)), stop).await;
    }

    async fn serve(self, ask: Ask, stop: CancellationToken) {
        // What is cut had nothing to finish: a client whose stream ends asks again.
        tokio::select! {
            () = datagrams(&self.datagrams, &ask) => {}
            () = streams(&self.streams, &ask) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn datagrams(socket: &UdpSocket, ask: &Ask) {
    // One more: what is longer than a query may be is seen to be.
    let mut buffer = vec![0; QUERY_BYTES_MAX + 1];
    loop {
        let sent = match socket.recv_from(&mut buffer).await {
            Ok((count, client)) => {
                match answer(&buffer[..count], By::Datagram, &**ask) {
                    // One that the kernel has no room for is lost, as any datagram may be.
                    Some(answered) => socket.try_send_to(&answered, client).map(drop),
                    None => Ok(()),
                }
            }
            Err(error) => {
                tokio::time::sleep(ERROR_WAIT).await;
                Err(error)
            }
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "a question about names");
        }
    }
}

async fn streams(listener: &TcpListener, ask: &Ask) {
    let places = Arc::new(Semaphore::new(STREAMS_MAX));
    let mut tasks = JoinSet::new();
    loop {
        // Never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        while tasks.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let ask = ask.clone();
                tasks.spawn(async move {
                    if let Err(error) = questions(stream, &ask).await {
                        tracing::trace!(%error, "questions about names");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "accept questions about names");
                tokio::time::sleep(ERROR_WAIT).await;
            }
        }
    }
}

/// Answers a stream's, one after the other.
async fn questions(mut stream: TcpStream, ask: &Ask) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut query = Vec::new();
    for _ in 0..QUERIES_MAX {
        let read = async {
            let count = usize::from(stream.read_u16().await?);
            if count > QUERY_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            query.resize(count, 0);
            stream.read_exact(&mut query).await.map(drop)
        };
        tokio::time::timeout(PATIENCE, read).await??;
        let answered = answer(&query, By::Stream, &**ask);
        // Who sends what is no query has lost its way.
        let Some(answered) = answered else { return Err(io::ErrorKind::InvalidData.into()) };
        let mut framed = Vec::with_capacity(2 + answered.len());
        framed.extend_from_slice(&u16::try_from(answered.len()).map_err(io::Error::other)?.to_be_bytes());
        framed.extend_from_slice(&answered);
        tokio::time::timeout(PATIENCE, stream.write_all(&framed)).await??;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zone::Data;
    use simple_dns::{CLASS, Name, Packet, Question, TYPE};

    const SOON: Duration = Duration::from_secs(20);

    fn query() -> Vec<u8> {
        let mut query = Packet::new_query(5);
        let name = Name::new("a.n.svc.cluster.local").unwrap();
        query.questions.push(Question::new(name, TYPE::A.into(), CLASS::IN.into(), false));
        query.build_bytes_vec().unwrap()
    }

    /// One that says an address of everything.
    async fn listening(stop: &CancellationToken) -> SocketAddr {
        let listener = Listener::open(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let at = listener.address().unwrap();
        let ask: Ask = Arc::new(|labels, _| Answer::Records {
            zone: "cluster.local".to_owned(),
            records: vec![(labels.join("."), Data::Address([10, 96, 0, 9].into()))],
            additional: Vec::new(),
        });
        tokio::spawn(listener.serve(ask, stop.clone()));
        at
    }

    fn is_answer(bytes: &[u8]) -> bool {
        Packet::parse(bytes).is_ok_and(|answer| answer.id() == 5 && answer.answers.len() == 1)
    }

    async fn say(stream: &mut TcpStream, query: &[u8]) {
        let mut framed = (query.len() as u16).to_be_bytes().to_vec();
        framed.extend_from_slice(query);
        stream.write_all(&framed).await.unwrap();
    }

    async fn hear(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
        let heard = async {
            let mut answer = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut answer).await.map(|_| answer)
        };
        tokio::time::timeout(SOON, heard).await.expect("it answers or ends")
    }

    #[tokio::test]
    async fn questions_come_by_both_ways_and_whoever_says_anything_else_stops_nobody() {
        let stop = CancellationToken::new();
        let at = listening(&stop).await;
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let large = vec![0; QUERY_BYTES_MAX + 1000];
        for senseless in [&b""[..], b"x", &[0xff; 40], &large] {
            socket.send_to(senseless, at).await.unwrap();
        }
        socket.send_to(&query(), at).await.unwrap();
        let mut buffer = [0; 2048];
        let answered = async {
            loop {
                let (count, _) = socket.recv_from(&mut buffer).await.unwrap();
                if is_answer(&buffer[..count]) {
                    return;
                }
            }
        };
        tokio::time::timeout(SOON, answered).await.unwrap();
        let mut stream = TcpStream::connect(at).await.unwrap();
        for _ in 0..3 {
            say(&mut stream, &query()).await;
            assert!(is_answer(&hear(&mut stream).await.unwrap()));
        }
        for senseless in [vec![0xff; 40], large] {
            let mut stream = TcpStream::connect(at).await.unwrap();
            say(&mut stream, &senseless).await;
            assert!(hear(&mut stream).await.is_err(), "it ends");
        }
    }

    #[tokio::test]
    async fn streams_that_say_nothing_are_few_and_make_room() {
        let stop = CancellationToken::new();
        let at = listening(&stop).await;
        let mut silent = Vec::new();
        for _ in 0..STREAMS_MAX {
            silent.push(TcpStream::connect(at).await.unwrap());
        }
        // It waits until one of them is over, half a query or none.
        silent[0].write_all(&[0]).await.unwrap();
        let mut stream = TcpStream::connect(at).await.unwrap();
        say(&mut stream, &query()).await;
        assert!(is_answer(&hear(&mut stream).await.unwrap()));
        let ended = tokio::time::timeout(SOON, silent[0].read_u8()).await.expect("it is let go");
        assert!(ended.is_err());
        stop.cancel();
        let over = tokio::time::timeout(SOON, stream.read_u8()).await.expect("all ends");
        assert!(over.is_err());
    }
}
