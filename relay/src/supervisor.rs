//! The machine's outer states: Standby, Connecting, a session, and back.

mod connect;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::future::{Either, select};
use prometheus::Registry;
use svc_kit::admin::{ACTIVE, Readiness, STANDBY};
use svc_kit::amqp::Channels;
use svc_kit::backoff::Backoff;
use svc_kit::boot::{ConfigError, Exit};
use svc_kit::signals::Shutdown;
use svc_kit::systemd::Systemd;
use svc_kit::tasks::Tasks;
use tokio::sync::watch;

use self::connect::NotConnected;
use crate::commands::check;
use crate::config::Config;
use crate::engine::{Lag, Memory, Refused};
use crate::leadership::lock::{self, Leadership, Lease};
use crate::leadership::server_identity::ServerId;
use crate::observe::canary::Canary;
use crate::observe::metrics::{Metrics, Phase};
use crate::observe::row_gauges;
use crate::pause::{INTAKE, Pauses};
use crate::session::{Connected, End, Outside, Session, why_ended};

/// The named conditions of `/readyz`.
pub const CONDITIONS: [&str; 5] = ["lease", "database", "broker", "binlog", INTAKE];

/// Neither active nor a standby, which would be ready: without its database it can be neither.
const UNDECIDED: &str = "undecided";

