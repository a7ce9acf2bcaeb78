//! A place in the server's binlog.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// File and offset in bytes, as `SHOW BINARY LOG STATUS` gives them.
///
/// Positions of one server are ordered by the number at the end of the file name, then by offset.
/// Positions of different servers must not be compared: after a failover the numbers mean nothing,
/// and every connection of the relay is new then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// For example `binlog.000042`. Shared: every group carries one.
    pub file: Arc<str>,
    /// Bytes from the start of the file.
    pub offset: u64,
}

impl Position {
    /// A position in `file`.
    pub fn new(file: impl Into<Arc<str>>, offset: u64) -> Self {
        Self {
            file: file.into(),
            offset,
        }
    }

    fn number(&self) -> u64 {
        let digits = self.file.rsplit('.').next().unwrap_or_default();
        digits.parse().unwrap_or(0)
    }
}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Position {
    fn cmp(&self, other: &Self) -> Ordering {
        self.number()
            .cmp(&other.number())
            .then(self.offset.cmp(&other.offset))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_by_file_number_and_not_by_name() {
        let before = Position::new("binlog.999999", 9_000);
        let after = Position::new("binlog.1000000", 4);
        assert!(before < after);
        assert!(Position::new("b.000002", 4) < Position::new("b.000002", 5));
    }

    #[test]
    fn a_position_is_shown_as_file_and_offset() {
        assert_eq!(Position::new("b.000002", 4).to_string(), "b.000002:4");
    }
}
