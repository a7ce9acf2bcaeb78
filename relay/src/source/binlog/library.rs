//! The libraries that can read a binlog. What an event means is common to them.

use std::str::FromStr;

use futures::StreamExt;
use svc_kit::boot::ConfigError;
use svc_kit::database::DatabaseUrl;
#[cfg(feature = "mysql-cdc")]
use svc_kit::database::Tls;

use super::Events;
#[cfg(feature = "mysql-cdc")]
use super::cdc;
use super::connection;
use crate::engine::position::Position;
use crate::leadership::server_identity::ServerId;

/// The library that reads the binlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The default: TLS.
    MysqlAsync,
    /// The second: see `cdc`.
    #[cfg(feature = "mysql-cdc")]
    MysqlCdc,
}

impl FromStr for Reader {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "mysql_async" => Ok(Self::MysqlAsync),
            #[cfg(feature = "mysql-cdc")]
            "mysql_cdc" => Ok(Self::MysqlCdc),
            #[cfg(not(feature = "mysql-cdc"))]
            "mysql_cdc" => Err(
                "this relay was built without it: `cargo build --release -p relay \
                 --features mysql-cdc` builds one with it, which links OpenSSL"
                    .into(),
            ),
            _ => Err("it is mysql_async or mysql_cdc".into()),
        }
    }
}

impl Reader {
    /// Refuses a connection that the library can't make.
    ///
    /// # Errors
    /// What it lacks, and the fix.
    pub fn check(self, url: &DatabaseUrl) -> Result<(), ConfigError> {
        match (self, url.tls()) {
            #[cfg(feature = "mysql-cdc")]
            (Self::MysqlCdc, Tls::Required | Tls::VerifyIdentity { .. }) => Err(ConfigError {
                field: "RELAY_READER".into(),
                problem: "mysql_cdc has no TLS, and ssl-mode in DATABASE_URL requests it".into(),
                fix: "set RELAY_READER=mysql_async, or ssl-mode=DISABLED or PREFERRED".into(),
            }),
            _ => Ok(()),
        }
    }

    /// Connects and requests the binlog from `from` on, of `server` if one is named: the position of
    /// one means nothing on another.
    ///
    /// # Errors
    /// [`crate::leadership::server_identity::OtherServer`], or the library's. A missing right or a purged
    /// position shows with the first event only, and so does the other server with `mysql_cdc`.
    pub async fn open(
        self,
        url: &DatabaseUrl,
        from: &Position,
        server: Option<&ServerId>,
    ) -> anyhow::Result<Events> {
        Ok(match self {
            Self::MysqlAsync => {
                let events = connection::open(url, from, server).await?;
                events.map(|event| Ok(event?)).boxed()
            }
            #[cfg(feature = "mysql-cdc")]
            Self::MysqlCdc => cdc::open(url, from, server.cloned())?,
        })
    }
}
