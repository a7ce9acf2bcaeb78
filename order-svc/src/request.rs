//! What a client requests. Pure: bytes in, a checked request or all that is wrong with them out.

use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// The largest amount, in the currency's minor unit, that an order may have.
pub const AMOUNT_MAX: i64 = 1_000_000_000_000_000;

/// A request to place an order, with every member checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, garde::Validate)]
pub struct OrderRequest {
    /// Who orders: 1 to 64 characters.
    #[garde(custom(characters::<1, 64>))]
    pub customer_id: String,
    /// The amount in the currency's minor unit: 1 to [`AMOUNT_MAX`].
    #[garde(custom(valid_amount))]
    pub amount_minor: i64,
    /// ISO 4217, three capital letters.
    #[garde(custom(valid_currency))]
    pub currency: String,
    /// Free text of at most 1,000 characters.
    #[garde(inner(custom(characters::<0, 1000>)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// Why a body is not an order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The body is not JSON at all; the text says where.
    #[error("the body is not valid JSON: {0}")]
    Malformed(String),
    /// The body is JSON, but not an order: one entry for each wrong member.
    #[error("the order is not valid")]
    Invalid(Vec<MemberError>),
}

/// One wrong member of a request. The member is empty when the whole body is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberError {
    /// The member's name as the client sent it.
    pub member: String,
    /// What is wrong with it.
    pub detail: String,
}

impl MemberError {
    fn new(member: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            member: member.into(),
            detail: detail.into(),
        }
    }
}

impl OrderRequest {
    /// Reads a request from a JSON body. Every wrong member is reported, not only the first.
    ///
    /// # Errors
    /// [`RequestError::Malformed`] when it is not JSON, else [`RequestError::Invalid`].
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let value: Value =
            serde_json::from_slice(body).map_err(|err| RequestError::Malformed(err.to_string()))?;
        let Value::Object(mut members) = value else {
            let whole = MemberError::new("", "must be a JSON object");
            return Err(RequestError::Invalid(vec![whole]));
        };
        let mut errors = Vec::new();
        let customer_id = take_text(&mut members, "customer_id", &mut errors);
        let amount_minor = take_integer(&mut members, "amount_minor", &mut errors);
        let currency = take_text(&mut members, "currency", &mut errors);
        let description = match members.remove("description") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text),
            Some(_) => {
                errors.push(MemberError::new("description", "must be a string"));
                None
            }
        };
        errors.extend(
            members
                .keys()
                .map(|name| MemberError::new(name, "is not a member of an order")),
        );

        // A member that is missing or of another type is already reported; what stands in for it
        // here only lets the others be checked, so that a client sees all its mistakes at once.
        let reported: Vec<String> = errors.iter().map(|error| error.member.clone()).collect();
        let request = Self {
            customer_id: customer_id.unwrap_or_default(),
            amount_minor: amount_minor.unwrap_or_default(),
            currency: currency.unwrap_or_default(),
            description,
        };
        errors.extend(
            request
                .broken_rules()
                .into_iter()
                .filter(|e| !reported.contains(&e.member)),
        );
        if errors.is_empty() {
            Ok(request)
        } else {
            Err(RequestError::Invalid(errors))
        }
    }

    /// The order that `POST /buy` places when it is sent no body.
    #[must_use]
    pub fn sample() -> Self {
        Self {
            customer_id: "sample-customer".to_owned(),
            amount_minor: 1999,
            currency: "EUR".to_owned(),
            description: Some("a sample order".to_owned()),
        }
    }

    /// The digest by which an idempotency key knows the request again: of the members, so that a
    /// client which sends them in another order or with other white space has sent the same request.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let members = serde_json::to_vec(self).expect("a struct of strings and integers is JSON");
        Sha256::digest(members).into()
    }

    fn broken_rules(&self) -> Vec<MemberError> {
        match garde::Validate::validate(self) {
            Ok(()) => Vec::new(),
            Err(report) => report
                .iter()
                .map(|(path, error)| MemberError::new(path.to_string(), error.message()))
                .collect(),
        }
    }
}

fn take_text(
    members: &mut Map<String, Value>,
    name: &str,
    errors: &mut Vec<MemberError>,
) -> Option<String> {
    match members.remove(name) {
        Some(Value::String(text)) => Some(text),
        Some(_) => {
            errors.push(MemberError::new(name, "must be a string"));
            None
        }
        None => {
            errors.push(MemberError::new(name, "is required"));
            None
        }
    }
}

