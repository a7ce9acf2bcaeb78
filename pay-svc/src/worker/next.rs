//! What a worker works on next: what is due, or what has just been stored.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{WorkError, Worker, in_time};
use crate::claim::{self, Claimed};

/// Due retries, and rows of a dead instance, are found by looking.
const POLL_EVERY: Duration = Duration::from_millis(250);

impl Worker {
    /// Waits for work. A claim itself is never broken off; after a drain there is what the consumer
    /// still hands over, then `None`.
    pub(super) async fn next_claim(
        &self,
        drain: &CancellationToken,
    ) -> Result<Option<Claimed>, WorkError> {
        let _turn = tokio::select! {
            biased;
            () = drain.cancelled() => return Ok(self.next_handed().await),
            // Before what is handed over: retries must not wait for a queue to run dry.
            turn = self.turn.lock() => turn,
            Some(handed) = self.next_handed() => return Ok(Some(handed)),
        };
        while !drain.is_cancelled() {
            if let Some(claimed) = self.claim().await? {
                return Ok(Some(claimed));
            }
            tokio::select! {
                () = drain.cancelled() => {}
                () = self.work.notified() => {}
                () = tokio::time::sleep(POLL_EVERY) => {}
            }
        }
        Ok(self.next_handed().await)
    }

    /// `None` when nothing will be handed over any more.
    async fn next_handed(&self) -> Option<Claimed> {
        self.handed.lock().await.recv().await
    }

    pub(super) async fn claim(&self) -> Result<Option<Claimed>, WorkError> {
        let (max, lease) = (self.settings.claim_max, self.settings.lease());
        let claim = claim::claim(self.database.pool(), max, lease);
        in_time(claim).await
    }
}
