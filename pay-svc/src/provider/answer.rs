//! What a provider's answer means: the contract of `PAY_PROVIDER=http`, in README.md as a table.
//! Pure.

use std::time::Duration;

use hyper::StatusCode;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::{ChargeError, Outcome, Receipt};

/// Longest `payments.provider_ref`, in bytes.
const REFERENCE_MAX: usize = 128;
/// Longest code of an error that is shown, in bytes.
const CODE_MAX: usize = 64;

/// A whole answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer<'a> {
    pub(super) status: StatusCode,
    /// The header `Retry-After`.
    pub(super) retry_after: Option<&'a str>,
    /// `None` when it was too long to be read.
    pub(super) body: Option<&'a [u8]>,
}

/// The members this service knows; further ones are the provider's own.
#[derive(Debug, Default, Deserialize)]
struct Body {
    outcome: Option<String>,
    reference: Option<String>,
    code: Option<String>,
}

/// Reads an answer that came at `now`.
///
/// The status alone decides whose failure it is. A body that can't be read never turns an answer
/// about the provider's state into one about the message.
pub(super) fn read(answer: Answer<'_>, now: OffsetDateTime) -> Result<Receipt, ChargeError> {
    let Answer { status, body, .. } = answer;
    let body: Option<Body> = body.and_then(|body| serde_json::from_slice(body).ok());
    let outcome = match body.as_ref().and_then(|body| body.outcome.as_deref()) {
        Some("captured") => Some(Outcome::Captured),
        Some("declined") => Some(Outcome::Declined),
        Some(_) | None => None,
    };
    let body = body.unwrap_or_default();
    let text = failure_text(status, body.code.as_deref());
    let unavailable = |text| {
        let retry_after = answer.retry_after.and_then(|after| wait(after, now));
        Err(ChargeError::Unavailable { text, retry_after })
    };
    match (status.as_u16(), outcome) {
        (200..=299, Some(outcome)) => Ok(Receipt {
            outcome,
            reference: reference(body.reference),
        }),
        // The money was refused; what the body says besides is the provider's own.
        (402, _) => Ok(Receipt {
            outcome: Outcome::Declined,
            reference: reference(body.reference),
        }),
        // Taken, and not decided yet.
        (202, None) => unavailable(text),
        (200..=299, None) => Err(ChargeError::Failed(format!("{text} without an outcome"))),
        // Time-out, the same charge still under way, too early, too many, and its own faults.
        (408 | 409 | 425 | 429 | 500..=599, _) => unavailable(text),
        _ => Err(ChargeError::Failed(text)),
    }
}

/// The status, and the error's code where it is one: never free text, which may hold anything.
fn failure_text(status: StatusCode, code: Option<&str>) -> String {
    let is_code = |code: &&str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        (1..=CODE_MAX).contains(&code.len()) && code.bytes().all(known)
    };
    match code.filter(is_code) {
        Some(code) => format!("{status}, {code}"),
        None => status.to_string(),
    }
}

/// A reference that the table can't hold is left out: the money is taken all the same.
fn reference(reference: Option<String>) -> Option<String> {
    reference.filter(|text| {
        (1..=REFERENCE_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic())
    })
}

