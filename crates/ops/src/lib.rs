//! What an operator does with rows that need a person, written once for the outbox and the inbox.
//!
//! In the order of a request: `http` (the JSON API), `page` and [`cli`] all act through one
//! [`Console`]. It reads with a [`Filter`], never more than a bounded part of the table, and acts under
//! the condition of the row's state, in one transaction with the audit. A bulk retry is a schedule that
//! is written into the rows themselves: see [`bulk`].
//!
//! The feature `console` adds `http` and `page`. A program that only acts on rows needs no templates
//! and no OpenAPI document.

pub mod table;

pub mod filter;
pub mod row;

pub mod console;
pub mod error;

pub mod act;
pub mod audit;
pub mod bulk;
pub mod detail;
pub mod edit;
pub mod groups;
pub mod list;

pub mod cli;
#[cfg(feature = "console")]
pub mod http;
#[cfg(feature = "console")]
pub mod page;

mod csv;
mod payload;
mod statement;

pub use act::Outcome;
pub use audit::By;
pub use console::{Console, ConsoleArgs, Settings};
pub use error::Error;
pub use filter::{Filter, Order, PageRequest, State};
#[cfg(feature = "console")]
pub use http::router;
pub use row::{Page, Row};
pub use table::{NO_CANARY, Table};
