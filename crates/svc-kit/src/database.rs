//! MySQL and MariaDB: where the database is, sessions that all behave alike, and whose failure an
//! error is.

mod contact;
mod fault;
mod prompt;
mod session;
mod url;

pub use contact::{first_contact, first_contact_telling};
pub use fault::{Fault, classify, is_answer};
pub use session::SESSION;
pub use url::{DatabaseUrl, Tls};
