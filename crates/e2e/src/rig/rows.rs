//! Rows by the hundred, and what became of one.

use sqlx::{AssertSqlSafe, Executor as _};

use super::{LATER, Rig};
use crate::product::Process;

/// What the relay wrote into a row.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct State {
    pub status: u8,
    pub attempts: u32,
    pub last_error: Option<String>,
}

impl State {
    /// `last_error`, empty where it is NULL.
    pub fn error(&self) -> &str {
        self.last_error.as_deref().unwrap_or_default()
    }
}

/// A row of `outbox_attempts`.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the fields are the columns")]
pub struct Attempt {
    pub attempt: u32,
    pub class: String,
    pub error: String,
    /// Milliseconds since the attempt before.
    pub gap: Option<i64>,
}

impl Rig {
    /// Short waits between attempts, so that a test sees several.
    pub fn set_backoff(&mut self, min: &str, max: &str) -> &mut Self {
        self.set("RELAY_BACKOFF_MIN", min)
            .set("RELAY_BACKOFF_MAX", max)
    }

    /// Inserts rows with these keys and routing keys in one transaction.
    pub async fn insert_all(&self, rows: impl IntoIterator<Item = (String, &str)>) -> Vec<String> {
        let events: Vec<_> = rows
            .into_iter()
            .map(|(key, route)| outbox::Event::new("order", key, "order.placed.v1", route, b"{}"))
            .collect();
        let mut tx = self.pool.begin().await.unwrap();
        for some in events.chunks(1000) {
            outbox::event::write_all(&mut tx, some).await.unwrap();
        }
        tx.commit().await.unwrap();
        events.iter().map(|event| event.id().to_string()).collect()
    }

    /// Runs a statement of the test's own making.
    pub async fn sql(&self, statement: &str) {
        let statement = sqlx::raw_sql(AssertSqlSafe(statement));
        self.pool.execute(statement).await.unwrap();
    }

    /// The state of a row by its message id.
    pub async fn state(&self, message_id: &str) -> State {
        sqlx::query_as("SELECT status, attempts, last_error FROM outbox WHERE message_id = ?")
            .bind(message_id)
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    /// Waits for this status of a row; returns the row's state.
    pub async fn wait_status(&self, message_id: &str, status: u8) -> State {
        crate::wait::until(&format!("status {status}"), LATER, async || {
            let state = self.state(message_id).await;
            (state.status == status).then_some(state)
        })
        .await
    }

    /// Waits until as many rows meet the condition.
    pub async fn wait_count(&self, condition: &str, count: i64) {
        crate::wait::until(
            &format!("{count} rows with {condition}"),
            LATER,
            async || self.count(condition).await == count,
        )
        .await;
    }

    /// Waits for the first pending row of a route, which probes it, to say why the route is closed.
    pub async fn wait_reason(&self, route: &str, text: &str) {
        let statement = format!(
            "SELECT COALESCE(last_error, '') FROM outbox WHERE status = 1 AND {route} \
             ORDER BY id LIMIT 1"
        );
        crate::wait::until(&format!("{text:?} on the probed row"), LATER, async || {
            let statement = AssertSqlSafe(statement.as_str());
            let error: Option<String> = sqlx::query_scalar(statement)
                .fetch_optional(&self.pool)
                .await
                .unwrap();
            error.is_some_and(|error| error.contains(text))
        })
        .await;
    }

    /// Waits until a sample of `/metrics` has this value.
    pub async fn wait_metric(&self, name: &str, value: f64) {
        crate::wait::until(&format!("{name} at {value}"), LATER, async || {
            self.metric(name).await == Some(value)
        })
        .await;
    }

    /// Waits for rows of a closed route of the default exchange.
    pub async fn wait_waiting(&self, routing_key: &str, rows: u32) {
        let name = format!(
            "outbox_relay_waiting_rows{{exchange=\"order-exchange\",routing_key=\"{routing_key}\"}}"
        );
        self.wait_metric(&name, f64::from(rows)).await;
    }

    /// The failed attempts of a row, in order.
    pub async fn attempts(&self, message_id: &str) -> Vec<Attempt> {
        sqlx::query_as(
            "SELECT attempt, class, error, \
             TIMESTAMPDIFF(MICROSECOND, LAG(failed_at) OVER (ORDER BY id), failed_at) DIV 1000 \
             AS gap FROM outbox_attempts WHERE message_id = ? ORDER BY id",
        )
        .bind(message_id)
        .fetch_all(&self.pool)
        .await
        .unwrap()
    }
}

/// Waits for a process to print `text`, and fails at once when it has ended instead.
pub async fn wait_log(process: &Process, text: &str) {
    crate::wait::until(&format!("{text:?} in the log"), LATER, async || {
        if process.log().contains(text) {
            return true;
        }
        let ended = process.ended().unwrap();
        assert!(ended.is_none(), "{ended:?}: {}", process.log());
        false
    })
    .await;
}

/// The relay has neither panicked nor started again.
#[track_caller]
pub fn assert_calm(relay: &Process) {
    let log = relay.log();
    for trouble in ["panicked", "starting again"] {
        assert!(!log.contains(trouble), "{log}");
    }
    assert!(relay.ended().unwrap().is_none(), "{log}");
}
