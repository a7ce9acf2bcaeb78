//! What the templates place: rows and filters as texts that are ready to be shown, and outcomes as
//! sentences.

use std::time::Duration;

use super::form::{Fields, encode, query};
use super::notice::Notice;
use super::show;
use crate::act::Outcome;
use crate::error::Error;
use crate::filter::{Filter, Order, State};
use crate::row::Row;
use crate::table::Table;

/// Characters of a failure's text in a list; the row's own page has all of it.
const ERROR_SHOWN: usize = 160;

/// A row of a list.
pub(super) struct RowView {
    /// As forms send it.
    pub(super) key: String,
    /// The row's own page.
    pub(super) href: String,
    pub(super) message_id: String,
    pub(super) state: &'static str,
    pub(super) state_name: &'static str,
    pub(super) event_type: String,
    pub(super) route: String,
    pub(super) aggregate: String,
    pub(super) age: String,
    pub(super) attempts: u32,
    pub(super) next_attempt: Option<String>,
    pub(super) class: Option<String>,
    pub(super) error: String,
}

impl RowView {
    pub(super) fn of(row: &Row) -> Self {
        let text = |text: &Option<String>| show::line(text.as_deref().unwrap_or_default());
        let aggregate = match &row.aggregate_type {
            Some(kind) => format!("{} {}", show::line(kind), text(&row.aggregate_id)),
            None => text(&row.aggregate_id),
        };
        Self {
            key: row.key.clone(),
            href: href(&row.key),
            message_id: show::line(&row.message_id),
            state: row.state.name(),
            state_name: row.state_name,
            event_type: text(&row.event_type),
            route: route(row),
            aggregate,
            age: show::age(row.age_seconds),
            attempts: row.attempts,
            next_attempt: row
                .next_attempt_at
                .as_deref()
                .map(|at| show::time(Some(at))),
            class: row.class.as_deref().map(show::line),
            error: show::short(said(row), ERROR_SHOWN),
        }
    }
}

/// The text of the last failure without its class, which has a place of its own.
fn said(row: &Row) -> &str {
    let error = row.last_error.as_deref().unwrap_or_default();
    let class = row.class.as_deref().unwrap_or_default();
    let rest = error
        .strip_prefix(class)
        .and_then(|rest| rest.strip_prefix(": "));
    rest.unwrap_or(error)
}

/// Exchange and routing key, as far as the row has them.
fn route(row: &Row) -> String {
    let parts = [&row.exchange, &row.routing_key];
    let parts = parts.into_iter().flatten().filter(|part| !part.is_empty());
    parts
        .map(|part| show::line(part))
        .collect::<Vec<_>>()
        .join(" → ")
}

/// The address of a row's own page. The key is in the query: one with a slash is a key as well.
pub(super) fn href(key: &str) -> String {
    format!("/ops/row?key={}", encode(key))
}

/// The filter's form, with what was requested in it.
pub(super) struct FilterView {
    /// The page it leads to.
    pub(super) action: &'static str,
    /// Value, label, whether it is chosen.
    pub(super) states: Vec<(&'static str, &'static str, bool)>,
    /// Name, label, hint and content of the fields that are always shown.
    pub(super) main: Vec<TextField>,
    /// And of those behind "More filters".
    pub(super) more: Vec<TextField>,
    /// Whether one of those is set.
    pub(super) is_open: bool,
    /// The list begins with the oldest row.
    pub(super) oldest_first: bool,
}

/// A field of a form.
pub(super) struct TextField {
    pub(super) name: &'static str,
    pub(super) label: &'static str,
    pub(super) hint: &'static str,
    pub(super) value: String,
}