/// `Retry-After`: seconds, or a date. What is neither, or over, requests nothing.
fn wait(retry_after: &str, now: OffsetDateTime) -> Option<Duration> {
    let text = retry_after.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let at = OffsetDateTime::parse(text, &Rfc2822).ok()?;
    Duration::try_from(at - now).ok()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

    fn read_with(status: u16, retry_after: Option<&str>, body: Option<&str>) -> String {
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            retry_after,
            body: body.map(str::as_bytes),
        };
        match read(answer, NOW) {
            Ok(Receipt { outcome, reference }) => format!("{} {reference:?}", outcome.name()),
            Err(ChargeError::Failed(text)) => format!("attempt: {text}"),
            Err(ChargeError::Unavailable { text, retry_after }) => match retry_after {
                Some(after) => format!("age, {} s: {text}", after.as_secs()),
                None => format!("age: {text}"),
            },
        }
    }

    #[test]
    fn the_outcome_of_a_2xx_counts() {
        for status in [200, 201, 202, 299] {
            let captured = read_with(status, None, Some(r#"{"outcome":"captured","x":1}"#));
            assert_eq!(captured, "captured None");
        }
        let body = r#"{"outcome":"declined","reference":"ch_1"}"#;
        assert_eq!(read_with(200, None, Some(body)), r#"declined Some("ch_1")"#);
    }

    #[test]
    fn a_2xx_without_an_outcome_spends_an_attempt_but_202_time() {
        let bodies = [
            None,
            Some(""),
            Some("{}"),
            Some("[]"),
            Some("{\"outcome\":"),
            Some(r#"{"outcome":"CAPTURED"}"#),
            Some(r#"{"outcome":true}"#),
        ];
        for body in bodies {
            let failed = read_with(200, None, body);
            assert_eq!(failed, "attempt: 200 OK without an outcome", "{body:?}");
            assert_eq!(read_with(202, None, body), "age: 202 Accepted", "{body:?}");
        }
    }

    #[test]
    fn the_status_decides_whose_failure_it_is() {
        for (status, spends) in [
            (301, "attempt: "),
            (400, "attempt: "),
            (401, "attempt: "),
            (403, "attempt: "),
            (404, "attempt: "),
            (408, "age: "),
            (409, "age: "),
            (413, "attempt: "),
            (422, "attempt: "),
            (425, "age: "),
            (429, "age: "),
            (451, "attempt: "),
            (500, "age: "),
            (501, "age: "),
            (503, "age: "),
            (599, "age: "),
        ] {
            // An outcome in the body of an error is none.
            for body in [None, Some("<html>"), Some(r#"{"outcome":"captured"}"#)] {
                let got = read_with(status, None, body);
                assert!(got.starts_with(spends), "{status} {body:?}: {got}");
            }
        }
        assert_eq!(read_with(402, None, None), "declined None");
        let body = Some(r#"{"reference":"ch_2"}"#);
        assert_eq!(read_with(402, None, body), r#"declined Some("ch_2")"#);
    }

    #[test]
    fn an_errors_code_is_shown_and_its_text_is_not() {
        let shown = |body| read_with(422, None, Some(body));
        let plain = "attempt: 422 Unprocessable Entity";
        assert_eq!(
            shown(r#"{"code":"key_reused"}"#),
            format!("{plain}, key_reused")
        );
        let card = r#"{"code":"card 4111 1111 1111 1111","detail":"4111111111111111"}"#;
        assert_eq!(shown(card), plain);
        let long = format!(r#"{{"code":"{}"}}"#, "x".repeat(65));
        assert_eq!(shown(&long), plain);
    }

    #[test]
    fn a_reference_that_cannot_be_stored_does_not_undo_the_charge() {
        for reference in ["", "a b", "ö", &"x".repeat(129)] {
            let body = format!(r#"{{"outcome":"captured","reference":"{reference}"}}"#);
            assert_eq!(read_with(200, None, Some(&body)), "captured None");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        for (text, spends) in [
            ("7", "age, 7 s: "),
            (" 0 ", "age, 0 s: "),
            ("4294967295", "age, 4294967295 s: "),
            ("Fri, 02 Jan 2026 03:05:05 GMT", "age, 60 s: "),
            ("Fri, 02 Jan 2026 03:03:05 GMT", "age: "),
            ("99999999999999999999", "age: "),
            ("-1", "age: "),
            ("soon", "age: "),
            ("", "age: "),
        ] {
            let got = read_with(429, Some(text), None);
            assert!(got.starts_with(spends), "{text}: {got}");
        }
    }
}
