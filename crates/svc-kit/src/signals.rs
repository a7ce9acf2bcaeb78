//! SIGTERM and SIGINT: the first means drain, the second stop.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::tasks;
pub use crate::tasks::Shutdown;

/// Listens from here on; the default action of both signals is off.
///
/// # Errors
/// The operating system refused the handlers.
pub fn listen(drain_timeout: Duration) -> std::io::Result<Shutdown> {
    let mut signals = Signals {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
    };
    let shutdown = Shutdown::default();
    let Shutdown { drain, now } = shutdown.clone();
    // Ends with the runtime; nothing waits for it.
    drop(tasks::unit(async move {
        tokio::select! {
            name = signals.next() => tracing::info!(signal = name, "draining"),
            () = drain.cancelled() => tracing::info!("draining"),
        }
        drain.cancel();
        tokio::select! {
            name = signals.next() => tracing::warn!(signal = name, "stopping without draining"),
            () = tokio::time::sleep(drain_timeout) => {
                tracing::warn!(drain_timeout = ?drain_timeout, "drain deadline passed");
            }
        }
        now.cancel();
    }));
    Ok(shutdown)
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, getpid, kill_process};
    use tokio::sync::Mutex;

    use super::*;

    /// Signals reach every listener of the process: one test at a time.
    static ALONE: Mutex<()> = Mutex::const_new(());

    #[tokio::test]
    async fn the_first_signal_drains_and_the_second_stops() {
        let _alone = ALONE.lock().await;
        let shutdown = listen(Duration::from_secs(3600)).unwrap();
        assert!(!shutdown.drain.is_cancelled());
        kill_process(getpid(), Signal::TERM).unwrap();
        shutdown.drain.cancelled().await;
        assert!(!shutdown.now.is_cancelled());
        kill_process(getpid(), Signal::INT).unwrap();
        shutdown.now.cancelled().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_takes_too_long_is_cut_short() {
        let _alone = ALONE.lock().await;
        let shutdown = listen(Duration::from_secs(25)).unwrap();
        shutdown.drain.cancel();
        let begun = tokio::time::Instant::now();
        shutdown.now.cancelled().await;
        assert!(begun.elapsed() >= Duration::from_secs(25));
    }
}
