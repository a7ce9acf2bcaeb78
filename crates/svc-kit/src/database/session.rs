//! Sessions: every connection of every service is set up the same way.

use std::time::Duration;

use secrecy::ExposeSecret as _;
use sqlx::mysql::{
    MySqlConnectOptions, MySqlConnection, MySqlPool, MySqlPoolOptions, MySqlSslMode,
};
use sqlx::{ConnectOptions as _, Executor as _};

use super::fault::at_login;
use super::prompt::make_prompt;
use super::{DatabaseUrl, Tls};

/// Longest wait for a connection to be there and set up, or for one of the pool's.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Per connection. Statements with lists come in many lengths, and the server keeps every one that
/// is prepared in memory, up to 16,382 for all connections together.
const PREPARED_STATEMENTS: usize = 64;

/// Everything that statements of this project rely on and that a server's global variables may set
/// otherwise. Each is a variable that any account may set on MySQL 8 and MariaDB 10.6 and later; the
/// comments are run by one of the two alone.
///
/// Without it: a lax `sql_mode` cuts texts and lets zero dates in; `autocommit = 0` never commits a
/// statement outside a transaction; `sql_safe_updates` refuses an UPDATE without a key (1175);
/// `sql_select_limit` cuts results; `sql_big_selects = 0` refuses joins (1104); a time limit ends what
/// is slow (1969, 3024); `completion_type` ends the connection with a COMMIT; without `unique_checks`
/// two rows of one message id can be stored;
/// `net_write_timeout` ends a binlog stream whose reader is slow; a small `range_optimizer_max_mem_size`
/// makes a list of ids a scan of the table. READ COMMITTED takes no gap locks. A server's read-only
/// default is not overridden: somebody wants no writes there, and they are waited for.
///
/// sqlx and the driver of the binlog send the rest by themselves: `SET NAMES utf8mb4`.
pub const SESSION: &str = "\
    SET autocommit = 1, completion_type = 0, \
    time_zone = '+00:00', sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION', \
    sql_safe_updates = 0, sql_auto_is_null = 0, sql_big_selects = 1, \
    sql_select_limit = 18446744073709551615, group_concat_max_len = 1048576, \
    foreign_key_checks = 1, unique_checks = 1, default_storage_engine = InnoDB, \
    innodb_lock_wait_timeout = 50, lock_wait_timeout = 86400, \
    net_read_timeout = 30, net_write_timeout = 60, wait_timeout = 28800, \
    /*!80000 max_execution_time = 0, range_optimizer_max_mem_size = 0, big_tables = 0, */ \
    /*M! max_statement_time = 0, idle_transaction_timeout = 0, idle_write_transaction_timeout = 0, */ \
    sql_warnings = 0; \
    SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";

impl DatabaseUrl {
    /// Options for connections that sqlx opens itself: UTC, utf8mb4, statements not logged.
    ///
    /// [`DatabaseUrl::connect`] and [`DatabaseUrl::pool`] set up the rest of the session as well.
    #[must_use]
    pub fn connect_options(&self) -> MySqlConnectOptions {
        let options = MySqlConnectOptions::new()
            .host(self.host())
            .port(self.port())
            .username(self.user())
            .database(self.database())
            .charset("utf8mb4")
            .timezone("+00:00".to_owned())
            .pipes_as_concat(false)
            .no_engine_substitution(false)
            .statement_cache_capacity(PREPARED_STATEMENTS)
            .disable_statement_logging();
        let options = match self.password() {
            Some(password) => options.password(password.expose_secret()),
            None => options,
        };
        match self.tls() {
            Tls::Disabled => options.ssl_mode(MySqlSslMode::Disabled),
            Tls::Preferred => options.ssl_mode(MySqlSslMode::Preferred),
            Tls::Required => options.ssl_mode(MySqlSslMode::Required),
            Tls::VerifyIdentity { ca: None } => options.ssl_mode(MySqlSslMode::VerifyIdentity),
            Tls::VerifyIdentity { ca: Some(ca) } => {
                options.ssl_mode(MySqlSslMode::VerifyIdentity).ssl_ca(ca)
            }
        }
    }

    /// One connection, set up, within 5 s.
    ///
    /// # Errors
    /// As of sqlx; a time-out is an IO error.
    pub async fn connect(&self) -> Result<MySqlConnection, sqlx::Error> {
        tokio::time::timeout(CONNECT_TIMEOUT, async {
            let connected = self.connect_options().connect().await;
            let mut connection = connected.map_err(at_login)?;
            set_up(&mut connection, self.port()).await?;
            Ok(connection)
        })
        .await
        .unwrap_or_else(|_elapsed| {
            let text = format!("no answer from {self} within {CONNECT_TIMEOUT:?}");
            Err(sqlx::Error::Io(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                text,
            )))
        })
    }

    /// A pool that connects at first use, and waits at most 5 s for a connection.
    #[must_use]
    pub fn pool(&self, max_connections: u32) -> MySqlPool {
        self.pool_with(max_connections, "DO 0")
    }

    /// As [`DatabaseUrl::pool`]; each new connection also carries out `more`, such as a SET.
    #[must_use]
    pub fn pool_with(&self, max_connections: u32, more: &'static str) -> MySqlPool {
        let port = self.port();
        MySqlPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(CONNECT_TIMEOUT)
            // The ROLLBACK below queries the server already.
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    set_up(connection, port).await?;
                    connection.execute(more).await.map(|_| ())
                })
            })
            // A `begin` that was dropped half-way leaves its connection inside a transaction, which
            // the next borrower would write into and a later one commit or lose.
            .before_acquire(|connection, _| {
                Box::pin(async move { connection.execute("ROLLBACK").await.map(|_| true) })
            })
            .connect_lazy_with(self.connect_options())
    }
}

async fn set_up(connection: &mut MySqlConnection, port: u16) -> Result<(), sqlx::Error> {
    make_prompt(port);
    connection.execute(SESSION).await?;
    Ok(())
}
