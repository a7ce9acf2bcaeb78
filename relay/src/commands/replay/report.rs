//! What a replay tells: on a screen or as JSON.

use std::fmt;

use serde::Serialize;

use super::Replay;
use super::survey::{Found, Shown};

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Database and table.
    pub outbox: String,
    /// The rows that were meant, in words.
    pub filter: String,
    /// In the header `x-replay-id` of every message; none when nothing was sent.
    pub replay_id: Option<String>,
    /// Nothing was to be sent.
    pub dry_run: bool,
    /// Rows that the filter takes.
    pub matched: u64,
    /// Why the rule of dedupe refuses the replay.
    pub refused: Option<String>,
    /// Messages that the broker has confirmed.
    pub sent: u64,
    /// Rows that were deleted, or set to another status, before they could be sent.
    pub gone: u64,
    /// What ended it before the last row.
    pub stopped: Option<Stopped>,
    /// The first rows; in a dry run only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    first: Vec<Shown>,
}

/// Where a replay was stopped.
#[derive(Clone, Debug, Serialize)]
pub struct Stopped {
    /// Row and failure, or who stopped it.
    pub why: String,
    /// Every row up to this id was sent again, if it was meant.
    pub after: u64,
    /// The command that goes on.
    pub go_on: String,
}

impl Report {
    pub(super) fn new(replay: &Replay, found: Found) -> Self {
        let refused = (found.too_old > 0).then(|| replay.rule.refusal(found.too_old, found.oldest));
        Self {
            outbox: format!("{}.{}", replay.table.url.database(), replay.table.name),
            filter: replay.filter.to_string(),
            replay_id: None,
            dry_run: false,
            matched: found.rows,
            refused,
            sent: 0,
            gone: 0,
            stopped: found.interrupted.then(|| Stopped {
                why: "by a signal, before the first message".into(),
                after: replay.filter.after,
                go_on: replay.go_on(replay.filter.after),
            }),
            first: found.first,
        }
    }

    pub(super) fn is_dry_run(&mut self) {
        self.dry_run = true;
    }

    pub(super) fn is_worth_sending(&mut self) -> bool {
        self.first.clear();
        self.matched > 0 && self.refused.is_none() && self.stopped.is_none()
    }

    /// Everything that was meant was done.
    pub fn is_done(&self) -> bool {
        self.refused.is_none() && self.stopped.is_none()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "outbox   {}: {}", self.outbox, self.filter)?;
        writeln!(f, "matched  {} rows", self.matched)?;
        for row in &self.first {
            writeln!(
                f,
                "         id {}  {}  {}  key {:?}  sent_at {}",
                row.id,
                row.message_id,
                row.event_type,
                row.key,
                row.sent_at.as_deref().unwrap_or("-")
            )?;
        }
        if self.matched > self.first.len() as u64 && !self.first.is_empty() {
            let more = self.matched - self.first.len() as u64;
            writeln!(f, "         … and {more} more")?;
        }
        if let Some(why) = &self.refused {
            return writeln!(f, "REFUSED  {why}. Nothing was sent.");
        }
        if self.dry_run {
            return writeln!(f, "dry run  nothing was sent");
        }
        if let Some(id) = &self.replay_id {
            writeln!(f, "sent     {} messages again, x-replay-id {id}", self.sent)?;
        }
        if self.gone > 0 {
            writeln!(
                f,
                "gone     {} rows were deleted or changed meanwhile",
                self.gone
            )?;
        }
        if let Some(stopped) = &self.stopped {
            writeln!(f, "STOPPED  {}", stopped.why)?;
            writeln!(f, "go on    {}", stopped.go_on)?;
        }
        Ok(())
    }
}
