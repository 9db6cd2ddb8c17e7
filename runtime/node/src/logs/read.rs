//! The reading side: `kubectl logs`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::write::ContainerLog;
use super::{FILES_MAX, LINE_BYTES_MAX, line, part};

const CHUNK: usize = 64 << 10;

/// What of a log is wanted, as `PodLogOptions` has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Go on while the container prints.
    pub follow: bool,
    /// The time before each line.
    pub timestamps: bool,
    /// At most this many of the last lines.
    pub tail_lines: Option<u64>,
    /// Nothing that is older.
    pub since: Option<Timestamp>,
    /// At most this many bytes.
    pub limit_bytes: Option<u64>,
    /// Only `stdout` or only `stderr`.
    pub stream: Option<&'static str>,
}

/// Sends what is wanted of the log at `path` into `out`, until its end, or until nobody reads any more.
/// `live` is the log while its container may still print.
pub async fn read(
    path: PathBuf,
    live: Option<Arc<ContainerLog>>,
    options: Options,
    out: mpsc::Sender<Bytes>,
) -> std::io::Result<()> {
    read_until(path, live, options, &CancellationToken::new(), out).await
}

/// The same, and nothing that is printed after `stop` is cancelled.
pub async fn read_until(
    path: PathBuf,
    live: Option<Arc<ContainerLog>>,
    options: Options,
    stop: &CancellationToken,
    out: mpsc::Sender<Bytes>,
) -> std::io::Result<()> {
    let mut sink = Sink { left: options.limit_bytes.unwrap_or(u64::MAX), options: &options, out: &out };
    let mut progress = live.as_ref().map(|live| live.progress());
    let mut files = open_parts(&path).await?;
    let mut current = files.pop();
    if let Some(tail) = options.tail_lines {
        let mut wanted = tail;
        // From the newest part to the oldest, as far as lines are wanted.
        if let Some(newest) = &mut current {
            wanted -= seek_tail(newest, wanted).await?;
        }
        let mut older = Vec::new();
        while wanted > 0
            && let Some(mut file) = files.pop()
        {
            wanted -= seek_tail(&mut file, wanted).await?;
            older.push(file);
        }
        older.reverse();
        files = older;
    }
    let mut pending = Vec::new();
    for mut file in files {
        if !sink.drain(&mut file, &mut pending).await? {
            return Ok(());
        }
    }
    loop {
        // What is printed from here on is seen by the next wait.
        let is_finished = progress.as_mut().is_none_or(|progress| progress.borrow_and_update().is_finished);
        let is_finished = is_finished || stop.is_cancelled();
        if let Some(file) = &mut current {
            if !sink.drain(file, &mut pending).await? {
                return Ok(());
            }
            if was_rotated(file, &path).await {
                // The rest of the old part was written before the rename.
                if !sink.drain(file, &mut pending).await? {
                    return Ok(());
                }
                current = File::open(&path).await.ok();
                continue;
            }
        } else if let Ok(file) = File::open(&path).await {
            current = Some(file);
            continue;
        }
        if !options.follow || is_finished {
            return Ok(());
        }
        let Some(progress) = &mut progress else { return Ok(()) };
        // Waiting is all that is cut here.
        tokio::select! {
            changed = progress.changed() => if changed.is_err() { return Ok(()) },
            () = stop.cancelled() => {}
            () = out.closed() => return Ok(()),
        }
    }
}

/// The last lines of a log, for termination messages: at most `bytes_max` of the content.
pub fn tail(path: &Path, lines_max: usize, bytes_max: usize) -> String {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub((bytes_max + lines_max * 64 + LINE_BYTES_MAX) as u64)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let Ok(bytes) = read() else { return String::new() };
    let lines: Vec<line::Line<'_>> = bytes.split(|byte| *byte == b'\n').filter_map(line::parse).collect();
    let mut text = Vec::new();
    for line in &lines[lines.len().saturating_sub(lines_max)..] {
        text.extend_from_slice(line.content);
        if line.is_whole {
            text.push(b'\n');
        }
    }
    let start = text.len().saturating_sub(bytes_max);
    String::from_utf8_lossy(&text[start..]).into_owned()
}

/// The parts of a log that exist, the oldest first. They are opened from the newest on: a part that is moved on meanwhile
/// is met again, and none is passed by.
async fn open_parts(path: &Path) -> std::io::Result<Vec<File>> {
    use std::os::unix::fs::MetadataExt as _;
    let (mut files, mut met) = (Vec::new(), Vec::new());
    for number in 0..FILES_MAX {
        match File::open(part(path, number)).await {
            Ok(file) => {
                let inode = file.metadata().await?.ino();
                if !met.contains(&inode) {
                    met.push(inode);
                    files.push(file);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    files.reverse();
    Ok(files)
}

async fn was_rotated(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata().await, tokio::fs::metadata(path).await) {
        (Ok(have), Ok(now)) => have.ino() != now.ino(),
        _ => false,
    }
}

/// Puts the file at the beginning of its last `wanted` lines; returns how many there are.
async fn seek_tail(file: &mut File, wanted: u64) -> std::io::Result<u64> {
    let length = file.metadata().await?.len();
    let mut position = length;
    let mut found = 0;
    let mut block = vec![0; CHUNK];
    while position > 0 && found <= wanted {
        let start = position.saturating_sub(CHUNK as u64);
        let block = &mut block[..(position - start) as usize];
        file.seek(std::io::SeekFrom::Start(start)).await?;
        file.read_exact(block).await?;
        for (index, byte) in block.iter().enumerate().rev() {
            // The newline that ends the file ends its last line.
            if *byte == b'\n' {
                found += 1;
                if found > wanted {
                    file.seek(std::io::SeekFrom::Start(start + index as u64 + 1)).await?;
                    return Ok(wanted);
                }
            }
        }
        position = start;
    }
    file.seek(std::io::SeekFrom::Start(0)).await?;
    Ok(found.min(wanted))
}

struct Sink<'a> {
    left: u64,
    options: &'a Options,
    out: &'a mpsc::Sender<Bytes>,
}

impl Sink<'_> {
    /// Sends the rest of the file; false when no more is wanted.
    async fn drain(&mut self, file: &mut File, pending: &mut Vec<u8>) -> std::io::Result<bool> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = file.read(&mut chunk).await?;
            if count == 0 {
                return Ok(true);
            }
            pending.extend_from_slice(&chunk[..count]);
            let Some(end) = pending.iter().rposition(|byte| *byte == b'\n') else {
                // No line that was written is longer.
                if pending.len() > 2 * LINE_BYTES_MAX {
                    pending.clear();
                }
                continue;
            };
            let rest = pending.split_off(end + 1);
            let mut text = Vec::with_capacity(pending.len());
            for line in pending.split(|byte| *byte == b'\n').filter_map(line::parse) {
                self.format(&line, &mut text);
            }
            *pending = rest;
            text.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= text.len() as u64;
            if !text.is_empty() && self.out.send(text.into()).await.is_err() {
                return Ok(false);
            }
            if self.left == 0 {
                return Ok(false);
            }
        }
    }

    fn format(&self, line: &line::Line<'_>, text: &mut Vec<u8>) {
        if self.options.since.is_some_and(|since| line.time < since)
            || self.options.stream.is_some_and(|stream| line.stream != stream)
        {
            return;
        }
        if self.options.timestamps {
            text.extend_from_slice(line.time_text.as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(line.content);
        if line.is_whole {
            text.push(b'\n');
        }
    }
}
