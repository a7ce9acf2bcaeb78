//! TCP_NODELAY on connections to the database.
//!
//! sqlx 0.9.0 leaves Nagle's algorithm on (transact-rs/sqlx#4335; fixed there, not released yet). A
//! statement that leaves in more than one write then waits for the server's delayed ACK, 40 ms each
//! time: over TLS that is every statement of more than 16 KiB, as a mark of 1,024 rows or a batch of an
//! inbox is. sqlx hands out no socket, so it is found among the process' own.
//! To be removed with the sqlx that has the fix.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// Sets it on every connection of this process to a server at this port.
///
/// Never fails: without it the connection is slow, not wrong.
pub(super) fn make_prompt(port: u16) {
    if let Err(err) = try_make_prompt(port) {
        // Once: every connection would say so.
        static TOLD: std::sync::Once = std::sync::Once::new();
        TOLD.call_once(|| {
            tracing::info!(
                error = %err,
                "pidfd_getfd is forbidden here, as container engines do: nothing breaks, but each \
                 statement over 16 KiB waits 40 ms for a delayed ACK of the database"
            );
        });
    }
}

fn try_make_prompt(port: u16) -> std::io::Result<()> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let is_socket = std::fs::read_link(entry.path()).is_ok_and(|target| {
            target
                .as_os_str()
                .as_encoded_bytes()
                .starts_with(b"socket:")
        });
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(number) = number.filter(|_| is_socket) else {
            continue;
        };
        match pidfd_getfd(&own, number, PidfdGetfdFlags::empty()) {
            Ok(socket) => set(&socket, port)?,
            // Closed since it was listed.
            Err(Errno::BADF) => {}
            Err(err) => return Err(err.into()),
        }
    }
    Ok(())
}

/// `socket` is a second handle on the connection: closing it closes nothing.
fn set(socket: &OwnedFd, port: u16) -> std::io::Result<()> {
    let Ok(Some(peer)) = rustix::net::getpeername(socket.as_fd()) else {
        return Ok(());
    };
    let leads_there = SocketAddr::try_from(peer).is_ok_and(|peer| peer.port() == port);
    if leads_there && !sockopt::tcp_nodelay(socket)? {
        sockopt::set_tcp_nodelay(socket, true)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn connections_to_this_port_are_prompt_and_others_are_left_alone() {
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (here, elsewhere) = (listen(), listen());
        let connect = |to: &TcpListener| TcpStream::connect(to.local_addr().unwrap()).unwrap();
        let (to_here, to_elsewhere) = (connect(&here), connect(&elsewhere));
        make_prompt(here.local_addr().unwrap().port());
        assert!(to_here.nodelay().unwrap());
        assert!(!to_elsewhere.nodelay().unwrap());
    }
}
