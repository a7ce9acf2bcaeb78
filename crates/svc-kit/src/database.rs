//! MySQL and MariaDB: where the database is, sessions that all behave alike, and whose failure an
//! error is.

mod contact;
mod fault;
mod look;
mod prompt;
mod session;
mod url;

pub use contact::{first_contact, first_contact_reporting};
pub(crate) use fault::without_user;
pub use fault::{Fault, at_login, classify, is_answer};
pub use look::look;
pub use session::SESSION;
pub use url::{DatabaseUrl, Tls};
#[cfg(feature = "amqp")]
pub(crate) use url::{ENCODE, STRAY_AT, foreign_scheme, has_stray_at};
