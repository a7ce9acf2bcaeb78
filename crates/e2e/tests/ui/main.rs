//! The operators' page in a real browser, and every HTTP contract under a fuzzer.

#![expect(
    clippy::unwrap_used,
    reason = "clippy exempts test functions alone, and the helpers beside them are tests as well"
)]

mod browser;
mod contract;
mod page;
mod rows;
