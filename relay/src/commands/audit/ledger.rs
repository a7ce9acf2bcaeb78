//! What an audit has found: counts, and the first rows of each kind.

use serde::Serialize;

use super::Audit;
use super::inbox::InboxRow;
use super::judge::{Kind, Verdict};
use super::outbox::OutboxRow;

/// The books.
#[derive(Debug, Serialize)]
pub struct Ledger {
    /// Database and table.
    pub outbox: String,
    /// Database.
    pub inbox: String,
    /// Which messages it is about, when not about all.
    pub only: Option<String>,
    /// Nothing is missing, waiting or parked.
    pub balances: bool,
    /// How many of what.
    pub counts: Counts,
    /// The first rows of each kind, at most `--limit`.
    pub rows: Vec<Listed>,
    #[serde(skip)]
    limit: usize,
}

/// How many messages there are of each kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    /// Rows of the outbox that were looked at.
    pub outbox_rows: u64,
    /// Rows of the inbox that were looked at.
    pub inbox_rows: u64,
    /// Sent and processed.
    pub done: u64,
    /// Sent, and not in the inbox.
    pub missing: u64,
    /// Not sent, not received, or not processed yet.
    pub waiting: u64,
    /// Of the missing and waiting ones, those beyond `--late`.
    pub late: u64,
    /// To be looked at by a person, at either end.
    pub parked: u64,
    /// Discarded by a person, at either end.
    pub discarded: u64,
    /// In the inbox, done with, and not in the outbox.
    pub inbox_only: u64,
    /// Deleted from the outbox while the audit ran.
    pub gone: u64,
}

/// A message that is listed.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// `missing`, `waiting`, `parked`, `discarded` or `inbox_only`.
    pub kind: &'static str,
    /// In words.
    pub why: &'static str,
    /// Beyond `--late`.
    pub late: bool,
    /// `outbox.id`, if it is there.
    pub outbox_id: Option<u64>,
    /// The message.
    pub message_id: String,
    /// Its type.
    pub event_type: Option<String>,
    /// Its `aggregate_id`.
    pub key: Option<String>,
    /// Since it was written, or received where the outbox does not have it.
    pub age_seconds: f64,
}

impl Ledger {
    pub(super) fn new(audit: &Audit) -> Self {
        Self {
            outbox: format!("{}.{}", audit.table.url.database(), audit.table.name),
            inbox: format!("{}.inbox", audit.inbox.database()),
            only: audit.chosen.text(),
            balances: false,
            counts: Counts::default(),
            rows: Vec::new(),
            limit: audit.limit,
        }
    }

    /// A message that was judged for good; `None`: it is done.
    pub(super) fn enter(
        &mut self,
        outbox: Option<&OutboxRow>,
        inbox: Option<&InboxRow>,
        verdict: Option<Verdict>,
    ) {
        let Some(verdict) = verdict else {
            self.counts.done += 1;
            return;
        };
        self.counts.late += u64::from(verdict.late);
        let count = self.count_of(verdict.kind);
        *count += 1;
        if *count > self.limit as u64 {
            return;
        }
        let message_id = outbox
            .map(|row| &row.message_id)
            .or(inbox.map(|row| &row.message_id));
        let age = outbox.map(|row| row.age).or(inbox.map(|row| row.age));
        self.rows.push(Listed {
            kind: verdict.kind.name(),
            why: verdict.why,
            late: verdict.late,
            outbox_id: outbox.map(|row| row.id),
            message_id: message_id.cloned().unwrap_or_default(),
            event_type: outbox
                .map(|row| row.event_type.clone())
                .or_else(|| inbox.and_then(|row| row.event_type.clone())),
            key: outbox
                .map(|row| row.key.clone())
                .or_else(|| inbox.and_then(|row| row.key.clone())),
            age_seconds: age.unwrap_or_default().as_secs_f64(),
        });
    }

    fn count_of(&mut self, kind: Kind) -> &mut u64 {
        match kind {
            Kind::Missing => &mut self.counts.missing,
            Kind::Waiting => &mut self.counts.waiting,
            Kind::Parked => &mut self.counts.parked,
            Kind::Discarded => &mut self.counts.discarded,
            Kind::InboxOnly => &mut self.counts.inbox_only,
        }
    }

    pub(super) fn close(&mut self) {
        let Counts {
            missing,
            waiting,
            parked,
            ..
        } = self.counts;
        self.balances = missing == 0 && waiting == 0 && parked == 0;
        // The gravest first; within a kind as they were found.
        let place = |row: &Listed| Kind::ALL.iter().position(|kind| kind.name() == row.kind);
        self.rows.sort_by_key(place);
    }
}
