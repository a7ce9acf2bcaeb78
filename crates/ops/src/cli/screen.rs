//! What a verb found or did, as text for a terminal.

use std::fmt::Write as _;

use crate::act::Outcome;
use crate::audit::{Actions, Last};
use crate::bulk::{Bulk, BulkOutcome};
use crate::detail::Detail;
use crate::edit::Edited;
use crate::groups::Groups;
use crate::row::{Page, Row};

/// Longest text of a cell.
const CELL_MAX: usize = 60;

/// Can be shown on a terminal.
pub(super) trait Screen {
    /// Whole lines.
    fn screen(&self) -> String;
}

/// Whatever a message holds, it must not steer the terminal.
fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn cell(text: Option<&str>) -> String {
    let text = clean(text.unwrap_or("-"));
    match text.chars().count() > CELL_MAX {
        true => text.chars().take(CELL_MAX - 1).chain(['…']).collect(),
        false => text,
    }
}

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|name| name.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let head: Vec<String> = head.iter().map(ToString::to_string).collect();
    let mut out = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let pad = width.saturating_sub(cell.chars().count()) + 2;
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', pad));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A row's state, with the table's own name for it where that is another.
fn state(row: &Row) -> String {
    match (row.state.name(), row.state_name) {
        (name, own) if name == own => own.to_owned(),
        (name, own) => format!("{name} ({own})"),
    }
}

/// Seconds for people.
fn age(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 120.0 => format!("{seconds:.0}s"),
        seconds if seconds < 7_200.0 => format!("{:.0}m", seconds / 60.0),
        seconds if seconds < 172_800.0 => format!("{:.0}h", seconds / 3_600.0),
        seconds => format!("{:.0}d", seconds / 86_400.0),
    }
}

impl Screen for Page {
    fn screen(&self) -> String {
        let line = |row: &Row| {
            vec![
                cell(Some(&row.key)),
                row.state_name.to_owned(),
                age(row.age_seconds),
                row.attempts.to_string(),
                cell(row.class.as_deref()),
                cell(row.event_type.as_deref()),
                cell(row.aggregate_id.as_deref()),
                cell(row.routing_key.as_deref()),
                cell(row.last_error.as_deref()),
            ]
        };
        let rows: Vec<Vec<String>> = self.rows.iter().map(line).collect();
        let head = [
            "KEY",
            "STATE",
            "AGE",
            "TRIES",
            "CLASS",
            "TYPE",
            "AGGREGATE",
            "ROUTE",
            "ERROR",
        ];
        let mut out = table(&head, &rows);
        if let Some(looked_at) = self.looked_at {
            _ = writeln!(out, "looked at {looked_at} rows, there are more");
        }
        if let Some(next) = &self.next {
            _ = writeln!(out, "next: --after '{}'", clean(next));
        }
        out
    }
}

impl Screen for Groups {
    fn screen(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .groups
            .iter()
            .map(|group| {
                vec![
                    cell(group.class.as_deref()),
                    group.rows.to_string(),
                    age(group.oldest_age_seconds),
                ]
            })
            .collect();
        let mut out = table(&["CLASS", "ROWS", "OLDEST"], &rows);
        if let Some(looked_at) = self.looked_at {
            _ = writeln!(out, "of the oldest {looked_at} rows; there are more");
        }
        out
    }
}

fn line(out: &mut String, name: &str, text: Option<&str>) {
    if let Some(text) = text {
        _ = writeln!(out, "{name:<13}{}", clean(text));
    }
}

impl Screen for Detail {
    fn screen(&self) -> String {
        let mut out = String::new();
        let row = &self.row;
        line(&mut out, "key", Some(&row.key));
        line(&mut out, "message id", Some(&row.message_id));
        line(&mut out, "state", Some(&state(row)));
        line(&mut out, "type", row.event_type.as_deref());
        line(&mut out, "aggregate", row.aggregate_type.as_deref());
        line(&mut out, "aggregate id", row.aggregate_id.as_deref());
        line(&mut out, "exchange", row.exchange.as_deref());
        line(&mut out, "routing key", row.routing_key.as_deref());
        line(&mut out, "content type", self.content_type.as_deref());
        line(&mut out, "attempts", Some(&row.attempts.to_string()));
        line(&mut out, "next attempt", row.next_attempt_at.as_deref());
        line(&mut out, "last error", row.last_error.as_deref());
        let deliveries = row.deliveries.map(|n| n.to_string());
        line(&mut out, "deliveries", deliveries.as_deref());
        line(&mut out, "headers", self.headers.as_deref());
        for bulk in &self.bulks {
            line(&mut out, "bulk", Some(&bulk.to_string()));
        }
        out.push_str("\nlife\n");
        for moment in &self.life {
            let at = moment.at.as_deref().unwrap_or("-");
            let (what, by) = (clean(&moment.what), clean(&moment.by));
            let text = clean(&moment.text);
            _ = writeln!(out, "  {}", format!("{at}  {what} {by}  {text}").trim_end());
        }
        let cut = match self.payload.truncated {
            true => ", its beginning",
            false => "",
        };
        _ = writeln!(out, "\npayload, {} bytes{cut}", self.payload.bytes);
        for text in self.payload.text.lines() {
            _ = writeln!(out, "{}", clean(text));
        }
        out
    }
}

