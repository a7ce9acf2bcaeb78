//! A publisher: one AMQP channel, one batch at a time.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use lapin::Channel;
use lapin::options::ConfirmSelectOptions;
use outbox::row::Row;
use svc_kit::amqp::Channels;
use tokio::sync::mpsc;

use super::batch::{closed, publish};
use super::confirms::Outcome;
use super::spans::Publishing;
use crate::leadership::lock::Lease;

const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What every publisher of a session shares.
#[derive(Clone)]
pub struct Broker {
    /// Of the publishing connection.
    pub channels: Arc<Channels>,
    /// What the broker takes in a frame, in bytes.
    pub frame_max: usize,
    /// Checked before the first byte of each batch, and within a large one.
    pub lease: Lease,
    /// `RELAY_CONFIRM_TIMEOUT`.
    pub confirm_timeout: Duration,
}

/// Runs a publisher until `batches` is closed, and sends its number with each outcome. A channel that died is replaced for the next batch.
///
/// # Errors
/// When the session no longer listens.
pub async fn run(
    publisher: usize,
    broker: Broker,
    mut batches: mpsc::Receiver<Vec<Row>>,
    outcomes: mpsc::Sender<(usize, Outcome)>,
) -> anyhow::Result<()> {
    let mut channel: Option<Channel> = None;
    while let Some(mut rows) = batches.recv().await {
        // A row that makes us panic is like one that makes the broker close: it goes alone next time.
        let spans = Publishing::begin(&rows);
        let attempt = attempt(&broker, &mut channel, &mut rows);
        let outcome = AssertUnwindSafe(attempt)
            .catch_unwind()
            .await
            .unwrap_or_else(|_| Outcome::Closed {
                code: 0,
                text: "the relay panicked over it".into(),
            });
        spans.end(&outcome);
        if !matches!(outcome, Outcome::Settled(_) | Outcome::LeaseOver)
            && let Some(dead) = channel.take()
        {
            // A late confirm must find nobody: its row is free to go again from now on.
            close(&dead, "batch given up").await;
        }
        drop(rows);
        if outcomes.send((publisher, outcome)).await.is_err() {
            break;
        }
    }
    if let Some(channel) = channel {
        close(&channel, "drained").await;
    }
    Ok(())
}

/// A broker that does not answer is not waited for.
pub(crate) async fn close(channel: &Channel, why: &str) {
    let closing = channel.close(200, why.into());
    drop(tokio::time::timeout(CLOSE_TIMEOUT, closing).await);
}

async fn attempt(broker: &Broker, channel: &mut Option<Channel>, rows: &mut [Row]) -> Outcome {
    if channel.is_none() {
        match open(broker.channels.open(), broker.confirm_timeout).await {
            Ok(opened) => *channel = Some(opened),
            Err(outcome) => return outcome,
        }
    }
    let may_go = || broker.lease.is_valid();
    match channel {
        Some(channel) => {
            let (frame_max, timeout) = (broker.frame_max, broker.confirm_timeout);
            publish(channel, rows, frame_max, timeout, may_go).await
        }
        None => Outcome::Lost("no channel".into()),
    }
}

/// A channel whose publishes are confirmed.
pub(crate) async fn open(
    channel: impl Future<Output = lapin::Result<Channel>>,
    timeout: Duration,
) -> Result<Channel, Outcome> {
    let opening = async {
        let channel = channel.await?;
        channel
            .confirm_select(ConfirmSelectOptions { nowait: false })
            .await?;
        Ok(channel)
    };
    match tokio::time::timeout(timeout, opening).await {
        Ok(Ok(channel)) => Ok(channel),
        // Nothing of the batch was sent, so nothing in it is to blame.
        Ok(Err(err)) => Err(Outcome::Lost(match closed(&err) {
            Outcome::Closed { text, .. } | Outcome::Lost(text) => text,
            _ => err.to_string(),
        })),
        Err(_) => Err(Outcome::Lost("no answer to channel.open".into())),
    }
}
