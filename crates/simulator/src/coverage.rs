//! What was reached: every variant of the engine's interface, and every kind of fault.

use std::collections::BTreeMap;

use relay::engine::{Command, End, Event, Reason, Report, StateName, Then, Write};
use relay::publish::confirms::{Outcome, Verdict};

use crate::faults::Fault;

/// Counts by group and name.
#[derive(Clone, Debug)]
pub(crate) struct Coverage {
    counts: BTreeMap<(&'static str, &'static str), u64>,
    /// Events given to engines.
    pub(crate) events: u64,
}

const EVENTS: &[&str] = &[
    "Tick",
    "BinlogOpened",
    "BinlogEnded",
    "BinlogEnded(timed out)",
    "Committed",
    "Doubt",
    "BinlogAt",
    "Page",
    "Rows",
    "TableRefused",
    "Published",
    "BrokerLost",
    "BrokerBlocked",
    "BrokerUnblocked",
    "Written",
    "Pauses",
    "Drain",
];
const COMMANDS: &[&str] = &[
    "OpenBinlog",
    "CloseBinlog",
    "ReadPage",
    "Load",
    "Publish",
    "Write(Sent)",
    "Write(Record)",
    "Report",
    "End(Drained)",
    "End(BrokerLost)",
];
const REPORTS: &[&str] = &[
    "Confirmed",
    "Published",
    "Failed",
    "Refused",
    "RouteClosed",
    "RouteOpened",
    "MissedByBinlog",
    "ChannelClosed",
    "BinlogBroken",
    "BinlogAway",
    "WriteStall(true)",
    "WriteStall(false)",
];
const STATES: &[&str] = &[
    "CatchingUp",
    "AwaitingBinlog",
    "Tailing",
    "Polling",
    "Paused",
    "Draining",
    "Closing",
];
const THENS: &[&str] = &["Retry", "Park", "Explain", "Wait"];
const REASONS: &[&str] = &[
    "Nack",
    "Returned",
    "Timeout",
    "ChannelClosed",
    "TooLarge",
    "Invalid",
];
const OUTCOMES: &[&str] = &[
    "Settled",
    "Closed",
    "TimedOut",
    "Lost",
    "LeaseOver",
    "Verdict::Confirmed",
    "Verdict::Returned",
    "Verdict::Nacked",
    "Verdict::Invalid",
];
const SNAPSHOTS: &[&str] = &[
    "overflowed",
    "delayed",
    "stalled",
    "blocked",
    "table refused",
    "writes refused",
];

impl Coverage {
    pub(crate) fn new() -> Self {
        let groups = [
            ("event", EVENTS),
            ("command", COMMANDS),
            ("report", REPORTS),
            ("state", STATES),
            ("then", THENS),
            ("reason", REASONS),
            ("outcome", OUTCOMES),
            ("snapshot", SNAPSHOTS),
        ];
        let mut counts = BTreeMap::new();
        for (group, names) in groups {
            counts.extend(names.iter().map(|&name| ((group, name), 0)));
        }
        counts.extend(Fault::ALL.iter().map(|fault| (("fault", fault.name()), 0)));
        Self { counts, events: 0 }
    }

    fn count(&mut self, group: &'static str, name: &'static str) {
        *self.counts.entry((group, name)).or_default() += 1;
    }

    /// A fault took effect.
    pub(crate) fn fault(&mut self, fault: Fault) {
        self.count("fault", fault.name());
    }

    /// The engine is given an event.
    pub(crate) fn event(&mut self, event: &Event) {
        self.events += 1;
        let name = match event {
            Event::Tick => "Tick",
            Event::BinlogOpened => "BinlogOpened",
            Event::BinlogEnded(end) if end.timed_out => "BinlogEnded(timed out)",
            Event::BinlogEnded(_) => "BinlogEnded",
            Event::Committed(_) => "Committed",
            Event::Doubt => "Doubt",
            Event::BinlogAt(_) => "BinlogAt",
            Event::Page(_) => "Page",
            Event::Rows(_) => "Rows",
            Event::TableRefused(_) => "TableRefused",
            Event::Published { outcome, .. } => {
                self.outcome(outcome);
                "Published"
            }
            Event::BrokerLost(_) => "BrokerLost",
            Event::BrokerBlocked(_) => "BrokerBlocked",
            Event::BrokerUnblocked => "BrokerUnblocked",
            Event::Written(_) => "Written",
            Event::Pauses(_) => "Pauses",
            Event::Drain => "Drain",
        };
        self.count("event", name);
    }

