//! Connecting: database, broker, and the tasks of a session.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ::ops::{Console, Settings, bulk};
use anyhow::{Context, anyhow};
use sqlx::Connection as _;
use sqlx::mysql::MySqlConnection;
use svc_kit::amqp::{BrokerFault, Channels};
use svc_kit::boot::ConfigError;
use svc_kit::tasks::Tasks;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::Relay;
use crate::cleanup;
use crate::database;
use crate::engine::{PROBE_PUBLISHERS, Write, Written};
use crate::leadership::lock::Lease;
use crate::leadership::server_identity::{self, OtherServer, ServerId, WAIT_TIMEOUT_S};
use crate::observe::{canary, show};
use crate::pause::{self, Pauses, Watch};
use crate::publish::confirms::Outcome;
use crate::publish::connection::{self, Link};
use crate::publish::publisher_task;
use crate::session::{Connected, PUBLISHER, Publisher};
use crate::source::table::queries::Queries;
use crate::source::table::{loader, page_reader};
use crate::writeback::marker_task::{self, Marking};

/// Writes between engine and marker: more than the rows that can be with the broker at once, each of which
/// may fail.
const WRITES_MAX: usize = 1 << 18;
/// For broker, exchange and the connections to the database together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const TRY_TIMEOUT: Duration = Duration::from_secs(2);

