//! One process of a throwaway server: started, killed, stopped, paused and started again.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::{owner::Owner, wait};

/// Where programs are looked for, whatever the caller's own PATH is.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command line that can be started again and again; the environment is only what is named.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) dir: PathBuf,
}

/// A process in a group of its own, so that signals reach its children and Ctrl-C does not reach it.
#[derive(Debug)]
pub(crate) struct Server {
    launch: Launch,
    log: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Server {
    /// A server that is not running yet; its output is appended to the file `log`.
    pub(crate) fn new(launch: Launch, log: PathBuf) -> Self {
        Self {
            launch,
            log,
            child: Mutex::new(None),
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the process. Starting a running server is an error.
    pub(crate) fn start(&self) -> anyhow::Result<()> {
        let mut child = self.child();
        if child.is_some() {
            bail!("{} is already running", self.launch.program.display());
        }
        let log = open_log(&self.log)?;
        let (mark, token) = Owner::get()?.mark();
        let started = Command::new(&self.launch.program)
            .args(&self.launch.args)
            .env_clear()
            .env("PATH", PATH)
            .env("LANG", "C.UTF-8")
            .envs(self.launch.env.iter().map(|(name, value)| (name, value)))
            .env(mark, token)
            .current_dir(&self.launch.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("could not share the log file")?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("could not start {}", self.launch.program.display()))?;
        *child = Some(started);
        Ok(())
    }

    /// The process id, or `None` when it is not running.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// How the process ended, if it has ended since the last start.
    pub(crate) fn ended(&self) -> anyhow::Result<Option<ExitStatus>> {
        let mut child = self.child();
        let Some(running) = child.as_mut() else {
            return Ok(None);
        };
        let ended = running
            .try_wait()
            .context("could not look at the process")?;
        if ended.is_some() {
            *child = None;
        }
        Ok(ended)
    }

    /// Sends a signal to the process and the children in its group.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let child = self.child();
        let running = child.as_ref().context("the process is not running")?;
        let group = Pid::from_child(running);
        kill_process_group(group, signal).context("could not send a signal")
    }

    /// SIGKILL, as a power cut would end it, and waits until it is gone. Not running is fine.
    pub(crate) fn kill(&self) -> anyhow::Result<()> {
        let mut child = self.child();
        let Some(mut running) = child.take() else {
            return Ok(());
        };
        match kill_process_group(Pid::from_child(&running), Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(err) => return Err(err).context("could not kill the process"),
        }
        running
            .wait()
            .context("could not wait for the killed process")?;
        Ok(())
    }

    /// Waits until the process has ended by itself.
    pub(crate) async fn wait_ended(&self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("{} to end", self.launch.program.display());
        wait::try_until(&what, timeout, async || self.ended().transpose()).await?
    }

    /// SIGTERM, and waits until the process has ended.
    pub(crate) async fn stop(&self, timeout: Duration) -> anyhow::Result<()> {
        if self.pid().is_none() {
            return Ok(());
        }
        self.signal(Signal::TERM)?;
        self.wait_ended(timeout)
            .await
            .with_context(|| self.log_tail())?;
        Ok(())
    }

    /// Fails with the log's end when the process is not running any more.
    pub(crate) fn must_run(&self) -> anyhow::Result<()> {
        if let Some(status) = self.ended()? {
            bail!(
                "{} ended with {}:\n{}",
                self.launch.program.display(),
                describe(status),
                self.log_tail()
            );
        }
        Ok(())
    }

    /// The file all output goes to.
    pub(crate) fn log_path(&self) -> &Path {
        &self.log
    }

    /// All output so far.
    pub(crate) fn log(&self) -> String {
        fs::read(&self.log)
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// The last lines of output, for error messages.
    pub(crate) fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing can be done about a failure here; the reaper has the last word.
        drop(self.kill());
    }
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("could not open {}", path.display()))
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}
