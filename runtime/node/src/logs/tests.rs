use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::*;

fn log(dir: &tempfile::TempDir) -> Arc<ContainerLog> {
    ContainerLog::new(file(dir.path(), "c", 0), OpenFiles::default())
}

async fn all(log: &Arc<ContainerLog>, options: Options) -> String {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(4);
    let reading = tokio::spawn(read(log.path().to_owned(), Some(log.clone()), options, sender));
    let mut text = Vec::new();
    while let Some(bytes) = receiver.recv().await {
        text.extend_from_slice(&bytes);
    }
    reading.await.unwrap().unwrap();
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn writes_lines_and_reads_parts_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let log = log(&dir);
    assert_eq!(all(&log, Options::default()).await, "");
    let (out, err) = (log.stream("stdout"), log.stream("stderr"));
    out.print(b"one\ntw");
    err.print(b"oops\n");
    out.print(b"o\n\nlast");
    out.flush();
    let text = std::fs::read_to_string(log.path()).unwrap();
    assert!(text.lines().next().unwrap().ends_with("Z stdout F one"), "{text}");
    let options = Options::default;
    let cases = [
        (options(), "one\noops\ntwo\n\nlast"),
        (Options { tail_lines: Some(2), ..options() }, "\nlast"),
        (Options { tail_lines: Some(0), ..options() }, ""),
        (Options { tail_lines: Some(100), ..options() }, "one\noops\ntwo\n\nlast"),
        (Options { limit_bytes: Some(6), ..options() }, "one\noo"),
        (Options { stream: Some("stderr"), ..options() }, "oops\n"),
        (Options { since: Some(jiff::Timestamp::now() + Duration::from_secs(5)), ..options() }, ""),
    ];
    for (options, expected) in cases {
        assert_eq!(all(&log, options.clone()).await, expected, "{options:?}");
    }
    let timed = all(&log, Options { timestamps: true, limit_bytes: Some(35), ..options() }).await;
    assert!(timed.ends_with("Z one\n") && timed.len() == 35, "{timed:?}");
    assert_eq!(tail(log.path(), 80, 2048), "one\noops\ntwo\n\nlast");
    assert_eq!(tail(log.path(), 2, 3), "ast");
}

#[tokio::test]
async fn rotates_and_follows_across_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let log = log(&dir);
    let out = log.stream("stdout");
    let (sender, mut receiver) = mpsc::channel::<Bytes>(4);
    let options = Options { follow: true, ..Options::default() };
    let reading = tokio::spawn(read(log.path().to_owned(), Some(log.clone()), options, sender));
    let line = [vec![b'x'; LINE_BYTES_MAX - 1], b"\n".to_vec()].concat();
    // More than one file, printed no faster than it is read: what is rotated away unread may be lost to a follower.
    let count = FILE_BYTES_MAX as usize / line.len() + 50;
    let mut bytes = 0;
    for _ in 0..count {
        out.print(&line);
        while bytes + (1 << 20) < line.len() * count && bytes + 8 * line.len() < line.len() {
            bytes += receiver.recv().await.unwrap().len();
        }
        while let Ok(chunk) = receiver.try_recv() {
            bytes += chunk.len();
        }
        tokio::task::yield_now().await;
    }
    log.finish();
    while let Some(chunk) = receiver.recv().await {
        bytes += chunk.len();
    }
    reading.await.unwrap().unwrap();
    assert_eq!(bytes, line.len() * count);
    assert!(part(log.path(), 1).exists() && !part(log.path(), 2).exists());
    assert_eq!(all(&log, Options::default()).await.len(), bytes);
}

#[tokio::test]
async fn cuts_long_lines_and_keeps_their_content() {
    let dir = tempfile::tempdir().unwrap();
    let log = log(&dir);
    let long = "y".repeat(3 * LINE_BYTES_MAX + 7);
    log.stream("stdout").print(format!("{long}\nshort\n").as_bytes());
    assert_eq!(all(&log, Options::default()).await, format!("{long}\nshort\n"));
    remove_older(dir.path(), "c", 1);
    assert!(!log.path().exists());
}

/// An empty line is one byte as it is printed and forty as it is kept: what is dropped is dropped as it was printed.
#[test]
fn a_flood_of_empty_lines_is_dropped_before_it_is_made_lines() {
    let dir = tempfile::tempdir().unwrap();
    let log = log(&dir);
    let out = log.stream("stdout");
    let flood = vec![b'\n'; 64 << 10];
    // More than may be printed at once, as it is kept.
    for _ in 0..40 {
        out.print(&flood);
    }
    out.print(b"a line\n");
    let text = std::fs::read_to_string(log.path()).unwrap();
    let notes = text.lines().filter_map(|line| line.split("[coracle: ").nth(1)?.split(' ').next()?.parse::<u64>().ok());
    let dropped: u64 = notes.sum();
    let printed = 40 * flood.len() as u64;
    assert!((printed / 4..printed).contains(&dropped), "{dropped} of {printed}");
    assert!(text.ends_with(" stdout F a line\n"));
}

#[test]
fn a_low_disk_drops_logs() {
    let dir = tempfile::tempdir().unwrap();
    let open = OpenFiles::default();
    let is_low = Arc::new(std::sync::atomic::AtomicBool::new(true));
    open.drop_while(is_low.clone());
    let log = ContainerLog::new(file(dir.path(), "c", 0), open);
    log.stream("stdout").print(b"lost\n");
    assert!(!log.path().exists());
    is_low.store(false, std::sync::atomic::Ordering::Relaxed);
    log.stream("stdout").print(b"kept\n");
    let text = std::fs::read_to_string(log.path()).unwrap();
    assert!(text.contains("bytes of this log were dropped") && text.ends_with("kept\n"), "{text}");
}
