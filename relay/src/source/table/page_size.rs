//! How large the next page is, and by which index it is read. No IO.

/// Most rows in a page.
pub const PAGE: usize = 1000;
/// Rows in the first page. To know a payload's length the server reads all of it, so a page of large
/// ones may take a minute: pages grow while they are small.
const PAGE_MIN: usize = 64;
/// Payload bytes of a page: the next one may have twice as many rows while there are far less.
const PAGE_BYTES: usize = 64 << 20;

/// How the next page is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageSize {
    /// Rows in it, at the most.
    pub(super) rows: usize,
    /// Nearly all rows are pending: they are read in the table's own order. The index on (status, id)
    /// finds each of them by another search, which takes twice as long.
    pub(super) dense: bool,
}

/// Of so many rows read in the table's own order, one may be no longer pending: its payload is read
/// before its status is looked at.
const OTHERS: u64 = 16;

impl PageSize {
    pub(super) const FIRST: Self = Self {
        rows: PAGE_MIN,
        dense: false,
    };

    /// The last id that the page after this one may have.
    pub(super) fn end(self, after: u64, upto: u64) -> u64 {
        match self.dense {
            true => upto.min(after.saturating_add(window(self.rows))),
            false => upto,
        }
    }

    /// After a page with so many rows and bytes of payload, out of so many ids.
    pub(super) fn after(self, (found, bytes): (usize, usize), ids: u64) -> Self {
        let rows = if bytes > PAGE_BYTES {
            (self.rows / 2).max(1)
        } else if bytes < PAGE_BYTES / 2 {
            (self.rows * 2).min(PAGE)
        } else {
            self.rows
        };
        let dense = ids <= window(found);
        Self { rows, dense }
    }
}

/// Ids that so many pending rows may lie among.
fn window(rows: usize) -> u64 {
    let rows = rows as u64;
    rows + rows / OTHERS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(rows: usize, bytes: usize) -> usize {
        let size = PageSize { rows, dense: false };
        size.after((rows, bytes), 1).rows
    }

    #[test]
    fn pages_follow_the_size_of_their_payloads() {
        assert_eq!(next(PAGE_MIN, 20_000), 2 * PAGE_MIN);
        assert_eq!(next(PAGE, 300_000), PAGE);
        assert_eq!(next(PAGE_MIN, PAGE_BYTES), PAGE_MIN);
        assert_eq!(next(PAGE_MIN, 8 * PAGE_BYTES), PAGE_MIN / 2);
        assert_eq!(next(1, 8 * PAGE_BYTES), 1);
    }

    #[test]
    fn a_page_goes_along_the_table_only_while_nearly_all_of_its_rows_are_pending() {
        let page = PAGE as u64;
        let indexed = PageSize {
            rows: PAGE,
            dense: false,
        };
        assert_eq!(indexed.end(7, 1_000_000), 1_000_000);
        // Everything before its first row has been sent.
        assert!(!indexed.after((PAGE, 0), 500_000).dense);
        let dense = indexed.after((PAGE, 0), page + page / 16);
        assert!(dense.dense);
        assert_eq!(dense.end(7, 1_000_000), 7 + page + page / 16);
        assert_eq!(dense.end(7, 8), 8);
        assert!(!dense.after((PAGE - 1, 0), page + page / 16).dense);
        assert!(!dense.after((0, 0), page).dense);
        assert!(indexed.after((1, 0), 1).dense);
    }
}
