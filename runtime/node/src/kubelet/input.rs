//! What a client types, on its way to a command: as it is, or through a [`Terminal`] of the client's own.

use coracle_engine::{Pipe, Sink as _};
use parking_lot::Mutex;

use super::terminal::Terminal;

/// Between what a client types and what a command reads.
#[derive(Debug)]
pub(super) struct Input {
    pipe: Pipe,
    terminal: Option<Mutex<Terminal>>,
}

impl Input {
    /// Into this pipe.
    pub fn new(pipe: Pipe, is_terminal: bool) -> Input {
        Input { pipe, terminal: is_terminal.then(Mutex::default) }
    }

    /// Takes what is typed; returns when the command has room for more. A terminal shows it on `echo`, before there is an answer. True when
    /// the command is to end.
    pub async fn typed(&self, bytes: &[u8], echo: Option<&Pipe>) -> bool {
        let Some(terminal) = &self.terminal else {
            self.pipe.write_all(bytes).await;
            return false;
        };
        // A terminal does not wait for who reads, or nobody could interrupt him. Nobody else takes of this room.
        let typed = terminal.lock().typed(bytes, self.pipe.room());
        if let Some(echo) = echo {
            echo.write(&typed.echo[..typed.echo.len().min(echo.room())]);
        }
        self.pipe.write(&typed.input);
        if typed.is_end {
            self.pipe.end();
        }
        typed.is_interrupted
    }

    /// The client says no more.
    pub fn end(&self) {
        self.pipe.end();
    }
}
