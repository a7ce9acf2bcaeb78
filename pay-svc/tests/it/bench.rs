//! Store and worker without a broker, driven step by step.

use std::sync::Arc;
use std::time::Duration;

use e2e::{Db, TestDatabase};
use outbox::inbox::Claim;
use outbox::message::Received;
use pay_svc::database::Database;
use pay_svc::ignore::IgnoredTypes;
use pay_svc::metrics::Metrics;
use pay_svc::provider::Provider;
use pay_svc::schedule::Policy;
use pay_svc::store::{Handover, Store};
use pay_svc::worker::{Settings, Step, Worker};
use sqlx::MySqlPool;
use svc_kit::admin::Readiness;
use svc_kit::database::DatabaseUrl;
use tokio::sync::{Mutex, Notify, mpsc};

pub(crate) struct Bench {
    pub(crate) store: Store,
    pub(crate) handover: Handover,
    pub(crate) worker: Worker,
    pub(crate) pool: MySqlPool,
    pub(crate) database: TestDatabase,
}

impl Bench {
    pub(crate) async fn new(db: &Db, provider: Arc<dyn Provider>) -> Self {
        let database = crate::app::database(db).await;
        Self::on(database, provider)
    }

    /// Another instance's store and worker on the same database.
    pub(crate) fn on(test_database: TestDatabase, provider: Arc<dyn Provider>) -> Self {
        let url = DatabaseUrl::parse(&test_database.url).unwrap();
        let database = Database::new(url, 10, Readiness::new(&[]));
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let work = Arc::new(Notify::new());
        let store = Store {
            database: Arc::clone(&database),
            metrics: metrics.clone(),
            work: Arc::clone(&work),
        };
        let (workers, handed) = mpsc::channel(1);
        let handover = Handover {
            workers,
            rows_max: settings().claim_max,
            lease: settings().lease(),
        };
        let worker = Worker {
            failed: Arc::default(),
            bulks_looked_at: tokio_util::sync::CancellationToken::new(),
            database,
            provider,
            metrics,
            work,
            turn: Arc::new(Mutex::new(())),
            handed: Arc::new(Mutex::new(handed)),
            settings: settings(),
        };
        let pool = test_database.pool().unwrap();
        Self {
            store,
            handover,
            worker,
            pool,
            database: test_database,
        }
    }

    pub(crate) async fn take_in(&self, received: Received) -> Claim {
        self.store.take_in(vec![received], None).await.unwrap()[0]
    }

    /// Steps until nothing is due.
    pub(crate) async fn work_off(&self) -> usize {
        let mut worked = 0;
        while let Step::Worked(rows) = self.worker.step().await.unwrap() {
            worked += rows;
        }
        worked
    }

    /// Makes waiting rows due, as time would.
    pub(crate) async fn let_time_pass(&self) {
        sqlx::query("UPDATE inbox SET next_attempt_at = UTC_TIMESTAMP(6) WHERE status = 1")
            .execute(&self.pool)
            .await
            .unwrap();
    }
}

fn settings() -> Settings {
    Settings {
        ignored: IgnoredTypes::parse("stock.*").unwrap(),
        claim_max: 50,
        provider_timeout: Duration::from_secs(2),
        policy: Policy {
            attempts_max: 3,
            backoff_min: Duration::from_secs(60),
            backoff_max: Duration::from_secs(600),
            age_max: Duration::from_secs(3600),
        },
    }
}