impl Relay {
    /// A broker or a database that accepts and then says nothing must not hold the relay.
    pub(crate) async fn connect_in_time(
        &self,
        lease: &Lease,
        server: ServerId,
    ) -> Result<Connected, NotConnected> {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.connect(lease, server)).await;
        connected
            .unwrap_or_else(|_| Err(anyhow!("not connected within {CONNECT_TIMEOUT:?}").into()))
    }

    /// The database first: what is paused is shown while the broker is away as well.
    async fn connect(&self, lease: &Lease, server: ServerId) -> Result<Connected, NotConnected> {
        canary::clear_all(&self.config.table).await;
        let mut reader = self.on_server("page reader", &server).await?;
        database::wait_little_for_locks(&mut reader)
            .await
            .context("setting the wait for locks")?;
        let pauses = self.pauses(&mut reader).await?;
        let resting = bulk::rest_before_start(&mut reader, &self.config.table.for_ops()).await;
        if let Err(err) = resting {
            if database::ends_session(&mut reader, &err).await {
                return Err(anyhow::Error::new(err)
                    .context("holding back stopped bulks")
                    .into());
            }
            tracing::warn!(error = %err, "the rows of stopped bulks can't be held back now");
        }
        let link = match self.connect_broker().await {
            Ok(link) => link,
            Err(err) => {
                // A server logs a connection that goes without a word.
                drop(tokio::time::timeout(CLOSE_TIMEOUT, reader.close()).await);
                return Err(err);
            }
        };
        let database = Database {
            reader,
            loader: self.on_server("row loader", &server).await?,
            marker: self.on_server("marker", &server).await?,
            server,
            pauses,
        };
        let connected = self.start_tasks(lease, link, database).await?;
        self.readiness.set("database", true, "connected");
        Ok(connected)
    }

    /// Connects to the broker and leaves it again. True when it was there.
    ///
    /// # Errors
    /// What no waiting can fix; a broker that is away is none.
    pub(crate) async fn try_broker(&self) -> Result<bool, ConfigError> {
        let connecting = connection::connect(&self.config.amqp, &self.config.name);
        // Not longer: the lock may be free meanwhile.
        let Ok(connected) = tokio::time::timeout(TRY_TIMEOUT, connecting).await else {
            self.show_broker_away(&format!("no answer within {TRY_TIMEOUT:?}"));
            return Ok(false);
        };
        match connected {
            Ok(link) => {
                tracing::info!("the broker was tried, standing by");
                self.readiness.set(
                    "broker",
                    false,
                    "standing by; it was reached at the last try",
                );
                let closing = link.connection.close(200, "standing by".into());
                drop(tokio::time::timeout(CLOSE_TIMEOUT, closing).await);
                Ok(true)
            }
            Err(err) => match svc_kit::amqp::classify(&err) {
                BrokerFault::Misconfigured(config) => Err(config),
                BrokerFault::Away(why) => {
                    self.show_broker_away(&why);
                    Ok(false)
                }
            },
        }
    }

    fn show_broker_away(&self, why: &str) {
        tracing::warn!(
            error = why,
            "standing by, the broker was tried and did not take the connection"
        );
        let detail = format!("standing by; at the last try: {why}");
        self.readiness.set("broker", false, detail);
    }

    async fn pauses(&self, reader: &mut MySqlConnection) -> anyhow::Result<Pauses> {
        let pauses = match Pauses::read(reader, &self.config.table.name).await {
            Ok(pauses) => {
                self.remember_pauses(Some(pauses.clone()));
                pauses
            }
            Err(err) if database::ends_session(reader, &err).await => {
                return Err(err).context("reading what is paused");
            }
            Err(err) => self.known_pauses(err)?,
        };
        show::pauses(&pauses, &self.readiness, &self.metrics);
        Ok(pauses)
    }

    /// What was paused before it could not be read any more. A new process knows of nothing, so it
    /// waits: an operator may have paused all of it.
    fn known_pauses(&self, err: sqlx::Error) -> anyhow::Result<Pauses> {
        let last = self.last_pauses.lock();
        let last = last.unwrap_or_else(PoisonError::into_inner).clone();
        if last.is_none() && !pause::is_not_there(&err) {
            let why = "what is paused can't be read, so nothing is sent until it can";
            return Err(anyhow::Error::new(err).context(why));
        }
        tracing::warn!(error = %err, "nothing can be paused: see `relay check`");
        Ok(last.unwrap_or_default().kept(&err))
    }

    pub(crate) fn remember_pauses(&self, pauses: Option<Pauses>) {
        let mut last = self
            .last_pauses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *last = pauses;
    }

    /// Ends with the session, like all its tasks.
    fn keep_bulks(
        &self,
        failed: Arc<Notify>,
    ) -> impl Future<Output = anyhow::Result<()>> + 'static {
        let table = &self.config.table;
        let keeper = bulk::Keeper {
            console: Console::new(table.for_ops(), table.url.clone(), Settings::default()),
            failed,
            looked: CancellationToken::new(),
            readiness: self.readiness.clone(),
        };
        async move {
            keeper.run(CancellationToken::new()).await;
            Ok(())
        }
    }

    async fn connect_broker(&self) -> Result<Link, NotConnected> {
        let config = &self.config;
        let link = match connection::connect(&config.amqp, &config.name).await {
            Ok(link) => link,
            Err(err) => {
                let fault = svc_kit::amqp::classify(&err);
                self.readiness.set("broker", false, err.to_string());
                return Err(match fault {
                    BrokerFault::Misconfigured(config) => NotConnected::Misconfigured(config),
                    BrokerFault::Away(why) => NotConnected::Away(format!("broker: {why}")),
                });
            }
        };
        let ready = match &config.declare_exchange {
            Some(exchange) => connection::declare_exchange(&link.connection, exchange).await?,
            None => Ok(()),
        };
        let detail = ready.err().unwrap_or_else(|| "connected".into());
        self.readiness.set("broker", true, detail);
        self.metrics.broker_connected.set(1);
        Ok(link)
    }

    /// A connection to the server that holds the lock.
    async fn on_server(
        &self,
        what: &'static str,
        expected: &ServerId,
    ) -> Result<MySqlConnection, NotConnected> {
        let (connection, found) = server_identity::connect(&self.config.table.url, WAIT_TIMEOUT_S)
            .await
            .with_context(|| format!("connecting the {what}"))?;
        match found.must_be(expected, what) {
            Ok(()) => Ok(connection),
            Err(elsewhere) => Err(NotConnected::Elsewhere(elsewhere)),
        }
    }

    async fn start_tasks(
        &self,
        lease: &Lease,
        link: Link,
        mut database: Database,
    ) -> anyhow::Result<Connected> {
        let config = &self.config;
        let queries = Queries::discover(&mut database.reader, &config.table).await?;
        let frame_max = link.connection.configuration().frame_max();
        let (broker_in, broker) = mpsc::channel(16);
        let channels = Arc::new(link.share(&config.amqp, &config.name, broker_in));
        let mut tasks = Tasks::new();
        let (publishers, outcomes) = start_publishers(
            &mut tasks,
            config.engine.publishers + PROBE_PUBLISHERS,
            publisher_task::Broker {
                channels: Arc::clone(&channels),
                frame_max: usize::try_from(frame_max).unwrap_or(0),
                lease: lease.clone(),
                confirm_timeout: config.confirm_timeout,
            },
        );
        let (writes, written) = self.start_marker(&mut tasks, database.marker);
        let (news_in, table) = mpsc::channel(4);
        let (loads, loads_out) = mpsc::channel(1);
        let loading = loader::run(database.loader, queries.clone(), loads_out, news_in.clone());
        tasks.spawn("row loader", loading);
        let (pages, pages_out) = mpsc::channel(1);
        let watch = Watch::new(database.pauses.clone());
        let reading = page_reader::run(database.reader, queries, watch, pages_out, news_in);
        tasks.spawn("page reader", reading);
        self.start_companions(&mut tasks, &channels);
        Ok(Connected {
            tasks,
            publishers,
            outcomes,
            writes,
            written,
            pages,
            loads,
            table,
            broker,
            channels,
            server: database.server,
            pauses: database.pauses,
        })
    }

    fn start_marker(
        &self,
        tasks: &mut Tasks,
        connection: MySqlConnection,
    ) -> (mpsc::Sender<Write>, mpsc::Receiver<Written>) {
        let (writes, writes_out) = mpsc::channel(WRITES_MAX);
        let (written_in, written) = mpsc::channel(1);
        let failed = Arc::new(Notify::new());
        let marking = Marking {
            table: self.config.table.for_ops(),
            image: self.config.row_image,
            metrics: self.metrics.clone(),
            failed: Arc::clone(&failed),
        };
        let marker = marker_task::run(connection, marking, writes_out, written_in);
        tasks.spawn("marker", marker);
        tasks.spawn("bulks", self.keep_bulks(failed));
        (writes, written)
    }

    /// What a session does beside publishing.
    fn start_companions(&self, tasks: &mut Tasks, channels: &Arc<Channels>) {
        let config = &self.config;
        if !config.retention.is_zero() {
            let (pool, metrics) = (config.table.url.pool(1), self.metrics.clone());
            let name = config.table.name.clone();
            let cleanup = cleanup::run(pool, name, config.retention, metrics);
            tasks.spawn("clean-up", cleanup);
        }
        if self.canary.is_on() {
            tasks.spawn("canary", self.canary.clone().run(Arc::clone(channels)));
        }
    }
}