impl FilterView {
    pub(super) fn of(table: &Table, requested: &Requested, action: &'static str) -> Self {
        let filter = &requested.filter;
        let states = [State::Parked, State::Waiting, State::Done, State::Discarded];
        let field = |name, label, hint, value: Option<&String>| TextField {
            name,
            label,
            hint,
            value: value.cloned().unwrap_or_default(),
        };
        let (older, newer) = (age_text(filter.older_than), age_text(filter.newer_than));
        let main = vec![
            field("class", "Error class", "too_large", filter.class.as_ref()),
            field(
                "text",
                "Text",
                "in id, key, type, route or error",
                filter.text.as_ref(),
            ),
        ];
        let more = vec![
            field(
                "type",
                "Type",
                "order.placed.v1",
                filter.event_type.as_ref(),
            ),
            field(
                "exchange",
                "Exchange",
                "order-exchange",
                filter.exchange.as_ref(),
            ),
            field(
                "routing_key",
                "Routing key",
                "order.pay",
                filter.routing_key.as_ref(),
            ),
            field(
                "key",
                "Key",
                "the aggregate's id",
                filter.aggregate_id.as_ref(),
            ),
            field(
                "message_id",
                "Message id",
                "exactly",
                filter.message_id.as_ref(),
            ),
            field("older_than", "Older than", "15m, 2h or 3d", older.as_ref()),
            field("newer_than", "Newer than", "15m, 2h or 3d", newer.as_ref()),
        ];
        Self {
            action,
            states: states
                .map(|state| (state.name(), table.state_name(state), state == filter.state))
                .into(),
            is_open: more.iter().any(|field| !field.value.is_empty()),
            main,
            more,
            oldest_first: requested.order == Order::Oldest,
        }
    }
}

/// What a query requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Requested {
    /// Which rows.
    pub(super) filter: Filter,
    /// From which end.
    pub(super) order: Order,
    /// Where to go on.
    pub(super) after: Option<String>,
}

impl Requested {
    /// Reads a query; what it does not know it leaves to others.
    pub(super) fn of(fields: &Fields) -> Result<Self, Error> {
        let text = |name| searched(fields, name);
        let filter = Filter {
            state: state(fields.get("state"))?,
            class: text("class")?,
            event_type: text("type")?,
            exchange: text("exchange")?,
            routing_key: text("routing_key")?,
            aggregate_id: text("key")?,
            message_id: text("message_id")?,
            older_than: age("older_than", fields.get("older_than"))?,
            newer_than: age("newer_than", fields.get("newer_than"))?,
            text: text("text")?,
        };
        let order = match fields.get("order") {
            None | Some("newest") => Order::Newest,
            Some("oldest") => Order::Oldest,
            Some(_) => return Err(Error::invalid("order", "is not oldest or newest")),
        };
        let after = text("after")?;
        Ok(Self {
            filter: filter.checked()?,
            order,
            after,
        })
    }

    /// The pairs of the filter, for a link or for hidden fields.
    pub(super) fn pairs(&self) -> Vec<(&'static str, String)> {
        let filter = &self.filter;
        let mut pairs = vec![("state", filter.state.name().to_owned())];
        let order = if self.order == Order::Oldest {
            "oldest"
        } else {
            ""
        };
        for (name, value) in [
            ("class", filter.class.clone()),
            ("type", filter.event_type.clone()),
            ("exchange", filter.exchange.clone()),
            ("routing_key", filter.routing_key.clone()),
            ("key", filter.aggregate_id.clone()),
            ("message_id", filter.message_id.clone()),
            ("older_than", age_text(filter.older_than)),
            ("newer_than", age_text(filter.newer_than)),
            ("text", filter.text.clone()),
            ("order", Some(order.to_owned())),
        ] {
            pairs.extend(
                value
                    .filter(|value| !value.is_empty())
                    .map(|value| (name, value)),
            );
        }
        pairs
    }

    /// The same as a query, with more behind it.
    pub(super) fn query(&self, more: &[(&str, &str)]) -> String {
        let pairs = self.pairs();
        let own = pairs.iter().map(|(name, value)| (*name, value.as_str()));
        query(own.chain(more.iter().copied()))
    }
}

/// A text to search for. One that a person can't see as it is has come by accident, or from somebody
/// who wants another person to look for something else than they read.
pub(super) fn searched(fields: &Fields, name: &'static str) -> Result<Option<String>, Error> {
    let text = fields.get(name);
    if text.is_some_and(|text| show::line(text) != text) {
        return Err(Error::invalid(name, "has a character that can't be seen"));
    }
    Ok(text.map(str::to_owned))
}

