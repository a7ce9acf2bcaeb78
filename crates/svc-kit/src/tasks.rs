//! Tasks with names, all joined. A panic is an error like any other, never a task that went away.
//!
//! The one place where tasks are spawned: `clippy.toml` bans `tokio::spawn` everywhere else.

use std::collections::HashMap;

use tokio::task::{Id, JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::boot::Exit;

/// The two steps in which a process ends.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Take nothing new, finish what is in hand. Cancelled by the first signal, or by the program.
    pub drain: CancellationToken,
    /// Drop what is in hand. Cancelled by the second signal, or when draining took too long.
    pub now: CancellationToken,
}

/// The tasks of a service, by name. Dropped, it aborts what still runs.
#[derive(Debug, Default)]
pub struct Tasks {
    set: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, &'static str>,
}

/// A task that has ended, and how.
#[derive(Debug)]
pub struct Ended {
    /// The name it was spawned with.
    pub name: &'static str,
    /// What it returned, if it returned.
    pub outcome: Result<(), TaskError>,
}

/// How a task failed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// It returned an error; its causes are in the text.
    #[error("{0:#}")]
    Failed(anyhow::Error),
    /// It panicked, with this message.
    #[error("panicked: {0}")]
    Panicked(String),
    /// [`Tasks::abort_all`] ended it.
    #[error("aborted")]
    Aborted,
}

impl Tasks {
    /// No tasks yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task. Its name is on its log lines and in [`Ended`].
    pub fn spawn(
        &mut self,
        name: &'static str,
        fut: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let span = tracing::info_span!("task", name);
        let id = self.set.spawn(fut.instrument(span)).id();
        self.names.insert(id, name);
    }

    /// Waits for the next task to end; `None` when none is left. Cancel-safe.
    pub async fn join_next(&mut self) -> Option<Ended> {
        let (id, outcome) = match self.set.join_next_with_id().await? {
            Ok((id, returned)) => (id, returned.map_err(TaskError::Failed)),
            Err(err) => (err.id(), Err(TaskError::from(err))),
        };
        // Every id was put there by `spawn`.
        let name = self.names.remove(&id).unwrap_or("unnamed");
        Some(Ended { name, outcome })
    }

    /// Waits for all tasks to end, in whichever order they do.
    pub async fn join_all(mut self) -> Vec<Ended> {
        let mut ended = Vec::with_capacity(self.set.len());
        while let Some(task) = self.join_next().await {
            ended.push(task);
        }
        ended
    }

    /// Ends all tasks at their next `await`. They still have to be joined.
    pub fn abort_all(&mut self) {
        self.set.abort_all();
    }

    /// Joins all tasks. One that fails, or ends before it was to, makes the others drain.
    ///
    /// # Errors
    /// The first failure.
    pub async fn supervise(mut self, shutdown: &Shutdown) -> anyhow::Result<Exit> {
        let mut failure = None;
        loop {
            tokio::select! {
                ended = self.join_next() => {
                    let Some(ended) = ended else {
                        return failure.map_or(Ok(Exit::Drained), Err);
                    };
                    if let Err(err) = judge(ended, shutdown.drain.is_cancelled()) {
                        tracing::error!(error = format!("{err:#}"), "task failed");
                        failure.get_or_insert(err);
                    }
                    shutdown.drain.cancel();
                }
                () = shutdown.now.cancelled() => return Ok(Exit::Failed),
            }
        }
    }

    /// No task is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }
}

fn judge(Ended { name, outcome }: Ended, draining: bool) -> anyhow::Result<()> {
    match outcome {
        Ok(()) if draining => Ok(()),
        Ok(()) => anyhow::bail!("{name} ended by itself"),
        // As it is: the program distinguishes wrong configuration from other failures.
        Err(TaskError::Failed(err)) => Err(err),
        Err(err) => Err(anyhow::Error::new(err).context(name)),
    }
}

impl From<JoinError> for TaskError {
    fn from(err: JoinError) -> Self {
        match err.try_into_panic() {
            Ok(panic) => Self::Panicked(
                panic
                    .downcast_ref::<&str>()
                    .map(ToString::to_string)
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_else(|| "no message".to_owned()),
            ),
            Err(_cancelled) => Self::Aborted,
        }
    }
}

/// Runs one unit of database work in a task of its own.
///
/// A handler is dropped when its client goes away, and a `begin` dropped half-way leaves its
/// connection inside a transaction; a task that nobody waits for runs to its end.
#[expect(
    clippy::disallowed_methods,
    reason = "the other place besides Tasks, for whoever waits"
)]
pub fn unit<T: Send + 'static>(fut: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(fut.in_current_span())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_with_the_tasks_name() {
        let mut tasks = Tasks::new();
        tasks.spawn("marker", async { panic!("no row {}", 7) });
        let ended = tasks.join_next().await.unwrap();
        assert_eq!(ended.name, "marker");
        assert_eq!(ended.outcome.unwrap_err().to_string(), "panicked: no row 7");
        assert!(tasks.join_next().await.is_none());
    }

    #[tokio::test]
    async fn an_error_keeps_its_causes() {
        let mut tasks = Tasks::new();
        tasks.spawn("sweep", async {
            Err(anyhow::anyhow!("refused").context("can't read"))
        });
        let ended = tasks.join_next().await.unwrap();
        assert_eq!(
            ended.outcome.unwrap_err().to_string(),
            "can't read: refused"
        );
    }

    #[tokio::test]
    async fn all_tasks_are_joined_under_their_own_names() {
        let mut tasks = Tasks::new();
        tasks.spawn("forever", std::future::pending());
        tasks.spawn("done", async { Ok(()) });
        assert_eq!(tasks.join_next().await.unwrap().name, "done");
        tasks.abort_all();
        let ended = tasks.join_all().await;
        assert_eq!(ended.len(), 1);
        assert_eq!(ended[0].name, "forever");
        assert!(matches!(ended[0].outcome, Err(TaskError::Aborted)));
    }

    #[tokio::test]
    async fn a_unit_of_work_ends_though_nobody_waits_for_it() {
        let (done, ended) = tokio::sync::oneshot::channel();
        drop(unit(async move { done.send(()) }));
        ended.await.unwrap();
    }
}
