//! One life of broker, table and binlog connections: the shell around the engine.
//!
//! This is the one place that waits for several things at once. It decides nothing: it hands what has
//! happened to [`crate::engine`], executes the commands that come back, and shows the engine's snapshot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use outbox::row::Row;
use svc_kit::admin::Readiness;
use svc_kit::amqp::Channels;
use svc_kit::database::{Fault, classify};
use svc_kit::signals::Shutdown;
use svc_kit::systemd::Systemd;
use svc_kit::tasks::{Ended, TaskError, Tasks};
use tokio::sync::{mpsc, watch};

use crate::config::Config;
use crate::engine::{
    self, Command, Engine, Event, Lag, LoadQuery, Memory, PageQuery, Write, Written,
};
use crate::leadership::lock::Leadership;
use crate::leadership::server_clock::Clock;
use crate::leadership::server_identity::ServerId;
use crate::observe::metrics::Metrics;
use crate::observe::show::Show;
use crate::pause::Pauses;
use crate::publish::confirms::Outcome;
use crate::publish::connection::BrokerNews;
use crate::source::binlog::reader_task::{BinlogGone, BinlogNews, BinlogOf, BinlogStream};
use crate::source::table::TableNews;

/// How often the snapshot is shown while nothing happens.
const SHOW_EVERY: Duration = Duration::from_secs(1);
/// Transactions taken from the stream before others are looked at.
const TRANSACTIONS_AT_ONCE: usize = 256;

/// Why a session ended.
#[derive(Debug)]
pub enum End {
    /// SIGTERM, and everything on its way is confirmed and marked.
    Drained,
    /// The second SIGTERM, or the drain took too long.
    CutOff,
    /// Another relay may be active.
    LeaseLost(String),
    /// This server is not to be relied on, whatever its lock says: it refuses writes, or the
    /// database's name leads to several servers.
    GiveUp(String),
    /// A connection or a task failed: start again.
    Failed(anyhow::Error),
}

/// What outlives a session.
pub struct Outside {
    /// SIGTERM, and the end of patience.
    pub stop: Shutdown,
    /// The lock.
    pub leadership: watch::Receiver<Leadership>,
    /// To the gauges.
    pub lag: watch::Sender<Lag>,
    /// Informed of the state.
    pub systemd: Systemd,
}

impl Outside {
    /// The process is alive, and this is its state.
    pub fn report(&self, state: &str, readiness: &Readiness) {
        self.systemd
            .turned(&format!("{state}: {}", readiness.summary()));
    }
}

/// The name of every publisher's task.
pub(crate) const PUBLISHER: &str = "publisher";

/// Takes a batch when it has answered the one before.
pub(crate) type Publisher = mpsc::Sender<Vec<Row>>;

/// What a session works with.
pub(crate) struct Connected {
    /// One that ends before the session is an error.
    pub(crate) tasks: Tasks,
    /// By number.
    pub(crate) publishers: Vec<Publisher>,
    /// From the publishers, with the number of each.
    pub(crate) outcomes: mpsc::Receiver<(usize, Outcome)>,
    /// To the marker.
    pub(crate) writes: mpsc::Sender<Write>,
    /// From the marker.
    pub(crate) written: mpsc::Receiver<Written>,
    /// To the page reader, one at a time.
    pub(crate) pages: mpsc::Sender<PageQuery>,
    /// To the row loader, one at a time.
    pub(crate) loads: mpsc::Sender<LoadQuery>,
    /// From page reader and row loader.
    pub(crate) table: mpsc::Receiver<TableNews>,
    /// From the broker's connections.
    pub(crate) broker: mpsc::Receiver<BrokerNews>,
    /// The channels of the publishing connection.
    pub(crate) channels: Arc<Channels>,
    /// Where lock and connections are: the binlog must be this server's too.
    pub(crate) server: ServerId,
    /// What is paused at the start.
    pub(crate) pauses: Pauses,
}

