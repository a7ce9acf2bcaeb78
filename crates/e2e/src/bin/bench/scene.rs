//! Where a key is measured: servers of its own, at one scale.

use std::{collections::HashMap, sync::Arc, sync::Mutex, sync::PoisonError};

use anyhow::{Context as _, ensure};
use e2e::{
    Db, DbOptions, Flavor, Rabbit, TestDatabase,
    product::{Process, binary},
};
use sqlx::MySqlPool;

use crate::queue::{Kind, Queue};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) quick: bool,
    /// Of raw and product.
    pub(crate) rounds: usize,
}

impl Scale {
    pub(crate) fn new(quick: bool, rounds: Option<usize>) -> Self {
        let rounds = rounds.unwrap_or(if quick { 3 } else { 5 }).max(1);
        Self { quick, rounds }
    }

    /// A size: the one of a full run, or that of `QUICK=1`.
    pub(crate) fn pick(self, full: u64, quick: u64) -> u64 {
        if self.quick { quick } else { full }
    }
}

/// One round of emptying a backlog.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drain {
    pub(crate) messages: u64,
    pub(crate) raw_rate: f64,
    pub(crate) rate: f64,
    /// Of the whole raw publisher, in CPU seconds.
    pub(crate) raw_cpu: f64,
    /// Of the whole relay, its start included.
    pub(crate) cpu: f64,
    pub(crate) duplicates: u64,
}

/// What one key has measured and another one shows as well.
#[derive(Default)]
pub(crate) struct Memory {
    drains: Mutex<HashMap<String, Vec<Drain>>>,
}

impl Memory {
    pub(crate) fn drains(&self, of: &str) -> Option<Vec<Drain>> {
        let drains = self.drains.lock().unwrap_or_else(PoisonError::into_inner);
        drains.get(of).cloned()
    }

    pub(crate) fn keep_drains(&self, of: String, drains: Vec<Drain>) {
        let mut kept = self.drains.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(of, drains);
    }
}

/// A fresh database server, the run's broker, and what to print.
pub(crate) struct Scene<'a> {
    key: &'static str,
    pub(crate) flavor: Flavor,
    pub(crate) scale: Scale,
    pub(crate) db: Db,
    pub(crate) rabbit: Arc<Rabbit>,
    pub(crate) memory: &'a Memory,
}

impl<'a> Scene<'a> {
    pub(crate) async fn set_up(
        key: &'static str,
        (flavor, scale): (Flavor, Scale),
        rabbit: &Arc<Rabbit>,
        memory: &'a Memory,
    ) -> anyhow::Result<Self> {
        // The throwaway servers are small. A production server caches its hot pages, and its redo log
        // holds more than the last seconds: else each page is written to disk again and again.
        let redo_log = match flavor {
            Flavor::MariaDb => "--innodb-log-file-size=2G",
            Flavor::MySql => "--innodb-redo-log-capacity=2G",
        };
        let options = DbOptions {
            args: [
                "--innodb-buffer-pool-size=1G",
                "--innodb-flush-method=O_DIRECT",
                redo_log,
            ]
            .map(str::to_owned)
            .to_vec(),
            ..DbOptions::default()
        };
        let db = Db::start(flavor, options).await?;
        Ok(Self {
            key,
            flavor,
            scale,
            db,
            rabbit: Arc::clone(rabbit),
            memory,
        })
    }

    /// Key and server.
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.key, server(self.flavor))
    }

    /// One line of progress.
    pub(crate) fn say(&self, text: &str) {
        println!("{:<28} {text}", self.name());
    }

    /// A database with the outbox in it.
    pub(crate) async fn outbox(&self) -> anyhow::Result<(TestDatabase, MySqlPool)> {
        let database = self.db.create_database().await?;
        self.migrate("relay", &database.url).await?;
        let pool = database.pool()?;
        Ok((database, pool))
    }

    /// `PROGRAM migrate` on a database.
    pub(crate) async fn migrate(&self, program: &str, url: &str) -> anyhow::Result<()> {
        let env = [("DATABASE_URL", url)];
        let process = Process::spawn(&binary(program)?, &["migrate"], &env)?;
        let status = process.wait_exit(std::time::Duration::from_secs(60)).await;
        ensure!(
            status.with_context(|| process.log())?.success(),
            "{program} migrate: {}",
            process.log()
        );
        Ok(())
    }

    /// The exchange and a queue of this kind, in a virtual host of their own.
    pub(crate) async fn queue(&self, kind: Kind) -> anyhow::Result<Queue> {
        let vhost = self.rabbit.create_vhost().await?;
        Queue::declare(vhost, kind).await
    }
}

/// The server's name in results.json.
pub(crate) fn server(flavor: Flavor) -> &'static str {
    match flavor {
        Flavor::MariaDb => "mariadb",
        Flavor::MySql => "mysql",
    }
}
