//! Customers: so many connections, each of which sends its next order when the last is answered.
//!
//! An HTTP client of fifty lines: it shares the cores with what it measures, so it must be cheap.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    part::{Part, print_result},
    process,
    statistics::percentile,
};

const BODY: &str = r#"{"customer_id":"c-17","amount_minor":1999,"currency":"EUR","description":"two of the blue ones"}"#;

/// Of the hidden command.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    addr: SocketAddr,
    #[arg(long)]
    clients: usize,
    /// Not counted, but placed
    #[arg(long, default_value_t = 0.0)]
    warm_up: f64,
    /// Orders are sent for so long behind the warm-up …
    #[arg(long, default_value_t = 3600.0)]
    seconds: f64,
    /// … or until so many were sent
    #[arg(long, default_value_t = u64::MAX)]
    orders: u64,
    /// Each with an Idempotency-Key of its own
    #[arg(long)]
    keys: bool,
}

/// What they have met.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Took {
    /// Orders answered 201, those of the warm-up included.
    pub(crate) placed: u64,
    /// Orders answered 201 a second, behind the warm-up.
    pub(crate) rate: f64,
    /// Milliseconds from sending to the answer.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Of the whole process.
    pub(crate) cpu_seconds: f64,
}

/// Starts customers of the service at `addr`.
pub(crate) fn start(addr: SocketAddr, clients: u64, more: &[&str]) -> anyhow::Result<Part> {
    let (addr, clients) = (addr.to_string(), clients.to_string());
    let args = ["order-load", "--addr", &addr, "--clients", &clients];
    Part::start(&[&args, more].concat())
}

/// The hidden command itself.
pub(crate) async fn run(args: &Args) -> anyhow::Result<()> {
    let begun = Instant::now();
    let counted_from = begun + Duration::from_secs_f64(args.warm_up);
    let end = counted_from + Duration::from_secs_f64(args.seconds);
    let left = Arc::new(AtomicU64::new(args.orders));
    let mut customers = JoinSet::new();
    for number in 0..args.clients {
        let stream = TcpStream::connect(args.addr).await?;
        stream.set_nodelay(true)?;
        let key = args
            .keys
            .then(|| format!("{}-{number}", std::process::id()));
        let customer = Customer {
            stream,
            key,
            answer: Vec::with_capacity(1024),
        };
        customers.spawn(customer.shop(end, Arc::clone(&left)));
    }
    let (mut placed, mut took) = (0, Vec::new());
    let mut last = counted_from;
    while let Some(orders) = customers.join_next().await {
        for (at, ms) in orders?? {
            placed += 1;
            if at >= counted_from {
                took.push(ms);
                last = last.max(at);
            }
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    let rate = took.len() as f64 / (last - counted_from).as_secs_f64();
    print_result(&Took {
        placed,
        rate,
        p50: percentile(&took, 50),
        p99: percentile(&took, 99),
        cpu_seconds: process::cpu_seconds(std::process::id())?,
    })
}

struct Customer {
    stream: TcpStream,
    key: Option<String>,
    answer: Vec<u8>,
}

impl Customer {
    /// When each order was answered, and the milliseconds it took.
    async fn shop(
        mut self,
        end: Instant,
        left: Arc<AtomicU64>,
    ) -> anyhow::Result<Vec<(Instant, f64)>> {
        let mut orders = Vec::new();
        let take = |left: u64| left.checked_sub(1);
        loop {
            let sent = Instant::now();
            let more = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
            if sent >= end || more.is_err() {
                return Ok(orders);
            }
            self.order(orders.len()).await?;
            let answered = Instant::now();
            orders.push((answered, (answered - sent).as_secs_f64() * 1e3));
        }
    }

    async fn order(&mut self, number: usize) -> anyhow::Result<()> {
        let key = self.key.as_ref().map_or_else(String::new, |key| {
            format!("idempotency-key: {key}-{number}\r\n")
        });
        let request = format!(
            "POST /orders HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n{key}\
             content-length: {}\r\n\r\n{BODY}",
            BODY.len()
        );
        self.stream.write_all(request.as_bytes()).await?;
        self.answer.clear();
        let whole = loop {
            let read = self.stream.read_buf(&mut self.answer).await?;
            ensure!(read > 0, "the service has closed a connection");
            if let Some(length) = answer_length(&self.answer)? {
                break length;
            }
        };
        while self.answer.len() < whole {
            let read = self.stream.read_buf(&mut self.answer).await?;
            ensure!(read > 0, "the service has closed a connection");
        }
        ensure!(
            self.answer.starts_with(b"HTTP/1.1 201 "),
            "{}",
            String::from_utf8_lossy(&self.answer)
        );
        Ok(())
    }
}

/// Bytes of an answer, once its head is there.
fn answer_length(answer: &[u8]) -> anyhow::Result<Option<usize>> {
    let Some(head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&answer[..head]).context("a head that is no text")?;
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .context("an answer without a length")?;
    Ok(Some(head + 4 + length.trim().parse::<usize>()?))
}