impl Connected {
    /// Ends the publishers in order: each closes its channel before the connection is closed.
    pub(crate) async fn end_publishers(&mut self) {
        let mut running = self.publishers.len();
        self.publishers.clear();
        while running > 0 {
            let Some(ended) = self.tasks.join_next().await else {
                return;
            };
            running -= usize::from(ended.name == PUBLISHER);
        }
    }
}

/// What has happened outside the engine.
enum Happened {
    Stop,
    CutOff,
    Leadership,
    KeeperGone,
    TaskEnded(Ended),
    Broker(BrokerNews),
    Published(usize, Outcome),
    Written(Written),
    Table(TableNews),
    Binlog(Result<BinlogNews, BinlogGone>),
    Time,
}

/// See the module.
pub struct Session<'a> {
    config: &'a Config,
    show: Show<'a>,
    connected: Connected,
    engine: Engine,
    commands: Vec<Command>,
    binlog: Option<BinlogStream>,
    clock: Option<Clock>,
    /// What is paused, with reasons.
    pauses: Pauses,
    draining: bool,
    show_at: Instant,
}

impl<'a> Session<'a> {
    /// Puts a session together from connected parts.
    pub(crate) fn new(
        config: &'a Config,
        metrics: &'a Metrics,
        readiness: &'a Readiness,
        connected: Connected,
        memory: Memory,
    ) -> Self {
        let now = Instant::now();
        Self {
            config,
            show: Show::new(metrics, readiness),
            engine: Engine::new(config.engine, memory, rand::random(), now),
            commands: Vec::new(),
            binlog: None,
            clock: None,
            pauses: connected.pauses.clone(),
            connected,
            draining: false,
            show_at: now,
        }
    }

    /// For the next session, and what is paused.
    pub(crate) fn into_parts(self) -> (Connected, Memory, Pauses) {
        (self.connected, self.engine.into_memory(), self.pauses)
    }

    /// Runs until something ends it.
    pub async fn run(&mut self, outside: &mut Outside) -> End {
        if let Some(why) = self.take_clock(outside) {
            return End::LeaseLost(why);
        }
        self.take_pauses(self.connected.pauses.clone());
        loop {
            if let Some(end) = self.execute() {
                return end;
            }
            self.show_now_and_then(outside);
            let happened = self.next(outside).await;
            if let Some(end) = self.on(happened, outside) {
                return end;
            }
        }
    }

    /// The one `select!`, in order of priority.
    async fn next(&mut self, outside: &mut Outside) -> Happened {
        let wake = self.engine.deadline().min(self.show_at);
        let takes = self.engine.takes_transactions();
        let moves = takes && self.engine.awaits_position();
        let draining = self.draining;
        let Connected {
            tasks,
            outcomes,
            written,
            table,
            broker,
            ..
        } = &mut self.connected;
        let binlog = self.binlog.as_mut();
        tokio::select! {
            biased;
            () = outside.stop.now.cancelled() => Happened::CutOff,
            () = outside.stop.drain.cancelled(), if !draining => Happened::Stop,
            changed = outside.leadership.changed() => {
                changed.map_or(Happened::KeeperGone, |()| Happened::Leadership)
            }
            // Before what the others say: without one of its tasks the session knows no better.
            Some(ended) = tasks.join_next() => Happened::TaskEnded(ended),
            Some(news) = broker.recv() => Happened::Broker(news),
            Some((publisher, outcome)) = outcomes.recv() => Happened::Published(publisher, outcome),
            Some(done) = written.recv() => Happened::Written(done),
            Some(news) = table.recv() => Happened::Table(news),
            news = next_of(binlog, takes, moves) => Happened::Binlog(news),
            () = tokio::time::sleep_until(wake.into()) => Happened::Time,
        }
    }

