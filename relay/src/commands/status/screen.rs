//! The status as text: a line or a few for each thing.

use std::fmt;

use crate::commands::status::database::{Database, OLDEST_LOOKED_AT, Rows};
use crate::commands::status::live::Live;
use crate::commands::status::{Answer, Status};

/// Routes and pauses that a screen has room for.
const SHOWN: usize = 10;

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(f, "outbox", &self.outbox)?;
        match &self.database {
            Answer::Answered(database) => database.fmt(f)?,
            Answer::CouldNotAsk { address, error } => {
                line(
                    f,
                    "database",
                    format!("{address} COULD NOT BE ASKED: {error}"),
                )?;
                line(f, "", "leader, rows, routes and pauses are unknown")?;
            }
        }
        match &self.relay {
            Answer::Answered(live) => live.fmt(f)?,
            Answer::CouldNotAsk { address, error } => {
                line(f, "relay", format!("{address} COULD NOT BE ASKED: {error}"))?;
                line(
                    f,
                    "",
                    "phase, broker and lag are unknown; ADMIN_ADDR names the relay to request",
                )?;
            }
        }
        self.waiting(f)
    }
}

fn line(f: &mut fmt::Formatter<'_>, what: &str, text: impl fmt::Display) -> fmt::Result {
    writeln!(f, "{what:<10}{text}")
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let writes = if self.read_only { ", READ-ONLY" } else { "" };
        line(
            f,
            "database",
            format!("{} ({}{writes})", self.url, self.version),
        )?;
        let leader = match &self.leader {
            None => "NOBODY holds the lock".into(),
            Some(leader) => {
                let user = leader.user.as_deref().unwrap_or("?");
                let host = leader.host.as_deref();
                let host = host.unwrap_or("a host that this account may not see (PROCESS)");
                format!("connection {} of {user} from {host}", leader.connection)
            }
        };
        line(f, "leader", leader)?;
        let retrying = match self.retrying {
            0 => String::new(),
            rows => format!("; {rows} of the oldest failed by their own fault and are tried again"),
        };
        line(f, "pending", format!("{}{retrying}", self.pending))?;
        line(f, "parked", &self.parked)?;
        if let Some(why) = &self.paused.unknown {
            line(f, "paused", format!("unknown: {why}"))?;
        }
        if let Some(pause) = &self.paused.relay {
            let text = format!("by {} since {}: {}", pause.by, pause.since, pause.reason);
            line(f, "paused", format!("THE WHOLE RELAY {text}"))?;
        }
        for route in self.paused.routes.iter().take(SHOWN) {
            let (exchange, key, pause) = (&route.exchange, &route.routing_key, &route.paused);
            let text = format!("by {} since {}: {}", pause.by, pause.since, pause.reason);
            line(f, "paused", format!("route {exchange:?} {key:?} {text}"))?;
        }
        more(f, self.paused.routes.len())
    }
}

fn more(f: &mut fmt::Formatter<'_>, all: usize) -> fmt::Result {
    match all.checked_sub(SHOWN) {
        None | Some(0) => Ok(()),
        Some(more) => line(f, "", format!("and {more} more: see --json")),
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_more = if self.or_more { " or more" } else { "" };
        write!(f, "{}{or_more}", self.rows)?;
        match self.oldest_age_seconds {
            None => Ok(()),
            Some(age) => write!(f, ", the oldest is {} old", Span(age)),
        }
    }
}

/// Seconds for people.
struct Span(f64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            seconds if seconds < 120.0 => write!(f, "{seconds:.1} s"),
            seconds if seconds < 7_200.0 => write!(f, "{:.0} min", seconds / 60.0),
            seconds if seconds < 172_800.0 => write!(f, "{:.1} h", seconds / 3_600.0),
            seconds => write!(f, "{:.1} days", seconds / 86_400.0),
        }
    }
}

impl fmt::Display for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ready = if self.ready { "ready" } else { "NOT READY" };
        let (address, role, phase) = (&self.address, &self.role, &self.phase);
        line(f, "relay", format!("{address}: {role}, {phase}, {ready}"))?;
        for (name, condition) in self.conditions.iter().filter(|(_, c)| !c.ok && !self.ready) {
            line(f, "", format!("{name}: {}", condition.detail))?;
        }
        if let Some(broker) = self.conditions.get("broker") {
            line(f, "broker", &broker.detail)?;
        }
        let lag = Span(self.lag_seconds);
        line(f, "lag", format!("{lag}, {} in flight", self.in_flight))
    }
}

impl Status {
    /// The relay counts what waits; without one, what the database shows of it.
    fn waiting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let database = self.database.answer();
        let known = database.map_or(&[][..], |database| &database.routes);
        let mut waiting: Vec<(&str, &str, String)> = Vec::new();
        if let Some(live) = self.relay.answer().filter(|live| live.role == "active") {
            for route in live.waiting.iter().filter(|route| route.rows > 0.0) {
                let rows = match route.rows {
                    1.0 => "1 row".to_owned(),
                    rows => format!("{rows} rows"),
                };
                waiting.push((&route.exchange, &route.routing_key, rows));
            }
        } else {
            for route in known.iter().filter(|route| route.last_error.is_some()) {
                let rows = format!("{} of the oldest {OLDEST_LOOKED_AT} rows", route.rows);
                waiting.push((&route.exchange, &route.routing_key, rows));
            }
        }
        for (exchange, key, rows) in waiting.iter().take(SHOWN) {
            let error = known
                .iter()
                .find(|known| known.exchange == *exchange && known.routing_key == *key)
                .and_then(|known| known.last_error.as_deref());
            let error = error.map(|error| format!(": {error}")).unwrap_or_default();
            line(f, "waiting", format!("{exchange:?} {key:?}, {rows}{error}"))?;
        }
        more(f, waiting.len())
    }
}
