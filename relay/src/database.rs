//! What all of the relay's sessions at the database have in common.

use std::time::Duration;

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use svc_kit::database::{Fault, classify};

/// Well under any `wait_timeout` that a server is given.
pub const PING_EVERY: Duration = Duration::from_secs(15);
/// No statement of the relay may hang for ever on a stalled server.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The servers' smallest wait for a lock, in seconds, be it a row's or the table's (LOCK TABLES, or an
/// ALTER that copies): what is locked is put off.
const LOCK_WAIT_S: u32 = 1;

/// The one decision about a statement that failed: the connection is lost, or the server takes no
/// writes, and the session is over; or the server refuses this statement, and the next one may pass.
pub async fn ends_session(connection: &mut MySqlConnection, err: &sqlx::Error) -> bool {
    let over = matches!(err, sqlx::Error::Io(_)) || classify(err) == Fault::ReadOnly;
    over || !matches!(
        tokio::time::timeout(WRITE_TIMEOUT, connection.ping()).await,
        Ok(Ok(()))
    )
}

/// What somebody locks is waited for, for a second at the most.
///
/// # Errors
/// The database's.
pub async fn wait_little_for_locks(connection: &mut MySqlConnection) -> Result<(), sqlx::Error> {
    let set = format!(
        "SET SESSION innodb_lock_wait_timeout = {LOCK_WAIT_S}, lock_wait_timeout = {LOCK_WAIT_S}"
    );
    connection
        .execute(sqlx::raw_sql(AssertSqlSafe(set)))
        .await?;
    Ok(())
}
