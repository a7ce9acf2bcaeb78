//! Every kind of statement that the relay runs, run for no row: what is missing shows before it is needed.

use outbox::row::OutboxStatus;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use svc_kit::database::{Fault, classify};

use super::condition::{Condition, State, denied};
use crate::outbox_table::OutboxTable;
use crate::source::table::queries::Queries;

const NAME: &str = "rights";
/// Somebody's lock on a table is no reason to wait for a day.
const LOCK_WAIT: &str = "SET SESSION innodb_lock_wait_timeout = 5, lock_wait_timeout = 5";

/// Runs them in a transaction that is rolled back; all that is refused is said at once.
pub(super) async fn check(connection: &mut MySqlConnection, table: &OutboxTable) -> Condition {
    let mut refused = Vec::new();
    let rehearsed = rehearse(connection, table, &mut refused).await;
    if let Err(err) = rehearsed {
        return denied(NAME, &err, &table.name);
    }
    let Some(first) = refused.first() else {
        return Condition::ok(NAME, "every statement of the relay's was tried");
    };
    let object = format!("{}.*", table.url.database());
    let one = denied(NAME, first, &object);
    let missing = |err: &&sqlx::Error| matches!(classify(err), Fault::Misconfigured(_));
    if one.state != State::Wrong || refused.len() == 1 {
        return one;
    }
    let mut texts: Vec<String> = refused
        .iter()
        .filter(missing)
        .map(ToString::to_string)
        .collect();
    texts.dedup();
    Condition {
        detail: texts.join("; "),
        ..one
    }
}

async fn rehearse(
    connection: &mut MySqlConnection,
    table: &OutboxTable,
    refused: &mut Vec<sqlx::Error>,
) -> Result<(), sqlx::Error> {
    connection.execute(LOCK_WAIT).await?;
    let queries = Queries::discover(connection, table).await?;
    let mut transaction = connection.begin().await?;
    let page = sqlx::query(AssertSqlSafe(queries.heads_statement()));
    let page = page.bind(0_u64).bind(0_u64).bind(1_u64);
    refused.extend(page.fetch_all(&mut *transaction).await.err());
    let rows = queries.rows(&mut transaction, &[0], OutboxStatus::Pending);
    refused.extend(rows.await.err());
    for statement in statements(&table.name) {
        let tried = transaction.execute(sqlx::raw_sql(AssertSqlSafe(statement)));
        refused.extend(tried.await.err());
    }
    transaction.rollback().await
}

/// With the columns and indexes of the real ones, and keys that no row has.
fn statements(outbox: &str) -> [String; 9] {
    [
        // A mark.
        format!(
            "UPDATE `{outbox}` FORCE INDEX (PRIMARY) SET status = 2, sent_at = UTC_TIMESTAMP(6) \
             WHERE id IN (0) AND message_id IN ('') AND status = 1"
        ),
        // A failure, a parking, the sample of a closed route.
        format!(
            "UPDATE `{outbox}` SET status = 3, attempts = 1, last_error = '', \
             next_attempt_at = UTC_TIMESTAMP(6) WHERE id = 0 AND message_id = '' AND status = 1"
        ),
        format!("SELECT id FROM `{outbox}` WHERE id IN (0) FOR UPDATE SKIP LOCKED"),
        // Clean-up.
        format!(
            "SELECT id, TIMESTAMPDIFF(MICROSECOND, sent_at, UTC_TIMESTAMP(6)) FROM `{outbox}` \
             WHERE status = 2 AND id = 0 ORDER BY id LIMIT 1"
        ),
        format!("DELETE FROM `{outbox}` WHERE id IN (0) AND status = 2"),
        // A pass begins with this one, which has no key; here it changes no row.
        format!("UPDATE `{outbox}_fence` SET n = n + 1 LIMIT 0"),
        format!(
            "INSERT INTO `{outbox}_attempts` (outbox_id, message_id, attempt, class, error) \
             SELECT id, '', 0, '', '' FROM `{outbox}` WHERE id = 0"
        ),
        format!(
            "INSERT INTO operator_actions (actor, action, target, reason, before_state, after_state) \
             SELECT '', '', '', '', '', '' FROM `{outbox}` WHERE id = 0"
        ),
        "SELECT IS_USED_LOCK('relay') = CONNECTION_ID(), @@read_only".to_owned(),
    ]
}
