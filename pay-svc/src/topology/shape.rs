//! What a queue is, found out over AMQP, and what that means for messages. No IO.
//!
//! A declaration that differs from the queue that is there is refused with the first property that does.
//! Declared again as the broker has it, the queue shows the next one.

use std::collections::BTreeMap;

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

use super::QUEUE;

/// The largest delivery limit both RabbitMQ 3.10 and 4 understand. Without one, RabbitMQ 4 deletes
/// a message at its 21st delivery, closed connections included; -1 deletes on 3.10 at the first.
const DELIVERY_LIMIT: i32 = i32::MAX;

const KIND: &str = "x-queue-type";
const LIMIT: &str = "x-delivery-limit";

/// A declaration.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) options: QueueDeclareOptions,
    arguments: BTreeMap<String, AMQPValue>,
}

/// A property that the queue has otherwise; `None`: it has not got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Property {
    pub(super) name: String,
    value: Option<(String, String)>,
}

/// What a difference means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Consuming would lose messages, or never see some of them.
    Refused(String),
    /// Consuming works all the same.
    Differs(String),
}

impl Shape {
    /// What this service declares.
    pub(super) fn wanted() -> Self {
        let quorum = AMQPValue::LongString(LongString::from("quorum"));
        let limit = AMQPValue::LongInt(DELIVERY_LIMIT);
        Self {
            options: QueueDeclareOptions {
                passive: false,
                durable: true,
                exclusive: false,
                auto_delete: false,
                nowait: false,
            },
            arguments: [(KIND.to_owned(), quorum), (LIMIT.to_owned(), limit)].into(),
        }
    }

    pub(super) fn arguments(&self) -> FieldTable {
        let pairs = self.arguments.iter();
        let pairs = pairs.filter_map(|(name, value)| {
            Some((ShortString::try_new(name.as_str()).ok()?, value.clone()))
        });
        FieldTable::from(pairs.collect::<BTreeMap<_, _>>())
    }

    /// Is declared with this property as the broker has it from now on.
    pub(super) fn adopt(&mut self, property: &Property) {
        let on = property.text() == Some("true");
        match (property.name.as_str(), &property.value) {
            ("durable", _) => self.options.durable = on,
            ("auto_delete", _) => self.options.auto_delete = on,
            (name, None) => drop(self.arguments.remove(name)),
            (name, Some((text, kind))) => {
                let value = match (kind.as_str(), text.parse()) {
                    ("bool", _) => AMQPValue::Boolean(text == "true"),
                    ("longstr" | "", _) | (_, Err(_)) => {
                        AMQPValue::LongString(LongString::from(text.as_str()))
                    }
                    (_, Ok(number)) => AMQPValue::LongLongInt(number),
                };
                self.arguments.insert(name.to_owned(), value);
            }
        }
    }
}

impl Property {
    /// From the broker's text: `inequivalent arg 'x' for queue 'q' in vhost '/': received none but
    /// current is the value '1' of type 'long'`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once("inequivalent arg '")?;
        let (name, rest) = rest.split_once('\'')?;
        let (_, current) = rest.split_once("but current is ")?;
        let mut quoted = current.split('\'').skip(1).step_by(2);
        let value = quoted.next().map(|value| {
            let kind = quoted.next().unwrap_or_default();
            (value.to_owned(), kind.to_owned())
        });
        Some(Self {
            name: name.to_owned(),
            value,
        })
    }

    fn text(&self) -> Option<&str> {
        self.value.as_ref().map(|(text, _)| text.as_str())
    }
}

/// What the differences of one queue mean, each by name and with its fix.
pub(super) fn meanings(found: &[Property]) -> Vec<Meaning> {
    let overflow = found.iter().find(|property| property.name == "x-overflow");
    let overflow = overflow.and_then(Property::text).unwrap_or("drop-head");
    let all = found.iter().map(|property| meaning(property, overflow));
    all.flatten().collect()
}

