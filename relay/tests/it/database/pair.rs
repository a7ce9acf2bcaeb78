//! Two relays of one outbox, each with a way to the database and a broker's user of its own, and the
//! broker's word for which of them published what.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use e2e::product::Process;
use e2e::proxy::Proxy;
use e2e::rig::{LATER, Rig};
use futures::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

use super::world::address;

/// A relay of a pair.
pub(crate) struct Twin {
    /// The broker's user it publishes as.
    pub(crate) user: String,
    pub(crate) proxy: Proxy,
    pub(crate) process: Process,
    admin: String,
}

impl Twin {
    /// Starts it.
    pub(crate) async fn start(rig: &Rig, name: &str) -> Self {
        let user = format!("{name}-{}", rig.vhost.name);
        let management = rig.rabbit.management().unwrap();
        management.create_user(&user, "pw", "").await.unwrap();
        management
            .set_permissions(&rig.vhost.name, &user, [".*", ".*", ".*"])
            .await
            .unwrap();
        let proxy = Proxy::start(address(rig.db)).unwrap();
        let admin = format!("127.0.0.1:{}", e2e::port::free().unwrap());
        let mut env: HashMap<String, String> = rig.env.clone();
        let amqp = rig.rabbit.user_url(&user, "pw", &rig.vhost.name);
        env.insert("AMQP_URL".into(), amqp);
        env.insert("ADMIN_ADDR".into(), admin.clone());
        env.insert("DATABASE_URL".into(), proxy.url(&rig.env["DATABASE_URL"]));
        let env: Vec<(&str, &str)> = env
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let relay = env!("CARGO_BIN_EXE_relay").as_ref();
        Self {
            user,
            proxy,
            process: Process::spawn(relay, &["run"], &env).unwrap(),
            admin,
        }
    }

    /// `active`, `standby`, `undecided`, or nothing when it does not answer.
    pub(crate) async fn role(&self) -> Option<String> {
        let url = format!("http://{}/readyz", self.admin);
        let text = reqwest::get(url).await.ok()?.text().await.ok()?;
        let body: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(body["role"].as_str()?.to_owned())
    }

    pub(crate) async fn wait_role(&self, role: &str) {
        e2e::wait::until(&format!("{} {role}", self.user), LATER, async || {
            self.role().await.as_deref() == Some(role)
        })
        .await;
    }
}

/// Waits until one works and the other stands by; returns the one that works first.
pub(crate) async fn settled(twins: &[Twin; 2]) -> (&Twin, &Twin) {
    let [one, two] = twins;
    e2e::wait::until("one active and one standby", LATER, async || {
        match (one.role().await?.as_str(), two.role().await?.as_str()) {
            ("active", "standby") => Some((one, two)),
            ("standby", "active") => Some((two, one)),
            _ => None,
        }
    })
    .await
}

/// A publish, as the broker saw it.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(crate) user: String,
    pub(crate) message_id: String,
}

/// Everything that was published in a virtual host, in order, with the user who did.
#[derive(Clone, Default)]
pub(crate) struct Trace(Arc<Mutex<Vec<Published>>>);

impl Trace {
    /// The broker copies every publish from now on.
    pub(crate) async fn start(rig: &Rig) -> Self {
        let vhost = format!("vhosts/{}", rig.vhost.name);
        let management = rig.rabbit.management().unwrap();
        management
            .put(&vhost, &json!({"tracing": true}))
            .await
            .unwrap();
        let channel = rig.amqp().await;
        let exclusive = QueueDeclareOptions {
            exclusive: true,
            ..QueueDeclareOptions::default()
        };
        channel
            .queue_declare("trace".into(), exclusive, FieldTable::default())
            .await
            .unwrap();
        channel
            .queue_bind(
                "trace".into(),
                "amq.rabbitmq.trace".into(),
                "publish.#".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
        let options = BasicConsumeOptions {
            no_ack: true,
            ..BasicConsumeOptions::default()
        };
        let mut consumer = channel
            .basic_consume("trace".into(), "".into(), options, FieldTable::default())
            .await
            .unwrap();
        let trace = Self::default();
        let kept = trace.clone();
        drop(svc_kit::tasks::unit(async move {
            let _channel = channel;
            while let Some(Ok(delivery)) = consumer.next().await {
                let headers = delivery.properties.headers().clone().unwrap_or_default();
                kept.0.lock().unwrap().push(published(&headers));
            }
        }));
        trace
    }

    pub(crate) fn all(&self) -> Vec<Published> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Waits until the broker has reported this message.
    pub(crate) async fn wait_for(&self, message_id: &str) {
        e2e::wait::until("the trace of a message", LATER, async || {
            self.all().iter().any(|p| p.message_id == message_id)
        })
        .await;
    }
}

fn published(headers: &FieldTable) -> Published {
    let text = |value: Option<&AMQPValue>| match value {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        Some(AMQPValue::ShortString(text)) => text.to_string(),
        _ => String::new(),
    };
    let message_id = match headers.inner().get("properties") {
        Some(AMQPValue::FieldTable(properties)) => text(properties.inner().get("message_id")),
        _ => String::new(),
    };
    Published {
        user: text(headers.inner().get("user")),
        message_id,
    }
}
