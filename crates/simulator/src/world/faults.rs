//! The beginning and the end of each fault.

use super::SessionId;
use super::{Happening, World};
use crate::faults::{Episode, Fault, Scope};
use crate::queue::{MILLI, SECOND};
use crate::rng::{Rng, mix};
use relay::engine::{BinlogEnd, Event};

impl World {
    /// An episode begins.
    pub(super) fn begin(&mut self, number: usize) {
        let episode = self.scenario.episodes[number];
        self.active[episode.fault as usize] += 1;
        let now = self.queue.now();
        self.trace.line(
            now,
            format_args!(
                "## {} begins, until {:.3}",
                episode.fault.name(),
                episode.end as f64 / 1e6
            ),
        );
        if episode.fault.scope() == Scope::All {
            self.checker.disturbed(now);
        }
        match episode.fault {
            Fault::Burst => self.burst(),
            Fault::DelayedCrowd => self.crowd(),
            Fault::RouteCrowd => self.route_crowd(),
            Fault::Flood => self.flood(),
            Fault::SemiSync => {
                self.coverage.fault(episode.fault);
                self.semi_sync_until = self.semi_sync_until.max(episode.end);
            }
            Fault::Unroutable
            | Fault::Flapping
            | Fault::NoExchange
            | Fault::Forbidden
            | Fault::Silent
            | Fault::Full => {
                self.coverage.fault(episode.fault);
                self.trouble_routes(episode, true);
            }
            Fault::PauseAll | Fault::PauseRoute => self.pause(episode, true),
            Fault::Retry
            | Fault::Discard
            | Fault::SetBack
            | Fault::SetNext
            | Fault::Delete
            | Fault::Change => {
                self.operate(episode);
            }
            Fault::Truncate => self.queue.after(0, Happening::Truncate),
            Fault::BinlogEnds | Fault::BinlogStall | Fault::BinlogReset | Fault::BinlogPurge => {
                self.begin_binlog(episode);
            }
            Fault::ReadOnly
            | Fault::DatabaseRestart
            | Fault::Failover
            | Fault::TwoServers
            | Fault::ClockJump => {
                self.begin_database(episode);
            }
            Fault::ProcessPause | Fault::ProcessCrash | Fault::Drain => self.begin_process(episode),
            Fault::ConnectionLost | Fault::Blocked | Fault::StrayReturn => {
                self.begin_broker(episode);
            }
            _ => {}
        }
    }

    /// An episode ends.
    pub(super) fn cease(&mut self, number: usize) {
        let episode = self.scenario.episodes[number];
        self.active[episode.fault as usize] -= 1;
        let now = self.queue.now();
        self.trace
            .line(now, format_args!("## {} ends", episode.fault.name()));
        if episode.fault.scope() == Scope::All {
            self.checker.disturbed(now);
        }
        match episode.fault {
            Fault::Unroutable
            | Fault::Flapping
            | Fault::NoExchange
            | Fault::Forbidden
            | Fault::Silent
            | Fault::Full => {
                self.trouble_routes(episode, false);
            }
            Fault::PauseAll | Fault::PauseRoute => self.pause(episode, false),
            Fault::ReadOnly => self.servers[self.primary].read_only = self.is(Fault::ReadOnly),
            Fault::DatabaseRestart => {
                self.servers[self.primary].up = !self.is(Fault::DatabaseRestart);
            }
            Fault::TwoServers => self.demote_other(),
            Fault::Blocked => {
                for id in self.sessions() {
                    self.queue.after(
                        MILLI,
                        Happening::Deliver(id, Box::new(Event::BrokerUnblocked)),
                    );
                }
            }
            _ => {}
        }
    }

    fn trouble_routes(&mut self, episode: Episode, on: bool) {
        let routes = self.scenario.routes;
        let share = if routes > 100 { 95 } else { 30 };
        for route in 0..routes {
            let hit = match episode.fault {
                Fault::NoExchange => route % 2 == episode.salt % 2,
                _ => route == episode.salt % routes || mix(episode.salt ^ route) % 100 < share,
            };
            if hit {
                self.broker.trouble(route, episode.fault, on);
                self.checker.route_disturbed(route, self.queue.now());
            }
        }
    }

    fn begin_binlog(&mut self, episode: Episode) {
        self.coverage.fault(episode.fault);
        let server = self.primary;
        match episode.fault {
            Fault::BinlogReset => self.servers[server].log.reset(),
            Fault::BinlogPurge => self.servers[server].log.purge(),
            Fault::BinlogStall => {
                for id in self.sessions() {
                    if let Some(session) = &mut self.processes[id.process].session
                        && let Some(stream) = &mut session.stream
                    {
                        stream.frozen = true;
                    }
                }
            }
            _ => {
                for id in self.sessions() {
                    self.end_stream(id);
                }
            }
        }
    }

