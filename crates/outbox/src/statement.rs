//! SQL with a list of values: how many rows go into one statement, and their placeholders.

use std::ops::Range;

/// Bytes of values up to which rows share a statement: half of the smallest `max_allowed_packet`
/// found in the wild (1 MiB), and long past the point where fewer statements are faster.
pub(crate) const SHARED_BYTES: usize = 512 * 1024;

/// Rows in one statement: far below the 65,535 placeholders of a prepared one.
const MAX_ROWS: usize = 500;

/// Splits rows of these sizes into the ranges that share a statement; a large row goes alone.
pub(crate) fn ranges(sizes: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut bytes = 0;
    for (index, size) in sizes.enumerate() {
        match ranges.last_mut() {
            Some(last) if last.len() < MAX_ROWS && bytes + size <= SHARED_BYTES => {
                last.end = index + 1;
                bytes += size;
            }
            _ => {
                ranges.push(index..index + 1);
                bytes = size;
            }
        }
    }
    ranges
}

/// `?, ?, ?`, or rows such as `(?, ?), (?, ?)`, for `count` values.
#[must_use]
pub fn placeholders(count: usize, one: &str) -> String {
    vec![one; count].join(", ")
}

/// How many values an IN list of `len` is padded to: a prepared statement for each power of two, not
/// one for each length.
#[must_use]
pub fn padded_len(len: usize) -> usize {
    len.max(1).next_power_of_two()
}

/// The items, the last one repeated up to [`padded_len`]: in an IN list it changes nothing.
pub fn padded<T: Clone>(items: &[T]) -> impl Iterator<Item = T> {
    let last = items.last().cloned();
    let missing = padded_len(items.len()) - items.len();
    items
        .iter()
        .cloned()
        .chain(std::iter::repeat_n(last, missing).flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_rows_share_and_large_rows_go_alone() {
        assert_eq!(ranges(std::iter::empty()), vec![]);
        assert_eq!(ranges([1, 2, 3].into_iter()), vec![0..3]);
        let large = SHARED_BYTES + 1;
        assert_eq!(ranges([1, large, 1, 1].into_iter()), vec![0..1, 1..2, 2..4]);
        let half = SHARED_BYTES / 2;
        assert_eq!(ranges([half, half, half].into_iter()), vec![0..2, 2..3]);
        let many = ranges(std::iter::repeat_n(1, MAX_ROWS * 2 + 1));
        assert_eq!(
            many,
            vec![
                0..MAX_ROWS,
                MAX_ROWS..MAX_ROWS * 2,
                MAX_ROWS * 2..MAX_ROWS * 2 + 1
            ]
        );
    }

    #[test]
    fn placeholders_are_separated_by_commas() {
        assert_eq!(placeholders(3, "(?)"), "(?), (?), (?)");
        assert_eq!(placeholders(0, "?"), "");
    }

    #[test]
    fn a_list_is_padded_with_its_last_item() {
        assert_eq!(padded(&[1, 2, 3]).collect::<Vec<_>>(), [1, 2, 3, 3]);
        assert_eq!(padded(&[1]).collect::<Vec<_>>(), [1]);
        assert_eq!(placeholders(padded_len(3), "?"), "?, ?, ?, ?");
    }
}
