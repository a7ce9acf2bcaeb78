//! The machine's outer states: Standby, Connecting, a session, and back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use futures::future::{Either, select};
use lapin::Connection;
use prometheus::Registry;
use svc_kit::admin::{ACTIVE, Readiness, STANDBY};
use svc_kit::amqp::BrokerFault;
use svc_kit::backoff::Backoff;
use svc_kit::boot::{ConfigError, Exit};
use svc_kit::signals::Shutdown;
use svc_kit::tasks::Tasks;
use tokio::sync::{mpsc, watch};

use crate::broker;
use crate::cleanup;
use crate::config::Config;
use crate::dispatch::Dispatch;
use crate::gauges::{self, TailLag};
use crate::lane;
use crate::lease::{self, Leadership, Lease};
use crate::mark;
use crate::metrics::{Metrics, Phase};
use crate::ops::check;
use crate::queue::RowId;
use crate::session::{Session, why_ended};
use crate::table::{self, Queries};
use crate::wires::{End, LANE, LaneHandle, Outside, Wires};

/// The named conditions of `/readyz`.
pub const CONDITIONS: [&str; 4] = ["lease", "database", "broker", "binlog"];

/// Neither active nor a standby, which would be ready: without its database it can be neither.
const UNDECIDED: &str = "undecided";

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// A session that lived this long was sound: the next retry starts small again.
const SOUND_AFTER: Duration = Duration::from_secs(10);
/// For broker, exchange, reader and marker together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A relay with its settings.
pub struct Relay {
    config: Config,
    metrics: Metrics,
    readiness: Readiness,
}

impl Relay {
    /// Registers its metrics.
    ///
    /// # Errors
    /// A metric name that is taken.
    pub fn build(
        config: Config,
        registry: &Registry,
        readiness: Readiness,
    ) -> anyhow::Result<Self> {
        let metrics = Metrics::register(registry).context("registering metrics")?;
        readiness.set_role(UNDECIDED);
        Ok(Self {
            config,
            metrics,
            readiness,
        })
    }

    /// Waits for what passes by itself, then relays until it is stopped.
    ///
    /// # Errors
    /// What no waiting can mend; only at the first contact.
    pub async fn run(self, stop: Shutdown) -> Result<Exit, ConfigError> {
        svc_kit::database::first_contact(&self.config.table.url, &stop.drain).await?;
        if !stop.drain.is_cancelled() {
            check::settle_preflight(&self.config, &stop.drain, &self.readiness).await?;
        }
        if stop.drain.is_cancelled() {
            return Ok(Exit::Drained);
        }
        let lease = Lease::default();
        let (tell, leadership) = watch::channel(Leadership::Unknown("starting".into()));
        let (lag, lag_seen) = watch::channel(TailLag::NotTailing);
        let mut tasks = Tasks::new();
        let table = &self.config.table;
        tasks.spawn("lease", lease::keep(table.clone(), lease.clone(), tell));
        let pool = table.url.pool(1);
        tasks.spawn(
            "gauges",
            gauges::run(pool, table.name.clone(), self.metrics.clone(), lag_seen),
        );
        let mut outside = Outside {
            stop,
            leadership,
            lag,
        };
        // These two live as long as the process: one that ends, a panic among the reasons, ends it.
        let cycle = std::pin::pin!(self.cycle(&lease, &mut outside));
        let ended = std::pin::pin!(tasks.join_next());
        let exit = match select(cycle, ended).await {
            Either::Left((exit, _)) => exit,
            Either::Right((ended, _)) => {
                let why = ended.map(why_ended);
                tracing::error!(error = ?why, "a task the relay can't be without has ended");
                Exit::Failed
            }
        };
        self.metrics.set_phase(Phase::Stopped);
        Ok(exit)
    }

