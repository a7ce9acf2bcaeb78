//! One life of broker, table and binlog connections: the machine from CatchingUp to Draining.
//!
//! This is the one place that waits for several things at once. Everything it decides is decided in
//! [`crate::dispatch`], [`crate::held`] and [`crate::pass`], which know neither IO nor clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use svc_kit::admin::Readiness;
use svc_kit::database::{Fault, classify};
use svc_kit::tasks::{Ended, TaskError};
use tokio::sync::mpsc;

use crate::config::{Config, Mode};
use crate::dispatch::Dispatch;
use crate::effects::Mark;
use crate::intake::Intake;
use crate::jam::Jam;
use crate::leadership::lock::{Clock, Leadership};
use crate::observe::metrics::{Metrics, Phase, Source};
use crate::observe::row_gauges::TailLag;
use crate::pass::{Passes, Progress};
use crate::pause::{INTAKE, Pauses};
use crate::publish::connection::BrokerNews;
use crate::publish::publisher_task::Done;
use crate::source::binlog::reader_task::Arrival;
use crate::source::binlog::tail::{Tail, TailState};
use crate::source::table::Answer;
use crate::told::Told;
use crate::wires::{End, Outside, Wires};
use crate::writeback::marker_task::{Record, Refused, Written};

/// Confirmed rows that wait to be marked, and records; above it nothing new is taken in.
pub const MARKS_MAX: usize = 8192;
/// How often the lag is told and the routes are shown.
const TICK: Duration = Duration::from_secs(1);
/// Patience with lanes and marker once the broker is gone.
const CLOSING_MAX: Duration = Duration::from_secs(3);
/// Groups taken from the binlog before the lanes are looked at.
const GROUPS_AT_ONCE: usize = 256;

/// A session that is about to end.
pub(crate) struct Closing {
    why: String,
    deadline: Instant,
}

enum Event {
    Stop,
    CutOff,
    Leadership,
    KeeperGone,
    News(BrokerNews),
    Done(Done),
    Written(Written),
    Answer(Answer),
    Arrival(Box<Arrival>),
    TailMoved,
    TailEnded(String),
    TailOpened(anyhow::Result<Tail>),
    TaskEnded(Ended),
    Timer,
}

/// See the module.
pub struct Session<'a> {
    pub(crate) config: &'a Config,
    pub(crate) metrics: &'a Metrics,
    pub(crate) readiness: &'a Readiness,
    pub(crate) dispatch: Dispatch,
    pub(crate) passes: Passes,
    pub(crate) intake: Intake,
    pub(crate) wires: Wires,
    pub(crate) marks: Vec<Mark>,
    /// Failures and samples: behind the marks.
    pub(crate) records: VecDeque<Record>,
    pub(crate) refused: Refused,
    /// Why the table can't be read at the moment.
    pub(crate) read_refused: Option<String>,
    /// What readiness says of the database.
    pub(crate) database_shown: String,
    pub(crate) told: Told,
    pub(crate) jam: Jam,
    pub(crate) writing: usize,
    pub(crate) blocked: bool,
    pub(crate) pauses: Pauses,
    /// When it was blocked last.
    pub(crate) unblocked_at: Option<Instant>,
    /// The broker is gone: what its lanes still answer is waited for, but not for long.
    pub(crate) closing: Option<Closing>,
    draining: bool,
    pub(crate) clock: Option<Clock>,
    next_tick: Instant,
}

impl<'a> Session<'a> {
    /// Puts a session together from connected parts.
    pub fn new(
        config: &'a Config,
        metrics: &'a Metrics,
        readiness: &'a Readiness,
        wires: Wires,
        dispatch: Dispatch,
    ) -> Self {
        let now = Instant::now();
        Self {
            config,
            metrics,
            readiness,
            dispatch,
            passes: Passes::new(now),
            intake: Intake::new(config.mode, now),
            wires,
            marks: Vec::new(),
            records: VecDeque::new(),
            refused: Refused::default(),
            read_refused: None,
            database_shown: String::new(),
            told: Told::default(),
            jam: Jam::default(),
            writing: 0,
            blocked: false,
            pauses: Pauses::default(),
            unblocked_at: None,
            closing: None,
            draining: false,
            clock: None,
            next_tick: now,
        }
    }

    /// Runs until something ends it.
    pub async fn run(&mut self, outside: &mut Outside) -> End {
        let pauses = std::mem::take(&mut self.wires.pauses);
        if let Some(why) = self.take_clock(outside) {
            self.pauses = pauses;
            return End::LeaseLost(why);
        }
        self.show_way("");
        self.take_pauses(pauses, Instant::now());
        loop {
            let now = Instant::now();
            if let Err(err) = self.advance(now, outside) {
                return End::Failed(err);
            }
            if let Some(end) = self.ended(now) {
                return end;
            }
            let event = self.next(outside).await;
            match self.handle(event, outside) {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(err) => return End::Failed(err),
            }
        }
    }