fn last(last: Option<&Last>) -> String {
    last.map(|last| {
        let (action, actor) = (clean(&last.action), clean(&last.actor));
        let at = last.at.as_deref().unwrap_or("-");
        format!("; last {action:?} by {actor} at {at}")
    })
    .unwrap_or_default()
}

impl Screen for Outcome {
    fn screen(&self) -> String {
        match self {
            Self::Done { key, before, after } => {
                format!("{}: {} -> {}\n", clean(key), before.name(), after.name())
            }
            Self::Conflict {
                key,
                now,
                why,
                last: by,
            } => {
                let (key, by) = (clean(key), last(by.as_ref()));
                format!("{key}: NOT DONE, it is {}: {why}{by}\n", now.name())
            }
            Self::Missing { key } => {
                format!("{}: NOT DONE, there is no such row\n", clean(key))
            }
        }
    }
}

impl Screen for Vec<Outcome> {
    fn screen(&self) -> String {
        self.iter().map(Screen::screen).collect()
    }
}

impl Screen for Edited {
    fn screen(&self) -> String {
        let mut out = self.original.screen();
        line(&mut out, "new row", self.key.as_deref());
        line(&mut out, "message id", self.message_id.as_deref());
        out
    }
}

impl Screen for Bulk {
    fn screen(&self) -> String {
        let mut out = String::new();
        line(&mut out, "bulk", Some(&self.id.to_string()));
        line(&mut out, "state", Some(self.state.name()));
        line(&mut out, "started by", Some(&self.actor));
        line(&mut out, "started at", self.started_at.as_deref());
        line(&mut out, "reason", self.reason.as_deref());
        line(&mut out, "filter", Some(&self.filter));
        let rate = match self.rate {
            0.0 => "all at once".to_owned(),
            rate => format!("{rate:.3} rows a second"),
        };
        let (canary, wait) = (self.canary, self.canary_wait);
        let plan = match canary {
            0 => rate,
            _ => format!("{canary} rows first, after {wait} s {rate}"),
        };
        line(&mut out, "plan", Some(&plan));
        line(&mut out, "stopped by", self.stopped_by.as_deref());
        line(&mut out, "its rows", self.following().as_deref());
        if let Some(progress) = &self.progress {
            for (name, rows) in [
                ("rows", progress.rows),
                ("waiting", progress.waiting),
                ("trying", progress.trying),
                ("done", progress.done),
                ("failed", progress.failed),
                ("held back", progress.held),
                ("discarded", progress.discarded),
                ("gone", progress.gone),
            ] {
                line(&mut out, name, Some(&rows.to_string()));
            }
            line(&mut out, "last due", progress.last_due_at.as_deref());
        }
        out
    }
}

impl Screen for Vec<Bulk> {
    fn screen(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .iter()
            .map(|bulk| {
                vec![
                    bulk.id.to_string(),
                    bulk.state.name().to_owned(),
                    cell(bulk.started_at.as_deref()),
                    cell(Some(&bulk.actor)),
                    cell(Some(&bulk.filter)),
                    cell(bulk.stopped_by.as_deref()),
                ]
            })
            .collect();
        let head = ["BULK", "STATE", "STARTED", "BY", "FILTER", "STOPPED BY"];
        table(&head, &rows)
    }
}

impl Screen for BulkOutcome {
    fn screen(&self) -> String {
        match self {
            Self::Done {
                id,
                before,
                after,
                rows,
            } => {
                let rows = match rows {
                    Some(rows) => format!("{rows} rows changed"),
                    None => "the service goes on with its rows".to_owned(),
                };
                let (before, after) = (before.name(), after.name());
                format!("bulk {id}: {before} -> {after}, {rows}\n")
            }
            Self::Early { id, now } => format!(
                "bulk {id}: NOT DONE, it is {}, and its rows are still being held back\n",
                now.name()
            ),
            Self::Conflict { id, now, last: by } => {
                let by = last(by.as_ref());
                format!("bulk {id}: NOT DONE, it is {}{by}\n", now.name())
            }
            Self::Missing { id } => format!("bulk {id}: NOT DONE, there is no such bulk\n"),
        }
    }
}

impl Screen for Actions {
    fn screen(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .actions
            .iter()
            .map(|action| {
                vec![
                    action.id.to_string(),
                    cell(action.at.as_deref()),
                    cell(Some(&action.actor)),
                    cell(Some(&action.action)),
                    cell(Some(&action.target)),
                    cell(action.before.as_deref()),
                    cell(action.after.as_deref()),
                    cell(action.reason.as_deref()),
                ]
            })
            .collect();
        let head = [
            "ID", "AT", "BY", "ACTION", "TARGET", "BEFORE", "AFTER", "REASON",
        ];
        let mut out = table(&head, &rows);
        if let Some(next) = self.next {
            _ = writeln!(out, "next: --before {next}");
        }
        out
    }
}
