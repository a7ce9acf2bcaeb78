//! The seam between a library that can read a binlog and everything behind it: events one after the
//! other, and row images that can be asked for a column. What an event means is common.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;

use futures::StreamExt;
use futures::stream::BoxStream;
use mysql_async::Value;
use mysql_async::binlog::events::Event;
use svc_kit::boot::ConfigError;
use svc_kit::database::DatabaseUrl;
#[cfg(feature = "mysql-cdc")]
use svc_kit::database::Tls;

#[cfg(feature = "mysql-cdc")]
use super::cdc;
use super::connection;
use super::images;
use super::position::Position;
use crate::leadership::server_identity::ServerId;

/// The library that reads the binlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The default: TLS, compressed transactions.
    MysqlAsync,
    /// The second: see `cdc`.
    #[cfg(feature = "mysql-cdc")]
    MysqlCdc,
}

/// Events in the binlog's order, without end but by an error.
pub type Events = BoxStream<'static, anyhow::Result<Event>>;

/// An open stream and what takes its row images apart.
pub struct Reading {
    /// The stream.
    pub events: Events,
    /// For [`super::transaction::Grouper::new`].
    pub library: Library,
}

/// What differs between libraries once an event is there.
#[derive(Clone, Copy)]
pub struct Library {
    /// Reads a table map.
    pub layout: fn(&Event) -> Result<Box<dyn Layout>, String>,
    /// Does a compressed transaction come as its events, too?
    pub expands: bool,
}

/// The layout of a table's row images, as one table map tells it.
pub trait Layout: Send + Sync {
    /// How many columns there are.
    fn columns(&self) -> usize;
    /// Shows each after-image of an INSERT, in order, until one is refused.
    ///
    /// # Errors
    /// What can't be decoded, or the refusal.
    fn images(&self, event: &Event, show: Show<'_>) -> Result<(), String>;
    /// Shows each pair of images of an UPDATE, before and after, until one is refused.
    ///
    /// # Errors
    /// What can't be decoded, or the refusal.
    fn changes(&self, event: &Event, show: ShowChange<'_>) -> Result<(), String>;
}

/// Who looks at row images.
pub type Show<'a> = &'a mut dyn FnMut(&mut dyn Image) -> Result<(), String>;

/// Who looks at the two images of a change.
pub type ShowChange<'a> = &'a mut dyn FnMut(&mut dyn Image, &mut dyn Image) -> Result<(), String>;

/// One row image.
pub trait Image {
    /// Values in it.
    fn columns(&self) -> usize;
    /// Takes out a column's value.
    ///
    /// # Errors
    /// It is not there, or of a kind that no column of the outbox has.
    fn take(&mut self, column: usize) -> Result<Value, String>;
}

/// Lets a library read bytes. Those it panics over it can't decode, and a pass finds what they were.
pub(super) fn guarded<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err("the library panicked".into()))
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
    /// What is the library's own in taking events apart.
    pub fn library(self) -> Library {
        match self {
            Self::MysqlAsync => images::LIBRARY,
            #[cfg(feature = "mysql-cdc")]
            Self::MysqlCdc => cdc::LIBRARY,
        }
    }

    /// Refuses a connection that the library can't make.
    ///
    /// # Errors
    /// What it lacks, and the fix.
    pub fn check(self, url: &DatabaseUrl) -> Result<(), ConfigError> {
        match (self, url.tls()) {
            #[cfg(feature = "mysql-cdc")]
            (Self::MysqlCdc, Tls::Required | Tls::VerifyIdentity { .. }) => Err(ConfigError {
                field: "RELAY_READER".into(),
                problem: "mysql_cdc has no TLS, and ssl-mode in DATABASE_URL asks for it".into(),
                fix: "set RELAY_READER=mysql_async, or ssl-mode=DISABLED or PREFERRED".into(),
            }),
            _ => Ok(()),
        }
    }

    /// Connects and asks for the binlog from `from` on, of `server` if one is named: the position of
    /// one means nothing on another.
    ///
    /// # Errors
    /// [`crate::leadership::server_identity::OtherServer`], or the library's. A missing right or a purged position shows
    /// with the first event only, and with `mysql_cdc` the other server, too.
    pub async fn open(
        self,
        url: &DatabaseUrl,
        from: &Position,
        server: Option<&ServerId>,
    ) -> anyhow::Result<Reading> {
        let events = match self {
            Self::MysqlAsync => {
                let events = connection::open(url, from, server).await?;
                events.map(|event| Ok(event?)).boxed()
            }
            #[cfg(feature = "mysql-cdc")]
            Self::MysqlCdc => cdc::open(url, from, server.cloned())?,
        };
        Ok(Reading {
            events,
            library: self.library(),
        })
    }
}
