//! The lock that makes one relay active, and the proof, batch by batch, that it still is.
//!
//! `GET_LOCK` lives as long as its connection. That connection has `wait_timeout` 5 s and is pinged
//! twice a second, so the server gives the lock to a standby at most 5 s after the last statement.
//! The lease ends 3 s after the *sending* of the last answered ping, so a process that was stopped or
//! suspended knows before its next batch that somebody else may have taken over.
//!
//! Between two pings the connection sleeps in the server: with a statement always under way, a
//! connection that is killed says so at once, and not at the next ping, when a standby may have
//! published for a while.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::future::{Either, select};
use rustix::time::{ClockId, clock_gettime};
use sha2::{Digest, Sha256};
use sqlx::mysql::MySqlConnection;
use sqlx::{Connection, Executor};
use tokio::sync::{Notify, watch};

use crate::leadership::server_clock::Clock;
use crate::leadership::server_identity::{self, ServerId};
use crate::outbox_table::OutboxTable;

const PING_EVERY: Duration = Duration::from_millis(500);
/// The same, inside the server.
const SLEEP: &str = "DO SLEEP(0.5)";
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two connections.
const RECONNECT_EVERY: Duration = Duration::from_secs(1);
/// Server side, in seconds. Must be more than `PING_TIMEOUT` plus `PING_EVERY`.
const WAIT_TIMEOUT_S: u32 = 5;

/// Cheap to clone and to check.
#[derive(Clone, Debug, Default)]
pub struct Lease {
    until_ns: Arc<AtomicU64>,
    given_up: Arc<Notify>,
}

impl Lease {
    /// True until 3 s after the sending of the last answered ping.
    pub fn is_valid(&self) -> bool {
        boot_ns() < self.until_ns.load(Ordering::Acquire)
    }

    fn extend(&self, sent_ns: u64) {
        let ttl = u64::try_from(PING_TIMEOUT.as_nanos()).unwrap_or(u64::MAX);
        self.until_ns
            .store(sent_ns.saturating_add(ttl), Ordering::Release);
    }

    fn end(&self) {
        self.until_ns.store(0, Ordering::Release);
    }

    /// Ends it and lets go of the lock's connection: the server it is on is not to be relied on.
    pub fn give_up(&self) {
        self.end();
        self.given_up.notify_one();
    }
}

/// `CLOCK_BOOTTIME` goes on while the machine is suspended; the monotonic clock does not.
fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// What the lock's keeper says.
#[derive(Clone, Debug)]
pub enum Leadership {
    /// Another relay's.
    Standby(String),
    /// Not known, and why: the database is away, or read-only.
    Unknown(String),
    /// Ours.
    Leader {
        /// The database's clock at a moment of ours, renewed with every ping.
        clock: Clock,
        /// Where the lock is. A name may lead to several servers, and a lock on one of them says
        /// nothing about another.
        server: ServerId,
    },
}

/// The name of the lock: server-wide and at most 64 characters, so a hash of database and table.
pub fn lock_name(table: &OutboxTable) -> String {
    let digest = Sha256::digest(format!("{}.{}", table.url.database(), table.name));
    let hex: String = digest
        .iter()
        .take(20)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("relay:{hex}")
}

/// Acquires the lock, keeps it, and starts over when it is lost, until the listener goes away.
///
/// # Errors
/// Never by itself; the type is that of a task.
pub async fn keep(
    table: OutboxTable,
    lease: Lease,
    state: watch::Sender<Leadership>,
) -> anyhow::Result<()> {
    let name = lock_name(&table);
    loop {
        let why = match hold(&table, &name, &lease, &state).await {
            Ok(why) => why,
            Err(err) => format!("{err:#}"),
        };
        lease.end();
        if state.send(Leadership::Unknown(why)).is_err() {
            return Ok(());
        }
        tokio::time::sleep(RECONNECT_EVERY).await;
    }
}

