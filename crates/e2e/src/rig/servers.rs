//! Database servers of a test's own: for what would disturb the tests beside it, such as statements
//! that every relay of the server must look into, or a server that is killed.

use std::ops::Deref;

use super::Rig;
use crate::{Db, DbOptions, Flavor};

/// A server that ends with its test.
pub struct OwnDb(&'static Db);

impl OwnDb {
    /// A server with further arguments.
    pub async fn start(flavor: Flavor, args: &[&str]) -> Self {
        let options = DbOptions {
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            ..DbOptions::default()
        };
        Self::with(flavor, options).await
    }

    /// A server with these options.
    pub async fn with(flavor: Flavor, options: DbOptions) -> Self {
        // A rig keeps its server for the whole process; the process of the server ends here, and
        // its directory with the test process.
        Self(Box::leak(Box::new(
            Db::start(flavor, options).await.unwrap(),
        )))
    }

    /// The server itself, for a rig that moves to it.
    pub fn server(&self) -> &'static Db {
        self.0
    }

    /// Migrated tables, the exchange, and a bound queue on this server.
    pub async fn rig(&self) -> Rig {
        Rig::new(self.0).await
    }
}

impl Deref for OwnDb {
    type Target = Db;

    fn deref(&self) -> &Db {
        self.0
    }
}

impl Drop for OwnDb {
    fn drop(&mut self) {
        // It may have been killed by its test already.
        drop(self.0.kill());
    }
}
