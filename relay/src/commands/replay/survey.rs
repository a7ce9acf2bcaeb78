//! What a replay would send, counted before the first message.

use std::time::Duration;

use serde::Serialize;
use svc_kit::signals::Shutdown;

use super::Replay;
use super::read::{Head, Reader};
use crate::commands::progress::Progress;
use crate::commands::times::rfc3339;

/// Rows shown of a dry run.
const SHOWN_MAX: usize = 10;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Rows that are meant.
    pub(super) rows: u64,
    /// Of these, the ones that the rule of dedupe refuses.
    pub(super) too_old: u64,
    /// Age of the oldest.
    pub(super) oldest: Duration,
    /// The first ones.
    pub(super) first: Vec<Shown>,
    /// A signal came before all were counted.
    pub(super) interrupted: bool,
}

/// A row, as a dry run shows it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Shown {
    /// `outbox.id`.
    pub(super) id: u64,
    /// The message's id.
    pub(super) message_id: String,
    /// `event_type`.
    pub(super) event_type: String,
    /// `aggregate_id`.
    pub(super) key: String,
    /// UTC, RFC 3339.
    pub(super) sent_at: Option<String>,
}

impl From<&Head> for Shown {
    fn from(head: &Head) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            id: head.id,
            message_id: head.message_id.clone(),
            event_type: text(&head.event_type),
            key: text(&head.aggregate_id),
            sent_at: head.sent_at.map(rfc3339),
        }
    }
}

/// Looks at every sent row there is now, page by page: no index leads to `sent_at`.
pub(super) async fn count(
    reader: &mut Reader,
    replay: &Replay,
    stop: &Shutdown,
) -> anyhow::Result<Found> {
    let mut found = Found::default();
    let mut progress = Progress::new("looking at sent rows", reader.upto());
    let mut after = replay.filter.after;
    loop {
        if stop.drain.is_cancelled() {
            found.interrupted = true;
            return Ok(found);
        }
        let page = reader.page(after).await?;
        for head in page.heads.iter().filter(|head| replay.filter.takes(head)) {
            let age = reader.age(head);
            found.rows += 1;
            found.oldest = found.oldest.max(age);
            found.too_old += u64::from(!replay.rule.permits(age));
            if found.first.len() < SHOWN_MAX {
                found.first.push(head.into());
            }
        }
        after = page.upto;
        progress.at(after);
        if page.last {
            return Ok(found);
        }
    }
}
