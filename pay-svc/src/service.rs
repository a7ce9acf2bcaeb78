//! The service as a whole: [`build`] binds, [`Service::run`] serves.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use prometheus::Registry;
use svc_kit::admin::{Admin, Readiness};
use svc_kit::boot::{ConfigError, Exit};
use svc_kit::signals::Shutdown;
use svc_kit::tasks::Tasks;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, ProviderSettings};
use crate::consumer::{self, Consumer};
use crate::database::{self, Database};
use crate::gauges;
use crate::http::{self, Api};
use crate::metrics::Metrics;
use crate::provider::{Http, Provider, Simulated};
use crate::prune;
use crate::store::{Handover, Store};
use crate::worker::Worker;

/// A service whose listeners are bound.
pub struct Service {
    config: Config,
    database: Arc<Database>,
    readiness: Readiness,
    metrics: Metrics,
    store: Store,
    provider: Arc<dyn Provider>,
    listener: TcpListener,
    addr: SocketAddr,
    admin: Admin,
    app: Router,
}

/// Binds both listeners, with the provider the settings name. Neither the database nor the broker is
/// needed yet.
///
/// # Errors
/// An address that can't be bound.
pub async fn build(config: Config) -> Result<Service, ConfigError> {
    let provider: Arc<dyn Provider> = match &config.provider {
        ProviderSettings::Simulated(settings) => Arc::new(Simulated::new(*settings)),
        ProviderSettings::Http(settings) => Arc::new(Http::new(settings)),
    };
    build_with(config, provider).await
}

/// As [`build`], with another provider than the settings name.
///
/// # Errors
/// An address that can't be bound.
pub async fn build_with(
    config: Config,
    provider: Arc<dyn Provider>,
) -> Result<Service, ConfigError> {
    let readiness = Readiness::new(&[database::CONDITION, consumer::BROKER, consumer::CONSUMER]);
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).expect("a new registry has no other metric");
    let database = Database::new(
        config.database.clone(),
        config.connections,
        readiness.clone(),
    );
    let store = Store {
        database: Arc::clone(&database),
        metrics: metrics.clone(),
        work: Arc::new(Notify::new()),
    };
    let app = http::router(Api {
        store: store.clone(),
        tokens: config.tokens.clone(),
        places: Arc::new(Semaphore::new(http::BODIES_MAX)),
    });
    let (listener, addr) = svc_kit::http::bind(config.listen_addr).await?;
    let console = console(&config);
    let admin = Admin::bind(
        config.admin_addr,
        readiness.clone(),
        registry,
        ops::router(&console),
    )?;
    Ok(Service {
        config,
        database,
        readiness,
        metrics,
        store,
        provider,
        listener,
        addr,
        admin,
        app,
    })
}

/// The operators' console, on the admin listener.
fn console(config: &Config) -> ops::Console {
    let settings = ops::Settings {
        tokens: config.tokens.clone(),
        allow_edit: config.allow_edit,
        lease: config.work.lease(),
    };
    ops::Console::new(ops::Table::Inbox, config.database.clone(), settings)
}

impl Service {
    /// Where the payments API listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where the admin listener listens.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.addr()
    }

    /// What is counted.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Serves until `shutdown`, and says how it ended.
    ///
    /// # Errors
    /// A task failed; [`ConfigError`] when a setting must be fixed first.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<Exit> {
        tracing::info!(addr = %self.addr, "payments API listening");
        let mut tasks = Tasks::new();
        let drain = &shutdown.drain;
        let watch = Arc::clone(&self.database).watch(drain.clone());
        tasks.spawn("database", watch);
        let database = Arc::clone(&self.database);
        tasks.spawn(
            "gauges",
            gauges::run(database, self.metrics.clone(), drain.clone()),
        );
        if let Some(retention) = self.config.retention {
            let (database, metrics) = (Arc::clone(&self.database), self.metrics.clone());
            tasks.spawn(
                "prune",
                prune::run(database, metrics, retention, drain.clone()),
            );
        }
        let keeper = ops::bulk::Keeper {
            console: console(&self.config),
            failed: Arc::new(Notify::new()),
            looked: CancellationToken::new(),
            readiness: self.readiness.clone(),
        };
        let handover = self.spawn_workers(&mut tasks, &shutdown, &keeper);
        let stop = drain.clone();
        tasks.spawn("bulks", async move {
            keeper.run(stop).await;
            Ok(())
        });
        let consumer = Consumer {
            amqp: self.config.amqp.clone(),
            store: self.store.clone(),
            handover,
            readiness: self.readiness.clone(),
            settings: self.config.intake,
        };
        tasks.spawn("consumer", consumer.run(drain.clone()));
        let (drain, deadline) = (drain.clone(), self.config.drain_timeout);
        tasks.spawn("http", async move {
            svc_kit::http::serve(self.listener, self.app, drain, deadline).await
        });
        // Probes are answered until everything has ended.
        let _admin = self.admin;
        tasks.supervise(&shutdown).await
    }

    /// One worker always looks for what is due, so only where there are several is anything handed
    /// to the others.
    fn spawn_workers(
        &self,
        tasks: &mut Tasks,
        shutdown: &Shutdown,
        keeper: &ops::bulk::Keeper,
    ) -> Option<Handover> {
        let (workers, handed) = mpsc::channel(1);
        let worker = Worker {
            database: Arc::clone(&self.database),
            provider: Arc::clone(&self.provider),
            metrics: self.metrics.clone(),
            work: Arc::clone(&self.store.work),
            failed: Arc::clone(&keeper.failed),
            bulks_looked_at: keeper.looked.clone(),
            turn: Arc::new(Mutex::new(())),
            handed: Arc::new(Mutex::new(handed)),
            settings: self.config.work.clone(),
        };
        for _ in 0..self.config.workers {
            tasks.spawn("worker", worker.clone().run(shutdown.drain.clone()));
        }
        let handover = Handover {
            workers,
            rows_max: worker.settings.claim_max,
            lease: worker.settings.lease(),
        };
        (self.config.workers > 1).then_some(handover)
    }
}
