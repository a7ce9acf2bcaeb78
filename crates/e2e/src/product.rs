//! The product's own programs, run as processes beside the throwaway servers.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;

use crate::{
    owner::Owner,
    server::{Launch, Server},
};

/// The program `name` of this workspace, from the same build as the caller.
///
/// Fails when it is missing or older than its sources: a test must not judge yesterday's program.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let caller = env::current_exe().context("this process has no program file")?;
    let mut dir = caller
        .parent()
        .context("a program file is in a directory")?;
    // A test's program is in `deps`, beside the place of the workspace's own programs.
    if dir.ends_with("deps") {
        dir = dir.parent().context("deps is in a directory")?;
    }
    let program = dir.join(name);
    ensure!(
        program.exists(),
        "{} is not built: run `cargo build -p {name}` first (`cargo test --workspace` does)",
        program.display()
    );
    if let Some(source) = newer_source(&program)? {
        bail!(
            "{} is older than {}: run `cargo build -p {name}` first (`cargo test --workspace` does)",
            program.display(),
            source.display()
        );
    }
    Ok(program)
}

/// A source file that changed after the program was built, by the list cargo leaves beside it.
fn newer_source(program: &Path) -> anyhow::Result<Option<PathBuf>> {
    let Ok(list) = fs::read_to_string(program.with_added_extension("d")) else {
        return Ok(None);
    };
    let modified = |path: &Path| -> anyhow::Result<SystemTime> {
        fs::metadata(path)
            .and_then(|metadata| metadata.modified())
            .with_context(|| format!("could not look at {}", path.display()))
    };
    let built = modified(program)?;
    let sources = list
        .split_once(": ")
        .map_or("", |(_, sources)| sources)
        .trim_end();
    // Make's syntax: a space inside a name is escaped.
    for source in sources.replace("\\ ", "\0").split(' ') {
        let source = PathBuf::from(source.replace('\0', " "));
        // A file that is gone makes the program old as well.
        if modified(&source).map_or(true, |changed| changed > built) {
            return Ok(Some(source));
        }
    }
    Ok(None)
}

/// A running program of the product. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    server: Server,
}

impl Process {
    /// Starts `program` with these arguments and this environment and no other.
    ///
    /// Standard output and error are captured in one log.
    pub fn spawn(program: &Path, args: &[&str], env: &[(&str, &str)]) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let root = Owner::get()?.root();
        let name = program
            .file_name()
            .context("a program has a name")?
            .to_string_lossy();
        let log = root.join(format!(
            "{name}-{}.log",
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        let launch = Launch {
            program: program.to_owned(),
            args: args.iter().map(Into::into).collect(),
            env: env
                .iter()
                .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            dir: root.to_owned(),
        };
        let server = Server::new(launch, log);
        server.start()?;
        Ok(Self { server })
    }

    /// The process id, or `None` once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// Everything it has printed so far.
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// The file its output goes to.
    pub fn log_path(&self) -> &Path {
        self.server.log_path()
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> anyhow::Result<Option<ExitStatus>> {
        self.server.ended()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&self) -> anyhow::Result<()> {
        self.server.kill()
    }

    /// SIGTERM; does not wait.
    pub fn terminate(&self) -> anyhow::Result<()> {
        self.server.signal(Signal::TERM)
    }

    /// SIGSTOP, as a machine that was suspended.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.server.signal(Signal::STOP)
    }

    /// SIGCONT after [`Process::pause`].
    pub fn resume(&self) -> anyhow::Result<()> {
        self.server.signal(Signal::CONT)
    }

    /// Waits until it has ended. On a time-out the error carries the end of its log.
    pub async fn wait_exit(&self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        let ended = self.server.wait_ended(timeout).await;
        ended.with_context(|| self.server.log_tail())
    }

    /// Starts it again with the same arguments and environment; the log goes on. It must have ended.
    pub fn start_again(&self) -> anyhow::Result<()> {
        self.server.start()
    }
}