    fn end_stream(&mut self, id: SessionId) {
        let Some(session) = &mut self.processes[id.process].session else {
            return;
        };
        let Some(stream) = session.stream.as_ref().filter(|stream| stream.open) else {
            return;
        };
        let number = stream.number;
        let why = ("the connection was closed".to_owned(), false);
        self.queue
            .after(0, Happening::StreamAnswer(id, number, Err(why)));
    }

    fn begin_database(&mut self, episode: Episode) {
        let now = self.queue.now();
        match episode.fault {
            Fault::ClockJump => {
                let mut rng = Rng::new(episode.salt, 0);
                let jump = i64::try_from(rng.below(40 * SECOND)).expect("it is small");
                self.clock += jump - 20_000_000;
            }
            Fault::ReadOnly => self.servers[self.primary].read_only = true,
            Fault::DatabaseRestart => {
                self.servers[self.primary].up = false;
                self.servers[self.primary].log.rotate();
                self.cut_sessions(self.primary);
            }
            _ => self.fail_over(episode),
        }
        self.coverage.fault(episode.fault);
        self.checker.disturbed(now);
    }

    /// All sessions with the server end within a second, and its locks are free.
    fn cut_sessions(&mut self, server: usize) {
        self.servers[server].lock.reset();
        for id in self.sessions() {
            let on = self.processes[id.process]
                .session
                .as_ref()
                .is_some_and(|session| session.server == server);
            if on {
                let wait = self.rng.below(SECOND);
                self.queue.after(
                    wait,
                    Happening::EndSession(id, "the database connection is lost"),
                );
            }
        }
    }

    fn fail_over(&mut self, episode: Episode) {
        let mut rng = Rng::new(episode.salt, 0);
        let old = self.primary;
        let lost = rng.size(0, 20);
        let newest = self.servers[old].rows.iter().rev().take(50);
        let unmarked: Vec<u64> = newest
            .map(|(id, _)| *id)
            .filter(|_| rng.percent(50))
            .collect();
        let replica = self.servers[old].replica(rng.range(1, 60), lost, &unmarked);
        for row in replica
            .rows
            .values()
            .filter(|row| row.status == super::PENDING)
        {
            self.checker
                .visible(row.message, row.status, self.queue.now());
        }
        self.servers.push(replica);
        self.primary = self.servers.len() - 1;
        if episode.fault == Fault::TwoServers {
            self.demote_other();
            self.other = Some(old);
        } else {
            self.servers[old].up = false;
            self.cut_sessions(old);
        }
    }

    /// The old primary is read-only from now on.
    fn demote_other(&mut self) {
        if let Some(other) = self.other.take() {
            self.servers[other].read_only = true;
        }
    }

    fn begin_process(&mut self, episode: Episode) {
        let now = self.queue.now();
        let Some(id) = self.sessions().into_iter().next() else {
            return;
        };
        self.coverage.fault(episode.fault);
        match episode.fault {
            // One that stands still is not stopped again: what has waited for the end of the first pause
            // would come behind what waited for the second, and a connection keeps its order.
            Fault::ProcessPause if self.processes[id.process].stopped_until > now => {}
            Fault::ProcessPause => self.processes[id.process].stopped_until = episode.end,
            Fault::Drain => {
                self.queue
                    .at(now, Happening::Deliver(id, Box::new(Event::Drain)));
                self.queue.after(
                    25 * SECOND,
                    Happening::EndSession(id, "the drain took too long"),
                );
            }
            _ => self.crash(id),
        }
    }

    fn begin_broker(&mut self, episode: Episode) {
        self.coverage.fault(episode.fault);
        match episode.fault {
            Fault::StrayReturn => self.broker.stray = true,
            Fault::Blocked => {
                self.broker.blocked_until = self.broker.blocked_until.max(episode.end);
                for id in self.sessions() {
                    let event = Event::BrokerBlocked("low on memory".to_owned());
                    self.queue
                        .after(MILLI, Happening::Deliver(id, Box::new(event)));
                }
            }
            _ => {
                self.broker.down_until = self.broker.down_until.max(episode.end);
                for id in self.sessions() {
                    self.lose_connection(id, "the connection was reset");
                }
            }
        }
    }

    /// The binlog stream of a session is over.
    pub(super) fn binlog_end(why: String, timed_out: bool) -> Event {
        Event::BinlogEnded(BinlogEnd { why, timed_out })
    }
}