fn state(text: Option<&str>) -> Result<State, Error> {
    match text {
        None => Ok(State::default()),
        Some("waiting" | "pending" | "received") => Ok(State::Waiting),
        Some("done" | "sent" | "processed") => Ok(State::Done),
        Some("parked") => Ok(State::Parked),
        Some("discarded") => Ok(State::Discarded),
        Some(_) => Err(Error::invalid(
            "state",
            "is not waiting, done, parked or discarded",
        )),
    }
}

/// Seconds, or a time with its unit.
fn age(name: &'static str, text: Option<&str>) -> Result<Option<u64>, Error> {
    let Some(text) = text else { return Ok(None) };
    if let Ok(seconds) = text.parse() {
        return Ok(Some(seconds));
    }
    let length = humantime::parse_duration(text);
    let seconds = length.map(|length| length.as_secs());
    seconds
        .map(Some)
        .map_err(|_| Error::invalid(name, "is not a time such as 90s, 15m or 2h"))
}

fn age_text(seconds: Option<u64>) -> Option<String> {
    seconds.map(|seconds| {
        let length = Duration::from_secs(seconds);
        humantime::format_duration(length)
            .to_string()
            .replace(' ', "")
    })
}

/// What came of an action on one row, in words.
pub(super) fn notice_of(table: &Table, outcome: &Outcome) -> Notice {
    match outcome {
        Outcome::Done { key, after, .. } => {
            let key = show::line(key);
            Notice::good(match after {
                State::Waiting => format!("Row {key} is tried again now."),
                State::Discarded => format!("Row {key} is discarded. It can be restored."),
                State::Parked => format!("Row {key} is parked again."),
                State::Done => format!("Row {key} is {}.", table.state_name(State::Done)),
            })
        }
        Outcome::Conflict {
            key,
            now,
            why,
            last,
        } => {
            let who = last.as_ref().map_or_else(String::new, |last| {
                let (actor, action) = (show::line(&last.actor), show::line(&last.action));
                format!(
                    " Last, {actor} did “{action}” ({} UTC).",
                    show::time(last.at.as_deref())
                )
            });
            let (key, now) = (show::line(key), table.state_name(*now));
            Notice::warn(format!("Not done: row {key} is {now} now, and {why}.{who}"))
        }
        Outcome::Missing { key } => Notice::warn(format!(
            "Not done: there is no row {} any more.",
            show::line(key)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requested(query: &str) -> Result<Requested, Error> {
        Requested::of(&Fields::parse(query.as_bytes()).unwrap())
    }

    #[test]
    fn a_query_is_a_filter_and_a_filter_is_a_query() {
        let query = "state=discarded&class=too_large&type=a.b&exchange=e%26&routing_key=r&key=k%20k\
                     &message_id=m&older_than=15m&newer_than=2days&text=%3Cb%3E&order=oldest";
        let requested = requested(query).unwrap();
        assert_eq!(requested.filter.older_than, Some(900));
        assert_eq!(requested.filter.newer_than, Some(2 * 86_400));
        assert_eq!(requested.filter.text.as_deref(), Some("<b>"));
        assert_eq!(requested.query(&[]), query);
        assert!(requested.query(&[("after", "7")]).ends_with("&after=7"));
    }

    #[test]
    fn nothing_requested_for_is_what_is_parked() {
        let requested = requested("class=&text=+&older_than=").unwrap();
        assert!(requested.filter.is_state_only());
        assert_eq!(requested.query(&[]), "state=parked");
    }

    #[test]
    fn what_cannot_be_requested_for_is_named() {
        for (query, field) in [
            ("state=lost", "state"),
            ("older_than=soon", "older_than"),
            ("newer_than=-1", "newer_than"),
            ("order=random", "order"),
            ("class=%1B%5B2J", "class"),
            ("key=a%E2%80%AEb", "key"),
            (&*format!("text={}", "x".repeat(256)), "text"),
        ] {
            let err = requested(query).unwrap_err().to_string();
            assert!(err.starts_with(field), "{err}");
        }
    }
}
