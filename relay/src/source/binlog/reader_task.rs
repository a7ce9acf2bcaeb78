//! The task that reads the binlog and hands over groups.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow};
use futures::StreamExt;
use mysql_async::binlog::EventType;
use mysql_async::binlog::events::Event;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::connection::HEARTBEAT;
use super::library::Events;
use super::open_transaction::memory_of;
use super::position::Position;
use super::transaction::{Group, Grouper};

/// Groups between the stream and the machine.
pub const GROUPS_MAX: usize = 1024;
/// Without a heartbeat for this long the stream is dead: there is no read time-out below.
const SILENCE_MAX: std::time::Duration = HEARTBEAT.saturating_mul(3);

/// `HEARTBEAT_LOG_EVENT_V2` of MySQL, which mysql_common has no name for.
const HEARTBEAT_V2: u8 = 41;

/// A group as it arrived.
#[derive(Debug)]
pub struct Arrival {
    /// What it brought.
    pub group: Group,
    /// When.
    pub at: Instant,
    /// It was committed after this, whatever the clocks say: then there was nothing to send.
    pub after: Option<Instant>,
    /// Gives back the group's share of the buffer when dropped.
    _share: Option<OwnedSemaphorePermit>,
}

/// Where the task tells what it has read.
pub struct Outlet {
    /// The groups that concern the outbox, in commit order.
    pub groups: mpsc::Sender<Arrival>,
    /// Everything up to here has been read, and what concerned the outbox is in `groups` already.
    pub position: watch::Sender<Position>,
    /// Bytes that may be in `groups`.
    pub budget: Arc<Semaphore>,
}

/// Reads until an error, or until nobody takes the groups any more.
///
/// # Errors
/// Why the stream ended: the session then catches up and opens another.
pub async fn run(mut events: Events, mut grouper: Grouper, outlet: Outlet) -> anyhow::Result<()> {
    let mut idle_at = None;
    loop {
        let asked = Instant::now();
        let event = tokio::time::timeout(SILENCE_MAX, events.next())
            .await
            .map_err(|_| anyhow!("no event and no heartbeat for {SILENCE_MAX:?}"))?
            .context("the server ended the stream")?
            .context("reading the binlog")?;
        // One that was waited for; others may have lain in a buffer for long.
        if is_heartbeat(&event) && asked.elapsed() > HEARTBEAT / 2 {
            idle_at = Some(Instant::now());
        }
        let before = grouper.position().clone();
        let group = grouper.feed(&event);
        if let Some(group) = group {
            let share = share_of(&outlet.budget, &group).await?;
            let arrival = Arrival {
                group,
                at: Instant::now(),
                after: idle_at,
                _share: share,
            };
            if outlet.groups.send(arrival).await.is_err() {
                return Ok(());
            }
        }
        if *grouper.position() != before {
            outlet.position.send_replace(grouper.position().clone());
        }
    }
}

/// The server sends one when it had nothing else to send for a while.
fn is_heartbeat(event: &Event) -> bool {
    let raw = event.header().event_type_raw();
    raw == EventType::HEARTBEAT_EVENT as u8 || raw == HEARTBEAT_V2
}

async fn share_of(
    budget: &Arc<Semaphore>,
    group: &Group,
) -> anyhow::Result<Option<OwnedSemaphorePermit>> {
    let rows = group.rows.iter().chain(&group.deferred);
    let bytes: usize = rows.map(memory_of).sum();
    if bytes == 0 {
        return Ok(None);
    }
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    Ok(Some(Arc::clone(budget).acquire_many_owned(bytes).await?))
}
