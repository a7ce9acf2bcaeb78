//! `traceparent`.

use svc_kit::trace::TraceParent;

/// A header is taken exactly if the standard says so, and is written as it was read.
pub fn traceparent(data: &[u8]) {
    let Ok(header) = std::str::from_utf8(data) else {
        return;
    };
    let place = TraceParent::parse(header);
    assert_eq!(place.is_some(), is_valid(data), "{header:?}");
    let Some(place) = place else { return };
    let written = place.to_string();
    assert_eq!(written[2..], header[2..55], "{header:?}");
    assert_eq!(TraceParent::parse(&written), Some(place));
    let child = place.child();
    assert_eq!(child.trace_id(), place.trace_id());
    assert_eq!(TraceParent::parse(&child.to_string()), Some(child));
}

/// <https://www.w3.org/TR/trace-context/#traceparent-header>, by the places of its bytes.
fn is_valid(header: &[u8]) -> bool {
    let Some((head, rest)) = header.split_at_checked(55) else {
        return false;
    };
    let dashes = [2, 35, 52];
    let formed = head.iter().enumerate().all(|(at, byte)| match byte {
        b'-' => dashes.contains(&at),
        b'0'..=b'9' | b'a'..=b'f' => !dashes.contains(&at),
        _ => false,
    });
    let zero = |part: &[u8]| part.iter().all(|byte| *byte == b'0');
    let (version, trace, span) = (&head[..2], &head[3..35], &head[36..52]);
    let ends = rest.is_empty() || (version != b"00" && rest[0] == b'-');
    formed && version != b"ff" && !zero(trace) && !zero(span) && ends
}