    async fn cycle(&self, lease: &Lease, outside: &mut Outside) -> Exit {
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        let mut first_contact = true;
        let mut suspects = HashMap::new();
        loop {
            self.enter(Phase::Standby);
            if !self.stand_by(outside).await {
                return Exit::Drained;
            }
            self.enter(Phase::Connecting);
            let began = Instant::now();
            let drain = outside.stop.drain.clone();
            let why = match drain.run_until_cancelled(self.connect_in_time(lease)).await {
                None => return Exit::Drained,
                Some(Err(NotConnected::Misconfigured(err))) if first_contact => {
                    tracing::error!(error = %err, "wrong configuration");
                    return Exit::Misconfigured;
                }
                Some(Err(err)) => err.into_text(),
                Some(Ok(Connected { wires, connection })) => {
                    first_contact = false;
                    match self.session(wires, outside, &mut suspects).await {
                        End::Drained => {
                            self.say_goodbye(&connection).await;
                            return Exit::Drained;
                        }
                        End::CutOff => return Exit::Failed,
                        End::LeaseLost(why) => why,
                        End::Failed(err) => format!("{err:#}"),
                    }
                }
            };
            if began.elapsed() > SOUND_AFTER {
                backoff.reset();
            }
            self.back_off(&why, backoff.next(), outside).await;
        }
    }

    /// Waits for the lock. False when the relay is to stop.
    async fn stand_by(&self, outside: &mut Outside) -> bool {
        let Outside {
            stop, leadership, ..
        } = outside;
        let wait = async {
            loop {
                match &*leadership.borrow_and_update() {
                    Leadership::Leader { .. } => return true,
                    Leadership::Standby(why) => {
                        self.readiness.set("lease", false, why.as_str());
                        self.readiness.set_role(STANDBY);
                    }
                    Leadership::Unknown(why) => {
                        self.readiness.set("lease", false, why.as_str());
                        self.readiness.set_role(UNDECIDED);
                    }
                }
                if leadership.changed().await.is_err() {
                    return false;
                }
            }
        };
        stop.drain.run_until_cancelled(wait).await.unwrap_or(false)
    }

    async fn back_off(&self, why: &str, wait: Duration, outside: &Outside) {
        tracing::warn!(error = why, retry_in = ?wait, "starting again");
        self.show_unconnected(&format!("starting again: {why}"));
        outside.lag.send_replace(TailLag::NotTailing);
        outside
            .stop
            .drain
            .run_until_cancelled(tokio::time::sleep(wait))
            .await;
    }

    fn enter(&self, phase: Phase) {
        tracing::info!(phase = phase.name(), "phase");
        self.metrics.set_phase(phase);
        let leads = phase != Phase::Standby;
        self.metrics.leader.set(i64::from(leads));
        self.readiness
            .set_role(if leads { ACTIVE } else { UNDECIDED });
        if leads {
            self.readiness.set("lease", true, "held");
        }
        self.show_unconnected(phase.name());
    }

    fn show_unconnected(&self, why: &str) {
        self.metrics.broker_connected.set(0);
        self.metrics.broker_blocked.set(0);
        self.metrics.binlog_connected.set(0);
        self.metrics.set_waiting(&[]);
        self.metrics.in_flight.set(0);
        for condition in ["database", "broker", "binlog"] {
            self.readiness.set(condition, false, why);
        }
    }

    async fn session(
        &self,
        wires: Wires,
        outside: &mut Outside,
        suspects: &mut HashMap<RowId, u32>,
    ) -> End {
        let Config {
            order,
            schedule,
            lanes,
            batch,
            ..
        } = self.config;
        let mut dispatch = Dispatch::new(order, schedule, lanes, batch);
        dispatch.set_suspects(std::mem::take(suspects));
        let mut session = Session::new(
            &self.config,
            &self.metrics,
            &self.readiness,
            wires,
            dispatch,
        );
        let end = session.run(outside).await;
        if matches!(end, End::Drained) {
            drop(tokio::time::timeout(CLOSE_TIMEOUT, session.wires.end_lanes()).await);
        }
        *suspects = session.dispatch.take_suspects();
        end
    }

