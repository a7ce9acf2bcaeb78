//! The live view: one refreshing screen at a terminal, plain lines anywhere else.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    figures::{Figures, Snapshot},
    histogram::Histogram,
};

const REFRESH: Duration = Duration::from_millis(250);
/// Between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// Where the numbers and events are shown.
pub(crate) struct View {
    started: Instant,
    screen: Option<Screen>,
}

struct Screen {
    area: MultiProgress,
    placed: ProgressBar,
    sent: ProgressBar,
    paid: ProgressBar,
    pending: ProgressBar,
    latency: ProgressBar,
}

impl View {
    pub(crate) fn new(orders: u32) -> Self {
        let screen = std::io::stdout()
            .is_terminal()
            .then(|| Screen::new(u64::from(orders)));
        Self {
            started: Instant::now(),
            screen,
        }
    }

    /// Something worth a line of its own.
    pub(crate) fn event(&self, text: &str) {
        let line = format!("{:5.1} s  {text}", self.started.elapsed().as_secs_f64());
        match &self.screen {
            // A terminal that is gone is no reason to stop.
            Some(screen) => drop(screen.area.println(line)),
            None => println!("{line}"),
        }
    }

    /// Shows the numbers until the end of the world, or until they can't be read.
    pub(crate) async fn follow(&self, figures: &Figures<'_>) -> anyhow::Error {
        let interval = if self.screen.is_some() {
            REFRESH
        } else {
            LINE_INTERVAL
        };
        let mut clock = tokio::time::interval(interval);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            clock.tick().await;
            match figures.look().await {
                Ok(now) => self.show(&now),
                Err(err) => return err,
            }
        }
    }

    fn show(&self, now: &Snapshot) {
        let Some(screen) = &self.screen else {
            let Snapshot {
                placed,
                pending,
                sent,
                paid,
                ..
            } = now;
            self.event(&format!(
                "placed {placed:>5}  pending {pending:>5}  sent {sent:>5}  paid {paid:>5}  \
                 commit → confirm {}",
                latency(&now.recent)
            ));
            return;
        };
        screen.show(now);
    }

    /// Leaves the last numbers standing and gives the terminal back.
    pub(crate) fn close(&self, last: Option<&Snapshot>) {
        if let Some(last) = last {
            self.show(last);
        }
        if let Some(screen) = &self.screen {
            for bar in [&screen.placed, &screen.sent, &screen.paid, &screen.pending] {
                bar.abandon();
            }
            screen.latency.abandon();
        }
    }
}

impl Screen {
    fn new(orders: u64) -> Self {
        let area = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        let add = |name: &'static str, template: &str| {
            let style = ProgressStyle::with_template(template)
                .expect("the templates are constant and each is used by every run")
                .progress_chars("█▉ ");
            area.add(ProgressBar::new(orders).with_style(style).with_prefix(name))
        };
        let bar = "{prefix:<17} {bar:40} {pos:>6} of {len}";
        Self {
            placed: add("orders placed", bar),
            sent: add("sent", bar),
            paid: add("paid", bar),
            pending: add("pending", "{prefix:<17} {bar:40.yellow} {pos:>6}"),
            latency: add("commit → confirm", "{prefix:<17} {msg}"),
            area,
        }
    }

    fn show(&self, now: &Snapshot) {
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        self.placed.set_position(now.placed as u64);
        self.sent.set_position(count(now.sent));
        self.paid.set_position(count(now.paid));
        self.pending.set_position(count(now.pending));
        self.latency.set_message(latency(&now.recent));
    }
}

/// Median and 99th percentile for people.
pub(crate) fn latency(histogram: &Histogram) -> String {
    let text = |q| match histogram.quantile(q) {
        None => "-".to_owned(),
        Some(seconds) if seconds < 1.0 => format!("{:.1} ms", seconds * 1000.0),
        Some(seconds) => format!("{seconds:.1} s"),
    };
    format!("p50 {}  p99 {}", text(0.5), text(0.99))
}
