//! Waiting for a table that somebody has locked.

use std::time::Duration;

use svc_kit::backoff::Backoff;
use svc_kit::database::{Fault, classify};
use tokio::sync::mpsc;

use super::TableNews;

/// Between two tries to read what somebody has locked.
const BUSY_MIN: Duration = Duration::from_millis(50);
const BUSY_MAX: Duration = Duration::from_secs(1);
/// No read may hang for ever on a stalled server.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The tries of one read.
pub(super) struct Tries {
    backoff: Backoff,
    reported: String,
}

impl Tries {
    pub(super) fn new() -> Self {
        Self {
            backoff: Backoff::new(BUSY_MIN, BUSY_MAX),
            reported: String::new(),
        }
    }

    /// The answer, or `None` after a rest, when the read is to be tried again. A new session would
    /// publish again what is confirmed and waits for its mark, so a locked table ends none.
    ///
    /// # Errors
    /// The database's, but for a lock.
    pub(super) async fn settle<T>(
        &mut self,
        answer: Result<T, sqlx::Error>,
        news: &mpsc::Sender<TableNews>,
    ) -> Result<Option<T>, sqlx::Error> {
        let err = match answer {
            Err(err) if classify(&err) == Fault::Busy => err.to_string(),
            answer => return answer.map(Some),
        };
        if err != self.reported {
            tracing::warn!(
                error = err,
                "the table can't be read now and will be tried again"
            );
            self.reported.clone_from(&err);
            // Where nobody listens any more, the session is at its end.
            drop(news.send(TableNews::Refused(err)).await);
        }
        tokio::time::sleep(self.backoff.next()).await;
        Ok(None)
    }
}
