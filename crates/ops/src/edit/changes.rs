//! What an edit changed, as the audit shows it.

use sha2::{Digest as _, Sha256};

use super::Edit;

/// Longest text, in characters.
const TEXT_MAX: usize = 4_000;

/// What an edit requested, for the audit: small texts as they are, of the payload its length and
/// digest, by which it differs from others.
pub(super) fn changed(edit: &Edit) -> String {
    let mut parts = Vec::new();
    for (name, value) in [
        ("type", &edit.event_type),
        ("exchange", &edit.exchange),
        ("routing_key", &edit.routing_key),
        ("content_type", &edit.content_type),
    ] {
        parts.extend(value.as_ref().map(|value| format!("{name} {value:?}")));
    }
    if let Some(headers) = &edit.headers {
        let names: Vec<&str> = headers.keys().map(String::as_str).collect();
        parts.push(format!("headers {names:?}"));
    }
    if let Some(payload) = &edit.payload {
        let digest: String = Sha256::digest(payload)
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        parts.push(format!(
            "payload {} bytes, SHA-256 {digest}…",
            payload.len()
        ));
    }
    match parts.is_empty() {
        true => "nothing changed".to_owned(),
        false => format!("changed {}", parts.join(", "))
            .chars()
            .take(TEXT_MAX)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_requested_for_is_reported_and_a_payload_by_its_digest() {
        assert_eq!(changed(&Edit::default()), "nothing changed");
        let edit = Edit {
            routing_key: Some("order.other".to_owned()),
            headers: Some([("a".to_owned(), "secret".to_owned())].into()),
            payload: Some("{}".to_owned()),
            ..Edit::default()
        };
        assert_eq!(
            changed(&edit),
            "changed routing_key \"order.other\", headers [\"a\"], payload 2 bytes, SHA-256 \
             44136fa355b3678a…"
        );
        let long = Edit {
            exchange: Some("x".repeat(100_000)),
            ..Edit::default()
        };
        assert_eq!(changed(&long).chars().count(), TEXT_MAX);
    }
}