fn meaning(property: &Property, overflow: &str) -> Option<Meaning> {
    let value = property.text().unwrap_or("absent");
    let named =
        |text: String| format!("the queue {QUEUE}: {} is {value}, so {text}", property.name);
    let again = format!(
        "pause the relay, delete {QUEUE} when it is empty, and it is declared again as it is to be"
    );
    let differs = |text: &str| Some(Meaning::Differs(named(format!("{text}; {again}"))));
    match (property.name.as_str(), value) {
        (KIND, "stream") => Some(Meaning::Refused(named(format!(
            "what arrives while no pay-svc is there would never be paid; {again}"
        )))),
        ("auto_delete", "true") => Some(Meaning::Refused(named(format!(
            "it is deleted with all its messages when its last consumer leaves; {again}"
        )))),
        (KIND, _) => differs("it does not survive the loss of a broker, as a quorum queue does"),
        ("durable", "false") => differs("it is lost when the broker starts again"),
        ("x-message-ttl", _) => differs("messages are dropped after so many milliseconds"),
        ("x-expires", _) => differs(
            "it is deleted with all its messages after so many milliseconds without a consumer",
        ),
        ("x-max-length" | "x-max-length-bytes", _) if overflow == "drop-head" => {
            differs("its oldest messages are dropped when it is full (x-overflow is drop-head)")
        }
        ("x-overflow", "drop-head") => None,
        (LIMIT, "absent") => Some(Meaning::Differs(named(format!(
            "RabbitMQ 4 deletes a message at its 21st delivery unless you set: {}",
            limit_policy()
        )))),
        (LIMIT, _) => Some(Meaning::Differs(named(format!(
            "a message is deleted after so many deliveries; a policy can't raise it: {again}"
        )))),
        _ => Some(Meaning::Differs(format!(
            "the queue {QUEUE} is left as it is: {} is {value}",
            property.name
        ))),
    }
}

fn limit_policy() -> String {
    format!(
        "rabbitmqctl set_policy --apply-to queues {QUEUE}-limit '^{QUEUE}$' \
         '{{\"delivery-limit\":{DELIVERY_LIMIT}}}'"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, current: &str) -> Property {
        let text = format!(
            "PRECONDITION_FAILED - inequivalent arg '{name}' for queue 'order-queue' in vhost '/': \
             received 'quorum' but current is {current}"
        );
        Property::parse(&text).unwrap()
    }

    fn debug_text(found: &[Property]) -> String {
        format!("{:?}", meanings(found))
    }

    #[test]
    fn a_property_is_read_in_each_of_the_brokers_forms() {
        assert_eq!(found(KIND, "'stream'").text(), Some("stream"));
        assert_eq!(found(LIMIT, "none").value, None);
        let typed = found("x-expires", "the value '60000' of type 'signedint'");
        assert_eq!(typed.text(), Some("60000"));
        assert_eq!(Property::parse("PRECONDITION_FAILED - no"), None);
    }

    #[test]
    fn a_declaration_takes_on_what_the_queue_has() {
        let mut shape = Shape::wanted();
        shape.adopt(&found(KIND, "'classic'"));
        shape.adopt(&found(LIMIT, "none"));
        shape.adopt(&found("x-expires", "the value '60000' of type 'long'"));
        shape.adopt(&found("durable", "'false'"));
        assert!(!shape.options.durable && !shape.options.auto_delete);
        let classic = AMQPValue::LongString(LongString::from("classic"));
        assert_eq!(shape.arguments.get(KIND), Some(&classic));
        let expires = AMQPValue::LongLongInt(60_000);
        assert_eq!(shape.arguments.get("x-expires"), Some(&expires));
        assert!(!shape.arguments().contains_key(LIMIT));
    }

    #[test]
    fn what_consuming_would_lose_is_refused_and_the_rest_named() {
        let stream = [found(KIND, "'stream'"), found(LIMIT, "none")];
        assert!(
            debug_text(&stream).contains("Refused(\"the queue order-queue: x-queue-type is stream")
        );
        let gone = [found("auto_delete", "'true'")];
        assert!(debug_text(&gone).contains("Refused(\"the queue order-queue: auto_delete is true"));
        for (name, current) in [
            (KIND, "'classic'"),
            ("x-message-ttl", "the value '5' of type 'long'"),
            ("x-expires", "the value '5' of type 'long'"),
            ("x-max-length", "the value '5' of type 'long'"),
            (LIMIT, "the value '3' of type 'long'"),
            (LIMIT, "none"),
            (
                "x-single-active-consumer",
                "the value 'true' of type 'bool'",
            ),
        ] {
            let text = debug_text(&[found(name, current)]);
            assert!(
                text.starts_with("[Differs(") && text.contains(name),
                "{text}"
            );
        }
        let rejects = [
            found("x-max-length", "the value '5' of type 'long'"),
            found("x-overflow", "the value 'reject-publish' of type 'longstr'"),
        ];
        assert!(
            !debug_text(&rejects).contains("dropped"),
            "{}",
            debug_text(&rejects)
        );
    }
}
