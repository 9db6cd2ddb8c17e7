//! What a program reads and writes. Programs of one script share it, so that files are open once and a pipeline is a buffer.

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::path::Path;
use std::rc::Rc;

/// Bytes that a file may have which is read as input, and a stage of a pipeline may print.
const BYTES_MAX: usize = 64 << 20;

/// Input, output and errors of a program.
#[derive(Clone)]
pub struct Io {
    pub input: Input,
    pub output: Output,
    pub errors: Output,
}

impl Io {
    /// The component's own.
    pub fn standard() -> Io {
        Io { input: Input::Standard, output: Output::Standard, errors: Output::Errors }
    }
}

#[derive(Clone)]
pub enum Input {
    Standard,
    Bytes(Rc<RefCell<(Vec<u8>, usize)>>),
}

impl Input {
    pub fn bytes(bytes: Vec<u8>) -> Input {
        Input::Bytes(Rc::new(RefCell::new((bytes, 0))))
    }

    pub fn file(path: &Path) -> std::io::Result<Input> {
        if path == Path::new("/dev/null") {
            return Ok(Input::bytes(Vec::new()));
        }
        let mut bytes = Vec::new();
        File::open(path)?.take(BYTES_MAX as u64).read_to_end(&mut bytes)?;
        Ok(Input::bytes(bytes))
    }

    /// All that is left of it.
    pub fn all(&mut self) -> Vec<u8> {
        match self {
            Input::Standard => {
                let mut bytes = Vec::new();
                // None at all is an end.
                let _ = std::io::stdin().take(BYTES_MAX as u64).read_to_end(&mut bytes);
                bytes
            }
            Input::Bytes(bytes) => {
                let mut bytes = bytes.borrow_mut();
                let at = bytes.1;
                bytes.1 = bytes.0.len();
                bytes.0[at..].to_vec()
            }
        }
    }

    /// What comes next, as soon as there is some; nothing at the end.
    pub fn some(&mut self) -> Vec<u8> {
        match self {
            Input::Standard => {
                let mut input = std::io::stdin().lock();
                // None at all is an end.
                let bytes = input.fill_buf().unwrap_or_default().to_vec();
                input.consume(bytes.len());
                bytes
            }
            Input::Bytes(_) => self.all(),
        }
    }

    /// The next line, without its end.
    pub fn line(&mut self) -> Option<String> {
        match self {
            Input::Standard => {
                let mut line = String::new();
                let read = std::io::stdin().read_line(&mut line).ok()?;
                (read > 0).then(|| line.trim_end_matches('\n').to_owned())
            }
            Input::Bytes(bytes) => {
                let mut bytes = bytes.borrow_mut();
                let rest = &bytes.0[bytes.1..];
                if rest.is_empty() {
                    return None;
                }
                let length = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                let line = String::from_utf8_lossy(&rest[..length]).into_owned();
                bytes.1 = (bytes.1 + length + 1).min(bytes.0.len());
                Some(line)
            }
        }
    }
}

#[derive(Clone)]
pub enum Output {
    Standard,
    Errors,
    Nothing,
    File(Rc<File>),
    Buffer(Rc<RefCell<Vec<u8>>>),
}

impl Output {
    pub fn buffer() -> Output {
        Output::Buffer(Rc::default())
    }

    pub fn file(path: &Path, is_append: bool) -> std::io::Result<Output> {
        Ok(match path.to_str() {
            Some("/dev/null") => Output::Nothing,
            Some("/dev/stdout" | "/proc/1/fd/1" | "/proc/self/fd/1") => Output::Standard,
            Some("/dev/stderr" | "/proc/1/fd/2" | "/proc/self/fd/2") => Output::Errors,
            _ => {
                let mut options = File::options();
                options.create(true).write(!is_append).append(is_append).truncate(!is_append);
                let opened = options.open(path).map_err(|error| match (error.kind(), path.parent()) {
                    // A component has no root of its own, only what is mounted.
                    (std::io::ErrorKind::NotFound, Some(parent)) if parent == Path::new("/") => {
                        std::io::ErrorKind::ReadOnlyFilesystem.into()
                    }
                    _ => error,
                });
                Output::File(Rc::new(opened?))
            }
        })
    }

    /// What was written into the buffer.
    pub fn taken(&self) -> Vec<u8> {
        match self {
            Output::Buffer(bytes) => std::mem::take(&mut *bytes.borrow_mut()),
            _ => Vec::new(),
        }
    }

    /// Writes; whether all of it was.
    pub fn write(&self, bytes: &[u8]) -> bool {
        match self {
            Output::Standard => {
                std::io::stdout().lock().write_all(bytes).and_then(|()| std::io::stdout().flush()).is_ok()
            }
            Output::Errors => std::io::stderr().lock().write_all(bytes).is_ok(),
            Output::Nothing => true,
            Output::File(file) => (&**file).write_all(bytes).is_ok(),
            Output::Buffer(buffer) => {
                let mut buffer = buffer.borrow_mut();
                let has_room = buffer.len() + bytes.len() <= BYTES_MAX;
                if has_room {
                    buffer.extend_from_slice(bytes);
                }
                has_room
            }
        }
    }

    /// Writes a line; who cannot is not told, as by a closed pipe.
    pub fn line(&self, text: &str) {
        self.write(format!("{text}\n").as_bytes());
    }
}
