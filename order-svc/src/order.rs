//! The order a request becomes, and what is said of it. Pure.

use outbox::row::rfc3339;
use serde::Serialize;
use time::{OffsetDateTime, PrimitiveDateTime, UtcOffset};
use uuid::Uuid;

use crate::request::OrderRequest;

/// An order that is about to be, or has been, placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The order's id, a UUIDv7.
    pub order_id: Uuid,
    /// When it was placed, to the microsecond, UTC.
    pub placed_at: OffsetDateTime,
    /// What was requested.
    pub request: OrderRequest,
}

impl Order {
    /// Makes an order of a request.
    #[must_use]
    pub fn new(order_id: Uuid, placed_at: OffsetDateTime, request: OrderRequest) -> Self {
        // The tables keep microseconds; what is answered now must equal what is read later.
        let whole_micros = placed_at.nanosecond() / 1_000 * 1_000;
        let placed_at = placed_at
            .replace_nanosecond(whole_micros)
            .unwrap_or(placed_at);
        Self {
            order_id,
            placed_at,
            request,
        }
    }

    /// The id of the message that says this order was placed.
    ///
    /// An order is placed once, so its own id identifies that message, and the delivery of an
    /// order is found by the unique message id, without one more index on the outbox.
    #[must_use]
    pub fn message_id(&self) -> Uuid {
        self.order_id
    }

    /// The payload of `order.placed.v1`.
    #[must_use]
    pub fn payload(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Payload<'a> {
            order_id: String,
            customer_id: &'a str,
            amount_minor: i64,
            currency: &'a str,
            placed_at: String,
        }
        let payload = Payload {
            order_id: self.order_id.to_string(),
            customer_id: &self.request.customer_id,
            amount_minor: self.request.amount_minor,
            currency: &self.request.currency,
            placed_at: utc(self.placed_at),
        };
        serde_json::to_vec(&payload).expect("a struct of strings and integers is JSON")
    }

    /// The order as clients see it.
    #[must_use]
    pub fn receipt(&self) -> Receipt<'_> {
        Receipt {
            order_id: self.order_id.to_string(),
            message_id: self.message_id().to_string(),
            request: &self.request,
            placed_at: utc(self.placed_at),
        }
    }
}

/// An order as clients see it: the body of the 201 that answers the request.
#[derive(Debug, Serialize)]
pub struct Receipt<'a> {
    order_id: String,
    message_id: String,
    #[serde(flatten)]
    request: &'a OrderRequest,
    placed_at: String,
}

impl Receipt<'_> {
    /// As JSON.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("a struct of strings and integers is JSON")
    }
}

/// RFC 3339 in UTC with microseconds.
fn utc(at: OffsetDateTime) -> String {
    let utc = at.to_offset(UtcOffset::UTC);
    rfc3339(PrimitiveDateTime::new(utc.date(), utc.time()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_has_the_members_of_the_contract_in_their_order() {
        let placed_at =
            OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_789).unwrap();
        let order = Order::new(Uuid::nil(), placed_at, OrderRequest::sample());
        assert_eq!(
            String::from_utf8(order.payload()).unwrap(),
            r#"{"order_id":"00000000-0000-0000-0000-000000000000","customer_id":"sample-customer","amount_minor":1999,"currency":"EUR","placed_at":"2023-11-14T22:13:20.123456Z"}"#
        );
    }
}
