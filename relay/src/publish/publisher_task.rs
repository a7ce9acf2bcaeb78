//! A lane: one AMQP channel, one batch at a time.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use lapin::Channel;
use lapin::options::ConfirmSelectOptions;
use svc_kit::amqp::Channels;
use tokio::sync::mpsc;

use crate::leadership::lock::Lease;
use crate::publish::batch::{closed, publish};
use crate::publish::spans::Publishing;
use crate::queue::Item;
use crate::settle::Verdict;

const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What became of a batch.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Every message has its verdict, in the batch's order.
    Settled(Vec<Verdict>),
    /// The broker closed the channel, or the connection, because of something in the batch.
    Closed {
        /// AMQP reply code.
        code: u16,
        /// Code and text.
        text: String,
    },
    /// Some confirms did not come within the time-out; the channel is closed.
    TimedOut {
        /// Which were answered, in the batch's order. Their answers are not to be trusted either.
        answered: Vec<bool>,
    },
    /// The connection is gone: every outcome is unknown and nobody is to blame.
    Lost(String),
    /// Nothing was published: another relay may hold the lock.
    LeaseOver,
}

/// A batch that has come back.
#[derive(Debug)]
pub struct Done {
    /// Which lane had it.
    pub lane: usize,
    /// Its rows, in publish order.
    pub items: Vec<Item>,
    /// What became of them.
    pub outcome: Outcome,
}

/// What every lane of a session shares.
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

/// Runs a lane until `batches` is closed. A channel that died is replaced for the next batch.
///
/// # Errors
/// When the session no longer listens.
pub async fn run(
    lane: usize,
    broker: Broker,
    mut batches: mpsc::Receiver<Vec<Item>>,
    done: mpsc::Sender<Done>,
) -> anyhow::Result<()> {
    let mut channel: Option<Channel> = None;
    while let Some(items) = batches.recv().await {
        // A row that makes us panic is like one that makes the broker close: it goes alone next time.
        let spans = Publishing::begin(&items);
        let attempt = attempt(&broker, &mut channel, &items);
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
            // A late confirm must find nobody: its row is somebody else's business from now on.
            close(&dead, "batch given up").await;
        }
        if done
            .send(Done {
                lane,
                items,
                outcome,
            })
            .await
            .is_err()
        {
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

async fn attempt(broker: &Broker, channel: &mut Option<Channel>, items: &[Item]) -> Outcome {
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
            publish(channel, items, frame_max, timeout, may_go).await
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
