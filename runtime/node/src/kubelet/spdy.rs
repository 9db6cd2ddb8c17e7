//! SPDY/3.1, the server's side, as far as Kubernetes' streams use it (`moby/spdystream`).
//!
//! A connection carries streams that the client opens; each becomes a byte stream with the headers it was opened with.
//! Kubernetes' clients neither keep nor send flow-control windows, therefore there is none: a stream whose
//! reader is slow holds the connection back after [`STREAM_BUFFER`] bytes. Header blocks are inflated with the
//! protocol's dictionary; our own (empty) ones are sent as stored blocks, which every inflater reads.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::traffic::{PING_EVERY, Traffic};

/// Streams open at the same time on one connection, two for each that is forwarded; more are refused.
const STREAMS_MAX: usize = 2000;
/// Bytes in each direction between a stream and its user.
const STREAM_BUFFER: usize = 64 << 10;
/// Largest control frame that is read.
const CONTROL_MAX: usize = 64 << 10;
/// Largest inflated header block.
const HEADERS_MAX: usize = 64 << 10;
/// Payload of the data frames that are sent.
const DATA_MAX: usize = 16 << 10;
/// Frames waiting to be sent.
const OUT_MAX: usize = 64;
/// How long a client that says no more may take to read them.
const FLUSH_MAX: Duration = Duration::from_secs(30);

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;
const FIN: u8 = 1;
const REFUSED_STREAM: u32 = 3;

static DICTIONARY: &[u8] = include_bytes!("spdy_dictionary.bin");

/// A stream that the client opened.
#[derive(Debug)]
pub struct Stream {
    /// Its headers, names in lower case; of several values the first.
    pub headers: HashMap<String, String>,
    /// Its bytes. Shutting the writing side down ends our half; dropping it ends the stream.
    pub io: DuplexStream,
    /// Cancelled when the client has given the stream up, or is gone. What it had sent may be had from `io` nevertheless; nobody
    /// hears an answer.
    pub gone: CancellationToken,
}

/// Serves one connection until the client or an error ends it, or it carries nothing for too long. Streams go to `streams`.
pub async fn serve<S>(io: S, streams: mpsc::Sender<Stream>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reader, writer) = tokio::io::split(io);
    let (out, frames) = mpsc::channel(OUT_MAX);
    let traffic: Arc<Traffic> = Arc::default();
    let writing = AbortOnDropHandle::new(tokio::spawn(write_frames(writer, frames, traffic.clone())));
    let pings = out.clone();
    let mut connection =
        Connection { out, streams, inflater: Inflater::new(), open: HashMap::new(), traffic: traffic.clone() };
    let result = tokio::select! {
        result = connection.run(reader) => result,
        over = over(pings, &traffic) => Err(over.into()),
    };
    // What it holds are its streams, and the writer ends after the last of them.
    drop(connection);
    if result.is_ok() {
        let _ = tokio::time::timeout(FLUSH_MAX, writing).await;
    }
    result
}