fn start_publishers(
    tasks: &mut Tasks,
    count: usize,
    broker: publisher_task::Broker,
) -> (Vec<Publisher>, mpsc::Receiver<(usize, Outcome)>) {
    let (outcomes_in, outcomes) = mpsc::channel(count);
    let publishers = (0..count)
        .map(|number| {
            let (batches, batches_out) = mpsc::channel(1);
            let publisher =
                publisher_task::run(number, broker.clone(), batches_out, outcomes_in.clone());
            tasks.spawn(PUBLISHER, publisher);
            batches
        })
        .collect();
    (publishers, outcomes)
}

/// The connections for SQL, where they are, and what is paused there.
struct Database {
    reader: MySqlConnection,
    loader: MySqlConnection,
    marker: MySqlConnection,
    server: ServerId,
    pauses: Pauses,
}

/// Why there is nothing to work with.
pub(crate) enum NotConnected {
    /// No waiting can fix it.
    Misconfigured(ConfigError),
    /// It passes by itself.
    Away(String),
    /// The database's name led to another server than the lock's.
    Elsewhere(OtherServer),
}

impl NotConnected {
    pub(crate) fn into_text(self) -> String {
        match self {
            Self::Misconfigured(err) => err.to_string(),
            Self::Away(why) => why,
            Self::Elsewhere(err) => err.to_string(),
        }
    }
}

impl From<anyhow::Error> for NotConnected {
    fn from(err: anyhow::Error) -> Self {
        Self::Away(format!("{err:#}"))
    }
}