    /// Returns why the session ends, if it does.
    fn on(&mut self, happened: Happened, outside: &mut Outside) -> Option<End> {
        match happened {
            Happened::CutOff => return Some(End::CutOff),
            Happened::Stop => {
                tracing::info!(in_flight = self.engine.in_flight(), "draining");
                outside.systemd.stopping();
                self.draining = true;
                self.feed(Event::Drain);
            }
            Happened::Leadership => {
                if let Some(why) = self.take_clock(outside) {
                    return Some(End::LeaseLost(why));
                }
            }
            Happened::KeeperGone => {
                return Some(End::Failed(anyhow!("the keeper of the lock is gone")));
            }
            Happened::TaskEnded(ended) => return Some(task_ended(ended)),
            Happened::Broker(BrokerNews::Lost(why)) => self.feed(Event::BrokerLost(why)),
            Happened::Broker(BrokerNews::Blocked(why)) => {
                tracing::warn!(reason = %why, "the broker blocks publishers, intake stops");
                self.feed(Event::BrokerBlocked(why));
            }
            Happened::Broker(BrokerNews::Unblocked) => {
                tracing::info!("the broker takes publishes again");
                self.feed(Event::BrokerUnblocked);
            }
            Happened::Published(publisher, outcome) => {
                self.feed(Event::Published { publisher, outcome });
            }
            Happened::Written(written) => self.feed(Event::Written(written)),
            Happened::Table(TableNews::Page(page)) => self.feed(Event::Page(page)),
            Happened::Table(TableNews::Rows(rows)) => self.feed(Event::Rows(rows)),
            Happened::Table(TableNews::Refused(why)) => self.feed(Event::TableRefused(why)),
            Happened::Table(TableNews::Pauses(pauses)) => self.take_pauses(pauses),
            Happened::Binlog(Ok(news)) => self.on_binlog(news),
            Happened::Binlog(Err(BinlogGone::Elsewhere(why))) => return Some(End::GiveUp(why)),
            Happened::Binlog(Err(BinlogGone::Ended(end))) => {
                self.binlog = None;
                self.feed(Event::BinlogEnded(end));
            }
            Happened::Time => self.feed(Event::Tick),
        }
        None
    }

    fn feed(&mut self, event: Event) {
        self.engine
            .handle(event, Instant::now(), &mut self.commands);
    }

    /// Takes what there is, so that one query reads all of it.
    fn on_binlog(&mut self, news: BinlogNews) {
        let mut next = Some(news);
        for _ in 0..TRANSACTIONS_AT_ONCE {
            let Some(news) = next else { break };
            match news {
                BinlogNews::Opened => {
                    tracing::info!("tailing the binlog");
                    self.feed(Event::BinlogOpened);
                }
                BinlogNews::Doubt(doubt) => {
                    self.show.doubt(&doubt);
                    self.feed(Event::Doubt);
                }
                BinlogNews::Committed(added) => {
                    let clock = self.clock;
                    let binlog = self.binlog.as_mut();
                    if let Some(transaction) = binlog.map(|binlog| binlog.transaction(added, clock))
                    {
                        self.feed(Event::Committed(transaction));
                    }
                }
                BinlogNews::Moved => {}
            }
            // The engine may have closed the stream: nothing more of it may be reported.
            let closes = |command: &Command| matches!(command, Command::CloseBinlog);
            if !self.engine.takes_transactions() || self.commands.iter().any(closes) {
                return;
            }
            next = self.binlog.as_mut().and_then(BinlogStream::try_next);
        }
        if self.engine.awaits_position()
            && let Some(position) = self.binlog.as_mut().and_then(BinlogStream::position)
        {
            self.feed(Event::BinlogAt(position));
        }
    }

    fn take_clock(&mut self, outside: &mut Outside) -> Option<String> {
        match &*outside.leadership.borrow_and_update() {
            // The lock was lost and won again, elsewhere, while the others were connected.
            Leadership::Leader { server, .. } if *server != self.connected.server => {
                Some(format!("the lock is on another server now: {server}"))
            }
            Leadership::Leader { clock, .. } => {
                self.clock = Some(*clock);
                None
            }
            Leadership::Standby(why) | Leadership::Unknown(why) => Some(why.clone()),
        }
    }