fn take_integer(
    members: &mut Map<String, Value>,
    name: &str,
    errors: &mut Vec<MemberError>,
) -> Option<i64> {
    match members.remove(name) {
        // A number too large for 64 bits is reported as what it is, an amount over the limit.
        Some(Value::Number(number)) if number.is_u64() => Some(number.as_i64().unwrap_or(i64::MAX)),
        Some(Value::Number(number)) if number.is_i64() => number.as_i64(),
        Some(_) => {
            errors.push(MemberError::new(name, "must be a whole number"));
            None
        }
        None => {
            errors.push(MemberError::new(name, "is required"));
            None
        }
    }
}

fn characters<const MIN: usize, const MAX: usize>(text: &str, _: &()) -> garde::Result {
    let count = text.chars().count();
    if (MIN..=MAX).contains(&count) {
        return Ok(());
    }
    Err(garde::Error::new(if MIN == 0 {
        format!("must have at most {MAX} characters, has {count}")
    } else {
        format!("must have {MIN} to {MAX} characters, has {count}")
    }))
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that garde calls"
)]
fn valid_amount(amount: &i64, _: &()) -> garde::Result {
    if (1..=AMOUNT_MAX).contains(amount) {
        return Ok(());
    }
    Err(garde::Error::new(format!(
        "must be between 1 and {AMOUNT_MAX}"
    )))
}

fn valid_currency(currency: &str, _: &()) -> garde::Result {
    if currency.len() == 3 && currency.bytes().all(|byte| byte.is_ascii_uppercase()) {
        return Ok(());
    }
    Err(garde::Error::new(
        "must be three capital letters, as in ISO 4217",
    ))
}
#[cfg(test)]
mod tests {
    use super::*;

    fn invalid_members(body: &str) -> Vec<String> {
        match OrderRequest::parse(body.as_bytes()) {
            Err(RequestError::Invalid(errors)) => errors.into_iter().map(|e| e.member).collect(),
            other => panic!("expected invalid members, got {other:?}"),
        }
    }

    #[test]
    fn every_wrong_member_is_reported_at_once() {
        let body = r#"{"customer_id":"","amount_minor":0,"currency":"eur","colour":1}"#;
        let mut members = invalid_members(body);
        members.sort();
        assert_eq!(
            members,
            ["amount_minor", "colour", "currency", "customer_id"]
        );
    }

    #[test]
    fn a_missing_member_is_reported_once() {
        assert_eq!(
            invalid_members(r#"{"amount_minor":1,"currency":"EUR"}"#),
            ["customer_id"]
        );
    }

    #[test]
    fn members_of_another_type_are_invalid_not_malformed() {
        let body = r#"{"customer_id":1,"amount_minor":"1","currency":null,"description":[]}"#;
        let members = invalid_members(body);
        assert_eq!(
            members,
            ["customer_id", "amount_minor", "currency", "description"]
        );
        assert_eq!(invalid_members("[]"), [""]);
        assert_eq!(invalid_members("null"), [""]);
    }

    #[test]
    fn amounts_stop_at_the_limits() {
        let of = |amount: &str| {
            OrderRequest::parse(
                format!(r#"{{"customer_id":"c","amount_minor":{amount},"currency":"EUR"}}"#)
                    .as_bytes(),
            )
        };
        assert!(of("1").is_ok() && of("1000000000000000").is_ok());
        for wrong in [
            "0",
            "-1",
            "1000000000000001",
            "18446744073709551615",
            "1e40",
            "1.5",
            "1.0",
        ] {
            assert!(of(wrong).is_err(), "{wrong} was taken for an amount");
        }
    }

    #[test]
    fn lengths_count_characters_not_bytes() {
        let of = |count: usize| {
            let customer = "é".repeat(count);
            OrderRequest::parse(
                format!(r#"{{"customer_id":"{customer}","amount_minor":1,"currency":"EUR"}}"#)
                    .as_bytes(),
            )
        };
        assert!(of(64).is_ok() && of(65).is_err());
    }

    #[test]
    fn what_is_not_json_is_malformed() {
        for body in [
            "",
            "{",
            "{\"customer_id\":\"\\ud800\"}",
            "nonsense",
            "\u{feff}{}",
        ] {
            let parsed = OrderRequest::parse(body.as_bytes());
            assert!(
                matches!(parsed, Err(RequestError::Malformed(_))),
                "{body:?}: {parsed:?}"
            );
        }
    }

    #[test]
    fn the_digest_knows_a_request_by_its_members() {
        let one = r#"{"customer_id":"c","amount_minor":1,"currency":"EUR"}"#;
        let same =
            r#"{ "currency":"EUR", "amount_minor":1, "customer_id":"c", "description":null }"#;
        let other = r#"{"customer_id":"c","amount_minor":2,"currency":"EUR"}"#;
        let digest = |body: &str| OrderRequest::parse(body.as_bytes()).unwrap().digest();
        assert_eq!(digest(one), digest(same));
        assert_ne!(digest(one), digest(other));
    }
}
