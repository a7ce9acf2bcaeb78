//! What systemd learns of a service of `Type=notify`: that it is up, what it does, that it lives.
//!
//! One datagram each, and never waited for. With a send that waits (as libsystemd's and the crate
//! sd-notify's) a service would stand still once a systemd that is frozen has a full queue.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Until it is up, every turn gives the start this much longer; systemd gives up on one that hangs.
const START_EXTENDED: Duration = Duration::from_secs(60);
/// Enough for one line of `systemctl status`.
const STATUS_MAX: usize = 200;

/// The way to systemd; leads nowhere when the service was not started by it.
#[derive(Debug, Default)]
pub struct Systemd {
    socket: Option<(UnixDatagram, SocketAddr)>,
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    ready: bool,
    stopping: bool,
    status: String,
}

impl Systemd {
    /// As the environment says: `NOTIFY_SOCKET`.
    #[must_use]
    pub fn from_env() -> Self {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
            return Self::default();
        };
        Self::at(Path::new(&path)).unwrap_or_else(|err| {
            tracing::warn!(error = %err, ?path, "systemd can't be informed");
            Self::default()
        })
    }

    /// The socket at this path; one that begins with `@` is an abstract one.
    ///
    /// # Errors
    /// No socket can be had, or the path can't be one's.
    pub fn at(path: &Path) -> io::Result<Self> {
        let address = match path.as_os_str().as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(path)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: Some((socket, address)),
            said: Mutex::default(),
        })
    }

    /// The service's main loop has turned, and this is what it does. To be called by that loop alone,
    /// never by a timer beside it: a loop that hangs must be silent.
    pub fn turned(&self, status: &str) {
        if self.socket.is_none() {
            return;
        }
        let mut said = self.said();
        let mut text = match said.ready {
            true => "WATCHDOG=1\n".to_owned(),
            false => format!("EXTEND_TIMEOUT_USEC={}\n", START_EXTENDED.as_micros()),
        };
        let status: String = status
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(STATUS_MAX)
            .collect();
        if status != said.status {
            text.push_str(&format!("STATUS={status}\n"));
            said.status = status;
        }
        self.send(&text);
    }

    /// The service is up. Said once.
    pub fn ready(&self) {
        if !std::mem::replace(&mut self.said().ready, true) {
            self.send("READY=1\n");
        }
    }

    /// A stop was requested. Said once.
    pub fn stopping(&self) {
        if !std::mem::replace(&mut self.said().stopping, true) {
            self.send("STOPPING=1\n");
        }
    }

    fn said(&self) -> std::sync::MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, text: &str) {
        let Some((socket, address)) = &self.socket else {
            return;
        };
        if let Err(err) = socket.send_to_addr(text.as_bytes(), address) {
            tracing::debug!(error = %err, "systemd could not be informed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 1024];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    }

    #[test]
    fn a_turn_extends_the_start_and_feeds_the_watchdog_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let systemd = Systemd::at(&path).unwrap();
        systemd.turned("waiting\nfor the database");
        let reported = "EXTEND_TIMEOUT_USEC=60000000\nSTATUS=waiting for the database\n";
        assert_eq!(received(&socket), reported);
        systemd.ready();
        systemd.ready();
        assert_eq!(received(&socket), "READY=1\n");
        systemd.turned("tailing");
        assert_eq!(received(&socket), "WATCHDOG=1\nSTATUS=tailing\n");
        systemd.turned("tailing");
        assert_eq!(received(&socket), "WATCHDOG=1\n");
        systemd.stopping();
        systemd.stopping();
        systemd.turned("draining");
        assert_eq!(received(&socket), "STOPPING=1\n");
        assert_eq!(received(&socket), "WATCHDOG=1\nSTATUS=draining\n");
    }

    #[test]
    fn an_abstract_socket_is_named_with_an_at() {
        let name = format!("svc-kit-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        let systemd = Systemd::at(Path::new(&format!("@{name}"))).unwrap();
        systemd.ready();
        assert_eq!(received(&socket), "READY=1\n");
    }

    #[test]
    fn a_systemd_that_reads_nothing_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _never_read = UnixDatagram::bind(&path).unwrap();
        let systemd = Systemd::at(&path).unwrap();
        for _ in 0..10_000 {
            systemd.turned("tailing");
        }
    }
}
