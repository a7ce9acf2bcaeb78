//! W3C Trace Context: what the message tells of the request it comes from. Pure but for a new trace's
//! random ids.

use axum::http::HeaderMap;
use outbox::event::Event;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

/// Length of `00-{32 hex}-{16 hex}-{2 hex}`.
const TRACEPARENT_LEN: usize = 55;
/// The standard asks that at least so much is carried on, in bytes; no more is.
const TRACESTATE_MAX: usize = 512;
/// This service records nothing, and leaves it to those behind it: with this flag they do.
const SAMPLED: &str = "01";

/// The trace that an order belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    parent: String,
    state: Option<String>,
}

impl Trace {
    /// The trace of a request; a new one when the request has none, or one that is not valid.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let mut parents = headers.get_all(TRACEPARENT).iter();
        let parent = match (parents.next(), parents.next()) {
            (Some(parent), None) => parent.to_str().ok().and_then(read),
            _ => None,
        };
        // The state is nothing without the parent that it belongs to.
        parent.map_or_else(Self::start, |parent| Self {
            parent,
            state: state(headers),
        })
    }

    /// A new trace.
    #[must_use]
    pub fn start() -> Self {
        // Zero is the one value that is not an id.
        let trace = rand::random::<u128>().max(1);
        let span = rand::random::<u64>().max(1);
        Self {
            parent: format!("00-{trace:032x}-{span:016x}-{SAMPLED}"),
            state: None,
        }
    }

    /// Puts it into the headers of an event.
    #[must_use]
    pub fn on(&self, event: Event) -> Event {
        let event = event.header(TRACEPARENT, &self.parent);
        match &self.state {
            Some(state) => event.header(TRACESTATE, state),
            None => event,
        }
    }

    /// Bytes it takes in the headers of an event.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.parent.len() + self.state.as_ref().map_or(0, String::len)
    }
}

/// A `traceparent` as this version of the standard writes it. Later versions may have more behind the
/// flags, and more flags: what this one knows is kept.
fn read(text: &str) -> Option<String> {
    let known = text.get(..TRACEPARENT_LEN)?;
    let parts: Vec<&str> = known.split('-').collect();
    let [version, trace, span, flags] = parts[..] else {
        return None;
    };
    let lengths = [version.len(), trace.len(), span.len(), flags.len()] == [2, 32, 16, 2];
    let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let digits = parts.iter().all(|part| part.bytes().all(hex));
    let ids = [trace, span]
        .iter()
        .all(|id| id.bytes().any(|byte| byte != b'0'));
    if !(lengths && digits && ids) || version == "ff" {
        return None;
    }
    match (version, text.as_bytes().get(TRACEPARENT_LEN)) {
        ("00", None) => Some(known.to_owned()),
        ("00", Some(_)) => None,
        (_, None | Some(b'-')) => {
            let flags = u8::from_str_radix(flags, 16).ok()? & 1;
            Some(format!("00-{trace}-{span}-{flags:02x}"))
        }
        (_, Some(_)) => None,
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
        Trace::of(&all)
    }

    #[test]
    fn a_valid_parent_is_carried_on_as_it_is() {
        for valid in [
            VALID,
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
            "00-00000000000000000000000000000001-0000000000000001-ff",
        ] {
            assert_eq!(of(&[(TRACEPARENT, valid)]).parent, valid);
        }
    }

    #[test]
    fn a_later_version_is_understood_as_far_as_this_one_goes() {
        let later = VALID.replacen("00-", "cc-", 1);
        assert_eq!(of(&[(TRACEPARENT, &later)]).parent, VALID);
        let longer = format!("{later}-what-comes");
        assert_eq!(of(&[(TRACEPARENT, &longer)]).parent, VALID);
        let more_flags = later.replace("-01", "-ff");
        assert_eq!(of(&[(TRACEPARENT, &more_flags)]).parent, VALID);
    }

    #[test]
    fn what_is_not_a_parent_starts_a_new_trace() {
        let long = format!("{VALID}0");
        for invalid in [
            "",
            "00",
            &VALID.to_uppercase(),
            &VALID.replacen("00-", "ff-", 1),
            &VALID.replacen("00-", "0-0", 1),
            &VALID.replace('-', "_"),
            &VALID.replace("4bf9", "4bg9"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            &format!("{VALID}-more"),
            &format!("{}x", VALID.replacen("00-", "cc-", 1)),
            &long,
            &"0".repeat(10_000),
        ] {
            let trace = of(&[(TRACEPARENT, invalid), (TRACESTATE, "a=1")]);
            assert_eq!(
                read(&trace.parent).as_ref(),
                Some(&trace.parent),
                "{invalid}"
            );
            assert_ne!(trace.parent, *invalid);
            assert_eq!(trace.state, None, "a state without its parent");
        }
        let twice = of(&[(TRACEPARENT, VALID), (TRACEPARENT, VALID)]);
        assert_ne!(twice.parent, VALID);
        assert_ne!(of(&[]).parent, of(&[]).parent);
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
