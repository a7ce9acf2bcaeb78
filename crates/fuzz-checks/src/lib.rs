//! What the fuzz targets of `fuzz/` check: each function takes bytes, and panics when they show a fault
//! of the product. `tests/corpus.rs` replays the committed corpus through the same functions.

mod database_url;
mod events;
mod message;
mod statement;
mod traceparent;
mod transaction;

pub use database_url::database_url;
pub use events::{Events, Head};
pub use message::message;
pub use statement::statement;
pub use traceparent::traceparent;
pub use transaction::{Found, transaction};
