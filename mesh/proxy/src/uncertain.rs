//! A socket whose bytes may be cut off: an orderly end would tell who reads there that what came was all.

use tokio::net::TcpStream;

/// A socket that is reset when it is dropped, unless it was said before that all has been passed.
pub struct Uncertain {
    /// The socket.
    pub socket: TcpStream,
    is_whole: bool,
}

impl Uncertain {
    /// Nothing is passed yet.
    pub fn new(socket: TcpStream) -> Uncertain {
        Uncertain { socket, is_whole: false }
    }

    /// All has been passed: it ends in order.
    pub fn whole(mut self) {
        self.is_whole = true;
    }
}

impl Drop for Uncertain {
    fn drop(&mut self) {
        if !self.is_whole {
            let _ = self.socket.set_zero_linger();
        }
    }
}
