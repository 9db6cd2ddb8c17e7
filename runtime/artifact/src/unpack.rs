//! Finds a component inside a container image: `FROM scratch`, `COPY app.wasm /`, `ENTRYPOINT ["/app.wasm"]`.
//!
//! Reads as much of the tar format as such images use: regular files, with GNU and pax long names.

use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde::Deserialize;

const BLOCK: usize = 512;
/// Bytes of an image's archives that are unpacked on the way to what is wanted, all of them together: a few megabytes of gzip can
/// say terabytes of nothing.
pub const UNPACKED_BYTES_MAX: u64 = 4 << 30;
/// A long name may be this long; Linux allows 4096.
const NAME_MAX: u64 = 64 * 1024;

#[derive(Deserialize)]
struct ImageConfig {
    #[serde(default)]
    config: RunConfig,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct RunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
}

/// The path of the program that an image config says is to be run, without leading slash.
pub fn entry_point(config: &[u8]) -> Result<String, String> {
    let config: ImageConfig =
        serde_json::from_slice(config).map_err(|error| format!("its config cannot be read: {error}"))?;
    let run = config.config;
    let program = run.entrypoint.into_iter().flatten().chain(run.cmd.into_iter().flatten()).next();
    match program {
        Some(program) if program.ends_with(".wasm") => Ok(normal(&program)),
        Some(program) => Err(format!("it is a container image whose entry point {program:?} is no .wasm file")),
        None => Err("it is a container image without entry point".to_owned()),
    }
}

/// Copies the file `wanted` out of a (possibly gzipped) tar archive; whether it was there.
///
/// `limit` is for the file; `left` is what may still be read on the way to it, less what was read when this returns.
pub fn extract(archive: &Path, wanted: &str, out: &mut dyn Write, limit: u64, left: &mut u64) -> io::Result<bool> {
    let mut file = BufReader::new(std::fs::File::open(archive)?);
    let mut magic = [0; 2];
    let is_gzip = file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
    let file = BufReader::new(std::fs::File::open(archive)?);
    match is_gzip {
        // Tools that make layers seekable compress each file on its own, one stream after another.
        true => search(&mut Bounded { inner: MultiGzDecoder::new(file), left }, wanted, out, limit),
        false => search(&mut Bounded { inner: file, left }, wanted, out, limit),
    }
}

/// Reads at most so many bytes, and says when there were more.
struct Bounded<'a, R> {
    inner: R,
    left: &'a mut u64,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        *self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            io::Error::new(io::ErrorKind::FileTooLarge, "it unpacks to more bytes than an image may have")
        })?;
        Ok(read)
    }
}

fn search(tar: &mut dyn Read, wanted: &str, out: &mut dyn Write, limit: u64) -> io::Result<bool> {
    let mut long_name = None;
    loop {
        let mut header = [0; BLOCK];
        match tar.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            other => other?,
        }
        if header.iter().all(|byte| *byte == 0) {
            return Ok(false);
        }
        let size =
            number(&header[124..136]).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "bad tar header"))?;
        let padded = size
            .checked_next_multiple_of(BLOCK as u64)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "bad tar header"))?;
        match header[156] {
            b'L' | b'x' => {
                let mut text = Vec::new();
                if padded > NAME_MAX {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a name is too long"));
                }
                tar.take(padded).read_to_end(&mut text)?;
                text.truncate(size as usize);
                long_name = match header[156] {
                    b'L' => Some(text_of(&text).to_owned()),
                    _ => pax_path(&text).or(long_name),
                };
            }
            b'0' | 0 => {
                let name = long_name.take().unwrap_or_else(|| header_name(&header));
                if normal(&name) == wanted {
                    if size > limit {
                        let message = format!("{wanted} has {size} bytes, more than {limit}");
                        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
                    }
                    let copied = io::copy(&mut tar.take(size), out)?;
                    return match copied == size {
                        true => Ok(true),
                        false => Err(io::ErrorKind::UnexpectedEof.into()),
                    };
                }
                io::copy(&mut tar.take(padded), &mut io::sink())?;
            }
            _ => {
                long_name = None;
                io::copy(&mut tar.take(padded), &mut io::sink())?;
            }
        }
    }
}

fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        // GNU base-256, for what octal cannot hold.
        return field[1..].iter().try_fold(0_u64, |sum, byte| sum.checked_mul(256)?.checked_add(u64::from(*byte)));
    }
    let text = text_of(field).trim();
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn header_name(header: &[u8; BLOCK]) -> String {
    let (name, prefix) = (text_of(&header[..100]), text_of(&header[345..500]));
    match header[257..262] == *b"ustar" && !prefix.is_empty() {
        true => format!("{prefix}/{name}"),
        false => name.to_owned(),
    }
}

fn pax_path(records: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(records).ok()?;
    text.lines().find_map(|line| line.split_once(' ')?.1.strip_prefix("path=").map(str::to_owned))
}

fn text_of(field: &[u8]) -> &str {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    std::str::from_utf8(&field[..end]).unwrap_or("")
}

fn normal(path: &str) -> String {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/")
}

#[cfg(test)]
pub(crate) fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; BLOCK];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[156] = b'0';
    header[257..262].copy_from_slice(b"ustar");
    let mut tar = header.to_vec();
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
    tar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extracts_the_entry_point() {
        let config = br#"{"config":{"Entrypoint":["/bin/app.wasm"],"Cmd":["x"]}}"#;
        assert_eq!(entry_point(config).unwrap(), "bin/app.wasm");
        assert!(entry_point(br#"{"config":{"Cmd":["sh"]}}"#).unwrap_err().contains("no .wasm file"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer");
        let tar = tar_of("./bin/app.wasm", b"\0asm");
        let gzip = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let in_two = [gzip(&tar[..BLOCK]), gzip(&tar[BLOCK..])].concat();
        for bytes in [tar.clone(), gzip(&tar), in_two] {
            std::fs::write(&path, bytes).unwrap();
            let mut out = Vec::new();
            assert!(extract(&path, "bin/app.wasm", &mut out, 10, &mut 4_096).unwrap());
            assert_eq!(out, b"\0asm");
            assert!(!extract(&path, "other.wasm", &mut out, 10, &mut 4_096).unwrap());
            assert!(extract(&path, "bin/app.wasm", &mut out, 3, &mut 4_096).is_err());
        }
    }

    #[test]
    fn a_bomb_is_not_unpacked_and_damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer");
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&tar_of("zeros", &vec![0; 8 << 20])).unwrap();
        std::fs::write(&path, encoder.finish().unwrap()).unwrap();
        let mut out = Vec::new();
        let error = extract(&path, "app.wasm", &mut out, 10, &mut (1 << 20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        // One after the other they have the same bytes.
        let mut left = 20 << 20;
        assert!(!extract(&path, "app.wasm", &mut out, 10, &mut left).unwrap());
        assert!(!extract(&path, "app.wasm", &mut out, 10, &mut left).unwrap());
        let error = extract(&path, "app.wasm", &mut out, 10, &mut left).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        // Any one byte may be another: found, not found, or an error; never a panic, never more than the limit.
        let tar = tar_of("app.wasm", b"\0asm");
        for at in (0..BLOCK + 8).step_by(3) {
            for value in [0, 0x80, 0xff, b'7', b'L', b'x'] {
                let mut damaged = tar.clone();
                damaged[at] = value;
                std::fs::write(&path, damaged).unwrap();
                let mut out = Vec::new();
                let _ = extract(&path, "app.wasm", &mut out, 10, &mut (1 << 20));
                assert!(out.len() <= 10, "at {at}");
            }
        }
    }
}
