//! Messages as the relay publishes them, and some it never would.

use std::sync::Arc;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Connection};
use outbox::message::{MessageId, Received};
use pay_svc::topology;
use serde_json::{Map, Value};
use svc_kit::amqp::{Amqp, Channels};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

pub(crate) const ORDER_PLACED: &str = "order.placed.v1";

/// The payload of an order placed now.
pub(crate) fn order_payload(order_id: Uuid) -> String {
    let placed_at = OffsetDateTime::now_utc().format(&Rfc3339).unwrap();
    format!(
        r#"{{"order_id":"{order_id}","customer_id":"c-17","amount_minor":1999,"currency":"EUR","placed_at":"{placed_at}"}}"#
    )
}

/// A message as the inbox takes it, for tests without a broker.
pub(crate) fn received(message_id: &str, payload: &str) -> Received {
    Received {
        message_id: MessageId::parse(message_id.as_bytes()).unwrap(),
        event_type: Some(ORDER_PLACED.to_owned()),
        aggregate_id: None,
        exchange: topology::EXCHANGE.to_owned(),
        routing_key: "order.pay".to_owned(),
        headers: Value::Object(Map::new()),
        payload: payload.as_bytes().to_vec(),
        problem: None,
    }
}

/// A message that is to be published.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) message_id: Option<String>,
    pub(crate) event_type: Option<String>,
    pub(crate) payload: Vec<u8>,
    /// The header `deep`: so many lists within lists.
    pub(crate) depth: usize,
}

impl Outgoing {
    pub(crate) fn order(order_id: Uuid) -> Self {
        Self::new(&Uuid::now_v7().to_string(), &order_payload(order_id))
    }

    pub(crate) fn new(message_id: &str, payload: &str) -> Self {
        Self {
            message_id: Some(message_id.to_owned()),
            event_type: Some(ORDER_PLACED.to_owned()),
            payload: payload.as_bytes().to_vec(),
            depth: 0,
        }
    }
}

/// Publishes as the relay does: persistent, mandatory, confirmed.
pub(crate) struct Publisher {
    channel: Channel,
    // Dropped, it would take the channel with it.
    connection: Arc<Connection>,
}

impl Publisher {
    /// Connects, and makes sure that the queue is there.
    pub(crate) async fn connect(amqp_url: &str) -> Self {
        let amqp = Amqp::parse(amqp_url).unwrap();
        let connection = Arc::new(amqp.connect("test").await.unwrap());
        let channels = Channels::new(amqp, "test".to_owned(), Arc::clone(&connection), |_| {});
        topology::ensure(&channels, None).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel
            .confirm_select(ConfirmSelectOptions { nowait: false })
            .await
            .unwrap();
        Self {
            channel,
            connection,
        }
    }

    pub(crate) async fn publish(&self, message: &Outgoing) {
        let mut headers = FieldTable::default();
        let occurred_at = LongString::from("2026-01-02T03:04:05.000006Z");
        headers.insert(
            ShortString::from("occurred-at"),
            AMQPValue::LongString(occurred_at),
        );
        if message.depth > 0 {
            let deep = (0..message.depth).fold(AMQPValue::Void, |inner, _| {
                AMQPValue::FieldArray(FieldArray::from(vec![inner]))
            });
            headers.insert("deep".into(), deep);
        }
        let mut properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/json".into())
            .with_headers(headers);
        if let Some(id) = &message.message_id {
            properties = properties.with_message_id(ShortString::try_new(id.as_str()).unwrap());
        }
        if let Some(kind) = &message.event_type {
            properties = properties.with_type(ShortString::try_new(kind.as_str()).unwrap());
        }
        let options = BasicPublishOptions {
            mandatory: true,
            immediate: false,
        };
        let (exchange, key) = (topology::EXCHANGE.into(), "order.pay".into());
        let confirm = self
            .channel
            .basic_publish(exchange, key, options, &message.payload, properties)
            .await
            .unwrap()
            .await
            .unwrap();
        assert!(confirm.is_ack(), "{confirm:?}");
        assert!(confirm.take_message().is_none(), "the message was returned");
    }

    pub(crate) async fn close(self) {
        self.connection.close(200, "done".into()).await.unwrap();
    }
}