    /// A broker or a database that accepts and then says nothing must not hold the relay.
    async fn connect_in_time(&self, lease: &Lease) -> Result<Connected, NotConnected> {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.connect(lease)).await;
        connected
            .unwrap_or_else(|_| Err(anyhow!("not connected within {CONNECT_TIMEOUT:?}").into()))
    }

    async fn connect(&self, lease: &Lease) -> Result<Connected, NotConnected> {
        let config = &self.config;
        let connection = match broker::connect(&config.amqp, &config.name).await {
            Ok(connection) => connection,
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
            Some(exchange) => broker::declare_exchange(&connection, exchange).await?,
            None => Ok(()),
        };
        let detail = ready.err().unwrap_or_else(|| "connected".into());
        self.readiness.set("broker", true, detail);
        self.metrics.broker_connected.set(1);
        let reader = config
            .table
            .url
            .connect()
            .await
            .context("connecting the reader")?;
        let marker = config
            .table
            .url
            .connect()
            .await
            .context("connecting the marker")?;
        let wires = self.wire(lease, &connection, reader, marker).await?;
        self.readiness.set("database", true, "connected");
        Ok(Connected { wires, connection })
    }

    async fn wire(
        &self,
        lease: &Lease,
        connection: &Arc<Connection>,
        mut reader: sqlx::MySqlConnection,
        marker: sqlx::MySqlConnection,
    ) -> anyhow::Result<Wires> {
        let config = &self.config;
        let mut tasks = Tasks::new();
        let (news_in, news) = mpsc::channel(16);
        tasks.spawn(
            "broker events",
            broker::listen(
                Arc::clone(connection),
                connection.events_listener(),
                news_in,
            ),
        );

        let broker = lane::Broker {
            connection: Arc::clone(connection),
            lease: lease.clone(),
            confirm_timeout: config.confirm_timeout,
        };
        let (done_in, done) = mpsc::channel(config.lanes);
        let mut lanes = Vec::with_capacity(config.lanes);
        for number in 0..config.lanes {
            let (batches, inlet) = mpsc::channel(1);
            tasks.spawn(
                LANE,
                lane::run(number, broker.clone(), inlet, done_in.clone()),
            );
            lanes.push(LaneHandle {
                batches,
                busy: None,
            });
        }

        let (writes, writes_out) = mpsc::channel(1);
        let (written_in, written) = mpsc::channel(1);
        let name = config.table.name.clone();
        tasks.spawn(
            "marker",
            mark::run(marker, name.clone(), writes_out, written_in),
        );

        let queries = Queries::discover(&mut reader, &config.table).await?;
        let (asks, asks_out) = mpsc::channel(1);
        let (answers_in, answers) = mpsc::channel(1);
        tasks.spawn(
            "reader",
            table::serve(reader, queries, asks_out, answers_in),
        );

        if !config.retention.is_zero() {
            let pool = config.table.url.pool(1);
            let metrics = self.metrics.clone();
            tasks.spawn(
                "clean-up",
                cleanup::run(pool, name, config.retention, metrics),
            );
        }
        Ok(Wires {
            tasks,
            lanes,
            done,
            writes,
            written,
            asks,
            answers,
            news,
        })
    }

    async fn say_goodbye(&self, connection: &Connection) {
        let closing = connection.close(200, "drained".into());
        if tokio::time::timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::debug!("the broker did not answer connection.close");
        }
    }
}

struct Connected {
    wires: Wires,
    connection: Arc<Connection>,
}

enum NotConnected {
    /// No waiting can mend it.
    Misconfigured(ConfigError),
    Away(String),
}

impl NotConnected {
    fn into_text(self) -> String {
        match self {
            Self::Misconfigured(err) => err.to_string(),
            Self::Away(why) => why,
        }
    }
}

impl From<anyhow::Error> for NotConnected {
    fn from(err: anyhow::Error) -> Self {
        Self::Away(format!("{err:#}"))
    }
}
