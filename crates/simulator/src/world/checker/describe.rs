//! Events and commands in a line each.

use std::time::Instant;

use outbox::row::Row;
use relay::engine::{Command, Event, Read, Report, Write};
use relay::publish::confirms::{Outcome, Verdict};

/// An event.
pub(crate) fn event(event: &Event) -> String {
    match event {
        Event::Page(page) => format!(
            "Page upto {} read_to {} start {:?} end {:?}{} [{}]",
            page.upto,
            page.read_to,
            page.start.as_ref().map(ToString::to_string),
            page.end.as_ref().map(ToString::to_string),
            if page.unreadable.is_some() {
                " unreadable"
            } else {
                ""
            },
            reads(&page.rows)
        ),
        Event::Rows(rows) => format!("Rows [{}]", reads(&rows.rows)),
        Event::Published {
            publisher,
            outcome: result,
        } => format!("Published {publisher} {}", outcome(result)),
        Event::Written(written) => {
            let refused = &written.refused;
            let (marks, failures) = (refused.marks, refused.failures);
            let (rows, given_up) = (&written.rows, &written.given_up);
            format!(
                "Written {rows:?} given up {given_up:?} finished {} refused {marks}+{failures}",
                written.finished
            )
        }
        Event::Committed(transaction) => format!("Committed {:?}", transaction.ids),
        Event::BinlogAt(position) => format!("BinlogAt {position}"),
        other => format!("{other:?}"),
    }
}

fn reads(rows: &[Read]) -> String {
    let read = |read: &Read| {
        let head = &read.head;
        let status = if read.pending { "" } else { "!" };
        let whole = if read.row.is_some() { "+" } else { "" };
        let wait = head
            .wait
            .map_or(String::new(), |wait| format!("~{:.3}s", wait.as_secs_f64()));
        let key = head.key % 1_000;
        let route = String::from_utf8_lossy(&head.route.routing_key).replace("key.", "r");
        format!("{status}{}{whole}:k{key}:{route}{wait}", head.id)
    };
    let shown: Vec<String> = rows.iter().take(20).map(read).collect();
    let more = if rows.len() > 20 {
        format!(" and {} more", rows.len() - 20)
    } else {
        String::new()
    };
    shown.join(" ") + &more
}

fn outcome(result: &Outcome) -> String {
    let Outcome::Settled(verdicts) = result else {
        return format!("{result:?}");
    };
    let letter = |verdict: &Verdict| match verdict {
        Verdict::Confirmed(confirmed) => format!("ok {}", confirmed.id()),
        Verdict::Returned(_) => "returned".to_owned(),
        Verdict::Nacked => "nacked".to_owned(),
        Verdict::Invalid(_) => "invalid".to_owned(),
    };
    let verdicts: Vec<String> = verdicts.iter().map(letter).collect();
    verdicts.join(", ")
}

/// A command.
pub(crate) fn command(command: &Command, now: Instant) -> String {
    match command {
        Command::Publish { publisher, batch } => {
            let row = |row: &Row| {
                let key = String::from_utf8_lossy(&row.aggregate_id).into_owned();
                let route = String::from_utf8_lossy(&row.routing_key).replace("key.", "r");
                format!("{} {}:key {key}:{route}", row.id, row.message_id)
            };
            let rows: Vec<String> = batch.iter().map(row).collect();
            format!("Publish {publisher} [{}]", rows.join(", "))
        }
        Command::Write(Write::Sent(marks)) => {
            let ids: Vec<u64> = marks
                .iter()
                .map(relay::publish::confirms::Confirmed::id)
                .collect();
            format!("Write sent {ids:?}")
        }
        Command::Report(Report::BinlogAway { why, retry_at }) => {
            format!(
                "Report BinlogAway {why} retry in {:?}",
                retry_at.saturating_duration_since(now)
            )
        }
        Command::OpenBinlog(position) => format!("OpenBinlog {position}"),
        other => format!("{other:?}"),
    }
}

/// The name of a command.
pub(crate) fn command_name(command: &Command) -> &'static str {
    match command {
        Command::OpenBinlog(_) => "OpenBinlog",
        Command::CloseBinlog => "CloseBinlog",
        Command::ReadPage(_) => "ReadPage",
        Command::Load(_) => "Load",
        Command::Publish { .. } => "Publish",
        Command::Write(_) => "Write",
        Command::Report(_) => "Report",
        Command::End(_) => "End",
    }
}
