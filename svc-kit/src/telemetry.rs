//! Log lines on stderr; and the start of the export of traces.

use std::io::{IsTerminal as _, Write};

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

/// Starts logging: what `RUST_LOG` says, `info` without it. Panics are logged as well. Starts the export
/// of traces, where it is compiled in and asked for.
///
/// Does nothing when logging has been started before.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .from_env_lossy()
        .add_directive(NO_PAYLOADS.parse().expect("it is a directive"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Colours are for a person's screen, not for a file or a collector.
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(|| Lines);
    let started = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    if started.is_ok() {
        log_panics();
        trace::init();
    }
}

/// Lines on stderr. A pool that is used before the first contact has failed logs the server's own words.
struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        match std::str::from_utf8(line) {
            Ok(text) if text.contains("denied for user '") => {
                let shown = without_user(text);
                std::io::stderr().write_all(shown.as_bytes())?;
                Ok(line.len())
            }
            _ => std::io::stderr().write(line),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
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