    fn outcome(&mut self, outcome: &Outcome) {
        let name = match outcome {
            Outcome::Settled(verdicts) => {
                for verdict in verdicts {
                    let name = match verdict {
                        Verdict::Confirmed(_) => "Verdict::Confirmed",
                        Verdict::Returned(_) => "Verdict::Returned",
                        Verdict::Nacked => "Verdict::Nacked",
                        Verdict::Invalid(_) => "Verdict::Invalid",
                    };
                    self.count("outcome", name);
                }
                "Settled"
            }
            Outcome::Closed { .. } => "Closed",
            Outcome::TimedOut { .. } => "TimedOut",
            Outcome::Lost(_) => "Lost",
            Outcome::LeaseOver => "LeaseOver",
        };
        self.count("outcome", name);
    }

    /// The engine gives a command.
    pub(crate) fn command(&mut self, command: &Command) {
        let name = match command {
            Command::OpenBinlog(_) => "OpenBinlog",
            Command::CloseBinlog => "CloseBinlog",
            Command::ReadPage(_) => "ReadPage",
            Command::Load(_) => "Load",
            Command::Publish { .. } => "Publish",
            Command::Write(Write::Sent(_)) => "Write(Sent)",
            Command::Write(Write::Record(record)) => {
                self.then(record.then);
                self.reason(record.reason);
                "Write(Record)"
            }
            Command::Report(report) => {
                self.report(report);
                "Report"
            }
            Command::End(End::Drained) => "End(Drained)",
            Command::End(End::BrokerLost(_)) => "End(BrokerLost)",
        };
        self.count("command", name);
    }

    fn then(&mut self, then: Then) {
        let name = match then {
            Then::Retry { .. } => "Retry",
            Then::Park { .. } => "Park",
            Then::Explain => "Explain",
            Then::Wait(_) => "Wait",
        };
        self.count("then", name);
    }

    fn reason(&mut self, reason: Reason) {
        let name = match reason {
            Reason::Nack => "Nack",
            Reason::Returned => "Returned",
            Reason::Timeout => "Timeout",
            Reason::ChannelClosed => "ChannelClosed",
            Reason::TooLarge => "TooLarge",
            Reason::Invalid => "Invalid",
        };
        self.count("reason", name);
    }

    fn report(&mut self, report: &Report) {
        let name = match report {
            Report::Confirmed { .. } => "Confirmed",
            Report::Published { .. } => "Published",
            Report::Failed(_) => "Failed",
            Report::Refused(_) => "Refused",
            Report::RouteClosed(_) => "RouteClosed",
            Report::RouteOpened(_) => "RouteOpened",
            Report::MissedByBinlog(_) => "MissedByBinlog",
            Report::ChannelClosed { .. } => "ChannelClosed",
            Report::BinlogBroken(_) => "BinlogBroken",
            Report::BinlogAway { .. } => "BinlogAway",
            Report::WriteStall(true) => "WriteStall(true)",
            Report::WriteStall(false) => "WriteStall(false)",
        };
        self.count("report", name);
    }

    /// The engine is in this state.
    pub(crate) fn state(&mut self, state: StateName) {
        let name = match state {
            StateName::CatchingUp => "CatchingUp",
            StateName::AwaitingBinlog => "AwaitingBinlog",
            StateName::Tailing => "Tailing",
            StateName::Polling => "Polling",
            StateName::Paused => "Paused",
            StateName::Draining => "Draining",
            StateName::Closing => "Closing",
        };
        self.count("state", name);
    }

    /// What else a snapshot showed.
    pub(crate) fn snapshot(&mut self, name: &'static str) {
        self.count("snapshot", name);
    }

    /// Adds the counts of another run.
    pub(crate) fn add(&mut self, other: &Self) {
        self.events += other.events;
        for (&name, &count) in &other.counts {
            *self.counts.entry(name).or_default() += count;
        }
    }

    /// What was never reached.
    pub(crate) fn missing(&self) -> Vec<String> {
        let never = self.counts.iter().filter(|(_, count)| **count == 0);
        never
            .map(|((group, name), _)| format!("{group} {name}"))
            .collect()
    }

    /// One line for each name.
    pub(crate) fn table(&self) -> Vec<String> {
        let line = |((group, name), count): (&(&str, &str), &u64)| {
            format!("{group:<10} {name:<26} {count:>12}")
        };
        self.counts.iter().map(line).collect()
    }
}