const RETRY_MIN: Duration = Duration::from_millis(100);
/// A standby's tries to reach the broker for the first time.
const TRY_AGAIN: Duration = Duration::from_secs(30);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// A session that lived this long was sound: the next retry starts small again.
const SOUND_AFTER: Duration = Duration::from_secs(10);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A relay with its settings.
pub struct Relay {
    pub(crate) config: Config,
    pub(crate) metrics: Metrics,
    pub(crate) readiness: Readiness,
    pub(crate) canary: Canary,
    /// What was paused when it was last read, by this process and since it holds the lock: a table that
    /// can't be read now changes nothing.
    pub(crate) last_pauses: Mutex<Option<Pauses>>,
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
        metrics.set_mode(config.engine.mode);
        readiness.set_role(UNDECIDED);
        Ok(Self {
            canary: Canary::new(&config, &metrics),
            config,
            metrics,
            readiness,
            last_pauses: Mutex::default(),
        })
    }

    /// Waits for what passes by itself, then relays until it is stopped.
    ///
    /// # Errors
    /// What no waiting can fix; only at the first contact.
    pub async fn run(self, stop: Shutdown, systemd: Systemd) -> Result<Exit, ConfigError> {
        let waits = |why: &str| {
            self.readiness.set("database", false, why);
            systemd.turned(why);
        };
        let url = &self.config.table.url;
        svc_kit::database::first_contact_reporting(url, &stop.drain, waits).await?;
        if !stop.drain.is_cancelled() {
            check::settle_preflight(&self.config, &stop.drain, waits).await?;
        }
        if stop.drain.is_cancelled() {
            systemd.stopping();
            return Ok(Exit::Drained);
        }
        let lease = Lease::default();
        let (state, leadership) = watch::channel(Leadership::Unknown("starting".into()));
        let (lag, lag_seen) = watch::channel(Lag::InTable);
        let mut tasks = Tasks::new();
        let table = self.config.table.clone();
        let metrics = self.metrics.clone();
        let keeper = lock::keep(table.clone(), lease.clone(), state);
        tasks.spawn("lease", keeper);
        let lock = row_gauges::Lock {
            leadership: leadership.clone(),
            lease: lease.clone(),
        };
        let canary = self.canary.clone();
        tasks.spawn(
            "gauges",
            row_gauges::run(table, metrics, lag_seen, lock, canary),
        );
        let mut outside = Outside {
            stop,
            leadership,
            lag,
            systemd,
        };
        // These two live as long as the process: one that ends, a panic among the reasons, ends it.
        let cycle = async {
            let exit = self.cycle(&lease, &mut outside).await;
            outside.systemd.stopping();
            exit
        };
        let cycle = std::pin::pin!(cycle);
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
        let mut memory = Memory::default();
        loop {
            self.enter(Phase::Standby, outside);
            let server = match self.stand_by(outside, &mut first_contact).await {
                Ok(Some(server)) => server,
                Ok(None) => return Exit::Drained,
                Err(err) => return misconfigured(&err),
            };
            self.enter(Phase::Connecting, outside);
            let began = Instant::now();
            let drain = outside.stop.drain.clone();
            let connecting = self.connect_in_time(lease, server);
            let why = match drain.run_until_cancelled(connecting).await {
                None => return Exit::Drained,
                Some(Err(NotConnected::Misconfigured(err))) if first_contact => {
                    return misconfigured(&err);
                }
                Some(Err(err)) => {
                    if matches!(err, NotConnected::Elsewhere(_)) {
                        lease.give_up();
                    }
                    err.into_text()
                }
                Some(Ok(connected)) => {
                    first_contact = false;
                    let why = match self.session(connected, outside, &mut memory).await {
                        End::Drained => return Exit::Drained,
                        End::CutOff => return Exit::Failed,
                        End::LeaseLost(why) => why,
                        End::GiveUp(why) => {
                            lease.give_up();
                            why
                        }
                        End::Failed(err) => format!("{err:#}"),
                    };
                    if drain.is_cancelled() {
                        tracing::error!(error = why, "could not drain: the next start may repeat");
                        return Exit::Failed;
                    }
                    why
                }
            };
            if began.elapsed() > SOUND_AFTER {
                backoff.reset();
            }
            self.back_off(&why, backoff.next(), outside).await;
        }
    }

    /// Waits for the lock and reports where it is. `None` when the relay is to stop.
    ///
    /// One that finds itself a standby tries the broker now: weeks later, when it is needed, a
    /// setting that does not fit any more must not end it.
    async fn stand_by(
        &self,
        outside: &mut Outside,
        first_contact: &mut bool,
    ) -> Result<Option<ServerId>, ConfigError> {
        let drain = outside.stop.drain.clone();
        let mut tried: Option<Instant> = None;
        let wait = async {
            loop {
                let reported = outside.leadership.borrow_and_update().clone();
                // Now the process can say what it is.
                if !matches!(reported, Leadership::Unknown(_)) {
                    outside.systemd.ready();
                }
                match reported {
                    Leadership::Leader { server, .. } => return Ok(Some(server)),
                    Leadership::Standby(why) => {
                        self.canary.end();
                        self.remember_pauses(None);
                        self.readiness.set("lease", false, why);
                        self.readiness.set_role(STANDBY);
                        if *first_contact && tried.is_none_or(|at| at.elapsed() > TRY_AGAIN) {
                            tried = Some(Instant::now());
                            *first_contact = !self.try_broker().await?;
                        }
                    }
                    Leadership::Unknown(why) => {
                        self.readiness.set("lease", false, why);
                        self.readiness.set_role(UNDECIDED);
                    }
                }
                outside.report(Phase::Standby.name(), &self.readiness);
                if outside.leadership.changed().await.is_err() {
                    return Ok(None);
                }
            }
        };
        drain.run_until_cancelled(wait).await.unwrap_or(Ok(None))
    }

    async fn back_off(&self, why: &str, wait: Duration, outside: &Outside) {
        tracing::warn!(error = why, retry_in = ?wait, "starting again");
        self.show_unconnected(&format!("starting again: {why}"));
        outside.report(Phase::Connecting.name(), &self.readiness);
        outside.lag.send_replace(Lag::InTable);
        outside
            .stop
            .drain
            .run_until_cancelled(tokio::time::sleep(wait))
            .await;
    }

    fn enter(&self, phase: Phase, outside: &Outside) {
        tracing::info!(phase = phase.name(), "phase");
        self.metrics.set_phase(phase);
        let leads = phase != Phase::Standby;
        self.metrics.leader.set(i64::from(leads));
        self.readiness
            .set_role(if leads { ACTIVE } else { UNDECIDED });
        if leads {
            self.readiness.set("lease", true, "held");
            self.canary.begin();
        } else {
            // Whoever leads looks at what is paused.
            self.metrics.paused.set(0);
            self.metrics.paused_routes.set(0);
            self.readiness.set(INTAKE, false, phase.name());
        }
        self.show_unconnected(phase.name());
        outside.report(phase.name(), &self.readiness);
    }

    fn show_unconnected(&self, why: &str) {
        self.metrics.broker_connected.set(0);
        self.metrics.broker_blocked.set(0);
        self.metrics.binlog_connected.set(0);
        self.metrics.set_waiting(&[]);
        self.metrics.in_flight.set(0);
        self.metrics.set_refused(&Refused::default());
        for condition in ["database", "broker", "binlog"] {
            self.readiness.set(condition, false, why);
        }
    }

    async fn session(
        &self,
        connected: Connected,
        outside: &mut Outside,
        memory: &mut Memory,
    ) -> End {
        let channels = Arc::clone(&connected.channels);
        let mut session = Session::new(
            &self.config,
            &self.metrics,
            &self.readiness,
            connected,
            std::mem::take(memory),
        );
        let end = session.run(outside).await;
        let (mut connected, known, pauses) = session.into_parts();
        *memory = known;
        if matches!(end, End::Drained) {
            drop(tokio::time::timeout(CLOSE_TIMEOUT, connected.end_publishers()).await);
            self.close_broker(&channels).await;
        }
        let mut last = self
            .last_pauses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if last.is_some() || pauses.unreadable.is_none() {
            *last = Some(pauses);
        }
        end
    }

    async fn close_broker(&self, channels: &Channels) {
        let closing = async {
            let connection = channels.connection().await;
            connection.close(200, "drained".into()).await
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::debug!("the broker did not answer connection.close");
        }
    }
}

fn misconfigured(err: &ConfigError) -> Exit {
    tracing::error!(error = %err, "wrong configuration");
    Exit::Misconfigured
}
