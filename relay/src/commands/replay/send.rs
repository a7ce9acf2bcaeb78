//! The sending: batch after batch, until the last row or the first failure.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use anyhow::Context as _;
use lapin::Channel;
use outbox::row::Row;
use svc_kit::amqp::{Amqp, BrokerFault, classify};
use svc_kit::signals::Shutdown;
use tokio::time::Instant;
use uuid::Uuid;

use super::read::{Head, Reader};
use super::report::{Report, Stopped};
use super::{Replay, record};
use crate::commands::progress::Progress;
use crate::pause::Pauses;
use crate::publish::batch::publish;
use crate::publish::confirms::{Outcome, Verdict};
use crate::publish::connection::{self, Link};
use crate::publish::publisher_task;

/// One id for a run, in every message.
const REPLAY_ID: &str = "x-replay-id";
/// Messages in a batch, at most; a slower rate makes smaller ones.
const BATCH_MAX: u32 = 256;
/// Batches a second that a rate is spread over.
const BATCHES_A_SECOND: u32 = 10;
/// Payload bytes in a batch; a single larger message goes alone.
const BATCH_BYTES_MAX: u64 = 4 << 20;
/// Between two looks at what holds a replay up.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Why a replay ends early, and up to which id everything was sent.
struct Halt {
    why: String,
    after: u64,
}

/// Sends everything; what stops it is in the report.
///
/// # Errors
/// Nothing was sent: no way to the broker, or to `operator_actions`.
pub(super) async fn all(
    replay: &Replay,
    amqp: &Amqp,
    reader: Reader,
    report: &mut Report,
    stop: &Shutdown,
) -> anyhow::Result<()> {
    let (link, channel) = open(replay, amqp).await?;
    report.replay_id = Some(Uuid::now_v7().to_string());
    record::begin(replay, report).await?;
    let mut sending = Sending {
        replay,
        reader,
        link,
        channel,
        stop,
        waiting: VecDeque::new(),
        read_upto: replay.filter.after,
        read_all: false,
        done_upto: replay.filter.after,
        next_batch: Instant::now(),
        progress: Progress::new("sending again", report.matched),
    };
    let halt = match sending.run(report).await {
        Ok(halt) => halt,
        Err(err) => Some(sending.halt(format!("{err:#}"))),
    };
    report.stopped = halt.map(|halt| Stopped {
        why: halt.why,
        after: halt.after,
        go_on: replay.go_on(halt.after),
    });
    publisher_task::close(&sending.channel, "replayed").await;
    drop(sending);
    // The messages are out whether this can be written down or not.
    if let Err(err) = record::end(replay, report).await {
        tracing::error!(
            error = format!("{err:#}"),
            "the end of the replay is not on record"
        );
    }
    Ok(())
}

async fn open(replay: &Replay, amqp: &Amqp) -> anyhow::Result<(Link, Channel)> {
    let link = match connection::connect(amqp, &format!("{} replay", replay.name)).await {
        Ok(link) => link,
        Err(err) => match classify(&err) {
            BrokerFault::Misconfigured(wrong) => return Err(wrong.into()),
            BrokerFault::Away(why) => anyhow::bail!("no way to the broker {amqp}: {why}"),
        },
    };
    match publisher_task::open(link.connection.create_channel(), replay.confirm_timeout).await {
        Ok(channel) => Ok((link, channel)),
        Err(outcome) => anyhow::bail!("no channel at the broker: {}", words(&outcome)),
    }
}

struct Sending<'a> {
    replay: &'a Replay,
    reader: Reader,
    link: Link,
    channel: Channel,
    stop: &'a Shutdown,
    /// Rows that are read and meant, by id.
    waiting: VecDeque<Head>,
    /// The highest id that was looked at.
    read_upto: u64,
    read_all: bool,
    /// Everything meant up to this id was sent again.
    done_upto: u64,
    next_batch: Instant,
    progress: Progress,
}

