//! How many rows go into one INSERT.

use std::ops::Range;

/// Rows of one INSERT, at most; see [`ranges`]. So many rows of common orders are shorter than a
/// record of TLS, and go out in one write: see `svc_kit::database` for what two cost where Nagle's
/// algorithm can't be turned off.
const ROWS_MAX: usize = 32;
/// Below [`ROWS_MAX`], INSERTs have a multiple of this many rows, or fewer than this.
const STEP: usize = 8;

/// Splits rows into INSERTs of few different lengths: the server prepares and keeps a statement for
/// each length, so eleven of them instead of as many as a batch may have orders.
#[must_use]
pub fn ranges(rows: usize) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut begin = 0;
    while begin < rows {
        let left = (rows - begin).min(ROWS_MAX);
        let length = if left < STEP {
            left
        } else {
            left / STEP * STEP
        };
        ranges.push(begin..begin + length);
        begin += length;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_have_few_different_lengths_and_leave_no_row_out() {
        assert!(ranges(0).is_empty());
        assert_eq!(ranges(7).first(), Some(&(0..7)));
        assert_eq!(ranges(8).first(), Some(&(0..8)));
        assert_eq!(ranges(37), [0..32, 32..37]);
        assert_eq!(ranges(133), [0..32, 32..64, 64..96, 96..128, 128..133]);
        let mut lengths = std::collections::BTreeSet::new();
        for rows in 1..=1000 {
            let ranges = ranges(rows);
            assert_eq!(
                ranges.iter().map(ExactSizeIterator::len).sum::<usize>(),
                rows
            );
            lengths.extend(ranges.iter().map(ExactSizeIterator::len));
        }
        assert_eq!(lengths.len(), 11);
    }
}