    fn take_pauses(&mut self, pauses: Pauses) {
        // A drain takes nothing in any more, whatever is resumed.
        if !self.draining {
            self.show.pauses(&self.pauses, &pauses);
            self.pauses = pauses;
            let known = engine::Pauses {
                whole: self.pauses.whole.is_some(),
                routes: self.pauses.routes.keys().cloned().collect(),
            };
            self.feed(Event::Pauses(known));
        }
    }

    /// Executes the engine's commands. Returns why the session ends, if it does.
    fn execute(&mut self) -> Option<End> {
        let mut end = None;
        for command in std::mem::take(&mut self.commands) {
            let done = match command {
                Command::OpenBinlog(from) => {
                    self.binlog = Some(BinlogStream::open(self.binlog_of(), from));
                    Ok(())
                }
                Command::CloseBinlog => {
                    self.binlog = None;
                    Ok(())
                }
                Command::ReadPage(query) => send(&self.connected.pages, query, "page reader"),
                Command::Load(query) => send(&self.connected.loads, query, "row loader"),
                Command::Publish { publisher, batch } => {
                    send(&self.connected.publishers[publisher], batch, "publisher")
                }
                Command::Write(write) => send(&self.connected.writes, write, "marker"),
                Command::Report(report) => {
                    self.show.report(report);
                    Ok(())
                }
                Command::End(engine::End::Drained) => {
                    end = Some(End::Drained);
                    Ok(())
                }
                Command::End(engine::End::BrokerLost(why)) => {
                    end = Some(End::Failed(anyhow!("broker: {why}")));
                    Ok(())
                }
            };
            if let Err(err) = done {
                return Some(End::Failed(err));
            }
        }
        end
    }

    fn binlog_of(&self) -> BinlogOf {
        BinlogOf {
            table: self.config.table.clone(),
            reader: self.config.reader,
            server: self.connected.server.clone(),
        }
    }

    fn show_now_and_then(&mut self, outside: &Outside) {
        let now = Instant::now();
        self.show.in_flight(self.engine.in_flight());
        if now < self.show_at && self.show.is_of(self.engine.state()) {
            return;
        }
        self.show_at = now + SHOW_EVERY;
        let snapshot = self.engine.snapshot();
        outside.lag.send_replace(snapshot.lag);
        self.show.snapshot(&snapshot, &self.pauses);
        outside.report(self.engine.state().name(), self.show.readiness());
    }
}

/// A task that takes nothing more has ended, and says why itself.
fn send<T>(to: &mpsc::Sender<T>, what: T, task: &str) -> anyhow::Result<()> {
    match to.try_send(what) {
        Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        Err(mpsc::error::TrySendError::Full(_)) => Err(anyhow!("the {task} has too much to do")),
    }
}

async fn next_of(
    binlog: Option<&mut BinlogStream>,
    takes: bool,
    moves: bool,
) -> Result<BinlogNews, BinlogGone> {
    match binlog {
        Some(binlog) => binlog.next(takes, moves).await,
        None => std::future::pending().await,
    }
}

/// A write that was refused because the server takes none is a lock that is worth nothing: a primary
/// that has become a replica goes on granting it.
fn task_ended(ended: Ended) -> End {
    if let Err(TaskError::Failed(err)) = &ended.outcome
        && let Some(err) = err.downcast_ref::<sqlx::Error>()
        && classify(err) == Fault::ReadOnly
    {
        return End::GiveUp(format!("the database takes no writes: {err}"));
    }
    End::Failed(why_ended(ended))
}

/// A task that ends before its session is an error, even when it ends well.
pub fn why_ended(ended: Ended) -> anyhow::Error {
    let name = ended.name;
    match ended.outcome {
        Ok(()) => anyhow!("task {name} ended early"),
        Err(err) => anyhow::Error::new(err).context(format!("task {name}")),
    }
}
