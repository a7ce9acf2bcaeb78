//! The service as a whole: [`build`] binds, [`Service::run`] serves.

use std::net::SocketAddr;

use axum::Router;
use prometheus::Registry;
use sqlx::MySqlPool;
use svc_kit::admin::{Admin, Readiness};
use svc_kit::boot::{ConfigError, Exit};
use svc_kit::signals::Shutdown;
use svc_kit::tasks::Tasks;
use tokio::net::TcpListener;

use crate::commit::{self, Committer};
use crate::config::Config;
use crate::http::{self, Api};
use crate::metrics::Metrics;
use crate::probe;
use crate::prune;

/// Whoever locks an idempotency key holds up its deletion for two seconds, not for the server's fifty.
const SET_UP: &str = "SET SESSION innodb_lock_wait_timeout = 2";

/// A service whose listeners are bound.
pub struct Service {
    config: Config,
    pool: MySqlPool,
    metrics: Metrics,
    readiness: Readiness,
    listener: TcpListener,
    addr: SocketAddr,
    admin: Admin,
    app: Router,
    committers: Vec<Committer>,
}

/// Binds both listeners. The database is not needed yet.
///
/// # Errors
/// An address that can't be bound.
pub async fn build(config: Config) -> Result<Service, ConfigError> {
    let readiness = Readiness::new(&[probe::CONDITION]);
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).expect("a new registry has no other metric");
    let pool = config.database.pool_with(config.connections, SET_UP);
    let (orders, committers) = commit::open(config.commit, &config.database, &metrics);
    let app = http::router(
        Api {
            pool: pool.clone(),
            orders,
            times: config.times,
        },
        &registry,
    );
    let (listener, addr) = svc_kit::http::bind(config.listen_addr).await?;
    let admin = Admin::bind(
        config.admin_addr,
        readiness.clone(),
        registry,
        Router::new(),
    )?;
    Ok(Service {
        config,
        pool,
        metrics,
        readiness,
        listener,
        addr,
        admin,
        app,
        committers,
    })
}

impl Service {
    /// Where the orders API listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where the admin listener listens.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.addr()
    }

    /// Serves until `shutdown`, and says how it ended.
    ///
    /// # Errors
    /// A task failed; [`ConfigError`] when a setting must be fixed first.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<Exit> {
        let Self {
            config,
            pool,
            metrics,
            readiness,
            listener,
            addr,
            admin,
            app,
            committers,
        } = self;
        tracing::info!(%addr, "orders API listening");
        let mut tasks = Tasks::new();
        let drain = shutdown.drain.clone();
        tasks.spawn("http", async move {
            svc_kit::http::serve(listener, app, drain, config.drain_timeout).await
        });
        // They end after the last request, when the queue is empty.
        for committer in committers {
            tasks.spawn("committer", committer.run());
        }
        let pruned = (pool.clone(), config.key_retention, shutdown.drain.clone());
        tasks.spawn("idempotency keys", async move {
            let (pool, retention, stop) = pruned;
            prune::run(pool, metrics, retention, stop).await
        });
        let watched = (
            config.database,
            pool.clone(),
            readiness,
            shutdown.drain.clone(),
        );
        tasks.spawn("database", async move {
            let (url, pool, readiness, stop) = watched;
            probe::watch(url, pool, readiness, stop).await
        });
        let exit = tasks.supervise(&shutdown).await;
        drop(admin);
        exit
    }
}
