//! The payment that a message requests. Pure: the stored row in, an order or the reason against it out.

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::schedule::Class;

/// The one event type this service handles.
pub const ORDER_PLACED: &str = "order.placed.v1";

/// No placed order is longer, in bytes; what is longer is not read into memory.
pub const PAYLOAD_MAX: usize = 64 * 1024;

const AMOUNT_MAX: i64 = 1_000_000_000_000_000;
const CUSTOMER_MAX: usize = 64;

/// A placed order, as far as paying it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedOrder {
    /// The order; also the key by which the provider knows a repeated charge.
    pub order_id: Uuid,
    /// The amount in the currency's minor unit, 1 to 10^15.
    pub amount_minor: i64,
    /// ISO 4217, three capital letters.
    pub currency: String,
    /// When the order was placed, where the message says so.
    pub placed_at: Option<OffsetDateTime>,
}

/// A message that no handler can ever process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpayable {
    /// [`Class::UnknownType`] or [`Class::Malformed`].
    pub class: Class,
    /// The operator's text.
    pub text: String,
}

/// The members of `order.placed.v1`; further ones are ignored, so that producers can add some.
#[derive(Deserialize)]
struct Payload {
    order_id: String,
    customer_id: String,
    amount_minor: i64,
    currency: String,
    placed_at: Option<String>,
}

/// Reads a message of type `event_type` and the first [`PAYLOAD_MAX`] + 1 bytes of its body.
/// `occurred_at` is the header of that name, for a payload without `placed_at`.
///
/// # Errors
/// [`Unpayable`], which parks the message at once.
pub fn read(
    event_type: Option<&str>,
    payload: &[u8],
    occurred_at: Option<&str>,
) -> Result<PlacedOrder, Unpayable> {
    match event_type {
        Some(ORDER_PLACED) => {}
        Some(other) => return Err(unknown(format!("no handler for the type {other:?}"))),
        None => return Err(unknown("the message has no type".to_owned())),
    }
    if payload.len() > PAYLOAD_MAX {
        return Err(malformed(format!(
            "the body has more than {PAYLOAD_MAX} bytes"
        )));
    }
    let payload: Payload = serde_json::from_slice(payload)
        .map_err(|err| malformed(format!("the body is not a placed order: {err}")))?;
    let order_id = Uuid::try_parse(&payload.order_id).map_err(|_| {
        malformed(format!(
            "order_id {:?} is not a UUID",
            cut(&payload.order_id)
        ))
    })?;
    if !(1..=CUSTOMER_MAX).contains(&payload.customer_id.chars().count()) {
        return Err(malformed(format!(
            "customer_id must have 1 to {CUSTOMER_MAX} characters"
        )));
    }
    if !(1..=AMOUNT_MAX).contains(&payload.amount_minor) {
        let amount = payload.amount_minor;
        return Err(malformed(format!(
            "amount_minor {amount} is not between 1 and {AMOUNT_MAX}"
        )));
    }
    let currency = payload.currency;
    if currency.len() != 3 || !currency.bytes().all(|byte| byte.is_ascii_uppercase()) {
        let text = format!("currency {:?} is not three capital letters", cut(&currency));
        return Err(malformed(text));
    }
    let placed_at = match payload.placed_at.as_deref() {
        Some(text) => Some(OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
            malformed(format!("placed_at {:?} is not an RFC 3339 time", cut(text)))
        })?),
        // A header is only a hint for a metric: an unreadable one is no reason not to pay.
        None => occurred_at.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok()),
    };
    Ok(PlacedOrder {
        order_id,
        amount_minor: payload.amount_minor,
        currency,
        placed_at,
    })
}

fn unknown(text: String) -> Unpayable {
    Unpayable {
        class: Class::UnknownType,
        text,
    }
}

fn malformed(text: String) -> Unpayable {
    Unpayable {
        class: Class::Malformed,
        text,
    }
}

/// Enough of a foreign text to recognise it by.
fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: &str = r#"{"order_id":"018f4e7a-1111-7222-8333-444455556666","customer_id":"c","amount_minor":1999,"currency":"EUR","placed_at":"2026-01-02T03:04:05.000006Z"}"#;

    fn class_of(event_type: Option<&str>, payload: &str) -> Class {
        read(event_type, payload.as_bytes(), None)
            .unwrap_err()
            .class
    }

    #[test]
    fn a_placed_order_is_read() {
        let order = read(Some(ORDER_PLACED), ORDER.as_bytes(), None).unwrap();
        assert_eq!((order.amount_minor, order.currency.as_str()), (1999, "EUR"));
        assert_eq!(order.placed_at.unwrap().microsecond(), 6);
    }

    #[test]
    fn a_member_more_is_no_reason_not_to_pay() {
        let longer = ORDER.replacen('{', r#"{"channel":"web","#, 1);
        assert!(read(Some(ORDER_PLACED), longer.as_bytes(), None).is_ok());
    }

    #[test]
    fn the_header_tells_the_time_when_the_payload_does_not() {
        let without = ORDER.replace(r#","placed_at":"2026-01-02T03:04:05.000006Z""#, "");
        let at = Some("2026-01-02T03:04:06.000000Z");
        let order = read(Some(ORDER_PLACED), without.as_bytes(), at).unwrap();
        assert_eq!(order.placed_at.unwrap().second(), 6);
        let order = read(Some(ORDER_PLACED), without.as_bytes(), Some("soon")).unwrap();
        assert_eq!(order.placed_at, None);
    }

    #[test]
    fn another_type_or_none_is_unknown() {
        assert_eq!(
            class_of(Some("order.cancelled.v1"), ORDER),
            Class::UnknownType
        );
        assert_eq!(class_of(None, ORDER), Class::UnknownType);
        assert_eq!(class_of(Some(""), "not json"), Class::UnknownType);
    }

    #[test]
    fn whatever_is_not_a_placed_order_is_malformed() {
        let wrong = [
            "{".to_owned(),
            String::new(),
            "[]".to_owned(),
            "\u{0}".to_owned(),
            ORDER.replace("018f4e7a-1111-7222-8333-444455556666", "7"),
            ORDER.replace("\"customer_id\":\"c\",", ""),
            ORDER.replace("\"c\"", "\"\""),
            ORDER.replace("1999", "0"),
            ORDER.replace("1999", "1000000000000001"),
            ORDER.replace("1999", "19.99"),
            ORDER.replace("1999", "\"1999\""),
            ORDER.replace("EUR", "eur"),
            ORDER.replace("EUR", "EURO"),
            ORDER.replace("2026-01-02T", "yesterday "),
            format!("{ORDER}{}", " ".repeat(PAYLOAD_MAX)),
        ];
        for payload in wrong {
            assert_eq!(
                class_of(Some(ORDER_PLACED), &payload),
                Class::Malformed,
                "{payload:.60}"
            );
        }
    }
}
