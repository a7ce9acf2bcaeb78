//! What a running relay says of itself, on its admin listener.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use axum::body::{Body, to_bytes};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

const ASK_TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_MAX: usize = 1 << 20;
const PREFIX: &str = "outbox_relay_";

/// What the relay says.
#[derive(Debug, Serialize)]
pub struct Live {
    /// Its admin listener.
    pub address: SocketAddr,
    /// Active, standby, or undecided.
    pub role: String,
    /// Whether orders can flow through it, or it stands by.
    pub ready: bool,
    /// Each condition of readiness and why.
    pub conditions: BTreeMap<String, Condition>,
    /// The state of the machine.
    pub phase: String,
    /// Age of the oldest commit that is not confirmed.
    pub lag_seconds: f64,
    /// Rows read and not yet marked sent.
    pub in_flight: f64,
    /// Rows waiting by closed or paused route.
    pub waiting: Vec<Waiting>,
}

/// One condition of readiness.
#[derive(Debug, Deserialize, Serialize)]
pub struct Condition {
    /// It holds.
    pub ok: bool,
    /// Why, or why not.
    pub detail: String,
}

/// Rows that wait for a route.
#[derive(Debug, PartialEq, Serialize)]
pub struct Waiting {
    /// AMQP exchange.
    pub exchange: String,
    /// AMQP routing key.
    pub routing_key: String,
    /// How many.
    pub rows: f64,
}

#[derive(Deserialize)]
struct Readiness {
    ready: bool,
    role: Option<String>,
    conditions: BTreeMap<String, Condition>,
}

/// Queries it.
///
/// # Errors
/// Nobody answers there, or somebody who is no relay.
pub async fn query(address: SocketAddr) -> anyhow::Result<Live> {
    let asking = async {
        let readiness = get(address, "/readyz").await?;
        let metrics = get(address, "/metrics").await?;
        live(address, &readiness, &metrics)
    };
    let answer = tokio::time::timeout(ASK_TIMEOUT, asking).await;
    answer.with_context(|| format!("no answer within {ASK_TIMEOUT:?}"))?
}

async fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the answer, or with this short-lived process.
    drop(svc_kit::tasks::unit(connection));
    let request = Request::get(path).header("host", address.to_string());
    let answer = sender.send_request(request.body(Body::empty())?).await?;
    let body = to_bytes(Body::new(answer.into_body()), ANSWER_MAX).await?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}

fn live(address: SocketAddr, readiness: &str, metrics: &str) -> anyhow::Result<Live> {
    let Readiness {
        ready,
        role,
        conditions,
    } = serde_json::from_str(readiness).context("its /readyz is not a relay's")?;
    let samples: Vec<Sample> = metrics.lines().filter_map(sample).collect();
    ensure!(
        samples.iter().any(|sample| sample.name == "phase"),
        "its /metrics are not a relay's"
    );
    let value = |name: &str| {
        let found = samples.iter().find(|sample| sample.name == name);
        found.map_or(0.0, |sample| sample.value)
    };
    let phase = samples
        .iter()
        .find(|sample| sample.name == "phase" && sample.value == 1.0)
        .map_or("unknown", |sample| sample.label("phase"));
    let waiting = samples
        .iter()
        .filter(|sample| sample.name == "waiting_rows")
        .map(|sample| Waiting {
            exchange: sample.label("exchange").to_owned(),
            routing_key: sample.label("routing_key").to_owned(),
            rows: sample.value,
        });
    Ok(Live {
        address,
        role: role.unwrap_or_else(|| "unknown".into()),
        ready,
        conditions,
        phase: phase.to_owned(),
        lag_seconds: value("binlog_lag_seconds"),
        in_flight: value("in_flight"),
        waiting: waiting.collect(),
    })
}

/// One line of Prometheus' text format, of a metric of the relay's.
#[derive(Debug)]
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: f64,
}

impl Sample<'_> {
    fn label(&self, name: &str) -> &str {
        let found = self.labels.iter().find(|(label, _)| *label == name);
        found.map_or("", |(_, value)| value)
    }
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let line = line.strip_prefix(PREFIX)?;
    let (name, rest) = line.split_at(line.find(['{', ' '])?);
    let (labels, value) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    Some(Sample {
        name,
        labels,
        value: value.trim().parse().ok()?,
    })
}

type Labels<'a> = Vec<(&'a str, String)>;

/// `a="x",b="y"} rest`, where a value may hold `\"`, `\\` and `\n`.
fn labels(mut text: &str) -> Option<(Labels<'_>, &str)> {
    let mut labels = Vec::new();
    loop {
        text = text.trim_start_matches(',');
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = rest.char_indices();
        loop {
            match chars.next()? {
                (end, '"') => {
                    text = &rest[end + 1..];
                    break;
                }
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        }
        labels.push((name, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relays_answers_are_understood() {
        let readiness = r#"{"ready":false,"role":"active","conditions":
            {"broker":{"ok":false,"detail":"refused"}}}"#;
        let metrics = "# HELP outbox_relay_phase x\n\
            outbox_relay_phase{phase=\"standby\"} 0\noutbox_relay_phase{phase=\"tailing\"} 1\n\
            outbox_relay_binlog_lag_seconds 1.5\n\
            outbox_relay_waiting_rows{exchange=\"a,\\\"b}\",routing_key=\"c\\\\d\\n\"} 12\n\
            process_open_fds 3\n";
        let live = live(([127, 0, 0, 1], 1).into(), readiness, metrics).unwrap();
        assert_eq!((live.phase.as_str(), live.lag_seconds), ("tailing", 1.5));
        let waiting = Waiting {
            exchange: "a,\"b}".into(),
            routing_key: "c\\d\n".into(),
            rows: 12.0,
        };
        assert_eq!(live.waiting, [waiting]);
        assert!(!live.conditions["broker"].ok);
    }

    #[test]
    fn somebody_else_is_no_relay() {
        let address = ([127, 0, 0, 1], 1).into();
        let err = live(address, "hello", "").unwrap_err();
        assert!(err.to_string().contains("/readyz is not a relay's"));
        let other = r#"{"ready":true,"conditions":{}}"#;
        let err = live(address, other, "process_open_fds 3\n").unwrap_err();
        assert!(err.to_string().contains("/metrics are not a relay's"));
    }
}
