//! What `main` of a service does before the runtime starts, and how it ends.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{ExitCode, Termination};

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::trace;

/// How a process ended, as its exit code says to a supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Requested to stop, finished what was in hand: 0.
    Drained,
    /// Gave up, or could not finish in time; starting it again may help: 1.
    Failed,
    /// Starting it again can't help, a setting must be fixed first: 64 (`EX_USAGE`).
    Misconfigured,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Drained => 0,
            Exit::Failed => 1,
            Exit::Misconfigured => 64,
        })
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        self.into()
    }
}

/// A setting that can't work, with the fix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}; {fix}")]
pub struct ConfigError {
    /// The setting's name, as in the environment.
    pub field: String,
    /// What is wrong with it; never a secret.
    pub problem: String,
    /// What to do about it.
    pub fix: String,
}

impl ConfigError {
    /// `problem` is what is wrong, `fix` what to do about it.
    #[must_use]
    pub fn new(
        field: impl Into<String>,
        problem: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
            fix: fix.into(),
        }
    }
}

/// Makes ring the process's TLS provider. First thing in `main`: with two providers compiled in,
/// rustls panics when it has to choose.
pub fn install_crypto() {
    // An error says that one is installed already, by an earlier call.
    _ = rustls::crypto::ring::default_provider().install_default();
}

/// Parses flags and environment. A usage error prints clap's message, without what may be a secret, and
/// ends the process with 64; `--help` and `--version` end it with 0.
#[must_use]
pub fn parse_args<C: clap::Parser>() -> C {
    C::try_parse().unwrap_or_else(|mut err| {
        hide_values(&mut err);
        if err.kind() == ErrorKind::InvalidUtf8 {
            // clap does not say which.
            for name in not_text() {
                let fix = "write it anew, as UTF-8; in a URL other bytes are %XX";
                let wrong = ConfigError::new(name, "is not UTF-8", fix);
                drop(writeln!(
                    std::io::stderr(),
                    "{}: {wrong}",
                    C::command().get_name()
                ));
            }
        }
        // Nobody can be informed when the message can't be printed.
        _ = err.print();
        std::process::exit(if err.use_stderr() { 64 } else { 0 })
    })
}

/// Variables whose value is not UTF-8.
fn not_text() -> impl Iterator<Item = String> {
    std::env::vars_os()
        .filter(|(_, value)| value.to_str().is_none())
        .map(|(name, _)| name.to_string_lossy().into_owned())
}

/// Takes out of a usage error what may be a secret: a URL or a list of tokens in the wrong setting, and
/// words behind a setting, which are the rest of a value that was not quoted.
fn hide_values(err: &mut clap::Error) {
    let is_stray = err.kind() == ErrorKind::UnknownArgument;
    for part in [
        ContextKind::InvalidArg,
        ContextKind::InvalidSubcommand,
        ContextKind::InvalidValue,
    ] {
        let Some(ContextValue::String(text)) = err.get(part) else {
            continue;
        };
        let is_list = text.contains(['@', ',']) || text.matches(':').count() > 1;
        let is_word = is_stray && !text.starts_with('-');
        if is_list || text.contains("://") || is_word {
            err.insert(part, ContextValue::String("…".to_owned()));
        }
    }
}

/// Room on the stack of each thread, in bytes: tables within tables of a whole frame of 128 KiB take 48 MiB
/// in a release build and five times as much in others. Until it is touched it is no memory.
const STACK_MIN: &str = "268435456";

/// Starts the program anew with room for whatever headers a broker delivers. First thing of a program that
/// consumes, before there are threads.
///
/// lapin reads tables within tables by recursion, on a thread of its own with the standard library's 2 MiB:
/// a message with 10 KB of them ended the process, again at each redelivery. The standard library takes
/// another size from the environment alone, and setting a variable of the own process is unsafe.
pub fn make_room_for_headers() {
    const VARIABLE: &str = "RUST_MIN_STACK";
    let mut args = std::env::args_os();
    let Some(name) = args.next().filter(|_| std::env::var_os(VARIABLE).is_none()) else {
        return;
    };
    let mut program = std::process::Command::new("/proc/self/exe");
    let failed = program
        .arg0(name)
        .args(args)
        .env(VARIABLE, STACK_MIN)
        .exec();
    // The log is not there yet.
    drop(writeln!(
        std::io::stderr(),
        "a message with deeply nested headers can end this process, set {VARIABLE}={STACK_MIN}: {failed}"
    ));
}

/// Runs the program's work on a runtime of its own.
///
/// The runtime is left to the end of the process instead of being taken down: lapin's io thread panics
/// when the task it waits for is cancelled, and a program that ends well must not print a panic.
///
/// # Errors
/// Those of the work; and when the operating system gives no threads.
pub fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let done = runtime.block_on(work);
    std::mem::forget(runtime);
    done
}

/// The last word of `main`: an error is the one line an operator needs, whatever `RUST_LOG` says.
#[must_use]
pub fn conclude(program: &str, done: anyhow::Result<Exit>) -> Exit {
    trace::flush();
    done.unwrap_or_else(|err| {
        // Nobody can be informed when the line can't be printed.
        drop(writeln!(std::io::stderr(), "{program}: {err:#}"));
        if err.is::<ConfigError>() {
            Exit::Misconfigured
        } else {
            Exit::Failed
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_error_names_field_problem_and_fix() {
        let err = ConfigError::new("AMQP_URL", "has no host", "write amqp://host:5672/%2F");
        assert_eq!(
            err.to_string(),
            "AMQP_URL: has no host; write amqp://host:5672/%2F"
        );
    }

    #[test]
    fn exit_codes_are_those_of_the_contract() {
        for (exit, code) in [
            (Exit::Drained, 0),
            (Exit::Failed, 1),
            (Exit::Misconfigured, 64),
        ] {
            assert_eq!(
                format!("{:?}", exit.report()),
                format!("{:?}", ExitCode::from(code))
            );
        }
    }
}
