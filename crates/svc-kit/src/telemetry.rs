//! Log lines on stderr; and the start of the export of traces.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::database::without_user;
use crate::trace;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The setting `LOG_FORMAT`, to flatten into a service's own.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct LogArgs {
    /// Shape of the log lines on stderr; RUST_LOG chooses what is logged (default: info)
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// lapin prints every returned message whole, payload and all: that is nothing for a log, and with a
/// large payload too much of it. Who publishes logs the reason itself.
const NO_PAYLOADS: &str = "lapin::returned_messages=off";
/// Unless `RUST_LOG` names it: it logs as an error what is none (an exchange that is not there yet, at the
/// first start), and what is one reaches the caller, who logs it with what it means.
const NO_LIBRARY: &str = "lapin=off";
/// rustls ends the text of a lost connection with a link to its manual, which helps its users' authors.
const LINK: &str =
    ": https://docs.rs/rustls/latest/rustls/manual/_03_howto/index.html#unexpected-eof";

/// The text of an error without a library's link.
pub(crate) fn without_link(text: &str) -> Cow<'_, str> {
    match text.contains(LINK) {
        true => Cow::Owned(text.replace(LINK, "")),
        false => Cow::Borrowed(text),
    }
}

/// Standard error; each write is a line. A pool that is used before the first contact has failed logs
/// the server's own words, with the user's name in them, which may be the password.
struct Lines(io::Stderr);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(line).map(without_link) {
            Ok(text) if text.contains("denied for user '") => {
                self.0.write_all(without_user(&text).as_bytes())?;
            }
            Ok(text) => self.0.write_all(text.as_bytes())?,
            Err(_) => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Starts logging: what `RUST_LOG` says, `info` without it. Panics are logged as well. Starts the export
/// of traces, where it is compiled in and requested.
///
/// Does nothing when logging has been started before.
pub fn init(format: LogFormat) {
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let quiet = match wanted.contains("lapin") {
        true => NO_PAYLOADS,
        false => NO_LIBRARY,
    };
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse_lossy(wanted)
        .add_directive(quiet.parse().expect("it is a directive"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Colours are for a person's screen, not for a file or a collector.
        .with_ansi(io::stderr().is_terminal())
        .with_writer(|| Lines(io::stderr()));
    let started = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    if started.is_ok() {
        log_panics();
        trace::init();
    }
}

/// In JSON logs the default hook's plain text would be the one line that no collector can read.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        let location = panic.location().map(ToString::to_string);
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(message, location, %backtrace, "panicked");
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_librarys_link_is_left_out_of_an_errors_text() {
        let lost =
            format!("IO error: peer closed connection without sending TLS close_notify{LINK} (x)");
        assert_eq!(
            without_link(&lost),
            "IO error: peer closed connection without sending TLS close_notify (x)"
        );
        assert!(matches!(without_link("see https://x"), Cow::Borrowed(_)));
    }
}
