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

/// The session sets its own `sql_mode`: a server's lax one would cut texts and let zero dates in, a
/// server's strange one would read our SQL differently, and with `autocommit=0` of the server's nothing
/// outside a transaction would ever be committed. READ COMMITTED takes no gap locks; the
/// statement is the one spelling that both MySQL and MariaDB 10.11 know.
const SET_UP: &str = "SET autocommit = 1, time_zone = '+00:00', sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION'; \
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

    /// A pool that connects when first asked, and waits at most 5 s for a connection.
    #[must_use]
    pub fn pool(&self, max_connections: u32) -> MySqlPool {
        let port = self.port();
        MySqlPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(CONNECT_TIMEOUT)
            // The ROLLBACK below asks the server already.
            .test_before_acquire(false)
            .after_connect(move |connection, _| Box::pin(set_up(connection, port)))
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
    connection.execute(SET_UP).await?;
    Ok(())
}
