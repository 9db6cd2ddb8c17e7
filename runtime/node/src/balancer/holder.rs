//! Which program has a port of this machine, as far as this process may know: the kernel tells the user of every socket
//! (`/proc/net/tcp`, proc(5)), and the program only of those that are of the same user.

use std::io;
use std::os::unix::fs::MetadataExt as _;

use coracle_discovery::Protocol;

/// Why a port below 1024 is not opened, as a rule.
const RESERVED: &str = "ports below net.ipv4.ip_unprivileged_port_start (1024, as a rule) are for processes with the \
                                   capability CAP_NET_BIND_SERVICE";

/// Programs that are looked at.
const PROCESSES_MAX: usize = 10_000;

/// Words about why a port could not be opened, to be added to the kernel's own; empty where there are none. It reads files: not for a
/// thread that others wait for.
pub fn why(error: io::ErrorKind, port: u16, protocol: Protocol) -> String {
    let why = match error {
        io::ErrorKind::AddrInUse => of(port, protocol),
        io::ErrorKind::PermissionDenied => Some(RESERVED.to_owned()),
        _ => None,
    };
    why.map(|why| format!("; {why}")).unwrap_or_default()
}

/// Who has the port; `None` when the kernel does not say.
fn of(port: u16, protocol: Protocol) -> Option<String> {
    let (tables, state) = match protocol {
        Protocol::Tcp => (["tcp", "tcp6"], Some("0A")),
        Protocol::Udp => (["udp", "udp6"], None),
        Protocol::Sctp => return None,
    };
    let rows = tables.iter().filter_map(|table| std::fs::read_to_string(format!("/proc/self/net/{table}")).ok());
    let rows: Vec<(String, String)> = rows.flat_map(|text| listening(&text, port, state)).collect();
    let (uid, _) = rows.first()?;
    let program = program(&rows.iter().map(|(_, inode)| format!("socket:[{inode}]")).collect::<Vec<_>>());
    Some(program.unwrap_or_else(|| format!("it is that of a program of user {uid}")))
}

/// Users and inodes of the sockets that listen at the port.
fn listening(table: &str, port: u16, state: Option<&str>) -> Vec<(String, String)> {
    let row = |row: &str| {
        let fields: Vec<&str> = row.split_ascii_whitespace().collect();
        let (own, is, uid, inode) = (fields.get(1)?, fields.get(3)?, fields.get(7)?, fields.get(9)?);
        let (_, number) = own.split_once(':')?;
        let is_there = u16::from_str_radix(number, 16) == Ok(port) && state.is_none_or(|state| state == *is);
        is_there.then(|| ((*uid).to_owned(), (*inode).to_owned()))
    };
    table.lines().skip(1).filter_map(row).collect()
}

/// The program that has one of these sockets open.
fn program(sockets: &[String]) -> Option<String> {
    let own = std::fs::metadata("/proc/self").ok()?.uid();
    for process in std::fs::read_dir("/proc").ok()?.flatten().take(PROCESSES_MAX) {
        let id = process.file_name().to_string_lossy().parse::<u32>();
        let Ok(id) = id else { continue };
        // Root may look at all, others at their own.
        if own != 0 && process.metadata().is_ok_and(|metadata| metadata.uid() != own) {
            continue;
        }
        let Ok(open) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let mut links = open.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
        if links.any(|link| sockets.iter().any(|socket| link.as_os_str() == socket.as_str())) {
            if id == std::process::id() {
                return Some(
                    "this process listens there itself, as for Ingresses (--http-port, --https-port)".to_owned(),
                );
            }
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("it is that of process {id} ({})", name.trim()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn a_port_s_program_is_found() {
        let (tcp, udp) = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        for (port, protocol) in
            [(tcp.local_addr().unwrap().port(), Protocol::Tcp), (udp.local_addr().unwrap().port(), Protocol::Udp)]
        {
            let found = of(port, protocol).unwrap();
            assert!(found.starts_with("this process listens there itself"), "{found}");
        }
        let free = tcp.local_addr().unwrap().port();
        drop(tcp);
        assert_eq!(of(free, Protocol::Tcp), None);
    }

    #[test]
    fn a_program_of_another_user_is_named_by_its_user() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1001        0 4242 1 0 100 0 0 10 0\n   \
                     1: 0100007F:0050 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4243 1 0 100 0 0 10 0\n";
        assert_eq!(listening(table, 80, Some("0A")), [("1001".to_owned(), "4242".to_owned())]);
        assert_eq!(listening(table, 81, Some("0A")), []);
    }
}
