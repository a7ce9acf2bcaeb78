//! How far a long command is: a bar on a terminal, a log line now and then elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two log lines.
const LINE_EVERY: Duration = Duration::from_secs(5);
const STYLE: &str = "{msg} {wide_bar} {human_pos}/{human_len} {per_sec} eta {eta}";

/// The progress of one step.
pub(super) struct Progress {
    what: &'static str,
    total: u64,
    bar: Option<ProgressBar>,
    next_line: Instant,
}

impl Progress {
    /// A step of `total` parts.
    pub(super) fn new(what: &'static str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(STYLE)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style).with_message(what)
        });
        Self {
            what,
            total,
            bar,
            next_line: Instant::now() + LINE_EVERY,
        }
    }

    /// So many parts are done.
    pub(super) fn at(&mut self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if Instant::now() >= self.next_line {
            self.next_line = Instant::now() + LINE_EVERY;
            tracing::info!(step = self.what, done, total = self.total, "in progress");
        }
    }
}

/// What follows is printed where the bar was.
impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
