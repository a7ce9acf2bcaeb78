//! The parts of the benchmark that are processes of their own: what they use can be distinguished.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use e2e::product::Process;
use serde::{Serialize, de::DeserializeOwned};

const PATIENCE: Duration = Duration::from_secs(300);

/// A part that is running.
pub(crate) struct Part(Process);

impl Part {
    /// Starts this program with a hidden command and its arguments.
    pub(crate) fn start(args: &[&str]) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this process has no program file")?;
        Ok(Self(Process::spawn(&program, args, &[])?))
    }

    /// Waits for its end; gives what it has reported.
    pub(crate) async fn reported<T: DeserializeOwned>(self) -> anyhow::Result<T> {
        let status = self.0.wait_exit(PATIENCE).await?;
        let log = self.0.log();
        ensure!(status.success(), "a part of the benchmark failed: {log}");
        let last = log.lines().last().unwrap_or_default();
        serde_json::from_str(last).with_context(|| format!("a part of the benchmark said: {log}"))
    }
}

/// The last line of a part.
pub(crate) fn print_result(reported: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(reported)?);
    Ok(())
}