/// Waits until the client is gone, or nothing has been carried for too long.
async fn over(out: mpsc::Sender<Bytes>, traffic: &Traffic) -> io::ErrorKind {
    let pinging = async {
        // A server's pings have even numbers.
        let mut number = 0_u32;
        loop {
            tokio::time::sleep(PING_EVERY).await;
            number = number.wrapping_add(2);
            if out.send(control_frame(PING, 0, &number.to_be_bytes())).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = pinging => io::ErrorKind::BrokenPipe,
        () = traffic.idle() => io::ErrorKind::TimedOut,
    }
}

async fn write_frames<W: AsyncWrite>(
    mut writer: WriteHalf<W>,
    mut frames: mpsc::Receiver<Bytes>,
    traffic: Arc<Traffic>,
) {
    while let Some(frame) = frames.recv().await {
        if writer.write_all(&frame).await.is_err() {
            return;
        }
        let is_data = frame[0] & 0x80 == 0;
        if is_data {
            traffic.carried();
        }
    }
    let _ = writer.shutdown().await;
}

struct Connection {
    out: mpsc::Sender<Bytes>,
    streams: mpsc::Sender<Stream>,
    inflater: Inflater,
    open: HashMap<u32, Open>,
    traffic: Arc<Traffic>,
}

/// A stream that one of its ends has not finished. Dropped, it is over for its user as well.
struct Open {
    /// Towards its user, while the client has not finished.
    to_user: Option<WriteHalf<DuplexStream>>,
    /// From its user to the client.
    sending: AbortOnDropHandle<()>,
    gone: CancellationToken,
}

impl Open {
    fn is_over(&self) -> bool {
        self.to_user.is_none() && self.sending.is_finished()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // Who has all is not disturbed while he works on it.
        if !self.is_over() {
            self.gone.cancel();
        }
    }
}

impl Connection {
    async fn run<R: AsyncRead>(&mut self, mut reader: ReadHalf<R>) -> io::Result<()> {
        let mut header = [0; 8];
        let mut payload = Vec::new();
        loop {
            match reader.read_exact(&mut header).await {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                other => drop(other?),
            }
            let first = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
            let (flags, length) = (header[4], u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize);
            if first & 0x8000_0000 == 0 {
                self.data(&mut reader, first, flags, length).await?;
                continue;
            }
            if length > CONTROL_MAX {
                return Err(invalid("control frame too large"));
            }
            payload.resize(length, 0);
            reader.read_exact(&mut payload).await?;
            if !self.control((first & 0xffff) as u16, flags, &payload).await? {
                return Ok(());
            }
        }
    }

    async fn data<R: AsyncRead>(
        &mut self,
        reader: &mut ReadHalf<R>,
        stream: u32,
        flags: u8,
        length: usize,
    ) -> io::Result<()> {
        let mut left = length;
        let mut chunk = vec![0; left.min(DATA_MAX)];
        while left > 0 {
            let size = left.min(chunk.len());
            reader.read_exact(&mut chunk[..size]).await?;
            self.traffic.carried();
            left -= size;
            if let Some(open) = self.open.get_mut(&stream)
                && let Some(user) = &mut open.to_user
                && user.write_all(&chunk[..size]).await.is_err()
            {
                // Its user is gone; what still comes is thrown away.
                open.to_user = None;
            }
        }
        if flags & FIN != 0 {
            self.finish(stream).await;
        }
        Ok(())
    }

    async fn finish(&mut self, stream: u32) {
        if let Some(mut user) = self.open.get_mut(&stream).and_then(|open| open.to_user.take()) {
            let _ = user.shutdown().await;
        }
    }

    /// Handles a control frame; false when the client says goodbye.
    async fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> io::Result<bool> {
        let word = |at: usize| {
            let bytes = payload.get(at..at + 4).ok_or_else(|| invalid("control frame too short"))?;
            Ok::<u32, io::Error>(u32::from_be_bytes(bytes.try_into().expect("four bytes were taken")))
        };
        match kind {
            SYN_STREAM => {
                let stream = word(0)? & 0x7fff_ffff;
                let block = payload.get(10..).ok_or_else(|| invalid("control frame too short"))?;
                let headers = parse_headers(&self.inflater.inflate(block)?)?;
                self.open(stream, flags, headers).await?;
            }
            // The header compression is one stream for the connection: every block has to be read.
            HEADERS | SYN_REPLY => {
                let block = payload.get(4..).ok_or_else(|| invalid("control frame too short"))?;
                self.inflater.inflate(block)?;
                if flags & FIN != 0 {
                    self.finish(word(0)? & 0x7fff_ffff).await;
                }
            }
            RST_STREAM => {
                self.open.remove(&(word(0)? & 0x7fff_ffff));
            }
            // One with an even number is the answer to ours.
            PING if word(0)? % 2 == 0 => {}
            PING => self.send(control_frame(PING, 0, &word(0)?.to_be_bytes())).await?,
            GOAWAY => return Ok(false),
            SETTINGS | WINDOW_UPDATE => {}
            _ => return Err(invalid("unknown control frame")),
        }
        Ok(true)
    }

    async fn open(&mut self, stream: u32, flags: u8, headers: HashMap<String, String>) -> io::Result<()> {
        let (ours, users) = tokio::io::duplex(STREAM_BUFFER);
        self.open.retain(|_, open| !open.is_over());
        if self.open.len() >= STREAMS_MAX || self.streams.is_closed() {
            let body = [stream.to_be_bytes(), REFUSED_STREAM.to_be_bytes()].concat();
            return self.send(control_frame(RST_STREAM, 0, &body)).await;
        }
        let mut reply = BytesMut::new();
        reply.put_u32(stream);
        reply.put(&*self.inflater.empty_headers());
        self.send(control_frame(SYN_REPLY, 0, &reply)).await?;
        let (from_user, mut to_user) = tokio::io::split(ours);
        let sending = AbortOnDropHandle::new(tokio::spawn(send_stream(stream, from_user, self.out.clone())));
        let is_finished = flags & FIN != 0;
        if is_finished {
            let _ = to_user.shutdown().await;
        }
        let gone = CancellationToken::new();
        let to_user = (!is_finished).then_some(to_user);
        self.open.insert(stream, Open { to_user, sending, gone: gone.clone() });
        let _ = self.streams.send(Stream { headers, io: users, gone }).await;
        Ok(())
    }

    async fn send(&self, frame: Bytes) -> io::Result<()> {
        self.out.send(frame).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Carries what the user of a stream writes to the client, and its end.
async fn send_stream(stream: u32, mut from_user: ReadHalf<DuplexStream>, out: mpsc::Sender<Bytes>) {
    loop {
        let mut frame = BytesMut::zeroed(8 + DATA_MAX);
        let count = from_user.read(&mut frame[8..]).await.unwrap_or(0);
        let flags = if count == 0 { FIN } else { 0 };
        frame[..4].copy_from_slice(&stream.to_be_bytes());
        frame[4..8].copy_from_slice(&(u32::from(flags) << 24 | count as u32).to_be_bytes());
        frame.truncate(8 + count);
        if out.send(frame.freeze()).await.is_err() || count == 0 {
            return;
        }
    }
}

fn control_frame(kind: u16, flags: u8, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(8 + payload.len());
    frame.put_u16(0x8003);
    frame.put_u16(kind);
    frame.put_u32(u32::from(flags) << 24 | payload.len() as u32);
    frame.put(payload);
    frame.freeze()
}

fn parse_headers(block: &[u8]) -> io::Result<HashMap<String, String>> {
    let mut rest = block;
    let number = |rest: &mut &[u8]| -> io::Result<usize> {
        let (bytes, tail) = rest.split_first_chunk::<4>().ok_or_else(|| invalid("header block too short"))?;
        *rest = tail;
        Ok(u32::from_be_bytes(*bytes) as usize)
    };
    let mut headers = HashMap::new();
    for _ in 0..number(&mut rest)? {
        let mut text = || -> io::Result<String> {
            let length = number(&mut rest)?;
            let bytes = rest.get(..length).ok_or_else(|| invalid("header block too short"))?;
            let text = String::from_utf8(bytes.to_vec()).map_err(|_| invalid("header is not text"))?;
            rest = &rest[length..];
            Ok(text)
        };
        let (name, value) = (text()?.to_ascii_lowercase(), text()?);
        let first = value.split('\0').next().unwrap_or("").to_owned();
        headers.insert(name, first);
    }
    Ok(headers)
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// The header compression of a connection: one zlib stream per direction.
struct Inflater {
    state: Box<DecompressorOxide>,
    /// The last 32 KiB that were inflated, at first the dictionary.
    window: Box<[u8]>,
    position: usize,
    /// Bytes of the zlib header (with the dictionary's checksum) that have not come.
    header_left: usize,
    has_sent: bool,
}

impl Inflater {
    fn new() -> Self {
        let mut window = vec![0; 32 << 10].into_boxed_slice();
        window[..DICTIONARY.len()].copy_from_slice(DICTIONARY);
        let state = Box::new(DecompressorOxide::new());
        Self { state, window, position: DICTIONARY.len(), header_left: 6, has_sent: false }
    }

    fn inflate(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        let skipped = self.header_left.min(block.len());
        self.header_left -= skipped;
        let mut input = &block[skipped..];
        let mut out = Vec::new();
        loop {
            let flags = inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
            let (status, read, written) = decompress(&mut self.state, input, &mut self.window, self.position, flags);
            out.extend_from_slice(&self.window[self.position..self.position + written]);
            self.position = (self.position + written) % self.window.len();
            input = &input[read..];
            if out.len() > HEADERS_MAX {
                return Err(invalid("header block too large"));
            }
            match status {
                TINFLStatus::HasMoreOutput => {}
                TINFLStatus::NeedsMoreInput if input.is_empty() => return Ok(out),
                TINFLStatus::NeedsMoreInput if read > 0 || written > 0 => {}
                _ => return Err(invalid("header block cannot be inflated")),
            }
        }
    }

    /// A header block without headers: a stored block, and an empty one, at which inflaters hand out what they have.
    fn empty_headers(&mut self) -> Vec<u8> {
        let mut block = Vec::new();
        if !std::mem::replace(&mut self.has_sent, true) {
            block.extend_from_slice(&[0x78, 0x01]);
        }
        block.extend_from_slice(&[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0]);
        block.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        block
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two header blocks as Go's `zlib.NewWriterLevelDict` with the dictionary and `Flush` writes them would refer to the
    /// dictionary; stored blocks behind the same header are the simplest form of that stream.
    pub fn syn_stream(stream: u32, first: bool, headers: &[(&str, &str)], flags: u8) -> Bytes {
        let mut block = BytesMut::new();
        block.put_u32(headers.len() as u32);
        for (name, value) in headers {
            for text in [name, value] {
                block.put_u32(text.len() as u32);
                block.put(text.as_bytes());
            }
        }
        let mut payload = BytesMut::new();
        payload.put_u32(stream);
        payload.put(&[0; 6][..]);
        if first {
            payload.put(&[0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2][..]);
        }
        payload.put_u8(0);
        payload.put_u16_le(block.len() as u16);
        payload.put_u16_le(!(block.len() as u16));
        payload.put(block);
        payload.put(&[0, 0, 0, 0xff, 0xff][..]);
        control_frame(SYN_STREAM, flags, &payload)
    }

    #[tokio::test]
    async fn carries_streams_both_ways() {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let (sender, mut streams) = mpsc::channel(4);
        let serving = tokio::spawn(serve(server, sender));
        client.write_all(&syn_stream(1, true, &[("Streamtype", "error"), ("port", "80")], FIN)).await.unwrap();
        client.write_all(&syn_stream(3, false, &[("streamtype", "data")], 0)).await.unwrap();
        let mut error = streams.recv().await.unwrap();
        assert_eq!(error.headers["streamtype"], "error");
        let mut nothing = Vec::new();
        error.io.read_to_end(&mut nothing).await.unwrap();
        assert!(nothing.is_empty());
        let mut data = streams.recv().await.unwrap();
        let mut frame = BytesMut::new();
        frame.put_u32(3);
        frame.put_u32(u32::from(FIN) << 24 | 5);
        frame.put(&b"hello"[..]);
        client.write_all(&frame).await.unwrap();
        client.write_all(&control_frame(PING, 0, &7_u32.to_be_bytes())).await.unwrap();
        let mut text = String::new();
        data.io.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
        data.io.write_all(b"world").await.unwrap();
        drop((data, error));
        let mut seen = Vec::new();
        for _ in 0..6 {
            let mut header = [0; 8];
            client.read_exact(&mut header).await.unwrap();
            let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
            let mut payload = vec![0; length];
            client.read_exact(&mut payload).await.unwrap();
            seen.push((header[0], header[3], header[4], payload));
        }
        assert_eq!(seen.iter().filter(|(first, kind, ..)| *first == 0x80 && *kind == SYN_REPLY as u8).count(), 2);
        assert!(seen.iter().any(|(first, kind, _, payload)| *first == 0x80 && *kind == 6 && payload[3] == 7));
        assert!(seen.iter().any(|(first, stream, _, payload)| *first == 0 && *stream == 3 && payload == b"world"));
        client.write_all(&control_frame(GOAWAY, 0, &[0; 8])).await.unwrap();
        serving.await.unwrap().unwrap();
    }

    /// Its user has said nothing and reads nothing; a client that forgets it, or that goes, leaves nothing behind.
    #[tokio::test]
    async fn a_stream_ends_for_its_user_when_the_client_goes() {
        let reset = |stream: u32| control_frame(RST_STREAM, 0, &[stream.to_be_bytes(), 5_u32.to_be_bytes()].concat());
        let fin = Bytes::from_static(&[0, 0, 0, 1, FIN, 0, 0, 0]);
        for (how, frames) in [
            ("resets", vec![reset(1)]),
            ("has said all and resets", vec![fin, reset(1)]),
            ("says goodbye", vec![control_frame(GOAWAY, 0, &[0; 8])]),
            ("goes", Vec::new()),
        ] {
            let (mut client, server) = tokio::io::duplex(1 << 16);
            let (sender, mut streams) = mpsc::channel(4);
            let serving = tokio::spawn(serve(server, sender));
            client.write_all(&syn_stream(1, true, &[("streamtype", "data")], 0)).await.unwrap();
            client.write_all(&syn_stream(3, false, &[("streamtype", "data")], 0)).await.unwrap();
            let (mut stream, other) = (streams.recv().await.unwrap(), streams.recv().await.unwrap());
            for frame in &frames {
                client.write_all(frame).await.unwrap();
            }
            let ended = async {
                if frames.is_empty() {
                    drop(client);
                }
                stream.gone.cancelled().await;
                assert_eq!(stream.io.read(&mut [0; 8]).await.unwrap(), 0);
                if how.contains("resets") {
                    assert!(!other.gone.is_cancelled(), "another stream goes on");
                } else {
                    // Although its users have not let go of them.
                    serving.await.unwrap().unwrap();
                    assert!(other.gone.is_cancelled());
                }
            };
            let ended = tokio::time::timeout(std::time::Duration::from_secs(30), ended).await;
            assert!(ended.is_ok(), "a client that {how} holds the stream");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_is_sent_pings_and_a_connection_that_carries_nothing_ends() {
        use super::super::traffic::IDLE_MAX;
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let (sender, mut streams) = mpsc::channel(4);
        let serving = tokio::spawn(serve(server, sender));
        client.write_all(&syn_stream(1, true, &[("streamtype", "data")], 0)).await.unwrap();
        let stream = streams.recv().await.unwrap();
        let begun = tokio::time::Instant::now();
        let (mut pings, mut header) = (0, [0; 8]);
        while client.read_exact(&mut header).await.is_ok() {
            let mut payload = vec![0; u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize];
            client.read_exact(&mut payload).await.unwrap();
            if header[..4] == [0x80, 3, 0, PING as u8] {
                pings += 1;
                assert_eq!((begun.elapsed().as_secs(), payload[3] % 2), ((PING_EVERY * pings).as_secs(), 0));
                // Its answer is not answered, and is nothing that is carried.
                client.write_all(&[&header[..], &payload].concat()).await.unwrap();
            }
        }
        assert_eq!(begun.elapsed().as_secs(), IDLE_MAX.as_secs());
        assert_eq!(serving.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(stream.gone.is_cancelled() && pings > 400, "{pings}");
    }

    /// Streams that both ends have finished are forgotten.
    #[tokio::test]
    async fn a_connection_carries_any_number_of_streams_one_after_another() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (sender, mut streams) = mpsc::channel(4);
        tokio::spawn(serve(server, sender));
        let (mut heard, mut says) = tokio::io::split(client);
        let all = async {
            for number in 0..STREAMS_MAX as u32 + 10 {
                says.write_all(&syn_stream(2 * number + 1, number == 0, &[("streamtype", "data")], FIN)).await.unwrap();
                drop(streams.recv().await.expect("it is not refused"));
                // Its reply, and its end.
                let mut kinds = Vec::new();
                for _ in 0..2 {
                    let mut header = [0; 8];
                    heard.read_exact(&mut header).await.unwrap();
                    let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
                    heard.read_exact(&mut vec![0; length]).await.unwrap();
                    kinds.push((header[0], header[4]));
                }
                assert_eq!(kinds, [(0x80, 0), (0, FIN)], "stream {number}");
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), all).await.expect("streams are opened");
    }

    /// Whatever comes, the decoder ends with an error or with the connection, holds no more than its bounds, and never panics. Seeds
    /// are numbered, so that a failure can be had again.
    #[tokio::test]
    async fn survives_what_others_send() {
        let good = [
            syn_stream(1, true, &[("streamtype", "data"), ("port", "80")], 0),
            syn_stream(3, false, &[("streamtype", "error")], FIN),
            control_frame(PING, 0, &[0, 0, 0, 1]),
            control_frame(RST_STREAM, 0, &[0, 0, 0, 1, 0, 0, 0, 3]),
            control_frame(HEADERS, FIN, &[0, 0, 0, 1, 0, 0]),
            control_frame(SETTINGS, 0, &[0; 4]),
            Bytes::from_static(&[0, 0, 0, 1, 1, 0, 0, 3, b'a', b'b', b'c']),
        ];
        for seed in 0..2_000_u64 {
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut next = |below: usize| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                (random % below.max(1) as u64) as usize
            };
            let mut bytes: Vec<u8> = (0..next(6)).flat_map(|_| good[next(good.len())].to_vec()).collect();
            for _ in 0..next(8) {
                if bytes.is_empty() {
                    break;
                }
                let at = next(bytes.len());
                match next(4) {
                    0 => bytes[at] = next(256) as u8,
                    1 => bytes.truncate(at),
                    2 => bytes.insert(at, next(256) as u8),
                    _ => bytes[at] ^= 1 << next(8),
                }
            }
            let (mut client, server) = tokio::io::duplex(1 << 16);
            let (sender, mut streams) = mpsc::channel(STREAMS_MAX);
            let serving = tokio::spawn(serve(server, sender));
            client.write_all(&bytes).await.unwrap();
            client.shutdown().await.unwrap();
            let users = tokio::spawn(async move { while streams.recv().await.is_some() {} });
            let mut answers = Vec::new();
            let ended =
                tokio::time::timeout(std::time::Duration::from_secs(30), client.read_to_end(&mut answers)).await;
            assert!(ended.is_ok(), "seed {seed} hangs");
            serving.await.unwrap_or_else(|error| panic!("seed {seed}: {error}")).ok();
            users.await.unwrap();
        }
    }

    #[test]
    fn refuses_garbage() {
        assert!(Inflater::new().inflate(&[0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2, 0xff, 0xff]).is_err());
        assert!(parse_headers(&[0, 0, 0, 9, 0, 0]).is_err());
        assert_eq!(DICTIONARY.len(), 1423);
        // The checksum that a client's header carries.
        assert!(DICTIONARY.starts_with(b"\0\0\0\x07options"));
    }
}
