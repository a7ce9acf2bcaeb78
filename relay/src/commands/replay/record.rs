//! A replay in `operator_actions`: one row before the first message, one at the end. Two, because the
//! table is only ever added to; a replay that was killed has no second one.

use anyhow::Context as _;

use super::{Replay, Report};

/// Before the first message.
pub(super) async fn begin(replay: &Replay, report: &Report) -> anyhow::Result<()> {
    let before = format!("{} rows sent once", report.matched);
    let writing = write(replay, report, "replay", (&before, "being sent again"));
    writing
        .await
        .context("writing down in operator_actions that the replay begins; nothing was sent")
}

/// At the end, whatever it was. By a connection of its own: the replay may have lost its.
pub(super) async fn end(replay: &Replay, report: &Report) -> anyhow::Result<()> {
    let before = format!("{} rows sent once", report.matched);
    let after = match &report.stopped {
        None => format!("{} rows sent again", report.sent),
        Some(stopped) => format!(
            "{} rows sent again; stopped: {}; goes on after id {}",
            report.sent, stopped.why, stopped.after
        ),
    };
    let writing = write(replay, report, "replay_end", (&before, &after));
    writing
        .await
        .context("writing down in operator_actions that the replay has ended")
}

async fn write(
    replay: &Replay,
    report: &Report,
    action: &str,
    (before, after): (&str, &str),
) -> anyhow::Result<()> {
    let id = report.replay_id.as_deref().unwrap_or_default();
    let target = format!("{} replay {id}: {}", replay.table.name, replay.filter);
    let mut connection = replay.table.url.connect().await?;
    sqlx::query(
        "INSERT INTO operator_actions (actor, action, target, reason, before_state, after_state) \
         VALUES (?, ?, LEFT(?, 1000), ?, ?, ?)",
    )
    .bind(&replay.actor)
    .bind(action)
    .bind(target)
    .bind(&replay.reason)
    .bind(before)
    .bind(after)
    .execute(&mut connection)
    .await?;
    Ok(())
}
