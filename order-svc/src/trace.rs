//! W3C Trace Context: what the message tells of the request it comes from.

use axum::http::{HeaderMap, StatusCode};
use outbox::event::Event;
use svc_kit::trace::{Kind, Span, TRACEPARENT, TraceParent, exports};

const TRACESTATE: &str = "tracestate";

/// Length of `00-{32 hex}-{16 hex}-{2 hex}`.
const TRACEPARENT_LEN: usize = 55;
/// The standard requires that at least so much is carried on, in bytes; no more is.
const TRACESTATE_MAX: usize = 512;

/// The trace that an order belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    place: TraceParent,
    state: Option<String>,
}

impl Trace {
    /// The trace of a request, and the span of this service's work on it where spans are exported:
    /// then the message belongs to the span, else to whatever the request belonged to. A new trace
    /// when the request has none, or one that is not valid.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> (Self, Option<Span>) {
        let parent = parent(headers);
        let span = exports().then(|| Span::start("place order", Kind::Server, parent));
        let place = span.as_ref().map(Span::place).or(parent);
        let trace = Self {
            place: place.unwrap_or_else(TraceParent::root),
            // The state is nothing without the parent that it belongs to.
            state: parent.and_then(|_| state(headers)),
        };
        (trace, span)
    }

    /// A new trace.
    #[must_use]
    pub fn start() -> Self {
        Self {
            place: TraceParent::root(),
            state: None,
        }
    }

    /// Puts it into the headers of an event.
    #[must_use]
    pub fn on(&self, event: Event) -> Event {
        let event = event.header(TRACEPARENT, self.place.to_string());
        match &self.state {
            Some(state) => event.header(TRACESTATE, state),
            None => event,
        }
    }

    /// Bytes it takes in the headers of an event.
    #[must_use]
    pub fn bytes(&self) -> usize {
        TRACEPARENT_LEN + self.state.as_ref().map_or(0, String::len)
    }
}

/// The span of an order's transaction, its wait for one included.
#[must_use]
pub fn commit(request: &Span) -> Span {
    Span::start("commit order", Kind::Internal, Some(request.place()))
}

/// Ends the span of a request.
pub fn answered(mut request: Span, status: StatusCode) {
    request.set_attribute("http.response.status_code", status.as_str());
    if status.is_server_error() {
        request.fail(status.as_str());
    }
}

fn parent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    match (parents.next(), parents.next()) {
        (Some(parent), None) => TraceParent::parse(parent.to_str().ok()?),
        _ => None,
    }
}

/// All `tracestate` headers as one; `None` when there are none, or they are too long, or hold what a
/// header of a message should not.
fn state(headers: &HeaderMap) -> Option<String> {
    let mut state = String::new();
    for part in headers.get_all(TRACESTATE) {
        let part = part.to_str().ok()?.trim();
        if !state.is_empty() && !part.is_empty() {
            state.push(',');
        }
        state.push_str(part);
    }
    let fits = (1..=TRACESTATE_MAX).contains(&state.len());
    let visible = state.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    (fits && visible).then_some(state)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn of(headers: &[(&'static str, &str)]) -> Trace {
        let headers = headers.iter().map(|(name, value)| {
            let value = HeaderValue::from_str(value).unwrap();
            (HeaderName::from_static(name), value)
        });
        let mut all = HeaderMap::new();
        for (name, value) in headers {
            all.append(name, value);
        }
        Trace::of(&all).0
    }

    #[test]
    fn a_valid_parent_is_carried_on_as_it_is() {
        assert_eq!(of(&[(TRACEPARENT, VALID)]).place.to_string(), VALID);
    }

    #[test]
    fn what_is_not_a_parent_starts_a_new_trace() {
        let parent = TraceParent::parse(VALID).unwrap();
        for invalid in ["", "00", &VALID.to_uppercase(), &"0".repeat(10_000)] {
            let trace = of(&[(TRACEPARENT, invalid), (TRACESTATE, "a=1")]);
            assert_ne!(trace.place.trace_id(), parent.trace_id());
            assert_eq!(trace.state, None, "a state without its parent");
        }
        let twice = of(&[(TRACEPARENT, VALID), (TRACEPARENT, VALID)]);
        assert_ne!(twice.place.trace_id(), parent.trace_id());
        assert_ne!(of(&[]).place, of(&[]).place);
    }

    #[test]
    fn the_state_rides_along_within_its_bounds() {
        let parent = (TRACEPARENT, VALID);
        let of = |states: &[&str]| {
            let states = states.iter().map(|state| (TRACESTATE, *state));
            of(&[parent].into_iter().chain(states).collect::<Vec<_>>()).state
        };
        assert_eq!(of(&["a=1", "b=2"]).unwrap(), "a=1,b=2");
        assert_eq!(of(&[&"x".repeat(512)]).unwrap().len(), 512);
        assert_eq!(of(&[&"x".repeat(513)]), None);
        assert_eq!(of(&["a=\t1"]), None);
        assert_eq!(of(&[]), None);
    }
}
