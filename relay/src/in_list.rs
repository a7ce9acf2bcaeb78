//! Lists of SQL parameters.

/// A prepared statement per power of two, not one per length.
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

/// `?, ?, ?` for `count` values.
pub fn placeholders(count: usize, one: &str) -> String {
    vec![one; count].join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_padded_with_its_last_item() {
        assert_eq!(padded(&[1, 2, 3]).collect::<Vec<_>>(), [1, 2, 3, 3]);
        assert_eq!(padded(&[1]).collect::<Vec<_>>(), [1]);
        assert_eq!(placeholders(padded_len(3), "?"), "?, ?, ?, ?");
    }
}
