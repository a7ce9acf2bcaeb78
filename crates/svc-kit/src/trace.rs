//! Distributed traces: the W3C Trace Context that rides in a request's, a row's and a message's
//! header `traceparent`, and the spans that are exported by OTLP when the feature `otlp` is on and
//! an endpoint is set. Without either a span is only its place in the trace, which costs nothing.

use std::fmt;

#[cfg(not(feature = "otlp"))]
#[path = "trace/none.rs"]
mod otlp;
#[cfg(feature = "otlp")]
mod otlp;

/// The header's name, in HTTP, in an outbox row and in a message.
pub const TRACEPARENT: &str = "traceparent";

/// A place in a trace: <https://www.w3.org/TR/trace-context/#traceparent-header>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

/// The caller wants the trace to be recorded.
const SAMPLED: u8 = 1;

impl TraceParent {
    /// Reads the header; `None` when it is not one, and a new trace is to be started.
    ///
    /// Of a version of the future the four parts that are known are read, as the standard requires.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let version = hex(parts.next()?, 2)?;
        let trace_id = hex(parts.next()?, 32)?;
        let span_id = hex(parts.next()?, 16)?;
        let flags = hex(parts.next()?, 2)?;
        let more = parts.next().is_some();
        if version == 0xff || (version == 0 && more) || trace_id == 0 || span_id == 0 {
            return None;
        }
        Some(Self {
            trace_id,
            span_id: u64::try_from(span_id).ok()?,
            flags: u8::try_from(flags).ok()?,
        })
    }

    /// The start of a trace of its own.
    #[must_use]
    pub fn root() -> Self {
        Self {
            trace_id: rand::random_range(1..=u128::MAX),
            span_id: rand::random_range(1..=u64::MAX),
            flags: SAMPLED,
        }
    }

    /// The next place in the same trace.
    #[must_use]
    pub fn child(self) -> Self {
        Self {
            span_id: rand::random_range(1..=u64::MAX),
            ..self
        }
    }

    /// The trace's id, 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trace_id,
            span_id,
            flags,
        } = self;
        write!(f, "00-{trace_id:032x}-{span_id:016x}-{flags:02x}")
    }
}

/// Lower-case digits alone: what `from_str_radix` takes besides (`+`, capitals) the standard forbids.
fn hex(digits: &str, length: usize) -> Option<u128> {
    let known = digits
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (digits.len() == length && known)
        .then(|| u128::from_str_radix(digits, 16).ok())
        .flatten()
}

/// What a span's program did in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Answered a request.
    Server,
    /// Sent a message.
    Producer,
    /// Received or processed a message.
    Consumer,
    /// Called another program and waited for the answer.
    Client,
    /// None of these.
    Internal,
}

/// A piece of work in a trace, from its start until it is dropped.
#[derive(Debug)]
pub struct Span {
    place: TraceParent,
    exported: Option<otlp::Exported>,
}

impl Span {
    /// Starts it now, below `parent` or as a trace of its own. `name` is of few values.
    #[must_use]
    pub fn start(name: &'static str, kind: Kind, parent: Option<TraceParent>) -> Self {
        match otlp::start(name, kind, parent) {
            Some((place, exported)) => Self {
                place,
                exported: Some(exported),
            },
            None => Self {
                place: parent.map_or_else(TraceParent::root, TraceParent::child),
                exported: None,
            },
        }
    }

    /// Where spans are exported: starts it below the place that a header names, and none where the
    /// header is not there, or is no `traceparent`. Else the header is not even looked for.
    #[must_use]
    pub fn follow(
        name: &'static str,
        kind: Kind,
        header: impl FnOnce() -> Option<String>,
    ) -> Option<Self> {
        let parent = TraceParent::parse(&exports().then(header)??)?;
        Some(Self::start(name, kind, Some(parent)))
    }

    /// Its place, for the header of what follows from it.
    #[must_use]
    pub fn place(&self) -> TraceParent {
        self.place
    }

    /// Sets an attribute: a name of OpenTelemetry's semantic conventions, never a secret.
    pub fn set_attribute(&mut self, name: &'static str, value: impl Into<String>) {
        if let Some(exported) = &mut self.exported {
            exported.set_attribute(name, value.into());
        }
    }

    /// Ends it, as dropping it does.
    pub fn end(self) {}

    /// It ended badly.
    pub fn fail(&mut self, why: impl Into<String>) {
        if let Some(exported) = &mut self.exported {
            exported.fail(why.into());
        }
    }
}

/// Whether spans are exported: what only a span needs need not be read otherwise.
#[must_use]
pub fn exports() -> bool {
    otlp::exports()
}

/// Starts the export, if it is compiled in and `OTEL_EXPORTER_OTLP_ENDPOINT` (or
/// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) is set. The other variables of OpenTelemetry's SDK hold too.
pub(crate) fn init() {
    otlp::init();
}

/// Sends what has not been sent, for a few seconds at most. Last thing of a program.
pub(crate) fn flush() {
    otlp::flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_header_is_read_and_written() {
        let place = TraceParent::parse(HEADER).unwrap();
        assert_eq!(place.to_string(), HEADER);
        assert_eq!(place.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        let future = "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-else";
        assert_eq!(TraceParent::parse(future), Some(place));
    }

    #[test]
    fn what_the_standard_forbids_is_no_header() {
        for wrong in [
            "",
            "00",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            " 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319é-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceParent::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_child_is_elsewhere_in_the_same_trace() {
        let parent = TraceParent::parse(HEADER).unwrap();
        let child = Span::start("work", Kind::Server, Some(parent)).place();
        assert_eq!(child.trace_id(), parent.trace_id());
        assert_ne!(child.span_id, parent.span_id);
        assert_eq!(child.flags, parent.flags);
        let root = Span::start("work", Kind::Server, None).place();
        assert_ne!(root.trace_id(), parent.trace_id());
        assert_eq!(TraceParent::parse(&root.to_string()), Some(root));
    }
}
