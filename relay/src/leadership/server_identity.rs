//! Which server a connection has come to, and connections that stay.

use std::fmt;
use std::sync::Arc;

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Executor, Row};
use svc_kit::database::DatabaseUrl;

/// What makes a server itself, on MySQL and MariaDB. The binlog's connection queries the same.
pub const IDENTITY: &str = "SHOW GLOBAL VARIABLES \
    WHERE Variable_name IN ('server_uuid', 'server_id', 'hostname', 'port')";

/// `wait_timeout` of connections that are pinged every 15 s: neither is a server's short one to end
/// them, nor are those of a relay that is gone to stay for eight hours.
pub const WAIT_TIMEOUT_S: u32 = 60;

/// The identity of a server. After a failover the same name leads to another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerId(Arc<str>);

impl ServerId {
    /// From the answer to [`IDENTITY`].
    pub fn new(mut variables: Vec<(String, String)>) -> Self {
        variables.sort();
        let texts: Vec<String> = variables
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        Self(texts.join(" ").into())
    }

    /// # Errors
    /// When it is not `expected`.
    pub fn must_be(self, expected: &Self, what: &'static str) -> Result<(), OtherServer> {
        if self == *expected {
            return Ok(());
        }
        Err(OtherServer {
            what,
            found: self,
            expected: expected.clone(),
        })
    }
}

#[cfg(feature = "mysql-cdc")]
impl ServerId {
    /// By the `server_id` alone, which every event carries.
    ///
    /// # Errors
    /// When it has another one.
    pub fn must_have(&self, server_id: u32, what: &'static str) -> Result<(), OtherServer> {
        let found = format!("server_id={server_id}");
        if self.0.split(' ').any(|part| part == found) {
            return Ok(());
        }
        Err(OtherServer {
            what,
            found: Self(found.into()),
            expected: self.clone(),
        })
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Two connections that must be on one server are not.
#[derive(Debug, thiserror::Error)]
#[error(
    "the database's name leads to two servers: the {what} is on [{found}], expected [{expected}]"
)]
pub struct OtherServer {
    /// Which connection.
    pub what: &'static str,
    /// Where it is.
    pub found: ServerId,
    /// Where the lock is.
    pub expected: ServerId,
}

/// A connection that is to stay, and where it is.
///
/// # Errors
/// The database's.
pub async fn connect(
    url: &DatabaseUrl,
    wait_timeout_s: u32,
) -> Result<(MySqlConnection, ServerId), sqlx::Error> {
    let mut connection = url.connect().await?;
    let set_up = async {
        let setting = format!("SET SESSION wait_timeout = {wait_timeout_s}");
        connection
            .execute(sqlx::raw_sql(AssertSqlSafe(setting)))
            .await?;
        let rows = connection.fetch_all(sqlx::raw_sql(IDENTITY)).await?;
        let variables: Result<Vec<_>, sqlx::Error> = rows
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect();
        Ok::<_, sqlx::Error>(ServerId::new(variables?))
    };
    let answer = tokio::time::timeout(SET_UP_TIMEOUT, set_up).await;
    let server = answer.map_err(|_| {
        let text = format!("no answer from {url} within {SET_UP_TIMEOUT:?}");
        sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, text))
    })??;
    Ok((connection, server))
}

const SET_UP_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::ServerId;

    #[test]
    fn a_server_is_itself_in_whatever_order_it_answers() {
        let one = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let here = ServerId::new(vec![one("port", "3306"), one("server_id", "1")]);
        let again = ServerId::new(vec![one("server_id", "1"), one("port", "3306")]);
        let there = ServerId::new(vec![one("server_id", "2"), one("port", "3306")]);
        assert_eq!(here, again);
        assert_ne!(here, there);
        assert_eq!(here.to_string(), "port=3306 server_id=1");
    }
}