/// One connection's life: take the lock, then ping it, every half second. Returns why it ended
/// without an error.
async fn hold(
    table: &OutboxTable,
    name: &str,
    lease: &Lease,
    state: &watch::Sender<Leadership>,
) -> anyhow::Result<String> {
    let (mut connection, server) = server_identity::connect(&table.url, WAIT_TIMEOUT_S)
        .await
        .context("connecting to the database")?;
    let_it_sleep(&mut connection).await?;
    let mut leading = false;
    loop {
        let sent_ns = boot_ns();
        if !leading {
            // Never a waiting GET_LOCK: a waiter that died inherits the lock.
            let got: Option<i64> = within(
                sqlx::query_scalar("SELECT GET_LOCK(?, 0)")
                    .bind(name)
                    .fetch_one(&mut connection),
            )
            .await?;
            leading = got == Some(1);
        }
        if leading {
            let ping = ping(&mut connection, name).await?;
            if !ping.ours {
                return Ok("the lock was lost".into());
            }
            if ping.read_only {
                within(connection.close()).await?;
                return Ok("the database is read-only: a demoted primary, or read_only=ON".into());
            }
            lease.extend(sent_ns);
            let leader = Leadership::Leader {
                clock: ping.clock,
                server: server.clone(),
            };
            if state.send(leader).is_err() {
                within(connection.close()).await?;
                return Ok("stopped".into());
            }
        } else {
            let holder = Leadership::Standby("another relay holds the lock".into());
            if state.send(holder).is_err() {
                return Ok("stopped".into());
            }
        }
        let (closed, given_up) = (pin!(state.closed()), pin!(lease.given_up.notified()));
        let rested = pin!(rest(&mut connection, leading));
        match select(rested, select(closed, given_up)).await {
            Either::Left((rested, _)) => rested?,
            Either::Right(_) => return Ok("given up".into()),
        }
    }
}

async fn rest(connection: &mut MySqlConnection, leading: bool) -> anyhow::Result<()> {
    if leading {
        within(connection.execute(sqlx::raw_sql(SLEEP))).await?;
    } else {
        tokio::time::sleep(PING_EVERY).await;
    }
    Ok(())
}

/// Neither is the server's slow query log to be filled with naps, nor may a limit cut them short.
async fn let_it_sleep(connection: &mut MySqlConnection) -> anyhow::Result<()> {
    for setting in [
        "SET SESSION long_query_time = 3600",
        // MariaDB's alone.
        "SET SESSION max_statement_time = 0",
    ] {
        let set = tokio::time::timeout(PING_TIMEOUT, connection.execute(sqlx::raw_sql(setting)));
        if let Err(err) = set
            .await
            .context("no answer from the database within 3 s")?
        {
            tracing::debug!(error = %err, setting, "the lock's connection goes on without");
        }
    }
    Ok(())
}

struct Ping {
    ours: bool,
    read_only: bool,
    clock: Clock,
}

async fn ping(connection: &mut MySqlConnection, name: &str) -> anyhow::Result<Ping> {
    let at = Instant::now();
    let (ours, read_only, micros): (Option<i64>, i64, i64) = within(
        sqlx::query_as(
            "SELECT IS_USED_LOCK(?) = CONNECTION_ID(), CAST(@@GLOBAL.read_only AS CHAR) NOT IN ('0', 'OFF'), \
             TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))",
        )
        .bind(name)
        .fetch_one(connection),
    )
    .await?;
    let clock = Clock::new(at + at.elapsed() / 2, micros);
    Ok(Ping {
        ours: ours == Some(1),
        read_only: read_only != 0,
        clock,
    })
}

async fn within<T>(query: impl Future<Output = Result<T, sqlx::Error>>) -> anyhow::Result<T> {
    let answer = tokio::time::timeout(PING_TIMEOUT, query).await;
    Ok(answer.context("no answer from the database within 3 s")??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_three_seconds_after_the_ping_was_sent() {
        let lease = Lease::default();
        assert!(!lease.is_valid());
        lease.extend(boot_ns());
        assert!(lease.is_valid());
        lease.extend(boot_ns() - 3_000_000_000);
        assert!(!lease.is_valid());
    }
}