impl Sending<'_> {
    async fn run(&mut self, report: &mut Report) -> anyhow::Result<Option<Halt>> {
        loop {
            if self.stop.drain.is_cancelled() {
                return Ok(Some(self.halt("by a signal".into())));
            }
            let heads = self.next().await?;
            let (Some(first), Some(last)) = (heads.first(), heads.last()) else {
                return Ok(None);
            };
            let (first, last) = (first.id, last.id);
            if !self.may_go(&heads).await? {
                return Ok(Some(self.halt("by a signal".into())));
            }
            if let Some(old) = heads.iter().map(|head| self.reader.age(head)).max()
                && !self.replay.rule.permits(old)
            {
                return Ok(Some(self.halt(self.replay.rule.refusal(1, old))));
            }
            let ids: Vec<u64> = heads.iter().map(|head| head.id).collect();
            let rows = self.reader.rows(&ids).await?;
            report.gone += (ids.len() - rows.len()) as u64;
            let id = report.replay_id.as_deref().unwrap_or_default();
            let mut rows: Vec<Row> = rows.into_iter().map(|row| with_header(row, id)).collect();
            if let Some(halt) = self.publish(&mut rows, (first, last), report).await? {
                return Ok(Some(halt));
            }
            self.done_upto = last;
            self.progress.at(report.sent + report.gone);
        }
    }

    /// The rows of the next batch: at most one of a key, so that a failure leaves no gap in its order.
    async fn next(&mut self) -> anyhow::Result<Vec<Head>> {
        while self.waiting.is_empty() && !self.read_all {
            let page = self.reader.page(self.read_upto).await?;
            self.read_upto = page.upto;
            self.read_all = page.last;
            let filter = &self.replay.filter;
            self.waiting
                .extend(page.heads.into_iter().filter(|head| filter.takes(head)));
        }
        let most = (self.replay.rate / BATCHES_A_SECOND).clamp(1, BATCH_MAX) as usize;
        let mut keys = HashSet::new();
        let count = self
            .waiting
            .iter()
            .take(most)
            .take_while(|head| keys.insert(head.key))
            .count();
        let ids: Vec<u64> = self
            .waiting
            .iter()
            .take(count)
            .map(|head| head.id)
            .collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let sizes = self.reader.sizes(&ids).await?;
        let mut bytes = 0;
        let fit = ids.iter().take_while(|id| {
            bytes += sizes.get(id).copied().unwrap_or(0);
            bytes <= BATCH_BYTES_MAX
        });
        let count = fit.count().max(1);
        Ok(self.waiting.drain(..count).collect())
    }

    /// Waits for the rate, for whoever has paused the relay or one of these routes, and for a broker
    /// that blocks. False when a signal came first.
    async fn may_go(&mut self, heads: &[Head]) -> anyhow::Result<bool> {
        let mut reported = None;
        loop {
            let blocked = self.link.connection.status().blocked();
            let held = match held(self.reader.pauses().await?, heads) {
                None if blocked => Some("the broker blocks publishers".to_owned()),
                held => held,
            };
            let Some(why) = held else { break };
            if reported.as_ref() != Some(&why) {
                tracing::warn!(%why, "the replay waits");
                reported = Some(why);
            }
            if !self.rest(Instant::now() + LOOK_EVERY).await {
                return Ok(false);
            }
        }
        let due = self.next_batch.max(Instant::now());
        let pace = Duration::from_secs(1) / self.replay.rate;
        self.next_batch = due + pace * u32::try_from(heads.len()).unwrap_or(BATCH_MAX);
        Ok(self.rest(due).await)
    }

    async fn rest(&self, until: Instant) -> bool {
        let resting = tokio::time::sleep_until(until);
        self.stop.drain.run_until_cancelled(resting).await.is_some()
    }

    async fn publish(
        &mut self,
        batch: &mut [Row],
        (first, last): (u64, u64),
        report: &mut Report,
    ) -> anyhow::Result<Option<Halt>> {
        if batch.is_empty() {
            return Ok(None);
        }
        let frame_max = self.link.connection.configuration().frame_max();
        let frame_max = usize::try_from(frame_max).context("frame_max")?;
        let timeout = self.replay.confirm_timeout;
        let publishing = publish(&self.channel, batch, frame_max, timeout, || true);
        let rows = match first == last {
            true => format!("row {first}"),
            false => format!("one of the rows {first} to {last}"),
        };
        let Some(outcome) = self.stop.now.run_until_cancelled(publishing).await else {
            let why =
                format!("by a second signal; unknown what became of the rows {first} to {last}");
            return Ok(Some(self.halt(why)));
        };
        let Outcome::Settled(verdicts) = outcome else {
            return Ok(Some(self.halt(format!("at {rows}: {}", words(&outcome)))));
        };
        let mut failed = None;
        for (row, verdict) in batch.iter().zip(&verdicts) {
            match failure(verdict) {
                None => report.sent += 1,
                Some(text) => failed = failed.or(Some((row, text))),
            }
        }
        Ok(failed.map(|(row, text)| Halt {
            why: format!("at row {} (message {}): {text}", row.id, row.message_id),
            // Rows of the batch that were sent and are behind it go twice.
            after: row.id - 1,
        }))
    }

    fn halt(&self, why: String) -> Halt {
        Halt {
            why,
            after: self.done_upto,
        }
    }
}

/// Who holds one of these rows up.
fn held(pauses: &Pauses, heads: &[Head]) -> Option<String> {
    if let Some(pause) = &pauses.whole {
        return Some(format!("the relay is {pause}"));
    }
    heads.iter().find_map(|head| {
        let pause = pauses.routes.get(&head.route)?;
        Some(format!("route {} is {pause}", head.route))
    })
}

/// Headers that are not an object are left as they are: the message is refused for them, with the
/// text that the relay gives.
fn with_header(mut row: Row, replay_id: &str) -> Row {
    use serde_json::{Map, Value};
    let headers = match &row.headers {
        None => Some(Map::new()),
        Some(text) => serde_json::from_slice::<Map<String, Value>>(text).ok(),
    };
    if let Some(mut headers) = headers {
        headers.insert(REPLAY_ID.to_owned(), replay_id.into());
        row.headers = Some(Value::Object(headers).to_string().into_bytes());
    }
    row
}

fn failure(verdict: &Verdict) -> Option<String> {
    match verdict {
        Verdict::Confirmed(_) => None,
        Verdict::Returned(text) => Some(format!("returned: {text}")),
        Verdict::Nacked => Some("refused by the queue (basic.nack)".into()),
        Verdict::Invalid(problem) => Some(format!("it can't be a message: {problem}")),
    }
}

/// What became of a batch as a whole.
fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Closed { text, .. } => format!("the broker closed the channel: {text}"),
        Outcome::TimedOut { .. } => "the broker gave no confirm in time".into(),
        Outcome::Lost(text) => format!("the broker is gone: {text}"),
        // Neither can be: verdicts are looked at one by one, and a replay has no lease.
        Outcome::Settled(_) | Outcome::LeaseOver => "it was not sent".into(),
    }
}
