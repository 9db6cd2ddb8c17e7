//! Descriptors that clients of node ports and other nodes leave alone: the API, the log and the node's own endpoint must go on, however many
//! connect. Guests stop earlier (`machine.rs` of the engine).

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::LazyLock;
use std::time::Duration;

use rustix::net::sockopt;
use rustix::process::{Resource, getrlimit};

/// Of eight descriptors, those that node ports leave.
const LEFT_OF_EIGHT: u64 = 1;

static BOUND: LazyLock<u64> = LazyLock::new(|| bound(getrlimit(Resource::Nofile).current.unwrap_or(1 << 20)));

fn bound(limit: u64) -> u64 {
    limit / 8 * (8 - LEFT_OF_EIGHT)
}

/// Whether this one is not among the last of the process: the kernel gives the lowest number that is free.
pub fn is_spare(socket: &impl AsRawFd) -> bool {
    u64::try_from(socket.as_raw_fd()).is_ok_and(|number| number < *BOUND)
}

/// Has the kernel ask a silent peer whether it is there still: whoever has vanished is gone within two minutes.
pub fn keep_alive(socket: &impl AsFd) -> io::Result<()> {
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(15))?;
    Ok(sockopt::set_tcp_keepcnt(socket, 4)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_eighth_is_not_for_clients() {
        assert_eq!([1024, 20_000].map(bound), [896, 17_500]);
        assert!(is_spare(&std::net::TcpListener::bind("127.0.0.1:0").unwrap()));
    }
}