    fn ended(&mut self, now: Instant) -> Option<End> {
        let drained = self.is_drained();
        if let Some(closing) = self
            .closing
            .take_if(|closing| drained || now >= closing.deadline)
        {
            return Some(End::Failed(anyhow!("broker: {}", closing.why)));
        }
        (self.draining && drained).then_some(End::Drained)
    }

    /// The broker is gone. Every lane will say so of its batch, and whether something in the batch is
    /// to blame; confirmed rows are still marked.
    pub(crate) fn close(&mut self, why: String, now: Instant) {
        let deadline = now + CLOSING_MAX;
        self.closing.get_or_insert(Closing { why, deadline });
    }

    async fn next(&mut self, outside: &mut Outside) -> Event {
        let wake = self.wake_at();
        let takes = self.takes_from_tail();
        let verifying = self.passes.awaited().is_some();
        let draining = self.draining;
        let Wires {
            done,
            written,
            answers,
            news,
            tasks,
            ..
        } = &mut self.wires;
        let (opening, groups, moves) = self.intake.tail.ears();
        tokio::select! {
            biased;
            () = outside.stop.now.cancelled() => Event::CutOff,
            () = outside.stop.drain.cancelled(), if !draining => Event::Stop,
            told = outside.leadership.changed() => {
                told.map_or(Event::KeeperGone, |()| Event::Leadership)
            }
            // Before what the others say: without one of its tasks the session knows no better.
            Some(ended) = tasks.join_next() => Event::TaskEnded(ended),
            Some(told) = news.recv() => Event::News(told),
            Some(batch) = done.recv() => Event::Done(batch),
            Some(write) = written.recv() => Event::Written(write),
            Some(answer) = answers.recv() => Event::Answer(answer),
            opened = opening.done() => Event::TailOpened(opened),
            arrival = groups.next(), if takes => {
                arrival.map_or_else(Event::TailEnded, |arrival| Event::Arrival(Box::new(arrival)))
            }
            () = moves.next(), if verifying => Event::TailMoved,
            () = tokio::time::sleep_until(wake.into()) => Event::Timer,
        }
    }

    fn handle(&mut self, event: Event, outside: &mut Outside) -> anyhow::Result<Option<End>> {
        let now = Instant::now();
        match event {
            Event::CutOff => return Ok(Some(End::CutOff)),
            Event::Stop => {
                outside.systemd.stopping();
                self.begin_drain();
            }
            Event::Leadership => {
                if let Some(why) = self.take_clock(outside) {
                    return Ok(Some(End::LeaseLost(why)));
                }
            }
            Event::KeeperGone => return Err(anyhow!("the keeper of the lock is gone")),
            Event::News(BrokerNews::Lost(why)) => self.close(why, now),
            Event::News(BrokerNews::Blocked(why)) => {
                tracing::warn!(reason = %why, "the broker blocks publishers, intake stops");
                self.set_blocked(true, format!("blocked by the broker: {why}"));
            }
            Event::News(BrokerNews::Unblocked) => {
                tracing::info!("the broker takes publishes again");
                self.set_blocked(false, "connected".into());
            }
            Event::Done(done) => self.on_done(done, now),
            Event::Written(written) => self.on_written(written, now),
            Event::Answer(Answer::Locked(why)) => self.read_refused = Some(why),
            Event::Answer(Answer::Page(page)) => {
                self.read_refused = None;
                self.on_page(page, now);
            }
            Event::Answer(Answer::Rows(rows)) => {
                self.read_refused = None;
                let asked = self.passes.loaded(now);
                self.dispatch.loaded(&asked, rows, now);
            }
            // A drain takes nothing in any more, whatever is resumed.
            Event::Answer(Answer::Pauses(_)) if self.draining => {}
            Event::Answer(Answer::Pauses(pauses)) => self.take_pauses(pauses, now),
            Event::Arrival(first) => {
                self.on_arrival(*first, now);
                for _ in 1..GROUPS_AT_ONCE {
                    let next = self
                        .takes_from_tail()
                        .then(|| self.intake.tail.try_arrival());
                    let Some(Some(next)) = next else { break };
                    self.on_arrival(next, now);
                }
            }
            Event::TailOpened(opened) => return Ok(self.on_tail_opened(opened, now)),
            Event::TailEnded(why) => self.on_tail_ended(&why, now),
            Event::TaskEnded(ended) => return task_ended(ended).map(Some),
            Event::TailMoved | Event::Timer => {}
        }
        Ok(None)
    }

