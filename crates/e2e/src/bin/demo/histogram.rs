//! Quantiles from a histogram in Prometheus' text format, over the restarts of its process.

/// Cumulative counts by upper bound in seconds; the last bound is infinite.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Histogram {
    bounds: Vec<f64>,
    counts: Vec<u64>,
}

impl Histogram {
    /// The histogram `name` of an exposition; empty when it is not there.
    pub(crate) fn parse(exposition: &str, name: &str) -> Self {
        let mut histogram = Self::default();
        let prefix = format!("{name}_bucket{{");
        for line in exposition
            .lines()
            .filter_map(|line| line.strip_prefix(&prefix))
        {
            let bound = line
                .split_once("le=\"")
                .and_then(|(_, rest)| rest.split_once('"'));
            let count = line.rsplit_once(' ').map(|(_, count)| count);
            let (Some((bound, _)), Some(count)) = (bound, count) else {
                continue;
            };
            if let (Ok(bound), Ok(count)) = (parse_bound(bound), count.parse()) {
                histogram.bounds.push(bound);
                histogram.counts.push(count);
            }
        }
        histogram
    }

    /// How many values it holds.
    pub(crate) fn total(&self) -> u64 {
        self.counts.last().copied().unwrap_or(0)
    }

    /// What came after `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        self.combine(earlier, u64::saturating_sub)
    }

    /// Both together.
    pub(crate) fn plus(&self, other: &Self) -> Self {
        self.combine(other, u64::saturating_add)
    }

    fn combine(&self, other: &Self, operation: fn(u64, u64) -> u64) -> Self {
        if self.bounds.is_empty() {
            return other.clone();
        }
        let mut combined = self.clone();
        for (count, other) in combined.counts.iter_mut().zip(&other.counts) {
            *count = operation(*count, *other);
        }
        combined
    }

    /// The value in seconds below which the share `q` lies, interpolated within its bucket as
    /// Prometheus does. `None` without any value.
    pub(crate) fn quantile(&self, q: f64) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
        let as_f64 = |count: u64| count as f64;
        if self.total() == 0 {
            return None;
        }
        let rank = q * as_f64(self.total());
        let at = self
            .counts
            .iter()
            .position(|&count| as_f64(count) >= rank)?;
        let (lower, before) = match at.checked_sub(1) {
            Some(previous) => (self.bounds[previous], as_f64(self.counts[previous])),
            None => (0.0, 0.0),
        };
        let upper = self.bounds[at];
        if upper.is_infinite() {
            return Some(lower);
        }
        let inside = as_f64(self.counts[at]) - before;
        Some(if inside > 0.0 {
            lower + (upper - lower) * (rank - before) / inside
        } else {
            upper
        })
    }
}

fn parse_bound(text: &str) -> Result<f64, std::num::ParseFloatError> {
    if text == "+Inf" {
        Ok(f64::INFINITY)
    } else {
        text.parse()
    }
}

/// A histogram that goes on counting when its process starts again from zero.
#[derive(Default)]
pub(crate) struct Lasting {
    /// What processes that are gone had counted.
    gone: Histogram,
    last: Histogram,
}

impl Lasting {
    /// Takes what the process shows now, and gives the sum over all processes.
    pub(crate) fn update(&mut self, now: Histogram) -> Histogram {
        if now.total() < self.last.total() {
            self.gone = self.gone.plus(&self.last);
        }
        self.last = now;
        self.gone.plus(&self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::{Histogram, Lasting};

    const TEXT: &str = "# TYPE h histogram\n\
        h_bucket{le=\"0.001\"} 2\nh_bucket{le=\"0.002\"} 10\nh_bucket{le=\"+Inf\"} 10\n\
        h_sum 0.1\nh_count 10\nother_bucket{le=\"1\"} 7\n";

    #[test]
    fn quantiles_are_interpolated_in_their_bucket() {
        let histogram = Histogram::parse(TEXT, "h");
        assert_eq!(histogram.total(), 10);
        assert_eq!(histogram.quantile(0.2), Some(0.001));
        assert_eq!(histogram.quantile(0.6), Some(0.0015));
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert_eq!(Histogram::parse(TEXT, "absent"), Histogram::default());
    }

    #[test]
    fn values_beyond_the_last_bound_count_as_the_last_bound() {
        let beyond = Histogram {
            bounds: vec![1.0, f64::INFINITY],
            counts: vec![0, 3],
        };
        assert_eq!(beyond.quantile(0.5), Some(1.0));
    }

    #[test]
    fn a_restart_loses_nothing_that_was_read() {
        let of = |count| Histogram {
            bounds: vec![f64::INFINITY],
            counts: vec![count],
        };
        let mut lasting = Lasting::default();
        assert_eq!(lasting.update(of(5)).total(), 5);
        assert_eq!(lasting.update(of(2)).total(), 7);
        assert_eq!(lasting.update(of(4)).total(), 9);
        assert_eq!(of(9).since(&of(7)).total(), 2);
    }
}
