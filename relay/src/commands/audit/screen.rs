//! The ledger as text.

use std::fmt;

use super::judge::Kind;
use super::ledger::{Ledger, Listed};
use crate::commands::times::in_words;

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        writeln!(
            f,
            "outbox      {}: {} rows",
            self.outbox, counts.outbox_rows
        )?;
        writeln!(f, "inbox       {}: {} rows", self.inbox, counts.inbox_rows)?;
        if let Some(only) = &self.only {
            writeln!(f, "only        {only}")?;
        }
        writeln!(f, "done        {} sent and processed", counts.done)?;
        writeln!(f, "missing     {} sent, not in the inbox", counts.missing)?;
        writeln!(
            f,
            "waiting     {} not sent, received or processed yet; late, with the missing: {}",
            counts.waiting, counts.late
        )?;
        writeln!(f, "parked      {} at either end", counts.parked)?;
        writeln!(f, "discarded   {} at either end", counts.discarded)?;
        writeln!(
            f,
            "inbox only  {} done, not in the outbox",
            counts.inbox_only
        )?;
        if counts.gone > 0 {
            writeln!(f, "gone        {} deleted meanwhile", counts.gone)?;
        }
        for kind in Kind::ALL {
            self.list(f, kind)?;
        }
        writeln!(
            f,
            "{}",
            if self.balances {
                "BALANCES"
            } else {
                "DOES NOT BALANCE"
            }
        )
    }
}

impl Ledger {
    fn list(&self, f: &mut fmt::Formatter<'_>, kind: Kind) -> fmt::Result {
        let counts = &self.counts;
        let all = match kind {
            Kind::Missing => counts.missing,
            Kind::Waiting => counts.waiting,
            Kind::Parked => counts.parked,
            Kind::Discarded => counts.discarded,
            Kind::InboxOnly => counts.inbox_only,
        };
        let mut shown = 0;
        for row in self.rows.iter().filter(|row| row.kind == kind.name()) {
            writeln!(f, "{row}")?;
            shown += 1;
        }
        if all > shown {
            writeln!(f, "{:<11} … and {} more", kind.name(), all - shown)?;
        }
        Ok(())
    }
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age = std::time::Duration::from_secs_f64(self.age_seconds);
        write!(f, "{:<11} ", self.kind)?;
        match self.outbox_id {
            Some(id) => write!(f, "id {id}  ")?,
            None => write!(f, "no id  ")?,
        }
        write!(f, "{}  ", self.message_id)?;
        // What came over the network or from another program must not move the cursor.
        if let Some(event_type) = &self.event_type {
            write!(f, "{event_type:?}  ")?;
        }
        if let Some(key) = &self.key {
            write!(f, "key {key:?}  ")?;
        }
        let late = if self.late { "LATE, " } else { "" };
        write!(f, "{late}{} old: {}", in_words(age), self.why)
    }
}
