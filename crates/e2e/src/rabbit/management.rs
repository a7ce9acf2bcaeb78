//! A small client of RabbitMQ's management API.

use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::{Method, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// The management API of one broker. Names may hold any character; they are percent-encoded.
#[derive(Clone, Debug)]
pub struct Management {
    client: reqwest::Client,
    base: String,
    user: String,
    password: String,
}

/// A queue as the management API knows it. Counts are statistics, half a second old at most.
#[derive(Clone, Debug, Deserialize)]
pub struct QueueInfo {
    /// The queue's name.
    pub name: String,
    /// `classic`, `quorum` or `stream`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Messages waiting for a consumer.
    #[serde(rename = "messages_ready", default)]
    pub ready: u64,
    /// Messages delivered and not acknowledged.
    #[serde(rename = "messages_unacknowledged", default)]
    pub unacked: u64,
    /// Both together.
    #[serde(rename = "messages", default)]
    pub total: u64,
    /// Consumers attached.
    #[serde(default)]
    pub consumers: u64,
    /// The arguments it was declared with.
    #[serde(default)]
    pub arguments: Value,
    /// The policy in force.
    #[serde(default)]
    pub policy: Option<String>,
}

/// A client connection as the management API knows it.
#[derive(Clone, Debug, Deserialize)]
pub struct ConnectionInfo {
    /// The broker's name for it, by which it is closed.
    pub name: String,
    /// The `connection_name` the client gave itself.
    #[serde(rename = "user_provided_name", default)]
    pub client_name: Option<String>,
    /// `running`, `blocked`, ….
    #[serde(default)]
    pub state: Option<String>,
    /// The virtual host; absent while the connection is being set up.
    #[serde(default)]
    pub vhost: Option<String>,
}

impl Management {
    /// A client for the API at `url` (no path) as `user`.
    pub fn new(url: &str, user: &str, password: &str) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(30))
            // A throwaway broker is on the loopback, whatever proxy the machine uses.
            .no_proxy()
            .build()
            .context("could not build an HTTP client")?;
        Ok(Self {
            client,
            base: format!("{url}/api"),
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }

    /// `GET /api/{path}`; `path` must be percent-encoded.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.find(path)
            .await?
            .with_context(|| format!("GET {path}: not found"))
    }

    /// `PUT /api/{path}` with a JSON body.
    pub async fn put(&self, path: &str, body: &Value) -> anyhow::Result<()> {
        self.send(Method::PUT, path, Some(body)).await.map(drop)
    }

    /// `POST /api/{path}` with a JSON body; gives the answer, `null` when it is empty.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let text = self
            .send(Method::POST, path, Some(body))
            .await?
            .unwrap_or_default();
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("POST {path}: {text}"))
    }

    /// `DELETE /api/{path}`; whether it was there.
    pub async fn delete(&self, path: &str) -> anyhow::Result<bool> {
        Ok(self.send(Method::DELETE, path, None).await?.is_some())
    }

    /// A queue, or `None` when it does not exist.
    pub async fn queue(&self, vhost: &str, name: &str) -> anyhow::Result<Option<QueueInfo>> {
        self.find(&format!("queues/{}/{}", segment(vhost), segment(name)))
            .await
    }

    /// All queues of a virtual host.
    pub async fn queues(&self, vhost: &str) -> anyhow::Result<Vec<QueueInfo>> {
        self.list(&format!("queues/{}", segment(vhost))).await
    }

    /// Declares a durable queue with AMQP arguments (a JSON object).
    pub async fn declare_queue(
        &self,
        vhost: &str,
        name: &str,
        arguments: Value,
    ) -> anyhow::Result<()> {
        let path = format!("queues/{}/{}", segment(vhost), segment(name));
        self.put(
            &path,
            &json!({"durable": true, "auto_delete": false, "arguments": arguments}),
        )
        .await
    }

    /// Deletes a queue; whether it was there.
    pub async fn delete_queue(&self, vhost: &str, name: &str) -> anyhow::Result<bool> {
        self.delete(&format!("queues/{}/{}", segment(vhost), segment(name)))
            .await
    }

    /// Drops the messages that wait in a queue.
    pub async fn purge_queue(&self, vhost: &str, name: &str) -> anyhow::Result<bool> {
        self.delete(&format!(
            "queues/{}/{}/contents",
            segment(vhost),
            segment(name)
        ))
        .await
    }

    /// Declares a durable exchange of a kind such as `topic`, without arguments.
    pub async fn declare_exchange(
        &self,
        vhost: &str,
        name: &str,
        kind: &str,
    ) -> anyhow::Result<()> {
        let path = format!("exchanges/{}/{}", segment(vhost), segment(name));
        self.put(
            &path,
            &json!({"type": kind, "durable": true, "auto_delete": false}),
        )
        .await
    }

    /// Deletes an exchange; whether it was there.
    pub async fn delete_exchange(&self, vhost: &str, name: &str) -> anyhow::Result<bool> {
        self.delete(&format!("exchanges/{}/{}", segment(vhost), segment(name)))
            .await
    }

    /// Binds a queue to an exchange.
    pub async fn bind(
        &self,
        vhost: &str,
        exchange: &str,
        queue: &str,
        routing_key: &str,
    ) -> anyhow::Result<()> {
        let path = binding(vhost, exchange, queue);
        self.post(&path, &json!({"routing_key": routing_key}))
            .await
            .map(drop)
    }

    /// Removes a binding that has no arguments; whether it was there.
    pub async fn unbind(
        &self,
        vhost: &str,
        exchange: &str,
        queue: &str,
        routing_key: &str,
    ) -> anyhow::Result<bool> {
        // The API names a binding without arguments by its key, percent-encoded, and again when
        // it stands in a path.
        let key = if routing_key.is_empty() {
            "~".to_owned()
        } else {
            segment(routing_key)
        };
        self.delete(&format!(
            "{}/{}",
            binding(vhost, exchange, queue),
            segment(&key)
        ))
        .await
    }

    /// The bindings of a queue, the one to the default exchange included.
    pub async fn bindings(&self, vhost: &str, queue: &str) -> anyhow::Result<Vec<Value>> {
        self.list(&format!(
            "queues/{}/{}/bindings",
            segment(vhost),
            segment(queue)
        ))
        .await
    }

    /// Publishes through the API; whether the message reached a queue. `properties` as in AMQP,
    /// with underscores (`message_id`, `headers`, `delivery_mode`).
    pub async fn publish(
        &self,
        vhost: &str,
        (exchange, routing_key): (&str, &str),
        properties: Value,
        payload: &str,
    ) -> anyhow::Result<bool> {
        let path = format!("exchanges/{}/{}/publish", segment(vhost), segment(exchange));
        let body = json!({
            "routing_key": routing_key,
            "properties": properties,
            "payload": payload,
            "payload_encoding": "string",
        });
        Ok(self.post(&path, &body).await?["routed"] == true)
    }

    /// Sets a policy for queues or exchanges (`apply_to`: `queues`, `exchanges`, `all`).
    pub async fn set_policy(
        &self,
        vhost: &str,
        name: &str,
        (apply_to, pattern): (&str, &str),
        definition: Value,
    ) -> anyhow::Result<()> {
        let path = format!("policies/{}/{}", segment(vhost), segment(name));
        let body = json!({"pattern": pattern, "apply-to": apply_to, "definition": definition});
        self.put(&path, &body).await
    }

    /// Removes a policy; whether it was there.
    pub async fn delete_policy(&self, vhost: &str, name: &str) -> anyhow::Result<bool> {
        self.delete(&format!("policies/{}/{}", segment(vhost), segment(name)))
            .await
    }

    /// Creates a user, or changes the password of one. `tags` is empty or e.g. `monitoring`.
    pub async fn create_user(&self, name: &str, password: &str, tags: &str) -> anyhow::Result<()> {
        let path = format!("users/{}", segment(name));
        self.put(&path, &json!({"password": password, "tags": tags}))
            .await
    }

    /// Gives a user the rights to configure, write and read what the three patterns match.
    pub async fn set_permissions(
        &self,
        vhost: &str,
        user: &str,
        [configure, write, read]: [&str; 3],
    ) -> anyhow::Result<()> {
        let path = format!("permissions/{}/{}", segment(vhost), segment(user));
        self.put(
            &path,
            &json!({"configure": configure, "write": write, "read": read}),
        )
        .await
    }

    /// The client connections to a virtual host.
    pub async fn connections(&self, vhost: &str) -> anyhow::Result<Vec<ConnectionInfo>> {
        let mut all: Vec<ConnectionInfo> = self.list("connections").await?;
        all.retain(|connection| connection.vhost.as_deref() == Some(vhost));
        Ok(all)
    }

    /// Closes one connection as an operator would; whether it was there.
    pub async fn close_connection(&self, name: &str) -> anyhow::Result<bool> {
        self.delete(&format!("connections/{}", segment(name))).await
    }

    /// Closes all connections to a virtual host that the statistics know; how many.
    pub async fn close_connections(&self, vhost: &str) -> anyhow::Result<usize> {
        let mut closed = 0;
        for connection in self.connections(vhost).await? {
            closed += usize::from(self.close_connection(&connection.name).await?);
        }
        Ok(closed)
    }

    async fn list<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Vec<T>> {
        self.find(path)
            .await?
            .with_context(|| format!("GET {path}: not found"))
    }

    async fn find<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Option<T>> {
        let Some(text) = self.send(Method::GET, path, None).await? else {
            return Ok(None);
        };
        serde_json::from_str(&text)
            .map(Some)
            .with_context(|| format!("GET {path}: {text}"))
    }

    /// The body of a successful answer; `None` for 404.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Option<String>> {
        let mut request = self
            .client
            .request(method.clone(), format!("{}/{path}", self.base))
            .basic_auth(&self.user, Some(&self.password));
        if let Some(body) = body {
            request = request.json(body);
        }
        let what = || format!("{method} {path}");
        let response = request.send().await.with_context(what)?;
        let status = response.status();
        let text = response.text().await.with_context(what)?;
        if status == StatusCode::NOT_FOUND && method != Method::PUT {
            return Ok(None);
        }
        if !status.is_success() {
            bail!("{method} {path}: {status}: {text}");
        }
        Ok(Some(text))
    }
}

fn binding(vhost: &str, exchange: &str, queue: &str) -> String {
    format!(
        "bindings/{}/e/{}/q/{}",
        segment(vhost),
        segment(exchange),
        segment(queue)
    )
}

/// Percent-encodes one segment of a path.
pub(super) fn segment(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