    /// Everything that follows from the state: batches, writes, the next page, the next pass.
    fn advance(&mut self, now: Instant, outside: &Outside) -> anyhow::Result<()> {
        self.feed_lanes()?;
        self.feed_marker();
        if self.takes_in() {
            self.check_tail(now);
            self.advance_pass(now)?;
            self.feed_lanes()?;
        }
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            outside.lag.send_replace(self.tail_lag());
            outside.tell_turn(self.metrics, self.readiness);
            self.metrics.set_waiting(&self.dispatch.held.waiting());
            self.show_jam(now);
        }
        self.metrics
            .in_flight
            .set(i64::try_from(self.dispatch.in_flight()).unwrap_or(i64::MAX));
        Ok(())
    }

    fn advance_pass(&mut self, now: Instant) -> anyhow::Result<()> {
        if self.dispatch.held.take_opened() {
            self.passes.end_rest(now);
        }
        loop {
            let progress = if self.passes.is_idle() {
                self.intake
                    .next_pass(&self.passes, &self.dispatch, self.config, now)
                    .map_or(Progress::Wait, |plan| {
                        Progress::Ask(self.passes.begin(plan, &mut self.dispatch, now))
                    })
            } else {
                let room = self.room(Source::Sweep);
                self.passes.go_on(&mut self.dispatch, room, now)
            };
            self.metrics
                .missed_by_binlog
                .inc_by(self.passes.take_missed());
            match progress {
                Progress::Wait => return Ok(()),
                Progress::Took => {}
                Progress::Ask(ask) => {
                    self.note_tail_position();
                    return match self.wires.asks.try_send(ask) {
                        Err(mpsc::error::TrySendError::Full(_)) => {
                            Err(anyhow!("the table reader is asked twice"))
                        }
                        // If it is gone, its task tells why.
                        Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
                    };
                }
                Progress::Ended(summary) => self.on_pass_ended(*summary, now),
            }
        }
    }

    fn set_blocked(&mut self, blocked: bool, detail: String) {
        self.blocked = blocked;
        self.unblocked_at = (!blocked).then(Instant::now);
        self.readiness.set("broker", !blocked, detail);
        self.metrics.broker_blocked.set(i64::from(blocked));
    }

    fn take_clock(&mut self, outside: &mut Outside) -> Option<String> {
        match &*outside.leadership.borrow_and_update() {
            // The lock was lost and won again, elsewhere, while the others were connected.
            Leadership::Leader { server, .. } if *server != self.wires.server => {
                Some(format!("the lock is on another server now: {server}"))
            }
            Leadership::Leader { clock, .. } => {
                self.clock = Some(*clock);
                None
            }
            Leadership::Standby(why) | Leadership::Unknown(why) => Some(why.clone()),
        }
    }

    fn begin_drain(&mut self) {
        tracing::info!(in_flight = self.dispatch.in_flight(), "draining");
        self.draining = true;
        self.metrics.set_phase(Phase::Draining);
        self.readiness.set(INTAKE, false, "draining");
        self.intake.tail = TailState::Closed;
        self.dispatch.put_back_all(Instant::now());
    }

    pub(crate) fn takes_in(&self) -> bool {
        !self.draining && self.closing.is_none() && !self.is_paused()
    }

    fn wake_at(&self) -> Instant {
        if let Some(closing) = &self.closing {
            return closing.deadline.min(self.next_tick);
        }
        if !self.takes_in() {
            return self.next_tick;
        }
        let deadline = self.passes.awaited().map(|(_, deadline)| deadline);
        let pass = self
            .passes
            .is_idle()
            .then(|| self.intake.next_pass_at(&self.passes, &self.dispatch));
        deadline
            .into_iter()
            .chain(pass)
            .fold(self.next_tick, Instant::min)
    }

    fn tail_lag(&self) -> TailLag {
        // Rows that wait in the table, or before a full queue, are late as well: the table knows.
        let stuck = self.room(Source::Sweep).rows == 0 || !self.dispatch.held.waiting().is_empty();
        if stuck || !self.intake.tail.is_open() || self.config.mode == Mode::Poll {
            return TailLag::NotTailing;
        }
        let with_broker = self.wires.lanes.iter().filter_map(|lane| lane.busy?.oldest);
        TailLag::Tailing(with_broker.chain(self.dispatch.queue.oldest_commit()).min())
    }
}

/// A write that was refused because the server takes none is a lock that is worth nothing: a primary
/// that has become a replica goes on granting it.
fn task_ended(ended: Ended) -> anyhow::Result<End> {
    if let Err(TaskError::Failed(err)) = &ended.outcome
        && let Some(err) = err.downcast_ref::<sqlx::Error>()
        && classify(err) == Fault::ReadOnly
    {
        let why = format!("the database takes no writes: {err}");
        return Ok(End::GiveUp(why));
    }
    Err(why_ended(ended))
}

/// A task that ends before its session is an error, even when it ends well.
pub fn why_ended(ended: Ended) -> anyhow::Error {
    let name = ended.name;
    match ended.outcome {
        Ok(()) => anyhow!("task {name} ended early"),
        Err(err) => anyhow::Error::new(err).context(format!("task {name}")),
    }
}
